"""Tensors in onnxruntime's blocks: the same values to the bit as in the usual way, or the usual way."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge.backends.onnxruntime import OrtSession
from edge.calibration import blocked, watch_plan
from edge.errors import ModelError
from edge.model import onnx_model

Node = Any


def chain(*layers: tuple[str, int] | str, size: int = 12) -> bytes:
    """A network of convolutions ``("Conv", channels)``, activations, and ``Add`` of the last two convolutions."""
    rng = np.random.default_rng(3)
    nodes: list[Node] = []
    weights: list[TensorProto] = [
        numpy_helper.from_array(np.float32(0.25), "low"),
        numpy_helper.from_array(np.float32(0.75), "high"),
    ]
    name, channels, names, convolutions = "input", 3, [], ["input", "input"]
    for index, layer in enumerate(layers):
        kind, made = layer if isinstance(layer, tuple) else (layer, channels)
        output = f"t{index}"
        if kind == "Conv":
            values = rng.normal(size=(made, channels, 3, 3)).astype(np.float32)
            weights += [numpy_helper.from_array(values, f"w{index}")]
            weights += [numpy_helper.from_array(rng.normal(size=made).astype(np.float32), f"b{index}")]
            nodes.append(helper.make_node(kind, [name, f"w{index}", f"b{index}"], [output], pads=[1, 1, 1, 1]))
            convolutions.append(output)
        elif kind == "Clip":
            nodes.append(helper.make_node(kind, [name, "low", "high"], [output]))
        elif kind == "Add":
            nodes.append(helper.make_node(kind, convolutions[-2:], [output]))
        else:
            nodes.append(helper.make_node(kind, [name], [output]))
        name, channels = output, made
        names.append(output)
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [None, 3, size, size])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)], weights,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    return watch_plan.with_outputs(model, names)


def batch(size: int = 12, *, pictures: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(pictures, 3, size, size)).astype(np.float32)


def same_values(model: bytes, given: np.ndarray) -> blocked.Watching:
    session = blocked.open_blocked(model, batch(given.shape[2], pictures=len(given)))
    plain = OrtSession(model, precision="fp32", threads=1).outputs(given)
    found = session.outputs(given)
    assert len(found) == len(plain)
    for one, other in zip(plain, found, strict=True):
        for picture, values in zip(one, other, strict=True):
            assert np.array_equal(
                np.sort(picture, axis=None).view(np.uint32), np.sort(values, axis=None).view(np.uint32)
            )
    return session


@pytest.mark.parametrize("pictures", [1, 3])
@pytest.mark.parametrize(
    "layers",
    [
        pytest.param([("Conv", 32), "Relu", ("Conv", 64)], id="whole blocks"),
        pytest.param([("Conv", 24), "Clip", ("Conv", 40), "Clip", ("Conv", 8)], id="channels that fill no block"),
        pytest.param([("Conv", 32), ("Conv", 32), "Add", "Relu", ("Conv", 16)], id="residual"),
        pytest.param([("Conv", 24), "Relu", ("Conv", 24), "Add", ("Conv", 24), "Clip"], id="residual of padded ones"),
        pytest.param([("Conv", 32), "Sigmoid", ("Conv", 32), "Tanh"], id="other activations"),
        pytest.param([("Conv", 32), "Softplus", ("Conv", 32)], id="unknown to blocks"),
        pytest.param([("Conv", 32), "GlobalAveragePool", "Flatten"], id="no picture behind"),
        pytest.param(["Relu", "Sigmoid"], id="no convolution"),
        pytest.param([("Conv", 5), "Relu", ("Conv", 3)], id="few channels"),
    ],
)  # fmt: skip
def test_all_values_are_there_to_the_bit(layers: list[Any], pictures: int) -> None:
    same_values(chain(*layers), batch(pictures=pictures, seed=5))


def test_the_sample_model_is_in_blocks_where_onnxruntime_has_them(repository: Path) -> None:
    model = onnx_model.read(repository / "models/efficientnet_lite0.onnx")
    names = onnx_model.load(repository / "models/efficientnet_lite0.onnx").activations
    outputs = watch_plan.with_outputs(model, watch_plan.plan(model.graph, names).watched)
    session = same_values(outputs, batch(224))
    with tempfile.TemporaryDirectory() as folder:
        OrtSession(outputs, precision="fp32", threads=1, optimized=Path(folder) / "o.onnx")
        domains = {node.domain for node in onnx.load(f"{folder}/o.onnx").graph.node}
    assert isinstance(session, blocked.BlockedSession) == ("com.microsoft.nchwc" in domains)


def test_nothing_is_reordered_any_more() -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "o.onnx"
        layers = chain(("Conv", 32), "Clip", ("Conv", 64), "Clip", ("Conv", 32))
        OrtSession(layers, precision="fp32", threads=1, optimized=file)
        graph = onnx.load(str(file))
    if "ReorderOutput" not in {node.op_type for node in graph.graph.node}:
        pytest.skip("this onnxruntime keeps no blocks on this processor")
    found = blocked.twins(graph)
    kinds = [node.op_type for node in graph.graph.node]
    assert kinds.count("ReorderOutput") == 0
    assert kinds.count("ReorderInput") <= 1
    assert kinds.count("Conv") == 3
    assert kinds.count("Clip") == 2
    assert {f"t{index}" for index in range(5)} <= set(found)


def test_values_are_overwritten_by_the_next_call_of_the_same_thread_only() -> None:
    from concurrent.futures import ThreadPoolExecutor

    session = blocked.open_blocked(chain(("Conv", 32), "Relu"), batch())
    first = [values.copy() for values in session.outputs(batch(seed=1))]
    with ThreadPoolExecutor(1) as other:
        held = session.outputs(batch(seed=1))
        other.submit(session.outputs, batch(seed=2)).result()
        assert all(np.array_equal(one, two) for one, two in zip(first, held, strict=True))


def test_without_room_for_the_graph_it_goes_the_usual_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "is not there"))
    session = blocked.open_blocked(chain(("Conv", 32), "Relu"), batch())
    assert isinstance(session, OrtSession)
    assert [values.shape for values in session.outputs(batch())] == [(1, 32, 12, 12)] * 2


def test_a_graph_in_a_form_that_is_new_goes_the_usual_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a size that nobody has heard of: no shape fits."""
    monkeypatch.setattr(blocked, "BLOCKS", (7,))
    assert isinstance(blocked.open_blocked(chain(("Conv", 32), "Relu"), batch()), OrtSession)


def test_a_broken_model_is_said(tiny_model: Callable[..., Path]) -> None:
    with pytest.raises(ModelError):
        blocked.open_blocked(tiny_model().read_bytes()[:-50], batch())

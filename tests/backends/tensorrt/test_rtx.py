"""The real parser and the real builder, on a CPU: TensorRT for RTX, driven by our own builder code.

Its engines run on RTX GPUs only; that part is not tried here.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge.backends.interface import BuildRequest
from edge.backends.tensorrt import builder, environment, onnx_variants
from edge.backends.tensorrt.environment import Caps
from edge.config import profiles
from edge.config.profiles import Profile
from edge.errors import ModelError
from edge.events import Event, Progress
from tests.support.tensorrt import networks
from tests.support.tensorrt.installed import table_for

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None,
    reason="TensorRT for RTX is not installed: pip install tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings",
)


def for_sm86(profile: Profile) -> Profile:
    """The smaller engine of two: without a word of GPUs, TensorRT for RTX builds for all that it knows."""
    build = msgspec.structs.replace(profile.build, compute_capabilities=("SM86",))
    return msgspec.structs.replace(profile, build=build)


@pytest.fixture
def rtx() -> Caps:
    return environment.load(rtx=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("networks")
    networks.resnet50(made / "resnet50.onnx")
    networks.mobilenet_v2(made / "mobilenet_v2.onnx")
    return made


@pytest.fixture
def asked(repository: Path, folder: Path) -> Callable[..., BuildRequest]:
    def make(model: str, precision: Any) -> BuildRequest:
        path = repository / "models" / model
        path = path if path.is_file() else folder / model
        chosen = for_sm86(profiles.read_profile(repository / "profiles/rtx.yaml"))
        table = table_for(path) if precision == "int8" else None
        return BuildRequest(profile=chosen, model=path, precision=precision, table=table)

    return make


@pytest.mark.parametrize(
    ("model", "weighted", "precision"),
    [
        ("efficientnet_lite0.onnx", 50, "int8"), ("mobilenet_v2.onnx", 53, "fp32"), ("mobilenet_v2.onnx", 53, "fp16"),
        ("mobilenet_v2.onnx", 53, "int8"), ("resnet50.onnx", 54, "fp16"),
    ],
)  # fmt: skip
def test_a_plan_is_built(
    model: str, weighted: int, precision: str, asked: Callable[..., BuildRequest], rtx: Caps
) -> None:
    events: list[Event] = []
    request = asked(model, precision)
    built = builder.build(request, rtx, listen=events.append)
    assert built is not None
    assert (built.layers.weighted, built.layers.weighted_int8) == (weighted, weighted if precision == "int8" else 0)
    size = request.model.stat().st_size
    # FP32 keeps the weights as they are and FP16 halves them; of INT8, some are kept in two forms.
    smallest, largest = {"fp32": (0.9, 1.2), "fp16": (0.4, 0.6), "int8": (0.2, 0.9)}[precision]
    assert smallest < len(built.plan) / size < largest
    assert built.flags == ([] if precision == "fp32" else ["TF32"])
    progress = [event.done for event in events if isinstance(event, Progress)]
    assert (progress[0], progress[-1]) == (0, 100)
    assert progress == sorted(progress)


def test_stopping(asked: Callable[..., BuildRequest], rtx: Caps) -> None:
    count: list[int] = []
    found = builder.build(
        asked("efficientnet_lite0.onnx", "fp32"), rtx,
        should_stop=lambda: len(count) > 20 or bool(count.append(1)),
    )  # fmt: skip
    assert found is None
    assert len(count) == 21


class Stopped(BaseException):
    """As a signal handler raises it."""


def test_an_exception_in_a_callback_ends_the_build(asked: Callable[..., BuildRequest], rtx: Caps) -> None:
    def listen(event: Event) -> None:
        if isinstance(event, Progress) and event.done > 5:
            raise Stopped

    with pytest.raises(Stopped):
        builder.build(asked("efficientnet_lite0.onnx", "fp32"), rtx, listen=listen)
    # And the next build is not impressed.
    assert builder.build(asked("mobilenet_v2.onnx", "fp32"), rtx) is not None


# bad models


def network(path: Path, nodes: list[Any], weights: list[Any], *, domain: bool = False, out: Any = None) -> Path:
    graph = helper.make_graph(
        nodes,
        "bad",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 3, 32, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out or ["n", "c"])],
        weights,
    )
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid("com.x", 1)] if domain else [])]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def weights(shape: tuple[int, ...], name: str = "w") -> Any:
    return numpy_helper.from_array(np.zeros(shape, np.float32), name)


def odd_operator(path: Path) -> Path:
    nodes = [
        helper.make_node("Relu", ["input"], ["r"], name="relu1"),
        helper.make_node("Det", ["r"], ["y"], name="det1"),
    ]
    return network(path, nodes, [])


def custom_operator(path: Path) -> Path:
    return network(path, [helper.make_node("Rotate", ["input"], ["y"], name="s1", domain="com.x")], [], domain=True)


def wrong_kernel(path: Path) -> Path:
    return network(path, [helper.make_node("Conv", ["input", "w"], ["y"], name="conv1")], [weights((8, 4, 3, 3))])


def lost_weights(path: Path) -> Path:
    item = TensorProto()
    item.CopyFrom(weights((8, 3, 3, 3)))
    item.ClearField("raw_data")
    item.data_location = TensorProto.EXTERNAL
    entry = item.external_data.add()
    entry.key, entry.value = "location", "lost.bin"
    return network(path, [helper.make_node("Conv", ["input", "w"], ["y"], name="conv1")], [item])


def truncated(path: Path) -> Path:
    content = network(path, [helper.make_node("Conv", ["input", "w"], ["y"])], [weights((64, 3, 9, 9))]).read_bytes()
    path.write_bytes(content[:5000])
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        pytest.param(odd_operator, r"Det \(det1\): TensorRT has no such operator", id="operator"),
        pytest.param(custom_operator, r"Rotate \(s1\): TensorRT has no such operator, and no plugin", id="custom"),
        pytest.param(wrong_kernel, r"Conv \(conv1\): Kernel weight dimension failed", id="shapes that do not fit"),
        pytest.param(lost_weights, r"the weights w cannot be read|lost\.bin", id="external weights are gone"),
        pytest.param(truncated, "cannot be read as ONNX|not a valid ONNX", id="truncated"),
    ],
)
def test_a_bad_model(make: Callable[[Path], Path], words: str, tmp_path: Path, repository: Path, rtx: Caps) -> None:
    path = make(tmp_path / "bad.onnx")
    chosen = profiles.read_profile(repository / "profiles/rtx.yaml")
    with pytest.raises(ModelError, match=words) as caught:
        # The parser's own words: the checks of edge.model.onnx_model come earlier in a real build.
        builder.build(BuildRequest(profile=chosen, model=path, precision="fp32"), rtx)
    assert caught.value.exit_code == 5
    assert caught.value.hint


def test_int64_constants_are_taken(tmp_path: Path, repository: Path, rtx: Caps) -> None:
    nodes = [
        helper.make_node("Reshape", ["input", "s"], ["r"], name="r1"),
        helper.make_node("Gather", ["r", "i"], ["y"], name="g1", axis=1),
    ]
    ints = [
        numpy_helper.from_array(np.array(values, np.int64), name) for values, name in (([-1, 3072], "s"), ([1, 5], "i"))
    ]
    path = network(tmp_path / "ints.onnx", nodes, ints, out=["n", 2])
    chosen = profiles.read_profile(repository / "profiles/rtx.yaml")
    size = msgspec.structs.replace(chosen.input, height=32, width=32)
    chosen = msgspec.structs.replace(chosen, input=size)
    built = builder.build(BuildRequest(profile=chosen, model=path, precision="fp32"), rtx)
    assert built is not None


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_external_weights(
    precision: Any, tiny_model: Callable[..., Path], tiny_profile: Callable[..., Path], tmp_path: Path, rtx: Caps
) -> None:
    path = tiny_model("model.onnx", external=True)
    chosen = profiles.read_profile(tiny_profile(tmp_path, backend="tensorrt", family="rtx"))
    table = table_for(path) if precision == "int8" else None
    request = BuildRequest(profile=chosen, model=path, precision=precision, table=table)
    assert builder.build(request, rtx) is not None


def test_next_to_int8_the_real_parser_sees_fp16_alone(asked: Callable[..., BuildRequest], rtx: Caps) -> None:
    """Without a word on the rest, every activation outside of Q/DQ pairs was FP32."""
    import tensorrt_rtx_bindings as trt

    request = asked("efficientnet_lite0.onnx", "int8")
    assert request.table is not None
    form = onnx_variants.quantized(request.model, request.table, half_rest=rtx.strongly_typed_only)
    assert form.data is not None
    made = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = made.create_network(0)
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    assert parser.parse(form.data)
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    # The parser keeps scales as FP32 constants.
    computed = [layer for layer in layers if layer.type.name != "CONSTANT"]
    kinds = [layer.get_output(index).dtype.name for layer in computed for index in range(layer.num_outputs)]
    assert kinds.count("HALF") > 50
    assert kinds.count("FLOAT") == 1, "the logits are cast back"

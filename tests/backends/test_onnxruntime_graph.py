"""What onnxruntime made of a network, found again in its optimized graph."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edge.backends import OrtSession, interface
from edge.backends.interface import BuildRequest, BuiltEngine
from edge.config import profiles
from edge.errors import ModelError
from edge.model import onnx_model
from edge.model.inspection import Inspection
from edge.quantization import calibration_table
from edge.quantization.calibration_table import TrtVersion


@pytest.fixture
def inspected(tiny_profile: Callable[..., Path], tiny_model: Callable[..., Path], tmp_path: Path) -> Any:
    """``inspected("int8", leave_out=("c2",), concat=True)``: the engine of a variant of the tiny network."""

    def call(precision: Any, *, leave_out: tuple[str, ...] = (), **variant: Any) -> BuiltEngine:
        path = tiny_model("model.onnx", **variant)
        chosen = profiles.read_profile(tiny_profile(tmp_path))
        names = [name for name in onnx_model.load(path).activations if name not in leave_out]
        ranges = {name: 2.0 + index / 8 for index, name in enumerate(names)}
        table = calibration_table.from_ranges(ranges, algorithm="entropy2", trt_version=TrtVersion(8, 6, 1))
        request = BuildRequest(
            profile=chosen, model=path, precision=precision, table=table if precision == "int8" else None
        )
        return interface.get("onnxruntime").build(request)

    return call


def test_a_model_of_a_newer_ir_version_than_onnxruntime_s_is_taken(tiny_model: Callable[..., Path]) -> None:
    """Exporters stamp the newest IR version that they know; what the model needs follows from its opset."""
    model = onnx.load(tiny_model("model.onnx"))
    model.ir_version = 99
    session = OrtSession(model.SerializeToString(), precision="fp32", threads=1)
    assert session.infer(np.zeros((1, 3, 32, 32), np.float32)).logits.shape == (1, 10)
    session.close()
    model.opset_import[0].version = 90
    with pytest.raises(ModelError, match=r"the installed onnxruntime \S+ reads up to \d+"):
        OrtSession(model.SerializeToString(), precision="fp32", threads=1)


def of(built: BuiltEngine) -> Inspection:
    assert built.inspection is not None
    assert built.inspection.source.startswith("optimized graph of onnxruntime ")
    return built.inspection


@pytest.mark.parametrize("variant", [{}, {"concat": True}, {"downsample": True}, {"named": False}], ids=str)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_every_node_is_in_a_layer_and_none_is_made_twice(
    precision: str, variant: dict[str, Any], inspected: Callable[..., BuiltEngine]
) -> None:
    found = of(inspected(precision, **variant))
    made = [name for layer in found.layers for name in layer.nodes]
    # A DequantizeLinear whose tensor goes to two layers becomes part of both.
    markers = {node.name for node in found.nodes if node.kind == "DequantizeLinear"}
    assert sorted(name for name in made if name not in markers) == sorted(
        node.name for node in found.nodes if node.name not in markers
    )


def test_fp32(inspected: Callable[..., BuiltEngine]) -> None:
    built = inspected("fp32")
    found = of(built)
    assert found.counts().weighted == {"fp32": 4}
    assert (built.layers.weighted, built.layers.weighted_int8, built.layers.reduced_share) == (4, 0, 0)
    assert [(port.name, port.mode, port.precision, port.shape) for port in found.ports] == [
        ("input", "input", "fp32", ("n", 3, 32, 32)), ("logits", "output", "fp32", ("n", 10)),
    ]  # fmt: skip
    weighted = [layer for layer in found.layers if layer.role == "weighted"]
    assert ["conv_0", "clip_1"] in [layer.nodes for layer in weighted]
    assert weighted[-1].nodes == ["gemm_9"]
    assert weighted[-1].weights_bytes == (8 * 10 + 10) * 4
    # A blocked convolution pads its channels, so there may be more bytes than the model has.
    assert (found.counts().weights_bytes or 0) >= (8 * 27 + 8 * 9 + 64 + 80 + 24 + 10) * 4


def test_int8(inspected: Callable[..., BuiltEngine]) -> None:
    found = of(inspected("int8"))
    assert found.counts().weighted == {"int8": 4}
    first = next(layer for layer in found.layers if layer.role == "weighted")
    assert first.kind == "QLinearConv"
    assert "conv_0" in first.nodes
    assert first.inputs[0].precision == "uint8"
    # 8 filters of 27 bytes, biases of 4 bytes, scales and zero points.
    assert 8 * 27 + 8 * 4 <= (first.weights_bytes or 0) <= 8 * 27 + 8 * 4 + 128
    reformats = {layer.kind for layer in found.layers if layer.role == "reformat"}
    assert "QuantizeLinear" in reformats
    assert all(layer.precision is None for layer in found.layers if layer.role == "reformat")


def test_a_layer_without_a_scale_says_so(inspected: Callable[..., BuiltEngine]) -> None:
    built = inspected("int8", leave_out=("r2",))
    found = of(built)
    short = [layer for layer in found.layers if layer.role == "weighted" and layer.precision != "int8"]
    assert len(short) == 1
    assert short[0].why == "the table has no usable scale for r2"
    assert built.layers.weighted_int8 == 3
    assert "no usable scale" in built.notes[0]

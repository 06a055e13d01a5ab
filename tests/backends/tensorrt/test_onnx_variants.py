"""The forms of a model that go to the parser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from google.protobuf.message import EncodeError

from edge.backends.tensorrt import onnx_variants
from edge.errors import ModelError
from tests.support.tensorrt.installed import table_for


def run(model: bytes, batch: Any) -> Any:
    return ort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"input": batch})[0]


@pytest.fixture
def batch() -> Any:
    return np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)


def test_fp16_is_valid_onnx_and_nearly_the_same(tiny_model: Callable[..., Path], batch: Any) -> None:
    path = tiny_model()
    form = onnx_variants.half(path)
    assert form.data is not None
    onnx.checker.check_model(onnx.load_model_from_string(form.data), full_check=True)
    assert (form.weighted, form.quantized, form.half) == (4, 0, True)
    before, after = run(path.read_bytes(), batch), run(form.data, batch)
    assert after.dtype == np.float32
    np.testing.assert_allclose(after, before, atol=0.02)


def test_the_kept_model_is_left_as_it_is(tiny_model: Callable[..., Path]) -> None:
    path = tiny_model()
    before = onnx_variants.plain(path)
    onnx_variants.half(path)
    onnx_variants.quantized(path, table_for(path))
    assert onnx_variants.plain(path) == before
    assert (before.data, before.weighted) == (None, 4)


def test_qdq_holds_the_tables_scales_to_the_bit(tiny_model: Callable[..., Path]) -> None:
    path = tiny_model()
    table = table_for(path)
    form = onnx_variants.quantized(path, table)
    assert form.data is not None
    graph = onnx.load_model_from_string(form.data).graph
    values = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
    (node,) = [node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "input"]
    assert values[node.input[1]] == np.float32(table.scale("input"))
    assert (form.weighted, form.quantized) == (4, 4)


def test_a_tensor_without_a_scale_is_said(tiny_model: Callable[..., Path]) -> None:
    path = tiny_model()
    form = onnx_variants.quantized(path, table_for(path, leave_out=("r1",)))
    assert (form.weighted, form.quantized) == (4, 3)
    assert form.notes == ["1 tensors have no usable scale and keep their layers in float: r1"]


class Huge:
    """A model above protobuf's 2 GB: its own would take too much memory for a test."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def SerializeToString(self) -> bytes:
        raise self.error


@pytest.mark.parametrize("error", [ValueError("exceeds maximum protobuf size"), EncodeError("Failed to serialize")])
def test_above_2_gb(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="must be a single file") as caught:
        onnx_variants._serialized(Huge(error), tmp_path / "big.onnx")
    assert "--precision fp32" in (caught.value.hint or "")


def test_an_old_opset_is_converted_for_qdq(tiny_model: Callable[..., Path]) -> None:
    path = tiny_model(opset=11)
    made = onnx.load_from_string(onnx_variants.quantized(path, table_for(path)).data)
    assert next(item.version for item in made.opset_import if not item.domain) >= 13
    assert any(node.op_type == "DequantizeLinear" and node.attribute for node in made.graph.node)


def test_nodes_by_number(tiny_model: Callable[..., Path]) -> None:
    assert onnx_variants.nodes(tiny_model())[:2] == [("conv_0", "Conv"), ("clip_1", "Clip")]


# FP16 next to INT8


def changed(path: Path, name: str, value: float) -> Path:
    """The same model with one value of the weights ``name`` set."""
    proto = onnx.load(path)
    (weight,) = [item for item in proto.graph.initializer if item.name == name]
    values = onnx.numpy_helper.to_array(weight).copy()
    values.flat[0] = value
    weight.CopyFrom(onnx.numpy_helper.from_array(values, name))
    onnx.save(proto, path)
    return path


def types(model: bytes) -> dict[str, int]:
    """Element types of all tensors that ONNX's shape inference knows."""
    inferred = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(model), data_prop=True)
    return {item.name: item.type.tensor_type.elem_type for item in inferred.graph.value_info}


def test_what_is_not_int8_is_fp16(tiny_model: Callable[..., Path]) -> None:
    path = tiny_model()
    form = onnx_variants.quantized(path, table_for(path), half_rest=True)
    assert form.data is not None
    found = types(form.data)
    floats = [name for name, kind in found.items() if kind == onnx.TensorProto.FLOAT]
    assert len(floats) <= 2, f"only the network's input and output are float32: {floats}"
    assert onnx.TensorProto.FLOAT16 in found.values()
    assert (form.quantized, form.notes) == (4, [])


@pytest.mark.parametrize("value", [1e5, -1e5])
def test_a_layer_whose_weights_leave_fp16_stays_in_fp32(tiny_model: Callable[..., Path], value: float) -> None:
    path = tiny_model()
    name = next(node.input[1] for node in onnx.load(path).graph.node if node.op_type == "Conv")
    form = onnx_variants.half(changed(path, name, value))
    assert form.data is not None
    assert "it has weights beyond 65504" in form.notes[0]
    kept = {item.name: item for item in onnx.load_model_from_string(form.data).graph.initializer}[name]
    assert float(onnx.numpy_helper.to_array(kept).flat[0]) == value, "not clamped"
    ort.InferenceSession(form.data, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("half_rest", [None, True], ids=["fp16", "int8"])
def test_weights_that_are_no_numbers_are_refused_by_name(
    tiny_model: Callable[..., Path], value: float, half_rest: bool | None
) -> None:
    path = tiny_model()
    table = table_for(path)
    name = next(node.input[1] for node in onnx.load(path).graph.node if node.op_type == "Conv")
    changed(path, name, value)
    with pytest.raises(ModelError, match="contain NaN or infinity") as caught:
        onnx_variants.half(path) if half_rest is None else onnx_variants.quantized(path, table, half_rest=True)
    assert caught.value.exit_code == 5
    assert name in str(caught.value)


def test_measured_ranges_near_the_limit_stay_in_fp32(tiny_model: Callable[..., Path]) -> None:
    path = tiny_model()
    form = onnx_variants.quantized(path, table_for(path, sum=20000.0), half_rest=True)
    assert any("values of more than 16376 were measured" in note for note in form.notes)
    assert onnx.TensorProto.FLOAT in types(form.data or b"").values()
    # The network's input: nothing computes it, and the first layer reads it.
    form = onnx_variants.quantized(path, table_for(path, input=20000.0), half_rest=True)
    assert any("values of more than 16376 were measured" in note for note in form.notes)


def test_a_scale_that_fp16_does_not_have_keeps_its_layer_in_fp32(tiny_model: Callable[..., Path]) -> None:
    """A cast between DequantizeLinear and the layer would undo INT8."""
    path = tiny_model()
    second = [node for node in onnx.load(path).graph.node if node.op_type == "Conv"][1]
    form = onnx_variants.quantized(path, table_for(path, **{second.input[0]: 127 * 2.0**-20}), half_rest=True)
    assert any("a scale is too small or too large for FP16" in note for note in form.notes)
    made = onnx.load_model_from_string(form.data or b"")
    producer = {name: node for node in made.graph.node for name in node.output}
    convolution = next(node for node in made.graph.node if node.name == second.name)
    assert [producer[name].op_type for name in convolution.input[:2]] == ["DequantizeLinear"] * 2
    ort.InferenceSession(form.data, providers=["CPUExecutionProvider"])


def test_a_channel_of_weights_that_are_nearly_zero_stays_in_int8(tiny_model: Callable[..., Path], batch: Any) -> None:
    """A batch normalization folded into a convolution leaves such channels; their scale is below what FP16 has."""
    path = tiny_model()
    proto = onnx.load(path)
    name = next(node.input[1] for node in proto.graph.node if node.op_type == "Conv")
    (weight,) = [item for item in proto.graph.initializer if item.name == name]
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0] *= 1e-9
    weight.CopyFrom(onnx.numpy_helper.from_array(values, name))
    onnx.save(proto, path)
    table = table_for(path)
    form = onnx_variants.quantized(path, table, half_rest=True)
    assert form.data is not None
    assert form.notes == []
    scales = [
        onnx.numpy_helper.to_array(item)
        for item in onnx.load_model_from_string(form.data).graph.initializer
        if item.data_type == onnx.TensorProto.FLOAT16
    ]
    assert min(float(scale.min()) for scale in scales if scale.size and scale.ndim < 2 and (scale > 0).all()) >= 2**-18
    full = onnx_variants.quantized(path, table)
    assert full.data is not None
    np.testing.assert_allclose(run(form.data, batch), run(full.data, batch), atol=0.05)


def test_layer_norm_computes_in_fp32(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    scale = onnx.numpy_helper.from_array(np.ones(8, np.float32), "scale")
    weight = onnx.numpy_helper.from_array(np.eye(8, dtype=np.float32), "weight")
    nodes = [
        helper.make_node("GlobalAveragePool", ["input"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight"], ["mixed"]),
        helper.make_node("LayerNormalization", ["mixed", "scale"], ["logits"], name="norm"),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 8, 4, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 8])],
        [scale, weight],
    )
    path = tmp_path / "norm.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    proto, notes = onnx_variants._in_half(onnx.load(path), path, {})
    assert notes == ["in FP32 because its sums of squares or powers leave FP16: norm"]
    kinds = {node.op_type for node in proto.graph.node}
    assert "Cast" in kinds

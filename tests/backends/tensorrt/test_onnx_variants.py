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
    with pytest.raises(ModelError, match="above 2 GB in one piece") as caught:
        onnx_variants._serialized(Huge(error), tmp_path / "big.onnx")
    assert "--precision fp32" in (caught.value.hint or "")


def test_an_old_opset_is_converted_for_qdq(tiny_model: Callable[..., Path]) -> None:
    path = tiny_model(opset=11)
    made = onnx.load_from_string(onnx_variants.quantized(path, table_for(path)).data)
    assert next(item.version for item in made.opset_import if not item.domain) >= 13
    assert any(node.op_type == "DequantizeLinear" and node.attribute for node in made.graph.node)


def test_nodes_by_number(tiny_model: Callable[..., Path]) -> None:
    assert onnx_variants.nodes(tiny_model())[:2] == [("conv_0", "Conv"), ("clip_1", "Clip")]

"""Filling a Q/DQ form gives the network that the quantizer would have made, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edge.model import onnx_model
from edge.quantization import qdq
from edge.quantization.calibration_table import Table, TrtVersion, from_ranges
from edge.quantization.qdq_template import Template

Make = Callable[..., Path]


def tables_for(path: Path, count: int, *, seed: int = 0) -> list[Table]:
    names = onnx_model.load(path).activations
    rng = np.random.default_rng(seed)
    return [
        from_ranges(
            {name: float(value) for name, value in zip(names, rng.uniform(0.5, 20, len(names)), strict=True)},
            algorithm="entropy2", trt_version=TrtVersion(10, 3, 0),
        )
        for _ in range(count)
    ]  # fmt: skip


def without(table: Table, *names: str) -> Table:
    return Table(table.header, {name: bits for name, bits in table.bits.items() if name not in names})


def same(one: qdq.QdqResult, other: qdq.QdqResult) -> bool:
    one_bytes, other_bytes = (item.model.SerializeToString(deterministic=True) for item in (one, other))
    rest = [(item.quantized, item.weighted, item.unscaled) for item in (one, other)]
    return bool(one_bytes == other_bytes and rest[0] == rest[1])


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_every_table_gives_what_the_quantizer_gives(target: Any, tiny_model: Make) -> None:
    path = tiny_model()
    model = onnx_model.read(path)
    expected = [qdq.insert(model, table, target=target) for table in tables_for(path, 4)]
    template = Template(model, target=target)
    for table, wanted in zip(tables_for(path, 4), expected, strict=True):
        assert same(template.insert(table), wanted)
    assert template.made == 1


def test_a_table_that_scales_other_tensors_is_made_anew(tiny_model: Make) -> None:
    path = tiny_model()
    model = onnx_model.read(path)
    first, second = tables_for(path, 2)
    short = without(first, onnx_model.load(path).activations[2])
    expected = [qdq.insert(model, table, target="onnxruntime") for table in (first, short, second)]
    template = Template(model, target="onnxruntime")
    for table, wanted in zip((first, short, second), expected, strict=True):
        assert same(template.insert(table), wanted)
    assert template.made == 3


def test_scales_so_small_that_a_bias_leaves_int32_go_through_the_quantizer(tiny_model: Make) -> None:
    path = tiny_model()
    model = onnx.ModelProto()
    model.CopyFrom(onnx_model.read(path))
    for item in model.graph.initializer:
        if len(item.dims) == 1 and item.data_type == onnx.TensorProto.FLOAT:
            item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item) + np.float32(3e4), item.name))
    usual, _ = tables_for(path, 2)
    tiny = Table(usual.header, {name: bits - (20 << 23) for name, bits in usual.bits.items()})
    template = Template(model, target="onnxruntime")
    for table in (usual, tiny, usual):
        assert same(template.insert(table), qdq.insert(model, table, target="onnxruntime"))


def test_a_model_with_nothing_to_scale(tiny_model: Make) -> None:
    path = tiny_model()
    model = onnx_model.read(path)
    nothing = Table(tables_for(path, 1)[0].header, {})
    found = Template(model, target="onnxruntime").insert(nothing)
    assert (found.quantized, found.weighted) == (0, qdq.insert(model, nothing, target="onnxruntime").weighted)


@pytest.mark.slow
def test_the_sample_model(repository: Path) -> None:
    path = repository / "models/efficientnet_lite0.onnx"
    model = onnx_model.read(path)
    tables = tables_for(path, 2)
    expected = [qdq.insert(model, table, target="onnxruntime") for table in tables]
    template = Template(model, target="onnxruntime")
    for table, wanted in zip(tables, expected, strict=True):
        assert same(template.insert(table), wanted)
    assert template.made == 1

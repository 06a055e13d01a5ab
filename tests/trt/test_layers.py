"""Layers by precision from the inspector's JSON, old form and new."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edge.backends.trt import layers

OLD: list[dict[str, Any]] = [
    {"Name": "Reformatting CopyNode for Input Tensor 0 to /conv1", "LayerType": "Reformat", "ParameterType": "Reformat",
     "Inputs": [{"Name": "input", "Format/Datatype": "Row major linear FP32"}]},
    {"Name": "/conv1 + /relu", "LayerType": "CaskConvActPool", "ParameterType": "ConvActPool",
     "Inputs": [{"Name": "x", "Format/Datatype": "Row major Int8 format"}], "ConvWeights": {"Type": "Int8"}},
    {"Name": "/conv2", "LayerType": "CaskConvolution", "ParameterType": "Convolution",
     "Inputs": [{"Name": "x", "Format/Datatype": "Row major Int8 format"}], "Weights": {"Type": "Half", "Count": 9}},
    {"Name": "/fc/Gemm", "LayerType": "CaskGemmMatrixMultiply", "ParameterType": "MatrixMultiply",
     "Inputs": [{"Name": "x", "Format/Datatype": "Row major linear FP32"}]},
    {"Name": "reshape_after_/fc/Gemm", "LayerType": "NoOp", "Inputs": []},
]  # fmt: skip


def test_8_6_to_10() -> None:
    found = layers.count(json.dumps({"Layers": OLD, "Bindings": ["input", "logits"]}))
    assert found is not None
    assert (found.weighted, found.weighted_int8, found.weighted_fp16, found.opaque) == (3, 1, 1, 0)
    assert found.by_type == {"ConvActPool": 1, "Convolution": 1, "MatrixMultiply": 1, "NoOp": 1, "Reformat": 1}
    assert found.layers.int8_share == pytest.approx(1 / 3)


def test_11_says_format_and_data_type_apart() -> None:
    layer = {"Name": "c", "LayerType": "CaskConvolution", "ParameterType": "Convolution",
             "Inputs": [{"Name": "x", "Format": "kLINEAR", "DataType": "Int8"}]}  # fmt: skip
    found = layers.count(json.dumps({"Layers": [layer], "I/O Tensors": [{"Name": "x"}]}))
    assert found is not None
    assert (found.weighted, found.weighted_int8) == (1, 1)


def test_fused_by_the_second_compiler() -> None:
    layer = {"Name": "{ForeignNode[/conv1.../fc]}", "LayerType": "Myelin", "Inputs": []}
    found = layers.count(json.dumps({"Layers": [layer]}))
    assert found is not None
    assert (found.weighted, found.opaque) == (0, 1)


@pytest.mark.parametrize(
    "text",
    ["", "not JSON", "[]", '{"Layers": ["/conv1", "/conv2"]}', '{"Bindings": []}', '{"Layers": 3}'],
    ids=["empty", "text", "a list", "names only", "no layers", "a number"],
)
def test_what_cannot_be_counted(text: str) -> None:
    assert layers.count(text) is None


def test_strange_values_do_not_break_it() -> None:
    layer = {
        "Name": None,
        "LayerType": 7,
        "ParameterType": "Convolution",
        "Weights": "?",
        "Inputs": [None, {"Name": 3}],
    }
    found = layers.count(json.dumps({"Layers": [layer]}))
    assert found is not None
    assert (found.weighted, found.weighted_int8) == (1, 0)


def test_a_real_resnet50(repository: Path) -> None:
    path = repository.parent / "shared/reference/trt_artifacts/resnet50-int8.engine.graph.json"
    if not path.is_file():
        pytest.skip("the inspector's JSON of a real engine is not on this machine")
    found = layers.count(path.read_text())
    assert found is not None
    # 53 convolutions, one of them fused with its pooling, and the Gemm as a 1×1 convolution.
    assert (found.weighted, found.weighted_int8, found.opaque) == (54, 54, 0)

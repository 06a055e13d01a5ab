"""Layers by precision from the inspector's JSON, old form and new."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edge.backends.tensorrt import layer_report
from edge.model import inspection
from edge.model.inspection import Inspection, LayerTensor, Node, Port

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


def read(text: str, **options: Any) -> Inspection:
    found = layer_report.read(text, source="TensorRT", **options)
    assert found is not None
    return found


def test_8_6_to_10() -> None:
    found = read(json.dumps({"Layers": OLD, "Bindings": ["input", "logits"]}))
    counts = found.counts()
    assert (counts.weighted, counts.opaque, counts.reformats) == ({"fp16": 1, "fp32": 1, "int8": 1}, 0, 1)
    kinds = [layer.kind for layer in found.layers]
    assert kinds == ["Reformat", "ConvActPool", "Convolution", "MatrixMultiply", "NoOp"]
    assert [layer.role for layer in found.layers] == ["reformat", "weighted", "weighted", "weighted", "free"]
    assert found.layers[1].inputs == [LayerTensor(name="x", precision="int8", layout="Row major Int8 format")]
    assert found.layers[2].weights_bytes == counts.weights_bytes == 18
    # Nothing reads "logits" here; a binding that no layer makes is an input.
    assert [(port.name, port.mode, port.precision) for port in found.ports] == [
        ("input", "input", "fp32"), ("logits", "input", None),
    ]  # fmt: skip


def test_11_says_format_and_data_type_apart() -> None:
    layer = {"Name": "c", "LayerType": "CaskConvolution", "ParameterType": "Convolution",
             "Inputs": [{"Name": "x", "Format": "kLINEAR", "DataType": "Int8", "Dimensions": [-1, 3, 8, 8]}],
             "Outputs": [{"Name": "y", "Format": "kCHW32", "Datatype": "BFloat16"}]}  # fmt: skip
    ports = [
        {"Name": "x", "IOMode": "Input", "DataType": "Float", "Dimensions": [-1, 3, 8, 8], "ProfileInfo": []},
        {"Name": "y", "IOMode": "Output", "DataType": "Half"},
    ]
    found = read(json.dumps({"Layers": [layer], "I/O Tensors": ports}))
    assert found.counts().weighted == {"int8": 1}
    assert found.layers[0].inputs == [LayerTensor(name="x", precision="int8", layout="kLINEAR", shape=(-1, 3, 8, 8))]
    assert found.layers[0].outputs == [LayerTensor(name="y", precision="bf16", layout="kCHW32")]
    assert found.ports == [
        Port(name="x", mode="input", precision="fp32", shape=(-1, 3, 8, 8)),
        Port(name="y", mode="output", precision="fp16"),
    ]


def test_fused_by_the_second_compiler() -> None:
    layer = {
        "Name": "{ForeignNode[/conv1.../fc]}",
        "LayerType": "Myelin",
        "Inputs": [{"Name": "x", "Datatype": "Half"}],
    }
    found = read(json.dumps({"Layers": [layer]}))
    assert (found.counts().weighted, found.counts().opaque) == ({}, 1)
    assert found.layers[0].precision is None


def test_kernels_of_the_second_compiler_one_by_one() -> None:
    """10.x: what a kernel computes is in its metadata only, and one that moves data names the same nodes."""
    half = [{"Name": "x", "Format/Datatype": "Half"}]
    listed = [
        {"Name": "__myl_Move_myl0_0", "LayerType": "kgen", "Inputs": half, "Metadata": "[ONNX Layer: /conv]"},
        {"Name": "/conv_myl0_1", "LayerType": "gemm", "Inputs": half, "Metadata": "[ONNX Layer: /conv]"},
        {"Name": "__myl_ConvMul_myl0_2", "LayerType": "kgen", "Inputs": half,
         "Metadata": "[ONNX Layer: /dw [x]/Conv]\x1f[ONNX Layer: /Mul]"},
        {"Name": "__myl_Mul_myl0_3", "LayerType": "kgen",
         "Inputs": [{"Name": "y", "Format/Datatype": "N/A due to dynamic shapes"}],
         "Metadata": "[ONNX Layer: /Mul_1][ONNX Layer: /conv]"},
    ]  # fmt: skip
    nodes = [Node("/conv", "Conv", True), Node("/dw [x]/Conv", "Conv", True), Node("/Mul", "Mul", False)]
    found = read(json.dumps({"Layers": listed}), nodes=nodes)
    assert [layer.role for layer in found.layers] == ["reformat", "weighted", "weighted", "other"]
    assert found.counts().weighted == {"fp16": 2}
    assert found.layers[2].nodes == ["/dw [x]/Conv", "/Mul"]
    assert found.layers[3].nodes == ["/Mul_1", "/conv"]
    assert found.layers[3].precision is None


def test_without_metadata_the_nodes_stand_in_the_name() -> None:
    layer = {"Name": "/a/Conv + PWN(PWN(/b/Sigmoid), /b/Mul)", "LayerType": "CaskConvolution"}
    nodes = [Node("/a/Conv", "Conv", True), Node("/b/Sigmoid", "Sigmoid", False), Node("/b/Mul", "Mul", False)]
    assert read(json.dumps({"Layers": [layer]}), nodes=nodes).layers[0].nodes == ["/a/Conv", "/b/Sigmoid", "/b/Mul"]


def test_a_layer_that_fell_out_of_int8_names_the_tensor_without_a_scale() -> None:
    found = read(json.dumps({"Layers": OLD}), unscaled={"x"})
    assert [layer.why for layer in found.layers] == [None, None, "no scale for x", "no scale for x", None]


@pytest.mark.parametrize(
    ("said", "word"),
    [
        ("Row major linear FP32", "fp32"), ("Channel major FP16 format where channel % 8 == 0", "fp16"),
        ("Thirty-two wide channel vectorized row major Int8 format", "int8"), ("BFloat16", "bf16"), ("UInt8", "uint8"),
        ("FP8E4M3", "fp8"), ("Int64", "int64"), ("Bool", "bool"), ("N/A due to dynamic shapes", None), ("", None),
    ],
)  # fmt: skip
def test_data_types_in_one_word(said: str, word: str | None) -> None:
    layer = {"Name": "a", "LayerType": "kgen", "Inputs": [{"Name": "x", "Format/Datatype": said}]}
    assert read(json.dumps({"Layers": [layer]})).layers[0].inputs[0].precision == word


WORDS_8 = "Sixteen wide channel vectorized row major INT8 format"


@pytest.mark.parametrize(
    ("layers", "more", "form"),
    [
        # The fields and words of public examples: 8.2 (pytorch#66683), 8.6, 10.x (NVIDIA/TensorRT#4020), 11.
        ([{"Name": "p", "LayerType": "PointWiseV2", "ParameterType": "PointWise", "ParameterSubType": "PointWiseExpr",
           "NbInputArgs": 1, "InputArgs": ["arg0"], "Operations": ["const auto v = pwgen::iMax(arg0, literal0);"],
           "Inputs": [{"Name": "x", "Dimensions": [4, 6], "Format/Datatype": "Row major linear FP16 format"}]}],
         {"Bindings": ["x"]}, "the form of TensorRT 8"),
        ([{"Name": "c", "LayerType": "CaskConvolution", "ParameterType": "Convolution", "Kernel": [5, 5], "OutMaps": 7,
           "Inputs": [{"Name": "x", "Location": "Device", "Dimensions": [2, 8, 9, 9], "Format/Datatype": WORDS_8}],
           "Weights": {"Type": "Int8", "Count": 1400}, "StreamId": 0}], {}, "the form of TensorRT 8"),
        ([{"Name": "c", "LayerType": "CaskConvolution", "Weights": {"Type": "Int8", "Count": 40},
           "Inputs": [{"Name": "x", "Dimensions": [-1, 4, 6, 6], "Format/Datatype": "N/A due to dynamic shapes"}]}],
         {}, "the form of TensorRT 10"),
        ([{"Name": "m", "LayerType": "gemm", "Inputs": [{"Name": "x", "Format/Datatype": "Half"}]}], {},
         "the form of TensorRT 10"),
        ([{"Name": "m", "LayerType": "gemm", "Inputs": [{"Name": "x", "Format": "kLINEAR", "Datatype": "Half"}]}], {},
         "the form of TensorRT 11"),
        ([{"Name": "m", "LayerType": "gemm", "Inputs": []}], {"I/O Tensors": []}, "the form of TensorRT 11"),
        ([{"Name": "m", "LayerType": "Tile"}], {}, "a form that this edge does not know"),
    ],
    ids=["8.2", "8.6", "10 dynamic", "10", "11", "11 without tensors", "another"],
)  # fmt: skip
def test_the_form_is_named_and_its_fields_are_known(
    layers: list[dict[str, Any]], more: dict[str, Any], form: str
) -> None:
    found = read(json.dumps({"Layers": layers, **more}))
    assert found.source == f"TensorRT, in {form}"
    assert found.notes == []


def test_the_weights_decide_where_a_layer_has_a_precision_of_its_own() -> None:
    layer = {"Name": "c", "LayerType": "CaskConvolution", "Weights": {"Type": "Int8", "Count": 9}, "Precision": "FP16"}
    assert read(json.dumps({"Layers": [layer]})).layers[0].precision == "int8"
    assert read(json.dumps({"Layers": [{**layer, "Weights": {}}]})).layers[0].precision == "fp16"


@pytest.mark.parametrize(
    ("layer", "role"),
    [
        ({"LayerType": "DLA"}, "opaque"),
        ({"LayerType": "Copy", "Origin": "REFORMAT"}, "reformat"),
        ({"LayerType": "Copy", "Origin": "SLICE"}, "other"),
    ],
)
def test_what_a_layer_does_by_its_kind_or_origin(layer: dict[str, str], role: str) -> None:
    assert read(json.dumps({"Layers": [{"Name": "a", **layer}]})).layers[0].role == role


def test_unknown_fields_are_named_and_counted() -> None:
    layers = [
        {"Name": str(number), "LayerType": "Tile", "Tiling": number, f"New{number % 12}": 1} for number in range(24)
    ]
    (note,) = read(json.dumps({"Layers": layers})).notes
    assert "fields that this edge does not know: Tiling (24), New0 (2)" in note
    assert "and 5 more" in note


def test_a_convolution_of_the_second_compiler_without_its_nodes() -> None:
    """A file of trtexec has no graph beside it: only the kind says that a kernel is a convolution."""
    layer = {"Name": "/stem/Conv_myl0_4", "LayerType": "correlation", "Metadata": "[ONNX Layer: /stem/Conv]",
             "Inputs": [{"Name": "x", "Format/Datatype": "Int8"}]}  # fmt: skip
    names = {"Name": "Reformatting CopyNode for Input Tensor 0 to [CONVOLUTION]-[aten_ops.convolution.default]-[/f/0]",
             "LayerType": "Reformat", "ParameterType": "Reformat", "Origin": "REFORMAT"}  # fmt: skip
    found = read(json.dumps({"Layers": [layer, names, {"Name": "Q", "LayerType": "Reformat", "Origin": "QDQ"}]}))
    assert [item.role for item in found.layers] == ["weighted", "reformat", "reformat"]
    assert found.counts().weighted == {"int8": 1}


@pytest.mark.parametrize(
    "text",
    ["", "not JSON", "[]", '{"Layers": ["/conv1", "/conv2"]}', '{"Bindings": []}', '{"Layers": 3}', "[" * 100_000],
    ids=["empty", "text", "a list", "names only", "no layers", "a number", "too deep"],
)
def test_what_cannot_be_read(text: str) -> None:
    assert layer_report.read(text, source="TensorRT") is None


def test_strange_values_do_not_break_it() -> None:
    layer = {
        "Name": None,
        "LayerType": 7,
        "ParameterType": "Convolution",
        "Weights": "?",
        "Bias": {"Type": 3, "Count": "many"},
        "Inputs": [None, {"Name": 3, "Dimensions": "all"}],
        "Outputs": "none",
        "Metadata": 4,
        "TacticName": ["x"],
    }
    found = read(json.dumps({"Layers": [layer, {}], "Bindings": 3, "I/O Tensors": [4, {}]}))
    assert found.counts().weighted == {"?": 1}
    assert inspection.decode_inspection(inspection.encode_inspection(found), where=Path("x")) == found


def test_a_real_resnet50(repository: Path) -> None:
    path = repository.parent / "shared/reference/trt_artifacts/resnet50-int8.engine.graph.json"
    if not path.is_file():
        pytest.skip("the inspector's JSON of a real engine is not on this machine")
    found = read(path.read_text())
    # 53 convolutions, one of them fused with its pooling, and the Gemm as a 1×1 convolution.
    assert found.counts().weighted == {"int8": 54}
    assert (found.source, found.notes) == ("TensorRT, in the form of TensorRT 8", [])
    assert (found.counts().opaque, found.counts().reformats, found.counts().weights_bytes) == (0, 1, 25_613_152)
    first = found.layers[1]
    assert first.nodes == ["/backbone/conv1/Conv", "/backbone/relu/Relu", "/backbone/maxpool/MaxPool"]
    assert [(port.name, port.mode, port.shape) for port in found.ports] == [
        ("input0", "input", (1, 3, 224, 224)), ("output0", "output", (1, 1000)),
    ]  # fmt: skip

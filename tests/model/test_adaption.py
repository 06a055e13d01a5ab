"""Input and output forms of classifiers: each gives the confidences that onnxruntime gives on the model as it is."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge.config.profiles import OutputOptions
from edge.errors import ModelError
from edge.model.adaption import AdaptedModel, adapt

SIZE, CLASSES = 8, 5
_RANDOM = np.random.default_rng(7)
_CONV = _RANDOM.normal(0, 0.5, (4, 3, 3, 3))
_GEMM = _RANDOM.normal(0, 2.0, (CLASSES, 4))


def network(
    *,
    layout: str = "NCHW",
    dtype: str = "float32",
    batch: int | str = "N",
    softmax: str = "none",
    channels: int = 3,
    opset: int = 17,
    shape: list[Any] | None = None,
    output: list[Any] | None = None,
) -> onnx.ModelProto:
    """A small classifier; ``dtype`` is that of its input, and of its weights where it is float16."""
    inner = np.float16 if dtype == "float16" else np.float32
    weights = [
        numpy_helper.from_array(_CONV[:, :channels].astype(inner), "conv.weight"),
        numpy_helper.from_array(_GEMM.astype(inner), "gemm.weight"),
    ]
    nodes = []
    name = "input"
    if layout == "NHWC":
        nodes.append(helper.make_node("Transpose", [name], ["nchw"], perm=[0, 3, 1, 2]))
        name = "nchw"
    if dtype == "uint8":
        nodes.append(helper.make_node("Cast", [name], ["cast"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Div", ["cast", "scale"], ["scaled"]))
        weights.append(numpy_helper.from_array(np.float32(255), "scale"))
        name = "scaled"
    nodes += [
        helper.make_node("Conv", [name, "conv.weight"], ["conv"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("GlobalAveragePool", ["relu"], ["pool"]),
        helper.make_node("Flatten", ["pool"], ["flat"]),
        helper.make_node("Gemm", ["flat", "gemm.weight"], ["logits"], transB=1),
    ]
    last = "logits"
    if softmax == "node":
        nodes.append(helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1))
        last = "probabilities"
    elif softmax == "sigmoid":
        nodes.append(helper.make_node("Sigmoid", ["logits"], ["probabilities"]))
        last = "probabilities"
    elif softmax == "parts":
        weights.append(numpy_helper.from_array(np.asarray([1], np.int64), "axes"))
        nodes += [
            helper.make_node("ReduceMax", ["logits"], ["most"], axes=[1], keepdims=1),
            helper.make_node("Sub", ["logits", "most"], ["less"]),
            helper.make_node("Exp", ["less"], ["exp"]),
            helper.make_node("ReduceSum", ["exp", "axes"], ["sum"], keepdims=1),
            helper.make_node("Div", ["exp", "sum"], ["probabilities"]),
        ]
        last = "probabilities"
    types = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "uint8": TensorProto.UINT8}
    sizes = [channels, SIZE, SIZE] if layout == "NCHW" else [SIZE, SIZE, channels]
    out_type = TensorProto.FLOAT16 if dtype == "float16" else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("input", types[dtype], shape or [batch, *sizes])],
        [helper.make_tensor_value_info(last, out_type, output or [batch, CLASSES])],
        weights,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def run(model: onnx.ModelProto, batch: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: batch})[0]


def softmax(logits: np.ndarray) -> np.ndarray:
    exp = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exp / exp.sum(axis=1, keepdims=True)


def confidences(adapted: AdaptedModel, pixels: np.ndarray) -> np.ndarray:
    """As edge computes them: float32 N×3×H×W in, one Softmax where the output is logits."""
    onnx.checker.check_model(adapted.proto, full_check=True)
    answer = run(adapted.proto, pixels)
    assert answer.dtype == np.float32
    return softmax(answer) if adapted.kind == "logits" else answer


FORMS = list(itertools.product(("NCHW", "NHWC"), ("float32", "float16", "uint8"), (2, "N"), ("none", "node")))


@pytest.mark.parametrize(("layout", "dtype", "batch", "end"), FORMS, ids=["-".join(map(str, form)) for form in FORMS])
def test_confidences_are_those_of_the_model_as_it_is(layout: str, dtype: str, batch: int | str, end: str) -> None:
    model = network(layout=layout, dtype=dtype, batch=batch, softmax=end)
    before = model.SerializeToString()
    pixels = _RANDOM.integers(0, 256, (2, 3, SIZE, SIZE)).astype(np.float32)
    if dtype != "uint8":
        pixels = (pixels - 127) / 128
    given = pixels if layout == "NCHW" else np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
    by_hand = run(model, given.astype(dtype)).astype(np.float32)
    by_hand = by_hand if end == "node" else softmax(by_hand)
    adapted = adapt(model, where="net.onnx")
    assert adapted.raw_pixels == (dtype == "uint8")
    np.testing.assert_allclose(confidences(adapted, pixels), by_hand, atol=2e-3 if dtype == "float16" else 1e-6)
    assert model.SerializeToString() == before
    again = adapt(adapted.proto, where="net.onnx")
    assert again.changes == ()


def test_a_model_in_edges_form_stays_as_it_is() -> None:
    model = network()
    assert adapt(model, where="net.onnx").proto is model


def test_a_transpose_of_the_model_and_that_of_the_adaption_cancel() -> None:
    adapted = adapt(network(layout="NHWC", dtype="uint8"), where="net.onnx")
    assert [node.op_type for node in adapted.proto.graph.node][:2] == ["Div", "Conv"]


@pytest.mark.parametrize("end", ["node", "parts"])
def test_a_softmax_is_removed_and_its_logits_are_the_output(end: str) -> None:
    model = network(softmax=end)
    pixels = _RANDOM.normal(size=(2, 3, SIZE, SIZE)).astype(np.float32)
    adapted = adapt(model, where="net.onnx")
    assert adapted.kind == "logits"
    np.testing.assert_allclose(confidences(adapted, pixels), run(model, pixels), atol=1e-6)
    assert {"Exp", "Softmax"}.isdisjoint(node.op_type for node in adapted.proto.graph.node)


def test_a_sigmoid_stays_and_its_output_is_probabilities() -> None:
    adapted = adapt(network(softmax="sigmoid"), where="net.onnx")
    assert adapted.kind == "probabilities"
    assert adapted.changes == ()


def test_the_profile_may_say_what_the_output_is() -> None:
    model = network(softmax="node")
    kept = adapt(model, OutputOptions(kind="logits"), where="net.onnx")
    assert kept.kind == "logits"
    assert kept.proto is model
    assert adapt(network(), OutputOptions(kind="probabilities"), where="net.onnx").kind == "probabilities"


def test_one_channel_is_the_luma_of_the_picture() -> None:
    model = network(channels=1)
    pixels = _RANDOM.normal(size=(2, 3, SIZE, SIZE)).astype(np.float32)
    grey = np.tensordot(pixels, np.asarray([0.299, 0.587, 0.114], np.float32), axes=(1, 0))[:, None]
    adapted = adapt(model, where="net.onnx")
    assert adapted.grey
    np.testing.assert_allclose(run(adapted.proto, pixels), run(model, grey), atol=1e-4)
    assert len(adapted.proto.graph.node) == len(model.graph.node)


def test_one_channel_where_no_convolution_takes_the_input() -> None:
    model = network(channels=1, dtype="uint8")
    pixels = _RANDOM.integers(0, 256, (2, 1, SIZE, SIZE)).astype(np.uint8)
    adapted = adapt(model, where="net.onnx")
    np.testing.assert_allclose(
        run(adapted.proto, np.repeat(pixels, 3, axis=1).astype(np.float32)), run(model, pixels), atol=1e-4
    )


def test_two_outputs_need_a_name() -> None:
    model = network()
    model.graph.output.append(helper.make_tensor_value_info("flat", TensorProto.FLOAT, ["N", 4]))
    with pytest.raises(ModelError, match="2 outputs: logits, flat") as caught:
        adapt(model, where="net.onnx")
    assert "output_name: logits" in str(caught.value.hint)
    adapted = adapt(model, OutputOptions(name="flat"), where="net.onnx")
    assert [value.name for value in adapted.proto.graph.output] == ["flat"]
    assert "Gemm" not in {node.op_type for node in adapted.proto.graph.node}
    with pytest.raises(ModelError, match="no output 'logit'"):
        adapt(model, OutputOptions(name="logit"), where="net.onnx")


def test_logits_and_their_softmax_as_two_outputs_need_none() -> None:
    model = network(softmax="node")
    model.graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES]))
    assert [value.name for value in adapt(model, where="net.onnx").proto.graph.output] == ["logits"]


@pytest.mark.parametrize("output", [["N", "classes"], [None, None], [-1, -1]], ids=["symbol", "open", "minus-one"])
def test_an_open_number_of_classes_is_found(output: list[Any]) -> None:
    model = network(output=["N", "classes"])
    dims = model.graph.output[0].type.tensor_type.shape.dim
    for dim, size in zip(dims, output, strict=True):
        dim.Clear()
        if isinstance(size, int):
            dim.dim_value = size
        elif size is not None:
            dim.dim_param = size
    adapted = adapt(model, where="net.onnx")
    assert adapted.proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value == CLASSES


def test_local_functions_become_their_nodes() -> None:
    model = network(batch="N", opset=18)
    body = [helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]), helper.make_node("Relu", ["c"], ["y"])]
    model.functions.append(
        helper.make_function("mine", "ConvRelu", ["x", "w"], ["y"], body, [helper.make_opsetid("", 18)])
    )
    model.opset_import.append(helper.make_opsetid("mine", 1))
    before = run(model, pixels := _RANDOM.normal(size=(2, 3, SIZE, SIZE)).astype(np.float32))
    nodes = [helper.make_node("ConvRelu", ["input", "conv.weight"], ["relu"], domain="mine"), *model.graph.node[2:]]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model)
    adapted = adapt(model, where="m.onnx")
    assert [node.op_type for node in adapted.proto.graph.node][:2] == ["Conv", "Relu"]
    assert not adapted.proto.functions
    assert adapted.changes == ("local functions are replaced by their nodes",)
    np.testing.assert_allclose(run(adapted.proto, pixels), before, atol=1e-5)


def test_a_batch_of_minus_one_is_dynamic() -> None:
    adapted = adapt(network(batch=-1), where="net.onnx")
    assert adapted.proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"


def test_n_c_1_1_is_flattened() -> None:
    model = network()
    del model.graph.node[-2:]
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("pool", TensorProto.FLOAT, ["N", 4, 1, 1]))
    pixels = _RANDOM.normal(size=(2, 3, SIZE, SIZE)).astype(np.float32)
    adapted = adapt(model, where="net.onnx")
    np.testing.assert_array_equal(run(adapted.proto, pixels), run(model, pixels).reshape(2, 4))


def _with_type(kind: int) -> onnx.ModelProto:
    model = network()
    model.graph.input[0].type.tensor_type.elem_type = kind
    return model


def _with_second_input() -> onnx.ModelProto:
    model = network()
    model.graph.input.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, ["N", 3]))
    return model


BAD = {
    "no-batch": (lambda: network(shape=[3, SIZE, SIZE]), "no batch axis"),
    "five-channels": (lambda: network(shape=["N", 5, SIZE, SIZE]), "3 channels or 1"),
    "int32": (lambda: _with_type(TensorProto.INT32), "is int32"),
    "two-inputs": (_with_second_input, r"has 2 \(input, other\)"),
}


@pytest.mark.parametrize(("make", "words"), BAD.values(), ids=BAD.keys())
def test_what_cannot_be_adapted(make: Any, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        adapt(make(), where="net.onnx")

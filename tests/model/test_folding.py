"""Every model in: what exporters make of weights, and that folding keeps names and function."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge.backends.onnxruntime import OrtSession
from edge.errors import ModelError
from edge.model.folding import fold, has_qdq
from edge.model.graph import weighted_layers
from tests.support.networks import Builder

RNG = np.random.default_rng(11)
PICTURES = RNG.normal(size=(3, 3, 16, 16)).astype(np.float32)


def logits(model: Any) -> np.ndarray:
    session = OrtSession(model.SerializeToString(), precision="any", threads=1, optimize=False)
    return np.asarray(session.outputs(PICTURES)[0])


def wrapped(how: str) -> Any:
    """One convolution whose weights hide behind something, and a classifier."""
    b = Builder(1)
    w = (b.rng.normal(size=(8, 3, 3, 3)) / 5).astype(np.float32)
    if how == "identity":
        name = b.node("Identity", b.node("Identity", b.constant(w)))
    elif how == "constant":
        name = b.node("Constant", value=numpy_helper.from_array(w))
    elif how == "fp16":
        name = b.node("Cast", b.constant(w.astype(np.float16)), to=TensorProto.FLOAT)
    elif how == "transpose":
        name = b.node("Transpose", b.constant(w.transpose(1, 2, 3, 0)), perm=[3, 0, 1, 2])
    elif how == "dequantize":
        levels = np.clip(np.rint(w * 100), -128, 127).astype(np.int8)
        scale, zero = b.constant(np.full(8, 0.01, np.float32)), b.constant(np.zeros(8, np.int8))
        name = b.node("DequantizeLinear", b.constant(levels), scale, zero, axis=0)
    elif how == "reshape":
        name = b.reshape(b.constant(w.reshape(8, -1)), (8, 3, 3, 3))
    else:
        name = b.node("Mul", b.constant(w), b.constant(np.full((8, 1, 1, 1), 2.0, np.float32)))
    return b.model(b.node("Relu", b.node("Conv", "input", name, name="features/conv0")), 8)


@pytest.mark.parametrize("how", ["identity", "constant", "fp16", "transpose", "dequantize", "reshape", "product"])
def test_weights_behind_something_are_weights(how: str) -> None:
    model = wrapped(how)
    folded = fold(model)
    onnx.checker.check_model(folded, full_check=True)
    assert next(layer.name for layer in weighted_layers(folded)) == "features/conv0"
    assert len(weighted_layers(folded)) == 2
    np.testing.assert_allclose(logits(folded), logits(model), atol=1e-5)


@pytest.mark.parametrize("kind", ["Conv", "grouped", "ConvTranspose", "Gemm"])
@pytest.mark.parametrize("bias", [True, False])
def test_batch_normalization_goes_into_the_layer_in_front(kind: str, bias: bool) -> None:
    b = Builder(2)
    x = b.conv("input", 3, 8, 1)
    if kind in {"Conv", "grouped"}:
        x = b.conv(x, 8, 8, 3, bias=bias, group=4 if kind == "grouped" else 1)
    elif kind == "ConvTranspose":
        x = b.node("ConvTranspose", x, b.weights(8, 8, 2, 2), *([b.weights(8)] if bias else []), strides=[2, 2])
    else:
        x = b.node(
            "Gemm",
            b.node("Flatten", b.node("GlobalAveragePool", x)),
            b.weights(8, 8),
            *([b.weights(8)] if bias else []),
        )
    gamma, beta, mean = (b.constant(b.rng.normal(size=8).astype(np.float32)) for _ in range(3))
    variance = b.constant(b.rng.uniform(0.1, 2, size=8).astype(np.float32))
    x = b.node("BatchNormalization", x, gamma, beta, mean, variance)
    if kind == "Gemm":
        x = b.reshape(x, (-1, 8, 1, 1))
    model = b.model(x, 8)
    folded = fold(model)
    assert "BatchNormalization" not in {node.op_type for node in folded.graph.node}
    np.testing.assert_allclose(logits(folded), logits(model), atol=2e-5)


def test_a_norm_that_somebody_else_reads_stays() -> None:
    b = Builder(3)
    x = b.conv("input", 3, 8, 1)
    ones = [b.constant(np.ones(8, np.float32)) for _ in range(4)]
    y = b.node("BatchNormalization", x, *ones)
    model = b.model(b.node("Add", x, y), 8)
    assert "BatchNormalization" in {node.op_type for node in fold(model).graph.node}


def branch(kind: str, read: str, bias: np.ndarray) -> Any:
    """A branch of an If; both have the same names inside."""
    bias_item = numpy_helper.from_array(bias.reshape(1, -1, 1, 1), "inner_bias")
    nodes = [helper.make_node(kind, [read], ["inner"]), helper.make_node("Add", ["inner", "inner_bias"], ["sum"])]
    return helper.make_graph(
        nodes, kind, [], [helper.make_tensor_value_info("sum", TensorProto.FLOAT, None)], [bias_item]
    )


@pytest.mark.parametrize(("condition", "kind"), [(True, "Sigmoid"), (False, "Tanh")])
def test_an_if_with_a_constant_condition_is_replaced_by_its_branch(condition: bool, kind: str) -> None:
    b = Builder(4)
    x = b.conv("input", 3, 8, 1)
    for _ in range(2):
        branches = {
            name: branch(kind, x, b.rng.normal(size=8).astype(np.float32))
            for name, kind in (("then_branch", "Sigmoid"), ("else_branch", "Tanh"))
        }
        x = b.conv(b.node("If", b.constant(np.array(condition)), **branches), 8, 8, 1)
    model = b.model(x, 8)
    folded = fold(model)
    onnx.checker.check_model(folded, full_check=True)
    kinds = [node.op_type for node in folded.graph.node]
    assert ("If" not in kinds, kinds.count(kind), len(weighted_layers(folded))) == (True, 2, 4)
    np.testing.assert_allclose(logits(folded), logits(model), atol=1e-5)


def test_a_tensor_that_a_branch_reads_keeps_its_values() -> None:
    b = Builder(5)
    x = b.conv("input", 3, 8, 1)
    # Its norm has another mean, so folding it into the convolution would change what the branch reads.
    y = b.node("BatchNormalization", x, *(b.constant(np.full(8, value, np.float32)) for value in (2, 1, 3, 0.5)))
    largest = b.node("ReduceMax", y, keepdims=0)
    bias = np.zeros(8, np.float32)
    branches = {"then_branch": branch("Sigmoid", x, bias), "else_branch": branch("Tanh", x, bias)}
    z = b.node("If", b.node("Greater", largest, b.constant(np.float32(0))), **branches)
    model = b.model(b.node("Add", y, z), 8)
    np.testing.assert_allclose(logits(fold(model)), logits(model), atol=1e-5)


def test_the_oldest_file_format_lists_constants_as_inputs_and_the_folded_model_does_not() -> None:
    b = Builder(6, opset=9)
    model = b.model(b.conv("input", 3, 8, 1), 8)
    listed = [helper.make_tensor_value_info(item.name, item.data_type, list(item.dims)) for item in b.constants]
    model.graph.input.extend(listed)
    model.ir_version = 3
    onnx.checker.check_model(model)
    folded = fold(model)
    onnx.checker.check_model(folded, full_check=True)
    assert [value.name for value in folded.graph.input] == ["input"]


@pytest.mark.parametrize("opset", [7, 8, 9, 10, 11, 12])
def test_old_opsets_are_converted(opset: int) -> None:
    w, fc = RNG.normal(size=(8, 3, 3, 3)).astype(np.float32), RNG.normal(size=(8, 5)).astype(np.float32)
    clip = {"min": 0.0, "max": 6.0} if opset < 11 else {}
    nodes = [
        helper.make_node("Conv", ["input", "w"], ["c"], name="conv"),
        helper.make_node("Clip", ["c"] if clip else ["c", "lo", "hi"], ["r"], name="clip", **clip),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "fc", "b"], ["logits"], name="fc"),
    ]
    constants = [numpy_helper.from_array(v, n) for v, n in ((w, "w"), (fc, "fc"), (np.zeros(5, np.float32), "b"))]
    if not clip:
        constants += [numpy_helper.from_array(np.float32(v), n) for v, n in ((0, "lo"), (6, "hi"))]
    graph = helper.make_graph(
        nodes, "old", [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 16, 16])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 5])], constants,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    folded = fold(model)
    assert [layer.name for layer in weighted_layers(folded)] == ["conv", "fc"]
    np.testing.assert_allclose(logits(folded), logits(model), atol=1e-5)


def test_an_opset_that_cannot_be_converted_is_refused_with_its_cure() -> None:
    b = Builder(1)
    model = b.model(b.conv("input", 3, 8, 1), 8)
    model.opset_import[0].version = 2
    with pytest.raises(ModelError, match="opset 2"):
        fold(model)


def test_left_operands_and_shared_weights_count() -> None:
    b = Builder(4)
    x = b.node("Relu", b.conv("input", 3, 8, 1))
    w = b.weights(8, 8, 1, 1)
    x = b.node("Relu", b.node("Conv", b.node("Relu", b.node("Conv", x, w)), w))
    x = b.reshape(x, (-1, 8, 256))
    x = b.reshape(b.node("MatMul", b.weights(8, 8), x), (-1, 8, 16, 16))
    layers = weighted_layers(fold(b.model(x, 8)))
    assert [layer.op_type for layer in layers] == ["Conv", "Conv", "Conv", "MatMul", "Gemm"]
    assert layers[3].is_left
    assert layers[1].weight == layers[2].weight


def test_a_product_of_two_activations_is_no_weighted_layer() -> None:
    b = Builder(5)
    x = b.reshape(b.conv("input", 3, 8, 1), (-1, 8, 256))
    y = b.node("MatMul", x, b.node("Transpose", x, perm=[0, 2, 1]))
    model = b.model(b.reshape(y, (-1, 8, 8, 1)), 8)
    assert [layer.op_type for layer in weighted_layers(fold(model))] == ["Conv", "Gemm"]


def test_a_quantized_model_keeps_its_nodes() -> None:
    b = Builder(6)
    scale, zero = b.constant(np.float32(0.02)), b.constant(np.int8(0))
    x = b.node("DequantizeLinear", b.node("QuantizeLinear", "input", scale, zero), scale, zero)
    w = b.node("DequantizeLinear", b.constant(np.ones((8, 3, 1, 1), np.int8)), scale, zero)
    model = b.model(b.node("Conv", x, w), 8)
    assert has_qdq(model)
    kinds = [node.op_type for node in fold(model).graph.node]
    assert kinds.count("DequantizeLinear") == 2
    assert [layer.op_type for layer in weighted_layers(fold(model))] == ["Conv", "Gemm"]
    assert not has_qdq(wrapped("dequantize"))

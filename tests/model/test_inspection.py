from __future__ import annotations

from pathlib import Path

import msgspec
import onnx
import pytest
from onnx import TensorProto, helper

from edge.errors import ArtifactError
from edge.model import inspection
from edge.model.inspection import Inspection, Layer, LayerTensor, Node, Port

WHERE = Path("engines/tiny/model-int8.layers.json")


def made(*layers: Layer, nodes: tuple[Node, ...] = ()) -> Inspection:
    port = Port(name="input", mode="input", precision="fp32", shape=("N", 3, 32, 32))
    return Inspection(format=inspection.FORMAT, source="a test", nodes=list(nodes), layers=list(layers), ports=[port])


def test_what_is_written_is_read_again() -> None:
    layer = Layer(
        name="c", kind="Conv", role="weighted", precision="int8", nodes=["c", "r"], weights_bytes=7, tactic="t",
        inputs=[LayerTensor(name="x", precision="uint8", layout="NHWC", shape=("N", 3, 4, 4))],
        outputs=[LayerTensor(name="y")], why="no scale for x",
    )  # fmt: skip
    found = made(layer, nodes=(Node("c", "Conv", True), Node("r", "Relu", False)))
    assert inspection.decode_inspection(inspection.encode_inspection(found), where=WHERE) == found


def test_counts() -> None:
    layers = [
        Layer(name="a", kind="Conv", role="weighted", precision="int8", nodes=["a", "b"], weights_bytes=10),
        Layer(name="b", kind="Conv", role="weighted", precision="fp16", weights_bytes=20),
        Layer(name="c", kind="Conv", role="weighted"),
        Layer(name="d", kind="Reformat", role="reformat"),
        Layer(name="e", kind="Myelin", role="opaque"),
        Layer(name="f", kind="Relu", role="other", precision="fp32"),
    ]
    counts = made(*layers).counts()
    assert counts.weighted == {"?": 1, "fp16": 1, "int8": 1}
    assert (counts.layers, counts.reformats, counts.opaque, counts.fused, counts.weights_bytes) == (6, 1, 1, 1, 30)
    assert made().counts().weights_bytes is None


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a list of an engine's layers"),
        (b"\xff\xfe", "not a list of an engine's layers"),
        (b"[]", "not a list of an engine's layers"),
        (b'{"format": 2, "later": true}', "format 2; this edge reads format 1"),
        (b'{"format": "1"}', "not a list of an engine's layers"),
        (b'{"format": 1, "source": "x"}', "missing required field"),
        (b'{"Layers": []}', "not a list of an engine's layers"),
        (b"[" * 100_000, "not a list of an engine's layers"),
    ],
    ids=["empty", "not text", "a list", "a later format", "format as text", "half of it", "another file", "too deep"],
)
def test_what_is_not_an_inspection(data: bytes, words: str) -> None:
    with pytest.raises(ArtifactError, match=words) as caught:
        inspection.decode_inspection(data, where=WHERE)
    assert caught.value.where == str(WHERE)


def test_an_unknown_role_is_refused() -> None:
    content = msgspec.to_builtins(made(Layer(name="a", kind="Conv", role="other")))
    content["layers"][0]["role"] = "decoration"
    with pytest.raises(ArtifactError, match="decoration"):
        inspection.decode_inspection(msgspec.json.encode(content), where=WHERE)


def test_nodes_that_only_prepare_constants_are_left_out() -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["wq", "s"], ["w"], name="weights"),
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("MatMul", ["c", "c"], ["m"], name="attention"),
        helper.make_node("Relu", ["m"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [helper.make_tensor("wq", TensorProto.INT8, [3, 3, 1, 1], [1] * 9), helper.make_tensor("s", 1, [], [0.5])],
    )  # fmt: skip
    found = inspection.nodes(onnx.helper.make_model(graph))
    # Two activations multiplied are no layer with weights; a node without a name has its output's.
    assert found == [Node("conv", "Conv", True), Node("attention", "MatMul", False), Node("y", "Relu", False)]

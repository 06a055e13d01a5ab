"""Which tensors are watched, which follow from others, and whether what follows is what counting would have given."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge.backends.onnxruntime import OrtSession
from edge.calibration.collection import SAME_VALUES, SHARED_RANGE, Derived, plan, shared_ranges, with_outputs
from edge.calibration.histograms import Counter
from edge.model import onnx_model
from edge.quantization.statistics import Statistics

Make = Callable[..., Path]
INF = math.inf


def graph(*nodes: Any, opset: int = 17, **constants: Any) -> Any:
    """A graph from x (N×3×4×4) whose constants are initializers."""
    return helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 4, 4])],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )


def clip(*inputs: str, output: str = "y", **attributes: float) -> Any:
    return helper.make_node("Clip", list(inputs), [output], **attributes)


def f32(*values: float) -> np.ndarray:
    return np.array(values[0] if len(values) == 1 else values, np.float32)


# the plan


def test_the_plan_of_a_classifier(tiny_model: Make) -> None:
    path = tiny_model(concat=True)
    loaded = onnx_model.load(path)
    found = plan(onnx_model.read(path).graph, loaded.activations)
    assert found.watched == ["input", "c1", "c2", "c3", "sum", "cat", "pool", "gap", "logits"]
    assert found.derived == [
        Derived("r1", "c1", 0.0, 6.0), Derived("r2", "c2", 0.0, INF), Derived("flat", "gap"),
    ]  # fmt: skip
    assert found.order == loaded.activations


@pytest.mark.parametrize(
    "variant", [{}, {"opset": 11}, {"named": False}, {"downsample": True}, {"concat": True}], ids=str
)
def test_every_tensor_is_either_watched_or_derived_from_an_earlier_one(tiny_model: Make, variant: Any) -> None:
    path = tiny_model(**variant)
    loaded = onnx_model.load(path)
    found = plan(onnx_model.read(path).graph, loaded.activations)
    known = set(found.watched)
    for rule in found.derived:
        assert rule.source in known
        assert rule.name not in known
        known.add(rule.name)
    assert known == set(loaded.activations)


@pytest.mark.parametrize(
    ("node", "constants", "rule"),
    [
        (helper.make_node("Relu", ["x"], ["y"]), {}, Derived("y", "x", 0.0, INF)),
        (clip("x", "a", "b"), {"a": f32(-1), "b": f32(2.5)}, Derived("y", "x", -1.0, 2.5)),
        (clip("x", "a", "b"), {"a": f32(0), "b": np.array([6], np.float32)}, Derived("y", "x", 0.0, 6.0)),
        (clip("x", "a"), {"a": f32(0)}, Derived("y", "x", 0.0, INF)),
        (clip("x", "a", ""), {"a": f32(0)}, Derived("y", "x", 0.0, INF)),
        (clip("x", "", "b"), {"b": f32(6)}, Derived("y", "x", -INF, 6.0)),
        (clip("x"), {}, Derived("y", "x")),
        (clip("x", min=0.0, max=6.0), {}, Derived("y", "x", 0.0, 6.0)),
        (clip("x", max=6.0), {}, Derived("y", "x", -INF, 6.0)),
        (clip("x", "a", "b"), {"a": np.float16(0), "b": np.float16(6)}, Derived("y", "x", 0.0, 6.0)),
        *(
            (helper.make_node(kind, ["x"], ["y"]), {}, Derived("y", "x"))
            for kind in ("Identity", "Flatten", "Transpose", "Squeeze", "Dropout")
        ),
        (helper.make_node("Reshape", ["x", "s"], ["y"]), {"s": np.array([0, -1])}, Derived("y", "x")),
        (helper.make_node("Unsqueeze", ["x", "s"], ["y"]), {"s": np.array([0])}, Derived("y", "x")),
        (helper.make_node("Dropout", ["x"], ["y", "mask"]), {}, Derived("y", "x")),
    ],
    ids=["relu", "clip", "clip-1-element", "clip-min", "clip-empty-max", "clip-empty-min", "clip-open", "clip-6",
         "clip-6-max", "clip-float16", "identity", "flatten", "transpose", "squeeze", "dropout", "reshape", "unsqueeze",
         "dropout-mask"],
)  # fmt: skip
def test_what_follows(node: Any, constants: dict[str, Any], rule: Derived) -> None:
    found = plan(graph(node, **constants), ["x", "y"])
    assert (found.watched, found.derived) == (["x"], [rule])


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        ([helper.make_node("Sigmoid", ["x"], ["y"])], {}),
        ([helper.make_node("LeakyRelu", ["x"], ["y"])], {}),
        ([helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2])], {}),
        ([helper.make_node("Add", ["x", "a"], ["y"])], {"a": f32(1)}),
        # Bounds that are computed, or not one number.
        ([helper.make_node("Add", ["a", "b"], ["c"]), clip("x", "c", "b")], {"a": f32(1), "b": f32(6)}),
        ([helper.make_node("ReduceMax", ["x"], ["c"], keepdims=0), clip("x", "", "c")], {}),
        ([clip("x", "a")], {"a": f32(0, 1)}),
        # The values come from a constant: nothing follows from an activation.
        ([helper.make_node("Relu", ["a"], ["y"])], {"a": f32(1)}),
        ([helper.make_node("Reshape", ["a", "x"], ["y"])], {"a": f32(1)}),
    ],
    ids=["sigmoid", "leaky", "pool", "add", "sum-bound", "dynamic-bound", "vector-bound", "constant", "constant-shape"],
)
def test_what_does_not_follow(nodes: list[Any], constants: dict[str, Any]) -> None:
    found = plan(graph(*nodes, **constants), ["x", "y"])
    assert (found.watched, found.derived) == (["x", "y"], [])


def test_bounds_may_come_from_constant_nodes() -> None:
    low = helper.make_node("Constant", [], ["a"], value=numpy_helper.from_array(f32(0.5)))
    assert plan(graph(low, clip("x", "a")), ["x", "y"]).derived == [Derived("y", "x", 0.5, INF)]


def test_a_constant_node_of_another_form_is_no_bound() -> None:
    """``value_float`` is rare; the tensor is then counted, which is always right."""
    low = helper.make_node("Constant", [], ["a"], value_float=0.5)
    assert plan(graph(low, clip("x", "a")), ["x", "y"]).watched == ["x", "y"]


@pytest.mark.parametrize(
    "tensor",
    [
        helper.make_tensor("t", TensorProto.STRING, [], [b"text"]),
        helper.make_tensor("t", TensorProto.STRING, [1], [b"text"]),
        helper.make_tensor("t", TensorProto.COMPLEX64, [], [1 + 2j]),
        helper.make_tensor("t", TensorProto.BOOL, [], [True]),
        helper.make_tensor("t", TensorProto.INT64, [1, 1], [3]),
    ],
    ids=["text", "texts", "complex", "bool", "int"],
)
def test_constants_of_any_type_may_stand_in_the_graph(tensor: Any) -> None:
    """Labels, for example."""
    g = graph(helper.make_node("Relu", ["x"], ["y"]))
    g.initializer.append(tensor)
    assert plan(g, ["x", "y"]).derived == [Derived("y", "x", 0.0, INF)]


def test_rules_follow_each_other_in_network_order() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Transpose", ["a"], ["b"]),
        clip("b", "", "six", output="c"),
        helper.make_node("Flatten", ["c"], ["y"]),
    ]
    found = plan(graph(*nodes, six=f32(6)), ["x", "a", "b", "c", "y"])
    assert found.watched == ["x"]
    assert [(rule.name, rule.source) for rule in found.derived] == [("a", "x"), ("b", "a"), ("c", "b"), ("y", "c")]


# completing


def counted(path: Path, names: list[str], batches: list[np.ndarray]) -> Statistics:
    """Statistics of ``names``, each of them counted."""
    session = OrtSession(with_outputs(onnx_model.read(path), names), precision="fp32", threads=1)
    counter = Counter(names, with_histogram=True)
    for batch in batches:
        outputs = list(session.outputs(batch))
        counter.add([*([batch] if "input" in names else []), *outputs], pictures=len(batch), what="")
    session.close()
    return counter.statistics


@pytest.mark.parametrize("variant", [{}, {"concat": True, "downsample": True}, {"seed": 5}, {"opset": 11}], ids=str)
def test_what_is_derived_is_what_counting_gives(tiny_model: Make, variant: Any) -> None:
    """All tensors counted, against the watched ones counted and the rest derived: the same histograms."""
    path = tiny_model(**variant)
    loaded = onnx_model.load(path)
    found = plan(onnx_model.read(path).graph, loaded.activations)
    batches = [np.random.default_rng(i).normal(size=(2, 3, 32, 32)).astype(np.float32) * (i + 1) for i in range(3)]
    complete = found.complete(counted(path, found.watched, batches))
    direct = counted(path, loaded.activations, batches)
    assert list(complete.tensors) == loaded.activations
    assert complete.pictures == direct.pictures == 6
    for name, tensor in direct.tensors.items():
        other = complete.tensors[name]
        assert (other.low, other.high, other.count) == (tensor.low, tensor.high, tensor.count), name
        tensor.grow(other.exponent)
        assert np.array_equal(other.histogram().counts, tensor.histogram().counts), name


def test_completing_leaves_the_watched_statistics_alone() -> None:
    g = graph(clip("x", "a", "b"), a=f32(0), b=f32(1))
    counter = Counter(["x"], with_histogram=True)
    counter.add([f32(-3, 0.5, 7)], pictures=1, what="")
    before = copy.deepcopy(counter.statistics)
    done = plan(g, ["x", "y"]).complete(counter.statistics)
    assert counter.statistics.to_bytes() == before.to_bytes()
    assert (done.tensors["y"].low, done.tensors["y"].high) == (0.0, 1.0)


def test_completing_ranges_alone() -> None:
    counter = Counter(["x"], with_histogram=False)
    counter.add([f32(-3, 0.5, 7)], pictures=1, what="")
    done = plan(graph(helper.make_node("Relu", ["x"], ["y"])), ["x", "y"]).complete(counter.statistics)
    assert (done.tensors["y"].low, done.tensors["y"].high, done.tensors["y"].counts) == (0.0, 7.0, None)


# the network with other outputs


def test_outputs_are_the_named_tensors_in_their_order(tiny_model: Make) -> None:
    path = tiny_model()
    proto = onnx_model.read(path)
    before = proto.SerializeToString()
    names = ["logits", "c1", "input", "flat"]
    data = with_outputs(proto, names)
    assert [value.name for value in onnx.load_from_string(data).graph.output] == ["logits", "c1", "flat"]
    session = OrtSession(data, precision="fp32", threads=1)
    shapes = [output.shape for output in session.outputs(np.zeros((2, 3, 32, 32), np.float32))]
    assert shapes == [(2, 10), (2, 8, 32, 32), (2, 8)]
    assert proto.SerializeToString() == before


def test_outputs_of_a_network_with_external_weights(tiny_model: Make) -> None:
    """Serialized weights must be inside: from memory, onnxruntime does not know where to look for the file."""
    one, two = tiny_model("a/one.onnx", external=True), tiny_model("b/two.onnx")
    batch = np.random.default_rng(0).normal(size=(1, 3, 32, 32)).astype(np.float32)
    found = [
        OrtSession(with_outputs(onnx_model.read(path), ["c3"]), precision="fp32", threads=1).outputs(batch)[0]
        for path in (one, two)
    ]
    assert np.array_equal(*found)


# ranges


def test_a_pool_gives_its_range_to_its_input() -> None:
    g = graph(helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2]))
    assert shared_ranges(g, {"x": 3.0, "y": 2.0}) == {"x": 2.0, "y": 2.0}


def test_a_concat_gives_its_range_to_all_inputs() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Concat", ["x", "a", "w"], ["y"], axis=1)]
    given = {"x": 1.0, "a": 2.0, "y": 5.0}
    assert shared_ranges(graph(*nodes, w=f32(1)), given) == {"x": 5.0, "a": 5.0, "y": 5.0}
    assert given == {"x": 1.0, "a": 2.0, "y": 5.0}


def test_ranges_travel_through_a_chain_from_its_end() -> None:
    nodes = [
        helper.make_node("MaxPool", ["x"], ["a"], kernel_shape=[2, 2]),
        helper.make_node("Transpose", ["a"], ["b"]),
        helper.make_node("Flatten", ["b"], ["c"]),
        helper.make_node("Identity", ["c"], ["y"]),
    ]
    found = shared_ranges(graph(*nodes), {"x": 9.0, "a": 8.0, "b": 7.0, "c": 6.0, "y": 5.0})
    assert set(found.values()) == {5.0}
    assert list(found) == ["x", "a", "b", "c", "y"]


def test_a_range_does_not_travel_through_anything_else() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("GlobalAveragePool", ["a"], ["b"]),
        helper.make_node("Reshape", ["b", "s"], ["y"]),
    ]
    found = shared_ranges(graph(*nodes, s=np.array([0, 3])), {"x": 9.0, "a": 8.0, "b": 7.0, "y": 6.0, "s": 1.0})
    assert found == {"x": 9.0, "a": 8.0, "b": 6.0, "y": 6.0, "s": 1.0}


def test_tensors_without_a_range_get_none() -> None:
    g = graph(helper.make_node("Concat", ["x", "w"], ["y"], axis=1), w=f32(1))
    assert shared_ranges(g, {"y": 2.0}) == {"y": 2.0}
    assert shared_ranges(g, {"x": 2.0}) == {"x": 2.0}


def test_every_op_that_keeps_values_shares_its_range() -> None:
    assert SAME_VALUES < SHARED_RANGE

"""The watch plan of a network: which tensors to watch, and which follow from others.

The histogram of a Relu or Clip output follows exactly from that of its input, and a Reshape or Flatten output has the
same values as its input. Watching only the rest halves the work for a typical classifier, and keeps ONNX Runtime's
fusions of convolution and activation out of the way.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import msgspec

from edge.errors import require
from edge.quantization import Statistics, TensorStatistics

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

# Outputs with exactly the values of the first input, in another shape or order.
SAME_VALUES = frozenset({"Identity", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Dropout"})
# Ops whose inputs and outputs must share one scale ("range propagated from output to inputs": NVIDIA's MLPerf
# calibration.md; DLA demands it for pooling and concatenation).
SHARED_RANGE = frozenset({"MaxPool", "Concat", *SAME_VALUES})


class Derived(msgspec.Struct, frozen=True):
    """``name`` is ``source`` clipped to [low, high]."""

    name: str
    source: str
    low: float = -math.inf
    high: float = math.inf


class WatchPlan(msgspec.Struct, frozen=True):
    """``watched`` tensors are counted; ``derived`` follow from them, in this order; ``order`` is network order."""

    watched: list[str]
    derived: list[Derived]
    order: list[str]

    def complete(self, statistics: Statistics) -> Statistics:
        """Statistics of every activation tensor, in network order, from those of the watched ones."""
        known: dict[str, TensorStatistics] = dict(statistics.tensors)
        for rule in self.derived:
            known[rule.name] = known[rule.source].clipped(rule.low, rule.high)
        return Statistics({name: known[name] for name in self.order}, statistics.pictures)


def plan(graph: GraphProto, activations: list[str]) -> WatchPlan:
    """Split ``activations`` (network order, the input first) into watched and derived tensors."""
    constants = _constants(graph)
    wanted = set(activations)
    rules: dict[str, Derived] = {}
    for node in graph.node:
        rule = _rule(node, constants)
        if rule is not None and rule.name in wanted and rule.source in wanted:
            rules[rule.name] = rule
    return WatchPlan(
        watched=[name for name in activations if name not in rules],
        derived=[rules[name] for name in activations if name in rules],
        order=activations,
    )


def shared_ranges(graph: GraphProto, ranges: dict[str, float]) -> dict[str, float]:
    """``ranges`` with one range for the inputs and outputs of each op that keeps values (last op first)."""
    result = dict(ranges)
    for node in reversed(graph.node):
        if node.op_type in SHARED_RANGE and node.output[0] in result:
            for name in node.input if node.op_type == "Concat" else node.input[:1]:
                if name in result:
                    result[name] = result[node.output[0]]
    return result


def with_outputs(model: ModelProto, names: list[str]) -> bytes:
    """The serialized model with exactly ``names`` as its outputs (inputs among them are left out)."""
    onnx = require("onnx")
    produced = {name for node in model.graph.node for name in node.output}
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    # By name alone: onnxruntime knows the types, and shape inference would copy all weights once more.
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name in produced)
    return bytes(copy.SerializeToString())


def _rule(node: NodeProto, constants: dict[str, float]) -> Derived | None:
    """The rule by which the node's output follows from its input, or None when it must be watched."""
    if node.op_type in SAME_VALUES:
        return Derived(node.output[0], node.input[0])
    if node.op_type == "Relu":
        return Derived(node.output[0], node.input[0], low=0.0)
    if node.op_type == "Clip":
        bounds = [*node.input[1:3], "", ""][:2]
        if any(name and name not in constants for name in bounds):
            return None
        attributes = {item.name: float(item.f) for item in node.attribute}
        low = constants[bounds[0]] if bounds[0] else attributes.get("min", -math.inf)
        high = constants[bounds[1]] if bounds[1] else attributes.get("max", math.inf)
        return Derived(node.output[0], node.input[0], low=low, high=high)
    return None


def _constants(graph: GraphProto) -> dict[str, float]:
    """Scalar floating-point constants by name, from initializers and Constant nodes."""
    onnx = require("onnx")
    kinds = onnx.TensorProto
    floats = {kinds.FLOAT, kinds.FLOAT16, kinds.BFLOAT16, kinds.DOUBLE}
    tensors: dict[str, Any] = {item.name: item for item in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            tensors.update((node.output[0], item.t) for item in node.attribute if item.name == "value")
    found = {}
    for name, tensor in tensors.items():
        if tensor.data_type in floats and math.prod(tensor.dims) == 1:
            found[name] = float(onnx.numpy_helper.to_array(tensor).reshape(()))
    return found

"""Lookups in an ONNX graph, and its layers with weights, which INT8 quantization is about."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from edge.errors import require

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray
    from onnx import ModelProto, NodeProto, TensorProto

# Operators with weights: INT8 quantization and the quality gates are about these.
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


class WeightedLayer(msgspec.Struct, frozen=True):
    """A convolution or matrix product with a constant operand.

    ``activation`` is its other operand and ``output`` what it computes (tensor names); ``axis`` counts the output
    channels of the weights, None where they are not one axis. ``channel_axis`` counts the input channels of the
    activation. ``is_left``: the weights are the first operand of a MatMul.
    """

    name: str
    op_type: str
    activation: str
    weight: str
    output: str
    axis: int | None
    channel_axis: int
    is_left: bool = False
    bias: str | None = None


class GraphIndex:
    """A model's graph with its constants, producers and consumers by tensor name. Later edits are not tracked."""

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        graph = model.graph
        self.constants: dict[str, TensorProto] = {item.name: item for item in graph.initializer}
        self.producer: dict[str, NodeProto] = {name: node for node in graph.node for name in node.output if name}
        self.consumers: dict[str, list[NodeProto]] = {}
        for node in graph.node:
            for name in dict.fromkeys(_read_by(node)):
                if name:
                    self.consumers.setdefault(name, []).append(node)
        self.outputs = {value.name for value in graph.output}
        self._names = {*self.constants, *self.producer, *(value.name for value in graph.input)}
        self._names |= {node.name for node in graph.node}

    def array(self, name: str) -> NDArray[Any]:
        """Return the values of a constant."""
        values: NDArray[Any] = require("onnx").numpy_helper.to_array(self.constants[name])
        return values

    def unique(self, wanted: str) -> str:
        """Return ``wanted``, with a numeric suffix if a tensor or node has that name already."""
        name, number = wanted, 1
        while name in self._names:
            number += 1
            name = f"{wanted}_{number}"
        self._names.add(name)
        return name

    def add_constant(self, wanted: str, values: NDArray[Any]) -> str:
        """Add an initializer and return its name."""
        name = self.unique(wanted)
        item = require("onnx").numpy_helper.from_array(np.asarray(values, order="C"), name)
        self.model.graph.initializer.append(item)
        self.constants[name] = self.model.graph.initializer[-1]
        return name

    def is_sole_consumer(self, node: NodeProto, name: str) -> bool:
        """Return True if only ``node`` reads the tensor ``name``."""
        return name not in self.outputs and self.consumers.get(name, []) == [node]


def attributes(node: NodeProto) -> dict[str, Any]:
    """Return the attributes of a node as Python values."""
    value = require("onnx").helper.get_attribute_value
    return {item.name: value(item) for item in node.attribute}


def weighted_layers(model: ModelProto) -> list[WeightedLayer]:
    """List the layers with constant weights in graph order; a product of two activations is not one.

    Weights must be initializers (see :func:`edge.quantization.folding.fold`), or come from a DequantizeLinear of one,
    as in a model that is quantized already.
    """
    constant = _weights(model)
    found = []
    for node in model.graph.node:
        layer = _layer(node, constant)
        if layer is not None:
            found.append(layer)
    return found


def _weights(model: ModelProto) -> dict[str, int]:
    """Return the rank of every possible weight tensor: initializers, and outputs of Q/DQ nodes and views of them."""
    constant = {item.name: len(item.dims) for item in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in {"QuantizeLinear", "DequantizeLinear", "Identity", "Cast", "Transpose"}:
            if all(not name or name in constant for name in node.input):
                constant[node.output[0]] = constant[node.input[0]]
        elif node.op_type == "Constant":
            constant.update((node.output[0], len(item.t.dims)) for item in node.attribute if item.name == "value")
    return constant


def _layer(node: NodeProto, constant: dict[str, int]) -> WeightedLayer | None:
    if node.op_type not in WEIGHTED or node.domain not in {"", "ai.onnx"} or len(node.input) < 2:
        return None
    left, right = node.input[0], node.input[1]
    if node.op_type == "MatMul" and left in constant and right not in constant and constant[left] >= 2:
        return WeightedLayer(node.name, node.op_type, right, left, node.output[0], constant[left] - 2, -2, is_left=True)
    if right not in constant or left in constant:
        return None
    given = attributes(node)
    rank = constant[right]
    axis: int | None = None
    channel = 1
    if node.op_type == "Conv":
        axis = 0
    elif node.op_type == "Gemm":
        axis = 0 if given.get("transB", 0) else 1
        channel = 0 if given.get("transA", 0) else 1
    elif node.op_type == "MatMul":
        axis, channel = (rank - 1 if rank >= 2 else None), -1
    elif given.get("group", 1) == 1:
        # ConvTranspose: its second axis counts the channels of one group.
        axis = 1
    bias = node.input[2] if len(node.input) > 2 and node.input[2] in constant else None
    return WeightedLayer(node.name, node.op_type, left, right, node.output[0], axis, channel, bias=bias)


def remove_unused(model: ModelProto) -> None:
    """Delete nodes and initializers that no output depends on."""
    graph = model.graph
    needed = {value.name for value in graph.output}
    kept: list[NodeProto] = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(_read_by(node))
            kept.append(node)
    if len(kept) < len(graph.node):
        kept.reverse()
        copies = [type(node).FromString(node.SerializeToString()) for node in kept]
        del graph.node[:]
        graph.node.extend(copies)
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name not in needed:
            del graph.initializer[index]


def rename_reads(node: NodeProto, names: Mapping[str, str]) -> None:
    """Rename the tensors that ``node`` and its subgraphs read: names of ``names`` to their values."""
    for index, name in enumerate(node.input):
        node.input[index] = names.get(name, name)
    for item in node.attribute:
        if not (item.HasField("g") or item.graphs):
            continue
        for inner in (item.g, *item.graphs):
            for part in inner.node:
                rename_reads(part, names)
            for value in inner.output:
                value.name = names.get(value.name, value.name)


def _read_by(node: NodeProto) -> Iterable[str]:
    """Yield the names that a node reads, including its subgraphs."""
    yield from node.input
    for item in node.attribute:
        if not (item.HasField("g") or item.graphs):
            continue
        for inner in (item.g, *item.graphs):
            for part in inner.node:
                yield from _read_by(part)
            yield from (value.name for value in inner.output)

"""Biases: what rounded weights do to the mean of a layer's output, and how it is taken off again.

Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (ICCV 2019), with the
mean of the input from calibration instead of from BatchNormalization.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edge.errors import require
from edge.model import GraphIndex, WeightedLayer, attributes

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import NodeProto


def node_of(graph: GraphIndex, layer: WeightedLayer) -> NodeProto:
    """The node of ``layer``."""
    return graph.producer[layer.output]


def response(layer: WeightedLayer, weights: NDArray[Any], inputs: NDArray[Any], groups: int) -> NDArray[np.float64]:
    """Output per channel of a layer without bias whose input channels hold the constants ``inputs``.

    Borders are left out: every tap of a convolution counts.

    Args:
        layer: the layer.
        weights: its weights, or their error.
        inputs: one number per input channel.
        groups: of a Conv or ConvTranspose.
    """
    weights = weights.astype(np.float64)
    inputs = np.asarray(inputs, np.float64).reshape(-1)
    result: NDArray[np.float64]
    if layer.op_type in {"MatMul", "Gemm"}:
        result = (weights if layer.axis == 0 else weights.T) @ inputs
        return result
    taps = weights.reshape(*weights.shape[:2], -1).sum(axis=2)
    per_group = taps.reshape(groups, taps.shape[0] // groups, taps.shape[1])
    equation = "gio,gi->go" if layer.op_type == "ConvTranspose" else "goi,gi->go"
    result = np.einsum(equation, per_group, inputs.reshape(groups, -1)).reshape(-1)
    return result


def groups_of(graph: GraphIndex, layer: WeightedLayer) -> int:
    """Groups of a convolution; 1 for other layers."""
    return int(attributes(node_of(graph, layer)).get("group", 1))


def bias_correction(
    graph: GraphIndex, layer: WeightedLayer, rounded: NDArray[np.float32], means: NDArray[np.float64]
) -> NDArray[np.float32] | None:
    """-(Wq - W)·E[x]: what must be added to the layer's bias. None where it has no per-channel bias.

    Args:
        graph: the network with unrounded weights.
        layer: the layer.
        rounded: its weights on their INT8 levels.
        means: mean of each input channel over the calibration pictures.
    """
    weights = graph.array(layer.weight)
    if layer.op_type in {"MatMul", "Gemm"} and weights.ndim != 2:
        return None
    given = attributes(node_of(graph, layer))
    error = (rounded.astype(np.float64) - weights) * float(given.get("alpha", 1.0) if layer.op_type == "Gemm" else 1.0)
    if layer.op_type == "ConvTranspose" and any(size > 1 for size in given.get("strides", [])):
        return None  # not every tap meets every output
    result: NDArray[np.float32] = -response(layer, error, means, groups_of(graph, layer)).astype(np.float32)
    return result


def add_to_output(graph: GraphIndex, layer: WeightedLayer, delta: NDArray[np.floating]) -> None:
    """Add one number per output channel to what ``layer`` computes: to its bias, or to the Add behind it.

    A layer without either gets a bias or, where it cannot have one (MatMul), an Add.
    """
    node = node_of(graph, layer)
    amount = np.asarray(delta, np.float64).reshape(-1)
    if layer.op_type != "MatMul":
        _add_to_bias(graph, node, amount)
        return
    # A left operand has its output channels in the second axis from the end.
    column = amount.reshape(-1, 1) if layer.is_left else amount
    following = graph.consumers.get(layer.output, [])
    if len(following) == 1 and following[0].op_type == "Add" and layer.output not in graph.outputs:
        add = following[0]
        index = 1 if add.input[0] == layer.output else 0
        if add.input[index] in graph.constants:
            values = graph.array(add.input[index])
            made = (values.astype(np.float64) + column).astype(np.float32)
            if made.shape == values.shape:
                add.input[index] = graph.add_constant(f"{add.input[index]}_corrected", made)
                return
    name = graph.unique(f"{layer.output}_uncorrected")
    constant = graph.add_constant(f"{layer.name}_bias", column.astype(np.float32))
    extra = require("onnx").helper.make_node(
        "Add", [name, constant], [layer.output], name=graph.unique(f"{layer.name}_add_bias")
    )
    node.output[0] = name
    insert_behind(graph, node, extra)


def _add_to_bias(graph: GraphIndex, node: NodeProto, amount: NDArray[np.float64]) -> None:
    has_bias = len(node.input) > 2 and bool(node.input[2])
    beta = float(attributes(node).get("beta", 1.0)) if node.op_type == "Gemm" else 1.0
    if has_bias and node.input[2] in graph.constants and beta:
        values = graph.array(node.input[2]).astype(np.float64)
        made = values + (amount / beta if values.ndim < 2 else amount.reshape(1, -1) / beta)
        node.input[2] = graph.add_constant(f"{node.input[2]}_corrected", made.astype(np.float32))
    elif not has_bias:
        if beta:
            amount = amount / beta
        name = graph.add_constant(f"{node.name}_bias", amount.astype(np.float32))
        if len(node.input) > 2:
            node.input[2] = name
        else:
            node.input.append(name)


def insert_behind(graph: GraphIndex, node: NodeProto, extra: NodeProto) -> None:
    """Put a node right behind another one, and note what it makes."""
    nodes = graph.model.graph.node
    index = next(i for i, item in enumerate(nodes) if item.name == node.name)
    nodes.insert(index + 1, extra)
    placed = nodes[index + 1]
    for name in placed.output:
        graph.producer[name] = placed
    for name in placed.input:
        graph.consumers.setdefault(name, []).append(placed)

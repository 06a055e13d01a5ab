"""Placement of Q/DQ nodes: which inputs of which nodes are quantized.

Weighted layers always; of a residual add the skip input, and only where the other one ends a convolution's path, which
is what TensorRT fuses (developer guide 8.4, section 7.4.4; Model Optimizer's get_fusible_backbone). The sums of a
transformer, whose branches end in a MatMul, stay in float: one scale for a residual stream costs it 5 dB and saves no
kernel. LayerNorm, Softmax, GELU and SiLU are never quantized inside.
"""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING, Literal

from edge.config import did_you_mean
from edge.errors import ProfileError
from edge.model import WEIGHTED, GraphIndex, weighted_layers

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from onnx import ModelProto, NodeProto

Residual = Literal["conv", "all", "none"]
Attention = Literal["float", "int8"]

# What TensorRT folds into a convolution in front of an add.
_IN_PATH = frozenset({"BatchNormalization", "Identity", "Cast"})
_BIAS = frozenset({"Add", "Mul"})


def residual_inputs(model: ModelProto, *, rule: Residual) -> list[tuple[NodeProto, int]]:
    """Inputs of adds that are quantized, as node and input number.

    ``rule`` conv: where a Conv or ConvTranspose path ends in the add. ``all``: in every add of two activations.
    Where both branches are convolutions (a downsampling block), the one computed first is quantized; the other stays
    float, so that TensorRT can fuse its convolution with the add.
    """
    if rule == "none":
        return []
    graph = GraphIndex(model)
    order = {name: index for index, node in enumerate(model.graph.node) for name in node.output}
    found = []
    for node in model.graph.node:
        if node.op_type != "Add" or any(name in graph.constants or name not in order for name in node.input):
            continue
        if rule == "conv":
            ends = [_ends_in_convolution(graph, node, name) for name in node.input]
        else:
            ends = [graph.producer[name].op_type in WEIGHTED for name in node.input]
        if rule == "conv" and not any(ends):
            continue
        if all(ends) or not any(ends):
            skip = min((0, 1), key=lambda index: order[node.input[index]])
        else:
            skip = ends.index(False)
        found.append((node, skip))
    return found


def _ends_in_convolution(graph: GraphIndex, reader: NodeProto, name: str) -> bool:
    """True if ``name``, read by ``reader``, is a convolution's output, at most with a constant added or multiplied."""
    while graph.is_sole_consumer(reader, name):
        node = graph.producer.get(name)
        if node is None:
            return False
        if node.op_type in {"Conv", "ConvTranspose"}:
            return True
        live = [item for item in node.input if item and item not in graph.constants]
        if len(live) != 1 or not (node.op_type in _IN_PATH or node.op_type in _BIAS):
            return False
        reader, name = node, live[0]
    return False


def attention_inputs(model: ModelProto) -> Iterator[tuple[NodeProto, int]]:
    """Both inputs of every MatMul of two activations."""
    graph = GraphIndex(model)
    for node in model.graph.node:
        if node.op_type == "MatMul" and all(_is_live(graph, name) for name in node.input):
            yield node, 0
            yield node, 1


def _is_live(graph: GraphIndex, name: str) -> bool:
    return name not in graph.constants


def float_only_tensors(model: ModelProto, float_layers: Collection[str]) -> set[str]:
    """Tensors that no quantized layer computes or reads, around the weighted layers that stay in float.

    TensorRT takes INT8 away from the producer and from the readers of a tensor without a scale. So only tensors between
    float layers may lose theirs: what a quantized layer computes or reads keeps it, also past Relu, Add and pools.

    Args:
        model: a folded or prepared network.
        float_layers: names of the weighted layers that are not quantized.
    """
    graph = GraphIndex(model)
    layers = {layer.output: layer for layer in weighted_layers(model)}
    if not any(layer.name in float_layers for layer in layers.values()):
        return set()
    quantized = {layer.output for layer in layers.values() if layer.name not in float_layers}
    # Forward: tensors that a quantized layer computes, up to the next layer with weights.
    kept = {value.name for value in model.graph.input}
    for node in model.graph.node:
        output = node.output[0]
        is_quantized = output in quantized
        if is_quantized or (output not in layers and kept.intersection(node.input) - set(graph.constants)):
            kept.update(node.output)
    # Backward: tensors that a quantized layer reads, down to the layer with weights in front.
    needed = {layers[output].activation for output in quantized}
    for node in reversed(model.graph.node):
        if needed.intersection(node.output) and node.output[0] not in layers:
            needed.update(name for name in node.input if name and name not in graph.constants)
    return set(graph.producer) - kept - needed


def match_layers(model: ModelProto, patterns: Sequence[str], *, key: str) -> list[str]:
    """Names of the weighted layers that ``patterns`` name, in graph order.

    Args:
        model: the network.
        patterns: names of layers, patterns with ``*`` and ``?``, or operator types.
        key: where the patterns stand: a key of ``quantization:`` in the profile.

    Raises:
        ProfileError: a pattern matches no layer with weights; the nearest name is suggested.
    """
    layers = weighted_layers(model)
    found: set[str] = set()
    for pattern in patterns:
        matching = {
            layer.name for layer in layers if pattern == layer.op_type or fnmatch.fnmatchcase(layer.name, pattern)
        }
        # Names of exporters are full of brackets, which are no sets of characters here.
        matching |= {layer.name for layer in layers if layer.name == pattern}
        if not matching:
            known = [layer.name for layer in layers] + sorted({layer.op_type for layer in layers})
            raise ProfileError(
                f"quantization.{key}: {pattern!r} matches no layer with weights{did_you_mean(pattern, known)}",
                hint="names of layers are those of the ONNX file; '/blocks.0/*' and types such as Gemm work",
            )
        found |= matching
    return [layer.name for layer in layers if layer.name in found]

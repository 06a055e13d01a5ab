"""Shift one-sided activations so that they are centred on zero and INT8 with zero point 0 wastes no codes.

The output of a Relu is in [0, r]; symmetric INT8 uses half of its 255 codes for values below zero that never occur.
With c the middle of a tensor's range, T - c is in [-r/2, r/2] and needs half the scale. W·T = W·(T - c) + W·c, so the
layers that read it add W·c to their bias. That is exact for layers without padding; a padded convolution gets a Pad
with the value -c instead of its zeros. After a Relu or Clip the shift needs no operator:
the bias in front loses c, and the activation becomes Clip(low - c, high - c). Elsewhere one Sub does it, which
compilers put into the pointwise kernel that makes the tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from edge.errors import ModelError, require
from edge.model import GraphIndex, WeightedLayer, attributes, weighted_layers
from edge.quantization.recipe import Shift
from edge.quantization.rounding import add_to_output, groups_of, insert_behind, node_of, response

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import ModelProto, NodeProto

ShiftMode = Literal["off", "unpadded", "all"]

# A shift that reduces the rounding noise by less than this, in dB, is not worth its operator.
_LEAST_GAIN_DB = 1.0
LEVELS = 127


def shifted_name(tensor: str) -> str:
    """Return the name of a tensor after the shift."""
    return f"{tensor}_shifted"


def shift_of(tensor: str, low: float, high: float, bound: float) -> Shift | None:
    """Compute the shift of a tensor with values in [low, high] that is clipped at ±bound; None if it gains nothing.

    The centre is a whole number of steps, so that the border of a padded layer, which is -centre, has its own code.
    """
    low, high = max(low, -bound), min(high, bound)
    half = (high - low) / 2.0
    if not 0.0 < half < max(-low, high) * 10.0 ** (-_LEAST_GAIN_DB / 20.0):
        return None
    step = half / LEVELS
    centre = float(np.float32(round((high + low) / 2.0 / step) * step))
    return Shift(tensor, low, high, centre)


def shift_range(shift: Shift) -> float:
    """Symmetric range after the shift: half the distance from low to high."""
    return (shift.high - shift.low) / 2.0


def shift_candidates(model: ModelProto, mode: ShiftMode) -> list[str]:
    """Find tensors that can be shifted: every reader is a weighted layer that can add the constant to its bias."""
    if mode == "off":
        return []
    graph = GraphIndex(model)
    readers: dict[str, list[WeightedLayer]] = {}
    for layer in weighted_layers(model):
        readers.setdefault(layer.activation, []).append(layer)
    given = {value.name for value in model.graph.input}
    return [name for name, layers in readers.items()
            if name not in given and all(_is_shiftable(graph, layer, mode) for layer in layers)]  # fmt: skip


def _is_shiftable(graph: GraphIndex, layer: WeightedLayer, mode: ShiftMode) -> bool:
    if layer.op_type == "ConvTranspose" or layer.weight not in graph.constants:
        return False
    node = node_of(graph, layer)
    if layer.op_type == "Conv":
        pads = _pads(graph, node)
        return pads is not None and (mode == "all" or not any(pads))
    if layer.op_type == "Gemm":
        return layer.channel_axis == 1
    return len(graph.constants[layer.weight].dims) == 2


def _pads(graph: GraphIndex, node: NodeProto) -> list[int] | None:
    """Pads of a Conv (begins, then ends); None where they depend on the size of the input."""
    given = attributes(node)
    kind = given.get("auto_pad", b"NOTSET")
    if kind not in {b"SAME_UPPER", b"SAME_LOWER"}:
        return list(given.get("pads", [])) if kind != b"VALID" else []
    sizes = list(graph.constants[node.input[1]].dims)[2:]
    if any(step != 1 for step in given.get("strides", [])):
        return None
    # With stride 1 the output is as large as the input: (size - 1)·dilation in all, the odd one behind or in front.
    whole = [(size - 1) * step for size, step in zip(sizes, given.get("dilations", [1] * len(sizes)), strict=True)]
    less, more = [total // 2 for total in whole], [total - total // 2 for total in whole]
    return less + more if kind == b"SAME_UPPER" else more + less


def shift_tensors(model: ModelProto, shifts: Sequence[Shift], *, mode: ShiftMode = "all") -> None:
    """Shift each tensor of ``shifts`` in ``model``.

    Raises:
        ModelError: the network has no such tensor, or a layer that reads it cannot compensate the shift.
    """
    able = set(shift_candidates(model, mode))
    for shift in shifts:
        if shift.tensor not in able:
            raise ModelError(
                f"the recipe shifts {shift.tensor!r}, which no layer of this model can compensate",
                hint="edge calibrate makes the recipe again",
            )
        _shift(GraphIndex(model), shift)


def _shift(graph: GraphIndex, shift: Shift) -> None:
    readers = [layer for layer in weighted_layers(graph.model) if layer.activation == shift.tensor]
    name = graph.unique(shifted_name(shift.tensor))
    nodes = [node_of(graph, layer) for layer in readers]
    alone = shift.tensor not in graph.outputs and len(graph.consumers[shift.tensor]) == len(nodes)
    if not (alone and _shift_activation(graph, shift, name)):
        constant = graph.add_constant(f"{name}_centre", np.array(shift.centre, np.float32))
        extra = require("onnx").helper.make_node(
            "Sub", [shift.tensor, constant], [name], name=graph.unique(f"{name}_Sub")
        )
        insert_behind(graph, graph.producer[shift.tensor], extra)
    padded: dict[tuple[int, ...], str] = {}
    for layer, node in zip(readers, nodes, strict=True):
        source = name
        if node.op_type == "Conv" and any(pads := _pads(graph, node) or []):
            key = tuple(pads)
            if key not in padded:
                padded[key] = _padded(graph, name, pads, -shift.centre)
            source = padded[key]
            _without_pads(node)
        node.input[1 if layer.is_left else 0] = source
        amount = constant_response(graph, layer, shift.centre)
        add_to_output(graph, layer, amount * float(attributes(node).get("alpha", 1.0) if node.op_type == "Gemm" else 1))


def constant_response(graph: GraphIndex, layer: WeightedLayer, value: float) -> NDArray[np.float64]:
    """Return the output of ``layer``, per output channel and without its bias, for an input that is ``value``."""
    weights, groups = graph.array(layer.weight), groups_of(graph, layer)
    return response(layer, weights, np.full(_input_channels(layer, weights.shape, groups), value), groups)


def _input_channels(layer: WeightedLayer, shape: Sequence[int], groups: int) -> int:
    if layer.op_type == "Conv":
        return shape[1] * groups
    if layer.op_type == "Gemm":
        return shape[1] if layer.axis == 0 else shape[0]
    return shape[1] if layer.is_left else shape[0]


def _shift_activation(graph: GraphIndex, shift: Shift, name: str) -> bool:
    """Shift a Relu or Clip after a convolution or Gemm by bounds and bias; return False if impossible."""
    node = graph.producer[shift.tensor]
    if node.op_type not in {"Relu", "Clip"} or not graph.is_sole_consumer(node, node.input[0]):
        return False
    layer = next((item for item in weighted_layers(graph.model) if item.output == node.input[0]), None)
    if layer is None or layer.op_type not in {"Conv", "Gemm", "ConvTranspose"} or layer.axis is None:
        return False
    bounds = [*node.input[1:3], "", ""][:2] if node.op_type == "Clip" else ["", ""]
    if any(bound and bound not in graph.constants for bound in bounds):
        return False
    low, high = (float(graph.array(bound).reshape(())) if bound else None for bound in bounds)
    if node.op_type == "Relu":
        low = 0.0
    channels = graph.array(layer.weight).shape[layer.axis]
    bias = node_of(graph, layer).input[2:3]
    if bias and bias[0] and bias[0] not in graph.constants:
        return False
    add_to_output(graph, layer, np.full(channels, -shift.centre))
    ends = [
        "" if end is None else graph.add_constant(f"{name}_{word}", np.array(end - shift.centre, np.float32))
        for word, end in (("low", low), ("high", high))
    ]
    node.op_type = "Clip"
    source = node.input[0]
    del node.input[:]
    node.input.extend([source, *ends] if ends[1] else [source, ends[0]])
    node.output[0] = name
    graph.producer[name] = node
    return True


def _padded(graph: GraphIndex, name: str, pads: list[int], value: float) -> str:
    """Insert a Pad with border ``value`` before a convolution; return the name of its output."""
    half = len(pads) // 2
    whole = [0, 0, *pads[:half], 0, 0, *pads[half:]]
    made = graph.unique(f"{name}_padded")
    inputs = [
        name,
        graph.add_constant(f"{made}_pads", np.array(whole, np.int64)),
        graph.add_constant(f"{made}_value", np.array(value, np.float32)),
    ]
    extra = require("onnx").helper.make_node("Pad", inputs, [made], name=graph.unique(f"{made}_Pad"), mode="constant")
    insert_behind(graph, graph.producer[name], extra)
    return made


def _without_pads(node: NodeProto) -> None:
    for item in [item for item in node.attribute if item.name in {"pads", "auto_pad"}]:
        node.attribute.remove(item)

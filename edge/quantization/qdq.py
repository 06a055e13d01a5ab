"""Convert a model and its calibration table to Q/DQ ONNX.

Both targets: symmetric INT8, per-tensor activations with the table's scale to the bit, per-channel weights.

``tensorrt``: int8, zero point 0, float biases, no Q/DQ behind convolutions and matrix products, and only where
:mod:`edge.quantization.recipe` puts it; every other reader of a tensor gets it in float.

``onnxruntime``: its integer kernels need a quantized output too, integer biases, and one activation type throughout. So
outputs get Q/DQ (before a Relu or Clip with the scale behind it, which changes nothing: rounding and clipping commute),
and activations are uint8 with zero point 128: the same integers shifted by 128, the form that x86 VNNI multiplies fast.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np

from edge.errors import require
from edge.model import GraphIndex, WeightedLayer, attributes, fold, has_qdq, remove_unused, weighted_layers
from edge.quantization import recipe, rounding
from edge.quantization.calibration_table import Table
from edge.quantization.recipe import Attention, Placement, Residual, read_placement
from edge.quantization.table_check import value_code

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import ModelProto, NodeProto

Target = Literal["tensorrt", "onnxruntime"]
Scales = Mapping[str, float]

# Quantized beside the weighted layers, so that no float island costs two conversions.
_POOLS = ("GlobalAveragePool", "AveragePool")
_ALONG = ("Add", *_POOLS, "MaxPool", "Concat")
# Room that an int32 bias leaves at its ends (onnxruntime's _adjust_weight_scale_for_int32_bias).
_ROOM, _INTEGERS = 1.0001, 2.0**32 - 2.0
_TINY = float(np.finfo(np.float32).tiny)


class QdqResult(msgspec.Struct, frozen=True):
    """The Q/DQ model (an onnx.ModelProto), and the numbers of quantized and of all weighted layers.

    ``unscaled`` names the tensors without a usable scale that keep a weighted layer in float.
    """

    model: Any
    quantized: int
    weighted: int
    unscaled: list[str]


def insert(
    model: ModelProto,
    table: Table,
    *,
    target: Target,
    balance: bool = True,
    float_layers: Collection[str] | None = None,
    only: Collection[str] | None = None,
    attention: Attention | None = None,
    residual: Residual | None = None,
) -> QdqResult:
    """Return the Q/DQ form of ``model`` (which is not changed) with the scales of ``table``.

    Args:
        model: the user's model, a folded one, or a prepared one, whose metadata has its settings.
        table: scales by tensor name. A layer with a tensor without a usable scale (zero,
            denormal, negative, not finite) stays float and is reported.
        target: the runtime for the result.
        balance: keep the sum of each filter while rounding; without it each weight goes to the nearest level. Weights
            that are on their levels already stay there.
        float_layers: names of weighted layers that are not quantized.
        only: quantize no other layers than these, and no sums or pools.
        attention: ``int8`` quantizes products of two activations as well.
        residual: the sums to quantize; see :mod:`edge.quantization.recipe`.

    Raises:
        ModelError: onnx cannot convert the opset.
    """
    kept = read_placement(model)
    chosen = Placement(
        attention=attention or kept.attention,
        residual=residual or kept.residual,
        float_layers=tuple(kept.float_layers if float_layers is None else float_layers),
    )
    copy = fold(model)
    work = _Insertion(copy, usable_scales(copy, table, target=target), target=target, balance=balance)
    layers = weighted_layers(copy)
    wanted = [
        layer for layer in layers if layer.name not in chosen.float_layers and (only is None or layer.name in only)
    ]
    done = work.quantize_layers(wanted)
    already = work.already_quantized
    if done and only is None:
        work.quantize_along(chosen)
    work.finish()
    return QdqResult(copy, done + already, len(layers), list(work.unscaled))


def usable_scales(model: ModelProto, table: Table, *, target: Target) -> dict[str, float]:
    """Return the scale of each tensor with a usable one in the table; ``model`` is not changed.

    Constants must be initializers: weights get their scales from their own values, not from a foreign table.
    """
    constant = {item.name for item in model.graph.initializer}
    usable = {name: table.scale(name) for name, pattern in table.bits.items() if value_code(pattern) is None}
    scales = {name: scale for name, scale in usable.items() if name not in constant}
    if target == "onnxruntime":
        _move_before_activations(model, scales)
    return scales


def _move_before_activations(model: ModelProto, scales: dict[str, float]) -> None:
    """Give the input of each Relu and Clip the scale of its output, so that the preceding layer can run in INT8.

    The quantizer then saturates where the activation would have clipped, and Relu or Clip of a rounded value is the
    rounded value of Relu or Clip. Only where the activation is the tensor's only user.
    """
    graph = GraphIndex(model)
    for node in model.graph.node:
        is_scaled = node.op_type in {"Relu", "Clip"} and node.output[0] in scales
        if is_scaled and graph.is_sole_consumer(node, node.input[0]):
            scales[node.input[0]] = scales[node.output[0]]


class _Insertion:
    """A model during the insertion of Q/DQ nodes."""

    def __init__(self, model: ModelProto, scales: Scales, *, target: Target, balance: bool) -> None:
        self.model, self.scales, self.target, self.balance = model, scales, target, balance
        self.graph = GraphIndex(model)
        self.unscaled: dict[str, None] = {}
        self.already_quantized = 0
        self._has_qdq = has_qdq(model)
        self._pairs: dict[str, str] = {}
        self._weights: dict[tuple[str, int | None], tuple[str, NDArray[np.float32]]] = {}
        self._before: dict[int, list[NodeProto]] = {}
        self._new: list[NodeProto] = []
        self._quantized: list[str] = []

    def quantize_layers(self, layers: list[WeightedLayer]) -> int:
        """Quantize inputs and weights of ``layers``; return the number of quantized layers."""
        nodes = {node.output[0]: node for node in self.model.graph.node if node.output}
        done = 0
        for layer in layers:
            if self._is_quantized_already(layer):
                self.already_quantized += 1
                continue
            needed = [layer.activation]
            if self._has_integer_output(layer):
                needed.append(layer.output)
            lacking = [name for name in needed if name not in self.scales]
            if lacking or layer.weight not in self.graph.constants:
                self.unscaled.update(dict.fromkeys(lacking))
                continue
            self._quantize_layer(nodes[layer.output], layer)
            done += 1
        return done

    def _is_quantized_already(self, layer: WeightedLayer) -> bool:
        above = self.graph.producer.get(layer.activation)
        return self._has_qdq and above is not None and above.op_type == "DequantizeLinear"

    def _has_integer_output(self, layer: WeightedLayer) -> bool:
        """Return True if the layer's kernel in onnxruntime rounds its output.

        A product followed by its bias is rounded behind the bias only: one that compensates a shift can be large.
        """
        if self.target == "tensorrt" or layer.output in self.graph.outputs:
            return False
        return self._bias_behind(layer) is None

    def _bias_behind(self, layer: WeightedLayer) -> NodeProto | None:
        """Return the Add of a constant that alone reads a product with weights; None if there is none."""
        readers = self.graph.consumers.get(layer.output, [])
        if layer.op_type != "MatMul" or len(readers) != 1 or readers[0].op_type != "Add":
            return None
        return readers[0] if any(name in self.graph.constants for name in readers[0].input) else None

    def _quantize_layer(self, node: NodeProto, layer: WeightedLayer) -> None:
        weight, scale = self._weight_pair(layer)
        node.input[0 if layer.is_left else 1] = weight
        if self.target == "tensorrt":
            node.input[1 if layer.is_left else 0] = self._pair(layer.activation)
            return
        self._quantized.append(layer.activation)
        if self._has_integer_output(layer):
            self._quantized.append(layer.output)
        if layer.bias is not None:
            self._integer_bias(node, 2, layer, layer.bias, scale)
        elif (add := self._bias_behind(layer)) is not None:
            # onnxruntime makes a Gemm of both where the product has two axes.
            index = next(at for at, name in enumerate(add.input) if name in self.graph.constants)
            self._integer_bias(add, index, layer, add.input[index], scale)
            if self._is_scaled(add.output[0]) and add.output[0] not in self.graph.outputs:
                # Otherwise it fuses the sum with a Relu behind it, in float.
                self._quantized.append(add.output[0])

    def _weight_pair(self, layer: WeightedLayer) -> tuple[str, NDArray[np.float32]]:
        """Return the dequantized weights, and their scales (per output channel, or one)."""
        roomy = self._scale_with_room(layer) if self.target == "onnxruntime" else None
        key = (layer.weight, layer.axis)
        if key in self._weights:
            return self._weights[key]
        values = self.graph.array(layer.weight).astype(np.float32)
        scale = rounding.scales_of(values, layer.axis)
        # Levels follow from the weights' own scale: only then do balanced sums stay.
        values = rounding.on_levels(values, layer.axis, balance=self.balance)
        scale = scale if roomy is None else np.maximum(scale, roomy)
        shape = [1] * values.ndim
        if layer.axis is not None:
            shape[layer.axis] = -1
        levels = np.clip(np.rint(values / scale.reshape(shape)), -128, 127).astype(np.int8)
        stem = layer.weight
        inputs = [
            self.graph.add_constant(f"{stem}_quantized", levels),
            self.graph.add_constant(f"{stem}_scale", scale),
            self.graph.add_constant(f"{stem}_zero_point", np.zeros(scale.shape, np.int8)),
        ]
        output = self.graph.unique(f"{stem}_DequantizeLinear_Output")
        axis = {} if layer.axis is None else {"axis": layer.axis}
        self._new.append(self._node("DequantizeLinear", inputs, output, name=f"{output[:-7]}", **axis))
        result = (output, scale)
        if self.target == "tensorrt":
            # onnxruntime turns int8 weights into uint8 on some processors, and fails on those that two layers share.
            self._weights[key] = result
        return result

    def _scale_with_room(self, layer: WeightedLayer) -> NDArray[np.float32] | None:
        """Return weight scales with which every bias fits into int32; None if the original scales do."""
        if layer.bias is None:
            return None
        bias = self.graph.array(layer.bias).astype(np.float64).reshape(-1)
        scale = rounding.scales_of(self.graph.array(layer.weight), layer.axis)
        if bias.size != scale.size:
            return None
        given = self.scales[layer.activation]
        needed = _ROOM * 2.0 * np.abs(bias) / _INTEGERS / given
        return None if (scale >= needed).all() else needed.astype(np.float32)

    def _integer_bias(
        self, node: NodeProto, index: int, layer: WeightedLayer, name: str, scale: NDArray[np.float32]
    ) -> None:
        """Replace the bias ``name``, which is input ``index`` of ``node``, by int32 levels and a DequantizeLinear."""
        given = attributes(node)
        bias = self.graph.array(name).astype(np.float64)
        if bias.ndim != 1 or bias.size != scale.size or given.get("alpha", 1.0) != 1.0 or given.get("beta", 1.0) != 1.0:
            return
        step = (np.float32(self.scales[layer.activation]) * scale).reshape(-1)
        if not (step > 0).all():
            return
        limits, levels = np.iinfo(np.int32), bias / step
        if layer.bias is None and (np.abs(levels) > limits.max).any():
            return  # its weights were given no room for it
        levels = np.clip(np.rint(levels), limits.min, limits.max).astype(np.int32)
        inputs = [
            self.graph.add_constant(f"{name}_quantized", levels),
            self.graph.add_constant(f"{name}_scale", step),
            self.graph.add_constant(f"{name}_zero_point", np.zeros(step.shape, np.int32)),
        ]
        output = self.graph.unique(f"{name}_DequantizeLinear_Output")
        self._new.append(self._node("DequantizeLinear", inputs, output, name=output[:-7], axis=0))
        node.input[index] = output

    def quantize_along(self, chosen: Placement) -> None:
        """Quantize operators around the weighted layers: sums, pools, and products if requested."""
        if self.target == "onnxruntime":
            for node in self.model.graph.node:
                names = [*node.input, *node.output]
                if node.op_type in _ALONG and all(self._is_scaled(name) for name in names if name):
                    self._quantized += [name for name in names if name not in self.graph.constants]
            return
        for node in self.model.graph.node:
            if node.op_type in _POOLS and node.input[0] in self.scales:
                node.input[0] = self._pair(node.input[0])
        places = recipe.residual_inputs(self.model, rule=chosen.residual)
        if chosen.attention == "int8":
            places += recipe.attention_inputs(self.model)
        for node, index in places:
            if all(name in self.scales or name in self._pairs.values() for name in node.input):
                node.input[index] = self._pair(node.input[index])

    def _is_scaled(self, name: str) -> bool:
        return name in self.scales or name in self.graph.outputs

    def _pair(self, name: str) -> str:
        """Return the tensor after the Q/DQ pair on ``name``; the pair is made once."""
        if name in self._pairs.values():
            return name
        if name not in self._pairs:
            kind = np.int8 if self.target == "tensorrt" else np.uint8
            zero = np.array(0 if self.target == "tensorrt" else 128, kind)
            scale = self.graph.add_constant(f"{name}_scale", np.array(self.scales[name], np.float32))
            point = self.graph.add_constant(f"{name}_zero_point", zero)
            quantized = self.graph.unique(f"{name}_QuantizeLinear_Output")
            back = self.graph.unique(f"{name}_DequantizeLinear_Output")
            self._new.append(self._node("QuantizeLinear", [name, scale, point], quantized, name=quantized[:-7]))
            self._new.append(self._node("DequantizeLinear", [quantized, scale, point], back, name=back[:-7]))
            self._pairs[name] = back
        return self._pairs[name]

    def finish(self) -> None:
        """Connect all readers of a fully quantized tensor to its Q/DQ pair, and sort the new nodes."""
        whole = [name for name in dict.fromkeys(self._quantized) if name not in self.graph.outputs]
        pairs = {name: self._pair(name) for name in whole}
        for node in self.model.graph.node:
            for index, name in enumerate(node.input):
                if name in pairs:
                    node.input[index] = pairs[name]
        _sort_in(self.model, self._new)
        remove_unused(self.model)

    def _node(self, kind: str, inputs: list[str], output: str, *, name: str, **given: int) -> NodeProto:
        node: NodeProto = require("onnx").helper.make_node(
            kind, inputs, [output], name=self.graph.unique(name), **given
        )
        return node


def _sort_in(model: ModelProto, new: list[NodeProto]) -> None:
    """Insert ``new`` nodes right after the producers of their inputs: ONNX requires producers before consumers."""
    made = {name for node in model.graph.node for name in node.output}
    first = [node for node in new if not made.intersection(node.input)]
    behind: dict[str, list[NodeProto]] = {}
    for node in new:
        for name in node.input:
            behind.setdefault(name, []).append(node)
    ordered: list[NodeProto] = []
    placed: set[int] = set()

    def place(node: NodeProto) -> None:
        if id(node) in placed:
            return
        placed.add(id(node))
        ordered.append(node)
        for name in node.output:
            for following in behind.get(name, ()):
                place(following)

    for node in first:
        if not any(node.input[0] in other.output for other in new):
            place(node)
    for node in list(model.graph.node):
        place(node)
    copies = [type(node).FromString(node.SerializeToString()) for node in ordered]
    del model.graph.node[:]
    model.graph.node.extend(copies)

"""Q/DQ forms of one model with many tables: made once by the quantizer, then only filled with other scales.

The quantizer takes a second or two for a small network, nearly all of it for the weights, which no table changes. What
does change with a table are the scales of the activations, and with them the biases, which are integers in units of
input scale times weight scale; and where such a bias would leave int32, the channel gets a larger weight scale.
:class:`Template` puts in those. A table that scales other tensors than the one before has other Q/DQ nodes, and goes
through the quantizer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge.errors import require
from edge.quantization import qdq, rounding

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

    from edge.quantization.calibration_table import Table
    from edge.quantization.qdq import Scales, Target

# What the quantizer leaves between the largest bias and the ends of int32 (_adjust_weight_scale_for_int32_bias).
_ROOM, _INTEGERS = np.float32(1.0001), 2.0**32 - 2.0


class _Layer(msgspec.Struct, frozen=True):
    """A layer with a quantized bias: names of the constants in the form, and what they are made from.

    ``rows`` are its balanced weights, channels first along ``axis`` of the weights; ``own_scale`` is what they ask for.
    """

    input_scale: str
    weights: str
    weight_scale: str
    bias: str
    bias_scale: str
    exact_bias: NDArray[np.float32]
    rows: NDArray[np.float32]
    own_scale: NDArray[np.float32]
    axis: int


class Template:
    """:func:`edge.quantization.qdq.insert` for one model and target, table after table. Not for several threads.

    ``made`` counts how often the quantizer was asked.
    """

    def __init__(self, model: ModelProto, *, target: Target) -> None:
        self._model, self._target = qdq.named_copy(model), target
        self._form: qdq.QdqResult | None = None
        self._scaled: frozenset[str] = frozenset()
        self._layers: list[_Layer] = []
        self.made = 0

    def insert(self, table: Table) -> qdq.QdqResult:
        """As :func:`edge.quantization.qdq.insert`, to the bit; the model is overwritten by the next call.

        Raises:
            ModelError: as there.
        """
        scales = qdq.usable_scales(self._model, table, target=self._target)
        if self._form is None or scales.keys() != self._scaled:
            self._form = self._quantized(table)
            self._scaled = frozenset(scales)
            made = self._form
            before = made.model.SerializeToString(deterministic=True)
            layers = _layers_of(made.model, self._model)
            self._layers = layers or []
            if layers is not None:
                self._fill(made.model, scales)
            if layers is None or made.model.SerializeToString(deterministic=True) != before:
                # The quantizer did something that is unknown here: it shall do it each time.
                self._form = None
                return self._quantized(table)
        else:
            self._fill(self._form.model, scales)
        return self._form

    def _quantized(self, table: Table) -> qdq.QdqResult:
        self.made += 1
        return qdq.insert(self._model, table, target=self._target)

    def _fill(self, form: ModelProto, scales: Scales) -> None:
        """Put ``scales`` into the form, and what follows from them."""
        constants = {item.name: item for item in form.graph.initializer}
        for name, scale in scales.items():
            item = constants.get(f"{name}_scale")
            if item is not None:
                _put(item, np.full(tuple(item.dims), scale, np.float32))
        read = require("onnx").numpy_helper.to_array
        for layer in self._layers:
            given = read(constants[layer.input_scale])
            roomy, larger = _roomy(layer, float(given))
            before = read(constants[layer.weight_scale])
            _put(constants[layer.weight_scale], roomy)
            _put(constants[layer.bias_scale], (given * roomy).reshape(-1))
            bias = layer.exact_bias.astype(np.float64) / (given * roomy).astype(np.float64)
            _put(constants[layer.bias], bias.round().astype(np.int32))
            # Few channels: those whose weights do nothing next to their bias.
            changed = np.flatnonzero(larger | (before != roomy))
            if changed.size:
                levels = np.moveaxis(read(constants[layer.weights]).copy(), layer.axis, 0)
                rows = np.clip((layer.rows[changed] / roomy[changed, None]).round(), -128, 127).astype(np.int8)
                levels[changed] = rows.reshape(levels[changed].shape)
                _put(constants[layer.weights], np.ascontiguousarray(np.moveaxis(levels, 0, layer.axis)))


def _roomy(layer: _Layer, given: float) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Weight scales with which every bias fits int32, and which of them are larger than the weights ask for."""
    own = layer.own_scale.astype(np.float64)
    # In the quantizer's own precision, step by step.
    needed = (_ROOM * (2 * np.abs(layer.exact_bias))).astype(np.float64) / _INTEGERS
    larger = (given * own < needed) & (given * own > 0.0)
    ratio = np.where(larger, needed / np.where(larger, given * own, 1.0), 1.0)
    return np.where(larger, own * ratio, own).astype(np.float32), larger


def _layers_of(form: ModelProto, model: ModelProto) -> list[_Layer] | None:
    """The layers of ``form`` with a quantized bias, from ``model``; None where one is of another kind."""
    onnx = require("onnx")
    exact = {item.name: item for item in model.graph.initializer}
    integers = {item.name for item in form.graph.initializer if item.data_type == onnx.TensorProto.INT32}
    maker = {name: node for node in form.graph.node for name in node.output if node.op_type == "DequantizeLinear"}
    unknown = {node.input[0] for node in maker.values() if node.input[0] in integers}
    seen: set[str] = set()
    found = []
    for node in form.graph.node:
        given, weight, bias = ([maker.get(name) for name in node.input] + [None] * 3)[:3]
        if bias is None or bias.input[0] not in integers:
            continue
        if given is None or weight is None or bias.input[0] not in unknown or weight.input[0] in seen:
            return None
        unknown.remove(bias.input[0])
        seen.add(weight.input[0])
        sources = [exact.get(back.input[0].removesuffix("_quantized")) for back in (weight, bias)]
        if any(source is None or source.data_type != onnx.TensorProto.FLOAT for source in sources):
            return None
        values, exact_bias = (onnx.numpy_helper.to_array(source) for source in sources)
        axis = next((item.i for item in weight.attribute if item.name == "axis"), 0)
        channels = np.moveaxis(values, axis, 0)
        rows = rounding.balanced(channels.reshape(len(channels), -1))
        scale = 2.0 * np.abs(rows).max(axis=1).astype(np.float64) / 254.0
        own = np.where(scale < np.finfo(np.float32).tiny, 1.0, scale).astype(np.float32)
        names = (given.input[1], weight.input[0], weight.input[1], bias.input[0], bias.input[1])
        found.append(_Layer(*names, exact_bias, rows, own, axis))
    return None if unknown else found


def _put(item: TensorProto, values: NDArray[Any]) -> None:
    """Give an initializer other values of the type and shape that it has, in the form that it has."""
    for field in ("float_data", "int32_data"):
        if len(getattr(item, field)):
            del getattr(item, field)[:]
            getattr(item, field).extend(values.ravel().tolist())
            return
    item.raw_data = values.tobytes()

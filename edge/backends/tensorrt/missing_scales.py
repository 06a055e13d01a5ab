"""Scales for the tensors that TensorRT's ONNX parser makes itself.

A table names the tensors of the ONNX graph. The parser's network has more: a Gemm becomes a matrix product, a constant
and a sum; a bias is reshaped; a shape is computed. TensorRT runs a layer in INT8 only when every float tensor at it has
a scale, and says "Missing scale and zero-point … expect fall back to non-int8" otherwise; in the tables that it
writes itself they all have one, constants too. Their names differ by version (``(Unnamed Layer* 122) [Matrix
Multiply]_output`` in 8.6, ``/fc/Gemm_output`` in 10), so they are not guessed: the network is read after parsing, and
what is missing follows from what is known.

========================================  ==================================================================
a tensor that is …                        gets the range …
========================================  ==================================================================
a constant                                its largest magnitude
moved, reshaped, cast or cut              of the tensor that it came from, or of the one that it becomes
added to a constant                       of the sum plus the constant's (|p| = |s - b| <= |s| + |b|)
clipped or rectified                      of the tensor that it becomes (nothing beyond is of use), or came from
concatenated or the smaller/larger of     the largest of its parts
========================================  ==================================================================

Integer tensors and shape tensors carry no activations and need none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgspec

from edge.backends.tensorrt.caps import Caps, binding_module
from edge.errors import require
from edge.quantization import LEVELS, Table, calibration_table, table_check

_FLOATS = frozenset({"FLOAT", "HALF", "BF16"})
# Layers whose output holds values of their first input and no others.
_MOVES = frozenset({"SHUFFLE", "IDENTITY", "CAST", "SLICE", "GATHER", "SQUEEZE", "UNSQUEEZE", "PADDING"})
_CLIPS = frozenset({"RELU", "CLIP"})
_PICKS = frozenset({"MIN", "MAX"})


class Completed(msgspec.Struct, frozen=True):
    """A table with more entries, which these are and where each came from; ``unresolved`` have no scale still."""

    table: Table
    added: dict[str, str]
    unresolved: list[str]


class ParsedTensor(msgspec.Struct, frozen=True):
    """A tensor of the parsed network. ``constant``: nothing in it depends on the network's input."""

    name: str
    dtype: str
    is_shape: bool
    constant: bool

    @property
    def is_float(self) -> bool:
        """True if INT8 concerns it."""
        return self.dtype in _FLOATS and not self.is_shape


class ParsedLayer(msgspec.Struct, frozen=True):
    """A layer: its kind as TensorRT calls it, the operation inside of it where it has one, and its tensors' names.

    ``largest`` is the largest magnitude of a constant layer's weights.
    """

    name: str
    kind: str
    operation: str | None
    inputs: list[str]
    outputs: list[str]
    largest: float | None = None


class ParsedNetwork(msgspec.Struct, frozen=True):
    """The parsed network, as far as scales are concerned."""

    layers: list[ParsedLayer]
    tensors: dict[str, ParsedTensor]

    def activations(self) -> list[str]:
        """Float tensors that depend on the input, in network order."""
        return [tensor.name for tensor in self.tensors.values() if tensor.is_float and not tensor.constant]

    def by_kind(self) -> dict[str, int]:
        """The number of layers of each kind, constants apart."""
        kinds = Counter(layer.kind for layer in self.layers if layer.kind != "CONSTANT")
        return dict(sorted(kinds.items()))


def read(network: Any, caps: Caps) -> ParsedNetwork:  # noqa: ANN401
    """Layers and tensors of a parsed INetworkDefinition."""
    tensors: dict[str, ParsedTensor] = {}
    for index in range(network.num_inputs):
        given = network.get_input(index)
        tensors[given.name] = ParsedTensor(given.name, given.dtype.name, bool(given.is_shape_tensor), constant=False)
    layers = []
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        inputs = [item.name for item in _each(layer.get_input, layer.num_inputs)]
        is_live = any(name in tensors and not tensors[name].constant for name in inputs)
        outputs = []
        for item in _each(layer.get_output, layer.num_outputs):
            outputs.append(item.name)
            tensors[item.name] = ParsedTensor(
                item.name, item.dtype.name, bool(item.is_shape_tensor), constant=not is_live
            )
        layers.append(_layer(layer, caps, inputs, outputs))
    return ParsedNetwork(layers, tensors)


def complete(table: Table, network: ParsedNetwork) -> Completed:
    """``table`` with an entry for every float tensor of ``network`` whose range follows from what is known."""
    known = {
        name: scale * LEVELS for name, scale in table.scales.items() if table_check.value_code(table.bits[name]) is None
    }
    # A tensor that the table names with an unusable scale stays as it is: that was decided, not forgotten.
    missing = [name for name, tensor in network.tensors.items() if tensor.is_float and name not in table.bits]
    added: dict[str, str] = {}
    for _ in range(len(missing)):
        before = len(added)
        for layer in network.layers:
            for name, value, origin in _follows(layer, known):
                if name in missing and name not in known and value > 0:
                    known[name] = value
                    added[name] = origin
        if len(added) == before:
            break
    bits = {**table.bits, **{name: calibration_table.range_bits(known[name], name=name) for name in added}}
    unresolved = [name for name in missing if name not in added]
    return Completed(Table(table.header, bits), added, unresolved)


def _follows(layer: ParsedLayer, known: dict[str, float]) -> Iterator[tuple[str, float, str]]:
    """Ranges that a layer lets follow: name, range, and where it comes from."""
    first = layer.inputs[0] if layer.inputs else None
    for output in layer.outputs:
        if layer.kind == "CONSTANT" and layer.largest is not None:
            yield output, layer.largest, "constant"
        elif layer.kind in _MOVES or (layer.kind == "ACTIVATION" and layer.operation in _CLIPS):
            # A slice or a gather may leave out the largest value, so its output says nothing of its input's range.
            backwards = layer.kind not in {"SLICE", "GATHER"}
            if first in known:
                yield output, known[first], f"same values as {first}"
            if first is not None and backwards and output in known:
                yield first, known[output], f"becomes {output}"
        elif layer.kind == "CONCATENATION" or (layer.kind == "ELEMENTWISE" and layer.operation in _PICKS):
            if all(name in known for name in layer.inputs):
                yield output, max(known[name] for name in layer.inputs), "largest of its parts"
        elif layer.kind == "ELEMENTWISE" and layer.operation in {"SUM", "SUB"}:
            yield from _sum(layer.inputs, output, known)


def _sum(inputs: list[str], output: str, known: dict[str, float]) -> Iterator[tuple[str, float, str]]:
    """|a| <= |a + b| + |b|, and |a + b| <= |a| + |b|."""
    for name, other in ((inputs[0], inputs[1]), (inputs[1], inputs[0])):
        if output in known and other in known:
            yield name, known[output] + known[other], f"{output} less {other}"
    if all(name in known for name in inputs):
        yield output, known[inputs[0]] + known[inputs[1]], f"{inputs[0]} plus {inputs[1]}"


def _layer(layer: Any, caps: Caps, inputs: list[str], outputs: list[str]) -> ParsedLayer:  # noqa: ANN401
    binding = binding_module(caps)
    kind = layer.type.name
    operation: str | None = None
    largest: float | None = None
    own = layer.__class__
    # The binding gives every layer as ILayer; its own class is put on it, as NVIDIA's Polygraphy does, and taken off
    # again: `type` of an activation layer is the kind of activation, of an ILayer the kind of layer.
    if kind == "CONSTANT":
        layer.__class__ = binding.IConstantLayer
        largest = _largest(layer.weights)
    elif kind == "ELEMENTWISE":
        layer.__class__ = binding.IElementWiseLayer
        operation = layer.op.name
    elif kind == "ACTIVATION":
        layer.__class__ = binding.IActivationLayer
        operation = layer.type.name
    layer.__class__ = own
    return ParsedLayer(layer.name, kind, operation, inputs, outputs, largest)


def _largest(weights: Any) -> float | None:  # noqa: ANN401
    """Largest magnitude of constant weights: a NumPy array, or a Weights object where NumPy has no such type."""
    np = require("numpy")
    array = weights if isinstance(weights, np.ndarray) else getattr(weights, "numpy", lambda: None)()
    if array is None or not getattr(array, "size", 0) or array.dtype.kind != "f":
        return None
    return float(np.abs(array.astype(np.float64)).max())


def _each(get: Any, count: int) -> list[Any]:  # noqa: ANN401
    """Tensors of a layer; an optional input that is absent comes as None and is left out."""
    return [item for index in range(count) if (item := get(index)) is not None]

"""Calibrators for TensorRT 8.6 to 10.x: subclasses of its own classes, made when a build needs one.

:class:`Serving` serves a checked table of edge, and nothing else. If TensorRT requests a batch, it has refused the
table; it then gets none, and :meth:`Serving.raise_kept` raises the error. The table that TensorRT writes is ignored:
shortened to the needs of one network and version, it would replace the checked one.

:class:`Feeding` feeds images to the device's own algorithms and returns the resulting table.

TensorRT prints an exception that leaves ``get_batch`` and continues with the batches that it has. So no exception
leaves: it is stored, the calibration ends, and ``raise_kept`` raises it after the build. A table from too few batches
is never used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from edge.backends.tensorrt.environment import CALIBRATORS, Caps, binding_module
from edge.errors import ArtifactError, DataError, DeviceError, require
from edge.quantization import LEVELS, AlgorithmName, Table, calibration_table, table_check

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


_FLOATS = frozenset({"FLOAT", "HALF", "BF16"})
# Layers whose output has only values of their first input.
_MOVES = frozenset({"SHUFFLE", "IDENTITY", "CAST", "SLICE", "GATHER", "SQUEEZE", "UNSQUEEZE", "PADDING"})
_CLIPS = frozenset({"RELU", "CLIP"})
_PICKS = frozenset({"MIN", "MAX"})


class Completed(msgspec.Struct, frozen=True):
    """A table with added entries and their origins; ``unresolved`` tensors still have no scale."""

    table: Table
    added: dict[str, str]
    unresolved: list[str]


class ParsedTensor(msgspec.Struct, frozen=True):
    """A tensor of the parsed network. ``constant``: it does not depend on the network's input."""

    name: str
    dtype: str
    is_shape: bool
    constant: bool

    @property
    def is_float(self) -> bool:
        """True if INT8 applies to it."""
        return self.dtype in _FLOATS and not self.is_shape


class ParsedLayer(msgspec.Struct, frozen=True):
    """A layer: its kind as TensorRT calls it, the operation inside it (if any), and the names of its tensors.

    ``largest`` is the largest magnitude of a constant layer's weights.
    """

    name: str
    kind: str
    operation: str | None
    inputs: list[str]
    outputs: list[str]
    largest: float | None = None


class ParsedNetwork(msgspec.Struct, frozen=True):
    """The parts of the parsed network that matter for scales."""

    layers: list[ParsedLayer]
    tensors: dict[str, ParsedTensor]

    def activations(self) -> list[str]:
        """Float tensors that depend on the input, in network order."""
        return [tensor.name for tensor in self.tensors.values() if tensor.is_float and not tensor.constant]

    def by_kind(self) -> dict[str, int]:
        """The number of layers of each kind, without constants."""
        kinds = Counter(layer.kind for layer in self.layers if layer.kind != "CONSTANT")
        return dict(sorted(kinds.items()))


def read(network: Any, caps: Caps) -> ParsedNetwork:  # noqa: ANN401
    """Read the layers and tensors of a parsed INetworkDefinition."""
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
    """Add an entry to ``table`` for every float tensor of ``network`` whose range can be derived."""
    known = {
        name: scale * LEVELS for name, scale in table.scales.items() if table_check.value_code(table.bits[name]) is None
    }
    # A tensor with an unusable scale in the table stays unchanged: that was intended.
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
    """Yield the ranges that follow from a layer: name, range, and origin."""
    first = layer.inputs[0] if layer.inputs else None
    for output in layer.outputs:
        if layer.kind == "CONSTANT" and layer.largest is not None:
            yield output, layer.largest, "constant"
        elif layer.kind in _MOVES or (layer.kind == "ACTIVATION" and layer.operation in _CLIPS):
            # A slice or a gather may omit the largest value, so its output does not determine its input's range.
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
    """Derive ranges at a sum: |a| <= |a + b| + |b|, and |a + b| <= |a| + |b|."""
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
    """Return the largest magnitude of constant weights: a NumPy array, or a Weights object for other types."""
    np = require("numpy")
    array = weights if isinstance(weights, np.ndarray) else getattr(weights, "numpy", lambda: None)()
    if array is None or not getattr(array, "size", 0) or array.dtype.kind != "f":
        return None
    return float(np.abs(array.astype(np.float64)).max())


def _each(get: Any, count: int) -> list[Any]:  # noqa: ANN401
    """Yield the tensors of a layer; an absent optional input is None and is left out."""
    return [item for index in range(count) if (item := get(index)) is not None]


class CalibrationBuffer(Protocol):
    """The buffer that TensorRT reads a calibration batch from."""

    def upload(self, batch: NDArray[np.float32]) -> int:
        """Copy a C-contiguous N×3×H×W float32 batch to the device; return its address, valid until the next call.

        Raises:
            DeviceError: the copy failed.
        """


class Feed(msgspec.Struct, frozen=True, kw_only=True):
    """Images for one of the device's own calibrators.

    ``batches`` gives float32 N×3×H×W arrays of exactly ``batch`` images, ``planned`` of them; ``memory`` is a
    :class:`DeviceMemory`. ``quantile`` and ``cutoff`` (0 to 1) are the legacy calibrator's.
    """

    algorithm: AlgorithmName
    batches: Iterator[Any]
    planned: int
    batch: int
    memory: Any
    quantile: float = 0.99999
    cutoff: float = 1.0


class BatchSource(Protocol):
    """Answers TensorRT's requests to a calibrator object."""

    batch: int
    quantile: float
    cutoff: float

    def next(self, names: Sequence[str]) -> list[int] | None:
        """Return the device address of the next batch of each input; None ends the calibration."""

    def read(self) -> bytes | None:
        """Return a finished table, or None to let TensorRT make one."""

    def write(self, content: bytes) -> None:
        """Receive the table that TensorRT made."""

    def raise_kept(self) -> None:
        """Raise a stored exception from one of TensorRT's calls, such as of a batch iterator or an upload.

        Raises:
            EdgeError: the table was refused, or not all batches were read.
        """


class Serving:
    """Serves a finished table with the header for this TensorRT and this calibrator class."""

    quantile = 1.0
    cutoff = 1.0

    def __init__(self, table: Table, caps: Caps, *, batch: int) -> None:
        self.table = table
        self.batch = batch
        self.asked = 0
        # TensorRT reads the bytes after the call, so they must be the same object for as long as the calibrator lives.
        self._content = calibration_table.write(table)
        self._title = caps.title

    def next(self, names: Sequence[str]) -> None:
        """Return None: TensorRT has refused the table and requests images, but there are none."""
        del names
        self.asked += 1

    def read(self) -> bytes:
        """Return the whole table, every time."""
        return self._content

    def write(self, content: bytes) -> None:
        """Ignore the table; see the module's docstring."""

    def raise_kept(self) -> None:
        """Raise if the table was refused."""
        if self.asked:
            raise ArtifactError(
                f"{self._title} refused the calibration table ({self.table.header.text}) and requested images",
                hint="run edge table check, or edge calibrate --force",
            )


class Feeding:
    """Feeds batches to one of the device's own calibrators, and stores the table that it makes."""

    def __init__(self, feed: Feed, caps: Caps) -> None:
        self.batch = feed.batch
        self.quantile = feed.quantile
        self.cutoff = feed.cutoff
        self.consumed = 0
        self._feed = feed
        self._title = caps.title
        self._ended = False
        self._kept: BaseException | None = None
        self._written: bytes | None = None

    def next(self, names: Sequence[str]) -> list[int] | None:
        """Return the address of the next batch; None at the end and after an exception."""
        if self._ended:
            return None
        try:
            found = self._next(names)
        except BaseException as exc:  # noqa: BLE001 - raised again by raise_kept
            self._kept = exc
            found = None
        self._ended = found is None
        return found

    def read(self) -> None:
        """Return None: the table is to be made from the images."""

    def write(self, content: bytes) -> None:
        """Store the table that TensorRT made."""
        self._written = content

    def raise_kept(self) -> None:
        """Raise the exception of :meth:`next`, or an error if not all batches were read."""
        if self._kept is not None:
            raise self._kept
        if self.consumed != self._feed.planned:
            raise DeviceError(
                f"{self._title} read {self.consumed} of {self._feed.planned} calibration batches: "
                "its table would cover fewer images than requested",
                hint="run it again; if that does not help, calibrate with edge's own algorithms",
            )

    def table(self) -> Table:
        """Return the table that TensorRT made.

        Raises:
            DeviceError: it made none. ArtifactError: its output is not a table.
        """
        if self._written is None:
            raise DeviceError(f"{self._title} read {self.consumed} batches but wrote no calibration table")
        return calibration_table.parse(self._written, where=f"{self._title}'s calibration table")

    def _next(self, names: Sequence[str]) -> list[int] | None:
        if len(names) != 1:
            raise DeviceError(f"TensorRT requests {len(names)} inputs at once: {', '.join(names)}")
        array = next(self._feed.batches, None)
        if array is None:
            return None
        if array.shape[0] != self.batch or array.dtype.name != "float32":
            what = f"a batch of {array.shape[0]} {array.dtype.name} images, but TensorRT needs {self.batch} float32"
            raise DataError(what, hint="use a number of images that is a multiple of the batch size")
        address = int(self._feed.memory.upload(array))
        self.consumed += 1
        return [address]


def served(table: Table, caps: Caps, *, dla: bool) -> Table:
    """Return ``table`` with the header for this TensorRT and one of its calibrators.

    MinMax keeps its class; everything else is served as Entropy2, the only class that a DLA supports. This is safe: the
    class only decides how scales are computed, and here they are given.

    Raises:
        DeviceError: this TensorRT reads no tables.
    """
    version = caps.table_version
    if version is None:
        raise DeviceError(f"{caps.title} reads no calibration table", hint="int8_route: explicit")
    keeps = table.header.algorithm == "minmax" and not dla and "minmax" in caps.calibrators
    return calibration_table.retarget(table, version, algorithm="minmax" if keeps else "entropy2")


def make(source: BatchSource, algorithm: AlgorithmName, caps: Caps) -> Any:  # noqa: ANN401
    """Make an object of TensorRT's class for ``algorithm`` that uses ``source``. Keep a reference until the build ends.

    Raises:
        DeviceError: this TensorRT has no such calibrator.
    """
    if algorithm not in caps.calibrators:
        known = ", ".join(caps.calibrators) or "none"
        raise DeviceError(f"{caps.title} has no {algorithm} calibrator (it has {known})", hint="int8_route: explicit")
    base = getattr(binding_module(caps), CALIBRATORS[algorithm])

    class Calibrator(base):  # type: ignore[misc, valid-type]
        """Implements NVIDIA's interface. Some versions pass more arguments than their documentation shows."""

        def __init__(self) -> None:
            base.__init__(self)

        def get_batch_size(self, *_: object) -> int:
            return source.batch

        def get_batch(self, names: Sequence[str], *_: object) -> list[int] | None:
            return source.next(names)

        def read_calibration_cache(self, *_: object) -> bytes | None:
            return source.read()

        def write_calibration_cache(self, cache: Any, *_: object) -> None:  # noqa: ANN401
            # The buffer is TensorRT's own and gone after the call.
            source.write(bytes(cache))

        # The legacy calibrator alone calls the rest.
        def get_quantile(self, *_: object) -> float:
            return source.quantile

        def get_regression_cutoff(self, *_: object) -> float:
            return source.cutoff

        def read_histogram_cache(self, *_: object) -> None:
            """Return None: histograms are not stored."""

        def write_histogram_cache(self, *_: object) -> None:
            """Ignore the histogram."""

    return Calibrator()

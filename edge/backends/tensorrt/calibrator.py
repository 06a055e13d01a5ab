"""Calibrators as TensorRT 8.6 to 10.x wants them: subclasses of its own classes, made when a build needs one.

:class:`Serving` hands over a table that edge has made and checked, and nothing else. If TensorRT asks it for a batch,
it has refused the table; it then gets none, and :meth:`Serving.raise_kept` says so. What TensorRT wants written is
never written: a table that it has shortened to what one network of one version needed would replace the checked one.

:class:`Feeding` gives pictures to the device's own algorithms and takes the table that comes out.

TensorRT prints an exception that leaves ``get_batch`` and goes on with the batches that it has. So nothing leaves: the
exception is kept, the calibration ends, and ``raise_kept`` raises it after the build. A table from too few batches is
then never seen.
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


class CalibrationBuffer(Protocol):
    """The buffer that TensorRT reads a calibration batch from."""

    def upload(self, batch: NDArray[np.float32]) -> int:
        """Copy a C-contiguous N×3×H×W float32 batch to the device; its address, good until the next call.

        Raises:
            DeviceError: the copy failed.
        """


class Feed(msgspec.Struct, frozen=True, kw_only=True):
    """Pictures for one of the device's own calibrators.

    ``batches`` gives float32 N×3×H×W arrays of exactly ``batch`` pictures, ``planned`` of them; ``memory`` is a
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
    """The source behind a calibrator object: the answers to TensorRT's questions."""

    batch: int
    quantile: float
    cutoff: float

    def next(self, names: Sequence[str]) -> list[int] | None:
        """Device address of the next batch of each input; None ends the calibration."""

    def read(self) -> bytes | None:
        """A finished table, or None to have one made."""

    def write(self, content: bytes) -> None:
        """The table that TensorRT has made."""

    def raise_kept(self) -> None:
        """Raise what went wrong inside of TensorRT's calls, also what a batch iterator or an upload raised.

        Raises:
            EdgeError: the table was refused, or not all batches were taken.
        """


class Serving:
    """A finished table, under the header of this TensorRT and of the class that is made for it."""

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
        """TensorRT has refused the table and wants pictures: there are none."""
        del names
        self.asked += 1

    def read(self) -> bytes:
        """The whole table, every time."""
        return self._content

    def write(self, content: bytes) -> None:
        """Not taken: see the module."""

    def raise_kept(self) -> None:
        """Raise if the table was refused."""
        if self.asked:
            raise ArtifactError(
                f"{self._title} refused the calibration table ({self.table.header.text}) and asked for pictures",
                hint="edge table check; edge calibrate --force",
            )


class Feeding:
    """Batches for a calibrator of the device's own, and the table that it makes."""

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
        """Address of the next batch; None at the end and after an exception."""
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
        """Nothing: the table is to be made from the pictures."""

    def write(self, content: bytes) -> None:
        """Keep the table."""
        self._written = content

    def raise_kept(self) -> None:
        """Raise what :meth:`next` met, or say that not all batches were taken."""
        if self._kept is not None:
            raise self._kept
        if self.consumed != self._feed.planned:
            raise DeviceError(
                f"{self._title} took {self.consumed} of {self._feed.planned} calibration batches: "
                "its table would be of fewer pictures than asked for",
                hint="run it again; if it stays so, calibrate with edge's own algorithms",
            )

    def table(self) -> Table:
        """The table that TensorRT made.

        Raises:
            DeviceError: it made none. ArtifactError: what it made is no table.
        """
        if self._written is None:
            raise DeviceError(f"{self._title} took {self.consumed} batches and wrote no calibration table")
        return calibration_table.parse(self._written, where=f"{self._title}'s calibration table")

    def _next(self, names: Sequence[str]) -> list[int] | None:
        if len(names) != 1:
            raise DeviceError(f"TensorRT asks for {len(names)} inputs at once: {', '.join(names)}")
        array = next(self._feed.batches, None)
        if array is None:
            return None
        if array.shape[0] != self.batch or array.dtype.name != "float32":
            what = f"a batch of {array.shape[0]} {array.dtype.name} pictures, TensorRT takes {self.batch} float32"
            raise DataError(what, hint="calibrate with a number of pictures that the batch size divides")
        address = int(self._feed.memory.upload(array))
        self.consumed += 1
        return [address]


def served(table: Table, caps: Caps, *, dla: bool) -> Table:
    """``table`` as this TensorRT reads it: the header of its version, and of a calibrator that it has.

    MinMax keeps its class; everything else is served as Entropy2, the one class that a DLA takes. Scales are scales:
    the class decides how they are found, and these are found already.

    Raises:
        DeviceError: this TensorRT reads no tables.
    """
    version = caps.table_version
    if version is None:
        raise DeviceError(f"{caps.title} reads no calibration table", hint="int8_route: explicit")
    keeps = table.header.algorithm == "minmax" and not dla and "minmax" in caps.calibrators
    return calibration_table.retarget(table, version, algorithm="minmax" if keeps else "entropy2")


def make(source: BatchSource, algorithm: AlgorithmName, caps: Caps) -> Any:  # noqa: ANN401
    """An object of TensorRT's class for ``algorithm`` that asks ``source``. Keep a reference until the build ends.

    Raises:
        DeviceError: this TensorRT has no such calibrator.
    """
    if algorithm not in caps.calibrators:
        known = ", ".join(caps.calibrators) or "none"
        raise DeviceError(f"{caps.title} has no {algorithm} calibrator (it has {known})", hint="int8_route: explicit")
    base = getattr(binding_module(caps), CALIBRATORS[algorithm])

    class Calibrator(base):  # type: ignore[misc, valid-type]
        """NVIDIA's interface. Some versions pass more arguments than their documentation shows."""

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

        # The rest is asked by the legacy calibrator alone.
        def get_quantile(self, *_: object) -> float:
            return source.quantile

        def get_regression_cutoff(self, *_: object) -> float:
            return source.cutoff

        def read_histogram_cache(self, *_: object) -> None:
            """None: histograms are not kept."""

        def write_histogram_cache(self, *_: object) -> None:
            """Not taken."""

    return Calibrator()

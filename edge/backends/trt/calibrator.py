"""Calibrators as TensorRT 8.6 to 10.x wants them: subclasses of its own classes, made when a build needs one.

:func:`serving` hands over a table that edge has made and checked, and nothing else. If TensorRT asks it for a batch, it
has refused the table; it then gets none, and :meth:`Serving.raise_kept` says so. What TensorRT wants written is never
written: a table that it has shortened to what one network of one version needed would replace the checked one.

:func:`feeding` gives pictures to the device's own algorithms and takes the table that comes out.

TensorRT prints an exception that leaves ``get_batch`` and goes on with the batches that it has. So nothing leaves: the
exception is kept, the calibration ends, and ``raise_kept`` raises it after the build. A table from too few batches is
then never seen.

The bytes and addresses that the methods return are kept alive here; TensorRT reads them after the call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from edge.backends.trt import caps as capabilities
from edge.backends.trt.caps import Caps
from edge.calibration import table as tables
from edge.calibration.table import Algorithm, Table
from edge.errors import ArtifactError, DataError, DeviceError, EdgeError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class DeviceMemory(Protocol):
    """Where a batch goes before TensorRT reads it."""

    def upload(self, batch: NDArray[np.float32]) -> int:
        """Copy a C-contiguous N×3×H×W float32 batch to the device; its address, good until the next call.

        Raises:
            DeviceError: the copy failed.
        """


class Feed(msgspec.Struct, frozen=True, kw_only=True):
    """Pictures for one of the device's own calibrators.

    ``batches`` gives float32 N×3×H×W arrays of exactly ``batch`` pictures, ``planned`` of them. ``quantile`` and
    ``cutoff`` (0 to 1) are the legacy calibrator's.
    """

    algorithm: Algorithm
    batches: Iterator[Any]
    planned: int
    batch: int
    memory: Any  # a DeviceMemory
    quantile: float = 0.99999
    cutoff: float = 1.0


class Calibrator(Protocol):
    """What the builder needs of a calibrator of ours, besides handing it to TensorRT."""

    def raise_kept(self) -> None:
        """Raise what went wrong inside of TensorRT's calls.

        Raises:
            EdgeError: and whatever else a batch iterator or the upload raised.
        """


def served(table: Table, caps: Caps, *, dla: bool) -> Table:
    """``table`` as this TensorRT reads it: the header of its version, and of a calibrator that it has.

    MinMax keeps its class; everything else is served as Entropy2, the one class that DLA takes. Scales are scales:
    the class decides how they are found, and these are found already.

    Raises:
        DeviceError: this TensorRT reads no tables.
    """
    version = caps.table_version
    if version is None:
        raise DeviceError(f"{caps.title} reads no calibration table", hint="int8_route: explicit")
    keeps = table.header.algorithm == "minmax" and not dla and "minmax" in caps.calibrators
    return tables.retarget(table, version, algorithm="minmax" if keeps else "entropy2")


def serving(table: Table, caps: Caps, *, batch: int) -> Any:  # noqa: ANN401
    """A calibrator that serves ``table`` (see :func:`served`) and nothing else.

    Args:
        table: under the header of this TensorRT and the class that is made.
        caps: what the binding offers.
        batch: the batch size that TensorRT is told.
    """
    base = _base(caps, table.header.algorithm)
    content = tables.write(table)

    class Serving(base):  # type: ignore[misc, valid-type]
        """NVIDIA's interface over a finished table."""

        def __init__(self) -> None:
            base.__init__(self)
            self.asked = 0
            self.read = 0

        def get_batch_size(self) -> int:
            """Batch size; TensorRT 10 no longer asks."""
            return batch

        def get_batch(self, names: Sequence[str], *_: object) -> None:
            """TensorRT has refused the table and wants pictures: there are none."""
            self.asked += 1

        def read_calibration_cache(self, *_: object) -> bytes:
            """The whole table, every time."""
            self.read += 1
            return content

        def write_calibration_cache(self, cache: object, *_: object) -> None:
            """Not taken: see the module."""

        def raise_kept(self) -> None:
            """Raise if the table was refused."""
            if self.asked:
                raise ArtifactError(
                    f"{caps.title} refused the calibration table ({table.header.text}) and asked for pictures",
                    hint="edge table check; edge calibrate --force",
                )

    return Serving()


def feeding(feed: Feed, caps: Caps) -> Any:  # noqa: ANN401
    """A calibrator of the device's own that reads ``feed`` and keeps the table that TensorRT makes.

    Raises:
        DeviceError: this TensorRT has no such calibrator.
    """
    base = _base(caps, feed.algorithm)

    class Feeding(base):  # type: ignore[misc, valid-type]
        """NVIDIA's interface over an iterator of batches."""

        def __init__(self) -> None:
            base.__init__(self)
            self.consumed = 0
            self.kept: BaseException | None = None
            self.written: bytes | None = None
            self._ended = False

        def get_batch_size(self) -> int:
            return feed.batch

        def get_batch(self, names: Sequence[str], *_: object) -> list[int] | None:
            """Address of the next batch, or None at the end and after an exception."""
            if self._ended:
                return None
            try:
                return self._next(names)
            except BaseException as exc:  # noqa: BLE001 - raised again by raise_kept
                self._ended = True
                self.kept = exc
                return None

        def _next(self, names: Sequence[str]) -> list[int] | None:
            if len(names) != 1:
                raise DeviceError(f"TensorRT asks for {len(names)} inputs at once: {', '.join(names)}")
            array = next(feed.batches, None)
            if array is None:
                self._ended = True
                return None
            if array.shape[0] != feed.batch or array.dtype.name != "float32":
                what = f"a batch of {array.shape[0]} {array.dtype.name} pictures, TensorRT takes {feed.batch} float32"
                raise DataError(what, hint="calibrate with a number of pictures that the batch size divides")
            address = feed.memory.upload(array)
            self.consumed += 1
            return [int(address)]

        def read_calibration_cache(self, *_: object) -> None:
            """Nothing: the table is to be made from the pictures."""
            return None

        def write_calibration_cache(self, cache: Any, *_: object) -> None:  # noqa: ANN401
            """Keep the table. The buffer is TensorRT's own, so it is copied."""
            self.written = bytes(cache)

        # The next four are asked by the legacy calibrator alone.
        def get_quantile(self) -> float:
            return feed.quantile

        def get_regression_cutoff(self) -> float:
            return feed.cutoff

        def read_histogram_cache(self, *_: object) -> None:
            return None

        def write_histogram_cache(self, *_: object) -> None:
            return None

        def raise_kept(self) -> None:
            """Raise what ``get_batch`` met, or say that not all batches were taken."""
            if self.kept is not None:
                raise self.kept
            if self.consumed != feed.planned:
                raise _short(self.consumed, feed.planned)

        def table(self) -> Table:
            """The table that TensorRT made.

            Raises:
                DeviceError: it made none. ArtifactError: it is not a table.
            """
            if self.written is None:
                raise DeviceError(f"{caps.title} took {self.consumed} batches and wrote no calibration table")
            return tables.parse(self.written, where=f"{caps.title}'s calibration table")

    return Feeding()


def _short(consumed: int, planned: int) -> EdgeError:
    return DeviceError(
        f"TensorRT took {consumed} of {planned} calibration batches: its table would be of fewer pictures than asked",
        hint="run it again; if it stays so, calibrate with edge's own algorithms",
    )


def _base(caps: Caps, algorithm: Algorithm) -> Any:  # noqa: ANN401
    if algorithm not in caps.calibrators:
        known = ", ".join(caps.calibrators) or "none"
        raise DeviceError(f"{caps.title} has no {algorithm} calibrator (it has {known})", hint="int8_route: explicit")
    return getattr(capabilities.module(caps), capabilities.CALIBRATORS[algorithm])

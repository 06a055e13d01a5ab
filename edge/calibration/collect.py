"""Stream pictures through the FP32 network and count what its tensors hold.

Each worker thread decodes, preprocesses, runs and counts its own pictures, one at a time, with one ONNX Runtime thread:
that keeps memory at one picture's activations per thread, needs no queue, and scales as far as there are cores.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from edge.calibration.statistics import BINS, Statistics, TensorStatistics, exponent_of
from edge.errors import DataError, ModelError, require

if TYPE_CHECKING:
    Kernel = Callable[[NDArray[np.float32], np.float32, NDArray[np.int32]], None]

# Four interleaved histograms, so that neighbouring equal values do not wait for each other's store.
_LANES = 4
# A lane's bins are int32: they are added up before any of them can overflow.
_FLUSH_AT = 2**31 - 1


class Network(Protocol):
    """What runs the FP32 network: one input batch in, the watched tensors out, in a fixed order."""

    def __call__(self, batch: NDArray[np.float32]) -> Sequence[NDArray[np.float32]]:
        """Outputs for a float32 N×3×H×W batch."""
        ...


class _Lanes:
    """Counts of one tensor that are not yet in its statistics."""

    def __init__(self) -> None:
        self.counts = np.zeros((_LANES, 2 * BINS), np.int32)
        self.pending = 0

    def flush(self, tensor: TensorStatistics) -> None:
        if self.pending and tensor.counts is not None:
            tensor.counts += self.counts.sum(axis=0, dtype=np.int64)
            self.counts[:] = 0
            self.pending = 0


class Counter:
    """Counts batches into statistics. One per thread."""

    def __init__(self, names: Sequence[str], *, with_histogram: bool) -> None:
        self._statistics = Statistics.empty(names, with_histogram=with_histogram)
        self._lanes = {name: _Lanes() for name in names} if with_histogram else {}
        self._kernel = kernel() if with_histogram else None

    def statistics(self) -> Statistics:
        """Everything counted so far."""
        for name, lanes in self._lanes.items():
            lanes.flush(self._statistics.tensors[name])
        return self._statistics

    def add(self, values: Sequence[NDArray[np.float32]], *, pictures: int, what: str) -> None:
        """Count one batch: ``values`` in the order of the names; ``what`` names the pictures in an error.

        Raises:
            ModelError: a tensor holds NaN or infinity.
        """
        for (name, tensor), array in zip(self._statistics.tensors.items(), values, strict=True):
            if array.size:
                self._count(tensor, np.ascontiguousarray(array).reshape(-1), name=name, what=what)
        self._statistics.pictures += pictures

    def _count(self, tensor: TensorStatistics, flat: NDArray[np.float32], *, name: str, what: str) -> None:
        low, high = float(flat.min()), float(flat.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ModelError(
                f"tensor {name!r} holds NaN or infinity for {what}",
                hint="the FP32 network itself overflows on this picture: check the model and its preprocessing",
            )
        tensor.low = min(tensor.low, low)
        tensor.high = max(tensor.high, high)
        tensor.count += flat.size
        exponent = exponent_of(max(-low, high))
        if self._kernel is None:
            tensor.grow(exponent)
            return
        lanes = self._lanes[name]
        if exponent > tensor.exponent or lanes.pending + flat.size > _FLUSH_AT:
            lanes.flush(tensor)
            tensor.grow(exponent)
        self._kernel(flat, np.float32(np.ldexp(BINS, -tensor.exponent)), lanes.counts)
        lanes.pending += flat.size


@functools.cache
def kernel() -> Kernel:
    """The compiled counting loop: bin of x is trunc(x·scale), shifted by one for negative x.

    ``scale`` is a power of two, so the product is exact. Compiled once per installation (numba's on-disk cache); where
    no cache folder is writable, once per process.
    """
    numba = require("numba")

    def count(values: NDArray[np.float32], scale: np.float32, lanes: NDArray[np.int32]) -> None:
        bits = values.view(np.int32)
        whole = values.size - values.size % 4
        for i in range(0, whole, 4):
            lanes[0, np.uint32(BINS + np.int32(values[i] * scale) + (bits[i] >> 31))] += 1
            lanes[1, np.uint32(BINS + np.int32(values[i + 1] * scale) + (bits[i + 1] >> 31))] += 1
            lanes[2, np.uint32(BINS + np.int32(values[i + 2] * scale) + (bits[i + 2] >> 31))] += 1
            lanes[3, np.uint32(BINS + np.int32(values[i + 3] * scale) + (bits[i + 3] >> 31))] += 1
        for i in range(whole, values.size):
            lanes[0, np.uint32(BINS + np.int32(values[i] * scale) + (bits[i] >> 31))] += 1

    signature = "void(float32[::1], float32, int32[:, ::1])"
    try:
        return numba.njit(signature, nogil=True, cache=True)(count)  # type: ignore[no-any-return]
    except RuntimeError:
        return numba.njit(signature, nogil=True)(count)  # type: ignore[no-any-return]


def collect(
    pictures: Sequence[str],
    load: Callable[[int], NDArray[np.float32]],
    network: Network,
    names: Sequence[str],
    *,
    with_histogram: bool,
    batch: int = 1,
    threads: int = 1,
    advance: Callable[[int], None] = lambda _done: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Statistics | None:
    """Statistics of ``names`` over the pictures; None when ``should_stop`` said so before the end.

    ``load(i)`` gives picture i as float32 3×H×W; ``pictures`` are their names. ``network`` is called from several
    threads at once. ``advance`` hears how many more pictures are done.

    Raises:
        DataError: whatever ``load`` raises for a bad picture; the calibration never shortens itself.
        ModelError: NaN or infinity in a tensor.
    """
    if not pictures:
        raise DataError("no pictures to calibrate with")
    groups = [range(start, min(start + batch, len(pictures))) for start in range(0, len(pictures), batch)]
    position = iter(groups)
    guard = threading.Lock()
    failed = threading.Event()

    def take() -> range | None:
        with guard:
            return None if failed.is_set() or should_stop() else next(position, None)

    def work() -> Statistics:
        counter = Counter(names, with_histogram=with_histogram)
        try:
            while (group := take()) is not None:
                values = network(np.stack([load(i) for i in group]))
                what = pictures[group[0]] if len(group) == 1 else f"{pictures[group[0]]} … {pictures[group[-1]]}"
                counter.add(values, pictures=len(group), what=what)
                with guard:
                    advance(len(group))
        except BaseException:
            failed.set()
            raise
        return counter.statistics()

    with ThreadPoolExecutor(threads, thread_name_prefix="calibrate") as pool:
        parts = [future.result() for future in [pool.submit(work) for _ in range(min(threads, len(groups)))]]
    total = parts[0]
    for part in parts[1:]:
        total.merge(part)
    return total if total.pictures == len(pictures) else None

"""Stream pictures through the FP32 network and count what its tensors hold.

Each worker thread decodes, preprocesses, runs and counts its own pictures, one at a time, with one ONNX Runtime thread:
that keeps memory at one picture's activations per thread, needs no queue, and scales as far as there are cores.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge.calibration import counting_kernel
from edge.errors import DataError, ModelError
from edge.quantization import MAX_EXPONENT, Statistics, TensorStatistics, exponent_of


class CalibrationNetwork(Protocol):
    """What runs the FP32 network: one input batch in, the watched tensors out, in a fixed order."""

    def __call__(self, batch: NDArray[np.float32]) -> Sequence[NDArray[np.float32]]:
        """Outputs for a float32 N×3×H×W batch."""
        ...


class Counter:
    """Counts batches into ``statistics``. One per thread."""

    def __init__(self, names: Sequence[str], *, with_histogram: bool) -> None:
        self.statistics = Statistics.empty(names, with_histogram=with_histogram)

    def add(self, values: Sequence[NDArray[np.float32]], *, pictures: int, what: str) -> None:
        """Count one batch: ``values`` in the order of the names; ``what`` names the pictures in an error.

        Raises:
            ModelError: a tensor holds NaN or infinity.
        """
        for (name, tensor), array in zip(self.statistics.tensors.items(), values, strict=True):
            if array.size:
                # A network may compute in float16 inside; every such value is a float32 too.
                flat = np.ascontiguousarray(array, np.float32).reshape(-1)
                self._count(tensor, flat, name=name, what=what)
        self.statistics.pictures += pictures

    def _count(self, tensor: TensorStatistics, flat: NDArray[np.float32], *, name: str, what: str) -> None:
        seen, done = [tensor.low, tensor.high], 0
        # Ranges alone fit whatever is finite.
        exponent = tensor.exponent if tensor.counts is not None else MAX_EXPONENT
        while True:
            done += counting_kernel.count(flat[done:], tensor.counts, exponent=exponent, seen=seen)
            if done == flat.size:
                break
            largest = float(np.max(np.abs(flat[done:])))
            if not np.isfinite(largest):
                raise ModelError(
                    f"tensor {name!r} holds NaN or infinity for {what}",
                    hint="the FP32 network itself overflows on this picture: check the model and its preprocessing",
                )
            tensor.grow(exponent := exponent_of(largest))
        # Adding 0.0 turns -0.0 into 0.0: which of them comes first must not matter.
        tensor.low, tensor.high = seen[0] + 0.0, seen[1] + 0.0
        tensor.count += flat.size
        tensor.grow(exponent_of(max(-tensor.low, tensor.high)))


def collect(
    pictures: Sequence[str],
    load: Callable[[int], NDArray[np.float32]],
    network: CalibrationNetwork,
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
                what = pictures[group[0]] if len(group) == 1 else f"{pictures[group[0]]} … {pictures[group[-1]]}"
                # No name for the outputs: they must be gone before the next ones are made.
                counter.add(network(np.stack([load(i) for i in group])), pictures=len(group), what=what)
                with guard:
                    advance(len(group))
        except BaseException:
            failed.set()
            raise
        return counter.statistics

    with ThreadPoolExecutor(threads, thread_name_prefix="calibrate") as pool:
        parts = [future.result() for future in [pool.submit(work) for _ in range(min(threads, len(groups)))]]
    total = parts[0]
    for part in parts[1:]:
        total.merge(part)
    return total if total.pictures == len(pictures) else None

"""Accumulate histograms of a network's tensors over images.

Each worker thread decodes, preprocesses and runs its own images, one at a time with one ONNX Runtime thread, and adds
their tensors to its histograms. Memory stays at one image's activations per thread, and no queue is needed.

``numpy.bincount`` is the fastest exact way among maintained libraries: 4.7 ms per 1.2 million values on a loaded
2-core EPYC, against 5.8 (boost-histogram), 12.3 (fast-histogram) and 9.5 (OpenCV) in the same run.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge.errors import DataError, ModelError
from edge.quantization import BINS, Statistics, TensorStatistics, exponent_of

# Number of values whose bins are computed at a time: the temporary arrays stay in the second-level cache.
_BLOCK = 1 << 16


class Network(Protocol):
    """A function that runs the FP32 network: one input batch in, the watched tensors out, in a fixed order."""

    def __call__(self, batch: NDArray[np.float32]) -> Sequence[NDArray[np.float32]]:
        """Run the network on a float32 N×3×H×W batch."""
        ...


class Counter:
    """Accumulates batches into ``statistics``; one per thread."""

    def __init__(self, names: Sequence[str], *, with_histogram: bool) -> None:
        self.statistics = Statistics.empty(names, with_histogram=with_histogram)

    def add(self, values: Sequence[NDArray[np.float32]], *, pictures: int, what: str) -> None:
        """Add every value of one batch, whatever the meaning of a tensor's axes.

        Args:
            values: the tensors in the order of the names.
            pictures: number of images in the batch.
            what: their names, for error messages.

        Raises:
            ModelError: a tensor contains NaN or infinity.
        """
        for (name, tensor), array in zip(self.statistics.tensors.items(), values, strict=True):
            if array.size:
                # A network may compute in float16 inside; every such value is a float32 too.
                flat = np.ascontiguousarray(array, np.float32).reshape(-1)
                _count(tensor, flat, name=name, what=what)
        self.statistics.pictures += pictures


def _count(tensor: TensorStatistics, flat: NDArray[np.float32], *, name: str, what: str) -> None:
    low, high = float(flat.min()), float(flat.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ModelError(
            f"tensor {name!r} contains NaN or infinity for {what}",
            hint="the FP32 network itself overflows on this image: check the model and its preprocessing",
        )
    # Adding 0.0 turns -0.0 into 0.0: the result must not depend on their order.
    tensor.low, tensor.high = min(tensor.low, low) + 0.0, max(tensor.high, high) + 0.0
    tensor.count += flat.size
    tensor.grow(exponent_of(max(-tensor.low, tensor.high)))
    if tensor.counts is not None:
        add_to_bins(flat, tensor.counts, exponent=tensor.exponent)


def add_to_bins(flat: NDArray[np.float32], counts: NDArray[np.int64], *, exponent: int) -> None:
    """Add the bins of ``flat`` (contiguous) over (-2^exponent, 2^exponent) to ``counts`` (2·BINS).

    The factor is a power of two, so each product is exact; truncation towards zero finds the bin within its side, and
    the sign bit selects the side, for -0.0 too.
    """
    factor = np.float32(math.ldexp(BINS, -exponent))
    products = np.empty(min(_BLOCK, flat.size), np.float32)
    for start in range(0, flat.size, _BLOCK):
        values = flat[start : start + _BLOCK]
        product = np.multiply(values, factor, out=products[: values.size])
        bins = product.astype(np.int32)
        bins += values.view(np.int32) >> 31
        bins += BINS
        counts += np.bincount(bins, minlength=2 * BINS)


def collect(
    pictures: Sequence[str],
    load: Callable[[int], NDArray[np.float32]],
    network: Network,
    names: Sequence[str],
    *,
    with_histogram: bool,
    batch: int = 1,
    is_fixed: bool = False,
    threads: int = 1,
    advance: Callable[[int], None] = lambda _done: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Statistics | None:
    """Collect statistics of ``names`` over the images.

    Args:
        pictures: their names.
        load: returns image i as float32 3×H×W.
        network: called from several threads at once.
        names: the watched tensors.
        with_histogram: False collects ranges only.
        batch: images per call of the network.
        is_fixed: the network does not accept a smaller batch.
        threads: worker threads.
        advance: called with the number of newly processed images.
        should_stop: checked before each batch.

    Returns:
        The statistics; None when ``should_stop`` ended it early.

    Raises:
        DataError: ``load`` failed for an image; the calibration is never silently shortened.
        ModelError: a tensor contains NaN or infinity.
    """
    if not pictures:
        raise DataError("no images to calibrate with")
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
                arrays = [load(i) for i in group]
                if is_fixed and len(group) < batch:
                    counter.statistics.merge(_of_part(arrays, network, counter.statistics, batch=batch, what=what))
                else:
                    # No name for the outputs: they must be gone before the next ones are made.
                    counter.add(network(np.stack(arrays)), pictures=len(group), what=what)
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


def _of_part(
    arrays: list[NDArray[np.float32]], network: Network, like: Statistics, *, batch: int, what: str
) -> Statistics:
    """Compute statistics of fewer images than the network's batch; a tensor's batch may be on any axis.

    The batch is filled up with copies of the last image. A second batch of only that image gives their contribution.
    """
    names = list(like.tensors)
    with_histogram = all(tensor.counts is not None for tensor in like.tensors.values())
    filled, copies = (Counter(names, with_histogram=with_histogram) for _ in range(2))
    missing = batch - len(arrays)
    filled.add(network(np.stack(arrays + [arrays[-1]] * missing)), pictures=len(arrays), what=what)
    copies.add(network(np.stack([arrays[-1]] * batch)), pictures=0, what=what)
    for name, tensor in filled.statistics.tensors.items():
        _take_off(tensor, copies.statistics.tensors[name], missing=missing, batch=batch)
    return filled.statistics


def _take_off(tensor: TensorStatistics, copies: TensorStatistics, *, missing: int, batch: int) -> None:
    """Subtract ``missing`` of ``batch`` copies; a tensor whose size does not depend on the batch stays unchanged."""
    if copies.count % batch:
        return
    tensor.grow(copies.exponent)
    copies.grow(tensor.exponent)
    if tensor.counts is None or copies.counts is None:
        tensor.count -= copies.count * missing // batch
        return
    # A kernel may round one row of a batch differently from another: no bin becomes negative because of it.
    tensor.counts -= np.minimum(tensor.counts, copies.counts * missing // batch)
    tensor.count = int(tensor.counts.sum())

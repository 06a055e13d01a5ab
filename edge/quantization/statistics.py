"""Activation statistics that can be merged by addition, and their file.

Per tensor: minimum, maximum, count, and a signed histogram of 2·BINS bins over (-2^e, 2^e), where e is the smallest
exponent with max|x| < 2^e. Bin j of either side holds j·w <= |x| < (j+1)·w with w = 2^e / BINS. Because w is a power of
two, the product |x| / w is exact in float32, and doubling the range merges bins in pairs without moving any value: the
result for a set of images is the same bits whatever the batch size, the order, or the number of workers.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge.errors import ArtifactError

FORMAT = 1
BINS = 8192
# A tensor below 2^-100 is treated as zero: its bins would leave float32's normal range.
MIN_EXPONENT = -100
# Every finite float32 is below 2^128.
MAX_EXPONENT = 128

Counts = NDArray[np.int64]


class Histogram(msgspec.Struct, frozen=True):
    """Histogram of |x| from 0: ``counts[j]`` values are in [j·width, (j+1)·width)."""

    counts: Counts
    width: float
    absmax: float

    def coarsened(self, most_bins: int) -> Histogram:
        """Merge bins in pairs until the occupied part has at most ``most_bins``."""
        counts, width = self.counts, self.width
        used = self.used_bins
        while used > most_bins:
            counts, width, used = counts.reshape(-1, 2).sum(axis=1), width * 2, (used + 1) // 2
        return Histogram(counts, width, self.absmax)

    @property
    def used_bins(self) -> int:
        """Number of bins up to and including the last one that is not empty."""
        occupied = np.flatnonzero(self.counts)
        return int(occupied[-1]) + 1 if occupied.size else 0


class TensorStatistics(msgspec.Struct):
    """Statistics of one tensor; ``counts`` is None when only ranges were collected."""

    low: float
    high: float
    count: int
    exponent: int
    counts: Counts | None

    @classmethod
    def empty(cls, *, with_histogram: bool) -> TensorStatistics:
        """Make statistics of no values: the neutral element of :meth:`merge`."""
        counts = np.zeros(2 * BINS, np.int64) if with_histogram else None
        return cls(math.inf, -math.inf, 0, MIN_EXPONENT, counts)

    @property
    def absmax(self) -> float:
        """Largest |x|; 0 without values."""
        return max(-self.low, self.high, 0.0) if self.count else 0.0

    def grow(self, exponent: int) -> None:
        """Widen the range to at least ±2^exponent; this merges bins without moving any value."""
        steps = exponent - self.exponent
        if steps <= 0:
            return
        if self.counts is not None:
            self.counts = _widened(self.counts, steps)
        self.exponent = exponent

    def merge(self, other: TensorStatistics) -> None:
        """Add the statistics of ``other``."""
        self.grow(other.exponent)
        if self.counts is not None and other.counts is not None:
            steps = self.exponent - other.exponent
            self.counts += _widened(other.counts, steps) if steps else other.counts
        self.low = min(self.low, other.low)
        self.high = max(self.high, other.high)
        self.count += other.count

    def histogram(self) -> Histogram:
        """Histogram of |x|.

        Raises:
            ArtifactError: only ranges were collected.
        """
        if self.counts is None:
            raise ArtifactError("these statistics have ranges only", hint="calibrate again with --force")
        folded = self.counts[BINS:] + self.counts[BINS - 1 :: -1]
        return Histogram(folded, math.ldexp(1.0, self.exponent) / BINS, self.absmax)

    def clipped(self, low: float, high: float) -> TensorStatistics:
        """Return the exact statistics of min(max(x, low), high): a clipped value falls in the bin of its bound."""
        counts = None if self.counts is None else self.counts.copy()
        result = TensorStatistics(
            min(max(self.low, low), high), min(max(self.high, low), high), self.count, self.exponent, counts
        )
        # Every value goes to a bound that is beyond the range seen so far: the histogram must reach it.
        result.grow(exponent_of(result.absmax))
        counts = result.counts
        if counts is not None:
            first, last = result._bin(low), result._bin(high)
            counts[first] += counts[:first].sum()
            counts[:first] = 0
            counts[last] += counts[last + 1 :].sum()
            counts[last + 1 :] = 0
        return result

    def _bin(self, value: float) -> int:
        bound = math.ldexp(1.0, self.exponent)
        if value >= bound:
            return 2 * BINS - 1
        if value <= -bound:
            return 0
        step = math.floor(abs(value) * BINS / bound)
        return BINS - 1 - step if value < 0 else BINS + step


class Statistics(msgspec.Struct):
    """Statistics of every tensor, in network order, over ``pictures`` images."""

    tensors: dict[str, TensorStatistics]
    pictures: int

    @classmethod
    def empty(cls, names: Iterable[str], *, with_histogram: bool) -> Statistics:
        """Make statistics of no images."""
        return cls({name: TensorStatistics.empty(with_histogram=with_histogram) for name in names}, 0)

    def merge(self, other: Statistics) -> None:
        """Add the statistics of ``other`` for the same tensors."""
        for name, tensor in other.tensors.items():
            self.tensors[name].merge(tensor)
        self.pictures += other.pictures

    def to_bytes(self, *, compress: bool = True) -> bytes:
        """Encode as a ``.stats.npz`` file: the same statistics give the same bytes."""
        arrays: dict[str, NDArray[np.generic]] = {
            "format": np.array(FORMAT),
            "pictures": np.array(self.pictures),
            "names": np.frombuffer(msgspec.json.encode(list(self.tensors)), np.uint8),
            "ranges": np.array([(t.low, t.high) for t in self.tensors.values()], np.float64).reshape(-1, 2),
            "sizes": np.array([(t.count, t.exponent) for t in self.tensors.values()], np.int64).reshape(-1, 2),
        }
        counts = [t.counts for t in self.tensors.values() if t.counts is not None]
        if counts:
            arrays["counts"] = np.stack(counts)
        buffer = io.BytesIO()
        (np.savez_compressed if compress else np.savez)(buffer, allow_pickle=False, **arrays)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, *, where: Path) -> Statistics:
        """Decode a ``.stats.npz`` file. The sha256 in its manifest proves its origin.

        Raises:
            ArtifactError: the data is truncated, damaged, of another format, or inconsistent.
        """
        try:
            arrays = _read_arrays(data)
            found = int(arrays["format"])
            statistics = cls._from_arrays(arrays) if found == FORMAT else None
        except Exception as exc:  # numpy, zipfile and zlib raise a dozen kinds for one cause: damaged
            raise ArtifactError(
                f"not a statistics file: {exc}", where=where, hint="calibrate again with --force"
            ) from exc
        if statistics is None:
            raise ArtifactError(f"statistics format {found}; this edge reads format {FORMAT}", where=where)
        return statistics

    @classmethod
    def _from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> Statistics:
        names = msgspec.json.decode(arrays["names"].tobytes(), type=list[str])
        counts = arrays.get("counts")
        if counts is not None and counts.shape != (len(names), 2 * BINS):
            raise ValueError(f"histograms of shape {counts.shape} for {len(names)} tensors")
        if len(set(names)) < len(names):
            raise ValueError("a tensor occurs twice")
        tensors = {}
        for index, (name, (low, high), (count, exponent)) in enumerate(
            zip(names, arrays["ranges"], arrays["sizes"], strict=True)
        ):
            own = None if counts is None else counts[index].astype(np.int64)
            if own is not None and (int(own.sum()) != int(count) or int(own.min()) < 0):
                raise ValueError(f"{name}: the histogram's counts must be non-negative and add up to {int(count)}")
            tensors[name] = TensorStatistics(float(low), float(high), int(count), int(exponent), own)
        return cls(tensors, int(arrays["pictures"]))


def exponent_of(absmax: float) -> int:
    """Return the smallest e >= MIN_EXPONENT with absmax < 2^e."""
    return max(math.frexp(absmax)[1], MIN_EXPONENT) if absmax > 0 else MIN_EXPONENT


def _read_arrays(data: bytes) -> dict[str, NDArray[np.generic]]:
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        # NumPy stops reading at the last element, before zipfile would compare the checksum.
        if (damaged := file.zip.testzip()) is not None:
            raise ValueError(f"the checksum of {damaged} does not match")
        return {name: file[name] for name in file.files}


def _widened(counts: Counts, steps: int) -> Counts:
    """Return the same counts over a range that is 2^steps times as wide."""
    merged = np.zeros_like(counts)
    # At BINS-fold widening each side has one bin left: nothing merges further.
    factor = 1 << min(steps, BINS.bit_length() - 1)
    occupied = BINS // factor
    merged[BINS : BINS + occupied] = counts[BINS:].reshape(occupied, factor).sum(axis=1)
    merged[BINS - occupied : BINS] = counts[:BINS].reshape(occupied, factor).sum(axis=1)
    return merged

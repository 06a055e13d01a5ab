"""Statistics on their way between processes: only the bins that hold something, as narrow integers, in one row.

As they are, they take some megabytes per share, and copying those from worker to scheduler to client costs Dask more
than everything else it does. Packed they are about a third of that.
"""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge.quantization import BINS, Statistics, TensorStatistics


class Range(msgspec.Struct, frozen=True):
    """One tensor: its range, and which bins the row has of it; None where only ranges were collected."""

    low: float
    high: float
    count: int
    exponent: int
    bins: tuple[int, int] | None


class PackedStatistics(msgspec.Struct, frozen=True):
    """Packed statistics. ``row`` holds the occupied bins of all tensors, one after the other."""

    pictures: int
    tensors: dict[str, Range]
    row: NDArray[np.unsignedinteger]


def pack(statistics: Statistics) -> PackedStatistics:
    """The same statistics, small."""
    tensors: dict[str, Range] = {}
    pieces: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    for name, tensor in statistics.tensors.items():
        bins = None
        if tensor.counts is not None:
            occupied = np.flatnonzero(tensor.counts)
            bins = (int(occupied[0]), int(occupied[-1]) + 1) if occupied.size else (0, 0)
            pieces.append(tensor.counts[slice(*bins)])
        tensors[name] = Range(tensor.low, tensor.high, tensor.count, tensor.exponent, bins)
    row = np.concatenate(pieces)
    narrow = np.uint32 if row.size == 0 or int(np.max(row)) <= np.iinfo(np.uint32).max else np.uint64
    return PackedStatistics(statistics.pictures, tensors, row.astype(narrow))


def unpack(packed: PackedStatistics) -> Statistics:
    """The statistics that were packed, to the bit."""
    tensors, at = {}, 0
    for name, kept in packed.tensors.items():
        counts = None
        if kept.bins is not None:
            first, end = kept.bins
            counts = np.zeros(2 * BINS, np.int64)
            counts[first:end] = packed.row[at : at + end - first]
            at += end - first
        tensors[name] = TensorStatistics(kept.low, kept.high, kept.count, kept.exponent, counts)
    return Statistics(tensors, packed.pictures)

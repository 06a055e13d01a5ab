"""Chunks dealt out to workers: large shares first, small ones towards the end, so that all finish together."""

from __future__ import annotations

import itertools
from collections import deque

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge.calibration.collection import Chunks
from edge.errors import DeviceError
from edge.media import Picture
from edge.quantization import BINS, Statistics, TensorStatistics

# A worker starts with a quarter of its part; statistics of a share are some megabytes, whatever its size.
_PIECES = 4
# Fewer pictures per share for few workers: they are done sooner, so the bar moves, and less is lost with a worker.
_MOST_CHUNKS = (4, 16)
_DEATHS = 3


class WorkItem(msgspec.Struct, frozen=True):
    """Some chunks for one worker: their numbers, and all their pictures in one row."""

    chunks: tuple[int, ...]
    pictures: tuple[Picture, ...]


class WorkQueue:
    """Work items that no worker has yet. Not for use from several threads."""

    def __init__(self, chunks: Chunks) -> None:
        self._chunks = chunks
        self._fresh = deque(chunks)
        self._back: deque[WorkItem] = deque()
        self._deaths: dict[tuple[int, ...], int] = {}

    def take(self, workers: int) -> WorkItem | None:
        """The next share where ``workers`` are at work, or None when everything is handed out."""
        if self._back:
            return self._back.popleft()
        if not self._fresh:
            return None
        most = min(max(workers, _MOST_CHUNKS[0]), _MOST_CHUNKS[1])
        size = min(max(len(self._fresh) // (_PIECES * workers), 1), most)
        numbers = tuple(self._fresh.popleft() for _ in range(size))
        return WorkItem(numbers, tuple(itertools.chain.from_iterable(self._chunks[number] for number in numbers)))

    def give_back(self, share: WorkItem) -> None:
        """Hand a share out again: its worker died.

        Raises:
            DeviceError: it is the third worker that died of this share.
        """
        deaths = self._deaths[share.chunks] = self._deaths.get(share.chunks, 0) + 1
        if deaths >= _DEATHS:
            raise died(share)
        self._back.append(share)


def died(share: WorkItem) -> DeviceError:
    """The error for a share that no worker survived."""
    first, last = share.pictures[0].where, share.pictures[-1].where
    return DeviceError(
        f"{_DEATHS} workers died while they counted the same {len(share.pictures)} pictures",
        where=f"{first} … {last}",
        hint="out of memory? (dmesg says so) fewer --workers; otherwise --workers 1 on this set narrows it down",
    )


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

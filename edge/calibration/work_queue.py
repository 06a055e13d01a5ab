"""Chunks dealt out to workers: large shares first, small ones towards the end, so that all finish together."""

from __future__ import annotations

import itertools
from collections import deque

import msgspec

from edge.calibration.collection import Chunks
from edge.errors import DeviceError
from edge.media import Picture

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

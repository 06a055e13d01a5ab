"""Calibrate with worker processes of this machine, each with its own pipe.

:class:`concurrent.futures.ProcessPoolExecutor` is unsuitable because its workers share their queues: if one is killed
while sending, the parent reads for ever and all other workers are ended, and workers survive a killed parent. Here a
dead worker ends one pipe and costs one work item; only that worker is replaced.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge.calibration.collection import Chunks, PartialStatistics, StatisticsJob, count
from edge.errors import DeviceError, EdgeError
from edge.events import Listener, Note
from edge.media import Picture
from edge.quantization import BINS, Statistics, TensorStatistics

# A worker starts with a quarter of its part; statistics of a share are some megabytes, whatever its size.
_PIECES = 4
# Fewer images per item for few workers: they finish sooner, so the bar moves, and less is lost with a worker.
_MOST_CHUNKS = (4, 16)
_DEATHS = 3


class WorkItem(msgspec.Struct, frozen=True):
    """Some chunks for one worker: their numbers, and the list of all their images."""

    chunks: tuple[int, ...]
    pictures: tuple[Picture, ...]


class WorkQueue:
    """Work items that are not assigned yet. Not thread-safe."""

    def __init__(self, chunks: Chunks) -> None:
        self._chunks = chunks
        self._fresh = deque(chunks)
        self._back: deque[WorkItem] = deque()
        self._deaths: dict[tuple[int, ...], int] = {}

    def take(self, workers: int) -> WorkItem | None:
        """Return the next work item for ``workers`` active workers, or None if all are assigned."""
        if self._back:
            return self._back.popleft()
        if not self._fresh:
            return None
        most = min(max(workers, _MOST_CHUNKS[0]), _MOST_CHUNKS[1])
        size = min(max(len(self._fresh) // (_PIECES * workers), 1), most)
        numbers = tuple(self._fresh.popleft() for _ in range(size))
        return WorkItem(numbers, tuple(itertools.chain.from_iterable(self._chunks[number] for number in numbers)))

    def give_back(self, share: WorkItem) -> None:
        """Assign an item again because its worker died.

        Raises:
            DeviceError: this is the third worker that died with this item.
        """
        deaths = self._deaths[share.chunks] = self._deaths.get(share.chunks, 0) + 1
        if deaths >= _DEATHS:
            raise died(share)
        self._back.append(share)


def died(share: WorkItem) -> DeviceError:
    """Return the error for an item that no worker survived."""
    first, last = share.pictures[0].where, share.pictures[-1].where
    return DeviceError(
        f"{_DEATHS} workers died while processing the same {len(share.pictures)} images",
        where=f"{first} … {last}",
        hint="if dmesg shows a lack of memory, use fewer --workers; otherwise find the image with --workers 1",
    )


class Range(msgspec.Struct, frozen=True):
    """Range of one tensor, and its bins in the packed row; None if only ranges were collected."""

    low: float
    high: float
    count: int
    exponent: int
    bins: tuple[int, int] | None


class PackedStatistics(msgspec.Struct, frozen=True):
    """Packed statistics. ``row`` has the occupied bins of all tensors, one after the other."""

    pictures: int
    tensors: dict[str, Range]
    row: NDArray[np.unsignedinteger]


def pack(statistics: Statistics) -> PackedStatistics:
    """Pack statistics into a small form."""
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
    """Unpack statistics exactly."""
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


# The delay until a request to stop is seen.
_POLL_S = 0.2
_EXIT_S = 2.0


class Processes:
    """An executor of ``workers`` processes with one thread each.

    They are started with "spawn", because forking a process with threads is unsafe. A script that uses this therefore
    needs ``if __name__ == "__main__":``.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers

    @property
    def threads(self) -> int:
        """Return 1: there are several processes instead."""
        return 1

    def count(
        self,
        task: StatisticsJob,
        chunks: Chunks,
        *,
        advance: Callable[[int], None],
        listen: Listener,
        should_stop: Callable[[], bool],
    ) -> Generator[PartialStatistics, None, None]:
        """Work like :meth:`.collection.Executor.count`; a dead worker is replaced, and its item is processed again."""
        shares = WorkQueue(chunks)
        idle: list[_Worker] = []
        busy: dict[object, tuple[_Worker, WorkItem]] = {}

        def hand_out() -> None:
            while idle and (share := shares.take(self._workers)) is not None:
                worker = idle.pop()
                worker.send(share.pictures)
                busy[worker.pipe] = worker, share

        with contextlib.ExitStack() as ends:
            idle += [_started(task, ends) for _ in range(min(self._workers, len(chunks)))]
            while not should_stop():
                hand_out()
                if not busy:
                    return
                for pipe in wait([worker.pipe for worker, _ in busy.values()], _POLL_S):
                    worker, share = busy.pop(pipe)
                    answer = worker.receive()
                    if answer is not None:
                        idle.append(worker)
                        # First of all: unpickling and adding up take time.
                        hand_out()
                        statistics = _statistics(answer)
                        advance(len(share.pictures))
                        yield PartialStatistics(share.chunks, statistics)
                    elif not should_stop():
                        text = f"a worker process died ({worker.cause()})"
                        listen(Note(f"{text}; its {len(share.pictures)} images are processed again", "warning"))
                        shares.give_back(share)
                        idle.append(_started(task, ends))


class _Worker:
    """One worker process, as seen by the parent."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, there = context.Pipe()
        self._process = context.Process(target=_work, args=(there,), name="edge-calibrate", daemon=True)
        try:
            with _no_interrupt():
                self._process.start()
        except OSError as exc:
            raise DeviceError(f"cannot start a process: {exc.strerror or exc}", hint="fewer --workers") from exc
        finally:
            # The only other copy is the worker's: when it is closed, this end is notified.
            there.close()

    def send(self, message: object) -> None:
        """Send the next item to the worker."""
        # A dead worker is noticed when its answer is received.
        with contextlib.suppress(OSError):
            self.pipe.send(message)

    def receive(self) -> bytes | None:
        """Return the worker's pickled answer; None if it died."""
        try:
            return self.pipe.recv_bytes()
        except (EOFError, OSError):
            return None

    def cause(self) -> str:
        """Return the reason why the process ended."""
        self._process.join(_EXIT_S)
        code = self._process.exitcode
        if code is None:
            return "its pipe broke"
        known = {-number.value: number.name for number in signal.Signals}
        return known.get(code, f"exit code {code}")

    def end(self) -> None:
        """End the process at once: it has nothing to save."""
        self.pipe.close()
        self._process.kill()
        self._process.join()


def _started(task: StatisticsJob, ends: contextlib.ExitStack) -> _Worker:
    worker = _Worker()
    ends.callback(worker.end)
    # Not as an argument of the process: data that exceeds that pipe blocks for ever if the process dies early.
    worker.send(task)
    return worker


def _statistics(answer: bytes) -> Statistics:
    content = pickle.loads(answer)  # noqa: S301 - from a process of our own
    if isinstance(content, EdgeError):
        raise content
    if not isinstance(content, PackedStatistics):
        raise RuntimeError(f"a worker process failed\n\n{content}")  # noqa: TRY004 - a bug, with its traceback
    return unpack(content)


@contextlib.contextmanager
def _no_interrupt() -> Iterator[None]:
    """Start processes that never see Ctrl-C, not even before their first line of Python."""
    # Python before 3.13 unblocks SIGINT when it starts its own helper process.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# what runs in the worker


def _work(pipe: Connection) -> None:
    """Process the items from the pipe until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, OSError):
        task: StatisticsJob = pipe.recv()
        while True:
            pipe.send_bytes(_answer(task, pipe.recv()))


def _answer(task: StatisticsJob, pictures: Sequence[Picture]) -> bytes:
    """Return pickled statistics, an EdgeError, or the traceback text of any other exception."""
    try:
        statistics = count(task, pictures)
        content: object = pack(statistics) if statistics else "statistics collection stopped unexpectedly"
    except EdgeError as exc:
        content = exc
    except Exception:  # noqa: BLE001 - the parent raises it
        content = traceback.format_exc()
    return pickle.dumps(content, pickle.HIGHEST_PROTOCOL)


def _end_with_parent() -> None:
    """End this worker when its parent dies, even in the middle of an image: a killed parent cannot end its workers."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

"""Statistics of many random subsets of one set of pictures, for about the cost of collecting the set once.

The subsets of one seed are nested: the first 50, 100, 200 pictures of one random order. Statistics merge by addition,
so each picture runs through the network once and is added to one segment (0-50, 50-100, 100-200 …) of each seed; a
subset is the sum of its seed's first segments. Pictures in the same segments of all seeds are collected together. A
further seed costs memory (one set of histograms per size: 131 kB per tensor) and additions, but no other pass.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

import msgspec

from edge.calibration import collection
from edge.errors import UsageError
from edge.events import Listener, Progress, ignore_events
from edge.media import Picture
from edge.quantization import Statistics

# Pictures that are counted into one set of histograms before it is added to its segments.
_UNIT = 16

Segment = tuple[int, int]  # seed, index of the size at which the picture comes in


class Subset(msgspec.Struct, frozen=True):
    """``pictures`` pictures drawn with ``seed``; the whole set has no seed."""

    pictures: int
    seed: int | None


class SubsetPlan(msgspec.Struct, frozen=True):
    """The segments of each picture; ``units`` are indices into the pictures, with their segments."""

    subsets: list[Subset]
    segments: dict[Subset, list[Segment]]
    units: list[tuple[list[int], list[Segment]]]

    @property
    def counted(self) -> int:
        """Number of pictures that are in at least one subset."""
        return sum(len(members) for members, _segments in self.units)


def order(digests: Sequence[str], seed: int) -> list[int]:
    """Indices of ``digests`` in the random order of ``seed``.

    Sorted by sha256 of seed and digest: the same on every machine, whatever the order of the files, and a picture that
    is added later changes nothing about the order of the others.
    """
    seen: dict[str, int] = {}
    keys = []
    for index, digest in enumerate(digests):
        # The second of two equal pictures gets a place of its own.
        again = seen[digest] = seen.get(digest, -1) + 1
        keys.append((hashlib.sha256(f"{seed} {digest} {again}".encode()).hexdigest(), index))
    return [index for _key, index in sorted(keys)]


def draw(digests: Sequence[str], *, sizes: Sequence[int], seeds: int) -> SubsetPlan:
    """Subsets of every size with the seeds 1 to ``seeds``, smallest first; the whole set is there once.

    Raises:
        UsageError: no seed, no size, or a size below 1 or above the number of pictures.
    """
    total = len(digests)
    if seeds < 1:
        raise UsageError(f"{seeds} seeds: at least 1 is needed", hint="--seeds 3")
    wanted = sorted(set(sizes))
    if not wanted or wanted[0] < 1:
        raise UsageError("a number of pictures must be at least 1", hint="--pictures 50,100,all")
    if wanted[-1] > total:
        raise UsageError(
            f"{wanted[-1]} pictures are asked for, and there are {total}",
            hint=f"--pictures …,{total}, or --pictures all",
        )
    found: dict[Subset, list[Segment]] = {}
    places: list[list[Segment]] = [[] for _ in range(total)]
    for seed in range(1, seeds + 1):
        whole = wanted[-1] == total
        # Everybody's last segment together is the whole set: the first seed's will do.
        own = wanted if seed == 1 or not whole else wanted[:-1]
        for step, size in enumerate(own):
            subset = Subset(size, None if size == total else seed)
            found[subset] = [(seed, k) for k in range(step + 1)]
        ranks = order(digests, seed)
        for rank, index in enumerate(ranks):
            first = next((k for k, size in enumerate(own) if rank < size), None)
            if first is not None:
                places[index].append((seed, first))
    together: dict[tuple[Segment, ...], list[int]] = {}
    for index, segments in enumerate(places):
        if segments:
            together.setdefault(tuple(segments), []).append(index)
    units = [
        (members[start : start + _UNIT], list(segments))
        for segments, members in sorted(together.items())
        for start in range(0, len(members), _UNIT)
    ]
    return SubsetPlan(sorted(found, key=lambda s: (s.pictures, s.seed or 0)), found, units)


def count(
    task: collection.StatisticsJob,
    pictures: Sequence[Picture],
    drawn: SubsetPlan,
    *,
    threads: int,
    listen: Listener = ignore_events,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[Subset, Statistics]] | None:
    """Statistics of each subset, one after the other; None when ``should_stop`` ended it early.

    What is yielded grows into the next subset of its seed: use it before asking for the next. ``task.threads`` must be
    1: here the threads share out units of pictures.

    Raises:
        DataError, ModelError: as :func:`edge.calibration.collection.count`.
    """
    with_histogram = task.needs == "histogram"
    names = {segment for _members, segments in drawn.units for segment in segments}
    totals = {name: Statistics.empty(task.watched, with_histogram=with_histogram) for name in sorted(names)}
    guards = {name: threading.Lock() for name in totals}
    stop = threading.Event()

    def work(members: list[int], segments: list[Segment]) -> int:
        part = collection.count(
            task, [pictures[i] for i in members], should_stop=lambda: stop.is_set() or should_stop()
        )
        if part is None:
            return 0
        for name in segments:
            with guards[name]:
                totals[name].merge(part)
        return len(members)

    done = 0
    with ThreadPoolExecutor(threads, thread_name_prefix="sweep") as pool:
        # The largest first, so that no thread is left alone with one at the end.
        waiting = [pool.submit(work, *unit) for unit in sorted(drawn.units, key=lambda unit: -len(unit[0]))]
        try:
            for future in as_completed(waiting):
                done += future.result()
                listen(Progress("count", done, drawn.counted))
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return _grown(drawn, totals) if done == drawn.counted else None


def _grown(drawn: SubsetPlan, totals: Mapping[Segment, Statistics]) -> Iterator[tuple[Subset, Statistics]]:
    by_seed: dict[int, list[Subset]] = {}
    for subset in drawn.subsets:
        by_seed.setdefault(drawn.segments[subset][0][0], []).append(subset)
    for subsets in by_seed.values():
        running: Statistics | None = None
        for subset in subsets:
            part = totals[drawn.segments[subset][-1]]
            if running is None:
                running = part
            else:
                running.merge(part)
            yield subset, running

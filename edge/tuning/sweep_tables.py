"""Make the calibration table of every configuration of a sweep with one pass over the images."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import msgspec

from edge.artifacts import store
from edge.calibration import HEADER_VERSION, cache_keys, collection
from edge.config import Profile
from edge.errors import UsageError
from edge.events import Listener, Progress, ignore_events
from edge.media import Picture, Pictures
from edge.model import onnx_model
from edge.quantization import Algorithm, Statistics, Table, algorithms, calibration_table
from edge.tuning.sweep_comparison import Configuration

# Images per set of histograms before it is added to its segments.
_UNIT = 16

Segment = tuple[int, int]  # seed, index of the size at which the picture comes in


class Subset(msgspec.Struct, frozen=True):
    """``pictures`` images drawn with ``seed``; the whole set has no seed."""

    pictures: int
    seed: int | None


class SubsetPlan(msgspec.Struct, frozen=True):
    """The segments of each image; ``units`` are indices of images, with their segments."""

    subsets: list[Subset]
    segments: dict[Subset, list[Segment]]
    units: list[tuple[list[int], list[Segment]]]

    @property
    def counted(self) -> int:
        """Number of images in at least one subset."""
        return sum(len(members) for members, _segments in self.units)


def order(digests: Sequence[str], seed: int) -> list[int]:
    """Return the indices of ``digests`` in the random order of ``seed``.

    The order is by sha256 of seed and digest: it is the same on every machine and for any order of the files, and an
    added image does not change the order of the others.
    """
    seen: dict[str, int] = {}
    keys = []
    for index, digest in enumerate(digests):
        # The second of two equal images gets its own position.
        again = seen[digest] = seen.get(digest, -1) + 1
        keys.append((hashlib.sha256(f"{seed} {digest} {again}".encode()).hexdigest(), index))
    return [index for _key, index in sorted(keys)]


def draw(digests: Sequence[str], *, sizes: Sequence[int], seeds: int) -> SubsetPlan:
    """Plan subsets of every size with the seeds 1 to ``seeds``, smallest first; the whole set occurs once.

    Raises:
        UsageError: there is no seed or size, or a size is below 1 or above the number of images.
    """
    total = len(digests)
    if seeds < 1:
        raise UsageError(f"{seeds} seeds: at least 1 is needed", hint="--seeds 3")
    wanted = sorted(set(sizes))
    if not wanted or wanted[0] < 1:
        raise UsageError("the number of images must be at least 1", hint="--pictures 50,100,all")
    if wanted[-1] > total:
        raise UsageError(
            f"{wanted[-1]} images are requested, but there are only {total}",
            hint=f"--pictures …,{total}, or --pictures all",
        )
    found: dict[Subset, list[Segment]] = {}
    places: list[list[Segment]] = [[] for _ in range(total)]
    for seed in range(1, seeds + 1):
        whole = wanted[-1] == total
        # The last segments of all seeds are the same whole set: use the first seed's.
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
    """Yield the statistics of each subset, one after the other; stop early if ``should_stop`` returns True.

    The yielded object grows into the next subset of its seed: use it before requesting the next. ``task.threads`` must
    be 1, because here the threads work on different images.

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
        # The largest first, so that no thread has one left at the end.
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


ConfigurationTables = list[tuple[Configuration, Table]]
# Default numbers of images.
SIZES = (50, 100, 200, 400)


class Candidate(msgspec.Struct, frozen=True):
    """An algorithm with its parameters; ``label`` is its form on the command line."""

    label: str
    algorithm: Algorithm
    parameters: dict[str, float]


class SweepSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of a sweep: ``sizes`` are numbers of images, ``seeds`` is the number of subsets drawn for each."""

    candidates: list[Candidate]
    sizes: list[int]
    seeds: int = 3
    threads: int | None = None


def candidates(words: Sequence[str]) -> list[Candidate]:
    """Parse algorithms like :func:`edge.quantization.algorithms.read`; an empty list means every algorithm.

    Raises:
        UsageError: an algorithm or parameter is unknown, a value is not a number, or an entry is repeated.
    """
    found: dict[tuple[str, tuple[tuple[str, float], ...]], Candidate] = {}
    for word in words or list(algorithms.REGISTRY):
        name, parameters = algorithms.read(word)
        chosen, complete = algorithms.find(name, parameters)
        same = (name, tuple(sorted(complete.items())))
        if same in found:
            raise UsageError(f"{word!r} is given twice", where="--algorithm")
        found[same] = Candidate(word.strip(), chosen, complete)
    return list(found.values())


def sizes(words: Sequence[str], total: int) -> list[int]:
    """Parse numbers of images, including ``all``; the default is those of 50, 100, 200, 400 that exist, and all.

    Raises:
        UsageError: a value is not a number above 0, or exceeds ``total``.
    """
    if not words:
        return sorted({*(size for size in SIZES if size < total), total})
    found = set()
    for word in words:
        if word.strip() != "all" and not (word.strip().isdecimal() and int(word) > 0):
            raise UsageError(f"{word!r} is not a number of images", where="--pictures", hint="--pictures 50,100,all")
        found.add(total if word.strip() == "all" else int(word))
    if max(found) > total:
        raise UsageError(
            f"{max(found)} images requested, only {total} available", where="--pictures", hint="--pictures all"
        )
    return sorted(found)


class SweepTables:
    """Makes the table of every algorithm, number of images and seed; ``seconds`` has the duration of each stage."""

    def __init__(
        self,
        profile: Profile,
        model: onnx_model.Model,
        pictures: Pictures,
        settings: SweepSettings,
        *,
        threads: int,
        listen: Listener,
        should_stop: Callable[[], bool],
    ) -> None:
        self.seconds: dict[str, float] = {}
        # The sweep compares algorithms on the user's unprepared network.
        plain = msgspec.structs.replace(profile.quantization, recipe=cache_keys.NO_RECIPE)
        profile = msgspec.structs.replace(profile, quantization=plain)
        self._profile, self._model, self._pictures, self._settings = profile, model, pictures, settings
        self._threads, self._listen, self._should_stop = threads, listen, should_stop
        self._graph = onnx_model.folded(model.path, model.outputs).graph
        self._plan = collection.plan(self._graph, model.activations)
        needs = {candidate.algorithm.needs for candidate in settings.candidates}
        self._task = collection.StatisticsJob(
            str(model.path.absolute()), model.sha256, profile.preprocess, profile.input, tuple(self._plan.watched),
            "histogram" if "histogram" in needs else "ranges", 1, model.outputs,
        )  # fmt: skip

    def make(self, cache: Path, digest: str) -> ConfigurationTables | None:
        """Make every configuration with its table; return None if stopped.

        Args:
            cache: folder of the statistics stored by ``edge calibrate``.
            digest: Digest of the set of images.
        """
        at = time.monotonic()
        drawn = draw(
            [picture.sha256 for picture in self._pictures], sizes=self._settings.sizes, seeds=self._settings.seeds
        )
        if drawn.subsets == [Subset(len(self._pictures), None)]:
            whole = self._whole(cache, digest)
            counted = None if whole is None else iter([(drawn.subsets[0], whole)])
        else:
            counted = count(
                self._task, list(self._pictures), drawn,
                threads=self._threads, listen=self._listen, should_stop=self._should_stop,
            )  # fmt: skip
        if counted is None:
            return None
        self.seconds["count"] = time.monotonic() - at
        at = time.monotonic()
        found: ConfigurationTables = []
        for subset, statistics in counted:
            found += self._calibrated(subset, statistics)
            done = len(found) // len(self._settings.candidates)
            self._listen(Progress("tables", done, len(drawn.subsets), unit="sets of images"))
        self.seconds["tables"] = time.monotonic() - at
        return found

    def _whole(self, cache: Path, digest: str) -> Statistics | None:
        """Return the statistics of all images, collected and stored like those of ``edge calibrate``."""
        path = cache_keys.table_path(self._profile, cache)
        key = {**cache_keys.table_key(self._profile), "images": digest}
        with store.lock(path):
            observed = collection.collect_statistics(
                self._profile, self._model, self._plan, self._pictures,
                needs=self._task.needs, cache=path.parent, key=key, threads=self._threads,
                listen=self._listen, should_stop=self._should_stop,
            )  # fmt: skip
        return None if observed is None else observed.statistics

    def _calibrated(self, subset: Subset, statistics: Statistics) -> ConfigurationTables:
        complete = self._plan.complete(statistics)

        def make(candidate: Candidate) -> tuple[Configuration, Table]:
            ranges = algorithms.ranges(complete, candidate.algorithm, candidate.parameters)
            table = calibration_table.from_ranges(
                collection.shared_ranges(self._graph, ranges),
                algorithm=candidate.algorithm.table_name, trt_version=HEADER_VERSION,
            )  # fmt: skip
            digest = store.canonical_digest(table.bits)
            return Configuration(
                algorithm=candidate.label, pictures=subset.pictures, seed=subset.seed, table=digest
            ), table  # fmt: skip

        with ThreadPoolExecutor(self._threads) as pool:
            return list(pool.map(make, self._settings.candidates))

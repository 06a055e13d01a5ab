"""The configurations of a sweep, and the calibration table of every configuration, with one pass over the pictures."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from edge.artifacts import store
from edge.calibration import HEADER_VERSION, cache_keys, collection, watch_plan
from edge.config import Profile
from edge.errors import UsageError
from edge.events import Listener, Progress
from edge.media import Pictures
from edge.model import onnx_model
from edge.quantization import Algorithm, Statistics, Table, algorithms, calibration_table
from edge.tuning import subsets
from edge.tuning.subsets import Subset
from edge.tuning.sweep_comparison import Configuration

ConfigurationTables = list[tuple[Configuration, Table]]
# Numbers of pictures that are tried where the user names none.
SIZES = (50, 100, 200, 400)


class Candidate(msgspec.Struct, frozen=True):
    """An algorithm with its parameters; ``label`` is how the user would write it."""

    label: str
    algorithm: Algorithm
    parameters: dict[str, float]


class SweepSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of a sweep: ``sizes`` are numbers of pictures, ``seeds`` how many subsets of each are drawn."""

    candidates: list[Candidate]
    sizes: list[int]
    seeds: int = 3
    threads: int | None = None


def candidates(words: Sequence[str]) -> list[Candidate]:
    """Read words as :func:`edge.quantization.algorithms.read` does; no word means every algorithm.

    Raises:
        UsageError: no such algorithm or parameter, not a number, or the same one twice.
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
    """Read numbers of pictures, ``all`` among them; no word means those of 50, 100, 200, 400 that there are, and all.

    Raises:
        UsageError: not a number above 0, or more than ``total``.
    """
    if not words:
        return sorted({*(size for size in SIZES if size < total), total})
    found = set()
    for word in words:
        if word.strip() != "all" and not (word.strip().isdecimal() and int(word) > 0):
            raise UsageError(f"{word!r} is not a number of pictures", where="--pictures", hint="--pictures 50,100,all")
        found.add(total if word.strip() == "all" else int(word))
    if max(found) > total:
        raise UsageError(
            f"{max(found)} pictures requested, only {total} available", where="--pictures", hint="--pictures all"
        )
    return sorted(found)


class SweepTables:
    """Makes the table of every algorithm, number of pictures and seed; ``seconds`` says how long each stage took."""

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
        # The sweep compares algorithms on the user's own network.
        plain = msgspec.structs.replace(profile.quantization, recipe=cache_keys.NO_RECIPE)
        profile = msgspec.structs.replace(profile, quantization=plain)
        self._profile, self._model, self._pictures, self._settings = profile, model, pictures, settings
        self._threads, self._listen, self._should_stop = threads, listen, should_stop
        self._graph = onnx_model.folded(model.path, model.outputs).graph
        self._plan = watch_plan.plan(self._graph, model.activations)
        needs = {candidate.algorithm.needs for candidate in settings.candidates}
        self._task = collection.StatisticsJob(
            str(model.path.absolute()), model.sha256, profile.preprocess, profile.input, tuple(self._plan.watched),
            "histogram" if "histogram" in needs else "ranges", 1, model.outputs,
        )  # fmt: skip

    def make(self, cache: Path, digest: str) -> ConfigurationTables | None:
        """Every configuration with its table; None when stopped.

        Args:
            cache: Folder of the statistics that ``edge calibrate`` keeps.
            digest: Digest of the set of pictures.
        """
        at = time.monotonic()
        drawn = subsets.draw(
            [picture.sha256 for picture in self._pictures], sizes=self._settings.sizes, seeds=self._settings.seeds
        )
        if drawn.subsets == [Subset(len(self._pictures), None)]:
            whole = self._whole(cache, digest)
            counted = None if whole is None else iter([(drawn.subsets[0], whole)])
        else:
            counted = subsets.count(
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
            self._listen(Progress("tables", done, len(drawn.subsets), unit="sets of pictures"))
        self.seconds["tables"] = time.monotonic() - at
        return found

    def _whole(self, cache: Path, digest: str) -> Statistics | None:
        """Statistics of all pictures as ``edge calibrate`` collects and keeps them."""
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
                watch_plan.shared_ranges(self._graph, ranges),
                algorithm=candidate.algorithm.table_name, trt_version=HEADER_VERSION,
            )  # fmt: skip
            digest = store.canonical_digest(table.bits)
            return Configuration(
                algorithm=candidate.label, pictures=subset.pictures, seed=subset.seed, table=digest
            ), table  # fmt: skip

        with ThreadPoolExecutor(self._threads) as pool:
            return list(pool.map(make, self._settings.candidates))

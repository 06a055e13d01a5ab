"""From pictures to the table of every configuration: one pass over the pictures, and the comparison of batches."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from edge.artifacts import store
from edge.calibration import HEADER_VERSION, cache_keys, collection, watch_plan
from edge.config import Profile
from edge.events import Listener, Note, Progress
from edge.media import Pictures
from edge.model import onnx_model
from edge.quantization import Statistics, Table, algorithms, calibration_table
from edge.tuning import subsets
from edge.tuning.subsets import Subset
from edge.tuning.sweep_comparison import Configuration
from edge.tuning.sweep_record import BatchCheck
from edge.tuning.sweep_settings import Candidate, SweepSettings

Made = list[tuple[Configuration, Table]]


class Calibrations:
    """From pictures to tables."""

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
        self._profile, self._model, self._pictures, self._settings = profile, model, list(pictures), settings
        self._set = pictures
        self._threads, self._listen, self._should_stop = threads, listen, should_stop
        self._graph = onnx_model.read(model.path, model.outputs).graph
        self._plan = watch_plan.plan(self._graph, model.activations)
        needs = {candidate.algorithm.needs for candidate in settings.candidates}
        self._task = collection.StatisticsJob(
            str(model.path.absolute()), model.sha256, profile.preprocess, profile.input, tuple(self._plan.watched),
            "histogram" if "histogram" in needs else "ranges", 1, model.outputs,
        )  # fmt: skip
        self._batch = model.fixed_batch or 1

    def tables(self, cache: Path, digest: str) -> tuple[Made, list[BatchCheck]] | None:
        """Every configuration with its table, and what the batch did; None when stopped."""
        at = time.monotonic()
        drawn = subsets.draw(
            [picture.sha256 for picture in self._pictures], sizes=self._settings.sizes, seeds=self._settings.seeds
        )
        if drawn.subsets == [Subset(len(self._pictures), None)]:
            whole = self._whole(cache, digest)
            counted = None if whole is None else iter([(drawn.subsets[0], whole)])
        else:
            counted = subsets.count(
                self._task, self._pictures, drawn,
                threads=self._threads, listen=self._listen, should_stop=self._should_stop,
            )  # fmt: skip
        if counted is None:
            return None
        self.seconds["count"] = time.monotonic() - at
        at = time.monotonic()
        found: Made = []
        smallest: Statistics | None = None
        for subset, statistics in counted:
            if subset == drawn.subsets[0]:
                # It grows into the next one: what is compared with later must stay as it is now.
                smallest = Statistics.empty(statistics.tensors, with_histogram=self._task.needs == "histogram")
                smallest.merge(statistics)
            found += self._calibrated(subset, statistics, batch=self._batch)
            done = len(found) // len(self._settings.candidates)
            self._listen(Progress("tables", done, len(drawn.subsets), unit="sets of pictures"))
        self.seconds["tables"] = time.monotonic() - at
        if smallest is None:
            return None
        checks = self._in_batches(drawn.subsets[0], smallest, found)
        return None if checks is None else (found, checks)

    def _whole(self, cache: Path, digest: str) -> Statistics | None:
        """Statistics of all pictures, by the way of ``edge calibrate``: those that it has kept will do."""
        path = cache_keys.table_path(self._profile, cache)
        key = {**cache_keys.table_key(self._profile), "images": digest}
        with store.lock(path):
            observed = collection.collect_statistics(
                self._profile, self._model, self._plan, self._set,
                needs=self._task.needs, cache=path.parent, key=key, threads=self._threads,
                listen=self._listen, should_stop=self._should_stop,
            )  # fmt: skip
        return None if observed is None else observed.statistics

    def _calibrated(self, subset: Subset, statistics: Statistics, *, batch: int) -> Made:
        complete = self._plan.complete(statistics)

        def make(candidate: Candidate) -> Table:
            ranges = algorithms.ranges(complete, candidate.algorithm, candidate.parameters)
            return calibration_table.from_ranges(
                watch_plan.shared_ranges(self._graph, ranges),
                algorithm=candidate.algorithm.table_name, trt_version=HEADER_VERSION,
            )  # fmt: skip

        with ThreadPoolExecutor(self._threads) as pool:
            made = list(pool.map(make, self._settings.candidates))
        return [
            (
                Configuration(
                    algorithm=candidate.label, pictures=subset.pictures, seed=subset.seed, batch=batch,
                    table=store.canonical_digest(table.bits),
                ),
                table,
            )
            for candidate, table in zip(self._settings.candidates, made, strict=True)
        ]  # fmt: skip

    def _in_batches(self, subset: Subset, alone: Statistics, found: Made) -> list[BatchCheck] | None:
        """Count ``subset`` again with each batch; tables that come out different are added to ``found``."""
        at = time.monotonic()
        if self._model.fixed_batch is not None:
            self._listen(Note(f"the model takes batches of {self._batch} only: no other batch can be compared"))
            return []
        members = subsets.order([picture.sha256 for picture in self._pictures], subset.seed or 1)[: subset.pictures]
        before = {item.algorithm: table for item, table in found if Subset(item.pictures, item.seed) == subset}
        checks = []
        for batch in sorted(set(self._settings.batches) - {self._batch}):
            counted = subsets.count_in_batches(
                self._task, [self._pictures[i] for i in members],
                batch=batch, model=self._model.path, threads=self._threads, should_stop=self._should_stop,
            )  # fmt: skip
            if counted is None:
                return None
            again = self._calibrated(subset, counted, batch=batch)
            same = [item.algorithm for item, table in again if table.bits == before[item.algorithm].bits]
            found += [(item, table) for item, table in again if item.algorithm not in same]
            change = max(_largest_change(before[item.algorithm], table) for item, table in again)
            checks.append(
                BatchCheck(
                    batch=batch, pictures=subset.pictures, statistics_identical=subsets.equal(alone, counted),
                    tables_identical=same, largest_change=change,
                )
            )  # fmt: skip
            self._listen(Progress("batches", len(checks), len(self._settings.batches), unit="batches"))
        self.seconds["batches"] = time.monotonic() - at
        return checks


def _largest_change(before: Table, after: Table) -> float:
    changes = [abs(after.scale(name) / before.scale(name) - 1.0) for name in before.names if before.scale(name)]
    return max(changes, default=0.0)

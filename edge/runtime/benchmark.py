"""Run a benchmark scenario, one query after the other on images in memory, and make its record.

As in MLPerf, images are decoded, preprocessed and arranged in batches before the clock starts. The time of a query is
wall time around the session, including copies to and from the device and the wait for it.
"""

from __future__ import annotations

import math
import random
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from edge import __version__
from edge.artifacts import FORMAT, RunRecord, Status, Subject, Tick, Warmup
from edge.backends import session_messages
from edge.config import Profile
from edge.errors import DataError, UsageError
from edge.events import Listener, Progress, ignore_events
from edge.media import decode, open_pictures
from edge.model import Preprocessor
from edge.runtime.timeline import Timeline
from edge.stats import Bin, QuantileSketch, Summary, percentile, summarize
from edge.telemetry import Telemetry, Window

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge.backends import Session
    from edge.runtime.evaluation import Scores

    Batch = NDArray[np.float32]
    from numpy.typing import NDArray


CONFIDENCE = 0.99


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """Rules of one scenario. ``percentile`` is the share whose latency is the result; None if the rate is the result.

    A query has ``samples_per_query`` images and is issued when the previous one is done; in the offline scenario all
    samples are issued at the start.
    """

    name: str
    percentile: float | None
    samples_per_query: int | None
    min_duration_s: float
    min_samples: int
    words: str


class Bound(msgspec.Struct, frozen=True, kw_only=True):
    """The early-stopping result: with 99 % confidence the percentile is at most ``estimate_ms``.

    The estimate is None with fewer than ``fewest`` queries. ``over`` is the number of slowest queries that may exceed
    it.
    """

    percentile: float
    queries: int
    fewest: int
    over: int
    estimate_ms: float | None


@cache
def fewest_queries(percentile: float) -> int:
    """Return the smallest number of queries for an early-stopping estimate: one of them may exceed it."""
    n = 2
    while not _allows(1, n, percentile):
        n += 1
    return n


def most_over(queries: int, percentile: float) -> int:
    """Return how many queries may exceed a latency while the percentile still meets it with 99 % confidence; or 0.

    If the true share above it were ``1 - percentile``, observing so few would have a probability of 1 % or less.
    """
    low, high = 0, math.ceil(queries * (1.0 - percentile)) + 1
    while low < high - 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _allows(middle, queries, percentile) else (low, middle)
    return low


def bound(ordered_ms: Sequence[float], percentile: float) -> Bound:
    """Return the early-stopping estimate from all latencies in ascending order, as LoadGen reports it."""
    n, fewest = len(ordered_ms), fewest_queries(percentile)
    over = most_over(n, percentile) if n >= fewest else 0
    return Bound(
        percentile=percentile,
        queries=n,
        fewest=fewest,
        over=over,
        estimate_ms=ordered_ms[n - over] if over else None,
    )


def _allows(over: int, queries: int, percentile: float) -> bool:
    return binomial_at_most(over, queries, 1.0 - percentile) <= 1.0 - CONFIDENCE


def binomial_at_most(k: int, n: int, p: float) -> float:
    """Return P(X <= k) for X ~ Binomial(n, p), 0 < p < 1, as the sum of its terms; ``k`` is at most the mean.

    LoadGen computes the same as a regularized incomplete beta function, I_{1-p}(n - k, k + 1).
    """
    log_term = (
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * math.log(p) + (n - k) * math.log1p(-p)
    )
    # From the largest term down: below the mean each one is smaller than the one before.
    term = total = math.exp(log_term)
    odds = (1.0 - p) / p
    for i in range(k, 0, -1):
        term *= i / (n - i + 1) * odds
        total += term
        if term < total * 1e-17:
            break
    return total


_P90, _P99 = 0.9, 0.99
SCENARIOS: dict[str, Rules] = {
    "single-stream": Rules(
        name="single-stream", percentile=_P90, samples_per_query=1, min_duration_s=600.0,
        min_samples=fewest_queries(_P90), words="one image at a time; the result is the 90th percentile of latency",
    ),
    "multi-stream": Rules(
        name="multi-stream", percentile=_P99, samples_per_query=8, min_duration_s=600.0,
        min_samples=8 * fewest_queries(_P99), words="eight images at a time; the result is the 99th percentile",
    ),
    "offline": Rules(
        name="offline", percentile=None, samples_per_query=None, min_duration_s=600.0, min_samples=24_576,
        words="all images are issued at once; the result is the rate",
    ),
}  # fmt: skip


# Fewer images than this say little about the tail.
_FEW = 100
# A second half slower than the first by this factor is not one steady state.
_DRIFT_TO_WARN = 1.15
_HALF = _FEW // 4


def measurement_warnings(
    first_ms: Sequence[float], timeline: Sequence[Tick], conditions: dict[str, Any], *, pictures: int
) -> list[str]:
    """Warn of too few images, an unsteady run, and problematic conditions.

    Args:
        first_ms: Total times of the first pictures: of all of them where they are no fewer than ``pictures``. Else the
            time line says whether the run was steady.
        conditions: As :func:`condition_warnings` takes them.
    """
    found = []
    if 0 < pictures < _FEW:
        found.append(f"{pictures} images are too few for the tail percentiles; use {_FEW} or more")
    values = first_ms if len(first_ms) >= pictures else [t.total_p50_ms for t in timeline if t.total_p50_ms is not None]
    half = len(values) // 2
    if half >= (_HALF if values is first_ms else 2):
        first, second = (percentile(sorted(part), 0.5) for part in (values[:half], values[half:]))
        if second > first * _DRIFT_TO_WARN:
            found.append(
                f"the second half was slower (median {second:.2f} ms against {first:.2f} ms): not a steady state"
            )
    return [*found, *condition_warnings(conditions)]


def condition_warnings(conditions: dict[str, Any]) -> list[str]:
    """Warn of throttling, and of a change of the power mode or of clock locking.

    Args:
        conditions: :class:`edge.telemetry.sampler.Conditions` as plain values.
    """
    found = []
    causes = [*conditions.get("throttling", ()), *(f"{name}: {n} events" for name, n in _events(conditions).items())]
    if causes:
        found.append(f"the device was throttled during the run ({', '.join(causes)})")
    modes = conditions.get("power_modes", ())
    if len(modes) > 1:
        found.append(f"the power mode changed during the run: {', '.join(modes)}")
    if len(conditions.get("clocks_locked", ())) > 1:
        found.append("the GPU's clock was locked or unlocked during the run")
    return [*found, *(f"power: {warning}" for warning in conditions.get("warnings", ()))]


def _events(conditions: dict[str, Any]) -> dict[str, int]:
    words = {"oc1": "under-voltage", "oc2": "mean over-current", "oc3": "peak over-current", "package": "CPU package"}
    return {words.get(name, name): n for name, n in conditions.get("throttles", {}).items() if n}


# The second half slower or faster than the first by this factor is not one steady state.
_DRIFT = 1.1
# A tail this far above the median: something else ran, or the clock moved.
_RAGGED = 3.0
_PROGRESS_S = 0.25
_MULTI_STREAM = (8, 0.99)


class BenchSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of a benchmark; it runs for at least ``min_duration_s`` and ``min_samples`` (default: MLPerf's rules).

    Batches have ``min_batch`` to ``max_batch`` images. The warm-up has at least ``warmup`` inferences and takes at
    least ``warmup_s`` seconds; no figure includes it. ``samples`` describes the images for the record. All latencies
    are stored, 8 bytes each, so that percentiles are exact.
    """

    min_duration_s: float | None = None
    min_samples: int | None = None
    min_batch: int = 1
    max_batch: int = 1
    warmup: int = 10
    warmup_s: float = 1.0
    seed: int = 0
    samples: dict[str, Any] = {}


def batch_sizes(rules: Rules, settings: BenchSettings) -> list[int]:
    """Return the sizes of the batches of one query that the engine accepts; offline, a query is one largest batch.

    Raises:
        UsageError: the engine cannot run such a query.
    """
    low, high = settings.min_batch, settings.max_batch
    samples = rules.samples_per_query or high
    parts = -(-samples // high)
    sizes = [samples // parts + (1 if i < samples % parts else 0) for i in range(parts)]
    if min(sizes) < low:
        raise UsageError(
            f"{rules.name} requires {samples} images per query, but the engine accepts batches of {low} to {high}",
            hint="build an engine with input.batch.min: 1",
        )
    return sizes


def bench(
    batch_of: Callable[[int], list[Batch]],
    *,
    rules: Rules,
    session: Session,
    subject: Subject,
    settings: BenchSettings,
    telemetry: Telemetry,
    listen: Listener = ignore_events,
    should_stop: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
) -> RunRecord:
    """Measure one scenario. ``batch_of(n)`` returns batches of n images, float32 n×3×h×w, all of them in memory.

    ``should_stop`` ends it after the current query; the record then says ``interrupted`` and is not valid.

    Raises:
        DeviceError: the backend failed.
        UsageError: the engine does not support the scenario's batch sizes.
    """
    sizes = batch_sizes(rules, settings)
    pools = {size: batch_of(size) for size in set(sizes)}
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    course = _Course(session, [pools[size] for size in sizes], telemetry, random.Random(settings.seed), clock)  # noqa: S311
    warmup = course.warm_up(settings)
    status: Status = "complete"
    min_s = rules.min_duration_s if settings.min_duration_s is None else settings.min_duration_s
    min_samples = rules.min_samples if settings.min_samples is None else settings.min_samples
    queries = -(-min_samples // sum(sizes))
    if settings.min_duration_s is not None and settings.min_samples is None:
        # A requested duration ends the scenario; the result then notes that the rules require more queries.
        queries, min_samples = 1, sum(sizes)
    reported_s = -_PROGRESS_S
    course.start_s = clock()
    while course.elapsed_s < min_s or len(course.latencies_ms) < queries:
        if should_stop():
            status = "interrupted"
            break
        course.query()
        if course.elapsed_s - reported_s >= _PROGRESS_S:
            reported_s = course.elapsed_s
            listen(_progress(rules.name, len(course.latencies_ms), course.elapsed_s, queries=queries, min_s=min_s))
    return _record(
        course, rules, settings, status, sizes=sizes, warmup=warmup, subject=subject, started_utc=started,
        asked=(min_s, min_samples),
    )  # fmt: skip


def _progress(name: str, done: int, elapsed_s: float, *, queries: int, min_s: float) -> Progress:
    """Return the queries done so far, and an estimate of their final number from the current rate."""
    expected = done * min_s / elapsed_s if elapsed_s > 0 else 0.0
    return Progress(name, done, max(queries, round(expected), done + 1), "queries")


class _Course:
    """The queries of a scenario and their latencies."""

    def __init__(
        self,
        session: Session,
        pools: Sequence[Sequence[Batch]],
        telemetry: Telemetry,
        chance: random.Random,
        clock: Callable[[], float],
    ) -> None:
        self.start_s = self.end_s = clock()
        self.latencies_ms = array("d")
        self.stages = {name: array("d") for name in ("host_to_device", "infer", "device_to_host")}
        self.timeline = Timeline()
        self.telemetry = telemetry
        self.session = session
        self._pools = pools
        self._chance = chance
        self._clock = clock

    @property
    def elapsed_s(self) -> float:
        """Time from the start of the first query to the end of the last."""
        return max(self.end_s - self.start_s, 0.0)

    def warm_up(self, settings: BenchSettings) -> Warmup:
        """Run the same batches without measuring."""
        times: list[float] = []
        until = self._clock() + settings.warmup_s
        while len(times) < settings.warmup or self._clock() < until:
            times.append(self.session.infer(self._chance.choice(self._pools[0])).infer_ms)
        return Warmup(len(times), times[0] if times else None, times[-1] if times else None)

    def query(self) -> None:
        """Issue one query and wait for all of its answers."""
        batches = [self._chance.choice(pool) for pool in self._pools]
        start = self._clock()
        answers = [self.session.infer(batch) for batch in batches]
        self.end_s = self._clock()
        latency_ms = (self.end_s - start) * 1e3
        sampler = self.telemetry.sampler
        t_s = self.end_s - self.start_s
        self.timeline.advance(t_s, reading=sampler.latest if sampler else None)
        self.timeline.add(latency_ms, None)
        self.latencies_ms.append(latency_ms)
        for name, values in self.stages.items():
            parts = [getattr(answer, f"{name}_ms") for answer in answers]
            if None not in parts:
                values.append(sum(parts))


def _record(
    course: _Course,
    rules: Rules,
    settings: BenchSettings,
    status: Status,
    *,
    sizes: list[int],
    warmup: Warmup,
    subject: Subject,
    started_utc: str,
    asked: tuple[float, int],
) -> RunRecord:
    ordered = sorted(course.latencies_ms)
    samples = len(ordered) * sum(sizes)
    window = Window(course.start_s, course.start_s + course.elapsed_s)
    power, unavailable, conditions = course.telemetry.account(window, pictures=samples)
    stages = {"total": course.latencies_ms, **course.stages}
    latency = {name: summarize(values) for name, values in stages.items()}
    sampler = course.telemetry.sampler
    result = _result(ordered, rules, status, samples=samples, elapsed_s=course.elapsed_s, asked=asked)
    return RunRecord(
        format=FORMAT,
        edge_version=__version__,
        started_utc=started_utc,
        status=status,
        failure=None,
        replayed=course.telemetry.replayed,
        subject=subject,
        source={"kind": "memory", "opened_as": f"bench {rules.name}", "live": False, **settings.samples},
        pictures=samples,
        skipped=[],
        skipped_count=0,
        dropped=None,
        gaps=[],
        warmup=warmup,
        measured_s=course.elapsed_s,
        rate_per_s=samples / course.elapsed_s if course.elapsed_s > 0 else None,
        latency={name: found for name, found in latency.items() if found is not None},
        histogram={name: _bins(values) for name, values in stages.items() if values},
        timeline=course.timeline.ticks(course.elapsed_s, reading=sampler.latest if sampler else None),
        stages_absent={
            "decode": "done before the measurement", "preprocess": "done before the measurement",
            "postprocess": "not part of the scenario",
        },
        power=power,
        power_unavailable=unavailable,
        conditions=conditions,
        top_labels=[],
        warnings=[
            *map(str, session_messages([course.session])), *course.telemetry.notes,
            *_warnings(course.latencies_ms, ordered, conditions),
        ],
        results=[],
        results_kept="newest",
        bench={**result, "batches": sizes, "seed": settings.seed},
    )  # fmt: skip


def _bins(values_ms: Sequence[float]) -> list[Bin]:
    sketch = QuantileSketch()
    for value in values_ms:
        sketch.add(value)
    return sketch.bins()


def _result(
    ordered: Sequence[float], rules: Rules, status: Status, *, samples: int, elapsed_s: float, asked: tuple[float, int]
) -> dict[str, Any]:
    """Return the result of the scenario, and its compliance with MLPerf's rules."""
    result: dict[str, Any] = {
        "scenario": rules.name,
        "samples_per_query": rules.samples_per_query,
        "queries": len(ordered),
        "samples": samples,
        "duration_s": elapsed_s,
        "asked_duration_s": asked[0],
        "rules_duration_s": rules.min_duration_s,
        "rules_samples": rules.min_samples,
        "rate_per_s": samples / elapsed_s if elapsed_s > 0 else None,
    }
    why_not = ["a signal ended it"] if status == "interrupted" else []
    if elapsed_s < rules.min_duration_s:
        why_not.append(f"it ran for {elapsed_s:.1f} s; the rules require {rules.min_duration_s:g} s")
    if samples < rules.min_samples:
        why_not.append(f"{samples} images; the rules require {rules.min_samples}")
    if rules.percentile is not None:
        found = bound(ordered, rules.percentile)
        result |= {
            "percentile": rules.percentile,
            "percentile_ms": percentile(ordered, rules.percentile) if ordered else None,
            "confidence": CONFIDENCE,
            "estimate_ms": found.estimate_ms,
            "queries_over": found.over,
            "fewest_queries": found.fewest,
        }
        if found.estimate_ms is None and samples >= rules.min_samples:
            why_not.append(f"{len(ordered)} queries; early stopping requires {found.fewest}")
    if rules.samples_per_query == 1:
        count, share = _MULTI_STREAM
        tail = bound(ordered, share).estimate_ms
        # The rules allow to infer the result of multi-stream from this.
        result["multi_stream_inferred_ms"] = None if tail is None else count * tail
    return {**result, "by_the_rules": not why_not, "why_not": why_not}


def age_result(ages_ms: Sequence[float], record: RunRecord, *, share: float = _MULTI_STREAM[1]) -> dict[str, Any]:
    """Return the result of a benchmark with a camera: the age of a label, with the same early stopping.

    Args:
        ages_ms: From the capture of a frame to its label, of every labelled frame.
        share: The percentile, as a share.
    """
    ordered = sorted(ages_ms)
    found = bound(ordered, share)
    why_not = ["MLPerf has no scenario with a camera"]
    return {
        "scenario": "camera", "samples_per_query": 1, "queries": len(ordered), "samples": len(ordered),
        "duration_s": record.measured_s, "rate_per_s": record.rate_per_s, "percentile": share,
        "percentile_ms": percentile(ordered, share) if ordered else None, "confidence": CONFIDENCE,
        "estimate_ms": found.estimate_ms, "queries_over": found.over, "fewest_queries": found.fewest,
        "by_the_rules": False, "why_not": why_not,
    }  # fmt: skip


def _warnings(in_order: Sequence[float], ordered: Sequence[float], conditions: dict[str, Any]) -> list[str]:
    """Warn of an unsteady run, a long tail, and problematic conditions."""
    found = []
    n = len(ordered)
    half = n // 2
    if half >= 25:
        first, second = (percentile(sorted(part), 0.5) for part in (in_order[:half], in_order[half:]))
        if max(first, second) > min(first, second) * _DRIFT:
            way = "slower" if second > first else "faster"
            found.append(
                f"the second half was {way} (median {second:.3f} ms against {first:.3f} ms): not a steady state"
            )
    summary: Summary | None = summarize(ordered)
    if summary is not None and summary.p99_ms is not None and summary.p99_ms > _RAGGED * summary.p50_ms:
        found.append(
            f"the 99th percentile is {summary.p99_ms / summary.p50_ms:.1f} times the median: other programs may run"
        )
    return [*found, *condition_warnings(conditions)]


class Samples:
    """At most ``count`` images of ``images``, or of noise with a fixed seed; they are read on first use."""

    def __init__(self, profile: Profile, images: Path | None, *, count: int) -> None:
        self._profile = profile
        self._images = images
        self._count = count
        self._ready: list[Batch] = []

    def batches(self, size: int) -> list[Batch]:
        """Yield batches of ``size`` images, float32 size×3×h×w, of all images in all, but at least one batch.

        Raises:
            DataError: no image could be decoded.
        """
        ready = self._ready = self._ready or self._prepare()
        count = max(len(ready) // size, 1)
        return [np.stack([ready[(b * size + i) % len(ready)] for i in range(size)]) for b in range(count)]

    def _prepare(self) -> list[Batch]:
        preprocess = Preprocessor(self._profile.preprocess, self._profile.input)
        if self._images is None:
            x, y, across, down = self._profile.preprocess.roi or (0.0, 0.0, 0.0, 0.0)
            height, width = self._profile.input.height, self._profile.input.width
            shape = (max(height, math.ceil(y + down)), max(width, math.ceil(x + across)), 3)
            chance = np.random.default_rng(0)
            return [preprocess(chance.integers(0, 256, shape, np.uint8)) for _ in range(self._count)]
        found = []
        broken: DataError | None = None
        spec = self._profile.preprocess
        for picture in open_pictures(self._images).take(self._count):
            try:
                pixels = decode(picture.read(), name=picture.where, exif=spec.exif, max_megapixels=spec.max_megapixels)
                found.append(preprocess(pixels))
            except DataError as exc:  # noqa: PERF203 - `edge data check` names them; here they are in the way
                broken = exc
        if not found:
            raise DataError("no image could be decoded", where=self._images) from broken
        return found


def precision_figures(record: RunRecord, scores: Scores | None, known: Mapping[str, Any] | None) -> dict[str, Any]:
    """Figures of one engine for a comparison; what was not measured is None.

    Args:
        record: of the benchmark.
        scores: against FP32, where they were measured now.
        known: the accuracy in the engine's manifest, measured on calibration images.
    """
    summary = next(iter(record.latency.values()), None)
    energy = None if record.power is None else record.power.get("joules_per_picture")
    accuracy = dict(known or {})
    if scores is not None:
        accuracy = {"sqnr_db": scores.logit_sqnr_db, "agreement": scores.agreement, "n": scores.n}
    return {
        "precision": record.subject.precision,
        "rate_per_s": (record.bench or {}).get("rate_per_s") or record.rate_per_s,
        "median_ms": (record.bench or {}).get("percentile_ms") if summary is None else summary.p50_ms,
        "mj_per_picture": None if energy is None else 1e3 * energy,
        "sqnr_db": accuracy.get("sqnr_db"),
        "agreement": accuracy.get("agreement"),
        "pictures": accuracy.get("n"),
    }


def compare_precisions(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """Compare the second precision with the first in one sentence."""
    words = []
    before, after = first["rate_per_s"], second["rate_per_s"]
    if before and after:
        ratio = after / before
        steady = 1.05
        speed = "as fast as" if 1 / steady <= ratio <= steady else f"{ratio:.2f} times as fast as"
        words.append(f"is {speed} {first['precision']}")
    if first["mj_per_picture"] and second["mj_per_picture"]:
        words.append(f"takes {second['mj_per_picture'] / first['mj_per_picture']:.2f} times its energy per image")
    if second["agreement"] is not None:
        words.append(f"agrees with FP32 on {second['agreement']:.1f} % of {second['pictures']} images")
    return f"{second['precision']} {', '.join(words) or 'was not measured'}."

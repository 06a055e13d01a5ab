"""Running a scenario: queries one after the other on pictures that are in memory, and the record of it.

As in MLPerf, pictures are decoded, preprocessed and laid out as batches before the clock starts. The time of a query is
wall time around the session: copies to and from the device and waiting for it are in it.
"""

from __future__ import annotations

import random
import time
from array import array
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from edge import __version__
from edge.artifacts import FORMAT, RunRecord, Status, Subject, Warmup
from edge.config import Profile
from edge.errors import DataError, UsageError
from edge.events import Listener, Progress, ignore_events
from edge.media import decode, open_pictures
from edge.model import Preprocessor
from edge.runtime.measurement_warnings import condition_warnings
from edge.runtime.mlperf import CONFIDENCE, Rules, bound
from edge.runtime.timeline import Timeline
from edge.stats import Bin, QuantileSketch, Summary, percentile, summarize
from edge.telemetry import Telemetry, Window

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge.backends import Session

    Batch = NDArray[np.float32]
    from numpy.typing import NDArray


# The second half slower or faster than the first by this factor is not one steady state.
_DRIFT = 1.1
# A tail this far above the median: something else ran, or the clock moved.
_RAGGED = 3.0
_PROGRESS_S = 0.25
_MULTI_STREAM = (8, 0.99)


class BenchSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of a benchmark: for at least ``min_duration_s`` and ``min_samples`` (the rules' own unless given).

    Batches have between ``min_batch`` and ``max_batch`` pictures. The warm-up has at least ``warmup`` inferences and
    takes at least ``warmup_s`` seconds; it is in no figure. ``samples`` says what the pictures are, for the record.
    All latencies are kept, 8 bytes each, so that percentiles are exact.
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
    """The batches that a query is cut into, as the engine takes them; offline, a query is one largest batch.

    Raises:
        UsageError: it cannot be.
    """
    low, high = settings.min_batch, settings.max_batch
    samples = rules.samples_per_query or high
    parts = -(-samples // high)
    sizes = [samples // parts + (1 if i < samples % parts else 0) for i in range(parts)]
    if min(sizes) < low:
        raise UsageError(
            f"{rules.name} asks for {samples} pictures per query, and the engine takes batches of {low} to {high}",
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
    """Measure one scenario. ``batch_of(n)`` gives batches of n pictures, float32 n×3×h×w, all of them in memory.

    ``should_stop`` ends it after the query in hand; the record then says ``interrupted``, and is not valid.

    Raises:
        DeviceError: the backend failed.
        UsageError: the engine does not take the scenario's batches.
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
        # A time that was asked for is when it ends; that the rules ask for more queries is in the result.
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
    """Queries so far, of as many as this rate makes of the time and the queries that are asked for."""
    expected = done * min_s / elapsed_s if elapsed_s > 0 else 0.0
    return Progress(name, done, max(queries, round(expected), done + 1), "queries")


class _Course:
    """The queries, and what came of them."""

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
        self._session = session
        self._pools = pools
        self._chance = chance
        self._clock = clock

    @property
    def elapsed_s(self) -> float:
        """From the start of the first query to the end of the last."""
        return max(self.end_s - self.start_s, 0.0)

    def warm_up(self, settings: BenchSettings) -> Warmup:
        """Run the same batches outside of every figure."""
        times: list[float] = []
        until = self._clock() + settings.warmup_s
        while len(times) < settings.warmup or self._clock() < until:
            times.append(self._session.infer(self._chance.choice(self._pools[0])).infer_ms)
        return Warmup(len(times), times[0] if times else None, times[-1] if times else None)

    def query(self) -> None:
        """Issue one query and wait for all of its answers."""
        batches = [self._chance.choice(pool) for pool in self._pools]
        start = self._clock()
        answers = [self._session.infer(batch) for batch in batches]
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
        warnings=[*course.telemetry.notes, *_warnings(course.latencies_ms, ordered, conditions)],
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
    """The figure that the scenario asks for, and whether the rules would take it."""
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
        why_not.append(f"it ran for {elapsed_s:.1f} s; the rules ask for {rules.min_duration_s:g} s")
    if samples < rules.min_samples:
        why_not.append(f"{samples} pictures; the rules ask for {rules.min_samples}")
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
            why_not.append(f"{len(ordered)} queries; early stopping asks for {found.fewest}")
    if rules.samples_per_query == 1:
        count, share = _MULTI_STREAM
        tail = bound(ordered, share).estimate_ms
        # The rules allow to infer the result of multi-stream from this.
        result["multi_stream_inferred_ms"] = None if tail is None else count * tail
    return {**result, "by_the_rules": not why_not, "why_not": why_not}


def age_result(ages_ms: Sequence[float], record: RunRecord, *, share: float = _MULTI_STREAM[1]) -> dict[str, Any]:
    """The result of a benchmark of the loop on a camera: the age of a label, by the same early stopping.

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
    """Warn of a run that was not steady, of a long tail, and of what its conditions speak against."""
    found = []
    n = len(ordered)
    half = n // 2
    if half >= 25:
        first, second = (percentile(sorted(part), 0.5) for part in (in_order[:half], in_order[half:]))
        if max(first, second) > min(first, second) * _DRIFT:
            way = "slower" if second > first else "faster"
            found.append(
                f"the second half was {way} (median {second:.3f} ms against {first:.3f} ms): not one steady state"
            )
    summary: Summary | None = summarize(ordered)
    if summary is not None and summary.p99_ms is not None and summary.p99_ms > _RAGGED * summary.p50_ms:
        found.append(
            f"the 99th percentile is {summary.p99_ms / summary.p50_ms:.1f} times the median: something else was running"
        )
    return [*found, *condition_warnings(conditions)]


class Samples:
    """At most ``count`` pictures of ``images``, or that many of noise with a fixed seed; read when first asked for."""

    def __init__(self, profile: Profile, images: Path | None, *, count: int) -> None:
        self._profile = profile
        self._images = images
        self._count = count
        self._ready: list[Batch] = []

    def batches(self, size: int) -> list[Batch]:
        """Batches of ``size`` pictures, float32 size×3×h×w, together as many pictures as there are, or one batch.

        Raises:
            DataError: no picture could be decoded.
        """
        ready = self._ready = self._ready or self._prepare()
        count = max(len(ready) // size, 1)
        return [np.stack([ready[(b * size + i) % len(ready)] for i in range(size)]) for b in range(count)]

    def _prepare(self) -> list[Batch]:
        preprocess = Preprocessor(self._profile.preprocess, self._profile.input)
        if self._images is None:
            shape = (self._profile.input.height, self._profile.input.width, 3)
            chance = np.random.default_rng(0)
            return [preprocess(chance.integers(0, 256, shape, np.uint8)) for _ in range(self._count)]
        found = []
        broken: DataError | None = None
        for picture in open_pictures(self._images).take(self._count):
            try:
                pixels = decode(picture.read(), name=picture.where, exif=self._profile.preprocess.exif)
                found.append(preprocess(pixels))
            except DataError as exc:  # noqa: PERF203 - `edge data check` names them; here they are in the way
                broken = exc
        if not found:
            raise DataError("no picture could be decoded", where=self._images) from broken
        return found

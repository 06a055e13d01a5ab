"""Statistics of a run in bounded memory.

:class:`RunStatistics` processes every event of the run once. The terminal, the web page, the metrics and the watchdog's
status line read its :class:`RunSnapshot`; the run record is made from it, during the run and at the end.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from edge import __version__
from edge.artifacts import (
    FORMAT,
    MOST_GAPS,
    MOST_LABELS,
    MOST_RESULTS,
    MOST_SKIPS,
    CameraRecord,
    FrameResult,
    Gap,
    LabelCount,
    NotifyCounts,
    RunRecord,
    Skip,
    Status,
    Subject,
    Tick,
    Warmup,
)
from edge.backends import BackendMessage
from edge.runtime.classifier import seen_label
from edge.runtime.timeline import Timeline
from edge.stats import QuantileSketch, Summary, percentile, summarize
from edge.telemetry import Reading, Telemetry, Window

Clock = Callable[[], float]
Event = FrameResult | Skip | Gap

STAGES = ("decode", "preprocess", "host_to_device", "infer", "device_to_host", "postprocess", "total", "age")
# Up to this many values the percentiles are exact.
_EXACT = 4096
# The newest latencies and gaps in a snapshot.
RECENT = 240
_RECENT_GAPS = 20
_RECENT_CHANGES = 8
# Number of full seconds over which the rate is averaged.
_RATE_S = 10


class Distribution:
    """Durations of one stage in milliseconds: a limited number of exact values, and a sketch of all."""

    __slots__ = ("first", "sketch")

    def __init__(self) -> None:
        self.first: list[float] = []
        self.sketch = QuantileSketch()

    def add(self, value_ms: float) -> None:
        """Add one duration."""
        self.sketch.add(value_ms)
        if len(self.first) <= _EXACT:
            self.first.append(value_ms)

    def summary(self) -> Summary | None:
        """Return the summary of all added values, exact up to 4096 values; None if there are none."""
        return summarize(self.first) if len(self.first) <= _EXACT else self.sketch.summary()


class CameraSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """One camera of several at one moment. ``gap`` is the open gap; ``reconnects`` is the number of finished gaps."""

    name: str
    pictures: int
    skipped: int
    dropped: int | None
    gaps_count: int
    reconnects: int
    gap: Gap | None
    gap_s: float
    result: FrameResult | None
    rate_per_s: float | None
    recent_age_ms: tuple[float, ...]


class LabelChange(msgspec.Struct, frozen=True):
    """A change of the decided (or best guessed) label, with its camera if there are several."""

    t_s: float
    camera: str | None
    label: str
    confidence: float


class RunSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A run at one moment.

    ``history`` has one bin per second, oldest first; ``recent_ms`` and ``recent_age_ms`` are the newest total times and
    ages, oldest first. ``rate_per_s`` is that of the last ten full seconds, or of everything where there are fewer.
    ``gap`` is a gap that is open, ``gap_s`` the length of those that ended. ``t_s`` counts from the begin of the
    measured window. ``cameras`` is empty unless there are several, ``changes`` are the newest changes of the label.
    """

    t_s: float
    pictures: int
    total: int | None
    skipped: int
    last_skip: Skip | None
    dropped: int | None
    gaps: tuple[Gap, ...]
    gaps_count: int
    gap: Gap | None
    gap_s: float
    result: FrameResult | None
    rate_per_s: float | None
    recent_ms: tuple[float, ...]
    recent_age_ms: tuple[float, ...]
    history: tuple[Tick, ...]
    reading: Reading | None
    cameras: tuple[CameraSnapshot, ...] = ()
    notify: tuple[NotifyCounts, ...] = ()
    changes: tuple[LabelChange, ...] = ()
    messages: tuple[BackendMessage, ...] = ()

    @property
    def status_line(self) -> str:
        """Return the state as one line of text."""
        words = [f"{self.pictures}" + (f" of {self.total}" if self.total is not None else "") + " images"]
        if self.rate_per_s is not None:
            words.append(f"{self.rate_per_s:.1f} images/s")
        if self.recent_ms:
            ordered = sorted(self.recent_ms)
            words.append(f"p50 {percentile(ordered, 0.5):.1f}, p90 {percentile(ordered, 0.9):.1f} ms")
        if self.reading is not None and self.reading.power_mw is not None:
            words.append(f"{self.reading.power_mw / 1e3:.2f} W")
        if self.dropped:
            words.append(f"{self.dropped} dropped")
        if self.skipped:
            words.append(f"{self.skipped} skipped")
        down = [camera for camera in self.cameras if camera.gap is not None]
        if down:
            words.append("no frames: " + "; ".join(f"{c.name} ({c.gap.reason})" for c in down if c.gap is not None))
        elif self.gap is not None:
            words.append(f"no frames: {self.gap.reason}")
        return ", ".join(words)


class _Counts:
    """Numbers of images, skips and gaps of the whole run, or of one camera."""

    def __init__(self) -> None:
        self.pictures = self.skipped = self.gaps_count = self.gaps_ended = 0
        self.gap_s = 0.0
        self.newest: FrameResult | None = None
        self.gap: Gap | None = None
        self.gaps: list[Gap] = []
        self.recent_age: deque[float] = deque(maxlen=RECENT)
        self.labels: Counter[tuple[int, str]] = Counter()
        self.decisions: Counter[tuple[int, str]] = Counter()

    def count(self, event: Event) -> None:
        if isinstance(event, FrameResult):
            self.pictures += 1
            self.newest = event
            if event.stages.age_ms is not None:
                self.recent_age.append(event.stages.age_ms)
            if event.guesses:
                best = event.guesses[0]
                self.labels[best.index, best.label] += 1
            decision = event.decision
            if decision is not None:
                self.decisions[-1 if decision.index is None else decision.index, decision.label] += 1
        elif isinstance(event, Skip):
            self.skipped += 1
        else:
            self._count_gap(event)

    def _count_gap(self, gap: Gap) -> None:
        """Add a gap. It is reported at its begin and at its end: both reports have the same start time."""
        if self.gap is None or self.gap.start_s != gap.start_s:
            self.gaps_count += 1
            if len(self.gaps) < MOST_GAPS:
                self.gaps.append(gap)
        elif self.gaps and self.gaps[-1].start_s == gap.start_s:
            self.gaps[-1] = gap
        self.gap = gap if gap.end_s is None else None
        if gap.end_s is not None:
            self.gaps_ended += 1
            self.gap_s += max(gap.end_s - gap.start_s, 0.0)


def _most_common(labels: Counter[tuple[int, str]]) -> list[LabelCount]:
    return [LabelCount(index, label, n) for (index, label), n in labels.most_common(MOST_LABELS)]


class _Camera(_Counts):
    """Statistics of one camera of several."""

    def __init__(self, dropped: Callable[[], int | None]) -> None:
        super().__init__()
        self.dropped = dropped
        self.dropped_before = 0
        self.total, self.age = Distribution(), Distribution()
        # Arrival times of the newest images, for the rate.
        self.times: deque[float] = deque(maxlen=RECENT)

    def dropped_in_run(self) -> int | None:
        """Return the number of frames dropped since the measured window began; None if the camera drops none."""
        dropped = self.dropped()
        return None if dropped is None else dropped - self.dropped_before

    def rate_per_s(self, now_s: float) -> float | None:
        since = [t_s for t_s in self.times if t_s > now_s - _RATE_S]
        length_s = min(now_s - since[0], _RATE_S) if since else 0.0
        return len(since) / length_s if length_s >= 1.0 else None


class RunStatistics:
    """Collects the statistics of one run. Only the run loop calls :meth:`record`; the other methods are thread-safe.

    Args:
        total: the number of images, if known.
        dropped: returns the number of frames that the source has dropped so far; None if it never drops frames.
        cameras: the same function for each camera by name, if there are several.
        reading: returns the newest telemetry reading.
        notify: returns the counts of each notification target.
        messages: returns the warnings and errors that the backend has logged so far.
    """

    def __init__(
        self,
        *,
        total: int | None = None,
        dropped: Callable[[], int | None] = lambda: None,
        cameras: Mapping[str, Callable[[], int | None]] | None = None,
        reading: Callable[[], Reading | None] = lambda: None,
        notify: Callable[[], tuple[NotifyCounts, ...]] = tuple,
        messages: Callable[[], tuple[BackendMessage, ...]] = tuple,
        clock: Clock = time.monotonic,
    ) -> None:
        self._total = total
        self._dropped_now = dropped
        self._dropped_before = 0
        self._reading = reading
        self._notify = notify
        self._messages = messages
        self._clock = clock
        self._lock = threading.Lock()
        self._start_s: float | None = None
        self._all = _Counts()
        self._cameras = {name: _Camera(each) for name, each in (cameras or {}).items()}
        self._first_skips: list[Skip] = []
        self._last_skip: Skip | None = None
        self._recent_gaps: deque[Gap] = deque(maxlen=_RECENT_GAPS)
        self._results: deque[FrameResult] = deque(maxlen=MOST_RESULTS)
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._changes: deque[LabelChange] = deque(maxlen=_RECENT_CHANGES)
        self._labels: dict[str | None, str] = {}
        self._stages = {stage: Distribution() for stage in STAGES}
        self._timeline = Timeline()
        self._closed: list[Tick] = []

    def begin(self) -> float:
        """Begin the measurement; frames dropped before are not counted. Return the clock's time."""
        with self._lock:
            self._start_s = self._clock()
            self._dropped_before = self._dropped_now() or 0
            for camera in self._cameras.values():
                camera.dropped_before = camera.dropped() or 0
            return self._start_s

    def record(self, event: Event) -> None:
        """Record one image, skip or gap; a finished gap replaces the entry of the same open gap."""
        with self._lock:
            if self._start_s is None:
                self._start_s = self._clock()
            self._advance()
            self._all.count(event)
            camera = self._cameras.get(event.camera or "")
            if camera is not None:
                camera.count(event)
            if isinstance(event, FrameResult):
                self._record_result(event, camera)
            elif isinstance(event, Skip):
                self._last_skip = event
                if len(self._first_skips) < MOST_SKIPS:
                    self._first_skips.append(event)
            elif self._recent_gaps and _is_same_gap(self._recent_gaps[-1], event):
                self._recent_gaps[-1] = event
            else:
                self._recent_gaps.append(event)

    def advance(self) -> list[Tick]:
        """Close finished bins of the time series and return those closed since the last call."""
        with self._lock:
            self._advance()
            closed, self._closed = self._closed, []
            return closed

    def snapshot(self) -> RunSnapshot:
        """Return a snapshot of the run."""
        with self._lock:
            self._advance()
            elapsed_s = self._elapsed_s()
            counts = self._all
            open_gaps = [camera.gap for camera in self._cameras.values() if camera.gap is not None]
            return RunSnapshot(
                t_s=elapsed_s,
                pictures=counts.pictures,
                total=self._total,
                skipped=counts.skipped,
                last_skip=self._last_skip,
                dropped=self._dropped(),
                gaps=tuple(self._recent_gaps),
                gaps_count=sum(c.gaps_count for c in self._cameras.values()) if self._cameras else counts.gaps_count,
                gap=(open_gaps[0] if open_gaps else None) if self._cameras else counts.gap,
                gap_s=sum(c.gap_s for c in self._cameras.values()) if self._cameras else counts.gap_s,
                result=counts.newest,
                rate_per_s=self._rate(elapsed_s),
                recent_ms=tuple(self._recent),
                recent_age_ms=tuple(counts.recent_age),
                history=tuple(self._timeline.seconds),
                reading=self._reading(),
                cameras=tuple(self._camera_snapshot(name) for name in self._cameras),
                notify=self._notify(),
                changes=tuple(self._changes),
                messages=self._messages(),
            )

    def summary(self, stage: str = "total") -> Summary | None:
        """Return the summary of a stage's durations so far."""
        with self._lock:
            return self._stages[stage].sketch.summary()

    def cumulative(
        self, bounds_ms: Sequence[float], *, camera: str | None = None
    ) -> dict[str, tuple[list[int], float]]:
        """Return for each stage the counts of values up to each of ``bounds_ms``, their number, and their sum in ms.

        For one ``camera``, the stages are ``total`` and ``age``.
        """
        with self._lock:
            stages = self._stages
            if camera is not None:
                stages = {"total": self._cameras[camera].total, "age": self._cameras[camera].age}
            return {
                stage: ([*found.sketch.cumulative(bounds_ms), found.sketch.n], found.sketch.sum_ms)
                for stage, found in stages.items()
                if found.sketch.n
            }

    def timeline(self) -> list[Tick]:
        """Return the time series so far, at most 600 bins."""
        with self._lock:
            self._advance()
            return self._timeline_now()

    @property
    def pictures(self) -> int:
        """Number of labelled images."""
        return self._all.pictures

    @property
    def skipped(self) -> int:
        """Number of unusable images."""
        return self._all.skipped

    @property
    def first_reason(self) -> str | None:
        """The reason why the first image was skipped."""
        return self._first_skips[0].reason if self._first_skips else None

    # the lock is held below

    def _record_result(self, result: FrameResult, camera: _Camera | None) -> None:
        self._results.append(result)
        _index, label, confidence = seen_label(result)
        if self._labels.get(result.camera) != label:
            self._labels[result.camera] = label
            self._changes.append(LabelChange(result.t_s, result.camera, label, confidence))
        stages = result.stages
        total_ms, age_ms = stages.total_ms, stages.age_ms
        self._recent.append(total_ms)
        self._timeline.add(total_ms, age_ms)
        for stage, value_ms in zip(
            STAGES,
            (stages.decode_ms, stages.preprocess_ms, stages.host_to_device_ms, stages.infer_ms,
             stages.device_to_host_ms, stages.postprocess_ms, total_ms, age_ms),
            strict=True,
        ):  # fmt: skip
            if value_ms is not None:
                self._stages[stage].add(value_ms)
        if camera is not None:
            camera.times.append(self._clock())
            camera.total.add(total_ms)
            if age_ms is not None:
                camera.age.add(age_ms)

    def _elapsed_s(self) -> float:
        return 0.0 if self._start_s is None else self._clock() - self._start_s

    def _dropped(self) -> int | None:
        dropped = self._dropped_now()
        return None if dropped is None else dropped - self._dropped_before

    def _advance(self) -> None:
        if self._start_s is not None and self._timeline.is_due(elapsed_s := self._clock() - self._start_s):
            self._closed += self._timeline.advance(elapsed_s, dropped=self._dropped() or 0, reading=self._reading())

    def _rate(self, elapsed_s: float) -> float | None:
        last = list(self._timeline.seconds)[-_RATE_S:]
        if len(last) >= 3:
            return sum(tick.frames for tick in last) / len(last)
        # Shortly after the start the rate would be meaningless.
        return self._all.pictures / elapsed_s if elapsed_s >= 1.0 and self._all.pictures else None

    def _camera_snapshot(self, name: str) -> CameraSnapshot:
        camera = self._cameras[name]
        return CameraSnapshot(
            name=name,
            pictures=camera.pictures,
            skipped=camera.skipped,
            dropped=camera.dropped_in_run(),
            gaps_count=camera.gaps_count,
            reconnects=camera.gaps_ended,
            gap=camera.gap,
            gap_s=camera.gap_s,
            result=camera.newest,
            rate_per_s=camera.rate_per_s(self._clock()),
            recent_age_ms=tuple(camera.recent_age),
        )

    # the record

    def to_record(
        self,
        status: Status,
        *,
        failure: str | None,
        subject: Subject,
        source: dict[str, Any],
        replayed: str | None,
        started_utc: str,
        warmup: Warmup,
        telemetry: Telemetry,
        notes: Sequence[str] = (),
    ) -> RunRecord:
        """Make the record of everything so far.

        Args:
            source: description of the source as plain values.
            replayed: The recording that the frames come from, if they do.
            started_utc: The wall clock when the run began.
            telemetry: the power sampler on this clock, or the reason why there is none.
            notes: warnings to put before those about the measurement.
        """
        with self._lock:
            now_s = self._clock()
            window = Window(now_s if self._start_s is None else self._start_s, now_s)
            counts = self._all
            power, unavailable, conditions = telemetry.account(window, pictures=counts.pictures)
            timeline = self._timeline_now()
            summaries = {stage: found.summary() for stage, found in self._stages.items()}
            latency = {stage: summary for stage, summary in summaries.items() if summary is not None}
            absent = {stage: _why_absent(stage) for stage in STAGES if stage not in latency} if counts.pictures else {}
            from edge.runtime.benchmark import measurement_warnings

            warnings = measurement_warnings(self._stages["total"].first, timeline, conditions, pictures=counts.pictures)
            return RunRecord(
                format=FORMAT,
                edge_version=__version__,
                started_utc=started_utc,
                status=status,
                failure=failure,
                replayed=replayed or telemetry.replayed,
                subject=subject,
                source=source,
                pictures=counts.pictures,
                skipped=list(self._first_skips),
                skipped_count=counts.skipped,
                dropped=self._dropped(),
                gaps=self._gaps(),
                warmup=warmup,
                measured_s=window.length_s,
                rate_per_s=counts.pictures / window.length_s if counts.pictures and window.length_s > 0 else None,
                latency=latency,
                histogram={stage: found.sketch.bins() for stage, found in self._stages.items() if stage in latency},
                timeline=timeline,
                stages_absent=absent,
                power=power,
                power_unavailable=unavailable,
                conditions=conditions,
                top_labels=_most_common(counts.labels),
                warnings=[*notes, *map(str, self._messages()), *telemetry.notes, *warnings],
                results=list(self._results),
                results_kept="all" if counts.pictures <= MOST_RESULTS else "newest",
                cameras=[self._camera_record(name) for name in self._cameras],
                top_decisions=_most_common(counts.decisions),
                notify=list(self._notify()),
            )

    def _timeline_now(self) -> list[Tick]:
        return self._timeline.ticks(self._elapsed_s(), dropped=self._dropped() or 0, reading=self._reading())

    def _gaps(self) -> list[Gap]:
        if not self._cameras:
            return list(self._all.gaps)
        gaps = [gap for camera in self._cameras.values() for gap in camera.gaps]
        return sorted(gaps, key=lambda gap: gap.start_s)[:MOST_GAPS]

    def _camera_record(self, name: str) -> CameraRecord:
        camera = self._cameras[name]
        found = {"total": camera.total.summary(), "age": camera.age.summary()}
        return CameraRecord(
            name=name,
            pictures=camera.pictures,
            skipped_count=camera.skipped,
            dropped=camera.dropped_in_run(),
            gaps_count=camera.gaps_count,
            reconnects=camera.gaps_ended,
            latency={stage: summary for stage, summary in found.items() if summary is not None},
            top_labels=_most_common(camera.labels),
        )


def _is_same_gap(first: Gap, second: Gap) -> bool:
    return (first.camera, first.start_s) == (second.camera, second.start_s)


def _why_absent(stage: str) -> str:
    if stage == "age":
        return "the frames have no capture time"
    return "none (CPU backend)"

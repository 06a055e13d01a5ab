"""What a run has seen so far, in bounded memory, and the record that it makes."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

from edge import __version__
from edge.artifacts import (
    FORMAT,
    MOST_GAPS,
    MOST_LABELS,
    MOST_RESULTS,
    MOST_SKIPS,
    FrameResult,
    Gap,
    LabelCount,
    RunRecord,
    Skip,
    Status,
    Subject,
    Tick,
    Warmup,
)
from edge.runtime.measurement_warnings import find_warnings
from edge.runtime.timeline import Timeline
from edge.stats import QuantileSketch, Summary, summarize
from edge.telemetry import Telemetry, Window

STAGES = ("decode", "preprocess", "host_to_device", "infer", "device_to_host", "postprocess", "total", "age")
# Up to this many values the percentiles are exact.
_EXACT = 4096


class _Distribution:
    """Durations of one stage: all of them while they are few, and always in a sketch."""

    def __init__(self) -> None:
        self.few: list[float] = []
        self.sketch = QuantileSketch()

    def add(self, value_ms: float) -> None:
        self.sketch.add(value_ms)
        if len(self.few) <= _EXACT:
            self.few.append(value_ms)

    def summary(self) -> Summary | None:
        return summarize(self.few) if len(self.few) <= _EXACT else self.sketch.summary()


class RunAccount:
    """Counts what is heard. ``started_utc`` is the wall clock when the run began, ``source`` what the frames come from.

    Times given to it are seconds since the measured window began.
    """

    def __init__(
        self, *, subject: Subject, source: dict[str, Any], replayed: str | None, telemetry: Telemetry, started_utc: str
    ) -> None:
        self.pictures = 0
        self.skipped_count = 0
        self.first_reason: str | None = None
        self.notes: list[str] = list(telemetry.notes)
        self.source = source
        self._subject = subject
        self._replayed = replayed or telemetry.replayed
        self._telemetry = telemetry
        self._started_utc = started_utc
        self._skipped: list[Skip] = []
        self._gaps: list[Gap] = []
        self._results: deque[FrameResult] = deque(maxlen=MOST_RESULTS)
        self._labels: Counter[tuple[int, str]] = Counter()
        self._stages = {stage: _Distribution() for stage in STAGES}
        self._timeline = Timeline()

    def advance(self, t_s: float, *, dropped: int | None) -> list[Tick]:
        """Time has come to ``t_s``: the bins of the time line that ended."""
        sampler = self._telemetry.sampler
        return self._timeline.advance(t_s, dropped=dropped or 0, reading=sampler.latest if sampler else None)

    def add(self, heard: FrameResult | Skip | Gap) -> None:
        """Count one picture, skip or gap; a gap that ended takes the place of the same one while it was open."""
        if isinstance(heard, FrameResult):
            self._add_result(heard)
        elif isinstance(heard, Skip):
            self.skipped_count += 1
            self.first_reason = self.first_reason or heard.reason
            if len(self._skipped) < MOST_SKIPS:
                self._skipped.append(heard)
        elif self._gaps and self._gaps[-1].start_s == heard.start_s:
            self._gaps[-1] = heard
        elif len(self._gaps) < MOST_GAPS:
            self._gaps.append(heard)

    def _add_result(self, result: FrameResult) -> None:
        self.pictures += 1
        self._results.append(result)
        stages = result.stages
        for stage, value in (
            ("decode", stages.decode_ms),
            ("preprocess", stages.preprocess_ms),
            ("host_to_device", stages.host_to_device_ms),
            ("infer", stages.infer_ms),
            ("device_to_host", stages.device_to_host_ms),
            ("postprocess", stages.postprocess_ms),
            ("total", stages.total_ms),
            ("age", stages.age_ms),
        ):
            if value is not None:
                self._stages[stage].add(value)
        self._timeline.add(result.t_s, stages.total_ms, stages.age_ms)
        if result.guesses:
            best = result.guesses[0]
            self._labels[best.index, best.label] += 1

    def record(
        self,
        status: Status,
        *,
        failure: str | None,
        warmup: Warmup,
        window: Window,
        dropped: int | None,
        notes: Sequence[str] = (),
    ) -> RunRecord:
        """The record of everything so far; ``window`` is on the sampler's clock, ``notes`` come from the stream."""
        power, unavailable, conditions = self._telemetry.account(window, pictures=self.pictures)
        sampler = self._telemetry.sampler
        timeline = self._timeline.ticks(window.length_s, reading=sampler.latest if sampler else None)
        summaries = {stage: found.summary() for stage, found in self._stages.items()}
        latency = {stage: summary for stage, summary in summaries.items() if summary is not None}
        absent = {stage: _why_absent(stage) for stage in STAGES if stage not in latency} if self.pictures else {}
        return RunRecord(
            format=FORMAT,
            edge_version=__version__,
            started_utc=self._started_utc,
            status=status,
            failure=failure,
            replayed=self._replayed,
            subject=self._subject,
            source=self.source,
            pictures=self.pictures,
            skipped=list(self._skipped),
            skipped_count=self.skipped_count,
            dropped=dropped,
            gaps=list(self._gaps),
            warmup=warmup,
            measured_s=window.length_s,
            rate_per_s=self.pictures / window.length_s if self.pictures and window.length_s > 0 else None,
            latency=latency,
            histogram={stage: found.sketch.bins() for stage, found in self._stages.items() if stage in latency},
            timeline=timeline,
            stages_absent=absent,
            power=power,
            power_unavailable=unavailable,
            conditions=conditions,
            top_labels=[LabelCount(i, label, n) for (i, label), n in self._labels.most_common(MOST_LABELS)],
            warnings=[
                *notes,
                *self.notes,
                *find_warnings(self._total_ms(), timeline, conditions, pictures=self.pictures),
            ],
            results=list(self._results),
            results_kept="all" if self.pictures <= MOST_RESULTS else "newest",
        )

    def _total_ms(self) -> Sequence[float]:
        return self._stages["total"].few


def _why_absent(stage: str) -> str:
    if stage == "age":
        return "the frames carry no time"
    return "does not exist on this backend; its tensors stay in host memory"

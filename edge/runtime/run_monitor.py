"""What a run looks like now, in bounded memory: the one thing that the terminal, the web page, the metrics and the
supervisor's status line are drawn from.

The loop's threads tell it what they hear; whoever looks takes a snapshot. Seconds are binned as they pass, so that a
chart of the last minutes costs nothing but the chart.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

import msgspec

from edge.artifacts import FrameResult, Gap, Skip, Tick
from edge.stats import percentile
from edge.telemetry import Reading

Clock = Callable[[], float]

# Seconds of history that are kept, and the newest latencies.
HISTORY_S = 600
RECENT = 240
_GAPS = 20


class RunSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot. ``history`` has one bin per second, oldest first; ``recent_ms`` are total times, oldest first.

    ``rate_per_s`` is that of the last ten full seconds, or of everything where there are fewer. ``gap`` is the one that
    is open. ``t_s`` counts from the first picture.
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
    result: FrameResult | None
    rate_per_s: float | None
    recent_ms: tuple[float, ...]
    recent_age_ms: tuple[float, ...]
    history: tuple[Tick, ...]
    reading: Reading | None

    @property
    def line(self) -> str:
        """The state in one plain line."""
        words = [f"{self.pictures}" + (f" of {self.total}" if self.total is not None else "") + " pictures"]
        if self.rate_per_s is not None:
            words.append(f"{self.rate_per_s:.1f} pictures/s")
        if self.recent_ms:
            ordered = sorted(self.recent_ms)
            words.append(f"p50 {percentile(ordered, 0.5):.1f}, p90 {percentile(ordered, 0.9):.1f} ms")
        if self.reading is not None and self.reading.power_mw is not None:
            words.append(f"{self.reading.power_mw / 1e3:.2f} W")
        if self.dropped:
            words.append(f"{self.dropped} dropped")
        if self.skipped:
            words.append(f"{self.skipped} skipped")
        if self.gap is not None:
            words.append(f"no frames: {self.gap.reason}")
        return ", ".join(words)


class RunMonitor:
    """Hears a run. ``total`` is the number of pictures where it is known; the callables are asked when needed."""

    def __init__(
        self,
        *,
        total: int | None = None,
        dropped: Callable[[], int | None] = lambda: None,
        reading: Callable[[], Reading | None] = lambda: None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._total = total
        self._dropped = dropped
        self._reading = reading
        self._clock = clock
        self._lock = threading.Lock()
        self._start_s: float | None = None
        self._pictures = self._skipped = self._gaps_count = 0
        self._last_skip: Skip | None = None
        self._result: FrameResult | None = None
        self._gaps: deque[Gap] = deque(maxlen=_GAPS)
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._recent_age: deque[float] = deque(maxlen=RECENT)
        self._history: deque[Tick] = deque(maxlen=HISTORY_S)
        self._bin_total: list[float] = []
        self._bin_age: list[float] = []
        self._bin_end_s = 1.0
        self._bin_dropped = 0

    def hear(self, heard: FrameResult | Skip | Gap) -> None:
        """Take in one event of the loop."""
        with self._lock:
            now = self._clock()
            if self._start_s is None:
                self._start_s = now
            if now - self._start_s >= self._bin_end_s:
                self._advance(now - self._start_s)
            if isinstance(heard, FrameResult):
                self._pictures += 1
                self._result = heard
                total_ms, age_ms = heard.stages.total_ms, heard.stages.age_ms
                self._recent.append(total_ms)
                self._bin_total.append(total_ms)
                if age_ms is not None:
                    self._recent_age.append(age_ms)
                    self._bin_age.append(age_ms)
            elif isinstance(heard, Skip):
                self._skipped += 1
                self._last_skip = heard
            else:
                self._add_gap(heard)

    def now(self) -> RunSnapshot:
        """What it looks like at this moment."""
        with self._lock:
            elapsed = 0.0 if self._start_s is None else self._clock() - self._start_s
            if self._start_s is not None and elapsed >= self._bin_end_s:
                self._advance(elapsed)
            newest = self._gaps[-1] if self._gaps else None
            return RunSnapshot(
                t_s=elapsed,
                pictures=self._pictures,
                total=self._total,
                skipped=self._skipped,
                last_skip=self._last_skip,
                dropped=self._dropped(),
                gaps=tuple(self._gaps),
                gaps_count=self._gaps_count,
                gap=newest if newest is not None and newest.end_s is None else None,
                result=self._result,
                rate_per_s=self._rate(elapsed),
                recent_ms=tuple(self._recent),
                recent_age_ms=tuple(self._recent_age),
                history=tuple(self._history),
                reading=self._reading(),
            )

    def _rate(self, elapsed_s: float) -> float | None:
        last = list(self._history)[-10:]
        if len(last) >= 3:
            return sum(tick.frames for tick in last) / len(last)
        # The clock starts with the first event: after a moment, any number of pictures is an enormous rate.
        return self._pictures / elapsed_s if elapsed_s >= 1.0 and self._pictures else None

    def _add_gap(self, gap: Gap) -> None:
        if self._gaps and self._gaps[-1].start_s == gap.start_s:
            self._gaps[-1] = gap
            return
        self._gaps.append(gap)
        self._gaps_count += 1

    def _advance(self, elapsed_s: float) -> None:
        """Close the seconds that are over; after a long sleep only as many as are kept."""
        self._bin_end_s = max(self._bin_end_s, float(int(elapsed_s)) - HISTORY_S)
        reading, dropped = self._reading(), self._dropped() or 0
        while elapsed_s >= self._bin_end_s:
            total, age = sorted(self._bin_total), sorted(self._bin_age)
            self._history.append(
                Tick(
                    t_s=self._bin_end_s,
                    frames=len(total),
                    dropped=dropped - self._bin_dropped,
                    total_p50_ms=percentile(total, 0.5) if total else None,
                    total_max_ms=total[-1] if total else None,
                    age_p50_ms=percentile(age, 0.5) if age else None,
                    age_max_ms=age[-1] if age else None,
                    power_mw=reading.power_mw if reading else None,
                    temps_c=reading.temps_c if reading else {},
                    loads_percent=reading.loads_percent if reading else {},
                    clocks_mhz=reading.clocks_mhz if reading else {},
                    throttling=reading.throttling if reading else (),
                )
            )
            self._bin_dropped = dropped
            self._bin_total, self._bin_age = [], []
            self._bin_end_s += 1.0

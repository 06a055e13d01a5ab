"""The time series of a run: statistics per bin of time, in a bounded number of bins."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping

import msgspec

from edge.artifacts import MOST_TICKS, Tick
from edge.stats import percentile
from edge.telemetry import Reading

# Seconds of history with one bin each.
HISTORY_S = 600


class Timeline:
    """Events in each bin of time, in a bounded number of bins.

    A bin begins with the length of one second. When there are ``most`` bins, neighbours are merged and bins are twice
    as long from then on, so a run of weeks has 300 to 600 bins. ``seconds`` are the newest 600 bins of one second.
    """

    def __init__(self, *, most: int = MOST_TICKS) -> None:
        self.seconds: deque[Tick] = deque(maxlen=HISTORY_S)
        self._most = most
        self._ticks: list[Tick] = []
        self._bin_s = 1.0
        self._bin_end_s = self._second_end_s = 1.0
        self._bin: Tick | None = None
        self._in_bin = 0
        self._total: list[float] = []
        self._age: list[float] = []
        self._dropped_before = 0

    def add(self, total_ms: float, age_ms: float | None) -> None:
        """Add one image to the current second; call :meth:`advance` first."""
        self._total.append(total_ms)
        if age_ms is not None:
            self._age.append(age_ms)

    def is_due(self, t_s: float) -> bool:
        """Return True if a second is complete at ``t_s``."""
        return t_s >= self._second_end_s

    def advance(self, t_s: float, *, dropped: int = 0, reading: Reading | None = None) -> list[Tick]:
        """Close the bins that ended before ``t_s`` and return them; ``dropped`` is the total so far."""
        closed: list[Tick] = []
        while t_s >= self._second_end_s:
            tick = self._tick(self._second_end_s, dropped, reading)
            self._total, self._age, self._dropped_before = [], [], dropped
            self.seconds.append(tick)
            whole = tick if self._bin is None else merged(self._bin, tick, weights=(self._in_bin, 1))
            self._bin, self._in_bin = whole, self._in_bin + 1
            pending: Tick | None = whole
            if self._second_end_s >= self._bin_end_s:
                closed.append(self._close_bin(whole))
                pending = None
            # After the machine was suspended, only the stored seconds are closed one by one.
            asleep_until_s = float(int(t_s)) - HISTORY_S
            while self._bin_end_s < asleep_until_s:
                self._second_end_s = self._bin_end_s
                empty = self._tick(self._bin_end_s, dropped, reading)
                closed.append(self._close_bin(empty if pending is None else pending))
                pending = None
            self._second_end_s += 1.0
        return closed

    def ticks(self, t_s: float, *, dropped: int = 0, reading: Reading | None = None) -> list[Tick]:
        """Return all bins, the last one truncated at ``t_s``."""
        if t_s <= self._second_end_s - 1.0:
            return [*self._ticks, *([self._bin] if self._bin is not None else [])]
        tick = self._tick(min(t_s, self._second_end_s), dropped, reading)
        last = tick if self._bin is None else merged(self._bin, tick, weights=(self._in_bin, 1))
        return [*self._ticks, last]

    def _tick(self, t_s: float, dropped: int, reading: Reading | None) -> Tick:
        total, age = sorted(self._total), sorted(self._age)
        return Tick(
            t_s=t_s,
            frames=len(total),
            dropped=dropped - self._dropped_before,
            total_p50_ms=percentile(total, 0.5) if total else None,
            total_max_ms=total[-1] if total else None,
            age_p50_ms=percentile(age, 0.5) if age else None,
            age_max_ms=age[-1] if age else None,
            power_mw=None if reading is None else reading.power_mw,
            temps_c={} if reading is None else reading.temps_c,
            loads_percent={} if reading is None else reading.loads_percent,
            clocks_mhz={} if reading is None else reading.clocks_mhz,
            throttling=() if reading is None else reading.throttling,
        )

    def _close_bin(self, whole: Tick) -> Tick:
        tick = msgspec.structs.replace(whole, t_s=self._bin_end_s)
        self._bin, self._in_bin = None, 0
        self._ticks.append(tick)
        if len(self._ticks) >= self._most:
            self._ticks = halved(self._ticks)
            self._bin_s *= 2
        self._bin_end_s += self._bin_s
        return tick


def halved(ticks: list[Tick]) -> list[Tick]:
    """Merge neighbours in pairs, from the first one on; an odd last one stays unchanged."""
    pairs = [merged(*ticks[at : at + 2]) for at in range(0, len(ticks) - 1, 2)]
    return pairs + ticks[len(pairs) * 2 :]


def merged(first: Tick, second: Tick, *, weights: tuple[int, int] = (1, 1)) -> Tick:
    """Merge two neighbours: counts are added and maxima kept.

    A merged median is the mean of both medians weighted by frames, an approximation. Power, loads and clocks are means
    weighted by the ``weights`` of the two; temperatures are the higher values.
    """

    def mean(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, float]:
        pairs = {name: _weighted((a.get(name), weights[0]), (b.get(name), weights[1])) for name in {**a, **b}}
        return {name: value for name, value in pairs.items() if value is not None}

    return Tick(
        t_s=second.t_s,
        frames=first.frames + second.frames,
        dropped=first.dropped + second.dropped,
        total_p50_ms=_weighted((first.total_p50_ms, first.frames), (second.total_p50_ms, second.frames)),
        total_max_ms=_highest(first.total_max_ms, second.total_max_ms),
        age_p50_ms=_weighted((first.age_p50_ms, first.frames), (second.age_p50_ms, second.frames)),
        age_max_ms=_highest(first.age_max_ms, second.age_max_ms),
        power_mw=_weighted((first.power_mw, weights[0]), (second.power_mw, weights[1])),
        temps_c={
            name: max(first.temps_c.get(name, -math.inf), second.temps_c.get(name, -math.inf))
            for name in {**first.temps_c, **second.temps_c}
        },
        loads_percent=mean(first.loads_percent, second.loads_percent),
        clocks_mhz=mean(first.clocks_mhz, second.clocks_mhz),
        throttling=tuple(dict.fromkeys(first.throttling + second.throttling)),
    )


def _weighted(*pairs: tuple[float | None, int]) -> float | None:
    known = [(value, weight) for value, weight in pairs if value is not None]
    weights = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / weights if weights else None


def _highest(*values: float | None) -> float | None:
    return max((value for value in values if value is not None), default=None)

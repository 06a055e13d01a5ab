"""The time line of a run: what happened in each bin of time, in a bounded number of bins.

A bin begins as one second. When there are too many, neighbours are merged and bins are twice as long from then on, so a
run of weeks keeps 300 to 600 of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from edge.artifacts import MOST_TICKS, Tick
from edge.stats import QuantileSketch

if TYPE_CHECKING:
    from edge.telemetry import Reading

_BIN_S = 1.0


class Timeline:
    """Bins of ``bin_s`` seconds at first, of which there are never more than ``most``."""

    def __init__(self, *, bin_s: float = _BIN_S, most: int = MOST_TICKS) -> None:
        self._bin_s = bin_s
        self._most = most
        self._ticks: list[Tick] = []
        self._end_s = bin_s
        self._total, self._age = QuantileSketch(), QuantileSketch()
        self._dropped = self._dropped_before = 0

    def add(self, t_s: float, total_ms: float, age_ms: float | None) -> None:
        """Count one labelled frame; :meth:`advance` comes first."""
        del t_s
        self._total.add(total_ms)
        if age_ms is not None:
            self._age.add(age_ms)

    def advance(self, t_s: float, *, dropped: int = 0, reading: Reading | None = None) -> list[Tick]:
        """Close the bins that ended before ``t_s``; ``dropped`` counts since the beginning. The closed ones."""
        closed = []
        self._dropped = dropped
        while t_s >= self._end_s:
            closed.append(self._close(self._end_s, reading))
            self._end_s += self._bin_s
        return closed

    def ticks(self, t_s: float, *, reading: Reading | None = None) -> list[Tick]:
        """All bins, the last one cut off at ``t_s``."""
        if t_s <= self._end_s - self._bin_s:
            return list(self._ticks)
        return [*self._ticks, self._tick(min(t_s, self._end_s), reading)]

    def _tick(self, t_s: float, reading: Reading | None) -> Tick:
        total, age = self._total, self._age
        return Tick(
            t_s=t_s,
            frames=total.n,
            dropped=self._dropped - self._dropped_before,
            total_p50_ms=total.quantile(0.5) if total.n else None,
            total_max_ms=total.max_ms if total.n else None,
            age_p50_ms=age.quantile(0.5) if age.n else None,
            age_max_ms=age.max_ms if age.n else None,
            power_mw=None if reading is None else reading.power_mw,
            temps_c={} if reading is None else reading.temps_c,
            loads_percent={} if reading is None else reading.loads_percent,
            clocks_mhz={} if reading is None else reading.clocks_mhz,
            throttling=() if reading is None else reading.throttling,
        )

    def _close(self, t_s: float, reading: Reading | None) -> Tick:
        tick = self._tick(t_s, reading)
        self._ticks.append(tick)
        self._total, self._age = QuantileSketch(), QuantileSketch()
        self._dropped_before = self._dropped
        if len(self._ticks) >= self._most:
            self._ticks = halved(self._ticks)
            self._bin_s *= 2
        return tick


def halved(ticks: list[Tick]) -> list[Tick]:
    """Neighbours merged in pairs, from the first one on; a last one that is alone stays as it is."""
    pairs = [merged(*ticks[at : at + 2]) for at in range(0, len(ticks) - 1, 2)]
    return pairs + ticks[len(pairs) * 2 :]


def merged(first: Tick, second: Tick) -> Tick:
    """Two neighbours as one: counts are added and maxima kept.

    A median is the mean of both medians weighted by frames, which is near, not exact. Power, loads and clocks are means
    of what was read, temperatures the higher ones.
    """
    return Tick(
        t_s=second.t_s,
        frames=first.frames + second.frames,
        dropped=first.dropped + second.dropped,
        total_p50_ms=_weighted((first.total_p50_ms, first.frames), (second.total_p50_ms, second.frames)),
        total_max_ms=_highest(first.total_max_ms, second.total_max_ms),
        age_p50_ms=_weighted((first.age_p50_ms, first.frames), (second.age_p50_ms, second.frames)),
        age_max_ms=_highest(first.age_max_ms, second.age_max_ms),
        power_mw=_weighted((first.power_mw, 1), (second.power_mw, 1)),
        temps_c={name: max(values) for name, values in _both(first.temps_c, second.temps_c).items()},
        loads_percent={name: sum(v) / len(v) for name, v in _both(first.loads_percent, second.loads_percent).items()},
        clocks_mhz={name: sum(v) / len(v) for name, v in _both(first.clocks_mhz, second.clocks_mhz).items()},
        throttling=tuple(dict.fromkeys(first.throttling + second.throttling)),
    )


def _weighted(*pairs: tuple[float | None, int]) -> float | None:
    known = [(value, weight) for value, weight in pairs if value is not None]
    weights = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / weights if weights else None


def _highest(*values: float | None) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _both(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, list[float]]:
    return {
        name: [values[name] for values in (first, second) if name in values]
        for name in dict.fromkeys([*first, *second])
    }

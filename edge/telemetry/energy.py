"""From power samples to energy: trapezoids over a window, with what is known about the error.

The samples are instantaneous, so the sum of trapezoids is the estimate. If the power between two samples stays between
their two values, the truth is within half of ``|p[i+1] - p[i]| * dt`` per interval: the sum of these is
``error_joules``. It says nothing about peaks shorter than the sampling interval, nor about the accuracy of the sensor.
"""

from __future__ import annotations

import bisect
import math

import msgspec

from edge.telemetry.sources import Scope

MIN_SAMPLES = 10
MIN_IDLE_S = 10.0
# A hole in the samples longer than this share of the window makes its energy a guess.
_MAX_GAP_SHARE = 0.2
_MILLI = 1e-3


class Window(msgspec.Struct, frozen=True):
    """A stretch of time on the clock of the samples, in seconds."""

    start_s: float
    end_s: float

    @property
    def length_s(self) -> float:
        """Its length in seconds."""
        return self.end_s - self.start_s


class Energy(msgspec.Struct, frozen=True, kw_only=True):
    """Energy taken in a window, with what it takes to judge the number; ``refusal`` says why there is none.

    ``interval_s`` is the mean distance of the samples and ``longest_gap_s`` the largest. ``net_joules`` is what is left
    after ``idle_mw`` times the window, and ``net_error_joules`` holds the errors of both; all three are None without a
    usable idle baseline, and ``idle_refusal`` says why. ``idle_samples`` were taken over ``idle_s`` seconds.
    """

    source: str
    scope: Scope
    samples: int
    window_s: float
    joules: float | None = None
    mean_mw: float | None = None
    error_joules: float | None = None
    interval_s: float | None = None
    longest_gap_s: float | None = None
    idle_mw: float | None = None
    idle_s: float | None = None
    idle_samples: int | None = None
    net_joules: float | None = None
    net_error_joules: float | None = None
    refusal: str | None = None
    idle_refusal: str | None = None

    def above(self, idle: Energy) -> Energy:
        """The same energy with ``idle``, measured while nothing ran, taken off; ten seconds of it at least."""
        if self.joules is None:
            return self
        why = None
        if idle.mean_mw is None:
            why = f"the idle baseline was refused: {idle.refusal}"
        elif (idle.source, idle.scope) != (self.source, self.scope):
            why = f"the idle baseline is {idle.source} ({idle.scope}), this is {self.source} ({self.scope})"
        elif idle.window_s < MIN_IDLE_S:
            why = f"the idle baseline is {idle.window_s:.1f} s long; at least {MIN_IDLE_S:g} s are needed"
        if why is not None or idle.mean_mw is None:
            return msgspec.structs.replace(self, idle_mw=None, net_joules=None, net_error_joules=None, idle_refusal=why)
        error = (self.error_joules or 0.0) + (idle.error_joules or 0.0) / idle.window_s * self.window_s
        return msgspec.structs.replace(
            self,
            idle_mw=idle.mean_mw,
            idle_s=idle.window_s,
            idle_samples=idle.samples,
            net_joules=self.joules - idle.mean_mw * _MILLI * self.window_s,
            net_error_joules=error,
            idle_refusal=None,
        )

    def per_picture(self, pictures: int) -> dict[str, float]:
        """Joules for each of ``pictures`` that were labelled in the window, gross and net, each with its error.

        Empty without energy or pictures; net is missing without an idle baseline.
        """
        each = {
            "joules_per_picture": self.joules,
            "error_joules_per_picture": self.error_joules,
            "net_joules_per_picture": self.net_joules,
            "net_error_joules_per_picture": self.net_error_joules,
        }
        return {name: joules / pictures for name, joules in each.items() if joules is not None} if pictures else {}


class _Point(msgspec.Struct, frozen=True):
    """A sample that was kept: running sums from the first sample on, and the longest gap since the point before."""

    t_s: float
    power_mw: float
    joules: float
    error_joules: float
    count: int
    gap_s: float


class Trace:
    """Power samples of any length of time in bounded memory.

    Running sums are kept at some of the samples. Beyond ``capacity`` points every other one is dropped: a sum over a
    window then loses nothing but the exact place of its two ends, and ``error_joules`` counts the intervals there in
    full.
    """

    def __init__(self, *, capacity: int = 8192) -> None:
        self._capacity = max(capacity, 4 * MIN_SAMPLES)
        self._points: list[_Point] = []
        self._last: _Point | None = None
        self._stride = 1

    def add(self, t_s: float, power_mw: float) -> None:
        """Take one sample; one that is not newer than the last is the same sample again, and is ignored."""
        last = self._last
        if last is None:
            point = _Point(t_s, power_mw, 0.0, 0.0, 1, 0.0)
        elif t_s <= last.t_s:
            return
        else:
            # While samples are skipped, the gap of the last one holds the longest since the point that was kept.
            carried = last.gap_s if last is not self._points[-1] else 0.0
            point = _after(last, t_s, power_mw, carried_gap_s=carried)
        self._last = point
        if (point.count - 1) % self._stride == 0:
            self._points.append(point)
            if len(self._points) > self._capacity:
                self._thin()

    def energy(self, window: Window, *, source: str, scope: Scope) -> Energy:
        """Energy in ``window``, or why there is none."""
        points = [*self._points, self._last] if self._last and self._last is not self._points[-1] else self._points
        times = [point.t_s for point in points]
        start, end = (_sums_at(t_s, points, times) for t_s in (window.start_s, window.end_s))
        inside = _samples_inside(window, points, start.count, end.count)
        bare = Energy(source=source, scope=scope, samples=inside, window_s=window.length_s)
        if inside < MIN_SAMPLES:
            why = f"{inside} power samples in {window.length_s:.2f} s; at least {MIN_SAMPLES} are needed"
            return msgspec.structs.replace(bare, refusal=why)
        low = max(bisect.bisect_right(times, window.start_s) - 1, 0)
        high = min(bisect.bisect_left(times, window.end_s), len(points) - 1)
        interval = (times[high] - times[low]) / (points[high].count - points[low].count)
        uncovered = max(times[0] - window.start_s, window.end_s - times[-1], 0.0)
        gap = max(uncovered, *(point.gap_s for point in points[low + 1 : high + 1]))
        bare = msgspec.structs.replace(bare, interval_s=interval, longest_gap_s=gap)
        if gap > _MAX_GAP_SHARE * window.length_s:
            why = f"no power was read for {gap:.2f} s of a window of {window.length_s:.2f} s"
            return msgspec.structs.replace(bare, refusal=why)
        joules = end.joules - start.joules
        powers = [point.power_mw for point in points[low : high + 1]]
        error = points[high].error_joules - points[low].error_joules
        # Beyond the first and the last sample the power is held; it could be anything that was seen.
        error += (max(powers) - min(powers)) * _MILLI * _beyond(window, times)
        return msgspec.structs.replace(
            bare, joules=joules, mean_mw=joules / window.length_s / _MILLI, error_joules=error
        )

    def _thin(self) -> None:
        kept = self._points[::2]
        for i in range(1, len(kept)):
            skipped = self._points[2 * i - 1]
            if skipped.gap_s > kept[i].gap_s:
                kept[i] = msgspec.structs.replace(kept[i], gap_s=skipped.gap_s)
        self._stride *= 2
        self._points = kept


class _Sums(msgspec.Struct, frozen=True):
    joules: float
    count: float


def _after(last: _Point, t_s: float, power_mw: float, *, carried_gap_s: float) -> _Point:
    dt = t_s - last.t_s
    return _Point(
        t_s=t_s,
        power_mw=power_mw,
        joules=last.joules + (last.power_mw + power_mw) / 2 * dt * _MILLI,
        error_joules=last.error_joules + abs(power_mw - last.power_mw) / 2 * dt * _MILLI,
        count=last.count + 1,
        gap_s=max(dt, carried_gap_s),
    )


def _sums_at(t_s: float, points: list[_Point], times: list[float]) -> _Sums:
    """Running sums at any time: between samples the power is linear, outside of them it is held."""
    if not points:
        return _Sums(0.0, 0.0)
    i = bisect.bisect_right(times, t_s) - 1
    p = points[max(i, 0)]
    x = t_s - p.t_s
    if i < 0 or i == len(points) - 1:
        return _Sums(p.joules + p.power_mw * x * _MILLI, p.count)
    q = points[i + 1]
    share = x / (q.t_s - p.t_s)
    count = p.count + share * (q.count - p.count)
    if q.count - p.count > 1:
        return _Sums(p.joules + share * (q.joules - p.joules), count)
    there = p.power_mw + share * (q.power_mw - p.power_mw)
    return _Sums(p.joules + (p.power_mw + there) / 2 * x * _MILLI, count)


def _samples_inside(window: Window, points: list[_Point], start: float, end: float) -> int:
    if not points or window.end_s < points[0].t_s or window.start_s > points[-1].t_s:
        return 0
    return max(math.floor(end) - math.ceil(start) + 1, 0)


def _beyond(window: Window, times: list[float]) -> float:
    """Seconds of the window before the first and after the last sample."""
    return max(times[0] - window.start_s, 0.0) + max(window.end_s - times[-1], 0.0)

"""Integrate power samples to energy: trapezoids over a window, with an error estimate.

The samples are instantaneous values. If the power between two samples stays between their two values, the true energy
of an interval is within half of ``|p[i+1] - p[i]| * dt``; ``error_joules`` is the sum of these. It does not cover peaks
shorter than the sampling interval, nor the accuracy of the sensor.
"""

from __future__ import annotations

import bisect
import math

import msgspec

from edge.telemetry.sources import Scope

MIN_SAMPLES = 10
MIN_IDLE_S = 10.0
# A gap in the samples longer than this share of the window makes its energy unreliable.
_MAX_GAP_SHARE = 0.2
_MILLI = 1e-3


class Window(msgspec.Struct, frozen=True):
    """A time interval on the clock of the samples, in seconds."""

    start_s: float
    end_s: float

    @property
    def length_s(self) -> float:
        """Length of the interval in seconds."""
        return self.end_s - self.start_s


class Energy(msgspec.Struct, frozen=True, kw_only=True):
    """Energy used in a window, with the data to judge its quality; ``refusal`` gives the reason if there is none.

    ``interval_s`` is the mean and ``longest_gap_s`` the largest time between samples. ``net_joules`` is the energy
    minus
    ``idle_mw`` times the window; ``net_error_joules`` includes the errors of both. Without a usable idle baseline the
    three
    are None and ``idle_refusal`` gives the reason. ``idle_samples`` were taken over ``idle_s`` seconds.
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
        """Return this energy minus ``idle``, a baseline of at least ten seconds measured while nothing ran."""
        if self.joules is None:
            return self
        why = None
        if idle.mean_mw is None:
            why = f"the idle baseline was refused: {idle.refusal}"
        elif (idle.source, idle.scope) != (self.source, self.scope):
            why = f"the idle baseline is {idle.source} ({idle.scope}), the measurement is {self.source} ({self.scope})"
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
        """Return joules per image for ``pictures`` images labelled in the window, gross and net, each with its error.

        The result is empty without energy or images; net is missing without an idle baseline.
        """
        each = {
            "joules_per_picture": self.joules,
            "error_joules_per_picture": self.error_joules,
            "net_joules_per_picture": self.net_joules,
            "net_error_joules_per_picture": self.net_error_joules,
        }
        return {name: joules / pictures for name, joules in each.items() if joules is not None} if pictures else {}


class _Point(msgspec.Struct, frozen=True):
    """A stored sample: running sums since the first sample, and the longest gap since the previous point."""

    t_s: float
    power_mw: float
    joules: float
    error_joules: float
    count: int
    gap_s: float


class Trace:
    """Stores power samples of any length of time in bounded memory.

    Running sums are stored at some of the samples. Beyond ``capacity`` points every second one is dropped: an integral
    over a window then loses only the exact position of its two ends, and ``error_joules`` includes the intervals at the
    ends in full.
    """

    def __init__(self, *, capacity: int = 8192) -> None:
        self._capacity = max(capacity, 4 * MIN_SAMPLES)
        self._points: list[_Point] = []
        self._last: _Point | None = None
        self._stride = 1

    def add(self, t_s: float, power_mw: float) -> None:
        """Add one sample; a sample that is not newer than the last one is a repetition and is ignored."""
        last = self._last
        if last is None:
            point = _Point(t_s, power_mw, 0.0, 0.0, 1, 0.0)
        elif t_s <= last.t_s:
            return
        else:
            # While samples are skipped, the last one's gap is the longest since the stored point.
            carried = last.gap_s if last is not self._points[-1] else 0.0
            point = _after(last, t_s, power_mw, carried_gap_s=carried)
        self._last = point
        if (point.count - 1) % self._stride == 0:
            self._points.append(point)
            if len(self._points) > self._capacity:
                self._thin()

    def energy(self, window: Window, *, source: str, scope: Scope) -> Energy:
        """Return the energy in ``window``, or the reason why there is none."""
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
        # Before the first and after the last sample the power is taken as constant; it could be any value seen so far.
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
    """Return the running sums at any time; power is linear between samples and constant outside of them."""
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
    """Return the seconds of the window before the first and after the last sample."""
    return max(times[0] - window.start_s, 0.0) + max(window.end_s - times[-1], 0.0)

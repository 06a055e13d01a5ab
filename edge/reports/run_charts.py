"""The plots of a report. Runs are called by their letters and colours; text out of a record never enters a plot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec

from edge.artifacts import RunRecord, Tick
from edge.reports import html
from edge.reports.html import GRID, SOFT, colour
from edge.stats import Bin

STAGES = ("decode", "preprocess", "host_to_device", "infer", "device_to_host", "postprocess")
_WIDE, _NARROW = 7.4, 4.6
_THROTTLE = 6


class Curve(msgspec.Struct, frozen=True):
    """The latencies of one run: ``bins`` as in the record, from ``low_ms`` on."""

    index: int
    letter: str
    low_ms: float
    bins: list[Bin]
    p50_ms: float
    p99_ms: float | None


def shape(curve: Curve, *, title: str) -> str:
    """One run's latencies as bars, with median and p99."""
    with html.style(title):
        figure, [axes] = html.figure(_NARROW, 2.5)
        edges, shares = _steps(curve)
        axes.stairs([share * 100 for share in shares], edges, fill=True, color=colour(curve.index), alpha=0.55)
        for value, name in ((curve.p50_ms, "p50"), (curve.p99_ms, "p99")):
            if value is not None:
                axes.axvline(value, color=SOFT, linewidth=1.0, linestyle=(0, (3, 2)))
                axes.annotate(
                    name, (value, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 2), textcoords="offset points",
                    va="bottom", ha="center", fontsize=8, color=SOFT,
                )  # fmt: skip
        _log_ms(axes, edges[0], edges[-1])
        axes.set_ylabel("share, %")
        axes.set_ylim(bottom=0.0)
        axes.grid(axis="y", color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        return html.svg(figure, title)


def shares(curves: Sequence[Curve], *, title: str) -> str:
    """Several runs on one axis: which share of the pictures was at least as fast."""
    with html.style(title):
        figure, [axes] = html.figure(_NARROW, 2.6)
        lows, highs = [], []
        for curve in curves:
            edges, parts = _steps(curve)
            sums, total = [0.0], 0.0
            for part in parts:
                total += part
                sums.append(total * 100)
            axes.plot(edges, sums, color=colour(curve.index), linewidth=1.8, zorder=3)
            axes.annotate(
                curve.letter, (curve.p50_ms, 50), xytext=(4, -3), textcoords="offset points", fontsize=9,
                color=colour(curve.index), fontweight="bold",
            )  # fmt: skip
            lows.append(edges[0])
            highs.append(edges[-1])
        _log_ms(axes, min(lows), max(highs))
        axes.set_ylim(0, 100)
        axes.set_ylabel("as fast or faster, %")
        axes.grid(axis="both", color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        return html.svg(figure, title)


def stages(means: Sequence[tuple[str, dict[str, float]]], *, title: str, unit: str) -> str:
    """The stages: where the mean time of a picture goes, one bar per run; colours are those of the stages."""
    with html.style(title):
        figure, [axes] = html.figure(_NARROW, 0.75 + 0.34 * len(means))
        for row, (_letter, each) in enumerate(means):
            left = 0.0
            for number, stage in enumerate(STAGES):
                if stage in each:
                    axes.barh(row, each[stage], left=left, height=0.62, color=colour(number))
                    left += each[stage]
        axes.set_yticks(range(len(means)), [letter for letter, _each in means])
        axes.set_ylim(len(means) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(f"mean ms per {unit}")
        axes.set_xlim(left=0.0)
        axes.grid(axis="x", color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        return html.svg(figure, title)


def time_line(record: RunRecord, *, index: int, limit_ms: float | None, title: str) -> str:
    """Latency over time and drops, gaps in grey, throttling marked above; ``limit_ms`` is the top of the axis."""
    points = _points(record)
    ticks = record.timeline
    with_drops = any(tick.dropped for tick in ticks)
    with html.style(title):
        figure, rows = html.figure(_WIDE, 3.3 if with_drops else 2.5, rows=2 if with_drops else 1)
        axes = rows[0]
        if points:
            axes.plot(*zip(*points, strict=True), ".", color=colour(index), markersize=3.5, alpha=0.8)
        else:
            kept = [tick for tick in ticks if tick.total_p50_ms is not None]
            times = [tick.t_s for tick in kept]
            middle, top = [tick.total_p50_ms for tick in kept], [tick.total_max_ms for tick in kept]
            axes.fill_between(times, middle, top, color=colour(index), alpha=0.22, linewidth=0)
            axes.plot(times, middle, color=colour(index), linewidth=1.5)
        axes.set_ylabel("ms")
        axes.set_ylim(0, limit_ms)
        if with_drops:
            starts = [0.0, *(tick.t_s for tick in ticks)]
            rows[1].stairs([tick.dropped for tick in ticks], starts, fill=True, color=SOFT, alpha=0.5)
            rows[1].set_ylabel("dropped")
            rows[1].set_ylim(bottom=0)
        _over_time(rows, record)
        return html.svg(figure, title)


def power_and_heat(record: RunRecord, *, limits: tuple[float, float] | None, title: str) -> str | None:
    """Power above, temperatures below; None where the time line has neither. ``limits`` are watts."""
    ticks = record.timeline
    watts = [(tick.t_s, tick.power_mw / 1e3) for tick in ticks if tick.power_mw is not None]
    sensors = list(dict.fromkeys(name for tick in ticks for name in tick.temps_c))
    kinds = [kind for kind, there in (("power", len(watts) > 1), ("heat", bool(sensors))) if there]
    if not kinds or len(ticks) < 2:
        return None
    with html.style(title):
        figure, rows = html.figure(_WIDE, 0.6 + 1.5 * len(kinds), rows=len(kinds))
        for kind, axes in zip(kinds, rows, strict=True):
            if kind == "power":
                axes.plot(*zip(*watts, strict=True), color=colour(3), linewidth=1.4)
                axes.set_ylabel("W")
                axes.set_ylim(*(limits or (0, None)))
            else:
                for number, sensor in enumerate(sensors[: html.COLOURS]):
                    values = [(tick.t_s, tick.temps_c[sensor]) for tick in ticks if sensor in tick.temps_c]
                    axes.plot(*zip(*values, strict=True), color=colour(number), linewidth=1.3)
                axes.set_ylabel("°C")
        _over_time(rows, record)
        return html.svg(figure, title)


def heat_sensors(record: RunRecord) -> list[tuple[int, str]]:
    """The sensors of :func:`power_and_heat` with their colours, for the page to name them."""
    names = list(dict.fromkeys(name for tick in record.timeline for name in tick.temps_c))
    return list(enumerate(names[: html.COLOURS]))


def _points(record: RunRecord) -> list[tuple[float, float]]:
    """Every picture of a short run; a long one is drawn from its bins."""
    if record.results_kept != "all":
        return []
    return [(result.t_s, result.stages.total_ms) for result in record.results]


def _over_time(rows: Sequence[Any], record: RunRecord) -> None:
    """The common x axis; gaps, and above everything where the device was throttled."""
    end = max(record.measured_s, record.timeline[-1].t_s if record.timeline else 0.0, 1e-3)
    for axes in rows:
        axes.set_xlim(0, end)
        axes.grid(axis="y", color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        for gap in record.gaps:
            axes.axvspan(max(gap.start_s, 0.0), gap.end_s if gap.end_s is not None else end, color=SOFT, alpha=0.2,
                         linewidth=0)  # fmt: skip
        for start, stop in throttled(record.timeline):
            axes.plot([start, stop], [1.0, 1.0], transform=axes.get_xaxis_transform(), color=colour(_THROTTLE),
                      linewidth=5, solid_capstyle="butt", clip_on=False)  # fmt: skip
    rows[-1].set_xlabel("s")


def throttled(ticks: Sequence[Tick]) -> list[tuple[float, float]]:
    """Stretches of the time line in which something was throttled."""
    spans: list[tuple[float, float]] = []
    before = 0.0
    for tick in ticks:
        if tick.throttling:
            start = spans.pop()[0] if spans and spans[-1][1] == before else before
            spans.append((start, tick.t_s))
        before = tick.t_s
    return spans


def _steps(curve: Curve) -> tuple[list[float], list[float]]:
    """Boundaries (one more than bars, ascending, above 0) and each bar's share of all."""
    total = sum(item.count for item in curve.bins) or 1
    first = curve.bins[0].upper_ms
    low = curve.low_ms if 0 < curve.low_ms < first else first / 1.018
    return [low, *(item.upper_ms for item in curve.bins)], [item.count / total for item in curve.bins]


def _log_ms(axes: Any, low: float, high: float) -> None:  # noqa: ANN401 - matplotlib axes
    """A logarithmic axis of milliseconds with plain numbers at 1, 2 and 5."""
    low, high = max(low, 1e-6), max(high, 2e-6)
    axes.set_xscale("log")
    axes.set_xlim(low / 1.05, high * 1.05)
    ticks = _round_ticks(low / 1.05, high * 1.05)
    axes.set_xticks(ticks, [f"{tick:.6g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("ms")


def _round_ticks(low: float, high: float) -> list[float]:
    """Round numbers between ``low`` and ``high``: by decades in 1, 2, 5 steps, or evenly where they are close."""
    if high / low > 6:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        steps = (1, 2, 5) if high / low < 300 else (1,)
        ticks = [step * 10.0**power for power in decades for step in steps]
    else:
        size = 10.0 ** math.floor(math.log10((high - low) / 3))
        size *= max(step for step in (1, 2, 5) if step * size <= (high - low) / 3)
        ticks = [size * number for number in range(math.ceil(low / size), math.floor(high / size) + 1)]
    return [tick for tick in ticks if low <= tick <= high]

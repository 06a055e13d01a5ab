"""The plots of the sweep page."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from edge.reports import COLOURS, GRID, MARKERS, SOFT, colour, plots
from edge.stats import Interval


class Point(msgspec.Struct, frozen=True):
    """One number of pictures: mean with interval, and each seed's extreme."""

    pictures: int
    mean: Interval
    lowest: float
    highest: float


class RankingBar(msgspec.Struct, frozen=True):
    """One line of a ranking; ``colour`` is the algorithm's number, ``value`` None for the one compared with."""

    label: str
    colour: int
    value: Interval | None


def trend(
    points: Sequence[Point],
    others: Sequence[Sequence[Point]],
    *,
    index: int,
    limits: tuple[float, float],
    unit: str,
    title: str,
) -> str:
    """One algorithm against the number of pictures, the ``others`` faintly behind it; ``title`` is read out."""
    with plots.style(title):
        figure, [axes] = plots.figure(3.3, 2.35)
        ticks = sorted({point.pictures for line in (points, *others) for point in line})
        for line in others:
            axes.plot([p.pictures for p in line], [p.mean.value for p in line], color=GRID, linewidth=1.2, zorder=1)
        x = [point.pictures for point in points]
        mean = [point.mean.value for point in points]
        own = colour(index)
        axes.errorbar(
            x,
            mean,
            yerr=[
                [point.mean.value - point.mean.low for point in points],
                [point.mean.high - point.mean.value for point in points],
            ],
            color=own, elinewidth=1.0, capsize=3, linewidth=1.8,
            marker=MARKERS[index % COLOURS], markersize=5, zorder=3,
        )  # fmt: skip
        spread = [point for point in points if point.highest > point.lowest]
        axes.vlines(
            [point.pictures for point in spread], [point.lowest for point in spread],
            [point.highest for point in spread], color=own, linewidth=5, alpha=0.4, zorder=2,
        )  # fmt: skip
        if len(ticks) > 1:
            axes.set_xscale("log")
            axes.set_xlim(ticks[0] / 1.25, ticks[-1] * 1.25)
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set_ylim(*limits)
        axes.set_xlabel("calibration pictures")
        axes.set_ylabel(unit)
        axes.grid(axis="y", color=GRID, linewidth=0.6)
        return plots.svg(figure, title)


def ranking(bars: Sequence[RankingBar], *, unit: str, title: str) -> str:
    """Differences with their intervals, the first on top; a line at 0."""
    with plots.style(title):
        figure, [axes] = plots.figure(4.6, 0.7 + 0.2 * len(bars))
        axes.axvline(0.0, color=SOFT, linewidth=1.0, zorder=1)
        for row, bar in enumerate(bars):
            value = bar.value or Interval(0.0, 0.0, 0.0)
            own, marker = colour(bar.colour), MARKERS[bar.colour % COLOURS]
            axes.plot([value.low, value.high], [row, row], color=own, linewidth=1.6, zorder=2)
            axes.plot([value.value], [row], color=own, marker=marker, markersize=5, zorder=3)
        axes.set_yticks(range(len(bars)), [bar.label for bar in bars])
        axes.set_ylim(len(bars) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_xlabel(unit)
        return plots.svg(figure, title)

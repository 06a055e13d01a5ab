"""Render a sweep as one HTML file with plots: no scripts or network access, for screens, phones and print."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from edge.errors import DataError
from edge.reports import COLOURS, GRID, MARKERS, SOFT, colour, html
from edge.stats import Interval
from edge.tuning import conclusions
from edge.tuning.sweep_comparison import LEVEL, ConfigurationGroup, ConfigurationPair, Findings, Spread
from edge.tuning.sweep_record import Record

_TEMPLATES = Path(__file__).parent / "templates"


class Cell(msgspec.Struct, frozen=True):
    """One cell of the matrix of algorithms: a difference, its p value, and whether it is significant."""

    value: Interval
    p: float
    differs: bool


def render(record: Record) -> str:
    """Render ``record`` as a page.

    Raises:
        DataError: no table was scored.
        MissingDependencyError: jinja2 or matplotlib is missing.
    """
    found = record.findings
    if found is None:
        raise DataError("no table was scored: there is nothing to show")
    names = list(dict.fromkeys(group.algorithm for group in found.groups))
    return html.render(
        _TEMPLATES / "sweep.html",
        filters={"span": _span, "signed": _signed, "p": _p},
        record=record,
        found=found,
        answers=conclusions.conclusions(record),
        names=names,
        number={name: index % COLOURS for index, name in enumerate(names)},
        trends=[
            ("Logit SQNR, dB", _trends(found, names, "sqnr_db", unit="SQNR, dB")),
            ("Same top-1 as FP32, %", _trends(found, names, "agreement", unit="agreement, %")),
        ],
        behind=_ranking(found, names, "sqnr_behind_db", unit="dB", title="SQNR of each, minus that of the best"),
        lost=_ranking(found, names, "top1_against_fp32", unit="points", title="Top-1 of each, minus that of FP32"),
        matrix=_matrix(found.pairs),
        level=LEVEL,
        marks=conclusions.MARKS,
    )


def _trends(found: Findings, names: Sequence[str], measure: str, *, unit: str) -> list[tuple[str, str]]:
    lines = {name: [_point(g, measure) for g in found.groups if g.algorithm == name] for name in names}
    every = [point for line in lines.values() for point in line]
    low = min(min(point.mean.low, point.lowest) for point in every)
    high = max(max(point.mean.high, point.highest) for point in every)
    margin = 0.06 * (high - low) or 1.0
    drawn = []
    for index, name in enumerate(names):
        svg = trend_chart(
            lines[name],
            [line for other, line in lines.items() if other != name],
            index=index,
            limits=(low - margin, high + margin),
            unit=unit,
            title=f"{name}: {unit}, against the number of calibration images",
        )
        drawn.append((name, svg))
    return drawn


def _point(group: ConfigurationGroup, measure: str) -> Point:
    spread: Spread = getattr(group, measure)
    return Point(group.pictures, spread.mean, spread.lowest, spread.highest)


def _ranking(found: Findings, names: Sequence[str], measure: str, *, unit: str, title: str) -> str:
    ordered = sorted(found.groups, key=lambda group: (-group.sqnr_db.mean.value, group.pictures))
    bars = [RankingBar(f"{g.algorithm}, {g.pictures}", names.index(g.algorithm), getattr(g, measure)) for g in ordered]
    return ranking_chart(bars, unit=unit, title=title)


def _matrix(pairs: Sequence[ConfigurationPair]) -> tuple[list[str], dict[tuple[str, str], Cell]]:
    """Return the names, best first, and the matrix: SQNR above the diagonal, row minus column; top-1 below it."""
    names = list(dict.fromkeys(name for pair in pairs for name in (pair.a, pair.b)))
    cells = {}
    for pair in pairs:
        against = pair.against
        if against.sqnr_db is not None and against.sqnr_p_holm is not None:
            cells[pair.a, pair.b] = Cell(against.sqnr_db, against.sqnr_p_holm, against.sqnr_p_holm < LEVEL)
        top1 = Interval(-against.top1.value, -against.top1.high, -against.top1.low)
        cells[pair.b, pair.a] = Cell(top1, against.top1_p_holm, against.top1_p_holm < LEVEL)
    return names, cells


def _span(value: Interval, digits: int = 1) -> str:
    return f"{value.low:.{digits}f} – {value.high:.{digits}f}"


def _signed(value: float, digits: int = 2) -> str:
    text = f"{value:+.{digits}f}".replace("-", "−")
    return text if any(digit in text for digit in "123456789") else text[1:]


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


class Point(msgspec.Struct, frozen=True):
    """One number of images: mean with interval, and the extremes of the seeds."""

    pictures: int
    mean: Interval
    lowest: float
    highest: float


class RankingBar(msgspec.Struct, frozen=True):
    """One line of a ranking; ``colour`` is the algorithm's number, ``value`` None for the reference."""

    label: str
    colour: int
    value: Interval | None


def trend_chart(
    points: Sequence[Point],
    others: Sequence[Sequence[Point]],
    *,
    index: int,
    limits: tuple[float, float],
    unit: str,
    title: str,
) -> str:
    """Plot one algorithm against the number of images, with the ``others`` in pale; ``title`` is for screen readers."""
    with html.style(title):
        figure, [axes] = html.figure(3.3, 2.35)
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
        axes.set_xlabel("calibration images")
        axes.set_ylabel(unit)
        axes.grid(axis="y", color=GRID, linewidth=0.6)
        return html.svg(figure, title)


def ranking_chart(bars: Sequence[RankingBar], *, unit: str, title: str) -> str:
    """Plot differences with their intervals, the first on top, and a line at 0."""
    with html.style(title):
        figure, [axes] = html.figure(4.6, 0.7 + 0.2 * len(bars))
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
        return html.svg(figure, title)

"""The plots of the page, as SVG that takes its colours from the page's style sheet. The only user of matplotlib.

matplotlib, because it writes plain SVG: text stays text, a page with a dozen plots has 100 kB and no script, prints,
and needs no network. (Plotly and Bokeh bring 1 to 4 MB of JavaScript into each page; pygal has no error bars; Altair
needs a Rust binary to make SVG.) It has aarch64 wheels, and Ubuntu on a Jetson has it as python3-matplotlib.

matplotlib knows no CSS variables: everything is drawn in stand-in colours, and these are replaced in the text.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from edge.errors import require
from edge.stats import Interval

if TYPE_CHECKING:
    from types import ModuleType

# How many colours the style sheet has for algorithms (--s0 …).
COLOURS = 8
_INK, _SOFT, _GRID, _PAPER = "#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04"
_VARIABLES = {_INK: "var(--ink)", _SOFT: "var(--soft)", _GRID: "var(--grid)", _PAPER: "var(--paper)"}
_LONG = re.compile(r"\d+\.\d{3,}")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")


class Point(msgspec.Struct, frozen=True):
    """One number of pictures: mean with interval, and each seed's extreme."""

    pictures: int
    mean: Interval
    lowest: float
    highest: float


class Bar(msgspec.Struct, frozen=True):
    """One line of a ranking; ``colour`` is the algorithm's number, ``value`` None for the one compared with."""

    label: str
    colour: int
    value: Interval | None


def colour(index: int) -> str:
    """Stand-in colour of algorithm ``index``."""
    return f"#0a0c{index % COLOURS:02x}"


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
    library = require("matplotlib")
    with library.rc_context(_settings(library, title)):
        figure, axes = _figure(3.3, 2.35)
        ticks = sorted({point.pictures for line in (points, *others) for point in line})
        for line in others:
            axes.plot([p.pictures for p in line], [p.mean.value for p in line], color=_GRID, linewidth=1.2, zorder=1)
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
            marker=_MARKERS[index % COLOURS], markersize=5, zorder=3,
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
        axes.grid(axis="y", color=_GRID, linewidth=0.6)
        return _svg(figure, title)


def ranking(bars: Sequence[Bar], *, unit: str, title: str) -> str:
    """Differences with their intervals, the first on top; a line at 0."""
    library = require("matplotlib")
    with library.rc_context(_settings(library, title)):
        figure, axes = _figure(4.6, 0.7 + 0.2 * len(bars))
        axes.axvline(0.0, color=_SOFT, linewidth=1.0, zorder=1)
        for row, bar in enumerate(bars):
            value = bar.value or Interval(0.0, 0.0, 0.0)
            own, marker = colour(bar.colour), _MARKERS[bar.colour % COLOURS]
            axes.plot([value.low, value.high], [row, row], color=own, linewidth=1.6, zorder=2)
            axes.plot([value.value], [row], color=own, marker=marker, markersize=5, zorder=3)
        axes.set_yticks(range(len(bars)), [bar.label for bar in bars])
        axes.set_ylim(len(bars) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color=_GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_xlabel(unit)
        return _svg(figure, title)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    """A figure of so many inches, without any of pyplot's global state."""
    figure = require("matplotlib.figure").Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _settings(library: ModuleType, salt: str) -> dict[str, Any]:
    """Everything is set here: a user's matplotlibrc must not change the page."""
    return {
        **library.rcParamsDefault,
        "backend": "svg",
        "svg.fonttype": "none",
        # Ids are hashes of what they stand for; the salt keeps those of two plots in one page apart.
        "svg.hashsalt": salt,
        "font.family": ["DejaVu Sans"],
        "font.size": 9.5,
        "axes.edgecolor": _SOFT,
        "axes.labelcolor": _INK,
        "xtick.color": _SOFT,
        "ytick.color": _SOFT,
        "xtick.labelcolor": _INK,
        "ytick.labelcolor": _INK,
        "axes.linewidth": 0.8,
        "axes.unicode_minus": True,
    }


def _svg(figure: Any, title: str) -> str:  # noqa: ANN401 - a matplotlib Figure
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg ") :]
    # A style element inside a page is about the whole page: the page's own says the same of its plots.
    text = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r' transform="rotate\(-0 [^"]*"', "", text)
    # Coordinates to 1/100 pt; never what stands between the tags, which may be percentile:99.999.
    text = re.sub(r"<[^>]*>", lambda tag: _LONG.sub(lambda number: f"{float(number.group()):.2f}", tag.group()), text)
    # matplotlib numbers its groups anew in each plot, and nothing refers to these ids.
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    head, rest = text.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    if box is None:
        raise ValueError("matplotlib wrote an SVG without a viewBox")
    said = title.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    head = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {box.group()}'
    text = f'{head} role="img" aria-label="{said}">{rest}'
    for stand_in, variable in _VARIABLES.items():
        text = text.replace(stand_in, variable)
    text = re.sub(r"#0a0c(0[0-7])", lambda match: f"var(--s{int(match.group(1), 16)})", text)
    return re.sub(r"\n\s*", "\n", text).strip()

"""A tuning as one HTML file: the curve, the layers with the reason of their noise, the steps of the stack."""

from __future__ import annotations

from pathlib import Path

from edge.reports import GRID, MARKERS, colour, html
from edge.stats import Interval
from edge.tuning.tune import TuningRecord

_TEMPLATES = Path(__file__).parent / "templates"


def render_tuning(record: TuningRecord) -> str:
    """Render ``record`` as a page.

    Raises:
        MissingDependencyError: jinja2 or matplotlib is missing.
    """
    return html.render(
        _TEMPLATES / "tune.html",
        filters={"db": decibels, "share": share},
        record=record,
        result=record.result,
        curve=_curve_chart(record),
    )


def decibels(value: float | None) -> str:
    """``31.3 dB``; equal logits have none."""
    return "equal logits" if value is None else f"{value:.1f} dB"


def share(value: Interval | None) -> str:
    """``97.0 % [91.5, 99.0]``."""
    return "–" if value is None else f"{value.value:.1f} % [{value.low:.1f}, {value.high:.1f}]"


def _curve_chart(record: TuningRecord) -> str:
    title = "Logit SQNR in dB against the number of float layers, predicted and measured"
    with html.style(title):
        figure, [axes] = html.figure(5.6, 3.0)
        predicted = [(point.float_layers, point.predicted_db) for point in record.curve]
        measured = [(point.float_layers, point.sqnr_db) for point in record.curve if point.sqnr_db is not None]
        axes.plot(*zip(*predicted, strict=True), color=colour(0), linewidth=1.6, label="predicted")
        if measured:
            axes.plot(
                *zip(*measured, strict=True), color=colour(1), marker=MARKERS[0], linestyle="none", markersize=5,
                label="measured",
            )  # fmt: skip
        axes.axvline(record.chosen, color=GRID, linewidth=1.0, zorder=0)
        axes.set_xlabel("weighted layers in float")
        axes.set_ylabel("SQNR, dB")
        axes.grid(axis="y", color=GRID, linewidth=0.6)
        axes.legend(frameon=False)
        return html.svg(figure, title)

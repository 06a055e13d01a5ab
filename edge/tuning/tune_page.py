"""Render a tuning as one HTML file: the curve, the layers with the cause of their noise, the preparation steps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edge.model import GraphIndex, WeightedLayer
from edge.quantization import LEVELS, Statistics, TensorStatistics
from edge.reports import GRID, MARKERS, colour, html
from edge.stats import Interval

if TYPE_CHECKING:
    from edge.tuning.tune import TuningRecord

# A tensor has outliers if the ratio of its largest to its typical magnitude (median without zeros) exceeds this.
_OUTLIER_RATIO = 50.0
# If the typical magnitude uses fewer of the 127 levels, few bits are used.
_FEW_LEVELS = 4.0
# A range is one-sided if the other side is smaller than this share of it.
_ONE_SIDED = 0.1


def reason_for(graph: GraphIndex, layer: WeightedLayer, statistics: Statistics, ranges: Mapping[str, float]) -> str:
    """Describe the causes of a layer's noise, the most important first.

    Args:
        graph: The folded network.
        layer: the layer.
        statistics: statistics of the network's activation tensors.
        ranges: Largest magnitude that INT8 represents, by tensor name.
    """
    found = []
    tensor = statistics.tensors.get(layer.activation)
    covered = ranges.get(layer.activation, 0.0)
    if tensor is not None and covered > 0.0:
        found += _of_activation(tensor, covered)
    producer = graph.producer.get(layer.activation)
    if producer is not None and producer.op_type == "Add":
        found.append("reads the residual stream")
    if layer.weight in graph.constants:
        values = np.abs(graph.array(layer.weight).astype(np.float64))
        typical = float(np.median(values[values > 0.0])) if values.any() else 0.0
        if typical > 0.0 and values.max() / typical > _OUTLIER_RATIO:
            found.append(f"outlier weights: the largest is {values.max() / typical:.0f} times the typical one")
    return "; ".join(found) or "no single cause"


def _of_activation(tensor: TensorStatistics, covered: float) -> list[str]:
    found = []
    typical = _typical(tensor)
    if typical > 0.0 and tensor.absmax / typical > _OUTLIER_RATIO:
        found.append(f"outliers: the largest input is {tensor.absmax / typical:.0f} times the typical one")
    if typical > 0.0 and typical / covered * LEVELS < _FEW_LEVELS:
        found.append(f"few bits used: typical inputs reach {typical / covered * LEVELS:.1f} of {LEVELS} levels")
    if min(-tensor.low, tensor.high) < _ONE_SIDED * tensor.absmax:
        found.append("one-sided range: half of the levels are unused")
    return found


def _typical(tensor: TensorStatistics) -> float:
    """Return the median magnitude without values near zero; 0 if there are none."""
    histogram = tensor.histogram()
    counts = histogram.counts[1:]
    total = int(counts.sum())
    if not total:
        return 0.0
    return (int(np.searchsorted(np.cumsum(counts), total / 2)) + 1.5) * histogram.width


def layer_macs(graph: GraphIndex, layer: WeightedLayer, statistics: Statistics) -> float:
    """Return a layer's multiply-accumulate operations per image: weights times output positions."""
    weights = graph.constants.get(layer.weight)
    outputs = statistics.tensors.get(layer.output)
    if weights is None or outputs is None or layer.axis is None or not statistics.pictures:
        return 0.0
    channels = int(weights.dims[layer.axis])
    return float(np.prod(weights.dims)) * (outputs.count / statistics.pictures / channels)


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
    """Format a ratio as ``31.3 dB``; None stands for equal logits."""
    return "equal logits" if value is None else f"{value:.1f} dB"


def share(value: Interval | None) -> str:
    """Format a share as ``97.0 % [91.5, 99.0]``."""
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

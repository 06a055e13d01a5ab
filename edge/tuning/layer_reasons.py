"""Causes of a layer's noise in INT8, read off the statistics of its input and its weights."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edge.model import GraphIndex, WeightedLayer
from edge.quantization import LEVELS, Statistics, TensorStatistics

# From this ratio of the largest magnitude to the typical one (median, zeros left out) on, a tensor has outliers.
_OUTLIER_RATIO = 50.0
# Where the typical magnitude reaches fewer of the 127 levels, few bits are used.
_FEW_LEVELS = 4.0
# A range counts as one-sided where the other side is smaller than this share of it.
_ONE_SIDED = 0.1


def reason_for(graph: GraphIndex, layer: WeightedLayer, statistics: Statistics, ranges: Mapping[str, float]) -> str:
    """The causes of a layer's noise in words, the most telling first.

    Args:
        graph: The folded network.
        layer: Which layer.
        statistics: Of the network's activation tensors.
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
    """Median magnitude, values near zero left out; 0 where there are none."""
    histogram = tensor.histogram()
    counts = histogram.counts[1:]
    total = int(counts.sum())
    if not total:
        return 0.0
    return (int(np.searchsorted(np.cumsum(counts), total / 2)) + 1.5) * histogram.width


def layer_macs(graph: GraphIndex, layer: WeightedLayer, statistics: Statistics) -> float:
    """Multiply-accumulate operations of a layer per picture: its weights times the positions of its output."""
    weights = graph.constants.get(layer.weight)
    outputs = statistics.tensors.get(layer.output)
    if weights is None or outputs is None or layer.axis is None or not statistics.pictures:
        return 0.0
    channels = int(weights.dims[layer.axis])
    return float(np.prod(weights.dims)) * (outputs.count / statistics.pictures / channels)

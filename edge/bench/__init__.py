"""The verb ``bench``: how fast an engine is, by the scenarios of MLPerf Inference."""

from __future__ import annotations

from edge.bench.measure import Settings, batch_sizes, bench
from edge.bench.rules import SCENARIOS, Bound, Rules, bound, fewest_queries
from edge.bench.samples import Samples

__all__ = ["SCENARIOS", "Bound", "Rules", "Samples", "Settings", "batch_sizes", "bench", "bound", "fewest_queries"]

"""The verb ``report``: run records become one HTML page, or the same as data."""

from __future__ import annotations

from edge.report.compare import Comparison, compare
from edge.report.page import render
from edge.report.reading import MOST_RUNS, Run, load

__all__ = ["MOST_RUNS", "Comparison", "Run", "compare", "load", "render"]

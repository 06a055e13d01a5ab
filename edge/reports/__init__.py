"""HTML pages and plots, and the comparison of run records."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge import lazy_exports

if TYPE_CHECKING:
    from edge.reports.html import COLOURS, GRID, MARKERS, SOFT, check, colour
    from edge.reports.loaded_runs import LoadedRun, run_facts
    from edge.reports.run_comparison import RunComparison
    from edge.reports.run_page import difference, ms, ratio
else:
    __getattr__ = lazy_exports(
        __name__,
        {
            "html": ["COLOURS", "GRID", "MARKERS", "SOFT", "check", "colour"],
            "loaded_runs": ["LoadedRun", "run_facts"],
            "run_comparison": ["RunComparison"],
            "run_page": ["difference", "ms", "ratio"],
        },
    )

__all__ = [
    "COLOURS",
    "GRID",
    "MARKERS",
    "SOFT",
    "LoadedRun",
    "RunComparison",
    "check",
    "colour",
    "difference",
    "html",
    "loaded_runs",
    "ms",
    "ratio",
    "run_comparison",
    "run_facts",
    "run_page",
]

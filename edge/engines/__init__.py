"""Engines: build, report on one, list all, compare two."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge import lazy_exports

if TYPE_CHECKING:
    from edge.engines.building import BuildOutcome
    from edge.engines.engine_comparison import EngineComparison
    from edge.engines.engine_report import EngineReport
    from edge.engines.inventory import InventoryEntry, InventoryScan
    from edge.engines.layer_times import LayerTimes
else:
    __getattr__ = lazy_exports(
        __name__,
        {
            "building": ["BuildOutcome"],
            "engine_comparison": ["EngineComparison"],
            "engine_report": ["EngineReport"],
            "inventory": ["InventoryEntry", "InventoryScan"],
            "layer_times": ["LayerTimes"],
        },
    )

__all__ = [
    "BuildOutcome",
    "EngineComparison",
    "EngineReport",
    "InventoryEntry",
    "InventoryScan",
    "LayerTimes",
    "building",
    "engine_comparison",
    "engine_report",
    "inventory",
    "layer_times",
]

"""The terminal: messages, progress bars, the live view and the summary of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge import lazy_exports

if TYPE_CHECKING:
    from edge.ui.terminal.fleet_view import FleetView
    from edge.ui.terminal.live_view import LiveView, render_summary
    from edge.ui.terminal.terminal import Style, Terminal
else:
    __getattr__ = lazy_exports(
        __name__,
        {
            "fleet_view": ["FleetView"],
            "live_view": ["LiveView", "render_summary"],
            "terminal": ["Style", "Terminal"],
        },
    )

__all__ = ["FleetView", "LiveView", "Style", "Terminal", "render_summary"]

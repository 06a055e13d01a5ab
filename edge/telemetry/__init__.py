"""Power, temperatures, load, clocks and energy, from the sensors of this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge import lazy_exports

if TYPE_CHECKING:
    from edge.telemetry.board import Board
    from edge.telemetry.energy import MIN_IDLE_S, Energy, Window
    from edge.telemetry.sampler import Sampler, Telemetry, idle_baseline
    from edge.telemetry.sources import (
        SOURCES,
        NoSource,
        Reading,
        TelemetrySource,
        Unavailable,
        check_name,
        open_source,
        probe,
        source_names,
    )
    from edge.telemetry.telemetry_replay import Log
else:
    __getattr__ = lazy_exports(
        __name__,
        {
            "board": ["Board"],
            "energy": ["Energy", "MIN_IDLE_S", "Window"],
            "sampler": ["Sampler", "Telemetry", "idle_baseline"],
            "sources": [
                "NoSource",
                "Reading",
                "SOURCES",
                "TelemetrySource",
                "Unavailable",
                "check_name",
                "open_source",
                "probe",
                "source_names",
            ],
            "telemetry_replay": ["Log"],
        },
    )

__all__ = [
    "MIN_IDLE_S",
    "SOURCES",
    "Board",
    "Energy",
    "Log",
    "NoSource",
    "Reading",
    "Sampler",
    "Telemetry",
    "TelemetrySource",
    "Unavailable",
    "Window",
    "check_name",
    "idle_baseline",
    "open_source",
    "probe",
    "source_names",
]

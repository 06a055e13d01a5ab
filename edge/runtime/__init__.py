"""Running an engine: the run loop with its statistics and journal, watchdog, benchmark and evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge import lazy_exports

if TYPE_CHECKING:
    from edge.runtime.benchmark import BenchSettings
    from edge.runtime.classifier import output_kind, probabilities, seen_label
    from edge.runtime.evaluation import Scores
    from edge.runtime.journal import Journal, Rotation
    from edge.runtime.notify import Notifications
    from edge.runtime.pipeline import Width
    from edge.runtime.result_files import ResultFiles
    from edge.runtime.run_loop import Observers, RunSettings
    from edge.runtime.run_statistics import CameraSnapshot, Clock, Event, RunSnapshot, RunStatistics
    from edge.runtime.watchdog import Heartbeat, Notifier, slow_start, watchdog_s
else:
    __getattr__ = lazy_exports(
        __name__,
        {
            "benchmark": ["BenchSettings"],
            "classifier": ["output_kind", "probabilities", "seen_label"],
            "evaluation": ["Scores"],
            "journal": ["Journal", "Rotation"],
            "notify": ["Notifications"],
            "pipeline": ["Width"],
            "result_files": ["ResultFiles"],
            "run_loop": ["Observers", "RunSettings"],
            "run_statistics": ["CameraSnapshot", "Clock", "Event", "RunSnapshot", "RunStatistics"],
            "watchdog": ["Heartbeat", "Notifier", "slow_start", "watchdog_s"],
        },
    )

__all__ = [
    "BenchSettings",
    "CameraSnapshot",
    "Clock",
    "Event",
    "Heartbeat",
    "Journal",
    "Notifications",
    "Notifier",
    "Observers",
    "ResultFiles",
    "Rotation",
    "RunSettings",
    "RunSnapshot",
    "RunStatistics",
    "Scores",
    "Width",
    "benchmark",
    "evaluation",
    "output_kind",
    "probabilities",
    "run_loop",
    "seen_label",
    "slow_start",
    "watchdog_s",
]

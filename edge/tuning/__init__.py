"""Calibration sweep and tuning: compare calibrations, and choose the layers that stay in float."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge import lazy_exports

if TYPE_CHECKING:
    from edge.tuning.preprocess_trial import AnswerFunction, TrialResult
    from edge.tuning.sweep_comparison import ConfigurationRow
    from edge.tuning.sweep_record import Record, sweep_summary
    from edge.tuning.tune import TuningRecord
else:
    __getattr__ = lazy_exports(
        __name__,
        {
            "preprocess_trial": ["AnswerFunction", "TrialResult"],
            "sweep_comparison": ["ConfigurationRow"],
            "sweep_record": ["Record", "sweep_summary"],
            "tune": ["TuningRecord"],
        },
    )

__all__ = [
    "AnswerFunction",
    "ConfigurationRow",
    "Record",
    "TrialResult",
    "TuningRecord",
    "conclusions",
    "preprocess_trial",
    "sweep",
    "sweep_page",
    "sweep_record",
    "sweep_summary",
    "sweep_tables",
    "tune",
    "tune_page",
]

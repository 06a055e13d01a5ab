"""The checks of this machine: ``edge doctor`` and ``edge selftest``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge import lazy_exports

if TYPE_CHECKING:
    from edge.diagnostics.doctor import DoctorFinding, DoctorReport, Level, examine
    from edge.diagnostics.selftest_run import SelfTestRun, SelfTestStep, encode
else:
    __getattr__ = lazy_exports(
        __name__,
        {
            "doctor": ["DoctorFinding", "DoctorReport", "Level", "examine"],
            "selftest_run": ["SelfTestRun", "SelfTestStep", "encode"],
        },
    )

__all__ = [
    "DoctorFinding",
    "DoctorReport",
    "Level",
    "SelfTestRun",
    "SelfTestStep",
    "encode",
    "examine",
    "selftest_engines",
    "selftest_run",
]

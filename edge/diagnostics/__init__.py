"""Checks of this machine: ``edge doctor`` and ``edge selftest``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge import lazy_exports

if TYPE_CHECKING:
    from edge.diagnostics.doctor import DoctorFinding, DoctorReport, Level, examine
    from edge.diagnostics.selftest_context import SelfTestContext, SelfTestStep, encode
    from edge.diagnostics.selftest_run import SelfTestRun
else:
    __getattr__ = lazy_exports(
        __name__,
        {
            "doctor": ["DoctorFinding", "DoctorReport", "Level", "examine"],
            "selftest_context": ["SelfTestContext", "SelfTestStep", "encode"],
            "selftest_run": ["SelfTestRun"],
        },
    )

__all__ = [
    "DoctorFinding",
    "DoctorReport",
    "Level",
    "SelfTestContext",
    "SelfTestRun",
    "SelfTestStep",
    "encode",
    "examine",
    "published_results",
    "selftest_engines",
    "selftest_run",
]

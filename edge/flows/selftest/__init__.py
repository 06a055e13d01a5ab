"""The flow ``selftest``: does this machine do what edge promises? Every step says so, with its reason, in one record.

A step that fails, or that edge itself breaks at, never hides the next one. Nothing of the user's is touched: engines
and caches live in a folder of their own, and only the calibration table is copied there.
"""

from __future__ import annotations

from edge.flows.selftest.bench import Bench
from edge.flows.selftest.flow import Run
from edge.flows.selftest.record import SelfTest, Status, Step

__all__ = ["Bench", "Run", "SelfTest", "Status", "Step"]

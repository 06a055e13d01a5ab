"""Deployment: ship a bundle to devices, try it there, roll back, manage fleets and the systemd service."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge import lazy_exports

if TYPE_CHECKING:
    from edge.deploy.canary import Measured, TrialReport
    from edge.deploy.collect import Collected
    from edge.deploy.fleet import Fleet, Host, load_fleet
    from edge.deploy.push import REFUSED, BundleTree, ShipOutcome, ShipSettings, ship
    from edge.deploy.rollback import ManageStep, Status
    from edge.deploy.rollout import CancellableSession, DeviceOutcome, DeviceTask, RolloutPlan
    from edge.deploy.service import ServiceSettings, Systemctl
    from edge.deploy.trial import parse_gates
else:
    __getattr__ = lazy_exports(
        __name__,
        {
            "canary": ["Measured", "TrialReport"],
            "collect": ["Collected"],
            "fleet": ["Fleet", "Host", "load_fleet"],
            "push": ["BundleTree", "REFUSED", "ShipOutcome", "ShipSettings", "ship"],
            "rollback": ["ManageStep", "Status"],
            "rollout": ["CancellableSession", "DeviceOutcome", "DeviceTask", "RolloutPlan"],
            "service": ["ServiceSettings", "Systemctl"],
            "trial": ["parse_gates"],
        },
    )

__all__ = [
    "REFUSED",
    "BundleTree",
    "CancellableSession",
    "Collected",
    "DeviceOutcome",
    "DeviceTask",
    "Fleet",
    "Host",
    "ManageStep",
    "Measured",
    "RolloutPlan",
    "ServiceSettings",
    "ShipOutcome",
    "ShipSettings",
    "Status",
    "Systemctl",
    "TrialReport",
    "canary",
    "collect",
    "load_fleet",
    "parse_gates",
    "rollback",
    "rollout",
    "service",
    "ship",
]

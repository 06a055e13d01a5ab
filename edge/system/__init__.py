"""The machine edge runs on: device identification, power modes, the Python environment, small sysfs files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge import lazy_exports

if TYPE_CHECKING:
    from edge.system.device import Device, device_tree, identify, in_container
    from edge.system.power_modes import PowerModeState
    from edge.system.python_env import DISTRIBUTIONS, OptionalDependency, Process, this_process
else:
    __getattr__ = lazy_exports(
        __name__,
        {
            "device": ["Device", "device_tree", "identify", "in_container"],
            "power_modes": ["PowerModeState"],
            "python_env": ["DISTRIBUTIONS", "OptionalDependency", "Process", "this_process"],
        },
    )

__all__ = [
    "DISTRIBUTIONS",
    "Device",
    "OptionalDependency",
    "PowerModeState",
    "Process",
    "device",
    "device_tree",
    "identify",
    "in_container",
    "nvpmodel",
    "power_modes",
    "python_env",
    "sysfs",
    "this_process",
]

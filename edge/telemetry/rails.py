"""The rails that make up the power of a board, and the scope of that figure.

Sources, per row of ``TOTALS``: NVIDIA staff on the developer forum (366461 for VIN of the Thor developer kit, 200883
for VDD_IN, 73608 for POM_5V_IN, 81016 for AGX Xavier) and NVIDIA's rail descriptions for AGX Orin, where VIN_SYS_5V0
already holds VDDQ_VDD2_1V8AO. The three Thor rails without VIN came to 68 % of VIN when idle and 86 % under load.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import msgspec

from edge.telemetry.source import Scope

_NOT_CONNECTED = re.compile(r"NC(?:\d|[ _-].*)?")


class Total(msgspec.Struct, frozen=True):
    """The rails to add up, and the scope of their sum."""

    scope: Scope
    rails: tuple[str, ...]

    def power_mw(self, rails_mw: Mapping[str, float]) -> float | None:
        """Sum of the rails in milliwatts; None when one of them was not read, as a smaller sum would mislead."""
        if not all(rail in rails_mw for rail in self.rails):
            return None
        return sum(rails_mw[rail] for rail in self.rails)

    def caveats(self, rails_mw: Mapping[str, float]) -> tuple[str, ...]:
        """Warnings where one rail takes more than the input that feeds it: labels or their order are then not sure.

        Without the values, so that a rail has one warning and not another one at each reading.
        """
        if self.scope not in {"system_input", "module_input"} or self.rails[0] not in rails_mw:
            return ()
        name, total = self.rails[0], rails_mw[self.rails[0]]
        return tuple(
            f"rail {rail} is above {name}, which should contain it" for rail, mw in rails_mw.items() if mw > total
        )


# The first row whose rails are all there is taken, so wider scopes come first.
TOTALS = (
    Total("system_input", ("VIN",)),
    Total("module_input", ("VDD_IN",)),
    Total("module_input", ("POM_5V_IN",)),
    Total("module_sum", ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")),
    Total("module_sum", ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V")),
    Total("partial", ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0")),
)


def total_of(names: Iterable[str]) -> Total | None:
    """Find the sum that gives a board's power from its rails ``names``; None for an unknown board."""
    there = set(names)
    return next((total for total in TOTALS if there.issuperset(total.rails)), None)


def is_connected(label: str) -> bool:
    """True if a channel's label names a rail: ``NC`` marks a channel that is wired to nothing."""
    return bool(label) and not _NOT_CONNECTED.fullmatch(label)

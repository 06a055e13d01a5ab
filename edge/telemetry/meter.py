"""Knowledge of a run about power and the state of the machine: where it comes from, and what goes into the record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from edge.telemetry.energy import Energy, Window
from edge.telemetry.source import NoSource

if TYPE_CHECKING:
    from edge.telemetry.sampler import Sampler

# Somebody else is at work when a machine that should be idle is as busy as this.
_BUSY_PERCENT = {"cpu": 25.0, "gpu": 10.0}


class Telemetry(msgspec.Struct, frozen=True):
    """The source of readings, or why there are none; ``idle`` was measured before the run.

    ``replayed`` names the recording when they are not measured now. ``notes`` are warnings for the record.
    """

    sampler: Sampler | None
    no_power: NoSource | None
    idle: Energy | None = None
    replayed: str | None = None
    notes: tuple[str, ...] = ()

    def account(self, window: Window, *, pictures: int) -> tuple[dict[str, Any] | None, str | None, dict[str, Any]]:
        """The energy reading, or why there is none; and temperatures, loads, clocks, throttling and power mode."""
        if self.sampler is None:
            return None, str(self.no_power) if self.no_power else "not asked for", {}
        conditions = msgspec.to_builtins(self.sampler.conditions(window))
        energy = self.sampler.energy(window, idle=self.idle)
        if energy.joules is None:
            return None, f"{energy.source}: {energy.refusal}", conditions
        return {**msgspec.to_builtins(energy), **energy.per_picture(pictures)}, None, conditions


def idle_baseline(sampler: Sampler, window: Window) -> tuple[Energy, list[str]]:
    """The energy of an idle ``window`` that ``sampler`` has seen, and why one should not trust it, if so."""
    energy = sampler.energy(window)
    if energy.joules is None:
        return energy, [f"no idle baseline: {energy.refusal}"]
    loads = sampler.conditions(window).loads_percent
    busy = [
        f"{name} {loads[name].mean:.0f} %"
        for name, most in _BUSY_PERCENT.items()
        if name in loads and loads[name].mean > most
    ]
    return energy, [f"the machine was not idle during the idle baseline: {', '.join(busy)}"] if busy else []

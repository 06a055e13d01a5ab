"""Warnings about a measurement: what a reader of its figures should know before quoting them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edge.artifacts import Tick
from edge.stats import percentile

# Fewer pictures than this say little about a tail.
_FEW = 100
# A second half slower than the first by this factor is not one steady state.
_DRIFT = 1.15
_HALF = _FEW // 4


def measurement_warnings(
    first_ms: Sequence[float], timeline: Sequence[Tick], conditions: dict[str, Any], *, pictures: int
) -> list[str]:
    """Warn of few pictures, of a run that was not steady, and of what its conditions speak against.

    Args:
        first_ms: Total times of the first pictures: of all of them where they are no fewer than ``pictures``. Else the
            time line says whether the run was steady.
        conditions: As :func:`condition_warnings` takes them.
    """
    found = []
    if 0 < pictures < _FEW:
        found.append(f"{pictures} pictures: too few for the tail percentiles; use {_FEW} or more")
    values = first_ms if len(first_ms) >= pictures else [t.total_p50_ms for t in timeline if t.total_p50_ms is not None]
    half = len(values) // 2
    if half >= (_HALF if values is first_ms else 2):
        first, second = (percentile(sorted(part), 0.5) for part in (values[:half], values[half:]))
        if second > first * _DRIFT:
            found.append(
                f"the second half was slower (median {second:.2f} ms against {first:.2f} ms): not one steady state"
            )
    return [*found, *condition_warnings(conditions)]


def condition_warnings(conditions: dict[str, Any]) -> list[str]:
    """Warn of throttling, and of a power mode or a clock that changed.

    Args:
        conditions: :class:`edge.telemetry.sampler.Conditions` as plain values.
    """
    found = []
    causes = [*conditions.get("throttling", ()), *(f"{name}: {n} events" for name, n in _events(conditions).items())]
    if causes:
        found.append(f"the device was throttled during the run ({', '.join(causes)})")
    modes = conditions.get("power_modes", ())
    if len(modes) > 1:
        found.append(f"the power mode changed during the run: {', '.join(modes)}")
    if len(conditions.get("clocks_locked", ())) > 1:
        found.append("the GPU's clock was locked or unlocked during the run")
    return [*found, *(f"power: {warning}" for warning in conditions.get("warnings", ()))]


def _events(conditions: dict[str, Any]) -> dict[str, int]:
    words = {"oc1": "under-voltage", "oc2": "mean over-current", "oc3": "peak over-current", "package": "CPU package"}
    return {words.get(name, name): n for name, n in conditions.get("throttles", {}).items() if n}

"""NVML: power and state of a discrete GPU, and the load of Thor's GPU, which sysfs does not show.

The only module that imports ``pynvml`` (distribution ``nvidia-ml-py``, a dependency). On Orin the library exists but
answers "not supported" to everything. Units: milliwatts, MHz, percent, degrees Celsius [NVML API reference]. Tried on
an H100; the tests use doubles for Thor and Orin.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from edge.errors import MissingDependencyError, require
from edge.telemetry.sources import Clock, Reading, Scope, Unavailable

# Throttled for one of these reasons: power cap, hardware slowdown, temperature (by software, by hardware), power
# brake. The other reasons (idle, application clocks, sync boost) are not throttling. [nvml.h, nvmlClocksEventReason*]
_THROTTLE_REASONS = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "software thermal",
    0x40: "hardware thermal",
    0x80: "power brake",
}
# NVML_FI_DEV_POWER_INSTANT: milliwatts now; the plain call returns the mean of the last second on Ampere and later.
_FIELD_POWER_INSTANT = 186
_MEAN_OF_A_SECOND = "power is NVML's mean over one second: energy of short windows is inexact"


class Nvml:
    """The first GPU that NVML lists, or the one with ``index``; use :meth:`open`."""

    name = "nvml"
    scope: Scope = "card"

    def __init__(self, library: Any, handle: Any, *, clock: Clock) -> None:  # noqa: ANN401
        self._nvml = library
        self._handle = handle
        self._clock = clock
        self._open = True
        self._instant = self._instant_mw() is not None

    @classmethod
    def open(
        cls,
        *,
        index: int = 0,
        clock: Clock = time.monotonic,
        library: Any = None,  # noqa: ANN401
    ) -> Nvml | Unavailable:
        """Open the GPU, or return the reason why its power cannot be read. ``library`` replaces pynvml."""
        try:
            nvml = library or require("pynvml")
        except MissingDependencyError as exc:
            return Unavailable(cls.name, exc.what, exc.hint)
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as exc:
            return Unavailable(cls.name, f"NVML cannot be initialized: {exc}")
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            source = cls(nvml, handle, clock=clock)
            if source._instant or source._ask("nvmlDeviceGetPowerUsage") is not None:
                return source
            card = source._ask("nvmlDeviceGetName") or "the GPU"
            reason = f"{_text(card)} does not report its power (on a Jetson use hwmon or tegrastats)"
        except nvml.NVMLError as exc:
            reason = f"there is no GPU {index}: {exc}"
        nvml.nvmlShutdown()
        return Unavailable(cls.name, reason)

    def read(self) -> Reading:
        """Read the current state; values that the GPU does not report are missing."""
        nvml = self._nvml
        before = self._clock()
        power = self._instant_mw() if self._instant else self._ask("nvmlDeviceGetPowerUsage")
        t_s = (before + self._clock()) / 2
        used = self._ask("nvmlDeviceGetUtilizationRates")
        clocks = {
            name: self._ask("nvmlDeviceGetClockInfo", getattr(nvml, constant))
            for name, constant in (("gpu", "NVML_CLOCK_SM"), ("memory", "NVML_CLOCK_MEM"))
        }
        temp_c = self._ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU)
        reasons = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons") or 0
        return Reading(
            t_s=t_s,
            power_mw=None if power is None else float(power),
            rails_mw={} if power is None else {"card": float(power)},
            temps_c={} if temp_c is None else {"gpu": float(temp_c)},
            loads_percent={} if used is None else {"gpu": float(used.gpu), "memory": float(used.memory)},
            clocks_mhz={name: float(mhz) for name, mhz in clocks.items() if mhz is not None},
            throttling=tuple(name for bit, name in _THROTTLE_REASONS.items() if reasons & bit),
            warnings=() if self._instant else (_MEAN_OF_A_SECOND,),
        )

    def close(self) -> None:
        """Shut NVML down."""
        if self._open:
            self._open = False
            self._nvml.nvmlShutdown()

    def _ask(self, function: str, *arguments: Any) -> Any:  # noqa: ANN401
        """Return the GPU's answer; None if it is not supported, the GPU is lost, or the library lacks the function."""
        call = getattr(self._nvml, function, None)
        try:
            return None if call is None else call(self._handle, *arguments)
        except self._nvml.NVMLError:
            return None

    def _instant_mw(self) -> int | None:
        fields = self._ask("nvmlDeviceGetFieldValues", [_FIELD_POWER_INSTANT])
        answered = bool(fields) and fields[0].nvmlReturn == 0
        return int(fields[0].value.uiVal) if answered else None


def gpu_load(library: Any = None) -> Callable[[], float | None] | str:  # noqa: ANN401
    """Return a function that reads the load of the first GPU in percent (Thor), or the reason why NVML has none.

    NVML stays open until the process ends.
    """
    try:
        nvml = library or require("pynvml")
    except MissingDependencyError as exc:
        return f"{exc.what}: {exc.hint}"
    try:
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByIndex(0)
        nvml.nvmlDeviceGetUtilizationRates(handle)
    except nvml.NVMLError as exc:
        return f"NVML: {exc}"

    def load() -> float | None:
        try:
            return float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
        except nvml.NVMLError:
            return None

    return load


def _text(name: str | bytes) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else name

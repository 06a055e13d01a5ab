"""The interface: what every telemetry source gives, in the same words and units."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import msgspec

# What a power figure covers. Two figures with different scopes must never be compared.
#   system_input  the whole device at its power input, carrier board included
#   module_input  the module (SoC, memory, regulators), without the carrier board
#   module_sum    the module, as the sum of its measured rails
#   partial       some rails of the module: less than the module takes
#   package       the CPU package of a host; memory, disks and graphics cards are not in it
#   card          one graphics card, its memory and fans included; the host that it is plugged into is not in it
Scope = Literal["system_input", "module_input", "module_sum", "partial", "package", "card"]

Clock = Callable[[], float]


class Reading(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The values that a source knows at one moment; what it does not know is None or missing from its mapping, never 0.

    ``t_s`` is on the source's clock (monotonic seconds) and belongs to the power. The other values may be up to half a
    second older, and two readings may share them. ``throttles`` counts events since boot: look at differences only.
    ``throttling`` names what is slowed down at this moment. ``clocks_locked`` is whether the GPU is held at one clock
    (jetson_clocks). ``absent`` says why a quantity that one might look for is not there.
    """

    t_s: float
    power_mw: float | None = None
    rails_mw: dict[str, float] = {}
    temps_c: dict[str, float] = {}
    loads_percent: dict[str, float] = {}
    clocks_mhz: dict[str, float] = {}
    throttles: dict[str, int] = {}
    throttling: tuple[str, ...] = ()
    power_mode: str | None = None
    clocks_locked: bool | None = None
    warnings: tuple[str, ...] = ()
    absent: dict[str, str] = {}


class TelemetrySource(Protocol):
    """A source of power readings. ``scope`` is fixed when the source is opened and never changes after."""

    @property
    def name(self) -> str:
        """Short name: hwmon, tegrastats, jtop, nvml, rapl; of a replay, the name of what was recorded."""

    @property
    def scope(self) -> Scope:
        """The scope: what the power covers."""

    def read(self) -> Reading:
        """The present state. A sensor that fails is missing from it; this does not raise."""

    def close(self) -> None:
        """Give back what the source holds; a second call does nothing."""


class Unavailable(msgspec.Struct, frozen=True):
    """The reason why a source cannot be used here, and what would change that."""

    source: str
    reason: str
    hint: str | None = None

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}"


class NoSource(msgspec.Struct, frozen=True):
    """Power cannot be measured here; one reason per source that was tried."""

    reasons: tuple[Unavailable, ...]

    def __str__(self) -> str:
        return "; ".join(str(reason) for reason in self.reasons)

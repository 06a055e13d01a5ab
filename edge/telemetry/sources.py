"""The telemetry sources: power, temperatures, loads, clocks and throttling, from whatever this machine offers.

A source is registered here only: with :func:`telemetry_source` it is known to ``telemetry: {source: …}``,
``--power`` and its help, ``auto`` and ``edge doctor``. ``replay:FILE`` is a recording.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import msgspec

from edge.config import did_you_mean
from edge.errors import ProfileError, UsageError

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


Open = Callable[[Path, Clock], TelemetrySource | Unavailable]


class SourceEntry(NamedTuple):
    """A registered source.

    Attributes:
        open: gives the source of the machine whose files are under a root folder, or the reason why there is none.
        is_probed: ``auto`` tries it, in the order of registration. Another one is used only when it is named.
        has_root: it reads files below the root; False for one that asks a driver or a service of this machine.
        dependency: the optional dependency whose presence ``edge doctor`` reports instead of opening the source.
    """

    open: Open
    is_probed: bool
    has_root: bool
    dependency: str | None


SOURCES: dict[str, SourceEntry] = {}


def telemetry_source(
    name: str, *, is_probed: bool = False, has_root: bool = True, dependency: str | None = None
) -> Callable[[Open], Open]:
    """Register the decorated function as the source ``name``; see :class:`SourceEntry`."""

    def register(function: Open) -> Open:
        SOURCES[name] = SourceEntry(function, is_probed, has_root, dependency)
        return function

    return register


# Each imports its module when it is opened: a run reads power from one of them.


@telemetry_source("hwmon", is_probed=True)
def _hwmon(root: Path, clock: Clock) -> TelemetrySource | Unavailable:
    from edge.telemetry.hwmon import Hwmon

    return Hwmon.open(root, clock=clock)


@telemetry_source("tegrastats", is_probed=True)
def _tegrastats(root: Path, clock: Clock) -> TelemetrySource | Unavailable:
    from edge.telemetry.tegrastats import Tegrastats

    return Tegrastats.open(root, clock=clock)


@telemetry_source("rapl", is_probed=True)
def _rapl(root: Path, clock: Clock) -> TelemetrySource | Unavailable:
    from edge.telemetry.rapl import Rapl

    return Rapl.open(root, clock=clock)


# jetson-stats is AGPL-3.0, so the user decides. Its first client sets the interval for all: doctor does not open it.
@telemetry_source("jtop", dependency="jtop")
def _jtop(root: Path, clock: Clock) -> TelemetrySource | Unavailable:
    from edge.telemetry.jtop import Jtop

    return Jtop.open(root, clock=clock)


# The power of a graphics card says nothing about a network that runs on the CPU.
@telemetry_source("nvml", has_root=False)
def _nvml(_root: Path, clock: Clock) -> TelemetrySource | Unavailable:
    from edge.telemetry.nvml import Nvml

    return Nvml.open(clock=clock)


@telemetry_source("none")
def _none(_root: Path, _clock: Clock) -> TelemetrySource | Unavailable:
    return Unavailable("none", "not asked for")


def source_names() -> list[str]:
    """The values of ``telemetry: {source: …}``: auto, and every registered source."""
    return ["auto", *SOURCES]


def check_name(name: str, *, key: str | None = None) -> None:
    """Check that ``name`` is auto, a source, or a recording.

    Args:
        name: of the command line, or of a profile.
        key: the profile's key that holds it; None for the command line.

    Raises:
        UsageError: it is none of these; the hint lists them.
        ProfileError: the same, for a profile.
    """
    if name.startswith("replay"):
        from edge.telemetry import telemetry_replay

        telemetry_replay.parse_spec(name)
    elif name not in source_names():
        what = f"there is no power source {name!r}{did_you_mean(name, source_names())}"
        hint = f"one of {', '.join(source_names())}, or replay:FILE"
        raise UsageError(what, hint=hint) if key is None else ProfileError(f"{key}: {what}", hint=hint)


def open_source(name: str, root: Path = Path("/"), *, clock: Clock = time.monotonic) -> TelemetrySource | Unavailable:
    """Open the source called ``name``, or give the reason why it cannot be used.

    Raises:
        UsageError: there is no such source.
        ArtifactError: a recording that cannot be read.
    """
    check_name(name)
    if name.startswith("replay"):
        from edge.telemetry import telemetry_replay

        path, speed = telemetry_replay.parse_spec(name)
        return telemetry_replay.Replay(telemetry_replay.load(path), path=path, speed=speed, clock=clock)
    return SOURCES[name].open(root, clock)


def probe(
    root: Path = Path("/"), prefer: str | None = None, *, clock: Clock = time.monotonic
) -> TelemetrySource | NoSource:
    """Open the first source that works, or give the reasons why none does.

    The caller closes the source. With ``prefer`` that one is tried and no other.

    Raises:
        UsageError: ``prefer`` is not the name of a source.
        ArtifactError: a recording that cannot be read.
    """
    reasons = []
    probed = [name for name, entry in SOURCES.items() if entry.is_probed]
    for name in probed if prefer in {None, "auto"} else (str(prefer),):
        source = open_source(name, root, clock=clock)
        if not isinstance(source, Unavailable):
            return source
        reasons.append(source)
    return NoSource(tuple(reasons))

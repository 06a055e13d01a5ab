"""The telemetry sources and their registry: power, temperatures, loads, clocks and throttling.

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
#   partial       some rails of the module: less than the power of the whole module
#   package       the CPU package of a host; without memory, disks and GPUs
#   card          one discrete GPU with its memory and fans, without the host
Scope = Literal["system_input", "module_input", "module_sum", "partial", "package", "card"]

Clock = Callable[[], float]


class Reading(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Values of a source at one moment. An unknown value is None or missing from its mapping, never 0.

    ``t_s`` is the time of the power, in monotonic seconds of the source's clock. Other values may be up to half a
    second older, and two readings may share them. ``throttles`` are event counters since boot: only differences matter.
    ``throttling`` names the components that are slowed down now. ``clocks_locked`` is true if the GPU runs at one fixed
    clock (jetson_clocks). ``absent`` gives the reason for a missing quantity that a user might look for.
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
    """Interface of a source of power readings. ``scope`` is fixed when the source is opened."""

    @property
    def name(self) -> str:
        """Short name: hwmon, tegrastats, jtop, nvml, rapl; a replay has the name of the recorded source."""

    @property
    def scope(self) -> Scope:
        """Scope of the power figure."""

    def read(self) -> Reading:
        """Return the current reading. The values of a failed sensor are missing; this does not raise."""

    def close(self) -> None:
        """Release the source's resources; further calls do nothing."""


class Unavailable(msgspec.Struct, frozen=True):
    """The reason why a source cannot be used here, and how to change that."""

    source: str
    reason: str
    hint: str | None = None

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}"


class NoSource(msgspec.Struct, frozen=True):
    """Power cannot be measured here; one reason per tried source."""

    reasons: tuple[Unavailable, ...]

    def __str__(self) -> str:
        return "; ".join(str(reason) for reason in self.reasons)


Open = Callable[[Path, Clock], TelemetrySource | Unavailable]


class SourceEntry(NamedTuple):
    """A registered telemetry source.

    Attributes:
        open: opens the source of the machine whose files are below a root folder, or returns the reason why it cannot.
        is_probed: ``auto`` tries it, in the order of registration. A source without it is used only when it is named.
        has_root: it reads files below the root; False for a source that queries a driver or a service.
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


# Each function imports its module when called: a run uses only one source.


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


# jetson-stats is AGPL-3.0, so only the user selects it. Its first client sets the interval for all: doctor must not
# open it.
@telemetry_source("jtop", dependency="jtop")
def _jtop(root: Path, clock: Clock) -> TelemetrySource | Unavailable:
    from edge.telemetry.jtop import Jtop

    return Jtop.open(root, clock=clock)


# A discrete GPU's power has no relation to a network that runs on the CPU.
@telemetry_source("nvml", has_root=False)
def _nvml(_root: Path, clock: Clock) -> TelemetrySource | Unavailable:
    from edge.telemetry.nvml import Nvml

    return Nvml.open(clock=clock)


@telemetry_source("none")
def _none(_root: Path, _clock: Clock) -> TelemetrySource | Unavailable:
    return Unavailable("none", "not requested")


def source_names() -> list[str]:
    """Return the values of ``telemetry: {source: …}``: auto, and every registered source."""
    return ["auto", *SOURCES]


def check_name(name: str, *, key: str | None = None) -> None:
    """Check that ``name`` is auto, a source, or a recording.

    Args:
        name: the name from the command line or a profile.
        key: the profile's key with this name; None for the command line.

    Raises:
        UsageError: the name is unknown; the hint lists the names.
        ProfileError: the same, for a profile.
    """
    if name.startswith("replay"):
        from edge.telemetry import telemetry_replay

        telemetry_replay.parse_spec(name)
    elif name not in source_names():
        what = f"there is no power source {name!r}{did_you_mean(name, source_names())}"
        hint = f"use one of {', '.join(source_names())}, or replay:FILE"
        raise UsageError(what, hint=hint) if key is None else ProfileError(f"{key}: {what}", hint=hint)


def open_source(name: str, root: Path = Path("/"), *, clock: Clock = time.monotonic) -> TelemetrySource | Unavailable:
    """Open the source called ``name``, or return the reason why it cannot be used.

    Raises:
        UsageError: there is no such source.
        ArtifactError: the recording cannot be read.
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
    """Open the first source that works, or return the reasons why none does.

    The caller closes the source. With ``prefer`` only that source is tried.

    Raises:
        UsageError: ``prefer`` is not the name of a source.
        ArtifactError: the recording cannot be read.
    """
    reasons = []
    probed = [name for name, entry in SOURCES.items() if entry.is_probed]
    for name in probed if prefer in {None, "auto"} else (str(prefer),):
        source = open_source(name, root, clock=clock)
        if not isinstance(source, Unavailable):
            return source
        reasons.append(source)
    return NoSource(tuple(reasons))

"""Power, temperatures, loads, clocks and throttling, from whatever this machine offers.

Tried by themselves, in this order: ``hwmon`` (current sensors of a Jetson), ``tegrastats`` (its child process),
``rapl`` (CPU packages of a host). Used only when they are named: ``jtop`` (jetson-stats, which is AGPL and the user's
choice), ``nvml`` (a graphics card, which says nothing about a network that runs on the CPU), ``replay:FILE`` (a
recording), and ``none``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from edge.errors import UsageError
from edge.telemetry import telemetry_replay
from edge.telemetry.hwmon import Hwmon
from edge.telemetry.jtop import Jtop
from edge.telemetry.nvml import Nvml
from edge.telemetry.rapl import Rapl
from edge.telemetry.source import Clock, NoSource, Reading, Scope, TelemetrySource, Unavailable
from edge.telemetry.tegrastats import Tegrastats
from edge.telemetry.telemetry_replay import Replay

__all__ = [
    "PROBED",
    "SOURCES",
    "Clock",
    "NoSource",
    "Reading",
    "Scope",
    "TelemetrySource",
    "Unavailable",
    "check_name",
    "open_source",
    "probe",
]

SOURCES: dict[str, Callable[[Path, Clock], TelemetrySource | Unavailable]] = {
    "hwmon": lambda root, clock: Hwmon.open(root, clock=clock),
    "tegrastats": lambda root, clock: Tegrastats.open(root, clock=clock),
    "rapl": lambda root, clock: Rapl.open(root, clock=clock),
    "jtop": lambda root, clock: Jtop.open(root, clock=clock),
    "nvml": lambda _root, clock: Nvml.open(clock=clock),
    "none": lambda _root, _clock: Unavailable("none", "not asked for"),
}
PROBED = ("hwmon", "tegrastats", "rapl")


def check_name(name: str) -> None:
    """True if ``name`` is auto, a source, or a recording.

    Raises:
        UsageError: it is none of these; the hint lists them.
    """
    if name.startswith("replay"):
        telemetry_replay.parse_spec(name)
    elif name != "auto" and name not in SOURCES:
        raise UsageError(
            f"there is no power source {name!r}", hint=f"one of auto, {', '.join(SOURCES)}, or replay:FILE"
        )


def open_source(name: str, root: Path = Path("/"), *, clock: Clock = time.monotonic) -> TelemetrySource | Unavailable:
    """The source called ``name``, or why it cannot be used.

    Raises:
        UsageError: there is no such source.
        ArtifactError: a recording that cannot be read.
    """
    check_name(name)
    if name.startswith("replay"):
        path, speed = telemetry_replay.parse_spec(name)
        return Replay(telemetry_replay.load(path), path=path, speed=speed, clock=clock)
    return SOURCES[name](root, clock)


def probe(
    root: Path = Path("/"), prefer: str | None = None, *, clock: Clock = time.monotonic
) -> TelemetrySource | NoSource:
    """The first source that works, or the reasons why none does. With ``prefer`` that one is tried and no other.

    The caller closes the source.

    Raises:
        UsageError: ``prefer`` is not the name of a source.
        ArtifactError: a recording that cannot be read.
    """
    reasons = []
    for name in PROBED if prefer in {None, "auto"} else (str(prefer),):
        source = open_source(name, root, clock=clock)
        if not isinstance(source, Unavailable):
            return source
        reasons.append(source)
    return NoSource(tuple(reasons))

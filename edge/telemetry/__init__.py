"""Power, temperatures, loads, clocks and throttling, from whatever this machine offers.

The sources, in the order in which they are tried: ``hwmon`` (current sensors of a Jetson), ``tegrastats`` (its child
process), ``rapl`` (CPU packages of a host).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from edge.errors import UsageError
from edge.telemetry.base import Clock, NoSource, Reading, Scope, Source, Unavailable
from edge.telemetry.hwmon import Hwmon
from edge.telemetry.rapl import Rapl
from edge.telemetry.tegrastats import Tegrastats

__all__ = ["SOURCES", "Clock", "NoSource", "Reading", "Scope", "Source", "Unavailable", "open_source", "probe"]

SOURCES: dict[str, Callable[[Path, Clock], Source | Unavailable]] = {
    "hwmon": lambda root, clock: Hwmon.open(root, clock=clock),
    "tegrastats": lambda root, clock: Tegrastats.open(root, clock=clock),
    "rapl": lambda root, clock: Rapl.open(root, clock=clock),
}


def open_source(name: str, root: Path = Path("/"), *, clock: Clock = time.monotonic) -> Source | Unavailable:
    """The source called ``name``, or why it cannot be used.

    Raises:
        UsageError: there is no such source.
    """
    if name not in SOURCES:
        raise UsageError(f"there is no power source {name!r}", hint=f"one of {', '.join(SOURCES)}")
    return SOURCES[name](root, clock)


def probe(root: Path = Path("/"), prefer: str | None = None, *, clock: Clock = time.monotonic) -> Source | NoSource:
    """The first source that works, or the reasons why none does. With ``prefer`` that one is tried and no other.

    The caller closes the source.

    Raises:
        UsageError: ``prefer`` is not the name of a source.
    """
    reasons = []
    for name in SOURCES if prefer is None else (prefer,):
        source = open_source(name, root, clock=clock)
        if not isinstance(source, Unavailable):
            return source
        reasons.append(source)
    return NoSource(tuple(reasons))

"""A thread that samples a source while something else runs, and what can be said about a stretch of that time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, final

import msgspec

from edge.telemetry.energy import Energy, Trace, Window
from edge.telemetry.sources import Clock, NoSource, Reading, TelemetrySource

# Kept in full for the record; beyond this, every other one is dropped. Power sums do not depend on them.
_MAX_READINGS = 2048


class Span(msgspec.Struct, frozen=True):
    """Smallest, mean and largest of the values that were kept."""

    low: float
    mean: float
    high: float


class Conditions(msgspec.Struct, frozen=True, kw_only=True):
    """The conditions: what else was the case in a window; a quantity that was not read is missing.

    ``throttles`` are events within the window, not since boot; ``throttling`` names what was slowed down for heat at
    some time in it. ``readings`` is the number of readings that these come from. ``power_modes`` and ``clocks_locked``
    hold what was the case, in order: more than one means that it changed. ``absent`` says why a quantity is missing.
    """

    readings: int
    temps_c: dict[str, Span] = {}
    loads_percent: dict[str, Span] = {}
    clocks_mhz: dict[str, Span] = {}
    throttles: dict[str, int] = {}
    throttling: tuple[str, ...] = ()
    power_modes: tuple[str, ...] = ()
    clocks_locked: tuple[bool, ...] = ()
    warnings: tuple[str, ...] = ()
    absent: dict[str, str] = {}


@final
class Sampler:
    """Samples ``source`` at ``rate_hz`` while its block runs; the first and the last sample are taken at its ends.

    ``clock`` must be the clock of the source. The source is not closed. ``keep`` gets every new reading. Instead of the
    thread a test, or a loop that has its own rhythm, may call :meth:`sample`.
    """

    def __init__(
        self,
        source: TelemetrySource,
        *,
        rate_hz: float = 10.0,
        clock: Clock = time.monotonic,
        keep: Callable[[Reading], None] = lambda _reading: None,
    ) -> None:
        self._source = source
        self._keep = keep
        self._period_s = 1.0 / rate_hz
        self._clock = clock
        self._trace = Trace()
        self._readings: list[Reading] = []
        self._stride = 1
        self._seen = 0
        self._latest: Reading | None = None
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._bug: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def __enter__(self) -> Sampler:
        self.sample()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if self._bug is None:
            self.sample()
        elif exc is None:
            raise self._bug

    @property
    def source(self) -> TelemetrySource:
        """The source that is sampled."""
        return self._source

    @property
    def latest(self) -> Reading | None:
        """The newest reading, for who shows it; None before the first."""
        with self._lock:
            return self._latest

    @property
    def readings(self) -> tuple[Reading, ...]:
        """The readings that were kept, oldest first: all of them up to 2048, then every second, fourth, ... one."""
        with self._lock:
            return tuple(self._readings)

    def sample(self) -> Reading:
        """Take one reading now and keep it; the same reading again is kept once."""
        reading = self._source.read()
        with self._lock:
            if self._latest is not None and reading.t_s <= self._latest.t_s:
                return reading
            self._latest = reading
            self._keep(reading)
            if reading.power_mw is not None:
                self._trace.add(reading.t_s, reading.power_mw)
            if self._seen % self._stride == 0:
                self._readings.append(reading)
                if len(self._readings) > _MAX_READINGS:
                    self._readings = self._readings[::2]
                    self._stride *= 2
            self._seen += 1
        return reading

    def energy(self, window: Window, *, idle: Energy | None = None) -> Energy:
        """Energy in ``window``, net of the ``idle`` baseline when one is given, or the reason why there is none."""
        with self._lock:
            energy = self._trace.energy(window, source=self._source.name, scope=self._source.scope)
        return energy if idle is None else energy.above(idle)

    def conditions(self, window: Window) -> Conditions:
        """Temperatures, loads, clocks and throttling in ``window``."""
        with self._lock:
            kept = [r for r in self._readings if window.start_s <= r.t_s <= window.end_s]
        return Conditions(
            readings=len(kept),
            temps_c=_spans(r.temps_c for r in kept),
            loads_percent=_spans(r.loads_percent for r in kept),
            clocks_mhz=_spans(r.clocks_mhz for r in kept),
            throttles=_increases([r.throttles for r in kept]),
            throttling=tuple(dict.fromkeys(name for r in kept for name in r.throttling)),
            power_modes=tuple(dict.fromkeys(r.power_mode for r in kept if r.power_mode is not None)),
            clocks_locked=tuple(dict.fromkeys(r.clocks_locked for r in kept if r.clocks_locked is not None)),
            absent=dict(kept[-1].absent) if kept else {},
            warnings=tuple(dict.fromkeys(warning for r in kept for warning in r.warnings)),
        )

    def _run(self) -> None:
        started = self._clock()
        ticks = 1
        while not self._stop.wait(max(started + ticks * self._period_s - self._clock(), 0.0)):
            try:
                self.sample()
            except BaseException as exc:  # noqa: BLE001 - raised again in the thread that owns us
                self._bug = exc
                return
            # Ticks that were missed are left out; samples that come in bunches would say nothing new.
            ticks = max(ticks + 1, int((self._clock() - started) / self._period_s) + 1)


def _spans(each: Iterable[Mapping[str, float]]) -> dict[str, Span]:
    values: dict[str, list[float]] = {}
    for mapping in each:
        for name, value in mapping.items():
            values.setdefault(name, []).append(value)
    return {name: Span(min(found), sum(found) / len(found), max(found)) for name, found in values.items()}


def _increases(counters: list[dict[str, int]]) -> dict[str, int]:
    """Events per counter from the first reading to the last; a counter that went back was reset and is left out."""
    if not counters:
        return {}
    first, last = counters[0], counters[-1]
    return {name: last[name] - n for name, n in first.items() if name in last and last[name] >= n}


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

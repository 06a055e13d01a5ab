"""Sample a telemetry source in a thread while something else runs, and summarize the readings of a time window."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, final

import msgspec

from edge.telemetry.energy import Energy, Trace, Window
from edge.telemetry.sources import Clock, NoSource, Reading, TelemetrySource

# Stored in full for the record; beyond this number every second one is dropped. Power sums do not depend on them.
_MAX_READINGS = 2048


class Span(msgspec.Struct, frozen=True):
    """Minimum, mean and maximum of the stored values."""

    low: float
    mean: float
    high: float


class Conditions(msgspec.Struct, frozen=True, kw_only=True):
    """Conditions during a window other than power; a quantity that was not read is missing.

    ``throttles`` are events within the window, not since boot; ``throttling`` names the components that were slowed
    down
    for heat at some time in it. ``readings`` is the number of readings behind these values. ``power_modes`` and
    ``clocks_locked`` list the values in order: more than one means a change. ``absent`` gives the reason for a missing
    quantity.
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
    """Samples ``source`` at ``rate_hz`` while its block runs, with a sample at the start and at the end.

    ``clock`` must be the clock of the source. The source is not closed. ``keep`` is called with every new reading. A
    test,
    or a loop with its own timing, may call :meth:`sample` instead of using the thread.
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
        """The sampled source."""
        return self._source

    @property
    def latest(self) -> Reading | None:
        """The newest reading; None before the first."""
        with self._lock:
            return self._latest

    @property
    def readings(self) -> tuple[Reading, ...]:
        """The stored readings, oldest first: all of them up to 2048, then every second, fourth, ... one."""
        with self._lock:
            return tuple(self._readings)

    def sample(self) -> Reading:
        """Take and store one reading now; a repeated reading is stored once."""
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
        """Return the energy in ``window``, net of ``idle`` if given, or the reason why there is none."""
        with self._lock:
            energy = self._trace.energy(window, source=self._source.name, scope=self._source.scope)
        return energy if idle is None else energy.above(idle)

    def conditions(self, window: Window) -> Conditions:
        """Summarize temperatures, loads, clocks and throttling in ``window``."""
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
            # Skip missed ticks: several samples at once would carry no new information.
            ticks = max(ticks + 1, int((self._clock() - started) / self._period_s) + 1)


def _spans(each: Iterable[Mapping[str, float]]) -> dict[str, Span]:
    values: dict[str, list[float]] = {}
    for mapping in each:
        for name, value in mapping.items():
            values.setdefault(name, []).append(value)
    return {name: Span(min(found), sum(found) / len(found), max(found)) for name, found in values.items()}


def _increases(counters: list[dict[str, int]]) -> dict[str, int]:
    """Return the events per counter from the first reading to the last; a counter that went back is left out."""
    if not counters:
        return {}
    first, last = counters[0], counters[-1]
    return {name: last[name] - n for name, n in first.items() if name in last and last[name] >= n}


# Above this load, another program is using a machine that should be idle.
_BUSY_PERCENT = {"cpu": 25.0, "gpu": 10.0}


class Telemetry(msgspec.Struct, frozen=True):
    """The telemetry source of a run, or the reason why there is none; ``idle`` was measured before the run.

    ``replayed`` names the recording if the readings come from one. ``notes`` are warnings for the record.
    """

    sampler: Sampler | None
    no_power: NoSource | None
    idle: Energy | None = None
    replayed: str | None = None
    notes: tuple[str, ...] = ()

    def account(self, window: Window, *, pictures: int) -> tuple[dict[str, Any] | None, str | None, dict[str, Any]]:
        """Return the energy or None, the reason if None, and the conditions (temperatures, loads, clocks)."""
        if self.sampler is None:
            return None, str(self.no_power) if self.no_power else "not requested", {}
        conditions = msgspec.to_builtins(self.sampler.conditions(window))
        energy = self.sampler.energy(window, idle=self.idle)
        if energy.joules is None:
            return None, f"{energy.source}: {energy.refusal}", conditions
        return {**msgspec.to_builtins(energy), **energy.per_picture(pictures)}, None, conditions


def idle_baseline(sampler: Sampler, window: Window) -> tuple[Energy, list[str]]:
    """Return the energy of an idle ``window`` sampled by ``sampler``, and warnings if it is not reliable."""
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

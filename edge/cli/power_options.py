"""Power for the length of a command: the source, the sampler, the power mode and the idle baseline before it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edge.errors import UsageError
from edge.events import Progress

if TYPE_CHECKING:
    from edge.config import Profile
    from edge.telemetry import Energy, Reading, Sampler, Telemetry, TelemetrySource
    from edge.ui.terminal import Terminal

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


class PowerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Power measurement as the command line asks for it; None leaves a setting to the profile."""

    power: str | None = None
    idle: str | None = None
    set_power_mode: bool = False
    log: Path | None = None

    @classmethod
    def of(cls, profile: Profile, *, power: str | None) -> PowerOptions:
        """Options from the profile; the command line has the source alone."""
        config = profile.telemetry
        return cls(
            power=power, set_power_mode=config.set_power_mode, log=None if config.log is None else Path(config.log)
        )

    def idle_s(self, profile: Profile) -> float:
        """Seconds of idle baseline; 0 is none."""
        return profile.telemetry.idle_s if self.idle is None else seconds(self.idle, option="--idle")

    def check(self, profile: Profile) -> None:
        """See that these can be fulfilled, before anything heavy is loaded.

        Raises:
            UsageError: they cannot.
        """
        from edge import telemetry
        from edge.telemetry import MIN_IDLE_S

        if self.power is None:
            telemetry.check_name(profile.telemetry.source, key="telemetry.source")
        else:
            telemetry.check_name(self.power)
        idle_s = self.idle_s(profile)
        if 0 < idle_s < MIN_IDLE_S:
            raise UsageError(f"an idle baseline takes {MIN_IDLE_S:g} s at least, not {idle_s:g}", hint="--idle 10s")
        if self.set_power_mode and profile.power_mode is None:
            raise UsageError("the profile asks for no power mode to set", hint="power_mode: … in the profile")


def seconds(text: str, *, option: str) -> float:
    """A length of time such as 10s, 1.5m, 2h or plain seconds.

    Raises:
        UsageError: it is none.
    """
    number = text.rstrip("abcdefghijklmnopqrstuvwxyz")
    try:
        value = float(number) * _UNITS[text[len(number) :]]
    except (ValueError, KeyError):
        value = -1.0
    if not 0.0 <= value < 1e9:
        raise UsageError(f"{option} {text!r} is no length of time", hint=f"{option} 10s, {option} 2m")
    return value


@contextmanager
def measured(
    profile: Profile, asked: PowerOptions, *, terminal: Terminal, should_stop: Callable[[], bool]
) -> Iterator[Telemetry]:
    """Telemetry while the block runs. Before it, as far as wished: the power mode is set, and idle power is measured.

    Enter it when the engine is loaded and before cameras are opened: what is idle then is what inference is added to.
    """
    from edge import telemetry
    from edge.cli.power import this_command
    from edge.system import power_modes
    from edge.telemetry import Sampler, Telemetry

    asked.check(profile)
    idle_s = asked.idle_s(profile)
    with contextlib.ExitStack() as stack:
        if asked.set_power_mode and profile.power_mode is not None:
            state = stack.enter_context(power_modes.during(profile.power_mode, again=this_command()))
            terminal.info(f"power mode {state.mode}; the one before comes back at the end", style="dim")
        notes = [warning for warning in [power_modes.mode_warning(profile.power_mode)] if warning is not None]
        source = telemetry.probe(prefer=asked.power or profile.telemetry.source)
        sampler, idle, replayed = None, None, None
        if not isinstance(source, telemetry.NoSource):
            stack.callback(source.close)
            replayed = getattr(source, "replayed", None)
            keep = _log(asked.log, source, stack, terminal)
            sampler = stack.enter_context(Sampler(source, rate_hz=profile.telemetry.rate_hz, keep=keep))
        elif asked.log is not None:
            notes.append("no telemetry log: power is not measured here")
        if idle_s and sampler is not None:
            idle, warnings = _measure_idle(sampler, idle_s, terminal=terminal, should_stop=should_stop)
            notes += warnings
        elif idle_s:
            notes.append("no idle baseline: power is not measured here")
        if replayed is not None:
            notes.append(f"power and temperatures are replayed from {replayed}: they were not measured in this run")
        for note in notes:
            terminal.warn(note)
        yield Telemetry(
            sampler=sampler,
            no_power=source if isinstance(source, telemetry.NoSource) else None,
            idle=idle,
            replayed=replayed,
            notes=tuple(notes),
        )


def _log(
    path: Path | None, source: TelemetrySource, stack: contextlib.ExitStack, terminal: Terminal
) -> Callable[[Reading], None]:
    """The callback that keeps the readings, until the stack is unwound."""
    from edge.telemetry import Log

    if path is None:
        return lambda _reading: None
    log = Log(path, source)
    stack.callback(lambda: terminal.warn(f"the telemetry log is not complete: {log.problem}") if log.problem else None)
    stack.enter_context(log)
    return log.keep


def power_line(telemetry: Telemetry) -> str:
    """The source of power, in a few words."""
    if telemetry.sampler is None:
        return "not measured here (edge doctor says why)"
    source = telemetry.sampler.source
    return f"{source.scope}, {'replayed from a recording of' if telemetry.replayed else 'by'} {source.name}"


def _measure_idle(
    sampler: Sampler, idle_s: float, *, terminal: Terminal, should_stop: Callable[[], bool]
) -> tuple[Energy | None, list[str]]:
    from edge.telemetry import Window, idle_baseline

    start = now = time.monotonic()
    with terminal.progress() as listen:
        while now - start < idle_s:
            if should_stop():
                return None, []
            listen(Progress("idle baseline", int(now - start), int(idle_s), "s"))
            time.sleep(min(0.25, max(start + idle_s - now, 0.001)))
            now = time.monotonic()
        listen(Progress("idle baseline", int(idle_s), int(idle_s), "s"))
    return idle_baseline(sampler, Window(start, now))

"""Options that several commands share."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import msgspec
import typer

from edge.artifacts import is_stdout
from edge.config import Precision
from edge.errors import DeviceError, MissingDependencyError, StoreError, UsageError
from edge.events import Progress
from edge.telemetry import source_names

if TYPE_CHECKING:
    from edge.backends import Backend, FrameSession, Session
    from edge.calibration import cache_keys
    from edge.config import Profile
    from edge.model import Preprocessor
    from edge.runtime import Width
    from edge.telemetry import Energy, Reading, Sampler, Telemetry, TelemetrySource
    from edge.ui.terminal import Terminal


# Further sessions would use the memory of a whole model for little gain.
_MOST = 4


class Concurrency(msgspec.Struct, frozen=True, kw_only=True):
    """Sessions, threads per session (None: the backend's default), and the widths of the pipeline."""

    workers: int
    threads: int | None
    width: Width


def choose(profile: Profile, *, live: bool, cameras: int = 1, cores: int | None = None) -> Concurrency:
    """Choose the concurrency for the backend and the source.

    ONNX Runtime on a CPU: images from files go through one session per core, of one thread each, which is the faster
    way for many (benchmarks/loop.py); a camera's frame goes through one session over all cores, which all work on the
    newest one. Elsewhere one session keeps the device busy, and the other cores prepare. Frames of several ``cameras``
    share a batch, up to the largest that the engine takes.

    Raises:
        UsageError: the profile requests a batch size that the engine does not support.
    """
    from edge.runtime import Width

    has = profile.input.batch
    if profile.run.batch > has.max:
        raise UsageError(
            f"run.batch: the engine supports at most {has.max} images, not {profile.run.batch}",
            hint="set a larger input.batch.max in the profile, then run edge build",
        )
    batch = max(min(cameras, has.max), 1) if live else profile.run.batch
    cores = cores or len(os.sched_getaffinity(0))
    most, count = profile.run.threads or cores, profile.run.workers
    prepare = profile.run.prepare or (1 if live else 2)
    wait_s = profile.run.batch_wait_ms / 1e3
    if profile.backend == "onnxruntime":
        count = count or (1 if live else min(most, _MOST))
        each = max(most // count, 1)
        return Concurrency(
            workers=count,
            threads=each,
            width=Width(prepare=prepare, batch=batch, min_batch=has.min, batch_wait_s=wait_s),
        )
    if profile.run.prepare is None and not live:
        prepare = min(max(cores - 1, 1), _MOST)
    return Concurrency(
        workers=count or 1,
        threads=profile.run.threads,
        width=Width(prepare=prepare, batch=batch, min_batch=has.min, batch_wait_s=wait_s),
    )


def open_sessions(
    backend: Backend,
    found: cache_keys.FoundArtifact,
    profile: Profile,
    chosen: Concurrency,
    *,
    precision: str,
    stack: contextlib.ExitStack,
    warn: Callable[[str], None],
) -> tuple[Sequence[Session] | Sequence[FrameSession], Preprocessor | None]:
    """Open sessions, closed with ``stack``, and the preprocessor for them: None if they preprocess on their device.

    If the choice is automatic and the device cannot preprocess, ``warn`` gets the reason, and OpenCV does it.

    Raises:
        DeviceError: an engine cannot be opened, or the profile requires a device that cannot preprocess.
    """
    from edge.backends import report_messages
    from edge.model import Preprocessor

    sessions: list[Any] = []
    for _ in range(chosen.workers):
        if sessions and hasattr(sessions[0], "another"):
            # One engine in memory, run by several.
            session: Any = sessions[0].another()
        else:
            session = backend.open(
                Path(found.path), precision=precision, threads=chosen.threads, built_for=found.manifest.key
            )
        stack.callback(session.close)
        sessions.append(session)
    report_messages(sessions, warn)
    on_cpu = Preprocessor(profile.preprocess, profile.input)
    wanted = profile.run.preprocess_on
    if wanted == "device" and not all(hasattr(session, "preprocess_on_gpu") for session in sessions):
        raise DeviceError(
            f"run.preprocess_on: device is not possible: {backend.name} does not preprocess", hint="preprocess_on: auto"
        )
    if wanted == "cpu" or not all(hasattr(session, "preprocess_on_gpu") for session in sessions):
        return sessions, on_cpu
    try:
        for session in sessions:
            session.preprocess_on_gpu(profile.preprocess, profile.input)
    except (DeviceError, MissingDependencyError) as exc:
        if wanted == "device":
            raise
        warn(f"preprocessing runs on the CPU: {exc.what}")
        return sessions, on_cpu
    return sessions, None


_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


class PowerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options for power measurement from the command line; None means the profile's setting."""

    power: str | None = None
    idle: str | None = None
    set_power_mode: bool = False
    log: Path | None = None

    @classmethod
    def of(cls, profile: Profile, *, power: str | None) -> PowerOptions:
        """Make the options from the profile; the command line only sets the source."""
        config = profile.telemetry
        return cls(
            power=power, set_power_mode=config.set_power_mode, log=None if config.log is None else Path(config.log)
        )

    def idle_s(self, profile: Profile) -> float:
        """Duration of the idle baseline in seconds; 0 means none."""
        return profile.telemetry.idle_s if self.idle is None else seconds(self.idle, option="--idle")

    def check(self, profile: Profile) -> None:
        """Check the options before anything heavy is loaded.

        Raises:
            UsageError: an option cannot be fulfilled.
        """
        from edge import telemetry
        from edge.telemetry import MIN_IDLE_S

        if self.power is None:
            telemetry.check_name(profile.telemetry.source, key="telemetry.source")
        else:
            telemetry.check_name(self.power)
        idle_s = self.idle_s(profile)
        if 0 < idle_s < MIN_IDLE_S:
            raise UsageError(f"an idle baseline needs at least {MIN_IDLE_S:g} s, not {idle_s:g}", hint="--idle 10s")
        if self.set_power_mode and profile.power_mode is None:
            raise UsageError("the profile has no power mode to set", hint="set power_mode: … in the profile")


def seconds(text: str, *, option: str) -> float:
    """Parse a duration such as 10s, 1.5m, 2h or plain seconds.

    Raises:
        UsageError: it is none.
    """
    number = text.rstrip("abcdefghijklmnopqrstuvwxyz")
    try:
        value = float(number) * _UNITS[text[len(number) :]]
    except (ValueError, KeyError):
        value = -1.0
    if not 0.0 <= value < 1e9:
        raise UsageError(f"invalid duration {text!r} for {option}", hint=f"examples: {option} 10s, {option} 2m")
    return value


@contextmanager
def measured(
    profile: Profile, asked: PowerOptions, *, terminal: Terminal, should_stop: Callable[[], bool]
) -> Iterator[Telemetry]:
    """Measure telemetry during the block; before it, set the power mode and measure idle power if requested.

    Enter it after the engine is loaded and before cameras are opened: the idle power then excludes only inference.
    """
    from edge import telemetry
    from edge.telemetry import Sampler, Telemetry

    asked.check(profile)
    idle_s = asked.idle_s(profile)
    with contextlib.ExitStack() as stack:
        notes: list[str] = []
        if profile.power_mode is not None:
            notes += _power_mode(profile.power_mode, stack, terminal, set_it=asked.set_power_mode)
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


def _power_mode(wanted: str, stack: contextlib.ExitStack, terminal: Terminal, *, set_it: bool) -> list[str]:
    """Set the power mode until the stack is unwound, if asked to; warnings about the mode that is set then."""
    from edge.cli.power import this_command
    from edge.system import power_modes

    if set_it:
        state = stack.enter_context(power_modes.during(wanted, again=this_command()))
        terminal.info(f"power mode {state.mode}; the previous one is restored at the end", style="dim")
    warning = power_modes.mode_warning(wanted)
    return [] if warning is None else [warning]


def _log(
    path: Path | None, source: TelemetrySource, stack: contextlib.ExitStack, terminal: Terminal
) -> Callable[[Reading], None]:
    """Return a callback that writes readings to the log until the stack is unwound."""
    from edge.telemetry import Log

    if path is None:
        return lambda _reading: None
    log = Log(path, source)
    stack.callback(lambda: terminal.warn(f"the telemetry log is incomplete: {log.problem}") if log.problem else None)
    stack.enter_context(log)
    return log.keep


def power_line(telemetry: Telemetry) -> str:
    """Describe the source of power in a few words."""
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


def _with_samples(path: Path | None) -> Path | None:
    from edge.cli import paths

    return None if path is None else paths.samples(path)


ProfileName = Annotated[
    str | None,
    typer.Option(
        "--profile",
        "-p",
        help="Name or file; current: the bundle shipped to this device.",
        show_default="this machine's",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
CacheDir = Annotated[
    Path | None, typer.Option("--cache-dir", help="Calibration cache.", show_default="EDGE_CACHE_DIR, or calib_cache")
]
EngineDir = Annotated[Path | None, typer.Option("--engine-dir", help="Folder of the engines.", show_default="engines")]
Images = Annotated[
    Path | None,
    typer.Option(
        "--images",
        "-i",
        metavar="DIR",
        callback=_with_samples,
        help="Folder, image, list, CSV or TFRecord shards; samples: for the images included in edge.",
    ),
]
Labels = Annotated[
    Path | None,
    typer.Option(
        "--labels", metavar="FILE", help="Labels of the images if there are no class folders: CSV or TSV.",
    ),
]  # fmt: skip
LabelOffset = Annotated[
    int,
    typer.Option("--label-offset", metavar="N", help="Added to every class index: -1 for labels that count from 1."),
]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads.", show_default="all cores")]
PrecisionName = Annotated[
    str | None, typer.Option("--precision", help="fp32, fp16 or int8.", show_default="the profile's")
]
Power = Annotated[
    str | None,
    typer.Option(
        "--power",
        metavar="SOURCE",
        help=f"Power source: {', '.join(source_names())}, or replay:FILE (a recording).",
        show_default="the profile's, or auto",
    ),
]
Idle = Annotated[
    str | None,
    typer.Option(
        "--idle", metavar="TIME", help="Measure idle power first (10s or more), for net energy.",
        show_default="the profile's, or none",
    ),
]  # fmt: skip
SetPowerMode = Annotated[
    bool,
    typer.Option("--set-power-mode", help="Use the profile's power_mode during the run (needs root)."),
]
TelemetryLog = Annotated[
    Path | None,
    typer.Option(
        "--telemetry-log", metavar="FILE.jsonl", help="Write every power reading to FILE, for --power replay:FILE."
    ),
]
Notify = Annotated[
    list[str] | None,
    typer.Option(
        "--notify",
        metavar="TARGET",
        help="Report labels to http://…, mqtt://…, exec:COMMAND or @FILE (docs/running.md).",
    ),
]
Duration = Annotated[
    str | None, typer.Option("--duration", metavar="TIME", help="Stop after this time: 10s, 5m, 2h, 7d.")
]


def precision(name: str | None) -> Precision | None:
    """Return the precision with the given ``name``, or None without one.

    Raises:
        UsageError: the precision is unknown.
    """
    for known in get_args(Precision):
        if name == known:
            return known  # type: ignore[no-any-return]
    if name is None:
        return None
    raise UsageError(f"there is no precision {name!r}", hint=f"use one of {', '.join(get_args(Precision))}")


def open_terminal(files: Mapping[str, Path | None], *, as_json: bool) -> Terminal:
    """Open the terminal of a command; it prints no results if one of its ``files``, by option, is standard output.

    Raises:
        UsageError: two results would be mixed there.
    """
    from edge.ui.terminal import Terminal

    named = [f"{option} {path}" for option, path in files.items() if path is not None and is_stdout(path)]
    if len(named) + as_json > 1:
        raise UsageError(
            f"{' and '.join([*named, *(['--json'] if as_json else [])])} both write to standard output",
            hint=f"{named[0].split()[0]} FILE",
        )
    return Terminal(has_results=not named)


def read(path: Path) -> bytes:
    """Read all bytes of a file from the command line.

    Raises:
        UsageError: the file does not exist.
        StoreError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as exc:
        raise UsageError("the file does not exist", where=path) from exc
    except OSError as exc:
        raise StoreError(f"cannot read: {exc.strerror or exc}", where=path) from exc


def check_page(path: Path) -> None:
    """Check that an HTML page can be rendered and written before the work starts.

    Raises:
        MissingDependencyError: jinja2 or matplotlib is missing.
        StoreError: the file cannot be written.
    """
    from edge.reports import check

    check()
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise StoreError("the page cannot be written", where=path, hint="choose another file")

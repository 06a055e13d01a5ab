"""Classify pictures or a camera; report latency and power.

Decode, preprocess, infer and postprocess overlap; every stage has its own time. A camera gives its newest frame, and is
opened again when it is lost; files give every frame. The engine must have been built. With --json there is one object
per picture and a last one with the summary. Ctrl-C and SIGTERM finish the frames in hand and write the record.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from edge.cli import concurrency, http_options, options, record_options, source_options
from edge.ui.terminal import Terminal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge.artifacts import RunRecord
    from edge.calibration import FoundArtifact
    from edge.config import Profile
    from edge.runtime import RunSettings, Width

# Pictures listed at the end of a run; all of them are in the record.
_SHOWN = 20


def command(  # noqa: PLR0913 - one argument per option
    *,
    images: options.Images = None,
    camera: source_options.Camera = None,
    wait_for_camera: source_options.WaitForCamera = False,
    video: source_options.Video = None,
    replay: source_options.Replay = None,
    replay_speed: source_options.ReplaySpeed = "real",
    save_frames: source_options.SaveFrames = None,
    profile: options.ProfileName = None,
    precision: options.PrecisionName = None,
    topk: Annotated[int | None, typer.Option(min=1, help="Guesses per picture.", show_default="the profile's")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after N pictures.")] = None,
    duration: options.Duration = None,
    record: record_options.Record = None,
    every_frame: record_options.EveryFrame = False,
    flush: record_options.Flush = None,
    record_size: record_options.Size = 64,
    record_files: record_options.Files = 5,
    web: http_options.Web = None,
    metrics: http_options.MetricsAt = None,
    token_file: http_options.TokenFile = None,
    power: options.Power = None,
    idle: options.Idle = None,
    set_power_mode: options.SetPowerMode = False,
    telemetry_log: options.TelemetryLog = None,
    cache_dir: options.CacheDir = None,
    engine_dir: options.EngineDir = None,
    threads: options.Threads = None,
    workers: concurrency.Workers = None,
    batch: concurrency.Batch = 1,
    as_json: options.Json = False,
) -> None:
    """Run the operation."""
    from edge.cli import observers, paths, power_options, signals
    from edge.media import labels
    from edge.runtime import run_loop

    source = source_options.FrameSource(
        images=images, camera=camera, video=video, replay=replay, fast=replay_speed == "fast", limit=limit,
        save=save_frames, wait=wait_for_camera,
    )  # fmt: skip
    name = source.name
    wished = record_options.RecordOptions(
        path=record, every_frame=every_frame, flush=flush, size_mib=record_size, files=record_files
    )
    wished.check()
    duration_s = None if duration is None else power_options.seconds(duration, option="--duration")
    chosen, path = paths.load_profile(profile)
    terminal = Terminal()
    if not as_json:
        terminal.say(f"profile {chosen.name} ({path})", style="dim")
    width = concurrency.choose(chosen, live=source.is_live, workers=workers, threads=threads, batch=batch)
    backend, wanted, found = paths.find_engine(
        chosen, path, precision=options.precision(precision), cache_dir=cache_dir, engine_dir=engine_dir
    )
    open_stream = source.plan(chosen)
    names = labels.load_names(Path(chosen.labels))
    kept: list[RunRecord] = []
    with _printed(terminal, kept, as_json=as_json), contextlib.ExitStack() as stack:
        opened = http_options.open_ports(http_options.HttpOptions(web, metrics, token_file), stack, terminal)
        sessions, preprocessor = concurrency.open_sessions(
            backend, found, chosen, width, precision=wanted, stack=stack, warn=terminal.warn
        )
        wish = stack.enter_context(signals.graceful())
        wishes = power_options.PowerOptions(power=power, idle=idle, set_power_mode=set_power_mode, log=telemetry_log)
        telemetry = stack.enter_context(power_options.measured(chosen, wishes, terminal=terminal, should_stop=wish))
        stream = open_stream()
        stack.callback(stream.close)
        statistics = run_loop.statistics_of(stream, telemetry)
        run = observers.ObservedRun(
            subject=paths.subject(chosen, backend, found, wanted, Path(name)),
                power=power_options.power_line(telemetry),
            headline=f"{chosen.name} · {Path(chosen.model).stem} · {wanted}", kept=kept,
        )  # fmt: skip
        with observers.gather(terminal, statistics, telemetry.sampler, run, seen=opened, as_json=as_json) as followers:
            run_loop.run(
                stream,
                sessions=sessions,
                preprocessor=preprocessor,
                names=names,
                subject=run.subject,
                settings=_settings(chosen, found, width.width, topk=topk, duration_s=duration_s),
                telemetry=telemetry,
                statistics=statistics,
                observers=run_loop.Observers(on_event=followers, on_frame=followers.show, on_record=kept.append),
                journal=wished.journal(terminal),
                should_stop=wish,
            )
    if record is not None and not as_json:
        terminal.say(f"record: {record}")
    wish.grant()


def _settings(
    chosen: Profile, found: FoundArtifact, width: Width, *, topk: int | None, duration_s: float | None
) -> RunSettings:
    from edge.runtime import RunSettings, output_kind

    return RunSettings(
        topk=topk or chosen.run.topk, warmup=chosen.run.warmup, width=width, duration_s=duration_s,
        output=output_kind(chosen.output, found.manifest.info),
    )  # fmt: skip


@contextlib.contextmanager
def _printed(terminal: Terminal, kept: list[RunRecord], *, as_json: bool) -> Iterator[None]:
    """Print what was found when the block ends: also when the run failed, or the disk refused the record."""
    try:
        yield
    finally:
        if kept:
            _print_end(terminal, kept[-1], as_json=as_json)


def _print_end(terminal: Terminal, finished: RunRecord, *, as_json: bool) -> None:
    from edge.ui.terminal import render_summary

    if as_json:
        content = msgspec.to_builtins(finished)
        del content["results"]
        terminal.data(msgspec.json.encode({"summary": content}).decode())
    elif finished.pictures or finished.status != "failed":
        _print_labels(terminal, finished)
        render_summary(terminal, finished)


def _print_labels(terminal: Terminal, finished: RunRecord) -> None:
    """The last pictures and what they were taken for."""
    rows = [
        (result.name, result.guesses[0].label.replace("_", " "), f"{result.guesses[0].confidence:.1%}")
        for result in finished.results[-_SHOWN:]
    ]
    title = f"last {_SHOWN} of {finished.pictures}" if finished.pictures > _SHOWN else ""
    terminal.table(("picture", "label", "confidence"), rows, right=(2,), title=title)

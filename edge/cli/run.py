"""Classify images or camera frames; report latency and power.

Decode, preprocess, infer and postprocess overlap; the time of every stage is reported. A camera delivers its newest
frame and is reopened when it is lost; files deliver every frame. The engine must have been built. With --json there is
one object per image, and the summary as the last one. Ctrl-C and SIGTERM finish the frames in flight and write the
record.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from edge.artifacts import remove_leftovers
from edge.cli import options, run_options
from edge.ui.terminal import Terminal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge.artifacts import RunRecord
    from edge.calibration import FoundArtifact
    from edge.config import Profile
    from edge.media import OpenedSource
    from edge.runtime import ResultFiles, RunSettings, Width

# Maximum number of images listed at the end of a run; all of them are in the record.
_SHOWN = 20


# Options of the first version, and where they went.
REMOVED = {
    "--replay-speed": "run.replay_speed in the profile",
    "--topk": "run.topk in the profile",
    "--every-frame": "record.every_frame in the profile",
    "--flush": "record.flush_s in the profile",
    "--record-size": "record.size_mib in the profile",
    "--record-files": "record.files in the profile",
    "--token-file": "web.token_file in the profile",
    "--idle": "telemetry.idle_s in the profile",
    "--set-power-mode": "telemetry.set_power_mode in the profile",
    "--telemetry-log": "telemetry.log in the profile",
    "--threads": "run.threads in the profile",
    "--workers": "run.workers in the profile",
    "--batch": "run.batch in the profile",
    "--cache-dir": "the environment variable EDGE_CACHE_DIR",
    "--engine-dir": "the environment variable EDGE_ENGINE_DIR",
}


def command(  # noqa: PLR0913 - one argument per option
    *,
    images: options.Images = None,
    camera: run_options.Camera = None,
    wait_for_camera: run_options.WaitForCamera = False,
    video: run_options.Video = None,
    replay: run_options.Replay = None,
    save_frames: run_options.SaveFrames = None,
    save_video: run_options.SaveVideo = None,
    csv: run_options.Csv = None,
    profile: options.ProfileName = None,
    precision: options.PrecisionName = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Stop after N images.")] = None,
    duration: options.Duration = None,
    record: run_options.Record = None,
    web: run_options.Web = None,
    metrics: run_options.MetricsAt = None,
    notify: options.Notify = None,
    power: options.Power = None,
    as_json: options.Json = False,
) -> None:
    """Classify frames with an engine."""
    from edge.cli import observers, options, paths, signals
    from edge.media import labels
    from edge.runtime import run_loop

    source = run_options.FrameSource(
        images=images, camera=list(camera or ()), video=video, replay=replay, limit=limit, save=save_frames,
        wait=wait_for_camera,
    )  # fmt: skip
    source.check()
    _check_files(csv, save_video, record)
    terminal = options.open_terminal({"--csv": csv, "--record": record}, as_json=as_json)
    remove_leftovers()
    duration_s = None if duration is None else options.seconds(duration, option="--duration")
    chosen, path = paths.load_profile(profile)
    run_options.check_record(record, chosen.record)
    _print_profile(terminal, chosen, path, as_json=as_json)
    cameras = source.cameras(chosen, terminal.warn)
    is_live = bool(cameras) or (replay is not None and chosen.run.replay_speed == "real")
    width = options.choose(chosen, live=is_live, cameras=len(cameras))
    backend, wanted, found = paths.ready_engine(chosen, path, precision=options.precision(precision), terminal=terminal)
    open_stream = source.plan(chosen, cameras)
    names = labels.load_names(Path(chosen.labels))
    kept: list[RunRecord] = []
    with _printed(terminal, kept, as_json=as_json), contextlib.ExitStack() as stack:
        ports = run_options.open_ports(run_options.HttpOptions(web, metrics, chosen.web.token_file), stack, terminal)
        notifications = observers.open_notifications(notify or (), chosen, path, names=names, warn=terminal.warn)
        if notifications is not None:
            stack.callback(notifications.close)
        sessions, preprocessor = options.open_sessions(
            backend, found, chosen, width, precision=wanted, stack=stack, warn=terminal.warn
        )
        stop = stack.enter_context(signals.graceful())
        measured = options.PowerOptions.of(chosen, power=power)
        telemetry = stack.enter_context(options.measured(chosen, measured, terminal=terminal, should_stop=stop))
        stream = open_stream()
        stack.callback(stream.close)
        statistics = run_loop.statistics_of(
            stream, telemetry, sessions=sessions, notify=tuple if notifications is None else notifications.counts
        )
        run = observers.ObservedRun(
            subject=paths.subject(chosen, backend, found, wanted, run_options.source_name(source, cameras)),
            power=options.power_line(telemetry), notifications=notifications,
            files=_open_files(csv, save_video, stream.opened, terminal),
            headline=f"{chosen.name} · {Path(chosen.model).stem} · {wanted}", kept=kept,
        )  # fmt: skip
        with observers.gather(terminal, statistics, telemetry.sampler, run, seen=ports, as_json=as_json) as observed:
            run_loop.run(
                stream, sessions=sessions, preprocessor=preprocessor, names=names, subject=run.subject,
                settings=_settings(chosen, found, width.width, duration_s=duration_s), telemetry=telemetry,
                statistics=statistics, observers=observed,
                journal=run_options.open_journal(record, chosen.record, terminal), should_stop=stop,
            )  # fmt: skip
    if record is not None and not as_json:
        terminal.info(f"record: {record}")
    stop.grant()


def _open_files(csv: Path | None, video: Path | None, opened: OpenedSource, terminal: Terminal) -> ResultFiles | None:
    if csv is None and video is None:
        return None
    from edge.runtime import ResultFiles

    return ResultFiles(csv=csv, video=video, opened=opened, warn=terminal.warn)


def _check_files(csv: Path | None, video: Path | None, record: Path | None) -> None:
    """Refuse two results in one file, and a video of unknown suffix."""
    if csv is None and video is None:
        return
    from edge.runtime import ResultFiles

    ResultFiles.check(csv=csv, video=video, record=record)


def _print_profile(terminal: Terminal, chosen: Profile, path: Path, *, as_json: bool) -> None:
    if not as_json:
        terminal.info(f"profile {chosen.name} ({path})", style="dim")


def _settings(chosen: Profile, found: FoundArtifact, width: Width, *, duration_s: float | None) -> RunSettings:
    from edge.runtime import RunSettings, output_kind

    return RunSettings(
        topk=chosen.run.topk, warmup=chosen.run.warmup, width=width, duration_s=duration_s,
        decision=chosen.decision, output=output_kind(chosen.output, found.manifest.info), roi=chosen.preprocess.roi,
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
    """Print the last images with their labels."""
    rows = [
        (result.name, result.guesses[0].label.replace("_", " "), f"{result.guesses[0].confidence:.1%}")
        for result in finished.results[-_SHOWN:]
    ]
    title = f"last {_SHOWN} of {finished.pictures}" if finished.pictures > _SHOWN else ""
    terminal.table(("image", "label", "confidence"), rows, right=(2,), title=title)

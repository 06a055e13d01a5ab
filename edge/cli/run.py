"""Classify pictures and report latency and power.

Each picture goes through decode, preprocess, infer and postprocess; every stage has its own time. The engine must have
been built. With --json there is one object per picture and a last one with the summary.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from edge.cli import options
from edge.errors import UsageError
from edge.ui import Terminal

if TYPE_CHECKING:
    from edge.record import RunRecord

# Pictures listed at the end of a run; all of them are in the record.
_SHOWN = 20


def command(  # noqa: PLR0913 - one argument per option
    *,
    images: options.Images = None,
    profile: options.ProfileName = None,
    precision: options.PrecisionName = None,
    topk: Annotated[int | None, typer.Option(min=1, help="Guesses per picture.", show_default="the profile's")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after N pictures.")] = None,
    record: Annotated[Path | None, typer.Option(help="Write the run record to this file.")] = None,
    power: options.Power = None,
    idle: options.Idle = None,
    set_power_mode: options.SetPowerMode = False,
    telemetry_log: options.TelemetryLog = None,
    cache_dir: options.CacheDir = None,
    engine_dir: options.EngineDir = None,
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Run the verb."""
    from edge import labels, loop, preprocess
    from edge import record as records
    from edge.cli import audience, metering, places, signals
    from edge.frames import open_pictures
    from edge.frames.stream import PictureStream

    chosen, path = places.load_profile(profile)
    if images is None:
        raise UsageError("nothing to classify", hint="--images DIR")
    terminal = Terminal()
    if not as_json:
        terminal.say(f"profile {chosen.name} ({path})", style="dim")
    backend, wanted, found = places.find_engine(
        chosen, precision=options.precision(precision), cache_dir=cache_dir, engine_dir=engine_dir
    )
    pictures = open_pictures(images)
    pictures = pictures.take(limit) if limit else pictures
    names = labels.load_names(Path(chosen.labels))
    with contextlib.ExitStack() as stack:
        session = backend.open(
            found.path, precision=wanted, threads=threads or chosen.run.threads, built_for=found.manifest.key
        )
        stack.callback(session.close)
        wish = stack.enter_context(signals.graceful())
        wishes = metering.Wishes(power=power, idle=idle, set_power_mode=set_power_mode, log=telemetry_log)
        telemetry = stack.enter_context(metering.measured(chosen, wishes, terminal=terminal, should_stop=wish))
        stream = PictureStream(pictures)
        with audience.gather(
            terminal, stream, telemetry.sampler, headline=f"{chosen.name} · {Path(chosen.model).stem} · {wanted}",
            power=metering.power_line(telemetry), as_json=as_json,
        ) as hear:  # fmt: skip
            finished = loop.run(
                stream,
                sessions=[session],
                preprocessor=preprocess.Preprocessor(chosen.preprocess, chosen.input),
                names=names,
                subject=places.subject(chosen, backend, found, wanted, images),
                settings=loop.Settings(
                    topk=topk or chosen.run.topk,
                    warmup=chosen.run.warmup,
                    width=loop.Width(min_batch=chosen.input.batch.min),
                ),
                telemetry=telemetry,
                hear=hear,
                should_stop=wish,
            )
    try:
        if record is not None:
            records.save(record, finished)
    finally:
        # Also when the disk refused the record: what was found is not lost.
        _print_end(terminal, finished, as_json=as_json)
    if record is not None and not as_json:
        terminal.say(f"record: {record}")
    wish.grant()


def _print_end(terminal: Terminal, finished: RunRecord, *, as_json: bool) -> None:
    from edge.ui.summary import summary

    if as_json:
        content = msgspec.to_builtins(finished)
        del content["results"]
        terminal.data(msgspec.json.encode({"summary": content}).decode())
    else:
        _print_labels(terminal, finished)
        summary(terminal, finished)


def _print_labels(terminal: Terminal, finished: RunRecord) -> None:
    """The last pictures and what they were taken for."""
    rows = [
        (result.name, result.guesses[0].label.replace("_", " "), f"{result.guesses[0].confidence:.1%}")
        for result in finished.results[-_SHOWN:]
    ]
    title = f"last {_SHOWN} of {finished.pictures}" if finished.pictures > _SHOWN else ""
    terminal.table(("picture", "label", "confidence"), rows, right=(2,), title=title)

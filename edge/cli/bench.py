"""Measure an engine with the scenarios of MLPerf Inference.

They are single-stream, multi-stream and offline. Images are in memory, decoded and preprocessed; what is timed is the
engine, copies included. The rules ask for 600 seconds. A shorter run is allowed, and says that it is not by the rules.
Nothing made here is an MLPerf submission. With --camera the whole loop is measured instead, from the capture of a
frame to its label, for 60 seconds or --min-duration. With --layers each layer is timed instead. With --compare two
engines are measured one after the other.
"""

from __future__ import annotations

import contextlib
from array import array
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from edge.cli import options, run_options
from edge.errors import UsageError
from edge.ui.terminal import Terminal

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge.artifacts import RunRecord
    from edge.backends import Backend
    from edge.calibration import FoundArtifact
    from edge.cli.options import PowerOptions
    from edge.config import Precision, Profile
    from edge.runtime import BenchSettings, Scores

_SAMPLES = 64
_CAMERA_S = 60.0
_LAYER_RUNS = 100

Scenario = Annotated[
    str, typer.Option("--scenario", "-s", help="single-stream, multi-stream or offline.", metavar="NAME")
]
MinDuration = Annotated[
    str | None,
    typer.Option(
        "--min-duration",
        metavar="TIME",
        help="Run this long; longer only with --min-samples.",
        show_default="600s, by the rules",
    ),
]
MinSamples = Annotated[
    int | None,
    typer.Option("--min-samples", min=1, help="Run at least this many images.", show_default="the scenario's"),
]
WarmUp = Annotated[str, typer.Option("--warm-up", metavar="TIME", help="Run this long before the measurement.")]
Samples = Annotated[int, typer.Option("--samples", min=1, help="Images stored in memory and used repeatedly.")]
Layers = Annotated[
    bool,
    typer.Option(
        "--layers", help="Time each layer with the backend's profiler, and store the times next to the engine."
    ),
]
Record = Annotated[Path | None, typer.Option("--record", help="Write the record to this file, for edge report.")]


Compare = Annotated[
    str | None,
    typer.Option(
        "--compare", metavar="A,B",
        help="Measure two precisions, such as fp16,int8: latency, energy and, with --images, accuracy.",
    ),
]  # fmt: skip


def command(  # noqa: PLR0913 - every option is one parameter: Typer reads the signature
    *,
    scenario: Scenario = "single-stream",
    profile: options.ProfileName = None,
    images: options.Images = None,
    camera: run_options.Camera = None,
    precision: options.PrecisionName = None,
    min_duration: MinDuration = None,
    min_samples: MinSamples = None,
    warm_up: WarmUp = "1s",
    samples: Samples = _SAMPLES,
    record: Record = None,
    layers: Layers = False,
    compare: Compare = None,
    power: options.Power = None,
    idle: options.Idle = None,
    set_power_mode: options.SetPowerMode = False,
    telemetry_log: options.TelemetryLog = None,
    cache_dir: options.CacheDir = None,
    engine_dir: options.EngineDir = None,
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Run the operation."""
    from edge.cli import options, paths, signals
    from edge.runtime import benchmark

    _check_kind(
        scenario, camera=bool(camera), layers=layers, images=images is not None, samples=min_samples is not None,
        timed=min_duration is not None or record is not None,
    )  # fmt: skip
    rules = benchmark.SCENARIOS[scenario]
    duration_s = None if min_duration is None else options.seconds(min_duration, option="--min-duration")
    warmup_s = options.seconds(warm_up, option="--warm-up")
    chosen, path = paths.load_profile(profile)
    asked = options.PowerOptions(power=power, idle=idle, set_power_mode=set_power_mode, log=telemetry_log)
    asked.check(chosen)
    terminal = options.open_terminal({"--record": record}, as_json=as_json)
    if not as_json:
        words = "the result is the 99th percentile of the age, from capture to label" if camera else rules.words
        terminal.info(f"profile {chosen.name} ({path}); {words}", style="dim")
    if not camera:
        _warn_if_short(terminal, duration_s, rules.min_duration_s)
    kinds: list[Precision | None] = [options.precision(precision)]
    if compare is not None:
        if camera or layers or precision is not None or record is not None:
            raise UsageError("--compare cannot be combined with --camera, --layers, --precision or --record")
        kinds = [*_two_precisions(compare)]
    engines = [
        paths.find_engine(chosen, path, precision=kind, cache_dir=cache_dir, engine_dir=engine_dir) for kind in kinds
    ]
    engine = engines[0]
    if camera:
        ended = _bench_camera(camera, chosen, asked, terminal, duration_s=duration_s or _CAMERA_S, engine=engine)
        _finish(terminal, ended, record, as_json=as_json)
        return
    if layers:
        _time_layers(
            engine, chosen, asked, terminal, images=images, runs=min_samples or _LAYER_RUNS, threads=threads,
            as_json=as_json,
        )  # fmt: skip
        return
    settings = benchmark.BenchSettings(
        min_duration_s=duration_s, min_samples=min_samples, min_batch=chosen.input.batch.min,
        max_batch=chosen.input.batch.max, warmup=chosen.run.warmup, warmup_s=warmup_s,
        samples={"samples": "pictures" if images else "noise", "in_memory": samples},
    )  # fmt: skip
    benchmark.batch_sizes(rules, settings)  # before the engine is loaded
    with signals.graceful() as stop:
        measured = [
            _measure(
                each, chosen, asked, terminal, images=images, settings=settings, scenario=scenario,
                threads=threads, is_judged=compare is not None, should_stop=stop,
            )
            for each in engines if not stop()
        ]  # fmt: skip
    if len(measured) > 1:
        _print_comparison(terminal, measured, engines, as_json=as_json)
    else:
        _finish(terminal, measured[0][0], record, as_json=as_json)
    stop.grant()


def _measure(
    engine: tuple[Backend, Precision, FoundArtifact], chosen: Profile, asked: PowerOptions, terminal: Terminal, *,
    images: Path | None, settings: BenchSettings, scenario: str, threads: int | None, is_judged: bool,
    should_stop: Callable[[], bool],
) -> tuple[RunRecord, Scores | None]:  # fmt: skip
    """Run the scenario with one engine; where it ``is_judged``, compare its answers with FP32's on the images."""
    from edge.backends import report_messages
    from edge.cli import paths
    from edge.media import open_pictures
    from edge.runtime import benchmark, evaluation

    backend, wanted, found = engine
    with contextlib.ExitStack() as stack:
        session = backend.open(
            found.path, precision=wanted, threads=threads or chosen.run.threads, built_for=found.manifest.key
        )
        stack.callback(session.close)
        report_messages([session], terminal.warn)
        telemetry = stack.enter_context(options.measured(chosen, asked, terminal=terminal, should_stop=should_stop))
        listen = stack.enter_context(terminal.progress())
        finished = benchmark.bench(
            benchmark.Samples(chosen, images, count=settings.samples["in_memory"]).batches,
            rules=benchmark.SCENARIOS[scenario], session=session,
            subject=paths.subject(chosen, backend, found, wanted, images or "noise"), settings=settings,
            telemetry=telemetry, listen=listen, should_stop=should_stop,
        )  # fmt: skip
        if not is_judged or images is None or should_stop():
            return finished, None
        return finished, evaluation.evaluate(
            chosen, list(open_pictures(images)), precision=wanted, session=session, with_reference=True,
            listen=listen, should_stop=should_stop,
        )  # fmt: skip


def _two_precisions(text: str) -> list[Precision]:
    """The two precisions of ``--compare``.

    Raises:
        UsageError: not two different ones.
    """
    found = [options.precision(word.strip()) for word in text.split(",") if word.strip()]
    chosen = [item for item in dict.fromkeys(found) if item is not None]
    if len(chosen) != 2 or len(found) != 2:
        raise UsageError(f"--compare {text}: give two different precisions", hint="--compare fp16,int8")
    return chosen


def _print_comparison(
    terminal: Terminal,
    measured: list[tuple[RunRecord, Scores | None]],
    engines: list[tuple[Backend, Precision, FoundArtifact]],
    *,
    as_json: bool,
) -> None:
    from edge.runtime import benchmark

    rows = [
        benchmark.precision_figures(record, score, found.manifest.info.get("accuracy"))
        for (record, score), (_, _, found) in zip(measured, engines, strict=True)
    ]
    host = f"on this host's CPU ({engines[0][0].name}), not on a Jetson" if engines[0][0].name != "tensorrt" else ""
    verdict = benchmark.compare_precisions(*rows) + (f" {host[0].upper()}{host[1:]}." if host else "")
    if as_json:
        content = {"precisions": rows, "verdict": verdict, "records": [record for record, _ in measured]}
        terminal.data(msgspec.json.encode(content).decode())
        return
    names = (
        ("images per second", "rate_per_s", "{:.1f}"), ("median, ms", "median_ms", "{:.3f}"),
        ("energy per image, mJ", "mj_per_picture", "{:.2f}"), ("logit SQNR, dB", "sqnr_db", "{:.1f}"),
        ("agreement with FP32, %", "agreement", "{:.1f}"), ("images of the accuracy", "pictures", "{}"),
    )  # fmt: skip
    table = [
        (title, *("not measured" if row.get(key) is None else words.format(row[key]) for row in rows))
        for title, key, words in names
    ]
    terminal.table(("", *(str(row["precision"]) for row in rows)), table, right=(1, 2))
    terminal.show(verdict)


def _warn_if_short(terminal: Terminal, duration_s: float | None, wanted_s: float) -> None:
    if duration_s is not None and duration_s < wanted_s:
        terminal.warn(f"{duration_s:g} s: shorter than MLPerf's rules require ({wanted_s:g} s)")


def _check_kind(
    scenario: str, *, camera: bool, layers: bool, images: bool, samples: bool, timed: bool
) -> None:  # fmt: skip
    """Refuse options that do not go together.

    Raises:
        UsageError: they do not.
    """
    from edge.runtime import benchmark

    if camera and (images or scenario != "single-stream" or samples):
        raise UsageError("--camera measures the whole loop and excludes --images, --scenario and --min-samples")
    if layers and (camera or scenario != "single-stream" or timed):
        raise UsageError(
            "--layers cannot be combined with --camera, --scenario, --min-duration or --record",
            hint="--min-samples N sets the number of runs",
        )
    if scenario not in benchmark.SCENARIOS:
        raise UsageError(f"there is no scenario {scenario!r}", hint=f"use one of {', '.join(benchmark.SCENARIOS)}")


def _time_layers(
    engine: tuple[Backend, str, FoundArtifact], chosen: Profile, asked: PowerOptions, terminal: Terminal, *,
    images: Path | None, runs: int, threads: int | None, as_json: bool,
) -> None:  # fmt: skip
    """Time the layers of an engine, print them, and keep them next to it."""
    from edge.cli import signals
    from edge.cli.engine import show_times
    from edge.engines import engine_report, layer_times
    from edge.errors import StoreError
    from edge.runtime import benchmark

    backend, precision, found = engine
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(signals.graceful())
        stack.enter_context(options.measured(chosen, asked, terminal=terminal, should_stop=stop))
        batch = benchmark.Samples(chosen, images, count=1).batches(chosen.input.batch.min)[0]
        times = layer_times.measure(
            backend, found, batch, precision=precision, runs=runs, warmup=chosen.run.warmup,
            threads=threads or chosen.run.threads,
        )  # fmt: skip
    path = layer_times.beside(found.path.with_suffix(".json"))
    try:
        layer_times.save(path, times)
    except StoreError as exc:
        terminal.warn(f"the layer times are not stored: {exc}")
    if as_json:
        terminal.data(msgspec.json.encode(times).decode())
        return
    show_times(terminal, layer_times.of(times, engine_report.load(found.path), source=path.name), limit=None)
    terminal.info(f"layer times: {path}; edge engine show reads them")


def _finish(terminal: Terminal, finished: RunRecord, record: Path | None, *, as_json: bool) -> None:
    from edge.artifacts import run_record

    try:
        if record is not None:
            run_record.save(record, finished)
    finally:
        # Also if the record cannot be written: the results are not lost.
        _print_end(terminal, finished, as_json=as_json)
    if record is not None and not as_json:
        terminal.info(f"record: {record}")


def _bench_camera(
    given: list[str], chosen: Profile, asked: PowerOptions, terminal: Terminal, *, duration_s: float,
    engine: tuple[Backend, str, FoundArtifact],
) -> RunRecord:  # fmt: skip
    """Measure the loop itself with cameras, from the capture of a frame to its label."""
    from edge.artifacts import FrameResult
    from edge.cli import options, paths, signals
    from edge.media import labels
    from edge.runtime import Observers, RunSettings, benchmark, output_kind, run_loop

    backend, wanted, found = engine
    source = run_options.FrameSource(images=None, camera=given, video=None, replay=None, limit=None, save=None)
    cameras = source.cameras(chosen, terminal.warn)
    width = options.choose(chosen, live=True, cameras=len(cameras))
    open_stream = source.plan(chosen, cameras)
    ages = array("d")

    def keep_age(event: object) -> None:
        if isinstance(event, FrameResult) and event.stages.age_ms is not None:
            ages.append(event.stages.age_ms)

    with contextlib.ExitStack() as stack:
        sessions, preprocessor = options.open_sessions(
            backend, found, chosen, width, precision=wanted, stack=stack, warn=terminal.warn
        )
        stop = stack.enter_context(signals.graceful())
        telemetry = stack.enter_context(options.measured(chosen, asked, terminal=terminal, should_stop=stop))
        stream = open_stream()
        stack.callback(stream.close)
        record = run_loop.run(
            stream, sessions=sessions, preprocessor=preprocessor, names=labels.load_names(Path(chosen.labels)),
            subject=paths.subject(chosen, backend, found, wanted, run_options.source_name(source, cameras)),
            settings=RunSettings(
                topk=chosen.run.topk, warmup=chosen.run.warmup, width=width.width, duration_s=duration_s,
                output=output_kind(chosen.output, found.manifest.info), roi=chosen.preprocess.roi,
            ),
            telemetry=telemetry, observers=Observers(on_event=keep_age), should_stop=stop,
        )  # fmt: skip
    return msgspec.structs.replace(record, bench=benchmark.age_result(ages, record))


def _print_end(terminal: Terminal, finished: RunRecord, *, as_json: bool) -> None:
    from edge.ui.terminal import render_summary

    if as_json:
        terminal.data(msgspec.json.encode(finished).decode())
        return
    render_summary(terminal, finished)
    result = finished.bench or {}
    terminal.show("")
    for line in result_lines(result):
        terminal.show(line)
    if result["why_not"] and result["scenario"] != "camera":
        terminal.warn(f"shorter than MLPerf's rules require: {'; '.join(result['why_not'])}")


def result_lines(result: dict[str, Any]) -> list[str]:
    """Format the result of a scenario as text."""
    name = result["scenario"]
    if result.get("percentile") is None:
        rate = result["rate_per_s"]
        return [f"{name}: {rate:.1f} images/s" if rate else f"{name}: no result"]
    share = f"{result['percentile'] * 100:g}th percentile"
    if result["percentile_ms"] is None:
        return [f"{name}: no result"]
    what = "ages, from capture to label," if name == "camera" else "queries"
    lines = [f"{name}: {share} of {result['queries']} {what} {result['percentile_ms']:.3f} ms"]
    if result["estimate_ms"] is not None:
        lines.append(
            f"with {result['confidence']:.0%} confidence at most {result['estimate_ms']:.3f} ms (early stopping)"
        )
    else:
        lines.append(f"no claim for other runs: early stopping requires {result['fewest_queries']} queries")
    if result.get("multi_stream_inferred_ms") is not None:
        lines.append(f"multi-stream, inferred from it as the rules allow: {result['multi_stream_inferred_ms']:.3f} ms")
    return lines

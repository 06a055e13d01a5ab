"""Measure top-1, top-5 and agreement with FP32.

Every share has a 95 % interval. FP32 is the model itself, run by ONNX Runtime on this machine's CPU with the same
preprocessing. INT8 is always compared with it, and with the limits in the profile's quality section. If this
machine has no TensorRT, the TensorRT form of the calibration table is evaluated.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from edge.cli import options
from edge.errors import DeviceError, MissingDependencyError, UsageError
from edge.ui.terminal import Terminal

if TYPE_CHECKING:
    from edge.backends import Session
    from edge.config import Precision, Profile
    from edge.media import Picture
    from edge.quantization import Table
    from edge.runtime import Scores


def command(  # noqa: PLR0913 - every option is one parameter: Typer reads the signature
    *,
    images: options.Images = None,
    labels: options.Labels = None,
    label_offset: options.LabelOffset = 0,
    profile: options.ProfileName = None,
    precision: options.PrecisionName = None,
    against: Annotated[str | None, typer.Option(help="Compare with fp32; always on for INT8.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first N images.")] = None,
    min_top1: Annotated[
        float | None, typer.Option(min=0, max=100, help="Fail (exit code 1) if top-1 is below N percent.")
    ] = None,
    min_agreement: Annotated[
        float | None, typer.Option(min=0, max=100, help="Fail if agreement with FP32 is below N percent.")
    ] = None,
    max_drop: Annotated[float | None, typer.Option(min=0, help="Fail if top-1 is over N points below FP32.")] = None,
    min_sqnr: Annotated[float | None, typer.Option(help="Fail if the logit SQNR is below N dB.")] = None,
    cache_dir: options.CacheDir = None,
    engine_dir: options.EngineDir = None,
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Run the evaluation."""
    from edge.calibration import quality, worst_layers
    from edge.cli import paths, signals
    from edge.runtime import evaluation

    if against not in {None, "fp32"}:
        raise UsageError(f"cannot compare with {against!r}", hint="--against fp32")
    chosen, path = paths.load_profile(profile)
    if images is None:
        raise UsageError("nothing to evaluate", hint="--images DIR --labels labels.csv")
    given = {"min_top1": min_top1, "min_agreement": min_agreement, "max_drop": max_drop, "min_sqnr": min_sqnr}
    limits = msgspec.structs.replace(chosen.quality, **{name: n for name, n in given.items() if n is not None})
    wanted = options.precision(precision) or chosen.precision
    needs = (limits.min_agreement, limits.max_drop, limits.min_sqnr)
    compared = against is not None or wanted == "int8" or any(limit is not None for limit in needs)
    terminal = Terminal()
    if not as_json:
        terminal.info(f"profile {chosen.name} ({path})", style="dim")
    with contextlib.ExitStack() as stack:
        session, table, quantized = _subject(
            stack, terminal, chosen, path, wanted, cache_dir=cache_dir, engine_dir=engine_dir, threads=threads
        )
        found = paths.labelled_pictures(chosen, images, labels, label_offset=label_offset)
        pictures = _checked(list(found.take(limit) if limit else found), images, compared=compared)
        if limits.min_top1 is not None and pictures[0].label is None:
            raise UsageError("--min-top1 needs labels", hint="--labels labels.csv")
        with signals.graceful() as stop, terminal.progress() as listen:
            scores = evaluation.evaluate(
                chosen, pictures, precision=wanted, session=session, table=table,
                with_reference=compared, quantized=quantized, threads=threads or chosen.run.threads,
                listen=listen, should_stop=stop,
            )  # fmt: skip
    stop.grant()
    if scores is None:
        return
    if as_json:
        terminal.data(msgspec.json.encode(scores).decode())
    else:
        _show(terminal, scores)
    if scores.warning:
        terminal.warn(scores.warning)
    hint = f"edge tune --profile {chosen.name} --images DIR (calibration images)"

    def worst() -> list[str]:
        return [] if table is None else worst_layers(chosen, table, pictures, threads=threads)

    for note in quality.check(scores.measured(), limits, hint=hint, judged=wanted == "int8", layers=worst):
        terminal.warn(note)


def _subject(
    stack: contextlib.ExitStack,
    terminal: Terminal,
    profile: Profile,
    path: Path,
    precision: Precision,
    *,
    cache_dir: Path | None,
    engine_dir: Path | None,
    threads: int | None,
) -> tuple[Session | None, Table | None, Profile | None]:
    """Return the open engine if this machine can run it, else the table whose TensorRT form is evaluated.

    With the table comes the profile with the model for it.
    """
    from edge.backends import report_messages
    from edge.calibration import cache_keys
    from edge.cli import paths

    session = None
    try:
        backend, _, found = paths.find_engine(
            profile, path, precision=precision, cache_dir=cache_dir, engine_dir=engine_dir
        )
        session = backend.open(
            found.path, precision=precision, threads=threads or profile.run.threads, built_for=found.manifest.key
        )
        stack.callback(session.close)
        report_messages([session], terminal.warn)
    except (MissingDependencyError, DeviceError) as exc:
        if profile.backend != "tensorrt" or precision != "int8":
            raise
        terminal.info(f"no TensorRT on this machine ({exc.what}): evaluating the TensorRT form of the table")
    if precision != "int8" or (profile.backend == "tensorrt" and session is not None):
        return session, None, None
    table = cache_keys.find_table_if_needed(profile, paths.cache_folder(cache_dir, path))
    if table is None:
        return session, None, None
    return session, cache_keys.read_table(table), cache_keys.quantized_profile(profile, table)


def _checked(pictures: list[Picture], images: Path, *, compared: bool) -> list[Picture]:
    """Return the images: all with a label or, for a comparison with FP32, none.

    Raises:
        UsageError: images have no class.
    """
    missing = sum(picture.label is None for picture in pictures)
    if missing and (missing < len(pictures) or not compared):
        raise UsageError(
            f"{missing} of {len(pictures)} images have no label", where=images,
            hint="--labels FILE.csv, or one folder per class with the name of the class; "
            "--against fp32 needs no labels",
        )  # fmt: skip
    return pictures


def _show(terminal: Terminal, scores: Scores) -> None:
    rows = []
    for name, value, interval, other in (
        ("top-1", scores.top1, scores.top1_interval, scores.against_top1),
        ("top-5", scores.top5, scores.top5_interval, scores.against_top5),
    ):
        if value is not None and interval is not None:
            rows.append((name, _share(value, interval), _plain(other)))
    if scores.agreement is not None and scores.agreement_interval is not None:
        rows.append(("agreement", _share(scores.agreement, scores.agreement_interval), ""))
    if scores.top1_difference is not None and scores.top1_difference_interval is not None:
        low, high = scores.top1_difference_interval
        rows.append(("top-1 difference", f"{scores.top1_difference:+.2f} points  [{low:+.2f}, {high:+.2f}]", ""))
    if scores.against is not None:
        rows.append(("logit SQNR", _decibels(scores.logit_sqnr_db), ""))
    columns = (f"n = {scores.n}", f"{scores.precision}, 95 % interval", scores.against or "")
    keep = 3 if scores.against else 2
    terminal.table(columns[:keep], [row[:keep] for row in rows])
    if scores.judged != "engine":
        terminal.show(f"evaluated: {scores.judged}")
    if scores.float_layers:
        terminal.show(f"{scores.float_layers} of {scores.weighted_layers} weighted layers are scored in FP32")
    if scores.host_form is not None:
        host = scores.host_form
        top1 = "" if host.top1 is None else f", top-1 {host.top1:.2f} %"
        terminal.show(
            f"this machine's own engine: {_decibels(host.logit_sqnr_db)}, agreement {host.agreement:.2f} %{top1}"
        )
        terminal.show(f"  cause: {host.cause}")


def _decibels(value: float | None) -> str:
    return "equal logits" if value is None else f"{value:.1f} dB"


def _share(value: float, interval: tuple[float, float]) -> str:
    return f"{value:.2f} %  [{interval[0]:.2f}, {interval[1]:.2f}]"


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} %"

"""Find the layers that INT8 should leave in float.

The network is prepared for INT8, each weighted layer is quantized alone, and the noisiest layers are moved to float one
after the other. Accuracy over their number is predicted and measured on calibration images, in TensorRT's form with
float32 arithmetic on this machine's CPU. The result is a recipe with its calibration table for `edge build`. After a
stop, the same command continues. Float layers run in FP16 on a device; here they are computed in FP32.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from edge.cli import options
from edge.errors import QualityError, UsageError
from edge.ui.terminal import Terminal

if TYPE_CHECKING:
    from edge.config import Profile
    from edge.tuning import TuningRecord

# Layers that are listed on a terminal.
_LISTED = 10


def command(  # noqa: PLR0913 - every option is one parameter: Typer reads the signature
    *,
    images: options.Images = None,
    labels: options.Labels = None,
    label_offset: options.LabelOffset = 0,
    profile: options.ProfileName = None,
    max_float: Annotated[
        str, typer.Option(metavar="N%", help="Maximum number of weighted layers in float: N% or N layers.")
    ] = "10%",
    target_sqnr: Annotated[
        float | None, typer.Option(help="Use the fewest float layers that reach N dB of logit SQNR.")
    ] = None,
    target_agreement: Annotated[
        float | None,
        typer.Option(min=0, max=100, help="Use the fewest float layers that agree with FP32 on N percent."),
    ] = None,
    times: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="An engine with layer times (edge bench --layers), or edge engine show ENGINE --times FILE --json: "
            "milliseconds of the float layers instead of their operations.",
        ),
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with the curve.")] = None,
    cache_dir: options.CacheDir = None,
    threads: options.Threads = None,
    force: Annotated[bool, typer.Option("--force", help="Measure everything again.")] = False,
    as_json: options.Json = False,
) -> None:
    """Run the tuning."""
    from edge.artifacts import store
    from edge.calibration import quality
    from edge.cli import paths, signals
    from edge.engines import layer_times
    from edge.tuning import tune, tune_page

    terminal = options.open_terminal({"--html": html}, as_json=as_json)
    if html is not None:
        options.check_page(html)
    chosen, path = paths.load_profile(profile)
    source = images or (Path(chosen.calibration.images) if chosen.calibration.images else None)
    if source is None:
        raise UsageError("no images to tune with", hint="give --images DIR, or set calibration.images in the profile")
    if not as_json:
        terminal.info(f"profile {chosen.name} ({path})", style="dim")
    pictures = paths.labelled_pictures(chosen, source, labels, label_offset=label_offset)
    settings = tune.TuneSettings(
        max_float=_max_float(max_float, chosen),
        target_sqnr=target_sqnr, target_agreement=target_agreement, threads=threads,
        times_ms=None if times is None else layer_times.read_node_times(times),
    )  # fmt: skip
    with signals.graceful() as stop, terminal.progress() as listen:
        record = tune.tune(
            chosen, pictures, settings,
            cache=paths.own_cache_folder(cache_dir, path), force=force, listen=listen, should_stop=stop,
        )  # fmt: skip
    if record is None:
        terminal.info("the measurements are saved; the same command continues from there")
        stop.grant()
        return
    if as_json:
        terminal.data(msgspec.json.encode(record).decode())
    else:
        _show(terminal, record)
    if html is not None:
        store.write_bytes(html, tune_page.render_tuning(record).encode())
        terminal.info(f"page: {html}")
    if not record.reached:
        result = record.result
        agreement = "" if result.agreement is None else f", agreement {result.agreement.value:.1f} %"
        raise QualityError(
            f"the target of {record.target} is not reached with {record.chosen} of {record.weighted_layers} layers in "
            f"float: logit SQNR {tune_page.decibels(result.sqnr_db)}{agreement}",
            hint="use a larger --max-float, more calibration images, or quantization-aware training (docs/accuracy.md)",
        )
    for note in quality.check(record.accuracy, chosen.quality, hint="a larger --max-float"):
        terminal.warn(note)


def _max_float(text: str, profile: Profile) -> float:
    """Parse ``10%``, or a number of the model's weighted layers, and return the share.

    Raises:
        UsageError: neither.
    """
    from edge.model import onnx_model, weighted_layers

    number = text.strip().removesuffix("%").strip()
    is_share = text.strip().endswith("%")
    try:
        value = float(number) if is_share else int(number)
    except ValueError:
        value = -1
    if not value >= 0 or (is_share and value > 100) or value == float("inf"):
        raise UsageError(f"{text!r} is not a share of the layers", where="--max-float", hint="--max-float 10% or 5")
    if is_share:
        return value / 100.0
    count = len(weighted_layers(onnx_model.folded(Path(profile.model), profile.outputs)))
    return min((value + 0.5) / count, 1.0) if count else 0.0


def _show(terminal: Terminal, record: TuningRecord) -> None:
    from edge.tuning import tune_page

    decibels, share = tune_page.decibels, tune_page.share

    is_timed = record.result.float_ms is not None
    terminal.table(
        ["", "float layers", "float, ms" if is_timed else "operations, %", "predicted", "SQNR", "as FP32"],
        [
            [
                "*" if point.float_layers == record.chosen else "",
                str(point.float_layers),
                f"{100 * point.macs:.1f}" if point.float_ms is None else f"{point.float_ms:.3f}",
                f"{point.predicted_db:.1f} dB",
                decibels(point.sqnr_db),
                share(point.agreement),
            ]
            for point in record.curve
            if point.agreement is not None
        ],
        right=range(1, 5),
    )
    terminal.show(f"* written to the recipe; {record.pictures} calibration images, of {record.weighted_layers} layers")
    terminal.show("")
    terminal.table(
        ["layer", "noise, %", "in", "reason"],
        [
            [layer.layer, f"{100 * layer.noise_share:.1f}", "float" if layer.is_float else "INT8", layer.reason]
            for layer in record.layers[:_LISTED]
        ],
        right=[1],
    )
    if record.fp32_top1 is not None:
        terminal.show(f"top-1 {share(record.result.top1)}, FP32 {share(record.fp32_top1)}")
    terminal.show(f"table: {record.table}")

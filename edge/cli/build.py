"""Build the engine that a profile describes.

INT8 gets its ranges from the calibration table of the same model and preprocessing. An engine that was made from
exactly this profile, model, table and runtime is not built again; otherwise the differences are reported.

With TensorRT, the measured kernel times are saved as a timing cache (edge cache list), which speeds up the next build.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from edge.cli import options
from edge.ui.terminal import Terminal

if TYPE_CHECKING:
    from edge.backends import Layers
    from edge.config import Precision
    from edge.engines import BuildOutcome


def command(
    *,
    profile: options.ProfileName = None,
    precision: options.PrecisionName = None,
    cache_dir: options.CacheDir = None,
    engine_dir: options.EngineDir = None,
    no_timing_cache: Annotated[
        bool,
        typer.Option("--no-timing-cache", help="Measure every kernel again, without the stored timing cache."),
    ] = False,
    error_on_miss: Annotated[
        bool,
        typer.Option("--error-on-miss", help="Fail where the timing cache lacks a kernel (TensorRT 10 and later)."),
    ] = False,
    retarget: Annotated[
        bool, typer.Option("--retarget", help="Use a table from another major version of TensorRT.")
    ] = False,
    dla_report: Annotated[
        bool,
        typer.Option("--dla-report", help="List the unit (DLA or GPU) of every layer, with TensorRT's reason."),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Build even if nothing changed.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done and why; write nothing.")] = False,
    as_json: options.Json = False,
) -> None:
    """Run the operation."""
    from edge import backends
    from edge.cli import paths
    from edge.engines import building
    from edge.errors import UsageError

    if no_timing_cache and error_on_miss:
        raise UsageError("--no-timing-cache and --error-on-miss exclude each other", hint="leave one of them out")
    chosen, path = paths.load_profile(profile)
    if error_on_miss and chosen.backend != "tensorrt":
        raise UsageError(f"--error-on-miss: {chosen.backend} has no timing caches", hint="leave it out")
    if dla_report and chosen.build.dla_core is None:
        raise UsageError("--dla-report: the profile uses no DLA", hint="set build: {dla_core: 0} in the profile")
    terminal = Terminal()
    terminal.info(f"profile {chosen.name} ({path})", style="dim")
    with terminal.progress() as listen:
        outcome = building.build(
            chosen,
            backends.of(chosen),
            cache=paths.build_cache_folder(cache_dir, path),
            engines=paths.engine_folder(engine_dir, path),
            precision=options.precision(precision),
            force=force,
            dry_run=dry_run,
            retarget=retarget,
            timing_cache=not no_timing_cache,
            error_on_miss=error_on_miss,
            listen=listen,
        )
    if as_json:
        terminal.data(msgspec.json.encode(outcome, enc_hook=str).decode())
        return
    _show(terminal, outcome)
    if dla_report:
        _show_dla(terminal, outcome)


def _show_dla(terminal: Terminal, outcome: BuildOutcome) -> None:
    """List the layers of an engine for a DLA by unit."""
    if not outcome.dla_layers:
        terminal.warn("the engine's manifest has no list of units: edge build --force --dla-report")
        return
    rows = [(item["name"], item["kind"], item["unit"], item["why"] or "") for item in outcome.dla_layers]
    on_dla = sum(item["unit"] == "DLA" for item in outcome.dla_layers)
    terminal.table(
        ("layer", "type", "unit", "why not the DLA"), rows, title=f"{on_dla} of {len(rows)} layers on the DLA"
    )


def _show(terminal: Terminal, outcome: BuildOutcome) -> None:
    if outcome.work == "unchanged":
        terminal.data(f"{outcome.engine}: unchanged, nothing to do")
        return
    for reason in outcome.why:
        terminal.info(f"because: {reason}")
    if outcome.work == "would build":
        terminal.data(f"would build {outcome.manifest.with_suffix('')} ({outcome.precision})")
        return
    if outcome.route_why is not None:
        route = f"{outcome.route} route: " if outcome.route else ""
        terminal.info(f"{route}{outcome.route_why}")
    timing = _timing(outcome)
    if timing:
        terminal.info(timing)
    layers = outcome.layers
    share = "" if layers is None else _share(outcome.precision, layers)
    terminal.data(f"{outcome.engine}: {outcome.precision} built in {outcome.seconds:.1f} s{share}")


def _share(precision: Precision, layers: Layers) -> str:
    """Return the share of layers in the requested precision, as text; FP32 has none."""
    count = {"int8": layers.weighted_int8, "fp16": layers.weighted_fp16 + layers.weighted_int8}.get(precision)
    if count is None:
        return ""
    hidden = f" (the precision of {layers.weighted_unknown} is unknown)" if layers.weighted_unknown else ""
    return f", {count} of {layers.weighted} weighted layers in {precision.upper()}{hidden}"


def _timing(outcome: BuildOutcome) -> str:
    """Describe the use of the timing cache by this build; empty if nothing is known."""
    timing = outcome.timing
    if timing is None or timing["use"] == "no effect":
        return ""
    if timing["use"] == "off":
        return "timing cache: off, every kernel was measured"
    words = {
        "used": "used", "attached": "attached (it is unknown if TensorRT used it)", "started": "started",
        "refused": "refused by TensorRT, started again",
    }[timing["use"]]  # fmt: skip
    parts = [f"timing cache: {words}"]
    if timing["entries_before"] is not None and timing["entries_after"] is not None:
        parts.append(f"{timing['entries_before']} entries before, {timing['misses']} added")
    if timing["hits"] is not None:
        parts.append(f"{timing['hits']} lookups answered")
    if timing["bytes_after"] is not None:
        parts.append(f"{timing['bytes_after'] / 1024:.0f} KiB")
    return ", ".join(parts)

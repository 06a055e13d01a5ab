"""Build the engine that a profile describes.

INT8 takes its ranges from the calibration table of the same model and preprocessing. Nothing is built twice: an engine
that was made from exactly this profile, model, table and runtime is left as it is, and what differs is named.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from edge.cli import options
from edge.ui import Terminal


def command(
    *,
    profile: options.ProfileName = None,
    precision: options.PrecisionName = None,
    cache_dir: options.CacheDir = None,
    engine_dir: options.EngineDir = None,
    force: Annotated[bool, typer.Option("--force", help="Build although nothing changed.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done and why; write nothing.")] = False,
    as_json: options.Json = False,
) -> None:
    """Run the verb."""
    from edge import backends, build
    from edge.cli import places

    chosen, path = places.load_profile(profile)
    terminal = Terminal()
    terminal.say(f"profile {chosen.name} ({path})", style="dim")
    with terminal.progress() as listen:
        outcome = build.build(
            chosen,
            backends.get(chosen.backend),
            cache=places.cache_folder(cache_dir),
            engines=places.engine_folder(engine_dir),
            precision=options.precision(precision),
            force=force,
            dry_run=dry_run,
            listen=listen,
        )
    if as_json:
        terminal.data(msgspec.json.encode(outcome, enc_hook=str).decode())
        return
    if outcome.work == "unchanged":
        terminal.data(f"{outcome.engine}: unchanged, nothing to do")
        return
    for reason in outcome.why:
        terminal.say(f"because: {reason}")
    if outcome.work == "would build":
        terminal.data(f"would build {outcome.manifest.with_suffix('')} ({outcome.precision})")
        return
    layers = outcome.layers
    share = f", {layers.weighted_int8} of {layers.weighted} weighted layers in INT8" if layers else ""
    terminal.data(f"{outcome.engine}: {outcome.precision} built in {outcome.seconds:.1f} s{share}")

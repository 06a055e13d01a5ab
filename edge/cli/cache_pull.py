"""`edge cache pull`: what devices found out is collected."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge.cli import options, target_options
from edge.ui.terminal import Terminal

if TYPE_CHECKING:
    from edge.deploy import Collected


def pull(
    target: target_options.Targets,
    *,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the files of each device.")
    ] = Path("devices"),
    cache_dir: options.CacheDir = None,
    parallel: target_options.Parallel = None,
    fleet: target_options.FleetFile = None,
    ssh_config: target_options.SshConfig = None,
    as_json: options.Json = False,
) -> None:
    """Bring timing caches, engine manifests, self-tests and run records home from devices.

    Timing caches join calib_cache/timing, so that the next device of the same kind builds from them; the rest goes to a
    folder per device.
    """
    from edge.cli import fleet_jobs, paths
    from edge.deploy import collect

    chosen = target_options.choose(target, fleet_file=fleet, ssh_config=ssh_config)
    cache = paths.cache_folder(cache_dir)
    ended = fleet_jobs.each(
        chosen, lambda place, hold: collect.fetch(place, cache=cache, output=output, hold=hold),
        parallel=parallel, as_json=as_json,
    )  # fmt: skip
    results = [one.result for one in ended if one.result is not None]
    if not as_json:
        _show(results)
    fleet_jobs.finish(ended)
    for collected in results:
        if (error := collect.failed(collected)) is not None:
            raise error


def _show(results: list[Collected]) -> None:
    terminal = Terminal()
    for collected in results:
        for piece in collected.pieces:
            if piece.what in {"conflict", "refused"}:
                terminal.warn(f"{collected.target}: {piece.name}: {piece.what}: {piece.why}")
        counts = [f"{count} {what}" for what in ("new", "updated", "unchanged", "conflict", "refused")
                  if (count := collected.count(what))]  # fmt: skip
        terminal.data(f"{collected.target}: {', '.join(counts) or 'nothing there yet'} -> {collected.folder}")

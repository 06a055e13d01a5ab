"""List, verify, merge, clear and fetch caches and tables.

A timing cache contains kernel times of TensorRT on one device; it is in calib_cache/timing and belongs to one
TensorRT, module or GPU, power mode and CUDA. Builds save and use it automatically.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from edge.cli import fleet_jobs, options
from edge.errors import ArtifactError, QualityError, UsageError
from edge.ui.terminal import Terminal

if TYPE_CHECKING:
    from edge.backends.tensorrt import TimingCacheEntry
    from edge.deploy import Collected


def pull(
    target: fleet_jobs.Targets,
    *,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the files of each device.")
    ] = Path("devices"),
    cache_dir: options.CacheDir = None,
    parallel: fleet_jobs.Parallel = None,
    fleet: fleet_jobs.FleetFile = None,
    ssh_config: fleet_jobs.SshConfig = None,
    as_json: options.Json = False,
) -> None:
    """Collect timing caches, engine manifests, self-tests and run records from devices.

    Timing caches are merged into calib_cache/timing, so that builds for similar devices are fast; the rest goes to a
    folder per device.
    """
    from edge.cli import fleet_jobs, paths
    from edge.deploy import collect

    chosen = fleet_jobs.choose(target, fleet_file=fleet, ssh_config=ssh_config)
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


app = typer.Typer(no_args_is_help=True, help=__doc__)
app.command("pull")(pull)


@app.command("list")
def show(*, cache_dir: options.CacheDir = None, as_json: options.Json = False) -> None:
    """List every calibration table and every timing cache with its origin, its entries and its size."""
    from edge.calibration import cache_keys
    from edge.cli import paths

    folder, found = _listing(cache_dir)
    tables = cache_keys.list_tables(paths.cache_folder(cache_dir))
    terminal = Terminal()
    if as_json:
        content = {"folder": str(folder), "caches": [_plain(entry) for entry in found], "tables": tables}
        terminal.data(_json(content))
        return
    if tables:
        terminal.table(
            ("tables of", "table", "algorithm", "images", "preprocessing", "folder"),
            [
                (one.folder, one.table, one.algorithm, str(one.pictures or ""), one.preprocess, _size(one.bytes))
                for one in tables
            ],
            right=(3, 5),
        )
    if not found:
        terminal.info(f"no timing caches in {folder}: `edge build` with TensorRT saves them there")
        return
    rows = [
        (
            entry.path.name,
            str(entry.key.get("tensorrt") or ""),
            str(entry.key.get("module") or entry.key.get("gpu") or ""),
            str(entry.key.get("power_mode") or ""),
            "?" if entry.entries is None else str(entry.entries),
            _size(entry.bytes),
            entry.state,
        )
        for entry in found
    ]
    headings = ("file", "TensorRT", "device", "power mode", "entries", "size", "state")
    terminal.table(headings, rows, right=(4, 5))


@app.command()
def verify(*, cache_dir: options.CacheDir = None, as_json: options.Json = False) -> None:
    """Check every timing cache against its manifest; exit code 1 if one does not match."""
    folder, found = _listing(cache_dir)
    terminal = Terminal()
    bad = [entry for entry in found if entry.state in {"corrupt", "no manifest"}]
    if as_json:
        terminal.data(_json({"folder": str(folder), "caches": [_plain(entry) for entry in found], "bad": len(bad)}))
    else:
        for entry in found:
            text = entry.state if entry.problem is None else f"{entry.state}: {entry.problem}"
            terminal.data(f"{entry.path.name}: {text}")
        if not found:
            terminal.info(f"no timing caches in {folder}")
    if bad:
        raise QualityError(
            f"{len(bad)} of {len(found)} files do not match their manifests",
            where=folder,
            hint="the next build sets them aside and measures again; edge cache gc removes them",
        )


@app.command()
def merge(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE…", help="Timing caches: edge's, trtexec's, Polygraphy's.")
    ],
    *,
    profile: options.ProfileName = None,
    cache_dir: options.CacheDir = None,
    as_json: options.Json = False,
) -> None:
    """Add the entries of other timing caches of exactly this TensorRT and device to the one that builds use here.

    TensorRT itself merges them and refuses those of another version or device, so this must run on the device.
    """
    from edge import backends
    from edge.backends.tensorrt import TensorRT, timing_cache
    from edge.cli import paths

    chosen, _path = paths.load_profile(profile)
    backend = backends.of(chosen)
    if not isinstance(backend, TensorRT):
        raise UsageError(
            f"the profile {chosen.name} has no timing caches",
            hint="use --profile orin, or another profile for TensorRT",
        )
    contents = [options.read(path) for path in files]
    for path, content in zip(files, contents, strict=True):
        if not content:
            raise ArtifactError("the file is empty", where=path)
    terminal = Terminal()
    with terminal.progress() as listen:
        kept = backend.timing_store(timing_cache.folder_of(paths.cache_folder(cache_dir)), listen=listen)
        before = kept.read()
        try:
            merged = backend.merge_timing_caches([*([] if before is None else [before]), *contents])
        except ArtifactError as exc:
            raise ArtifactError(exc.what, where=", ".join(str(path) for path in files), hint=exc.hint) from exc
        manifest = kept.write(merged, before=before, merge=backend.merge_timing_caches, info={"entries": None})
    result = {"cache": str(kept.path), "files": len(files), "bytes": manifest.info["bytes"]}
    terminal.data(_json(result) if as_json else f"{kept.path}: {len(files)} merged, {_size(len(merged))}")


@app.command()
def gc(
    *,
    older_than: Annotated[
        float | None,
        typer.Option(min=0, metavar="DAYS", help="Also remove caches not written by a build for this many days."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be removed; remove nothing.")] = False,
    cache_dir: options.CacheDir = None,
    as_json: options.Json = False,
) -> None:
    """Remove files that were set aside, are damaged or have no manifest."""
    from edge.backends.tensorrt import timing_cache
    from edge.cli import paths

    folder = timing_cache.folder_of(paths.cache_folder(cache_dir))
    terminal = Terminal()
    going = list(dict.fromkeys(timing_cache.removable(folder, older_than_days=older_than)))
    size = sum(path.stat().st_size for path in going)
    if not dry_run:
        for path in going:
            timing_cache.remove(path)
    if as_json:
        terminal.data(_json({"removed": [str(path) for path in going], "bytes": size, "dry_run": dry_run}))
        return
    for path in going:
        terminal.data(f"{'would remove' if dry_run else 'removed'} {path}")
    terminal.info(f"{len(going)} files, {_size(size)}")


@app.command()
def clear(
    folders: Annotated[
        list[str], typer.Argument(metavar="FOLDER…", help="Folders of tables, as edge cache list shows.")
    ],
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be removed; remove nothing.")] = False,
    cache_dir: options.CacheDir = None,
    as_json: options.Json = False,
) -> None:
    """Remove the tables, statistics, recipes and prepared models of a model's folder."""
    from edge.calibration import cache_keys
    from edge.cli import paths

    cache = paths.cache_folder(cache_dir)
    terminal = Terminal()
    going = [path for name in folders for path in cache_keys.clear_tables(cache, name, dry_run=dry_run)]
    if as_json:
        terminal.data(_json({"removed": [str(path) for path in going], "dry_run": dry_run}))
        return
    for path in going:
        terminal.data(f"{'would remove' if dry_run else 'removed'} {path}")


def _listing(cache_dir: Path | None) -> tuple[Path, list[TimingCacheEntry]]:
    from edge.backends.tensorrt import timing_cache
    from edge.cli import paths

    folder = timing_cache.folder_of(paths.cache_folder(cache_dir))
    return folder, timing_cache.listing(folder)


def _plain(entry: TimingCacheEntry) -> dict[str, Any]:
    content: dict[str, Any] = msgspec.to_builtins(entry, enc_hook=str)
    return content


def _size(count: int) -> str:
    return f"{count / 1024:.1f} KiB" if count < 1 << 20 else f"{count / (1 << 20):.1f} MiB"


def _json(content: object) -> str:
    return msgspec.json.encode(content).decode()

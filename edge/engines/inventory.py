"""Inventory of the engines: current, outdated, and no longer needed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal, get_args

import msgspec

from edge.artifacts import KeyDifference, store
from edge.backends import ENGINE_SETTINGS, Backend
from edge.calibration import cache_keys
from edge.config import Precision, Profile
from edge.engines import layer_times
from edge.errors import ArtifactError, EdgeError, StoreError, os_error
from edge.model import inspection

# current    matches its profile on this machine
# stale      its profile, model, table or runtime has changed: it is refused, and a build replaces it
# elsewhere  built for another device, power mode or backend, where it may be current
# orphan     its profile does not exist, or uses another model
# damaged    it does not match its manifest, or has no readable one
# unknown    its inputs cannot be found here
State = Literal["current", "stale", "elsewhere", "orphan", "damaged", "unknown"]
# Fields of an engine's key that describe the machine; the other fields describe the engine.
_ENGINES = frozenset({".plan", ".onnx", ".fake"})
_PLACE = frozenset({"module", "sm", "machine", "gpu", "gpus", "rtx", "multiprocessors", *ENGINE_SETTINGS})


class InventoryEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One engine. ``why`` gives the reasons if it is not current; ``files`` are its files, the manifest first."""

    manifest: Path
    profile: str
    precision: str | None
    runtime: str | None
    created_utc: str | None
    size_bytes: int
    state: State
    why: list[str]
    files: list[Path]


class _ManifestHead(msgspec.Struct, frozen=True):
    format: int
    kind: str


class InventoryScan(msgspec.Struct, frozen=True, kw_only=True):
    """Inputs of the inventory scan: functions for profiles and backends by name, and the calibration cache.

    ``resolve`` and ``backend`` raise EdgeError for an unknown name. With ``verify`` every file's digest is checked;
    otherwise damaged files are not noticed.
    """

    resolve: Callable[[str], Profile]
    backend: Callable[[Profile], Backend]
    cache: Path
    verify: bool = True


def scan(folder: Path, look: InventoryScan) -> list[InventoryEntry]:
    """List every engine under ``folder`` by profile and name; an empty list if the folder does not exist.

    Raises:
        StoreError: the folder cannot be read.
    """
    return [entry for path in _manifests(folder) if (entry := judge(path, look)) is not None]


def judge(path: Path, look: InventoryScan) -> InventoryEntry | None:
    """Classify the engine whose manifest is at ``path``: is it the one its profile needs today?

    Returns None if the file was never an engine's manifest.
    """
    try:
        manifest = store.load(path, kind=cache_keys.ENGINE, check_files=look.verify)
    except StoreError as exc:
        # The content may be intact although it cannot be read.
        return _unreadable(path, "unknown", exc.what)
    except ArtifactError as exc:
        state = _what_it_was(path)
        return None if state is None else _unreadable(path, state, exc.what)
    times = layer_times.beside(path)
    files = [path, *(path.parent / name for name in manifest.files), *([times] if times.is_file() else [])]
    state, why = _state(path, manifest, look)
    return InventoryEntry(
        manifest=path,
        profile=path.parent.name,
        precision=str(manifest.key.get("precision")),
        runtime=runtime(manifest.key),
        created_utc=manifest.created_utc,
        size_bytes=_size(files),
        state=state,
        why=why,
        files=files,
    )


def useless(entries: Iterable[InventoryEntry], *, elsewhere: bool = False) -> list[InventoryEntry]:
    """Return the removable engines: stale and damaged; with ``elsewhere`` also those of other devices and profiles."""
    gone = {"stale", "damaged"} | ({"elsewhere", "orphan"} if elsewhere else set())
    return [entry for entry in entries if entry.state in gone]


def remove(entry: InventoryEntry, look: InventoryScan) -> bool:
    """Remove an engine, its manifest first; return False if it changed in the meantime, perhaps by a new build.

    Raises:
        StoreError: the folder cannot be written.
    """
    with store.lock(entry.manifest):
        if not entry.manifest.is_file():
            return False
        now = judge(entry.manifest, look)
        if now is None or (now.state, now.created_utc) != (entry.state, entry.created_utc):
            return False
        try:
            for path in entry.files:
                path.unlink(missing_ok=True)
        except OSError as exc:
            raise os_error(exc, entry.manifest) from exc
    return True


def runtime(key: store.Key) -> str:
    """Format backend and version from an engine's key."""
    name = str(key.get("backend", "?"))
    if name == "tensorrt":
        return f"TensorRT{' for RTX' if key.get('rtx') else ''} {key.get('tensorrt', '?')}"
    return f"{name} {key.get(name, '')}".strip()


def _manifests(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        return
    try:
        paths = sorted(folder.glob("*/*.json"))
    except OSError as exc:
        raise StoreError(f"cannot read: {exc.strerror}", where=folder) from exc
    endings = (inspection.SUFFIX, inspection.RAW_SUFFIX, layer_times.SUFFIX)
    yield from (path for path in paths if not path.name.endswith(endings) and path.is_file())


def _unreadable(path: Path, state: State, why: str) -> InventoryEntry:
    files = _beside(path)
    return InventoryEntry(
        manifest=path, profile=path.parent.name, precision=None, runtime=None, created_utc=None,
        size_bytes=_size(files), state=state, why=[why], files=files,
    )  # fmt: skip


def _what_it_was(path: Path) -> State | None:
    """Classify a refused manifest: a damaged engine, one of another edge version, or a foreign file."""
    try:
        head = msgspec.json.decode(path.read_bytes(), type=_ManifestHead)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        is_named_so = any(path.stem.endswith(f"-{precision}") for precision in get_args(Precision))
        return "damaged" if is_named_so and any(item.suffix in _ENGINES for item in _beside(path)) else None
    if head.kind != cache_keys.ENGINE:
        return None
    return "damaged" if head.format == store.FORMAT else "unknown"


def _state(path: Path, manifest: store.Manifest, look: InventoryScan) -> tuple[State, list[str]]:
    try:
        profile = look.resolve(path.parent.name)
    except EdgeError as exc:
        return "orphan", [exc.what]
    precision = next((known for known in get_args(Precision) if known == manifest.key.get("precision")), None)
    if precision is None:
        return "unknown", [f"precision {manifest.key.get('precision')!r}"]
    if cache_keys.engine_manifest_path(profile, path.parents[1], precision).name != path.name:
        return "orphan", [f"the profile names {Path(profile.model).name} now"]
    table, lost = None, None
    if precision == "int8":
        try:
            table = cache_keys.find_table(profile, look.cache)
        except EdgeError as exc:
            lost = f"table: {exc.what}"
    try:
        key = cache_keys.engine_key(profile, look.backend(profile), precision=precision, table=table)
    except EdgeError as exc:
        return ("elsewhere" if manifest.key.get("backend") == profile.backend else "unknown"), [exc.what]
    changed = store.differences(manifest.key, key)
    if lost is not None:
        changed = [item for item in changed if item.field != "table"]
    return _verdict(changed, lost)


def _verdict(changed: list[KeyDifference], lost: str | None) -> tuple[State, list[str]]:
    why = [str(item) for item in changed] + ([lost] if lost else [])
    if not changed:
        return ("unknown", why) if lost else ("current", [])
    # On another device, the versions here do not decide if it is current.
    return ("elsewhere" if any(item.field in _PLACE for item in changed) else "stale"), why


def _beside(path: Path) -> list[Path]:
    """Return the files with the same base name as a manifest that cannot be trusted to list them."""
    with contextlib.suppress(OSError):
        named = sorted(item for item in path.parent.iterdir() if item.name.startswith(f"{path.stem}."))
        return [path, *(item for item in named if item != path and _is_ours(item))]
    return [path]


def _is_ours(path: Path) -> bool:
    return path.is_file() and path.suffix in {*_ENGINES, ".json"}


def _size(files: Iterable[Path]) -> int:
    total = 0
    for path in files:
        with contextlib.suppress(OSError):
            total += path.stat().st_size
    return total

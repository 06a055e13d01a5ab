"""Collect results from devices: timing caches, engine manifests, self-tests, trials and run records.

Devices are untrusted: names are checked, digests are compared, and artifacts are verified before they are stored.
Timing caches are merged by key, under the lock of the local one, so that builds for similar devices start warm. If both
sides have different content, the cache with more entries is used and the other one is stored with the device's records:
only TensorRT can merge two, on such a device (``edge cache merge``).
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec

from edge.artifacts import FileEntry, Manifest, store, temporary_folder
from edge.deploy import agent_protocol
from edge.deploy.bundle import name_problem
from edge.deploy.rollback import check_folder
from edge.deploy.transport import DeviceAddress, DeviceSession, connect, without_cancel
from edge.errors import ArtifactError, DeviceError, EdgeError, StoreError
from edge.events import Listener, Progress, ignore_events

# Folders of a device's state to collect; of engines, only their manifests and reports.
FOLDERS = ("timing", "engines", "selftest", "canary", "records")
TIMING_CACHE = "timing cache"
_LARGEST_BYTES = 256 << 20
_LARGEST_JSON_BYTES = 16 << 20

What = Literal["new", "unchanged", "updated", "merged", "conflict", "refused"]


class CollectedFile(msgspec.Struct, frozen=True):
    """One file of a device, what was done with it, and the reason if necessary."""

    name: str
    what: What
    path: str | None
    why: str | None = None


class Collected(msgspec.Struct, frozen=True, kw_only=True):
    """Files collected from one device."""

    target: str
    folder: str
    pieces: list[CollectedFile]

    def count(self, what: What) -> int:
        """Return the number of files with that outcome."""
        return sum(piece.what == what for piece in self.pieces)


def fetch(
    place: DeviceAddress,
    *,
    cache: Path,
    output: Path,
    listen: Listener = ignore_events,
    hold: Callable[[DeviceSession], None] = without_cancel,
) -> Collected:
    """Collect new files. Timing caches go to ``cache/timing``, the rest to a folder of the device in ``output``.

    ``hold`` is called with the session, so that it can be ended from outside.

    Raises:
        DeviceError: the device cannot be reached.
        StoreError: a file cannot be written here.
    """
    folder = output / folder_name(place.name)
    check_folder(place)
    with connect(place, hold=hold) as session, temporary_folder("pull") as name:
        agent_protocol.hello(session, place)
        entries = _entries(session.ask("listing", *FOLDERS, "", limit_s=600), place)
        push = _Pull(session, folder, cache / "timing", Path(name), entries)
        pieces: list[CollectedFile] = []
        for index, path in enumerate(sorted(entries)):
            listen(Progress(place.name, index, len(entries), "files"))
            pieces += push.one(path)
    return Collected(target=place.name, folder=str(folder), pieces=pieces)


def folder_name(name: str) -> str:
    """Return the folder of a device: its name, or what is left of it and a digest, so that no two devices share one."""
    plain = re.sub(r"[^A-Za-z0-9_.@-]+", "_", name).strip("._-")[:100]
    return plain if plain == name else f"{plain or 'device'}-{store.sha256_bytes(name.encode(errors='replace'))[:8]}"


class _Pull:
    """The transfer of one device's files."""

    def __init__(
        self, session: DeviceSession, home: Path, timing: Path, scratch: Path, entries: dict[str, str]
    ) -> None:
        self._session = session
        self._home = home
        self._timing = timing
        self._scratch = scratch
        self._entries = entries

    def one(self, path: str) -> list[CollectedFile]:
        """Collect one file if it is of a wanted kind and not here yet."""
        top, _, _rest = path.partition("/")
        # Names that are not UTF-8 or not printable were replaced, so the file cannot be requested.
        problem = "a name that cannot be printed" if "\ufffd" in path else name_problem(path)
        if problem is not None or top not in FOLDERS:
            return [CollectedFile(path[:200], "refused", None, problem or "not in a requested folder")]
        try:
            if top == "timing":
                return [self._timing_cache(path)] if path.endswith(".json") else []
            if not path.endswith(".json") or (top == "engines" and path.endswith(".layers.json")):
                return []
            return [self._plain(top, path)]
        except StoreError:
            raise
        except ArtifactError as exc:
            return [CollectedFile(path, "refused", None, exc.what)]

    def _plain(self, top: str, path: str) -> CollectedFile:
        goal = self._home / path
        known = store.sha256_file(goal) if goal.is_file() else None
        if known == self._entries[path]:
            return CollectedFile(path, "unchanged", str(goal))
        data = self._get(path)
        _check_json(data, path)
        if top == "engines":
            file = self._scratch / "manifest.json"
            file.write_bytes(data)
            store.load(file, kind="engine", check_files=False)
        if known is None:
            store.write_bytes(goal, data)
            return CollectedFile(path, "new", str(goal))
        if top in {"records", "selftest"}:
            # Measurements are never written over: two of one name are two.
            other = goal.with_name(f"{goal.stem}.{self._entries[path][:8]}{goal.suffix}")
            if other.is_file():
                return CollectedFile(path, "unchanged", str(other))
            store.write_bytes(other, data)
            return CollectedFile(
                path, "conflict", str(other), f"{goal.name} exists here with other content: both are kept"
            )
        store.write_bytes(goal, data)
        return CollectedFile(path, "updated", str(goal))

    def _timing_cache(self, path: str) -> CollectedFile:
        """Check and store a timing cache with its manifest; both are accepted or refused together."""
        manifest_file = self._scratch / Path(path).name
        manifest_file.write_bytes(self._get(path))
        manifest = store.load(manifest_file, kind=TIMING_CACHE, check_files=False)
        if len(manifest.files) != 1:
            raise ArtifactError(f"the manifest names {len(manifest.files)} files instead of one timing cache")
        name, entry = next(iter(manifest.files.items()))
        if name != manifest_file.with_suffix(".timing").name:
            raise ArtifactError(f"the manifest belongs to {name}")
        goal = self._timing / name
        with store.lock(goal):
            ours = _ours(goal)
            if ours is not None and ours.files[name].sha256 == entry.sha256 and ours.key == manifest.key:
                return CollectedFile(path, "unchanged", str(goal))
            data = self._get(f"{Path(path).parent.as_posix()}/{name}")
            if FileEntry(store.sha256_bytes(data), len(data)) != entry:
                raise ArtifactError("the timing cache does not match its manifest")
            if ours is None:
                _keep(goal, manifest, data)
                return CollectedFile(path, "new", str(goal))
            return self._differing(path, goal, ours, manifest, data)

    def _differing(self, path: str, goal: Path, ours: Manifest, theirs: Manifest, data: bytes) -> CollectedFile:
        changed = store.differences(ours.key, theirs.key)
        aside = self._home / path
        if changed:
            _keep(aside.with_name(goal.name), theirs, data)
            reported = "; ".join(str(difference) for difference in changed)
            return CollectedFile(
                path, "conflict", str(aside), f"the local one has another key ({reported}): both are kept"
            )
        own, other = _size(ours), _size(theirs)
        if other > own:
            _keep(aside.with_name(goal.name), ours, goal.read_bytes())
            _keep(goal, theirs, data)
            words = f"the device's cache has more ({other[0]} against {own[0]} {_UNIT[other[2]]}) and is used now"
        else:
            _keep(aside.with_name(goal.name), theirs, data)
            words = f"the local cache has as many or more ({own[0]} against {other[0]} {_UNIT[own[2]]}) and stays"
        return CollectedFile(
            path, "conflict", str(goal), f"{words}; the other is {aside}: edge cache merge, on such a device"
        )

    def _get(self, path: str) -> bytes:
        """Transfer one file as listed.

        Raises:
            ArtifactError: it is too large, missing, or has changed since it was listed.
        """
        if path not in self._entries:
            raise ArtifactError(f"{path} does not exist on the device")
        most = _LARGEST_BYTES if path.startswith("timing/") else _LARGEST_JSON_BYTES
        received = io.BytesIO()
        gone = self._session.get(path, most=most, write=received.write)
        if gone is not None:
            raise ArtifactError(gone)
        data = received.getvalue()
        if store.sha256_bytes(data) != self._entries[path]:
            raise ArtifactError("it changed while it was read: pull again")
        return data


_UNIT = {True: "entries", False: "bytes"}


def _size(manifest: Manifest) -> tuple[int, str, bool]:
    """Return a size measure of a timing cache and its age; the last value tells if entries or bytes were counted."""
    entries = manifest.info.get("entries")
    if isinstance(entries, int) and not isinstance(entries, bool):
        return entries, manifest.created_utc, True
    return next(iter(manifest.files.values())).size, manifest.created_utc, False


def _ours(goal: Path) -> Manifest | None:
    """Return the manifest of the local cache; None if it is missing or damaged, and will be replaced."""
    manifest = goal.with_suffix(".json")
    if not manifest.is_file() or not goal.is_file():
        return None
    try:
        found = store.load(manifest, kind=TIMING_CACHE)
    except ArtifactError:
        return None
    return found if goal.name in found.files else None


def _keep(goal: Path, manifest: Manifest, data: bytes) -> None:
    """Write a timing cache, then its unchanged manifest."""
    store.write_bytes(goal, data)
    content = msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
    store.write_bytes(goal.with_suffix(".json"), content)


def _check_json(data: bytes, path: str) -> None:
    try:
        content: Any = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise ArtifactError(f"not JSON: {exc}", where=path) from exc
    if not isinstance(content, dict):
        raise ArtifactError("the JSON is not an object", where=path)


def _entries(frames: list[Any], place: DeviceAddress) -> dict[str, str]:
    """Return the digest of every file by name."""
    found = {}
    for frame in frames:
        digest, _, path = frame.text.partition("  ")
        if frame.word != "entry" or not re.fullmatch(r"[0-9a-f]{64}", digest) or not path:
            raise DeviceError(f"unexpected answer: {frame.text[:100]!r}", where=place.name)
        found[path] = digest
    return found


def failed(collected: Collected) -> EdgeError | None:
    """Return an error where a file was refused."""
    bad = [piece for piece in collected.pieces if piece.what == "refused"]
    if not bad:
        return None
    return ArtifactError(f"{len(bad)} files were refused: {bad[0].name}: {bad[0].why}", where=collected.target)

"""Unpack a bundle into a folder with all checks, and without writing anywhere else.

Names are checked when the bundle is opened, and contents while they are copied. Parent folders are created here or are
real folders, never links. ``bundle.json`` comes last: without it a folder is not a bundle, so a partially unpacked one
is never mistaken for a complete one. Unpacking again continues an interrupted run.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import IO

from edge.artifacts import is_stream, store
from edge.deploy.bundle import archive
from edge.deploy.bundle.closed import check_models, check_profile
from edge.deploy.bundle.manifest import MANIFEST, SIGNATURE
from edge.deploy.bundle.reader import Bundle, BundleSource, Meter, open_bundle
from edge.errors import ArtifactError, os_error
from edge.events import Listener, ignore_events


def unpack_bundle(bundle: BundleSource, folder: Path, *, listen: Listener = ignore_events) -> Bundle:
    """Write all files of ``bundle`` below ``folder``, which must be absent, empty, or partially unpacked from it.

    Raises:
        ArtifactError: a content does not match its digest, or the folder has other files.
        StoreError: a file cannot be written.
    """
    _check_target(bundle, folder)
    signature = bundle.signature()
    meter = Meter("unpack", bundle.about.total_bytes, listen)
    for name in sorted(bundle.files):
        target = _safe_target(folder, name)
        if not _is_there(bundle, name, target):
            with store.atomic_write(target) as file:
                for piece in bundle.pieces(name):
                    file.write(piece)
        meter.add(bundle.files[name].size)
    written = Bundle(folder, manifest=bundle.manifest, about=bundle.about, layout=None)
    check_profile(written)
    check_models(written)
    if signature is not None:
        store.write_bytes(folder / SIGNATURE, signature)
    store.write_bytes(folder / MANIFEST, bundle.manifest)
    return open_bundle(folder)


def pack_bundle(bundle: BundleSource, path: Path, *, listen: Listener = ignore_events) -> Bundle:
    """Write ``bundle`` to the tar ``path``, and its signature next to it.

    Raises:
        ArtifactError: a content does not match its digest; nothing is written.
        StoreError: a file cannot be written.
    """
    signature = bundle.signature()
    meter = Meter("pack", bundle.about.total_bytes, listen)

    def copy(name: str, target: IO[bytes]) -> None:
        for piece in bundle.pieces(name):
            target.write(piece)
            meter.add(len(piece))

    with archive.staged(path) as part:
        with part.open("wb") as file:
            archive.write(file, bundle.manifest, bundle.files, copy)
            file.flush()
            os.fsync(file.fileno())
        made = open_bundle(part)
        check_models(made)
    if is_stream(path):
        return made
    made = open_bundle(path)
    # An existing signature belongs to the previous bundle.
    made.signature_path.unlink(missing_ok=True)
    if signature is not None:
        store.write_bytes(made.signature_path, signature)
    return made


def _check_target(bundle: BundleSource, folder: Path) -> None:
    """Refuse a folder with any foreign file; remove leftovers of a killed run."""
    wanted = {MANIFEST, SIGNATURE, *bundle.files}
    parents = {"/".join(name.split("/")[:count]) for name in wanted for count in range(1, name.count("/") + 1)}
    left: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for parent, folders, files in os.walk(folder, onerror=_raise):
            prefix = Path(parent).relative_to(folder).as_posix()
            prefix = "" if prefix == "." else f"{prefix}/"
            for name in [f"{prefix}{item}" for item in (*folders, *files)]:
                mode = (folder / name).lstat().st_mode
                expected = stat.S_ISDIR(mode) if name in parents else stat.S_ISREG(mode) and name in wanted
                if _is_leftover(name, wanted, mode):
                    left.append(folder / name)
                elif not expected:
                    raise ArtifactError(
                        f"{name!a} already exists and does not belong to this bundle",
                        where=folder,
                        hint="unpack into a new or empty folder",
                    )
        # Only now that everything in here is known to be ours.
        for path in left:
            path.unlink()
    except OSError as exc:
        raise os_error(exc, folder) from exc
    there = folder / MANIFEST
    if there.is_file() and there.read_bytes() != bundle.manifest:
        raise ArtifactError(
            "the folder contains another bundle", where=folder, hint="unpack into a new or empty folder"
        )


def _is_leftover(name: str, wanted: set[str], mode: int) -> bool:
    """Return True for a temporary file of ``store`` from a killed run: ``.<name>.<letters>.tmp``."""
    folder, _, last = name.rpartition("/")
    parts = last.removeprefix(".").rsplit(".", 2)
    stem = f"{folder}/{parts[0]}" if folder else parts[0]
    return stat.S_ISREG(mode) and last.startswith(".") and last.endswith(".tmp") and len(parts) == 3 and stem in wanted


def _safe_target(folder: Path, name: str) -> Path:
    """Return the path of ``name`` below ``folder``; every parent must be a real folder, and is made if missing."""
    at = folder
    try:
        for part in name.split("/")[:-1]:
            at /= part
            at.mkdir(exist_ok=True)
            if not stat.S_ISDIR(at.lstat().st_mode):
                raise ArtifactError("a link exists where a folder is needed", where=at)
    except OSError as exc:
        raise os_error(exc, at) from exc
    return folder / name


def _is_there(bundle: BundleSource, name: str, target: Path) -> bool:
    """Return True if an earlier, interrupted run wrote exactly this content."""
    try:
        status = target.lstat()
    except OSError:
        return False
    entry = bundle.files[name]
    return stat.S_ISREG(status.st_mode) and status.st_size == entry.size and store.sha256_file(target) == entry.sha256


def _raise(exc: OSError) -> None:
    raise exc

"""What tests look at on a device, from outside of edge's own ship."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge.artifacts.store import FileEntry, sha256_bytes
from edge.deploy.bundle import archive
from edge.deploy.bundle.manifest import BundleManifest, encode_manifest
from edge.deploy.bundle.reader import open_bundle
from edge.deploy.push import ShipSettings
from edge.deploy.transport.address import DeviceAddress

QUICK = ShipSettings(canary=False)


def root_of(place: DeviceAddress) -> Path:
    return place.folder if place.folder is not None else Path(place.path)


def current(place: DeviceAddress) -> str | None:
    """Digest of the bundle in use, after every file of it was read and compared with the manifest."""
    link = root_of(place) / "current"
    if not link.is_symlink():
        return None
    # The folder, not the link: a device that is still at work may switch while this reads.
    target = link.resolve()
    found = open_bundle(target)
    for name in found.files:
        found.read(name)
    assert found.digest == target.name
    listed = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    assert listed - {"bundle.json.sig"} == {*found.files, "bundle.json"}
    return found.digest


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder``, but for the lock."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "lock"
    }


def tar_of(files: Mapping[str, bytes], **fields: Any) -> bytes:
    entries = {name: FileEntry(sha256_bytes(data), len(data)) for name, data in files.items()}
    content: dict[str, Any] = {
        "format": 1,
        "name": "tiny",
        "family": "host",
        "jetpack": None,
        "profile": "tiny",
        "created_with": "edge 0",
        "files": entries,
        "info": {},
    }
    file = io.BytesIO()
    archive.write(
        file,
        encode_manifest(BundleManifest(**{**content, **fields})),
        entries,
        lambda name, out: out.write(files[name]) and None,
    )
    return file.getvalue()

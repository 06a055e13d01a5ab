"""Bundles made by hand, for tests of bundles, registries and shipping."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge.artifacts.store import FileEntry, sha256_bytes
from edge.deploy.bundle import archive
from edge.deploy.bundle.manifest import MANIFEST, BundleManifest, encode_manifest

FILES = {"profile.yaml": b"name: tiny\n", "model/tiny.onnx": b"weights " * 100, "labels/empty.txt": b""}


def manifest_of(files: Mapping[str, bytes], **fields: Any) -> BundleManifest:
    """The manifest of these contents; ``fields`` replace its own."""
    content: dict[str, Any] = {
        "format": 1,
        "name": "tiny",
        "family": "host",
        "jetpack": None,
        "profile": "tiny",
        "created_with": "edge 0",
        "files": {name: FileEntry(sha256_bytes(data), len(data)) for name, data in files.items()},
        "info": {},
    }
    return BundleManifest(**{**content, **fields})


def tar_of(files: Mapping[str, bytes], **fields: Any) -> bytes:
    """The tar of a bundle with these contents."""
    manifest = manifest_of(files, **fields)
    file = io.BytesIO()
    entries = {name: FileEntry(sha256_bytes(data), len(data)) for name, data in files.items()}
    archive.write(file, encode_manifest(manifest), entries, lambda name, out: out.write(files[name]) and None)
    return file.getvalue()


def folder_of(folder: Path, files: Mapping[str, bytes], **fields: Any) -> Path:
    """The folder of a bundle with these contents."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / MANIFEST).write_bytes(encode_manifest(manifest_of(files, **fields)))
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder`` by its relative path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

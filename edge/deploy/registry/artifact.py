"""The OCI manifest of a bundle: a function of the bundle, so the same bundle has the same digest in every registry.

[OCI image specification 1.1, "Image Manifest", "Guidelines for Artifact Usage"]
"""

from __future__ import annotations

import json
from typing import Any

from edge.artifacts import FileEntry, sha256_bytes
from edge.deploy.bundle import MAX_MANIFEST_BYTES, MAX_SIGNATURE_BYTES, SIGNATURE, BundleManifest, BundleSource
from edge.deploy.registry.client import MANIFEST_TYPE
from edge.errors import ArtifactError

ARTIFACT_TYPE = "application/vnd.jetson-edge.bundle.v1"
CONFIG_TYPE = "application/vnd.jetson-edge.bundle.manifest.v1+json"
FILE_TYPE = "application/octet-stream"
SIGNATURE_TYPE = "application/vnd.jetson-edge.bundle.signature.v1"
TITLE = "org.opencontainers.image.title"
_HINT = "was it pushed with edge bundle push?"


def render(source: BundleSource, signature: bytes | None) -> bytes:
    """The manifest of the artifact."""
    layers = [_descriptor(FILE_TYPE, entry, name) for name, entry in sorted(source.files.items())]
    if signature is not None:
        layers.append(_descriptor(SIGNATURE_TYPE, entry_of(signature), SIGNATURE))
    content = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": ARTIFACT_TYPE,
        "config": _descriptor(CONFIG_TYPE, entry_of(source.manifest)),
        "layers": layers,
        "annotations": {TITLE: source.about.name},
    }
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def read_config(data: bytes, *, where: str) -> tuple[FileEntry, list[dict[str, Any]]]:
    """Digest and size of ``bundle.json``, and the layers, of an artifact's manifest.

    Raises:
        ArtifactError: it is not the manifest of a bundle.
    """
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise ArtifactError("the registry gave no JSON", where=where) from exc
    if not isinstance(content, dict) or content.get("artifactType") != ARTIFACT_TYPE:
        raise ArtifactError("the artifact is not a bundle of edge", where=where, hint=_HINT)
    entry = _entry(content.get("config"), where)
    layers = content.get("layers")
    if not isinstance(layers, list) or entry.size > MAX_MANIFEST_BYTES:
        raise ArtifactError("the artifact is not a bundle of edge", where=where, hint=_HINT)
    return entry, layers


def check_layers(layers: list[dict[str, Any]], about: BundleManifest, *, where: str) -> FileEntry | None:
    """Check that the layers are the bundle's files, each once; return the signature's digest and size, if it is there.

    Raises:
        ArtifactError: naming a file that is missing, is too much, or has another digest than ``bundle.json`` says.
    """
    found: dict[str, FileEntry] = {}
    signature = None
    for layer in layers:
        entry = _entry(layer, where)
        notes = layer.get("annotations")
        title = notes.get(TITLE) if isinstance(notes, dict) else None
        if not isinstance(title, str) or title in found:
            raise ArtifactError(f"a layer without a title, or {str(title)[:100]!r} twice", where=where)
        if title == SIGNATURE and layer.get("mediaType") == SIGNATURE_TYPE and entry.size <= MAX_SIGNATURE_BYTES:
            signature = entry
        else:
            found[title] = entry
    if found != about.files:
        wrong = sorted(name for name in found.keys() | about.files.keys() if found.get(name) != about.files.get(name))
        raise ArtifactError(
            f"the layers are not what bundle.json says: {', '.join(map(ascii, wrong[:3]))}", where=where
        )
    return signature


def entry_of(data: bytes) -> FileEntry:
    """Digest and size of ``data``."""
    return FileEntry(sha256_bytes(data), len(data))


def _descriptor(kind: str, entry: FileEntry, title: str | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {"mediaType": kind, "digest": f"sha256:{entry.sha256}", "size": entry.size}
    if title is not None:
        found["annotations"] = {TITLE: title}
    return found


def _entry(descriptor: object, where: str) -> FileEntry:
    if isinstance(descriptor, dict):
        digest, size = descriptor.get("digest"), descriptor.get("size")
        if isinstance(digest, str) and digest.startswith("sha256:") and isinstance(size, int) and size >= 0:
            return FileEntry(digest.removeprefix("sha256:"), size)
    raise ArtifactError("the artifact has a malformed descriptor", where=where)

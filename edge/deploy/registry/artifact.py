"""Push and pull bundles as OCI artifacts, with every byte checked against a digest.

The OCI manifest follows from the bundle, so the same bundle has the same digest in every registry.

[OCI image specification 1.1, "Image Manifest", "Guidelines for Artifact Usage"]
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from edge.artifacts import FileEntry, sha256_bytes
from edge.deploy.bundle import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    MAX_SIGNATURE_BYTES,
    SIGNATURE,
    Bundle,
    BundleManifest,
    BundleSource,
    Meter,
    decode_manifest,
    verify_bundle,
)
from edge.deploy.registry.client import MANIFEST_TYPE, Body, Connection, Reference
from edge.errors import ArtifactError, UsageError
from edge.events import Listener, ignore_events

ARTIFACT_TYPE = "application/vnd.jetson-edge.bundle.v1"
CONFIG_TYPE = "application/vnd.jetson-edge.bundle.manifest.v1+json"
FILE_TYPE = "application/octet-stream"
SIGNATURE_TYPE = "application/vnd.jetson-edge.bundle.signature.v1"
TITLE = "org.opencontainers.image.title"
_HINT = "was it pushed with edge bundle push?"


def render(source: BundleSource, signature: bytes | None) -> bytes:
    """Return the manifest of the artifact."""
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
    """Return digest and size of ``bundle.json``, and the layers, from an artifact's manifest.

    Raises:
        ArtifactError: the data is not the manifest of a bundle.
    """
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise ArtifactError("the registry did not return JSON", where=where) from exc
    if not isinstance(content, dict) or content.get("artifactType") != ARTIFACT_TYPE:
        raise ArtifactError("the artifact is not a bundle of edge", where=where, hint=_HINT)
    entry = _entry(content.get("config"), where)
    layers = content.get("layers")
    if not isinstance(layers, list) or entry.size > MAX_MANIFEST_BYTES:
        raise ArtifactError("the artifact is not a bundle of edge", where=where, hint=_HINT)
    return entry, layers


def check_layers(layers: list[dict[str, Any]], about: BundleManifest, *, where: str) -> FileEntry | None:
    """Check that the layers are the bundle's files, each once; return digest and size of the signature, if any.

    Raises:
        ArtifactError: a file is missing, unexpected, or has another digest than in ``bundle.json``; the message names
        it.
    """
    found: dict[str, FileEntry] = {}
    signature = None
    for layer in layers:
        entry = _entry(layer, where)
        notes = layer.get("annotations")
        title = notes.get(TITLE) if isinstance(notes, dict) else None
        if not isinstance(title, str) or title in found:
            raise ArtifactError(f"a layer has no title, or occurs twice: {str(title)[:100]!r}", where=where)
        if title == SIGNATURE and layer.get("mediaType") == SIGNATURE_TYPE and entry.size <= MAX_SIGNATURE_BYTES:
            signature = entry
        else:
            found[title] = entry
    if found != about.files:
        wrong = sorted(name for name in found.keys() | about.files.keys() if found.get(name) != about.files.get(name))
        raise ArtifactError(f"the layers do not match bundle.json: {', '.join(map(ascii, wrong[:3]))}", where=where)
    return signature


def entry_of(data: bytes) -> FileEntry:
    """Return digest and size of ``data``."""
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


class Remote:
    """A bundle in a registry that can be unpacked or packed like any other. All returned data is checked.

    Files of the bundle ``reuse`` with the same digest are copied from there.
    """

    def __init__(self, connection: Connection, *, reuse: Bundle | None = None) -> None:
        self._connection = connection
        data, self.oci_digest = connection.manifest()
        self.reference = connection.reference.pinned(self.oci_digest)
        config, layers = read_config(data, where=self.where)
        self.manifest = b"".join(self._blob(config, MANIFEST))
        self.about: BundleManifest = decode_manifest(self.manifest, where=f"{self.where}: {MANIFEST}")
        self._signature = check_layers(layers, self.about, where=self.where)
        self._reuse = reuse
        self._local = {entry.sha256: name for name, entry in reuse.files.items()} if reuse else {}
        self.fetched_bytes = 0
        self.reused_bytes = 0

    @property
    def where(self) -> str:
        """Location to show in messages."""
        return str(self.reference)

    @property
    def digest(self) -> str:
        """The id of the bundle: hex sha256 of ``bundle.json``."""
        return hashlib.sha256(self.manifest).hexdigest()

    @property
    def files(self) -> dict[str, FileEntry]:
        """Digest and size of every file except ``bundle.json``, by name."""
        return self.about.files

    def pieces(self, name: str) -> Iterator[bytes]:
        """Return the content of one file in pieces. The last one comes only if size and digest are right.

        Raises:
            ArtifactError: size or digest is wrong.
            DeviceError: the connection was lost.
        """
        entry = self.files[name]
        if self._reuse is not None and entry.sha256 in self._local:
            self.reused_bytes += entry.size
            return self._reuse.pieces(self._local[entry.sha256])
        self.fetched_bytes += entry.size
        return self._blob(entry, name)

    def signature(self) -> bytes | None:
        """Return the detached signature, unchecked; None if there is none."""
        return None if self._signature is None else b"".join(self._blob(self._signature, "the signature"))

    def _blob(self, entry: FileEntry, name: str) -> Iterator[bytes]:
        state, held, size = hashlib.sha256(), b"", 0
        for piece in self._connection.blob(f"sha256:{entry.sha256}"):
            size += len(piece)
            state.update(piece)
            if size > entry.size:
                break
            if held:
                yield held
            held = piece
        if size != entry.size or not hmac.compare_digest(state.hexdigest(), entry.sha256):
            raise ArtifactError(
                f"the registry returned data for {name} that does not match its digest",
                where=str(self._connection.reference),
                hint="do not use it; inform the operator of the registry",
            )
        yield held


@contextlib.contextmanager
def pull(
    reference: Reference,
    *,
    plain_http: bool = False,
    ca_file: str | None = None,
    auth_hosts: Sequence[str] = (),
    reuse: Bundle | None = None,
) -> Iterator[Remote]:
    """Open the bundle at ``reference``: its manifests are read and checked now, its files on demand.

    Raises:
        ArtifactError: the artifact does not exist, is not a bundle, or a digest is wrong.
        DeviceError: the registry cannot be reached, or refuses access.
        MissingDependencyError: oras is not installed.
    """
    connection = Connection(reference, plain_http=plain_http, ca_file=ca_file, auth_hosts=auth_hosts)
    with contextlib.closing(connection):
        yield Remote(connection, reuse=reuse)


class Pushed(msgspec.Struct, frozen=True, kw_only=True):
    """Result of a push; ``reference`` has the digest, for pinning. Byte counts cover contents only."""

    reference: str
    digest: str
    bundle: str
    sent_files: int
    sent_bytes: int
    kept_files: int
    kept_bytes: int


def push(
    bundle: Bundle,
    reference: Reference,
    *,
    plain_http: bool = False,
    ca_file: str | None = None,
    auth_hosts: Sequence[str] = (),
    listen: Listener = ignore_events,
) -> Pushed:
    """Verify ``bundle``, send what is missing, and set the tag last.

    Raises:
        UsageError: the reference has a digest.
        ArtifactError: the bundle is damaged.
        DeviceError: the registry cannot be reached, refuses access, or does not accept it.
        MissingDependencyError: oras is not installed.
    """
    if reference.digest is not None:
        raise UsageError("push needs a tag, not a digest: the digest follows from the content", where=str(reference))
    verify_bundle(bundle, listen=listen)
    signature = bundle.signature()
    manifest = render(bundle, signature)
    digest = f"sha256:{sha256_bytes(manifest)}"
    blobs = {f"sha256:{entry.sha256}": _body(bundle, name) for name, entry in sorted(bundle.files.items())}
    extra = [bundle.manifest] if signature is None else [bundle.manifest, signature]
    blobs |= {f"sha256:{sha256_bytes(data)}": _bytes(data) for data in extra}
    connection = Connection(reference, plain_http=plain_http, ca_file=ca_file, auth_hosts=auth_hosts)
    sent, kept = [], []
    meter = Meter("push", sum(len(body) for body in blobs.values()), listen)
    with contextlib.closing(connection):
        for name, body in blobs.items():
            if connection.has_blob(name):
                kept.append(len(body))
            else:
                connection.put_blob(name, body)
                sent.append(len(body))
            meter.add(len(body))
        connection.put_manifest(manifest, digest=digest)
    return Pushed(
        reference=str(reference.pinned(digest)), digest=digest, bundle=bundle.digest,
        sent_files=len(sent), sent_bytes=sum(sent), kept_files=len(kept), kept_bytes=sum(kept),
    )  # fmt: skip


def _body(bundle: Bundle, name: str) -> Body:
    return Body(bundle.files[name].size, lambda: bundle.pieces(name))


def _bytes(data: bytes) -> Body:
    return Body(len(data), lambda: [data])

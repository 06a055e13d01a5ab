"""Push a bundle: what the repository has already is not sent again."""

from __future__ import annotations

import contextlib

import msgspec

from edge.artifacts import sha256_bytes
from edge.deploy.bundle import Bundle, Meter, verify_bundle
from edge.deploy.registry import artifact
from edge.deploy.registry.client import Body, Connection
from edge.deploy.registry.reference import Reference
from edge.errors import UsageError
from edge.events import Listener, ignore_events


class Pushed(msgspec.Struct, frozen=True, kw_only=True):
    """What was sent; ``reference`` has the digest, for pinning. Bytes are those of contents, without HTTP's own."""

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
    listen: Listener = ignore_events,
) -> Pushed:
    """Verify ``bundle``, send what is missing, and set the tag last.

    Raises:
        UsageError: the reference has a digest.
        ArtifactError: the bundle is not whole.
        DeviceError: the registry cannot be reached, refuses access, or does not take it.
        MissingDependencyError: oras is not installed.
    """
    if reference.digest is not None:
        raise UsageError("push takes a tag, not a digest: the digest comes out of what is pushed", where=str(reference))
    verify_bundle(bundle, listen=listen)
    signature = bundle.signature()
    manifest = artifact.render(bundle, signature)
    digest = f"sha256:{sha256_bytes(manifest)}"
    blobs = {f"sha256:{entry.sha256}": _body(bundle, name) for name, entry in sorted(bundle.files.items())}
    extra = [bundle.manifest] if signature is None else [bundle.manifest, signature]
    blobs |= {f"sha256:{sha256_bytes(data)}": _bytes(data) for data in extra}
    connection = Connection(reference, plain_http=plain_http, ca_file=ca_file)
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

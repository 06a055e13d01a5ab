"""Pull a bundle: every byte is compared with a digest that leads back to the one that was asked for."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
from collections.abc import Iterator

from edge.artifacts import FileEntry
from edge.deploy.bundle import MANIFEST, Bundle, BundleManifest, decode_manifest
from edge.deploy.registry import artifact
from edge.deploy.registry.client import Connection
from edge.deploy.registry.reference import Reference
from edge.errors import ArtifactError


class Remote:
    """A bundle in a registry, to unpack or pack like any other. Nothing comes out of it that was not checked.

    Files that the bundle ``reuse`` has, by digest, are taken from there.
    """

    def __init__(self, connection: Connection, *, reuse: Bundle | None = None) -> None:
        self._connection = connection
        data, self.oci_digest = connection.manifest()
        self.reference = connection.reference.pinned(self.oci_digest)
        config, layers = artifact.read_config(data, where=self.where)
        self.manifest = b"".join(self._blob(config, MANIFEST))
        self.about: BundleManifest = decode_manifest(self.manifest, where=f"{self.where}: {MANIFEST}")
        self._signature = artifact.check_layers(layers, self.about, where=self.where)
        self._reuse = reuse
        self._local = {entry.sha256: name for name, entry in reuse.files.items()} if reuse else {}
        self.fetched_bytes = 0
        self.reused_bytes = 0

    @property
    def where(self) -> str:
        """For messages."""
        return str(self.reference)

    @property
    def digest(self) -> str:
        """The id of the bundle: hex sha256 of ``bundle.json``."""
        return hashlib.sha256(self.manifest).hexdigest()

    @property
    def files(self) -> dict[str, FileEntry]:
        """Digest and size of every file besides ``bundle.json``, by name."""
        return self.about.files

    def pieces(self, name: str) -> Iterator[bytes]:
        """The content of one file in pieces. The last one comes only if size and digest are right.

        Raises:
            ArtifactError: they are not.
            DeviceError: the connection broke.
        """
        entry = self.files[name]
        if self._reuse is not None and entry.sha256 in self._local:
            self.reused_bytes += entry.size
            return self._reuse.pieces(self._local[entry.sha256])
        self.fetched_bytes += entry.size
        return self._blob(entry, name)

    def signature(self) -> bytes | None:
        """The detached signature, unchecked; None where there is none."""
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
                f"the registry gave out something else for {name} than its digest says",
                where=str(self._connection.reference),
                hint="do not use it; tell who runs the registry",
            )
        yield held


@contextlib.contextmanager
def pull(
    reference: Reference, *, plain_http: bool = False, ca_file: str | None = None, reuse: Bundle | None = None
) -> Iterator[Remote]:
    """Open the bundle at ``reference``: its manifests are fetched and checked, its files come as they are asked for.

    Raises:
        ArtifactError: there is no such artifact, it is not a bundle, or the registry lies about a digest.
        DeviceError: the registry cannot be reached, or refuses access.
        MissingDependencyError: oras is not installed.
    """
    connection = Connection(reference, plain_http=plain_http, ca_file=ca_file)
    with contextlib.closing(connection):
        yield Remote(connection, reuse=reuse)

"""Open a bundle, a folder or a tar, and read its files. Nothing is used before it is checked."""

from __future__ import annotations

import hashlib
import hmac
import io
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Protocol

from edge.artifacts import FileEntry, store
from edge.deploy.bundle import archive
from edge.deploy.bundle.closed import check_profile
from edge.deploy.bundle.manifest import (
    MANIFEST,
    MAX_FILES,
    MAX_MANIFEST_BYTES,
    SIGNATURE,
    BundleManifest,
    decode_manifest,
)
from edge.errors import ArtifactError, StoreError
from edge.events import Listener, Progress, ignore_events

# A signature by RSA with 16384 bits has less than 4 kB.
MAX_SIGNATURE_BYTES = 64 << 10
_PIECE = 1 << 20
_MAX_ENTRIES = 3 * MAX_FILES
_HINT = "get the bundle again, or make it again with edge bundle create"


class BundleSource(Protocol):
    """A source of a bundle's files: a :class:`Bundle`, or a registry."""

    @property
    def where(self) -> str:
        """Location to show in messages."""

    @property
    def manifest(self) -> bytes:
        """The exact bytes of ``bundle.json``."""

    @property
    def about(self) -> BundleManifest:
        """The manifest, decoded."""

    @property
    def files(self) -> dict[str, FileEntry]:
        """Digest and size of every file except ``bundle.json``, by name."""

    def pieces(self, name: str) -> Iterator[bytes]:
        """Return the content of one file in pieces; the last one comes only if size and digest are right."""

    def signature(self) -> bytes | None:
        """Return the detached signature, unchecked; None if there is none."""


class Bundle:
    """An open bundle with checked names, sizes and manifest; its contents are unchecked (see :func:`verify_bundle`)."""

    def __init__(self, path: Path, *, manifest: bytes, about: BundleManifest, layout: archive.Layout | None) -> None:
        self.path = path
        # The exact bytes of ``bundle.json``, which are signed.
        self.manifest = manifest
        self.about = about
        self._layout = layout

    def __repr__(self) -> str:
        return f"<Bundle {self.about.name} {self.digest[:12]} at {self.path}>"

    @property
    def where(self) -> str:
        """Path to show in messages."""
        return str(self.path)

    @property
    def digest(self) -> str:
        """The id of the bundle: hex sha256 of ``bundle.json``."""
        return store.sha256_bytes(self.manifest)

    @property
    def files(self) -> dict[str, FileEntry]:
        """Digest and size of every file except ``bundle.json``, by name."""
        return self.about.files

    @property
    def is_folder(self) -> bool:
        """True for a folder, False for a tar."""
        return self._layout is None

    def open(self, name: str) -> IO[bytes]:
        """Return the content of one file, unverified. Close it after use.

        Raises:
            ArtifactError: the bundle has no such file, or it has changed since the bundle was opened.
            StoreError: it cannot be read.
        """
        if name not in self.files:
            raise ArtifactError(f"there is no {name} in the bundle", where=self.path)
        if self._layout is None:
            return _open_regular(self.path / name)
        section = _FileSection(_open_regular(_tar(self.path)), self._layout.offsets[name], self.files[name].size)
        return io.BufferedReader(section)

    def pieces(self, name: str) -> Iterator[bytes]:
        """Return the content of one file in pieces. The last one comes only if size and digest are right.

        Raises:
            ArtifactError: size or digest is wrong.
        """
        entry, state, held, size = self.files[name], hashlib.sha256(), b"", 0
        where = f"{self.path}: {name}"
        with self.open(name) as file:
            while size <= entry.size and (piece := file.read(_PIECE)):
                size += len(piece)
                state.update(piece)
                if held:
                    yield held
                held = piece
        if size != entry.size:
            what = "shorter" if size < entry.size else "longer"
            raise ArtifactError(f"{what} than the {entry.size} bytes in the manifest", where=where, hint=_HINT)
        if not hmac.compare_digest(state.hexdigest(), entry.sha256):
            raise ArtifactError("the content does not match the sha256 in the manifest", where=where, hint=_HINT)
        yield held

    def read(self, name: str) -> bytes:
        """Return the verified content of one file.

        Raises:
            ArtifactError: the file is missing, or its size or digest differs from the manifest.
        """
        if name not in self.files:
            raise ArtifactError(f"there is no {name} in the bundle", where=self.path)
        return b"".join(self.pieces(name))

    @property
    def signature_path(self) -> Path:
        """Return the path of the detached signature: in the folder, or next to the tar."""
        return self.path / SIGNATURE if self.is_folder else self.path.with_name(f"{self.path.name}.sig")

    def signature(self) -> bytes | None:
        """Return the detached signature, unchecked; None if there is none.

        Raises:
            ArtifactError: the file is too large for a signature.
        """
        if not os.path.lexists(self.signature_path):
            return None
        with _open_regular(self.signature_path) as file:
            data = file.read(MAX_SIGNATURE_BYTES + 1)
        if len(data) > MAX_SIGNATURE_BYTES:
            raise ArtifactError("the file is too large for a signature", where=self.signature_path)
        return data


def open_bundle(path: Path) -> Bundle:
    """Open the bundle at ``path``, a folder or a tar, and check everything except the contents of its files.

    Raises:
        ArtifactError: it is not a bundle, or does not match its manifest.
        StoreError: it cannot be read.
    """
    if path.is_dir():
        return _open_folder(path)
    if not os.path.lexists(path):
        raise ArtifactError("this bundle does not exist", where=path, hint="edge bundle create --profile NAME -o FILE")
    try:
        with _open_regular(_tar(path)) as file:
            data, about, layout = archive.read(file, where=path)
    except OSError as exc:
        raise StoreError(f"cannot read: {exc.strerror or exc}", where=path) from exc
    bundle = Bundle(path, manifest=data, about=about, layout=layout)
    check_profile(bundle)
    return bundle


def verify_bundle(bundle: Bundle, *, listen: Listener = ignore_events) -> None:
    """Read every file of ``bundle`` and compare its size and sha256 with the manifest.

    Raises:
        ArtifactError: a file differs; the message names the first.
        StoreError: one cannot be read.
    """
    meter = Meter("verify", bundle.about.total_bytes, listen)
    for name in sorted(bundle.files):
        for piece in bundle.pieces(name):
            meter.add(len(piece))


def _open_folder(path: Path) -> Bundle:
    where = path / MANIFEST
    if not os.path.lexists(where):
        raise ArtifactError(f"not a bundle: {MANIFEST} is missing", where=path)
    with _open_regular(where) as file:
        data = file.read(MAX_MANIFEST_BYTES + 1)
    if len(data) > MAX_MANIFEST_BYTES:
        raise ArtifactError("the file is too large for the manifest of a bundle", where=where)
    about = decode_manifest(data, where=str(where))
    found = dict(_walk(path))
    found.pop(MANIFEST)
    found.pop(SIGNATURE, None)
    extra = sorted(found.keys() - about.files.keys())
    missing = sorted(about.files.keys() - found.keys())
    if missing:
        raise ArtifactError(f"files of the manifest are missing: {_few(missing)}", where=path, hint=_HINT)
    if extra:
        raise ArtifactError(f"files not named in the manifest: {_few(extra)}", where=path, hint=_HINT)
    for name, size in found.items():
        if size != about.files[name].size:
            raise ArtifactError(f"{size} bytes, but the manifest says {about.files[name].size}", where=path / name)
    bundle = Bundle(path, manifest=data, about=about, layout=None)
    check_profile(bundle)
    return bundle


def _walk(top: Path) -> Iterator[tuple[str, int]]:
    """Return name and size of every file below ``top``.

    Raises:
        ArtifactError: an entry is neither a file nor a folder, but a link, a device or a pipe.
    """
    waiting, seen = [""], 0
    while waiting:
        prefix = waiting.pop()
        try:
            with os.scandir(top / prefix) as entries:
                found = [(f"{prefix}{entry.name}", entry.stat(follow_symlinks=False)) for entry in entries]
        except OSError as exc:
            raise StoreError(f"cannot read: {exc.strerror or exc}", where=top / prefix) from exc
        seen += len(found)
        if seen > _MAX_ENTRIES:
            raise ArtifactError(f"more than {_MAX_ENTRIES} files and folders", where=top)
        for name, status in sorted(found, key=lambda item: item[0]):
            if stat.S_ISDIR(status.st_mode):
                waiting.append(f"{name}/")
            elif stat.S_ISREG(status.st_mode):
                yield name, status.st_size
            else:
                raise ArtifactError(f"{name!a} is {_kind(status.st_mode)}, not a file", where=top)


def _tar(path: Path) -> Path:
    """Resolve links in the user's path to a tar; links inside of a bundle are never followed."""
    return Path(os.path.realpath(path))


def _open_regular(path: Path) -> IO[bytes]:
    """Open a regular file that is not a link, without waiting for a pipe or accessing a device."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        if path.is_symlink():
            raise ArtifactError("this is a symbolic link, not a file", where=path) from exc
        raise StoreError(f"cannot read: {exc.strerror or exc}", where=path) from exc
    mode = os.fstat(file).st_mode
    if not stat.S_ISREG(mode):
        os.close(file)
        raise ArtifactError(f"{_kind(mode)}, not a file", where=path)
    return os.fdopen(file, "rb")


def _kind(mode: int) -> str:
    kinds: list[tuple[Callable[[int], bool], str]] = [
        (stat.S_ISLNK, "a symbolic link"),
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISSOCK, "a socket"),
    ]
    return next((words for test, words in kinds if test(mode)), "a device")


def _few(names: list[str]) -> str:
    shown = ", ".join(ascii(name)[1:-1] for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


class _FileSection(io.RawIOBase):
    """A section of an open file, which is closed with it."""

    def __init__(self, file: IO[bytes], start: int, size: int) -> None:
        super().__init__()
        self._file = file
        self._end = start + size
        file.seek(start)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        return self._file.readinto(view[: max(self._end - self._file.tell(), 0)])  # type: ignore[attr-defined, no-any-return]

    def close(self) -> None:
        self._file.close()
        super().close()


class Meter:
    """Reports progress in MB: when the number changes, and once at the end."""

    def __init__(self, stage: str, total_bytes: int, listen: Listener) -> None:
        self._stage, self._total, self._listen = stage, total_bytes, listen
        self._done, self._reported = 0, -1

    def add(self, count: int) -> None:
        """Add ``count`` processed bytes."""
        self._done += count
        total = -(-self._total // 10**6)
        megabytes = total if self._done >= self._total else min(self._done // 10**6, total - 1)
        if megabytes != self._reported:
            self._reported = megabytes
            self._listen(Progress(self._stage, megabytes, total, "MB"))

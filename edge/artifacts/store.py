"""Write and verify all persistent files: atomic replacement, manifests with digests, locks.

An artifact is one or more files and a JSON manifest with the sha256 and size of each, the *key* (everything that
the content depends on) and free-form *info*. Files are written to a temporary name in the target folder, synced and
renamed. The manifest is renamed last, so an artifact whose manifest does not match its files is refused. The limit: a
crash between two renames leaves new files under an old manifest. That artifact is then refused, never used.

A lock file is never deleted: deleting one while another process waits for it would let two writers in.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import hmac
import json
import os
import re
import shutil
import socket
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

import msgspec

from edge import __version__
from edge.errors import ArtifactError, StoreError, os_error

_NAME = re.compile(r"edge-[a-z]+-(\d+)-[^/]+")


@contextlib.contextmanager
def temporary_folder(what: str) -> Iterator[Path]:
    """Make a folder that is removed when the block ends.

    Args:
        what: purpose of the folder in lower-case letters; part of its name.

    Raises:
        StoreError: there is no temporary folder that can be written.
    """
    try:
        made = tempfile.TemporaryDirectory(prefix=f"edge-{what}-{os.getpid()}-")
    except OSError as exc:
        # Python names the folders that it tried only where none of them can be written.
        where = tempfile.tempdir or exc.filename or "the temporary folder"
        raise StoreError(
            f"cannot be written: {exc.strerror or exc}", where=where, hint="set TMPDIR=DIR to a writable folder"
        ) from exc
    with made as name:
        yield Path(name)


def remove_leftovers(folder: Path | None = None) -> list[Path]:
    """Remove temporary folders of this user whose process was killed, and return their paths.

    Folders of other users, folders whose process still runs, and folders not made by edge stay.
    """
    removed = []
    base = Path(tempfile.gettempdir()) if folder is None else folder
    with contextlib.suppress(OSError):
        for path in sorted(base.glob("edge-*")):
            if _is_leftover(path):
                shutil.rmtree(path, ignore_errors=True)
                removed.append(path)
    return removed


def _is_leftover(path: Path) -> bool:
    found = _NAME.fullmatch(path.name)
    if found is None:
        return False
    try:
        state = path.lstat()
        if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid():
            return False
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


FORMAT = 1
_MOST_LINKS = 40
Scalar = str | int | float | bool | None
Key = Mapping[str, Scalar]


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of an artifact: its digest and size in bytes."""

    sha256: str
    size: int


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of a manifest file. ``self_sha256`` covers everything else in it."""

    format: int
    kind: str
    edge_version: str
    created_utc: str
    files: dict[str, FileEntry]
    key: dict[str, Scalar]
    info: dict[str, Any]
    self_sha256: str = ""

    def sealed(self) -> Manifest:
        """Return the same manifest with its own digest filled in."""
        return msgspec.structs.replace(self, self_sha256=_seal(self))


class KeyDifference(msgspec.Struct, frozen=True):
    """One field in which two keys differ."""

    field: str
    old: Scalar
    new: Scalar

    def __str__(self) -> str:
        return f"{self.field}: {_short(self.old)} -> {_short(self.new)}"


def sha256_bytes(data: bytes) -> str:
    """Return the hex sha256 of ``data``."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the hex sha256 of a file's content, read in pieces.

    Raises:
        StoreError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return _hash_stream(file)
    except OSError as exc:
        raise StoreError(f"cannot read: {exc.strerror or exc}", where=path) from exc


def canonical_digest(value: object) -> str:
    """Return the hex sha256 of a JSON-able value in canonical form (sorted keys, no blanks)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return sha256_bytes(text.encode())


def differences(old: Key, new: Key) -> list[KeyDifference]:
    """Return the fields in which two keys differ, in the order of ``new`` and then of ``old``."""
    names = [*new, *(name for name in old if name not in new)]
    return [KeyDifference(name, old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)]


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file next to ``path``; sync it and rename it over ``path`` when the block ends without error.

    On any exception, including Ctrl-C, the temporary file is removed and ``path`` is untouched. For a symbolic link the
    target is replaced and the link stays. If ``path`` is not a regular file (``-`` for standard output, a device, a
    FIFO, a socket, a descriptor such as ``/dev/stdout``), it is written directly.

    Raises:
        StoreError: the folder cannot be created or written, or the disk is full.
    """
    if is_stream(path):
        with _written_through(path) as file:
            yield file
        return
    temporary = None
    try:
        if path.is_symlink():
            path = _end_of_links(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        temporary = None
        sync_folder(path.parent)
    except OSError as exc:
        raise os_error(exc, path) from exc
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()


def _end_of_links(path: Path) -> Path:
    found = Path(os.path.realpath(path))
    if found.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    return found


def is_stream(path: Path) -> bool:
    """Return True if ``path`` is written directly, not replaced: standard output (``-``), or not a regular file."""
    if str(path) == "-" or _descriptor(path) is not None:
        return True
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def is_stdout(path: Path) -> bool:
    """Return True if ``path`` is standard output: ``-``, ``/dev/stdout`` and the like."""
    return str(path) == "-" or _descriptor(path) == 1


def _descriptor(path: Path) -> int | None:
    """Return the descriptor of this process that ``path`` names, such as 1 for ``/dev/stdout``."""
    text = os.path.abspath(path)  # noqa: PTH100 - Path.resolve would follow the descriptor, too
    for _ in range(_MOST_LINKS):
        found = re.fullmatch(rf"(?:/dev|/proc/(?:self|thread-self|{os.getpid()}))/fd/(\d+)", text)
        if found is not None:
            return int(found[1])
        try:
            text = os.path.normpath(Path(text).parent / os.readlink(text))  # noqa: PTH115 - a text
        except (OSError, ValueError):
            return None
    return None


@contextlib.contextmanager
def _written_through(path: Path) -> Iterator[IO[bytes]]:
    number = 1 if str(path) == "-" else _descriptor(path)
    try:
        if number is not None:
            sys.stdout.flush()
            with os.fdopen(os.dup(number), "wb") as file:
                yield file
        elif stat.S_ISSOCK(path.stat().st_mode):
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(path))
                with connection.makefile("wb") as file:
                    yield file
        else:
            with path.open("wb") as file:
                yield file
    except BrokenPipeError:
        raise
    except OSError as exc:
        raise os_error(exc, path) from exc


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically."""
    with atomic_write(path) as file:
        file.write(data)


class Lines:
    """An append-only file that is rotated when it is large enough.

    The newest file has the given name; ``name.1.suffix`` is the one before, and so on, up to ``files`` in all. An
    existing file is rotated like the others. ``head`` returns the first bytes of each new file.
    """

    def __init__(self, path: Path, *, head: Callable[[], bytes], limit: int | None = None, files: int = 1) -> None:
        self._path = path
        self._head = head
        self._limit = limit
        self._files = files
        self._file: IO[bytes] | None = None
        self._size = 0
        # Only a regular file is rotated and synced.
        self._is_stream = is_stream(path)
        self._stack: contextlib.ExitStack | None = None

    def append(self, data: bytes) -> None:
        """Append ``data`` completely or not at all, and sync it to the disk.

        Raises:
            StoreError: the file cannot be written. The next call tries again.
        """
        try:
            if self._is_stream:
                self._append_to_stream(data)
                return
            if self._file is not None and self._limit is not None and self._size + len(data) > self._limit:
                self.close()
            file = self._file or self._open()
            try:
                _write_whole(file, data)
                os.fsync(file.fileno())
            except OSError:
                # A partial line would be read as damage.
                file.truncate(self._size)
                file.seek(self._size)
                raise
            self._size += len(data)
        except OSError as exc:
            raise os_error(exc, self._path) from exc

    def _append_to_stream(self, data: bytes) -> None:
        try:
            if self._stack is None:
                self._stack = contextlib.ExitStack()
                self._file = self._stack.enter_context(_written_through(self._path))
                self._file.write(self._head())
            assert self._file is not None  # noqa: S101 - for mypy
            self._file.write(data)
            self._file.flush()
        except OSError:
            # The buffer still has what was refused: closing it later would fail in the garbage collector.
            self.close()
            raise

    def close(self) -> None:
        """Close the file; the next :meth:`append` starts a new one."""
        if self._stack is not None:
            stack, self._stack, self._file = self._stack, None, None
            with contextlib.suppress(OSError, StoreError):
                stack.close()
            return
        if self._file is not None:
            file, self._file = self._file, None
            with contextlib.suppress(OSError):
                file.close()

    def _open(self) -> IO[bytes]:
        if self._path.is_symlink():
            # The link stays where it is: what it leads to grows, and is moved on.
            self._path = _end_of_links(self._path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.exists():
            self._numbered(self._files - 1).unlink(missing_ok=True)
            for number in range(self._files - 2, -1, -1):
                if (older := self._numbered(number)).exists():
                    older.replace(self._numbered(number + 1))
        head = self._head()
        # Unbuffered, so that a write error is raised here.
        file = self._path.open("xb", buffering=0)
        try:
            _write_whole(file, head)
        except OSError:
            file.close()
            self._path.unlink()
            raise
        self._file, self._size = file, len(head)
        sync_folder(self._path.parent)
        return file

    def _numbered(self, number: int) -> Path:
        return self._path.with_suffix(f".{number}{self._path.suffix}") if number else self._path


def save(
    manifest_path: Path,
    *,
    kind: str,
    files: Mapping[str, bytes | Callable[[IO[bytes]], None]],
    key: Key,
    info: Mapping[str, Any],
) -> Manifest:
    """Write the files of an artifact next to ``manifest_path``, then its manifest.

    ``files`` maps a plain file name to its content, or to a function that writes it.

    Raises:
        StoreError: a file cannot be written; an existing manifest is untouched.
    """
    entries: dict[str, FileEntry] = {}
    for name, content in files.items():
        path = manifest_path.parent / _plain(name, manifest_path)
        with atomic_write(path) as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
        entries[name] = FileEntry(sha256_file(path), path.stat().st_size)
    manifest = Manifest(
        format=FORMAT,
        kind=kind,
        edge_version=__version__,
        created_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        files=entries,
        key=dict(key),
        info=dict(info),
    ).sealed()
    write_bytes(manifest_path, _encode(manifest))
    return manifest


def encode_without(manifest: Manifest, *names: str) -> bytes:
    """Encode ``manifest``, sealed again, without the ``names`` in its info, such as a folder of this machine."""
    kept = {name: value for name, value in manifest.info.items() if name not in names}
    return _encode(msgspec.structs.replace(manifest, info=kept).sealed())


def load(manifest_path: Path, *, kind: str, check_files: bool = True) -> Manifest:
    """Read a manifest and verify it, its kind and, with ``check_files``, every file in it.

    Raises:
        ArtifactError: the manifest is missing, malformed, of another kind or format, or a file does not match its
        digest.
    """
    manifest = _decode(manifest_path)
    if manifest.format != FORMAT:
        raise ArtifactError(
            f"manifest format {manifest.format}; this edge reads format {FORMAT}",
            where=manifest_path,
            hint="use the version of edge that wrote it, or make the artifact again",
        )
    if not hmac.compare_digest(manifest.self_sha256, _seal(manifest)):
        raise ArtifactError("the manifest was changed after it was written", where=manifest_path, hint=_REDO)
    if manifest.kind != kind:
        raise ArtifactError(f"this is the manifest of {manifest.kind}, not of {kind}", where=manifest_path)
    if check_files:
        for name, entry in manifest.files.items():
            _verify_file(manifest_path.parent / _plain(name, manifest_path), entry)
    return manifest


@contextlib.contextmanager
def lock(path: Path, *, timeout_s: float = 60.0, waiting: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Acquire the lock ``<path>.lock`` for the block: one writer per artifact on this machine.

    ``waiting`` is called before the wait if another process has the lock.

    Raises:
        StoreError: the folder is not writable, or another process held the lock for ``timeout_s`` seconds.
    """
    import filelock

    guard = filelock.FileLock(f"{path}.lock", timeout=timeout_s)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            guard.acquire(timeout=0)
        except filelock.Timeout:
            waiting()
            guard.acquire()
    except filelock.Timeout as exc:
        raise StoreError(
            f"another process has been writing this for {timeout_s:g} s",
            where=path,
            hint="wait for that process or end it",
        ) from exc
    except OSError as exc:
        raise os_error(exc, path) from exc
    # Outside of the try: an OSError raised by the block has nothing to do with the lock.
    try:
        yield
    finally:
        guard.release()


_REDO = "make the artifact again with --force"


def _verify_file(path: Path, entry: FileEntry) -> None:
    try:
        size = path.stat().st_size
    except OSError as exc:
        raise ArtifactError("the manifest lists this file, but it is missing", where=path, hint=_REDO) from exc
    if size != entry.size:
        raise ArtifactError(f"the file has {size} bytes, but its manifest says {entry.size}", where=path, hint=_REDO)
    if not hmac.compare_digest(sha256_file(path), entry.sha256):
        raise ArtifactError("the content does not match the sha256 in its manifest", where=path, hint=_REDO)


def _decode(manifest_path: Path) -> Manifest:
    try:
        return msgspec.json.decode(manifest_path.read_bytes(), type=Manifest)
    except FileNotFoundError as exc:
        raise ArtifactError("the manifest is missing", where=manifest_path, hint=_REDO) from exc
    except OSError as exc:
        raise StoreError(f"cannot read: {exc.strerror or exc}", where=manifest_path) from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ArtifactError(f"not a manifest: {exc}", where=manifest_path, hint=_REDO) from exc


def _encode(manifest: Manifest) -> bytes:
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def _seal(manifest: Manifest) -> str:
    content = msgspec.to_builtins(manifest)
    del content["self_sha256"]
    return canonical_digest(content)


def _plain(name: str, manifest_path: Path) -> str:
    if name in {"", ".", ".."} or "/" in name or "\\" in name or "\0" in name:
        raise ArtifactError(f"file name {name!r} leaves the artifact's folder", where=manifest_path)
    return name


def _hash_stream(file: IO[bytes]) -> str:
    state = hashlib.sha256()
    while piece := file.read(1 << 20):
        state.update(piece)
    return state.hexdigest()


def _write_whole(file: IO[bytes], data: bytes) -> None:
    """Write all of ``data``: a disk that becomes full accepts the first part without an error."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def _umask() -> int:
    """Return the umask from /proc: os.umask would change it, and concurrent threads could leave it at 0."""
    with Path("/proc/self/status").open(encoding="ascii", errors="replace") as status:
        found = next((line for line in status if line.startswith("Umask:")), "Umask: 0077")
    return int(found.split()[1], 8)


def sync_folder(folder: Path) -> None:
    """Sync the entries of a folder to the disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _short(value: Scalar) -> str:
    text = "(none)" if value is None else str(value)
    is_digest = len(text) == 64 and all(c in "0123456789abcdef" for c in text)
    return f"{text[:12]}…" if is_digest else text

"""The bundle as one tar file whose bytes follow from its manifest.

An untrusted tar can contain links, devices, sparse maps, absolute paths, duplicate names, or wrong sizes. None of that
is parsed here. The first header must be that of ``bundle.json``; the manifest then determines all entries (sorted by
name) and their positions, so every other byte outside of file contents is predicted and compared. Any difference is
refused. This also makes the bytes reproducible.

Headers are POSIX ustar [POSIX.1-2017, pax, "ustar Interchange Format"]: mode 0644, owner 0, time 0, no names of owners.
``tar`` and Python's ``tarfile`` can read the file.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO

import msgspec

from edge.artifacts import FileEntry, atomic_write, is_stream, sync_folder
from edge.deploy.bundle.manifest import (
    MANIFEST,
    MAX_FILE_BYTES,
    MAX_MANIFEST_BYTES,
    BundleManifest,
    decode_manifest,
    split_for_header,
)
from edge.errors import ArtifactError, os_error

SUFFIX = ".edge"
BLOCK = 512
# tar pads to twenty blocks.
_RECORD = 20 * BLOCK
_HINT = "get the bundle again, or make it again with edge bundle create"


@contextlib.contextmanager
def staged(out: Path) -> Iterator[Path]:
    """Yield the path to write a tar to; it replaces ``out`` if the block ends without error.

    So ``out`` is unchanged until the tar has been verified. For a symbolic link its target is replaced; a path that is
    not a regular file is written directly.
    """
    is_through = is_stream(out)
    target = Path(os.path.realpath(out))
    try:
        if not is_through:
            target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f"edge-bundle-{os.getpid()}-" if is_through else f".{target.name}.",
            dir=None if is_through else target.parent,
        ) as folder:
            path = Path(folder) / f"bundle{SUFFIX}"
            yield path
            if is_through:
                with atomic_write(out) as through, path.open("rb") as file:
                    shutil.copyfileobj(file, through)
            else:
                path.replace(target)
                sync_folder(target.parent)
    except OSError as exc:
        raise os_error(exc, out) from exc


class Layout(msgspec.Struct, frozen=True):
    """Position of every file's content in bytes, and the size of the whole tar."""

    offsets: dict[str, int]
    total_bytes: int


def header(name: str, size: int) -> bytes:
    """Return the 512 bytes in front of a file."""
    split = split_for_header(name.encode())
    if split is None or not 0 <= size <= MAX_FILE_BYTES:
        raise ValueError(f"{name!r} with {size} bytes does not fit into a ustar header")
    prefix, tail = split
    zero = b"0000000\0"
    front = tail.ljust(100, b"\0") + b"0000644\0" + zero + zero + b"%011o\0" % size + b"00000000000\0"
    back = b"0".ljust(101, b"\0") + b"ustar\x0000" + bytes(64) + zero + zero + prefix.ljust(155, b"\0") + bytes(12)
    checksum = sum(front) + 8 * ord(" ") + sum(back)
    return front + b"%06o\0 " % checksum + back


def layout(manifest_bytes: int, files: Mapping[str, FileEntry]) -> Layout:
    """Compute the positions of all files in the tar of a manifest of ``manifest_size`` bytes."""
    at = BLOCK + _padded(manifest_bytes)
    offsets = {}
    for name in sorted(files):
        offsets[name] = at + BLOCK
        at += BLOCK + _padded(files[name].size)
    at += 2 * BLOCK
    return Layout(offsets, at + -at % _RECORD)


def write(
    file: IO[bytes], manifest: bytes, files: Mapping[str, FileEntry], copy: Callable[[str, IO[bytes]], None]
) -> None:
    """Write the tar; ``copy(name, file)`` writes the content of one file, exactly as many bytes as its entry says."""
    plan = layout(len(manifest), files)
    file.write(header(MANIFEST, len(manifest)) + manifest + bytes(-len(manifest) % BLOCK))
    for name in sorted(files):
        file.write(header(name, files[name].size))
        copy(name, file)
        file.write(bytes(-files[name].size % BLOCK))
    file.write(bytes(plan.total_bytes - file.tell()))


def read(file: IO[bytes], *, where: Path) -> tuple[bytes, BundleManifest, Layout]:
    """Read manifest and layout of the tar ``file`` after checking every byte outside of file contents.

    Raises:
        ArtifactError: the tar does not match its manifest.
    """
    data = _read_manifest(file, where=where)
    manifest = decode_manifest(data, where=f"{where}: {MANIFEST}")
    plan = layout(len(data), manifest.files)
    file.seek(0, 2)
    size = file.tell()
    if size != plan.total_bytes:
        what = "truncated" if size < plan.total_bytes else "extra data after the end"
        raise ArtifactError(f"{what}: {size} bytes, but the manifest says {plan.total_bytes}", where=where, hint=_HINT)
    for offset, expected, name in _frame(len(data), manifest, plan):
        file.seek(offset)
        if file.read(len(expected)) != expected:
            raise ArtifactError(f"{name}: its tar header or padding was not written by edge", where=where, hint=_HINT)
    return data, manifest, plan


def _read_manifest(file: IO[bytes], *, where: Path) -> bytes:
    file.seek(0)
    first = file.read(BLOCK)
    digits = first[124:135]
    size = int(digits, 8) if len(digits) == 11 and digits.isdigit() and not set(digits) & set(b"89") else 0
    if not 0 < size <= MAX_MANIFEST_BYTES or first != header(MANIFEST, size):
        raise ArtifactError(f"not a bundle: its first entry is not {MANIFEST}", where=where, hint=_HINT)
    data = file.read(size)
    if len(data) != size:
        raise ArtifactError("truncated inside its manifest", where=where, hint=_HINT)
    return data


def _frame(manifest_bytes: int, manifest: BundleManifest, plan: Layout) -> Iterator[tuple[int, bytes, str]]:
    """Yield every part of the tar that is not file content: (offset, bytes, name of the file or "the end")."""
    yield BLOCK + manifest_bytes, bytes(-manifest_bytes % BLOCK), MANIFEST
    end = BLOCK + _padded(manifest_bytes)
    for name, start in plan.offsets.items():
        size = manifest.files[name].size
        yield start - BLOCK, header(name, size), name
        yield start + size, bytes(-size % BLOCK), name
        end = start + _padded(size)
    yield end, bytes(plan.total_bytes - end), "the end"


def _padded(size: int) -> int:
    return size + -size % BLOCK

"""The bundle as one file: a tar that is a function of its manifest, and is read as one.

An untrusted tar can name links, devices, sparse maps, absolute paths, the same file twice, or say one size and hold
another. None of that is parsed here. The first header must be that of ``bundle.json``; from then on the manifest says
which entries come (sorted by name), and where each lies, so every other byte of the file that is not content is
predicted and compared. Whatever differs in one bit is refused. That is also what makes the bytes reproducible.

Headers are POSIX ustar [POSIX.1-2017, pax, "ustar Interchange Format"]: mode 0644, owner 0, time 0, no names of owners.
``tar`` and Python's ``tarfile`` read the file like any other.
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
    """Give the path to write a tar to; it takes the place of ``out`` when the block ends well.

    So ``out`` is untouched until the tar has been read back. The target of a symbolic link is replaced, and what is no
    regular file is written through.
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
    """Position of every file: offset of its content in bytes; and the size of the whole tar."""

    offsets: dict[str, int]
    total_bytes: int


def header(name: str, size: int) -> bytes:
    """Return the 512 bytes in front of a file."""
    split = split_for_header(name.encode())
    if split is None or not 0 <= size <= MAX_FILE_BYTES:
        raise ValueError(f"{name!r} with {size} bytes does not fit a ustar header")
    prefix, tail = split
    zero = b"0000000\0"
    front = tail.ljust(100, b"\0") + b"0000644\0" + zero + zero + b"%011o\0" % size + b"00000000000\0"
    back = b"0".ljust(101, b"\0") + b"ustar\x0000" + bytes(64) + zero + zero + prefix.ljust(155, b"\0") + bytes(12)
    checksum = sum(front) + 8 * ord(" ") + sum(back)
    return front + b"%06o\0 " % checksum + back


def layout(manifest_bytes: int, files: Mapping[str, FileEntry]) -> Layout:
    """Positions of all files in the tar of a manifest of so many bytes."""
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
    """Manifest and layout of the tar ``file``, after every byte that is not content was checked.

    Raises:
        ArtifactError: it is not the tar that its manifest says.
    """
    data = _read_manifest(file, where=where)
    manifest = decode_manifest(data, where=f"{where}: {MANIFEST}")
    plan = layout(len(data), manifest.files)
    file.seek(0, 2)
    size = file.tell()
    if size != plan.total_bytes:
        what = "cut short" if size < plan.total_bytes else "something follows its end"
        raise ArtifactError(f"{what}: {size} bytes, the manifest says {plan.total_bytes}", where=where, hint=_HINT)
    for offset, expected, name in _frame(len(data), manifest, plan):
        file.seek(offset)
        if file.read(len(expected)) != expected:
            raise ArtifactError(f"{name}: what stands around it is not what edge writes", where=where, hint=_HINT)
    return data, manifest, plan


def _read_manifest(file: IO[bytes], *, where: Path) -> bytes:
    file.seek(0)
    first = file.read(BLOCK)
    digits = first[124:135]
    size = int(digits, 8) if len(digits) == 11 and digits.isdigit() and not set(digits) & set(b"89") else 0
    if not 0 < size <= MAX_MANIFEST_BYTES or first != header(MANIFEST, size):
        raise ArtifactError(f"not a bundle: it does not begin with {MANIFEST}", where=where, hint=_HINT)
    data = file.read(size)
    if len(data) != size:
        raise ArtifactError("cut short in its manifest", where=where, hint=_HINT)
    return data


def _frame(manifest_bytes: int, manifest: BundleManifest, plan: Layout) -> Iterator[tuple[int, bytes, str]]:
    """Every piece of the tar that is not content: (offset, bytes, name of the file that it is around)."""
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

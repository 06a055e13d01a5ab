"""Reading small sysfs files often: one open, one read, one close, no exceptions for what comes and goes.

Files are opened again each time on purpose: a sensor that was unbound and bound again keeps its name, but a descriptor
that was open across that fails for ever.
"""

from __future__ import annotations

import os
from pathlib import Path

_LIMIT = 4096
_LONGEST_NUMBER = 24  # 64 bits, a sign and a line end


def read_bytes(path: str) -> bytes | None:
    """The first 4 KiB of a file, or None: gone, not permitted, or the device behind it does not answer."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(handle, _LIMIT)
    except OSError:
        return None
    finally:
        os.close(handle)


def read_text(path: str | Path) -> str | None:
    """The text of a small file without surrounding blanks, or None."""
    raw = read_bytes(str(path))
    return None if raw is None else raw.decode(errors="replace").strip("\0 \t\r\n")


def read_int(path: str) -> int | None:
    """The whole number in a file, or None: unreadable, or not a number."""
    raw = read_bytes(path)
    if raw is None or len(raw) > _LONGEST_NUMBER:
        return None
    try:
        return int(raw)
    except ValueError:
        return None


def is_forbidden(path: str | Path) -> bool:
    """True if a file is there and this user may not read it."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except PermissionError:
        return True
    except OSError:
        return False
    return False


def folders(parent: Path) -> list[Path]:
    """Entries of ``parent`` by name; none when it is not there or not readable."""
    try:
        return sorted(parent.iterdir())
    except OSError:
        return []

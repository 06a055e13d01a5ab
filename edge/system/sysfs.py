"""Read small sysfs files often and cheaply: one open, read and close, and None instead of an exception.

Each read opens the file again on purpose: a sensor that was unbound and bound again has the same name, but a
descriptor from before fails for ever.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

_LIMIT = 4096
_LONGEST_NUMBER = 24  # 64 bits, a sign and a line end


def read_bytes(path: str) -> bytes | None:
    """Return the first 4 KiB of a file; None if it is missing, not permitted, or its device does not answer."""
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
    """Return the stripped text of a small file, or None if it cannot be read."""
    raw = read_bytes(str(path))
    return None if raw is None else raw.decode(errors="replace").strip("\0 \t\r\n")


def read_int(path: str) -> int | None:
    """Return the integer in a file; None if the file cannot be read or is not a number."""
    raw = read_bytes(path)
    if raw is None or len(raw) > _LONGEST_NUMBER:
        return None
    try:
        return int(raw)
    except ValueError:
        return None


def proc_bytes(text: str, name: str) -> int | None:
    """Return a size in bytes from the text of /proc/meminfo or /proc/PID/status; None without such a line.

    Source: Linux, Documentation/filesystems/proc.rst; the unit kB is 1024 bytes.
    """
    match = re.search(rf"(?m)^{name}:\s+(\d{{1,15}}) kB", text)
    return int(match[1]) * 1024 if match else None


def is_forbidden(path: str | Path) -> bool:
    """Return True if a file exists but this user may not read it."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except PermissionError:
        return True
    except OSError:
        return False
    return False


def folders(parent: Path) -> list[Path]:
    """Return the entries of ``parent`` by name; an empty list if it is missing or not readable."""
    try:
        return sorted(parent.iterdir())
    except OSError:
        return []

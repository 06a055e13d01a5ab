"""Temporary folders, and what killed processes left of theirs.

The name of a folder holds the number of its process. A folder of a process that no longer runs is removed by the next
``edge run`` or ``edge ship`` of the same user.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

_NAME = re.compile(r"edge-[a-z]+-(\d+)-[^/]+")


@contextlib.contextmanager
def temporary_folder(what: str) -> Iterator[Path]:
    """A folder that is removed when the block ends.

    Args:
        what: What it is for, in lower-case letters: part of its name.
    """
    with tempfile.TemporaryDirectory(prefix=f"edge-{what}-{os.getpid()}-") as name:
        yield Path(name)


def remove_leftovers(folder: Path | None = None) -> list[Path]:
    """Remove temporary folders of this user whose process was killed; those that were removed.

    A folder of another user, one whose process runs, and what is no folder of edge stay.
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

"""V4L2 nodes: which cameras there are, who holds one, and where one went that was unplugged.

Read from ``/dev``, ``/sys`` and ``/proc`` below a root, so that a tree of files can stand for a machine.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import msgspec

_NODE = re.compile(r"video(\d+)$")
_LINKS = ("dev/v4l/by-id", "dev/v4l/by-path")


class VideoNode(msgspec.Struct, frozen=True):
    """A video node: its path as the machine calls it, the camera's name, and the links of udev that lead to it."""

    path: str
    name: str | None
    links: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.path} ({self.name})" if self.name else self.path


class Holder(msgspec.Struct, frozen=True):
    """A process that has a node open."""

    pid: int
    name: str

    def __str__(self) -> str:
        return f"{self.name}, pid {self.pid}"


def cameras(root: Path = Path("/")) -> list[VideoNode]:
    """The nodes that give pictures, by number; the metadata nodes next to them are left out."""
    return [
        look(f"/dev/{path.name}", root)
        for path in sorted((root / "dev").glob("video*"), key=lambda path: (len(path.name), path.name))
        if _NODE.search(path.name) and _text(_sysfs(path.name, root) / "index") in {None, "0"}
    ]


def look(path: str, root: Path = Path("/")) -> VideoNode:
    """The facts about the node at ``path``, which need not be there."""
    name = Path(path).name
    links = tuple(
        f"/{folder}/{link.name}"
        for folder in _LINKS
        for link in sorted((root / folder).glob("*"))
        if Path(os.path.realpath(link)).name == name
    )
    return VideoNode(path, _text(_sysfs(name, root) / "name"), links)


def resolve(path: str, root: Path = Path("/")) -> str | None:
    """The node that ``path``, a node or a link to one, stands for now; None when it is not there."""
    real = Path(os.path.realpath(root / path.lstrip("/")))
    return f"/dev/{real.name}" if real.exists() else None


def find_again(lost: VideoNode, root: Path = Path("/")) -> str | None:
    """Find the camera that was ``lost``: by udev's links to it, then by its name, then by its number."""
    for link in lost.links:
        found = resolve(link, root)
        if found is not None:
            return found
    if lost.name is not None:
        named = [node.path for node in cameras(root) if node.name == lost.name]
        if named:
            return lost.path if lost.path in named else named[0]
    # A name that is known and not there is another camera under the old number.
    return resolve(lost.path, root) if lost.name is None else None


def holders(path: str, root: Path = Path("/")) -> list[Holder]:
    """Processes other than this one that have the node open, as far as this user may see."""
    found = [
        Holder(int(folder.name), _text(folder / "comm") or "?")
        for folder in (root / "proc").glob("[0-9]*")
        if folder.name != str(os.getpid()) and _has_open(folder / "fd", path)
    ]
    return sorted(found, key=lambda holder: holder.pid)


def _has_open(folder: Path, path: str) -> bool:
    try:
        return any(os.readlink(handle) == path for handle in folder.iterdir())  # noqa: PTH115 - as it is written there
    except OSError:
        # Another user's process, or one that has just ended.
        return False


def _sysfs(name: str, root: Path) -> Path:
    return root / "sys/class/video4linux" / name


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip() or None
    except OSError:
        return None

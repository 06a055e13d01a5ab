"""What the script on a device says, as typed answers."""

from __future__ import annotations

import base64
import binascii
import getpass
import json
import socket
import tempfile
import time
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec

from edge.deploy.transport import DeviceAddress, DeviceSession, clean_text, root_of
from edge.errors import DeviceError, StoreError
from edge.system import Device, device

# A clock that is further off than this is worth a word.
_SKEW_S = 120


class DeviceState(msgspec.Struct, frozen=True, kw_only=True):
    """A device before anything is changed.

    ``root`` is the absolute folder of its bundles, ``has_root`` whether anything was ever shipped there. ``free_bytes``
    is None where the file system does not say. ``current`` and ``previous`` are digests of bundles; ``proved`` is
    whether the canary passed ``current``. ``edge`` is the program there. ``skew_s`` is the device's clock less ours.
    """

    root: str
    has_root: bool
    free_bytes: int | None
    current: str | None
    previous: str | None
    proved: bool
    edge: str | None
    rsync: bool
    skew_s: int
    machine: Device

    @property
    def warnings(self) -> list[str]:
        """What a person should know before going on."""
        if abs(self.skew_s) <= _SKEW_S:
            return []
        way = "behind" if self.skew_s < 0 else "ahead"
        off = f"the device's clock is {_span(abs(self.skew_s))} {way} of this machine's"
        return [f"{off}: signatures with a validity depend on it, shipping does not (sudo timedatectl set-ntp true)"]


class Need(msgspec.Struct, frozen=True):
    """A file that has to travel, and how much of it is there already, in bytes."""

    sha256: str
    have: int


def hello(session: DeviceSession, place: DeviceAddress) -> DeviceState:
    """Who is there.

    Raises:
        DeviceError: a tool is missing there; the answer makes no sense.
    """
    before = time.time()
    own = "" if place.is_folder else "yes"
    frames = session.ask("hello", root_of(place), place.edge or "", place.system_root, own)
    ours = (before + time.time()) / 2
    said: dict[str, str] = {frame.word: frame.text for frame in frames if frame.word != "file"}
    files = dict(frame.text.partition(" ")[::2] for frame in frames if frame.word == "file")
    try:
        return DeviceState(
            root=said["root"],
            has_root="there" in said,
            edge=said.get("edge"),
            rsync="rsync" in said,
            skew_s=round(int(said["clock"]) - ours),
            machine=_machine(files),
            **_situation(said),
        )
    except (KeyError, ValueError) as exc:
        raise DeviceError(f"an answer that makes no sense: {exc}", where=place.name) from exc


def begin(session: DeviceSession, state: DeviceState, *, lock_wait_s: int) -> DeviceState:
    """Take the device's lock; the state as it is then: whoever had the lock may have shipped something else.

    Raises:
        StoreError: the folder cannot be written, or another ship holds the lock.
    """
    frames = session.ask("begin", str(lock_wait_s), f"{_me()} since {_now()}", silence_s=lock_wait_s + 60)
    return msgspec.structs.replace(state, **_situation({frame.word: frame.text for frame in frames}))


def needs(session: DeviceSession, digests: Iterable[str]) -> list[Need]:
    """Which of the files are not there, in the order given."""
    frames = session.ask("want", *digests, "")
    return [Need(sha256, int(have)) for sha256, _, have in (frame.text.partition(" ") for frame in frames)]


def check_room(state: DeviceState, missing_bytes: int, place: DeviceAddress) -> None:
    """Refuse to fill a disk.

    Raises:
        StoreError: there is less room than the files need, and 16 MiB.
    """
    if state.free_bytes is not None and missing_bytes and state.free_bytes < missing_bytes + (16 << 20):
        raise StoreError(
            f"{missing_bytes / 1e6:.1f} MB are to be sent, {state.free_bytes / 1e6:.1f} MB are free in {state.root}",
            where=place.name, hint="edge ship gc TARGET, or free some space there; nothing was sent",
        )  # fmt: skip


def history_line(action: str, *, digest: str | None, name: str | None) -> str:
    """One line of ``history.jsonl`` on the device; the time is this machine's."""
    return json.dumps({"at": _now(), "by": _me(), "action": action, "bundle": digest, "name": name})


def decoded(text: str) -> str:
    """Text that the device sent in base64, as it may be shown; empty when it cannot be read."""
    try:
        return clean_text(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        return ""


def _machine(files: dict[str, str]) -> Device:
    """The same detection as on the device itself, over copies of the files that it reads."""
    with tempfile.TemporaryDirectory(prefix="edge-device-") as name:
        for path, text in files.items():
            copy = Path(name, path)
            if ".." in copy.parts or not copy.is_relative_to(name):
                raise ValueError(f"a file called {path!r}")
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(base64.b64decode(text))
        return device.identify(Path(name))


def _situation(said: dict[str, str]) -> dict[str, Any]:
    """What may change while another ship is at work."""
    return {
        "free_bytes": _free(said.get("free", "")),
        "current": _digest(said.get("current")),
        "previous": _digest(said.get("previous")),
        "proved": "proved" in said,
    }


def _free(text: str) -> int | None:
    blocks, _, size = text.partition(" ")
    return int(blocks) * int(size) if blocks.isdigit() and size.isdigit() else None


def _digest(link: str | None) -> str | None:
    return None if link is None else link.removeprefix("bundles/")


def _me() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "somebody"
    return f"{user}@{socket.gethostname()}"


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _span(seconds: int) -> str:
    for size, name in ((365 * 86400, "years"), (86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds // size} {name}"
    return f"{seconds} s"

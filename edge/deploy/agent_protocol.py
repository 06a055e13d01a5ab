"""Answers of the script on a device as typed values. The forms and limits of its lines are in `transport.frames`.

Every value is checked once more where it has a meaning: a file that was not asked for, a bundle that is not there, a
report of another trial. The only exception is an
:class:`~edge.errors.EdgeError` with one sentence.
"""

from __future__ import annotations

import base64
import binascii
import getpass
import json
import socket
import time
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import msgspec

from edge.artifacts import temporary_folder
from edge.deploy.bundle import printable_name
from edge.deploy.transport import DeviceAddress, DeviceSession, MessageFrame, invalid, printable_lines, root_of
from edge.errors import DeviceError, StoreError
from edge.system import Device, device

Verdict = Literal["passed", "failed", "not tried", "unknown"]
_VERDICTS: dict[str, Verdict] = {
    "passed": "passed", "failed": "failed", "untried": "not tried", "unknown": "unknown"
}  # fmt: skip
# A clock that is further off than this is worth a warning.
_SKEW_S = 120
# What `edge doctor` reads to tell which device this is; nothing else is taken from a device.
_MACHINE_FILES = frozenset(
    {"proc/device-tree/compatible", "proc/device-tree/model", "etc/nv_tegra_release", "proc/sys/kernel/arch"}
)
_MAX_MACHINE_FILE_BYTES = 64 << 10


class DeviceState(msgspec.Struct, frozen=True, kw_only=True):
    """A device as it is before anything is changed.

    ``root`` is the absolute folder of its bundles, ``has_root`` whether anything was ever shipped there. ``free_bytes``
    is None where the file system does not say. ``current`` and ``previous`` are digests of bundles, ``verdict`` that of
    the trial of ``current``. ``edge`` is the program there; ``foreign_edge`` another program of that name.
    ``skew_s`` is the device's clock less ours.
    """

    root: str
    has_root: bool
    free_bytes: int | None
    current: str | None
    previous: str | None
    verdict: Verdict | None
    edge: str | None
    foreign_edge: str | None
    rsync: bool
    skew_s: int
    machine: Device

    @property
    def warnings(self) -> list[str]:
        """Warnings about the device."""
        found = []
        if self.foreign_edge is not None:
            found.append(
                f"{self.foreign_edge} on the device is another program of that name (n2n has one), so the device has "
                "no edge (--bootstrap installs it; edge: in fleet.yaml names it)"
            )
        if abs(self.skew_s) > _SKEW_S:
            way = "behind" if self.skew_s < 0 else "ahead of"
            found.append(
                f"the device's clock is {_span(abs(self.skew_s))} {way} this machine's: signatures with a validity "
                "depend on it, shipping does not (sudo timedatectl set-ntp true)"
            )
        return found


class Need(msgspec.Struct, frozen=True):
    """A file that has to travel, and how much of it is there already, in bytes."""

    sha256: str
    have: int


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """Result of a trial: the verdict, the reason where it is not "passed", the report of ``edge canary``."""

    verdict: Verdict
    reason: str | None = None
    report: dict[str, Any] | None = None


class BundleInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One bundle on a device. ``trial`` is its verdict; ``name`` is None where its manifest cannot be read."""

    digest: str
    name: str | None
    profile: str | None
    arrived_utc: str
    trial: Verdict


class HistoryEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the device's history; a field that is missing or is no text is empty."""

    at: str
    by: str
    action: str
    bundle: str
    name: str


def hello(session: DeviceSession, place: DeviceAddress) -> DeviceState:
    """Ask who is there.

    Raises:
        DeviceError: a tool is missing there; the answer is invalid.
    """
    before = time.time()
    system = "" if place.is_own else place.system_root
    frames = session.ask("hello", root_of(place), place.edge or "", system, "yes" if place.is_own else "")
    return read_hello(frames, now_s=(before + time.time()) / 2, where=place.name)


def read_hello(frames: list[MessageFrame], *, now_s: float, where: str) -> DeviceState:
    """Read the answer to ``hello``.

    Raises:
        DeviceError: it is invalid.
    """
    found = _by_word(frames)
    for word in ("root", "clock"):
        if word not in found:
            raise invalid(f"no {word}", request="hello", where=where)
    files = [frame.text.partition(" ") for frame in frames if frame.word == "file"]
    return DeviceState(
        root=found["root"],
        has_root="there" in found,
        edge=found.get("edge"),
        foreign_edge=found.get("foreign"),
        rsync="rsync" in found,
        skew_s=round(int(found["clock"]) - now_s),
        machine=_machine({path: text for path, _, text in files}, where=where),
        **_situation(found),
    )


def begin(session: DeviceSession, state: DeviceState, *, lock_wait_s: int) -> DeviceState:
    """Take the device's lock; the state as it is then: whoever had the lock may have shipped something else.

    Raises:
        StoreError: the folder cannot be written, or another ship holds the lock.
    """
    frames = session.ask("begin", str(lock_wait_s), f"{_me()} since {_now()}", limit_s=lock_wait_s + 60)
    return msgspec.structs.replace(state, **_situation(_by_word(frames)))


def look(session: DeviceSession, state: DeviceState) -> DeviceState:
    """Ask what is in use now; return the state with it."""
    return msgspec.structs.replace(state, **_situation(_by_word(session.ask("look"))))


def needs(session: DeviceSession, sizes: Mapping[str, int]) -> list[Need]:
    """Return the files, sizes by digest, that are not there, in the order given.

    Raises:
        DeviceError: the device names a file that nobody asked about, or one twice.
    """
    return read_needs(session.ask("want", *sizes, ""), sizes, where=session.where)


def read_needs(frames: list[MessageFrame], sizes: Iterable[str], *, where: str) -> list[Need]:
    """Read the answer to ``want``.

    Raises:
        DeviceError: it names a file that nobody asked about, or one twice.
    """
    open_ = set(sizes)
    found = []
    for frame in frames:
        digest, _, have = frame.text.partition(" ")
        if digest not in open_:
            raise invalid(f"need {digest}", request="want", where=where)
        open_.discard(digest)
        found.append(Need(digest, int(have)))
    return found


def read_trial(frames: list[MessageFrame], *, digest: str, nonce: str, where: str) -> Trial:
    """Read the answer to ``trial``, whose report must fit it.

    Raises:
        DeviceError: the device calls it passed or failed, and shows no report of this trial that says so.
    """
    found = _by_word(frames)
    verdict = _VERDICTS.get(found.get("result", ""))
    if verdict is None:
        raise invalid("no result", request="trial", where=where)
    log = decoded(found.get("log", ""))
    report = _json_object(found.get("report", ""))
    failed = report.get("failed") if report else None
    reasons = "; ".join(printable_name(str(item)) for item in failed[:10]) if isinstance(failed, list) else ""
    if verdict == "passed" or (verdict == "failed" and not (report and "cut_off" in report)):
        wanted = {"program": "edge canary", "bundle": digest, "nonce": nonce, "passed": verdict == "passed"}
        if report is None or any(report.get(name) != value for name, value in wanted.items()):
            raise invalid(f"{verdict} without its report", request="trial", where=where)
    if verdict == "passed":
        return Trial(verdict=verdict, report=report)
    if verdict == "failed":
        return Trial(verdict=verdict, reason=reasons or "the report names no limit", report=report)
    return Trial(verdict=verdict, reason=_why_untried(found, log), report=report)


def _why_untried(found: Mapping[str, str], log: str) -> str:
    if "foreign" in found:
        return f"{found['foreign']} on the device is another program of that name"
    code = int(found.get("code", "0"))
    how = f"was ended by signal {code - 128}" if code > 128 else f"ended with {code} and wrote no report of this trial"
    if code in {126, 127}:
        how = "does not start"
    elif code == 2:
        how = "does not know this trial: its version is older than this one (--bootstrap)"
    words = last_words(log)
    return f"edge canary on the device {how}{f': {words}' if words else ''}"


def read_bundles(frames: list[MessageFrame]) -> list[BundleInfo]:
    """Read the bundles in the answer to ``status``."""
    return [_bundle_info(frame.text) for frame in frames if frame.word == "bundle"]


def read_history(frames: list[MessageFrame]) -> list[HistoryEntry]:
    """Read the history in the answer to ``status``; a line that is no JSON object is left out."""
    text = next((frame.text for frame in frames if frame.word == "history"), "")
    entries = []
    for line in decoded(text).splitlines():
        content = _parsed(line.encode())
        if content is not None:
            fields = {name: content.get(name) for name in HistoryEntry.__struct_fields__}
            entries.append(
                HistoryEntry(**{name: printable_name(v) if isinstance(v, str) else "" for name, v in fields.items()})
            )
    return entries


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


def history_line(action: str, *, digest: str | None, name: str | None, trial: Verdict | None = None) -> str:
    """One line of ``history.jsonl`` on the device; the time is this machine's.

    The script looks for ``"trial"``: a line without it is that of an edge that had no verdicts.
    """
    return json.dumps({"at": _now(), "by": _me(), "action": action, "bundle": digest, "name": name, "trial": trial})


def decoded(text: str) -> str:
    """Text that the device sent in base64, as it may be shown; empty when it cannot be read."""
    return printable_lines(_bytes(text) or b"")


def last_words(log: str) -> str:
    """Return the last line of a program's messages that speaks of an error, or the last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or [""])[-1][:300]


def _bundle_info(text: str) -> BundleInfo:
    digest, verdict, seconds, manifest = text.split(" ")
    words: dict[str, str | None] = {"name": None, "profile": None}
    for line in decoded(manifest).splitlines():
        # Two lines of a manifest, each `"name": "value",`.
        content = _parsed(f"{{{line.strip().rstrip(',')}}}".encode()) or {}
        words |= {
            name: printable_name(value) for name, value in content.items() if name in words and isinstance(value, str)
        }
    arrived = datetime.fromtimestamp(int(seconds), timezone.utc).isoformat(timespec="seconds")
    return BundleInfo(digest=digest, arrived_utc=arrived, trial=_VERDICTS[verdict], **words)


def _machine(files: Mapping[str, str], *, where: str) -> Device:
    """The same detection as on the device itself, over copies of the files that it reads."""
    with temporary_folder("device") as name:
        for path, text in files.items():
            content = _bytes(text)
            if path not in _MACHINE_FILES or content is None or len(content) > _MAX_MACHINE_FILE_BYTES:
                raise invalid(f"file {path}", request="hello", where=where)
            copy = Path(name, path)
            copy.parent.mkdir(parents=True, exist_ok=True)
            # Its texts are shown; the files of the device tree separate theirs by NUL.
            texts = printable_lines(content.replace(b"\0", b"\n")).replace("\n", "\0")
            copy.write_text(texts if path.startswith("proc/device-tree") else texts.replace("\0", "\n"))
        try:
            return device.identify(Path(name))
        except ValueError as exc:
            raise DeviceError(
                f"its description of itself cannot be read: {printable_name(str(exc))}", where=where
            ) from exc


def _by_word(frames: list[MessageFrame]) -> dict[str, str]:
    return {frame.word: frame.text for frame in frames}


def _situation(found: Mapping[str, str]) -> dict[str, Any]:
    """Fields that another ship may change."""
    blocks, _, size = found.get("free", "").partition(" ")
    return {
        "free_bytes": int(blocks) * int(size) if blocks else None,
        "current": found.get("current"),
        "previous": found.get("previous"),
        "verdict": _VERDICTS.get(found.get("verdict", "")),
    }


def _json_object(text: str) -> dict[str, Any] | None:
    found = _parsed(_bytes(text) or b"")
    return None if found is None else _printable(found)


def _printable(value: Any) -> Any:  # noqa: ANN401 - JSON
    """Replace what a terminal obeys in all texts of a JSON value."""
    if isinstance(value, str):
        return printable_lines(value.encode(errors="replace"))
    if isinstance(value, list):
        return [_printable(item) for item in value]
    if isinstance(value, dict):
        return {_printable(name): _printable(item) for name, item in value.items()}
    return value


def _parsed(data: bytes) -> dict[str, Any] | None:
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _bytes(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None


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

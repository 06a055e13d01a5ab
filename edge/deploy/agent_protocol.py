"""Parse the answers of the device-side script into typed values; :mod:`.transport.frames` defines the line format.

Every value is checked again for its meaning: a file that was not requested, a bundle that does not exist, a report of
another trial. The only exception raised is :class:`~edge.errors.EdgeError` with one sentence.
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
# Files that `edge doctor` reads to identify the device; nothing else is read from a device.
_MACHINE_FILES = frozenset(
    {"proc/device-tree/compatible", "proc/device-tree/model", "etc/nv_tegra_release", "proc/sys/kernel/arch"}
)
_MAX_MACHINE_FILE_BYTES = 64 << 10


class DeviceState(msgspec.Struct, frozen=True, kw_only=True):
    """State of a device before anything is changed.

    ``root`` is the absolute folder of its bundles, and ``has_root`` is true if anything was ever shipped there.
    ``free_bytes`` is None if the file system does not report it. ``current`` and ``previous`` are digests of bundles,
    ``verdict`` is that of the trial of ``current``. ``edge`` is the installed program; ``foreign_edge`` is another
    program with that name. ``skew_s`` is the device's clock minus this machine's.
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
    """A file to send, and the number of its bytes that the device already has."""

    sha256: str
    have: int


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """Result of a trial: the verdict, the reason unless it is "passed", and the report of ``edge canary``."""

    verdict: Verdict
    reason: str | None = None
    report: dict[str, Any] | None = None


class BundleInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One bundle on a device. ``trial`` is its verdict; ``name`` is None if its manifest cannot be read."""

    digest: str
    name: str | None
    profile: str | None
    arrived_utc: str
    trial: Verdict


class HistoryEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the device's history; a missing or invalid field is empty."""

    at: str
    by: str
    action: str
    bundle: str
    name: str


def hello(session: DeviceSession, place: DeviceAddress) -> DeviceState:
    """Read the device's greeting: its state, tools and edge.

    Raises:
        DeviceError: a tool is missing on the device, or the answer is invalid.
    """
    before = time.time()
    system = "" if place.is_own else place.system_root
    frames = session.ask("hello", root_of(place), place.edge or "", system, "yes" if place.is_own else "")
    return read_hello(frames, now_s=(before + time.time()) / 2, where=place.name)


def read_hello(frames: list[MessageFrame], *, now_s: float, where: str) -> DeviceState:
    """Read the answer to ``hello``.

    Raises:
        DeviceError: the answer is invalid.
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
    """Take the device's lock, and return the state after that: another process may have shipped in the meantime.

    Raises:
        StoreError: the folder cannot be written, or another ship holds the lock.
    """
    frames = session.ask("begin", str(lock_wait_s), f"{_me()} since {_now()}", limit_s=lock_wait_s + 60)
    return msgspec.structs.replace(state, **_situation(_by_word(frames)))


def look(session: DeviceSession, state: DeviceState) -> DeviceState:
    """Ask which bundle is in use now; return the updated state."""
    return msgspec.structs.replace(state, **_situation(_by_word(session.ask("look"))))


def needs(session: DeviceSession, sizes: Mapping[str, int]) -> list[Need]:
    """Return the files (sizes by digest) that the device lacks, in the given order.

    Raises:
        DeviceError: the device names a file that was not requested, or one twice.
    """
    return read_needs(session.ask("want", *sizes, ""), sizes, where=session.where)


def read_needs(frames: list[MessageFrame], sizes: Iterable[str], *, where: str) -> list[Need]:
    """Read the answer to ``want``.

    Raises:
        DeviceError: it names a file that was not requested, or one twice.
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
        DeviceError: the device reports a verdict without a report of this trial that confirms it.
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
            raise invalid(f"{verdict} without a report", request="trial", where=where)
    if verdict == "passed":
        return Trial(verdict=verdict, report=report)
    if verdict == "failed":
        return Trial(verdict=verdict, reason=reasons or "the report names no exceeded limit", report=report)
    return Trial(verdict=verdict, reason=_why_untried(found, log), report=report)


def _why_untried(found: Mapping[str, str], log: str) -> str:
    if "foreign" in found:
        return f"{found['foreign']} on the device is another program of that name"
    code = int(found.get("code", "0"))
    how = (
        f"was ended by signal {code - 128}"
        if code > 128
        else f"ended with exit code {code} without a report of this trial"
    )
    if code in {126, 127}:
        how = "cannot be started"
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
    """Check that the files fit on the device's disk.

    Raises:
        StoreError: there is less free space than the files need plus 16 MiB.
    """
    if state.free_bytes is not None and missing_bytes and state.free_bytes < missing_bytes + (16 << 20):
        raise StoreError(
            f"{missing_bytes / 1e6:.1f} MB to send, but only {state.free_bytes / 1e6:.1f} MB are free in {state.root}",
            where=place.name, hint="edge ship gc TARGET, or free some space there; nothing was sent",
        )  # fmt: skip


def history_line(action: str, *, digest: str | None, name: str | None, trial: Verdict | None = None) -> str:
    """Return one line of ``history.jsonl`` on the device; the time is this machine's.

    The script searches for ``"trial"``: a line without it is from a version of edge without verdicts.
    """
    return json.dumps({"at": _now(), "by": _me(), "action": action, "bundle": digest, "name": name, "trial": trial})


def decoded(text: str) -> str:
    """Decode base64 text from the device into printable form; empty if it is invalid."""
    return printable_lines(_bytes(text) or b"")


def last_words(log: str) -> str:
    """Return the last line of a program's messages that mentions an error, or else the last line."""
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
    """Identify the machine from copies of its files, with the same code as on the device itself."""
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
                f"the device's description of itself cannot be read: {printable_name(str(exc))}", where=where
            ) from exc


def _by_word(frames: list[MessageFrame]) -> dict[str, str]:
    return {frame.word: frame.text for frame in frames}


def _situation(found: Mapping[str, str]) -> dict[str, Any]:
    """Parse the fields that another shipment may change."""
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

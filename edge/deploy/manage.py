"""Look at a device, take it back to the bundle before, and clear up."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any, Literal

import msgspec

from edge.deploy import agent_protocol
from edge.deploy.bundle import printable_name, signature
from edge.deploy.transport import DeviceAddress, DeviceSession, MessageFrame, connect, without_cancel
from edge.errors import ArtifactError
from edge.system import Device

Trial = Literal["passed", "failed", "untried"]
_TRIALS: dict[str, Trial] = {"passed": "passed", "failed": "failed", "untried": "untried"}


class BundleInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One bundle on a device. ``trial`` is what the canary said; ``name`` None where its manifest cannot be read."""

    digest: str
    name: str | None
    profile: str | None
    arrived_utc: str
    trial: Trial


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """What is on a device. ``is_whole`` None: the content of ``current`` was not read."""

    target: str
    root: str
    current: str | None
    previous: str | None
    is_whole: bool | None
    bundles: list[BundleInfo]
    history: list[dict[str, Any]]
    edge: str | None
    edge_version: str | None
    free_bytes: int | None
    machine: Device
    warnings: list[str]


class ManageStep(msgspec.Struct, frozen=True, kw_only=True):
    """What going back or clearing up did on one device."""

    target: str
    work: Literal["rolled back", "cleared"]
    current: str | None
    removed: list[str] = []
    freed_bytes: int = 0


def status(
    place: DeviceAddress, *, verify: bool = False, hold: Callable[[DeviceSession], None] = without_cancel
) -> Status:
    """What is on a device; with ``verify``, the bundle in use is read and compared with its digests.

    ``hold`` gets the conversation, so that it can be ended from outside; likewise below.

    Raises:
        DeviceError: it cannot be reached.
    """
    with connect(place) as session:
        hold(session)
        state = agent_protocol.hello(session, place)
        frames = session.ask("status")
        is_whole = None
        if verify and state.current is not None:
            is_whole = session.ask("verify", state.current, silence_s=600)[0].word == "whole"
    said = {frame.word: frame.text for frame in frames if frame.word != "bundle"}
    bundles = [_kept(frame) for frame in frames if frame.word == "bundle"]
    return Status(
        target=place.name, root=state.root, current=state.current, previous=state.previous, is_whole=is_whole,
        bundles=sorted(bundles, key=lambda kept: (kept.digest == state.current, kept.arrived_utc), reverse=True),
        history=_history(agent_protocol.decoded(said.get("history", ""))),
        edge=state.edge, edge_version=said.get("version"), free_bytes=state.free_bytes, machine=state.machine,
        warnings=state.warnings,
    )  # fmt: skip


def rollback(
    place: DeviceAddress, *, lock_wait_s: int = 30, hold: Callable[[DeviceSession], None] = without_cancel
) -> ManageStep:
    """Make the previous bundle the current one, after reading all of it; what was current becomes the previous one.

    Raises:
        UsageError: there is nothing to go back to.
        ArtifactError: the previous bundle is damaged, or the device does not accept its signature (any more).
        DeviceError, StoreError: the device cannot be reached, or is locked.
    """
    with connect(place) as session:
        hold(session)
        state = agent_protocol.hello(session, place)
        if state.current is None and state.previous is None:
            raise ArtifactError("there is no bundle on this device", where=place.name, hint="edge ship TARGET")
        state = agent_protocol.begin(session, state, lock_wait_s=lock_wait_s)
        line = agent_protocol.history_line("rollback", digest=state.previous, name=None)
        frames = session.ask("rollback", line, signature.check_script(), silence_s=600)
        return ManageStep(target=place.name, work="rolled back", current=frames[-1].text.removeprefix("bundles/"))


def clear(
    place: DeviceAddress,
    *,
    keep: int = 0,
    lock_wait_s: int = 30,
    hold: Callable[[DeviceSession], None] = without_cancel,
) -> ManageStep:
    """Remove bundles other than current, previous and the ``keep`` newest, and every file that none of them holds.

    Raises:
        DeviceError, StoreError: the device cannot be reached, or is locked.
    """
    with connect(place) as session:
        hold(session)
        state = agent_protocol.hello(session, place)
        if not state.has_root:
            return ManageStep(target=place.name, work="cleared", current=None)
        state = agent_protocol.begin(session, state, lock_wait_s=lock_wait_s)
        frames = session.ask("gc", str(keep), silence_s=600)
    return ManageStep(
        target=place.name, work="cleared", current=state.current,
        removed=[frame.text for frame in frames if frame.word == "removed"],
        freed_bytes=sum(int(frame.text) for frame in frames if frame.word == "freed"),
    )  # fmt: skip


def _kept(frame: MessageFrame) -> BundleInfo:
    digest, trial, seconds, *rest = frame.text.split(" ")
    try:
        about = json.loads(agent_protocol.decoded(rest[0]) if rest else "")
    except ValueError:
        about = {}
    about = about if isinstance(about, dict) else {}
    arrived = datetime.fromtimestamp(int(seconds), timezone.utc).isoformat(timespec="seconds")
    name, profile = (printable_name(str(about[key])) if about.get(key) else None for key in ("name", "profile"))
    return BundleInfo(digest=digest, name=name, profile=profile, arrived_utc=arrived, trial=_TRIALS[trial])


def _history(text: str) -> list[dict[str, Any]]:
    """The lines that are whole: a power cut may have torn one."""
    lines = []
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            lines.append(
                {key: printable_name(value) if isinstance(value, str) else value for key, value in entry.items()}
            )
    return lines

"""Read the state of one device, go back to an earlier bundle, and clear old bundles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from edge.deploy import agent_protocol
from edge.deploy.agent_protocol import BundleInfo, HistoryEntry
from edge.deploy.bundle import signature
from edge.deploy.transport import DeviceAddress, DeviceSession, connect, without_cancel
from edge.errors import ArtifactError, DeviceError
from edge.system import Device


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """State of a device. ``is_whole`` is None if the content of ``current`` was not verified."""

    target: str
    root: str
    current: str | None
    previous: str | None
    is_whole: bool | None
    bundles: list[BundleInfo]
    history: list[HistoryEntry]
    edge: str | None
    edge_version: str | None
    free_bytes: int | None
    machine: Device
    warnings: list[str]


class ManageStep(msgspec.Struct, frozen=True, kw_only=True):
    """Result of a rollback or of a garbage collection on one device."""

    target: str
    work: Literal["rolled back", "cleared"]
    current: str | None
    removed: list[str] = []
    freed_bytes: int = 0


def status(
    place: DeviceAddress, *, verify: bool = False, hold: Callable[[DeviceSession], None] = without_cancel
) -> Status:
    """Read the state of a device; with ``verify``, also check the bundle in use against its digests.

    ``hold`` is called with the session, so that it can be ended from outside; the same applies below.

    Raises:
        DeviceError: it cannot be reached; a folder is not there.
    """
    check_folder(place)
    with connect(place, hold=hold) as session:
        state = agent_protocol.hello(session, place)
        frames = session.ask("status")
        is_whole = None
        if verify and state.current is not None:
            is_whole = any(f.word == "whole" for f in session.ask("verify", state.current, limit_s=600))
    bundles = agent_protocol.read_bundles(frames)
    return Status(
        target=place.name, root=state.root, current=state.current, previous=state.previous, is_whole=is_whole,
        bundles=sorted(bundles, key=lambda info: (info.digest == state.current, info.arrived_utc), reverse=True),
        history=agent_protocol.read_history(frames), edge=state.edge,
        edge_version=next((frame.text for frame in frames if frame.word == "version"), None),
        free_bytes=state.free_bytes, machine=state.machine, warnings=state.warnings,
    )  # fmt: skip


def check_folder(place: DeviceAddress) -> None:
    """Refuse a missing folder: an unmounted stick is not an empty device.

    Raises:
        DeviceError: there is no such folder.
    """
    if place.folder is not None and not place.folder.is_dir():
        raise DeviceError(
            "there is no such folder",
            where=place.name,
            hint="is the stick or share mounted? edge ship creates a missing folder",
        )


def rollback(
    place: DeviceAddress, *, lock_wait_s: int = 30, hold: Callable[[DeviceSession], None] = without_cancel
) -> ManageStep:
    """Switch to the last other bundle that passed its trial, after verifying it.

    Raises:
        UsageError: there is none.
        ArtifactError: it is damaged, or the device does not accept its signature (any more).
        DeviceError, StoreError: the device cannot be reached, or is locked.
    """
    check_folder(place)
    with connect(place, hold=hold) as session:
        state = agent_protocol.hello(session, place)
        if state.current is None and state.previous is None:
            raise ArtifactError("there is no bundle on this device", where=place.name, hint="edge ship TARGET")
        state = agent_protocol.begin(session, state, lock_wait_s=lock_wait_s)
        line = agent_protocol.history_line("rollback", digest=None, name=None)
        frames = session.ask("rollback", line, signature.check_script(), limit_s=600)
        back = next((frame.text for frame in frames if frame.word == "back"), None)
        after = agent_protocol.look(session, state)
    if back is None or after.current != back:
        raise DeviceError("the device does not report the bundle that it rolled back to", where=place.name)
    return ManageStep(target=place.name, work="rolled back", current=back)


def clear(
    place: DeviceAddress,
    *,
    keep: int = 0,
    lock_wait_s: int = 30,
    hold: Callable[[DeviceSession], None] = without_cancel,
) -> ManageStep:
    """Remove bundles other than current, previous and the ``keep`` newest, and every file that none of them needs.

    Raises:
        DeviceError, StoreError: the device cannot be reached, or is locked; a folder is not there.
    """
    check_folder(place)
    with connect(place, hold=hold) as session:
        state = agent_protocol.hello(session, place)
        if not state.has_root:
            return ManageStep(target=place.name, work="cleared", current=None)
        state = agent_protocol.begin(session, state, lock_wait_s=lock_wait_s)
        frames = session.ask("gc", str(keep), limit_s=600)
    return ManageStep(
        target=place.name, work="cleared", current=state.current,
        removed=[frame.text for frame in frames if frame.word == "removed"],
        freed_bytes=sum(int(frame.text) for frame in frames if frame.word == "freed"),
    )  # fmt: skip

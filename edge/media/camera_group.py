"""Combine several cameras into one stream: the newest frame of each, in turns, so that none is starved.

One thread per camera requests and decodes its frames. A stalled camera never blocks the others: its outages are
reported under its name, and when it is given up the others continue.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from edge.errors import DataError, DeviceError, EdgeError
from edge.media.streams import Clock, Frame, OpenedSource, Outage, Stream

# No wait is longer than this, so that a stop is noticed in time.
_LOOK_S = 0.1
_RELEASE_S = 4.0


class _Member:
    """One camera: its stream, its newest unread frame, and how it ended."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.stream: Stream | None = None
        self.newest: Frame | None = None
        self.replaced = 0
        self.error: BaseException | None = None
        self.has_ended = False
        self.thread: threading.Thread | None = None

    @property
    def dropped(self) -> int:
        """Number of frames replaced by newer ones, here and in the stream."""
        return self.replaced + ((self.stream.dropped or 0) if self.stream is not None else 0)


class CameraGroup:
    """Frames of several cameras, each under the name of its camera.

    Args:
        cameras: functions that open each camera's stream, by camera name. They are called concurrently.
            wait: start even if no camera delivers frames yet. Without it, one working camera is enough; the others are
                retried during the run.

    Raises:
        EdgeError: no camera delivers frames (the error of the first), or the settings of one are invalid.
    """

    def __init__(
        self, cameras: Mapping[str, Callable[[], Stream]], *, wait: bool = False, clock: Clock = time.monotonic
    ) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._members = {name: _Member(name) for name in cameras}
        self._order = deque(self._members.values())
        self._outages: deque[Outage] = deque()
        self._own_notes: list[str] = []
        self._closed = False
        self._failure: BaseException | None = None
        self._open(cameras, wait=wait)
        self.opened = self._describe()
        for member in self._members.values():
            member.thread = threading.Thread(
                target=self._pull, args=(member,), name=f"camera {member.name}", daemon=True
            )
            member.thread.start()

    @property
    def dropped(self) -> int:
        """Number of frames of all cameras that were replaced by newer ones before they were read."""
        return sum(member.dropped for member in self._members.values())

    @property
    def cameras(self) -> dict[str, Callable[[], int | None]]:
        """Functions that return the number of dropped frames, by camera name."""
        return {name: lambda member=member: member.dropped for name, member in self._members.items()}  # type: ignore[misc]

    @property
    def notes(self) -> list[str]:
        """The notes of each camera, with its name."""
        found = [
            f"{member.name}: {note}"
            for member in self._members.values()
            if member.stream is not None
            for note in member.stream.notes
        ]
        return [*found, *self._own_notes]

    def next(self) -> Frame | Outage | None:
        """Return the newest frame of the next camera in turn, or an outage; wait for one. None at the end.

        Raises:
            EdgeError: every camera has ended; this is the error of the last one.
        """
        with self._changed:
            while not self._closed:
                found = self._ready()
                if found is not None:
                    return found
                if all(member.has_ended for member in self._members.values()):
                    if self._failure is not None:
                        raise self._failure
                    return None
                self._changed.wait(_LOOK_S)
            return None

    def next_within(self, wait_s: float) -> Frame | Outage | None:
        """Work like :meth:`next`, but return None if nothing arrives within ``wait_s`` seconds."""
        end_s = self._clock() + wait_s
        with self._changed:
            while not self._closed:
                found = self._ready()
                left_s = end_s - self._clock()
                if found is not None or left_s <= 0 or all(member.has_ended for member in self._members.values()):
                    return found
                self._changed.wait(min(left_s, _LOOK_S))
            return None

    def close(self) -> None:
        """Release every camera; do not wait for a call that never returns."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
        _in_parallel(
            [member.stream.close for member in self._members.values() if member.stream is not None], _RELEASE_S
        )

    # in the thread that asks for frames, holding the lock

    def _ready(self) -> Frame | Outage | None:
        if self._outages:
            return self._outages.popleft()
        for member in self._order:
            if member.newest is not None:
                frame, member.newest = member.newest, None
                # The other cameras come first now.
                self._order.remove(member)
                self._order.append(member)
                return frame
        return None

    # as it begins

    def _open(self, cameras: Mapping[str, Callable[[], Stream]], *, wait: bool) -> None:
        def opening(name: str, opens: Callable[[], Stream]) -> Callable[[], None]:
            def work() -> None:
                member = self._members[name]
                try:
                    member.stream = opens()
                except BaseException as exc:  # noqa: BLE001 - raised below, in the caller's thread
                    member.error = exc

            return work

        _in_parallel([opening(name, opens) for name, opens in cameras.items()], None)
        members = list(self._members.values())
        failed = next((member.error for member in members if member.error is not None), None)
        absent = [getattr(member.stream, "first_error", None) for member in members]
        if failed is None and not wait and all(error is not None for error in absent):
            failed = absent[0]
        if failed is not None:
            self.close()
            raise failed

    def _describe(self) -> OpenedSource:
        each = {name: member.stream.opened for name, member in self._members.items() if member.stream is not None}
        first = next((opened for opened in each.values() if opened.width is not None), None)
        replayed = [opened.replayed for opened in each.values() if opened.replayed is not None]
        return OpenedSource(
            kind="cameras",
            opened_as=", ".join(f"{name}={opened.opened_as}" for name, opened in each.items()),
            live=True,
            width=None if first is None else first.width,
            height=None if first is None else first.height,
            replayed=", ".join(replayed) or None,
            cameras=each,
        )

    # in the thread of each camera

    def _pull(self, member: _Member) -> None:
        stream = member.stream
        assert stream is not None  # noqa: S101 - for mypy: every stream is open when the threads start
        try:
            while not self._closed and (item := stream.next()) is not None:
                named = _named(item, member.name)
                with self._changed:
                    if isinstance(named, Outage):
                        self._outages.append(named)
                    else:
                        member.replaced += member.newest is not None
                        member.newest = named
                    self._changed.notify_all()
        except BaseException as exc:  # noqa: BLE001 - raised when no camera is left
            self._give_up(member, exc)
        finally:
            with self._changed:
                member.has_ended = True
                self._changed.notify_all()

    def _give_up(self, member: _Member, exc: BaseException) -> None:
        with self._changed:
            self._failure = exc
            if isinstance(exc, EdgeError):
                self._own_notes.append(f"{member.name}: given up: {exc.what}")
                return
            # A bug in edge ends the run.
            for other in self._members.values():
                other.has_ended = True


def _named(item: Frame | Outage, camera: str) -> Frame | Outage:
    """Return the frame with its pixels loaded, or the outage, with the camera's name."""
    if isinstance(item, Outage):
        return dataclasses.replace(item, camera=camera)
    start_s = time.monotonic()
    try:
        pixels = item.load()
    except DataError as exc:
        error = exc

        def fails() -> Any:  # noqa: ANN401 - it gives nothing
            raise error

        return dataclasses.replace(item, name=f"{camera}: {item.name}", camera=camera, load=fails)
    decoded_ms = item.decoded_ms + (time.monotonic() - start_s) * 1e3
    return dataclasses.replace(
        item, name=f"{camera}: {item.name}", camera=camera, load=lambda: pixels, decoded_ms=decoded_ms
    )


def _in_parallel(calls: list[Callable[[], None]], timeout_s: float | None) -> None:
    """Run the calls concurrently and wait for all of them, at most ``timeout_s`` seconds."""

    def quietly(call: Callable[[], None]) -> None:
        with contextlib.suppress(DeviceError):
            call()

    threads = [threading.Thread(target=quietly, args=(call,), daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    for thread in threads:
        thread.join(None if deadline is None else max(deadline - time.monotonic(), 0.0))

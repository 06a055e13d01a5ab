"""Several cameras as one stream: turns, batches, faults of one that are not faults of another."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edge.errors import DataError, DeviceError
from edge.media.camera_group import CameraGroup
from edge.media.streams import Frame, LimitedGroup, OpenedSource, Outage

PIXELS = np.zeros((4, 6, 3), np.uint8)


class Scripted:
    """A camera that gives what the test puts into it."""

    def __init__(self, name: str = "camera", *, first_error: DeviceError | None = None) -> None:
        self.opened = OpenedSource(kind="v4l2", opened_as=name, live=True, width=None if first_error else 6, height=4)
        self.first_error = first_error
        self.dropped = 0
        self.notes: list[str] = []
        self.closed = 0
        self._items: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def give(self, *items: Any) -> Scripted:
        for item in items:
            self._items.put(item)
        return self

    def next(self) -> Frame | Outage | None:
        item = self._items.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        self.closed += 1
        self._items.put(None)


def frame(seq: int, load: Callable[[], Any] = lambda: PIXELS) -> Frame:
    return Frame(seq, f"frame {seq}", f"camera: frame {seq}", time.monotonic(), load)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_frames_carry_the_name_of_their_camera_and_come_in_turns() -> None:
    front, gate = Scripted("/dev/video0"), Scripted("/dev/video1")
    group = CameraGroup({"front": lambda: front, "gate": lambda: gate})
    for seq in range(5):
        front.give(frame(seq))
        gate.give(frame(seq))
        until(lambda: all(member.newest is not None for member in group._members.values()))
        found = [group.next(), group.next()]
        assert {(one.camera, one.seq) for one in found if isinstance(one, Frame)} == {("front", seq), ("gate", seq)}
    assert (group.opened.kind, group.opened.opened_as) == ("cameras", "front=/dev/video0, gate=/dev/video1")
    assert set(group.opened.cameras) == {"front", "gate"}
    group.close()
    assert group.next() is None
    assert (front.closed, gate.closed) == (1, 1)


def test_a_fast_camera_does_not_starve_a_slow_one() -> None:
    fast, slow = Scripted(), Scripted()
    group = CameraGroup({"fast": lambda: fast, "slow": lambda: slow})
    fast.give(*(frame(seq) for seq in range(50)))
    slow.give(frame(0))
    until(lambda: group.dropped == 49 and group._members["slow"].newest is not None)
    found = {group.next().camera, group.next().camera}  # type: ignore[union-attr]
    assert found == {"fast", "slow"}
    assert {name: dropped() for name, dropped in group.cameras.items()} == {"fast": 49, "slow": 0}
    group.close()


def test_waiting_for_the_others_ends_in_time() -> None:
    group = CameraGroup({"a": Scripted, "b": Scripted})
    start = time.monotonic()
    assert group.next_within(0.02) is None
    assert 0.02 <= time.monotonic() - start < 30
    group.close()
    assert group.next_within(5.0) is None


def test_a_camera_that_is_given_up_leaves_the_others() -> None:
    dead, alive = Scripted(), Scripted()
    group = CameraGroup({"dead": lambda: dead, "alive": lambda: alive})
    outage = Outage(1.0, None, "unplugged")
    dead.give(outage, DeviceError("no frames for 5 s", where="/dev/video0"))
    found = group.next()
    assert isinstance(found, Outage)
    assert (found.camera, found.reason) == ("dead", "unplugged")
    until(lambda: bool(group.notes))
    assert group.notes == ["dead: given up: no frames for 5 s"]
    alive.give(frame(3))
    assert group.next().camera == "alive"  # type: ignore[union-attr]
    alive.give(DeviceError("unplugged too"))
    with pytest.raises(DeviceError, match="unplugged too"):
        group.next()
    group.close()


def test_one_camera_that_is_not_there_does_not_stop_the_other() -> None:
    absent = Scripted(first_error=DeviceError("there is no camera here", where="/dev/video9"))
    group = CameraGroup({"absent": lambda: absent, "front": Scripted})
    assert group.opened.width == 6
    group.close()


def test_no_camera_at_all_is_the_error_of_the_first() -> None:
    made = [Scripted(first_error=DeviceError(f"there is no camera {n}")) for n in range(2)]
    with pytest.raises(DeviceError, match="no camera 0"):
        CameraGroup({"a": lambda: made[0], "b": lambda: made[1]})
    assert [each.closed for each in made] == [1, 1]
    group = CameraGroup({"a": lambda: made[0], "b": lambda: made[1]}, wait=True)
    group.close()


def test_a_bug_in_one_camera_ends_the_run() -> None:
    broken = Scripted()
    group = CameraGroup({"broken": lambda: broken, "front": Scripted})
    broken.give(ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        group.next()
    group.close()


def test_a_damaged_frame_is_a_skip_of_its_camera() -> None:
    def fails() -> Any:
        raise DataError("the frame cannot be decoded")

    front = Scripted()
    group = CameraGroup({"front": lambda: front})
    front.give(frame(0, load=fails))
    found = group.next()
    assert isinstance(found, Frame)
    with pytest.raises(DataError, match="cannot be decoded"):
        found.load()
    group.close()


def test_a_limit_counts_the_frames_of_all_cameras() -> None:
    front, gate = Scripted(), Scripted()
    group = LimitedGroup(CameraGroup({"front": lambda: front, "gate": lambda: gate}), 2)
    front.give(frame(0))
    gate.give(frame(0))
    assert group.next() is not None
    assert group.next_within(5.0) is not None
    assert group.next() is None
    assert group.next_within(5.0) is None
    assert set(group.cameras) == {"front", "gate"}
    group.close()

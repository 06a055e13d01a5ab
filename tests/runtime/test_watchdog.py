from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.artifacts.run_record import Gap, Skip
from edge.errors import DeviceError
from edge.runtime.watchdog import Heartbeat, Notifier, watchdog_s

OPEN = Gap(start_s=1.0, end_s=None, reason="no frame for 5 s")
CLOSED = Gap(start_s=1.0, end_s=4.0, reason="no frame for 5 s", reopened_as="/dev/video1")
SKIP = Skip(0, "a.jpg", "broken")


class Supervisor:
    """What systemd is for these tests: a datagram socket that keeps what it is told."""

    def __init__(self, folder: Path) -> None:
        self.address = str(folder / "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self._socket.setblocking(False)

    def heard(self) -> list[dict[str, str]]:
        messages = []
        while True:
            try:
                text = self._socket.recv(4096).decode()
            except BlockingIOError:
                return messages
            messages.append(dict(line.split("=", 1) for line in text.splitlines()))

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    it = Supervisor(tmp_path)
    yield it
    it.close()


@pytest.fixture
def beat(supervisor: Supervisor) -> Iterator[Heartbeat]:
    """A heartbeat without its thread: the test looks."""
    notifier = Notifier(supervisor.address)
    yield Heartbeat(notifier, watchdog_s=30.0, state=lambda: "3 frames")
    notifier.close()


def test_ready_comes_with_the_first_picture_and_once(supervisor: Supervisor, beat: Heartbeat) -> None:
    assert beat.look() is False
    assert supervisor.heard() == []
    beat.on_event(SKIP)
    beat.on_event(SKIP)
    assert supervisor.heard() == [{"READY": "1", "STATUS": "3 frames"}]


def test_alive_only_while_pictures_come(supervisor: Supervisor, beat: Heartbeat) -> None:
    beat.on_event(SKIP)
    supervisor.heard()
    assert beat.look() is True
    assert supervisor.heard() == [{"STATUS": "3 frames", "WATCHDOG": "1"}]
    assert beat.look() is False
    [stuck] = supervisor.heard()
    assert "WATCHDOG" not in stuck
    assert stuck["STATUS"].startswith("stuck")
    beat.on_event(SKIP)
    assert beat.look() is True


def test_a_camera_that_is_being_reopened_is_alive(supervisor: Supervisor, beat: Heartbeat) -> None:
    beat.on_event(OPEN)
    assert [beat.look() for _ in range(5)] == [True] * 5
    beat.on_event(CLOSED)
    assert beat.look() is True
    # Reopened, and then nothing: that is a pipeline that hangs.
    assert beat.look() is False


def test_a_source_that_is_not_there_at_the_start_is_ready_too(supervisor: Supervisor, beat: Heartbeat) -> None:
    beat.on_event(OPEN)
    assert supervisor.heard()[0]["READY"] == "1"


def test_a_status_of_many_lines_cannot_say_more_than_a_status(supervisor: Supervisor) -> None:
    notifier = Notifier(supervisor.address)
    beat = Heartbeat(notifier, state=lambda: "label\nWATCHDOG=1\nMAINPID=1")
    beat.on_event(SKIP)
    assert supervisor.heard() == [{"READY": "1", "STATUS": "label WATCHDOG=1 MAINPID=1"}]
    notifier.close()


def test_the_thread_ends_with_stopping(supervisor: Supervisor) -> None:
    with Heartbeat(Notifier(supervisor.address), watchdog_s=1e-3) as beat:
        beat.on_event(SKIP)
    last = supervisor.heard()[-1]
    assert last["STOPPING"] == "1"


def test_without_a_supervisor_nothing_happens() -> None:
    assert Notifier.from_environment({}) is None
    with Heartbeat(None, watchdog_s=1e-3) as beat:
        beat.on_event(SKIP)
        assert beat.look() is False


def test_a_supervisor_that_is_gone_or_never_reads_does_not_hold_the_run(tmp_path: Path, supervisor: Supervisor) -> None:
    notifier = Notifier(str(tmp_path / "nobody"))
    assert notifier.send(READY="1") is False
    notifier.close()
    notifier = Notifier(supervisor.address)
    taken = [notifier.send(WATCHDOG="1") for _ in range(10_000)]
    assert taken[0] is True
    assert taken[-1] is False
    notifier.close()


def test_an_abstract_address() -> None:
    name = f"edge-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0{name}")
        notifier = Notifier.from_environment({"NOTIFY_SOCKET": f"@{name}"})
        assert notifier is not None
        assert notifier.send(READY="1") is True
        assert listener.recv(100) == b"READY=1"
        notifier.close()


@pytest.mark.parametrize("address", ["relative", "vsock:2:1234", "/" + "x" * 200])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(DeviceError, match="NOTIFY_SOCKET"):
        Notifier.from_environment({"NOTIFY_SOCKET": address})


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
    ],
)
def test_the_watchdog_s_time(environment: dict[str, str], expected: float | None) -> None:
    assert watchdog_s(environment) == expected

"""One job on many devices, without any device."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from edge.deploy.rollout import DeviceOutcome, DeviceTask, RolloutPlan, roll_out
from edge.errors import DeviceError
from edge.events import Progress


class Devices:
    """Tasks that note when they ran; those in ``broken`` fail."""

    def __init__(self, *broken: str) -> None:
        self.broken = set(broken)
        self.ran: list[str] = []
        self.most = 0
        self._now = 0
        self._guard = threading.Lock()

    def task(self, name: str) -> DeviceTask[str]:
        def work(listen: Callable[..., None], _hold: Callable[..., None]) -> str:
            with self._guard:
                self.ran.append(name)
                self._now += 1
                self.most = max(self.most, self._now)
            listen(Progress(name, 1, 2))
            with self._guard:
                self._now -= 1
            if name in self.broken:
                raise DeviceError("is off", where=name)
            return f"{name} done"

        return DeviceTask(name, work)


def names(count: int) -> list[str]:
    return [f"d{index}" for index in range(count)]


def test_every_device_in_the_order_given_and_no_failure_stops_another() -> None:
    devices = Devices("d3", "d7")
    ended = roll_out([devices.task(name) for name in names(20)], RolloutPlan(parallel=4))
    assert [one.name for one in ended] == names(20)
    assert [one.name for one in ended if one.error] == ["d3", "d7"]
    assert sum(one.result is not None for one in ended) == 18
    assert devices.most <= 4


def test_canary_hosts_go_first() -> None:
    devices = Devices()
    roll_out([devices.task(name) for name in names(10)], RolloutPlan(parallel=3, first=frozenset({"d8", "d9"})))
    assert set(devices.ran[:2]) == {"d8", "d9"}
    assert len(devices.ran) == 10


def test_a_failed_canary_host_keeps_the_others_as_they_are() -> None:
    devices = Devices("d9")
    ended = roll_out([devices.task(name) for name in names(10)], RolloutPlan(first=frozenset({"d9"})))
    assert devices.ran == ["d9"]
    assert {one.reason for one in ended if one.name != "d9"} == {"not begun: a canary host failed"}


def test_a_bad_result_counts_as_failed() -> None:
    devices = Devices()
    ended = roll_out(
        [devices.task(name) for name in names(3)], RolloutPlan(first=frozenset({"d0"})), is_bad=lambda r: r == "d0 done"
    )
    assert devices.ran == ["d0"]
    assert ended[0].result == "d0 done"


def test_after_so_many_failures_no_other_is_begun() -> None:
    devices = Devices(*names(20))
    ended = roll_out([devices.task(name) for name in names(20)], RolloutPlan(parallel=1, stop_after=3))
    assert devices.ran == ["d0", "d1", "d2"]
    assert {one.reason for one in ended[3:]} == {"not begun: 3 hosts failed"}


def test_stopped_by_the_user_conversations_are_ended() -> None:
    begun, ended_line = threading.Event(), threading.Event()

    class Line:
        idle_s = 0.0

        def kill(self) -> None:
            ended_line.set()

    def work(_listen: Callable[..., None], hold: Callable[..., None]) -> str:
        hold(Line())
        begun.set()
        assert ended_line.wait(timeout=60)
        raise DeviceError("the connection ended")

    seen: list[DeviceOutcome[str]] = []
    ended = roll_out(
        [DeviceTask("a", work), Devices().task("b")], RolloutPlan(parallel=1), should_stop=begun.is_set,
        watch=lambda _name, _what, one: seen.append(one) if one else None,
    )  # fmt: skip
    assert [(one.result, one.error, one.reason) for one in ended] == [(None, None, "stopped by the user")] * 2
    assert {one.name for one in seen} == {"a", "b"}


def test_a_line_that_the_users_signal_ended_first_is_no_failure() -> None:
    """A terminal gives Ctrl-C to ssh as well, which may be gone before anybody here has looked."""
    asked: list[bool] = []

    def work(_listen: Callable[..., None], _hold: Callable[..., None]) -> str:
        asked.append(True)
        raise DeviceError("the connection ended")

    (ended,) = roll_out([DeviceTask("a", work)], RolloutPlan(), should_stop=lambda: bool(asked))
    assert (ended.error, ended.reason) == (None, "stopped by the user")


def test_a_bug_is_not_a_failed_device() -> None:
    def work(_listen: Callable[..., None], _hold: Callable[..., None]) -> str:
        raise KeyError("bug")

    with pytest.raises(KeyError):
        roll_out([DeviceTask("a", work)], RolloutPlan())

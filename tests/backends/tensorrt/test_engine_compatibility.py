"""Whether an engine may run here: its key, and TensorRT's warnings about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edge.backends.interface import BackendMessage
from edge.backends.tensorrt.engine_compatibility import check_key, refusal
from edge.backends.tensorrt.log_watch import LogLine, MessageLog
from edge.errors import ArtifactError

ENGINE = Path("an.plan")
KEY: dict[str, Any] = {
    "tensorrt": "10.3.0", "module": "p3767-0003", "multiprocessors": 8, "power_mode": "MAXN", "clocks_locked": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"multiprocessors": 4}, "multiprocessors: 8 -> 4"),
        ({"multiprocessors": 4, "power_mode": "7W"}, "multiprocessors: 8 -> 4"),
        ({"tensorrt": "10.7.0"}, "tensorrt: 10.3.0 -> 10.7.0"),
    ],
)
def test_another_device_is_refused_by_name(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ArtifactError, match=words) as caught:
        check_key(KEY, KEY | changes, ENGINE)
    assert "edge build" in (caught.value.hint or "")
    assert ("nvpmodel" in (caught.value.hint or "")) == ("multiprocessors" in changes)


def test_another_setting_is_a_warning_with_the_command_that_helps() -> None:
    mode, clocks = check_key(KEY, KEY | {"power_mode": "15W", "clocks_locked": True}, ENGINE)
    assert mode.text == "the engine was built in power mode MAXN, but the device is in 15W"
    assert "edge build" in (mode.hint or "")
    assert "sudo nvpmodel -m" in (mode.hint or "")
    assert clocks.text == "the engine was built with clocks not locked, but now they are locked"
    assert "jetson_clocks" in (clocks.hint or "")


@pytest.mark.parametrize("key", [{}, {"tensorrt": "10.3.0"}, KEY | {"multiprocessors": None, "power_mode": None}])
def test_what_is_not_known_of_an_engine_refuses_nothing(key: dict[str, Any]) -> None:
    assert check_key(key, KEY, ENGINE) == []


@pytest.mark.parametrize("name", ["multiprocessors", "power_mode", "clocks_locked"])
def test_what_this_machine_does_not_tell_refuses_nothing(name: str) -> None:
    assert check_key(KEY, KEY | {name: None}, ENGINE) == []


def test_memory_comes_before_the_version_in_the_same_line() -> None:
    line = LogLine("ERROR", "Error Code 2: OutOfMemory (not compatible with this version)")
    found = refusal("TensorRT cannot load the engine", [line], where=ENGINE, plan=b"ftrt" + bytes(20))
    assert found.what == "TensorRT cannot load the engine: out of GPU memory"


def test_a_message_is_kept_once_and_counted() -> None:
    log, received = MessageLog(), []
    log.listen(received.append)
    text = "The current device only supports 4 multiprocessors but the engine file requires 8. Deadlocking is likely."
    for _ in range(3000):
        log.add(LogLine("WARNING", text))
    log.add(LogLine("ERROR", "something else"))
    first, second = log.messages()
    assert (first.severity, first.count, second.severity, second.count) == ("warning", 3000, "error", 1)
    assert "edge build" in (first.hint or "")
    assert str(first).startswith(f"TensorRT: {text} (3000 times); ")
    assert [item.count for item in received] == [1, 1]


def test_a_log_that_never_repeats_itself_is_bounded() -> None:
    log = MessageLog()
    for number in range(5000):
        log.add(LogLine("WARNING", f"warning number {number}"))
    log.add(LogLine("WARNING", "warning number 0"))
    assert len(log.messages()) == 51
    assert log.messages()[-1] == BackendMessage(severity="warning", text="further messages of TensorRT", count=4950)
    assert log.messages()[0].count == 2
    assert sum(item.count for item in log.messages()) == 5001


def test_a_message_keeps_the_hint_that_it_came_with() -> None:
    log = MessageLog()
    log.record(BackendMessage(severity="warning", text="the engine is old", hint="edge build"))
    assert [item.hint for item in log.messages()] == ["edge build"]

"""A device is not trusted: whatever it answers, it alone fails, with one sentence."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.deploy import agent_protocol
from edge.deploy.bundle.reader import Bundle
from edge.deploy.push import ship
from edge.deploy.rollout import DeviceTask, RolloutPlan, possible_conversations, roll_out
from edge.deploy.transport.address import DeviceAddress
from edge.deploy.transport.frames import FORMS, Answer, FrameReader, MessageFrame, printable_lines
from edge.errors import DeviceError, EdgeError
from tests.support.devices import QUICK
from tests.support.lying_ssh import ENDLESS, LIES, write_lying_ssh

Make = Callable[..., Bundle]


@pytest.mark.parametrize("lie", [*LIES, *ENDLESS])
def test_a_lie_is_one_sentence(bundle: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lie: str) -> None:
    write_lying_ssh(tmp_path / "bin", lie)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    start = time.monotonic()
    with pytest.raises(EdgeError) as caught:
        ship(bundle(), DeviceAddress(name="dev", host="dev"), settings=QUICK)
    assert len(str(caught.value)) < 600
    assert caught.value.what.isprintable()
    assert caught.value.where == "dev"
    # What has no end is given up by its size, not by the clock.
    assert time.monotonic() - start < 30
    assert not list(tmp_path.rglob("pwned"))


EVIL = "\u009b31m\u202e\u001b]0;x"


def test_no_text_of_a_device_is_obeyed_by_a_terminal() -> None:
    """Neither those of its report, which JSON does not escape, nor those of its description of itself."""
    digest = "d" * 64
    report = {
        "program": "edge canary",
        "bundle": digest,
        "nonce": "0",
        "passed": False,
        "failed": [EVIL],
        EVIL: {"a": EVIL},
    }
    frames = [
        MessageFrame("result", "failed"), MessageFrame("report", base64.b64encode(json.dumps(report).encode()).decode())
    ]  # fmt: skip
    found = agent_protocol.read_trial(frames, digest=digest, nonce="0", where="dev")
    model = base64.b64encode(f"NVIDIA {EVIL} Orin".encode()).decode()
    hello = [
        MessageFrame("root", "/x"),
        MessageFrame("clock", "1"),
        MessageFrame("file", f"proc/device-tree/model {model}"),
    ]
    state = agent_protocol.read_hello(hello, now_s=0.0, where="dev")
    shown = msgspec.json.encode([found, state]).decode()
    assert shown.isprintable()
    assert "NVIDIA" in shown


NONCE = b"0123"
WORDS = sorted({word for forms in FORMS.values() for word in forms} | {"done", "fail", "data", "zzz"})
BITS = st.sampled_from(
    ["", " ", "/", "d" * 64, "-1", "0", "9" * 20, "passed", "yes", "eA==", "[[[", "\u001b[31m", "٣", "²", "../..", "\\"]
)
TEXTS = st.lists(BITS | st.text(max_size=20), max_size=4).map(" ".join)
FRAMES = st.lists(st.builds(MessageFrame, st.sampled_from(WORDS) | st.text(max_size=5), TEXTS), max_size=8)


def read_everything(request: str, frames: list[MessageFrame]) -> None:
    """Give an answer to the parser as a session does, and to whoever reads it."""
    answer = Answer(request, where="dev")
    for frame in frames:
        answer.check(frame)
    if request == "hello":
        agent_protocol.read_hello(frames, now_s=0.0, where="dev")
    elif request == "want":
        agent_protocol.read_needs(frames, ["d" * 64], where="dev")
    elif request == "trial":
        agent_protocol.read_trial(frames, digest="d" * 64, nonce="0", where="dev")
    elif request == "status":
        agent_protocol.read_bundles(frames)
        agent_protocol.read_history(frames)


@given(request=st.sampled_from(sorted(FORMS)), frames=FRAMES)
@settings(max_examples=100)
def test_any_answer_is_read_or_refused(request: str, frames: list[MessageFrame]) -> None:
    with contextlib.suppress(EdgeError):
        read_everything(request, frames)


@given(
    pieces=st.lists(st.binary(max_size=60) | st.just(NONCE + b" data 3\n") | st.just(NONCE + b" done\n"), max_size=12)
)
@settings(max_examples=100)
def test_any_bytes_are_read_or_refused(pieces: list[bytes]) -> None:
    reader = FrameReader(NONCE, where="dev")
    reader.expects_data = True
    try:
        for piece in pieces:
            reader.feed(piece)
            if reader.data_bytes:
                reader.take()
    except DeviceError:
        return
    assert all(frame.word.isprintable() for frame in reader.frames)


def test_a_device_that_makes_no_progress_does_not_hold_the_next_one_up() -> None:
    class Stuck:
        idle_s = 100.0

        def __init__(self) -> None:
            self.ended = threading.Event()

        def kill(self) -> None:
            self.ended.set()

    stuck = [Stuck() for _ in range(5)]
    done = threading.Event()

    def hang(number: int) -> DeviceTask[str]:
        def work(_listen: object, hold: Callable[[object], None]) -> str:
            hold(stuck[number])
            assert done.wait(60)
            return "at last"

        return DeviceTask(f"stuck{number}", work)

    def good(number: int) -> DeviceTask[str]:
        def work(_listen: object, _hold: object) -> str:
            if number == 9:
                done.set()
            return "ok"

        return DeviceTask(f"good{number}", work)

    ended = roll_out([*map(hang, range(5)), *map(good, range(10))], RolloutPlan(parallel=1))
    assert [one.result for one in ended] == ["at last"] * 5 + ["ok"] * 10


def test_with_few_file_descriptors_fewer_are_at_work_and_none_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    monkeypatch.setattr(resource, "getrlimit", lambda _what: (100, 100))
    assert possible_conversations() == 3
    now, most, guard = 0, 0, threading.Lock()

    def work(_listen: object, _hold: object) -> str:
        nonlocal now, most
        with guard:
            now += 1
            most = max(most, now)
        time.sleep(0.005)
        with guard:
            now -= 1
        return "ok"

    ended = roll_out([DeviceTask(f"d{n}", work) for n in range(40)], RolloutPlan(parallel=40))
    assert ([one.result for one in ended], most <= 3) == (["ok"] * 40, True)
    assert (soft, hard) != (100, 100)


def test_line_ends_of_ssh_leave_nothing_in_a_sentence() -> None:
    assert (
        printable_lines(b"ssh: connect to host x\r\nport 22: refused\r") == "ssh: connect to host x\nport 22: refused\n"
    )

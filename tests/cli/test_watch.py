"""``edge run`` while somebody looks: a browser, Prometheus, a supervisor that starts it again."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.artifacts import run_record
from tests.support.network_camera import Server
from tests.support.processes import wait_until_idle

Edge = Callable[..., Any]
Place = Callable[..., Path]
COMMAND = ("run", "--profile", "tiny", "--images", "pictures")


def said(process: subprocess.Popen[str], words: str) -> str:
    """The line of standard error with these words, when it comes."""
    assert process.stderr is not None
    for line in process.stderr:
        if words in line:
            return line
    raise AssertionError(f"the command ended without saying {words!r}")


def get(port: int, path: str, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_a_run_is_seen_and_measured_while_it_goes(
    built: Place, start: Callable[..., Any], gate: Callable[..., Any]
) -> None:
    folder = built()
    held = gate(folder / "pictures" / "007.jpg")
    head = {"edge_telemetry": 1, "source": "hwmon", "scope": "module_input", "started_utc": "2026-01-01T00:00:00+00:00"}
    readings = [{"t_s": float(n), "power_mw": 5000.0} for n in range(3000)]
    (folder / "power.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [head, *readings]))
    process = start(
        *COMMAND, "--web", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--record", "r.json", "--power",
        "replay:power.jsonl",
    )  # fmt: skip
    port = int(re.findall(r"http://127\.0\.0\.1:(\d+)/", said(process, "web: "))[0])
    writer = held.wait(process)
    until = time.monotonic() + 60
    while json.loads(get(port, "/state")[1])["pictures"] < 4 and time.monotonic() < until:
        time.sleep(0.05)
    status, page = get(port, "/")
    assert status == 200
    assert b"edge run" in page
    status, text = get(port, "/metrics")
    assert status == 200
    assert b'edge_frames_total{outcome="labelled"}' in text
    assert b'edge_power_watts{scope="module_input",source="replay of hwmon"} 5.0' in text
    held.let_through(writer)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert run_record.load(folder / "r.json").pictures == 8
    with pytest.raises(OSError, match="refused"):
        get(port, "/state")


def test_a_port_in_use_is_said_before_anything_runs(edge: Edge, built: Place) -> None:
    built()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for option in ("--web", "--metrics"):
            ended = edge(*COMMAND, option, f"127.0.0.1:{port}", "--record", "r.json")
            assert (ended.code, ended.out) == (8, "")
            assert "in use" in ended.err
            assert f"sport = :{port}" in ended.err
    assert not Path("r.json").exists()


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--web", "nonsense"), 2, "invalid HOST:PORT"),
        (("--metrics", "1:2:3"), 2, "invalid HOST:PORT"),
        (("--web", "127.0.0.1:0"), 7, "cannot read the token"),
    ],
)
def test_addresses_and_tokens_that_are_none(
    options: tuple[str, ...], code: int, words: str, edge: Edge, built: Place
) -> None:
    built(web={"token_file": "absent"})
    ended = edge(*COMMAND, *options)
    assert ended.code == code
    assert words in ended.err


def test_another_address_prints_a_new_token_once(edge: Edge, built: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    built()
    # Somebody looks at stderr; where it is a log, the token is in a file (test_secrets.py).
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    tokens = []
    for _ in range(2):
        ended = edge(*COMMAND, "--web", "0.0.0.0:0", "--json")
        assert ended.code == 0
        found = re.findall(r"#token=(\S+)", ended.err)
        assert len(found) == 1
        assert found[0] not in ended.out
        tokens += found
    assert tokens[0] != tokens[1]
    Path("token").write_text("0123456789abcdef0123")
    built(web={"token_file": "../token"})
    ended = edge(*COMMAND, "--web", "0.0.0.0:0")
    assert ended.code == 0
    assert "0123456789abcdef0123" not in ended.err + ended.out


class Supervisor:
    """As systemd does for ``Type=notify`` with a watchdog: listens, kills who is silent, starts it again."""

    def __init__(self, folder: Path, command: list[str], *, watchdog_s: float) -> None:
        self._command = command
        self._watchdog_s = watchdog_s
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(folder / "notify"))
        self._socket.settimeout(0.1)
        self._environment = {
            **os.environ, "NOTIFY_SOCKET": str(folder / "notify"), "WATCHDOG_USEC": str(int(watchdog_s * 1e6)),
        }  # fmt: skip
        self.process: subprocess.Popen[bytes] | None = None
        self.heard: list[dict[str, str]] = []

    def start(self) -> subprocess.Popen[bytes]:
        self.process = subprocess.Popen(
            self._command, env=self._environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        return self.process

    def until(self, key: str, *, seconds: float = 60.0) -> bool:
        """Listen until a message has ``key``; False when ``seconds`` pass, or the process ends, without one."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                text = self._socket.recv(4096).decode()
            except TimeoutError:
                if self.process is not None and self.process.poll() is not None:
                    return False
                continue
            self.heard.append(dict(line.split("=", 1) for line in text.splitlines()))
            if key in self.heard[-1]:
                return True
        return False

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._socket.close()


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Callable[..., Supervisor]]:
    made: list[Supervisor] = []

    def make(*arguments: str, watchdog_s: float = 2.0) -> Supervisor:
        made.append(Supervisor(tmp_path, [sys.executable, "-m", "edge", *arguments], watchdog_s=watchdog_s))
        return made[-1]

    yield make
    for supervisor in made:
        supervisor.close()


@pytest.mark.slow
def test_a_frozen_pipeline_is_killed_and_starts_again(
    built: Place, supervise: Callable[..., Supervisor], gate: Callable[..., Any]
) -> None:
    folder = built(record={"flush_s": 1})
    held = gate(folder / "pictures" / "006.jpg")
    supervisor = supervise(*COMMAND, "--record", "r.jsonl")
    for _ in range(2):
        process = supervisor.start()
        assert supervisor.until("READY")
        # Nobody gives the seventh picture: the pipeline hangs as in a driver, and the signs of life end.
        silent = 0
        while supervisor.until("WATCHDOG", seconds=2.0) and silent < 20:
            silent += 1
        assert silent < 20
        assert process.poll() is None
        process.send_signal(signal.SIGABRT)
        assert process.wait(30) == -signal.SIGABRT
    held.open()
    process = supervisor.start()
    assert supervisor.until("READY")
    assert supervisor.until("STOPPING")
    assert process.wait(30) == 0
    assert run_record.load(folder / "r.jsonl").pictures == 8


@pytest.mark.slow
def test_a_camera_that_is_away_for_long_is_waited_for_and_a_frozen_run_is_not(
    built: Place, supervise: Callable[..., Supervisor], server: Server
) -> None:
    folder = built(camera={"timeout_s": 2.0, "reconnect": {"first_s": 0.1, "max_s": 0.2}}, record={"flush_s": 0.2})
    camera = ("run", "--profile", "tiny", "--camera", server.url, "--wait-for-camera")
    supervisor = supervise(*camera, "--record", "r.jsonl", watchdog_s=1.0)
    server.refuse = True
    process = supervisor.start()
    # Not there at the start, either.
    assert supervisor.until("READY")
    assert "no frames" in supervisor.heard[-1]["STATUS"]
    server.refuse = False
    while "no frames" in supervisor.heard[-1].get("STATUS", ""):
        assert supervisor.until("STATUS")
        assert len(supervisor.heard) < 1000
    server.refuse = True
    server.hang_up.set()
    while "no frames" not in supervisor.heard[-1].get("STATUS", ""):
        assert supervisor.until("STATUS")
        assert len(supervisor.heard) < 1000
    # Four signs of life make one watchdog's time; all of them come without one picture.
    for _ in range(16):
        assert supervisor.until("WATCHDOG")
        assert "no frames" in supervisor.heard[-1]["STATUS"]
    server.hang_up.clear()
    server.refuse = False
    while "no frames" in supervisor.heard[-1]["STATUS"]:
        assert supervisor.until("WATCHDOG")
        assert len(supervisor.heard) < 2000
    until = time.monotonic() + 60
    while run_record.load(folder / "r.jsonl").gaps[-1].end_s is None and time.monotonic() < until:
        time.sleep(0.1)
    process.send_signal(signal.SIGSTOP)
    # What was said before may still be on its way.
    while supervisor.until("WATCHDOG", seconds=2.0):
        assert len(supervisor.heard) < 3000
    process.send_signal(signal.SIGABRT)
    process.send_signal(signal.SIGCONT)
    assert process.wait(30) == -signal.SIGABRT
    kept = run_record.load(folder / "r.jsonl")
    assert kept.failure == run_record.KILLED
    assert kept.gaps[-1].end_s is not None


@pytest.mark.slow
def test_a_stop_is_said_and_the_record_is_written(
    built: Place, supervise: Callable[..., Supervisor], gate: Callable[..., Any]
) -> None:
    folder = built()
    held = gate(folder / "pictures" / "006.jpg")
    supervisor = supervise(*COMMAND, "--record", "r.json", watchdog_s=60.0)
    process = supervisor.start()
    assert supervisor.until("READY")
    writer = held.wait(process)
    process.send_signal(signal.SIGTERM)
    # The picture in hand is finished, so the stop must come before it does.
    wait_until_idle(process)
    held.let_through(writer)
    assert supervisor.until("STOPPING")
    assert process.wait(30) == 128 + signal.SIGTERM
    assert run_record.load(folder / "r.json").status == "interrupted"

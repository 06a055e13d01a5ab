"""Notifications: rules, a real HTTP server, a real broker, commands; and targets that misbehave."""

from __future__ import annotations

import http.server
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.artifacts.run_record import FrameResult, Guess, LabelDecision, Stages
from edge.artifacts.secret import Secret
from edge.config.run_sections import NotifyRule
from edge.errors import DeviceError, UsageError
from edge.runtime.notify import Notifications, open_target

NAMES = ["hen", "cock", "crane", "crane"]
STAGES = Stages(decode_ms=1.0, preprocess_ms=1.0, infer_ms=1.0, postprocess_ms=1.0, total_ms=4.0)


def seen(
    t_s: float, label: str = "hen", confidence: float = 0.9, camera: str | None = None, **more: Any
) -> FrameResult:
    guesses = [Guess(NAMES.index(label), label, confidence)]
    return FrameResult(seq=0, name="frame 0", guesses=guesses, stages=STAGES, t_s=t_s, camera=camera, **more)


class Collects:
    """A target that keeps what it gets; ``fails`` deliveries fail first."""

    def __init__(self, fails: int = 0) -> None:
        self.messages: list[dict[str, Any]] = []
        self.fails = fails
        self.hold = threading.Event()
        self.hold.set()

    def send(self, message: bytes) -> None:
        self.hold.wait(30)
        if self.fails:
            self.fails -= 1
            raise DeviceError("told to fail")
        self.messages.append(json.loads(message))

    def close(self) -> None:
        pass


def notifications(target: Collects, **rule: Any) -> Notifications:
    return Notifications(
        [(NotifyRule(**rule), [Secret.url("http://x/")])], names=NAMES, about={"profile": "tiny"}, first_pause_s=0.01,
        open_target=lambda _address: target,
    )  # fmt: skip


def reported(*results: FrameResult, **rule: Any) -> list[tuple[str, float]]:
    """Label and time of what a rule reports."""
    target = Collects()
    found = notifications(target, **rule)
    for result in results:
        found.on_event(result)
    found.close()
    return [(message["label"], message["t_s"]) for message in target.messages]


def test_a_label_is_reported_once_until_it_changes() -> None:
    many = [seen(0.0), seen(0.1), seen(0.2, "cock"), seen(0.3, "cock"), seen(0.4)]
    assert reported(*many) == [("hen", 0.0), ("cock", 0.2), ("hen", 0.4)]
    assert reported(*many, on_change=False) == [("hen", 0.0), ("hen", 0.1), ("cock", 0.2), ("cock", 0.3), ("hen", 0.4)]


def test_only_the_labels_of_the_rule() -> None:
    many = [seen(0.0), seen(1.0, "cock"), seen(2.0), seen(3.0, "crane")]
    assert reported(*many, labels=("hen",)) == [("hen", 0.0), ("hen", 2.0)]
    assert reported(*many, labels=(1, "crane")) == [("cock", 1.0), ("crane", 3.0)]


def test_a_label_must_be_held() -> None:
    many = [seen(0.0), seen(0.4), seen(0.5, "cock"), seen(0.6), seen(1.0), seen(1.2)]
    assert reported(*many, hold="0.5s") == [("hen", 1.2)]
    assert reported(seen(0.0), seen(0.3, confidence=0.2), seen(0.6), hold=0.5, min_confidence=0.5) == []


def test_no_more_often_than_every_so_long() -> None:
    many = [seen(float(t), "hen" if t % 2 else "cock") for t in range(10)]
    assert [t for _label, t in reported(*many, every="4s", on_change=False)] == [0.0, 4.0, 8.0]
    # Each camera has its own clock.
    both = [seen(0.0, camera="front"), seen(0.1, camera="gate"), seen(1.0, "cock", camera="front")]
    assert [t for _label, t in reported(*both, every=4)] == [0.0, 0.1]


def test_the_decision_counts_where_there_is_one() -> None:
    unknown = seen(0.0, decision=LabelDecision(None, "unknown", 0.3))
    other = seen(1.0, decision=LabelDecision(1, "cock", 0.8))
    assert reported(unknown, other) == [("cock", 1.0)]


def test_a_label_that_the_model_does_not_have() -> None:
    with pytest.raises(UsageError, match=r"no label 'hem' \(did you mean 'hen'\?\)"):
        notifications(Collects(), labels=("hem",))
    with pytest.raises(UsageError, match="no class 4; the model has 4"):
        notifications(Collects(), labels=(4,))


def test_a_message_says_what_was_seen() -> None:
    target = Collects()
    found = notifications(target)
    found.on_event(seen(1.5, "cock", 0.75, camera="front"))
    found.close()
    [message] = target.messages
    assert (message["label"], message["index"], message["confidence"]) == ("cock", 1, 0.75)
    assert (message["camera"], message["profile"], message["t_s"]) == ("front", "tiny", 1.5)
    assert message["time_utc"].startswith("20")


def test_a_failed_delivery_is_tried_again_and_given_up_at_last() -> None:
    target = Collects(fails=2)
    found = notifications(target, on_change=False)
    found.on_event(seen(0.0))
    until(lambda: found.counts()[0].sent == 1)
    [counts] = found.counts()
    assert (counts.retried, counts.failed, counts.last_error) == (2, 0, "told to fail")
    target.fails = 5
    found.on_event(seen(1.0))
    until(lambda: found.counts()[0].failed == 1)
    found.on_event(seen(2.0))
    until(lambda: found.counts()[0].sent == 2)
    found.close()


def test_a_target_that_hangs_costs_the_loop_nothing_and_old_messages_are_dropped() -> None:
    target = Collects()
    target.hold.clear()
    found = notifications(target, on_change=False)
    start = time.perf_counter()
    for number in range(2000):
        found.on_event(seen(float(number)))
    assert (time.perf_counter() - start) / 2000 < 0.005
    [counts] = found.counts()
    assert (counts.sent, counts.waiting) == (0, 65)
    assert counts.dropped == 2000 - 65
    start = time.monotonic()
    found.close()
    assert time.monotonic() - start < 10
    target.hold.set()


# HTTP


class Server:
    """An HTTP server that answers as the test says."""

    def __init__(self, answer: Callable[[http.server.BaseHTTPRequestHandler], None]) -> None:
        self.bodies: list[Any] = []
        self.headers: list[Any] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.headers.append((self.path, dict(self.headers)))
                outer.bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                answer(self)

            def log_message(self, *_arguments: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def make(status: int = 204, *, location: str | None = None) -> Server:
        def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
            handler.send_response(status)
            if location is not None:
                handler.send_header("location", location)
            handler.end_headers()

        servers.append(Server(answer))
        return servers[-1]

    yield make
    for each in servers:
        each.close()


def test_a_post_to_a_real_server(server: Callable[..., Server]) -> None:
    there = server()
    found = Notifications(
        [(NotifyRule(), [Secret.url(f"http://user:p%40ss@127.0.0.1:{there.port}/hook?a=b")])], names=NAMES, about={}
    )
    found.on_event(seen(0.0))
    until(lambda: found.counts()[0].sent == 1)
    found.close()
    [(path, headers)] = there.headers
    assert (path, headers["content-type"]) == ("/hook?a=b", "application/json")
    assert headers["authorization"] == "Basic dXNlcjpwQHNz"
    assert there.bodies[0]["label"] == "hen"
    assert found.counts()[0].target == f"http://***@127.0.0.1:{there.port}/hook?a=***"


@pytest.mark.parametrize(
    ("status", "says"),
    [(500, "answered with status 500"), (404, "answered with status 404"), (302, "redirect, which is not followed")],
)
def test_an_answer_that_is_no_success(status: int, says: str, server: Callable[..., Server]) -> None:
    elsewhere = server()
    there = server(status, location=f"http://127.0.0.1:{elsewhere.port}/" if status == 302 else None)
    with pytest.raises(DeviceError, match=says):
        open_target(Secret(f"http://127.0.0.1:{there.port}/")).send(b"{}")
    assert elsewhere.bodies == []


def test_a_server_that_is_not_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(DeviceError, match="refused"):
        open_target(Secret(f"http://127.0.0.1:{port}/")).send(b"{}")


def test_an_answer_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.runtime.notify._TIMEOUT_S", 0.5)

    def drip(handler: http.server.BaseHTTPRequestHandler) -> None:
        try:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
            while True:
                handler.wfile.write(b"x: y\r\n")
                time.sleep(0.05)
        except OSError:
            pass

    there = Server(drip)
    start = time.monotonic()
    with pytest.raises(DeviceError):
        open_target(Secret(f"http://127.0.0.1:{there.port}/")).send(b"{}")
    assert time.monotonic() - start < 30
    there.close()


# commands


def test_a_command_gets_the_message_on_its_standard_input(tmp_path: Path) -> None:
    out = tmp_path / "out file"
    script = tmp_path / "on-label"
    script.write_text(f"#!{sys.executable}\nimport sys\nopen(sys.argv[1], 'w').write(sys.stdin.read() + sys.argv[2])\n")
    script.chmod(0o755)
    open_target(Secret(f"exec:{script} '{out}' '$HOME|x'")).send(b'{"label": "hen"}')
    assert out.read_text() == '{"label": "hen"}$HOME|x'


def test_commands_that_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError, match="exit code 1"):
        open_target(Secret("exec:false")).send(b"{}")
    with pytest.raises(DeviceError, match="No such file"):
        open_target(Secret("exec:/no/such/command")).send(b"{}")
    monkeypatch.setattr("edge.runtime.notify._TIMEOUT_S", 0.2)
    with pytest.raises(DeviceError, match=r"killed after 0\.2 s"):
        open_target(Secret("exec:sleep 60")).send(b"{}")
    # Megabytes that the command never reads, and its end.
    with pytest.raises(DeviceError, match="exit code 3"):
        open_target(Secret(f"exec:{sys.executable} -c 'raise SystemExit(3)'")).send(b"x" * 5_000_000)


@pytest.mark.parametrize("address", ["", "ftp://x", "exec:", "exec:'", "http://", "http://[::1", "mqtt://h/a/#", "hen"])
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(UsageError):
        open_target(Secret.url(address))


# MQTT


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[int]:
    program = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
    if program is None:
        pytest.skip("mosquitto is not installed (apt install mosquitto)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "mosquitto.conf").write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
    process = subprocess.Popen([program, "-c", tmp_path / "mosquitto.conf"], stderr=subprocess.DEVNULL)
    until(lambda: is_listening(port))
    yield port
    process.terminate()
    process.wait(10)


def test_a_real_broker_gets_it_and_a_broker_that_is_gone_is_an_error(broker: int) -> None:
    client_module = pytest.importorskip("paho.mqtt.client")
    enums = pytest.importorskip("paho.mqtt.enums")
    received: list[tuple[str, bytes]] = []
    subscribed = threading.Event()
    listener = client_module.Client(enums.CallbackAPIVersion.VERSION2)
    listener.on_message = lambda _client, _data, message: received.append((message.topic, message.payload))
    listener.on_subscribe = lambda *_arguments: subscribed.set()
    listener.connect("127.0.0.1", broker)
    listener.subscribe("edge/#", qos=1)
    listener.loop_start()
    assert subscribed.wait(10)
    target = open_target(Secret(f"mqtt://127.0.0.1:{broker}/edge/front"))
    target.send(b'{"label": "hen"}')
    target.send(b'{"label": "cock"}')
    until(lambda: len(received) == 2)
    assert received[0] == ("edge/front", b'{"label": "hen"}')
    target.close()
    listener.disconnect()
    listener.loop_stop()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        gone = free.getsockname()[1]
    with pytest.raises(DeviceError):
        open_target(Secret(f"mqtt://127.0.0.1:{gone}/edge")).send(b"{}")


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)

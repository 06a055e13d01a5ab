from __future__ import annotations

import json
import re
import socket
import time
import urllib.parse
from collections.abc import Callable
from typing import Any

import cv2
import msgspec
import numpy as np
import psutil
import pytest

from edge.artifacts.run_record import Gap, Guess, Skip
from edge.media import pictures
from edge.ui.web.address import Access
from edge.ui.web.app import network_of
from tests.support.run_records import made

Make = Callable[..., Any]
TOKEN = "a-token-of-this-test"


def test_the_page_and_what_every_answer_carries(running: Make) -> None:
    run = running()
    for path, kind in (
        ("/", "text/html"), ("/edge.css", "text/css"), ("/edge.js", "text/javascript"), ("/about", "application/json"),
        ("/charts.js", "text/javascript"), ("/icon.svg", "image/svg+xml"), ("/state", "application/json"),
    ):  # fmt: skip
        answer = run.ask(path)
        assert (answer.status, answer.headers["content-type"].partition(";")[0]) == (200, kind)
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert answer.headers["cache-control"] == "no-store"
        assert "server" not in answer.headers
        assert not re.search(rb"https?://(?!www\.w3\.org/2000/svg)", answer.body)


def test_the_page_has_nothing_inline(running: Make) -> None:
    text = running().ask("/").body.decode()
    assert not re.search(r"<script(?![^>]*src=)", text)
    assert not re.search(r"\son\w+=|style=", text)


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:80", "x" * 300])
def test_another_name_is_not_answered(host: str, running: Make) -> None:
    run = running()
    for path in ("/", "/state", "/frame.jpg", "/metrics", "/enter", "/edge.js"):
        assert run.ask(path, host=host).status == 421


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/absent", 404), ("POST", "/state", 405), ("PUT", "/", 405), ("DELETE", "/frame.jpg", 405),
     ("GET", "/enter", 405), ("GET", "/../../etc/passwd", 404), ("GET", "/static/edge.js", 404),
     ("GET", "/%00", 404), ("HEAD", "/", 200), ("OPTIONS", "/", 405)],
)  # fmt: skip
def test_other_requests(method: str, path: str, status: int, running: Make) -> None:
    assert running().ask(path, method=method).status == status


def test_without_the_token_there_is_a_form_and_nothing_else(running: Make) -> None:
    run = running(token=TOKEN)
    run.label()
    for path in ("/about", "/state", "/frame.jpg", "/metrics"):
        answer = run.ask(path)
        assert (answer.status, answer.body) == (401, b"a token is required\n")
        assert answer.headers["www-authenticate"].startswith("Bearer")
    page = run.ask("/")
    assert page.status == 401
    assert b'<form method="post" action="/enter">' in page.body
    assert TOKEN.encode() not in page.body


def test_the_token_is_given_once_and_a_cookie_comes_back(running: Make, capfd: pytest.CaptureFixture[str]) -> None:
    run = running(token=TOKEN)
    body = urllib.parse.urlencode({"token": TOKEN})
    answer = run.ask("/enter", method="POST", body=body)
    assert (answer.status, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(f"edge_{run.port}=")
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()
    assert TOKEN not in str(answer)
    inside = run.ask("/state", cookie=cookie.partition(";")[0])
    assert inside.status == 200
    assert run.ask("/", cookie=cookie.partition(";")[0]).status == 200
    assert run.ask("/metrics", authorization=f"Bearer {TOKEN}").status == 200
    # Nothing about any of this, and above all not the token, is written anywhere.
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("body", ["", "token=", "token=wrong", "other=1", "token=%ff%fe", "\x00", "token=a&token=b"])
def test_a_wrong_token(body: str, running: Make) -> None:
    run = running(token=TOKEN)
    answer = run.ask("/enter", method="POST", body=body)
    assert (answer.status, answer.headers["location"]) == (303, "/#wrong")
    assert "set-cookie" not in answer.headers
    assert run.ask("/state", cookie=f"edge_{run.port}=guess").status == 401
    assert run.ask("/state", authorization="Bearer guess").status == 401
    assert run.ask(f"/state?token={TOKEN}").status == 401


def test_a_body_without_end_is_cut_off(running: Make) -> None:
    assert running(token=TOKEN).ask("/enter", method="POST", body="token=" + "x" * 5000).status == 413


def test_the_state_says_everything(running: Make) -> None:
    run = running()
    run.label(0)
    run.clock.t_s += 2.5
    run.label(1)
    run.hear(Skip(7, "7.jpg", "broken"), Gap(start_s=1.0, end_s=None, reason="no frame for 5 s", hint="see dmesg"))
    state = json.loads(run.ask("/state").body)
    assert (state["pictures"], state["skipped"], state["dropped"], state["gaps"]) == (2, 1, 3, 1)
    assert state["gap"]["hint"] == "see dmesg"
    assert [guess["label"] for guess in state["guesses"]] == ["hen"]
    assert (state["power_mw"], state["temps_c"], state["throttling"]) == (7000.0, {"tj": 51.5}, ["cpu-throttle-alert"])
    assert state["latency"]["n"] == 2
    assert [tick["t"] for tick in state["history"]] == [1.0, 2.0]
    assert [tick["t"] for tick in json.loads(run.ask("/state?since=1.0").body)["history"]] == [2.0]
    for garbage in ("", "x", "nan", "inf", "1e999", "-5", "%00", "1&since=9"):
        assert run.ask(f"/state?since={garbage}").status == 200
    about = json.loads(run.ask("/about").body)
    assert about["headline"] == "orin · net · int8"
    assert about["facts"]["engine"] == "c" * 12


def test_before_the_first_picture(running: Make) -> None:
    run = running()
    state = json.loads(run.ask("/state").body)
    assert (state["pictures"], state["guesses"], state["latency"], state["history"]) == (0, [], None, [])
    assert run.ask("/frame.jpg").status == 204


def test_the_picture_is_the_newest_and_comes_once(running: Make) -> None:
    run = running()
    run.ask("/frame.jpg")
    run.label(3)
    answer = run.ask("/frame.jpg")
    assert (answer.status, answer.headers["x-edge-seq"]) == (200, "3")
    pixels = cv2.imdecode(np.frombuffer(answer.body, np.uint8), cv2.IMREAD_COLOR)
    assert pixels.shape == (48, 64, 3)
    assert abs(int(pixels.mean()) - 24) <= 2
    assert run.ask("/frame.jpg?after=3").status == 204
    run.clock.t_s += 1.0
    run.label(4)
    assert run.ask("/frame.jpg?after=3").headers["x-edge-seq"] == "4"


def test_nobody_looks_and_nothing_is_kept(running: Make) -> None:
    run = running()
    run.label(1)
    assert run.ask("/frame.jpg").status == 204
    run.clock.t_s += 60.0
    run.label(2)
    assert run.ask("/frame.jpg").status == 204


def test_many_lookers_cost_one_encoding(running: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from edge.runtime.run_statistics import RunStatistics
    from edge.ui.web.view import RunView

    encoded: list[int] = []

    def encode(pixels: np.ndarray) -> bytes:
        encoded.append(len(pixels))
        return b"jpeg"

    clock = running().clock
    view = RunView(RunStatistics(clock=clock), made(1).subject, headline="", power="", clock=clock, encode=encode)
    view.picture()
    for seq in range(20):
        clock.t_s += 0.01
        view.show(np.zeros((4, 4, 3), np.uint8), made(30).results[seq])
        for _ in range(5):
            view.picture()
    assert len(encoded) == 2


def test_the_end_is_told_to_those_who_look(running: Make) -> None:
    run = running()
    run.label()
    run.view.end(made(10), wait_s=0.0)
    ended = json.loads(run.ask("/state").body)["ended"]
    assert ended["status"] == "complete"


def test_nothing_out_of_a_run_can_be_markup(running: Make) -> None:
    run = running()
    nasty = "<img src=x onerror=alert(1)>\x00\u2028"
    result = msgspec.structs.replace(made(1).results[0], name=nasty, guesses=[Guess(0, nasty, 1.0)])
    run.hear(result)
    answer = run.ask("/state")
    assert answer.headers["content-type"] == "application/json"
    assert json.loads(answer.body)["name"] == nasty
    assert b"innerHTML" not in run.ask("/edge.js").body + run.ask("/charts.js").body


def test_clients_that_never_read_cost_little_and_hold_nobody_up(running: Make) -> None:
    run = running()
    noise = np.random.default_rng(0).integers(0, 256, (640, 640, 3), np.uint8)
    run.ask("/frame.jpg")
    run.label(0, pixels=noise)
    size = len(run.ask("/frame.jpg").body)
    assert size > 100_000
    process = psutil.Process()
    before = process.memory_info().rss
    # Each asks for two hundred pictures, some 40 MB, and reads not one byte.
    stuck = []
    for _ in range(60):
        client = socket.create_connection(("127.0.0.1", run.port))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(b"GET /frame.jpg HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 200)
        stuck.append(client)
    for seq in range(30):
        run.clock.t_s += 0.2
        run.label(seq, pixels=noise)
    assert process.memory_info().rss - before < 32 << 20
    for client in stuck:
        client.close()
    # They are gone, and there is room again as soon as the server has seen that: until then it resets or answers 503.
    until = time.monotonic() + 30
    while True:
        try:
            answer = run.ask("/state")
        except ConnectionError:
            answer = None
        if answer is not None and answer.status == 200:
            break
        assert time.monotonic() < until, "no room after the stuck clients have gone"
        time.sleep(0.01)
    assert json.loads(answer.body)["pictures"] == 31


@pytest.mark.parametrize(
    "data",
    [b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/9.9\r\n\r\n", b"GET /\r\n" + b"x" * 100_000, b"\x00" * 1000,
     b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"POST /enter HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
     b"GET / HTTP/1.1\r\n\r\n", b"GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n"],
)  # fmt: skip
def test_what_is_no_request(data: bytes, running: Make, capfd: pytest.CaptureFixture[str]) -> None:
    run = running()
    with socket.create_connection(("127.0.0.1", run.port), timeout=30) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        answer = b""
        try:
            while piece := client.recv(65536):
                answer += piece
        except ConnectionResetError:
            pass
    assert not answer or answer.split(b" ")[1] in {b"400", b"421", b"431"}
    assert run.ask("/state").status == 200
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (480, 640), (3000, 4000), (641, 640)])
def test_frames_of_every_shape_become_small_pictures(shape: tuple[int, int]) -> None:
    data = pictures.encode(np.full((*shape, 3), 200, np.uint8))
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert max(pixels.shape) <= max(640, 3)
    assert max(pixels.shape[:2]) == min(max(shape), 640)
    assert abs(int(pixels.mean()) - 200) <= 2


@pytest.mark.parametrize(
    "host",
    ["[::1].evil.example", "[::1]evil", "127.0.0.1@evil.example", "localhost:80:80", "localhost:x", "[127.0.0.1]",
     "::1", "127.0.0.1 evil", "", "localhost,evil.example", "[localhost]", "127.0.0.1/../x"],
)  # fmt: skip
def test_a_host_that_only_begins_like_ours_is_refused(host: str) -> None:
    assert not Access(None).is_ours(host)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:8080", "localhost", "LOCALHOST:1", "[::1]", "[::1]:80", "localhost."]
)
def test_a_host_that_is_ours(host: str) -> None:
    assert Access(None).is_ours(host)


def test_requests_that_are_never_finished_lock_nobody_out(running: Make) -> None:
    run = running()
    held = [socket.create_connection(("127.0.0.1", run.port)) for _ in range(60)]
    try:
        for each in held:
            each.sendall(b"GET / HTTP/1.1\r\nHost: localh")
        assert run.ask("/state").status == 200
    finally:
        for each in held:
            each.close()


def test_neither_do_those_of_many_addresses(running: Make) -> None:
    run = running()
    hosts = [f"127.0.1.{number}" for number in range(1, 9) for _ in range(10)]
    held = [socket.create_connection(("127.0.0.1", run.port), source_address=(host, 0)) for host in hosts]
    try:
        for each in held:
            each.sendall(b"GET / HTTP/1.1\r\nHost: localh")
        assert run.ask("/state").status == 200
    finally:
        for each in held:
            each.close()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("10.0.0.1", "10.0.0.2", False),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.2", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
    ],
)
def test_one_client_may_have_many_addresses_of_ipv6(one: str, other: str, *, same: bool) -> None:
    assert (network_of((one, 1)) == network_of((other, 1))) is same


def test_a_request_that_takes_too_long_is_cut_off(running: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.ui.web.app._REQUEST_S", 0.5)
    monkeypatch.setattr("edge.ui.web.app._LOOK_S", 0.05)
    run = running()
    with socket.create_connection(("127.0.0.1", run.port)) as slow:
        slow.settimeout(20)
        slow.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        try:
            for _ in range(200):
                slow.sendall(b"x: y\r\n")
                time.sleep(0.05)
        except OSError:
            return
    raise AssertionError("nobody cut it off")

"""RTSP for real: a GStreamer server on loopback, in a process of its own, and what cameras do to their viewers."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.config.run_sections import CameraConfig, ReconnectConfig
from edge.errors import DeviceError
from edge.media.camera_stream import LiveStream
from edge.media.cameras import camera_source
from edge.media.streams import Frame, Outage

SCRIPT = Path(__file__).parents[1] / "support/rtsp_server.py"
SYSTEM_PYTHON = "/usr/bin/python3"
CAMERA = CameraConfig(timeout_s=4.0, freeze_s=None, reconnect=ReconnectConfig(first_s=0.1, max_s=8.0))


def missing() -> str | None:
    """The reason why there is no RTSP server here; None where there is one."""
    check = "import gi; gi.require_version('GstRtspServer', '1.0'); gi.require_version('Gst', '1.0')\n"
    check += "from gi.repository import Gst; Gst.init(None)\n"
    check += "assert all(map(Gst.ElementFactory.find, ('x264enc', 'x265enc', 'rtph264pay')))"
    try:
        done = subprocess.run([SYSTEM_PYTHON, "-c", check], capture_output=True, check=False, timeout=60)
    except OSError:
        return "there is no /usr/bin/python3"
    return None if done.returncode == 0 else "gst-rtsp-server, its Python bindings or encoders are not installed"


class RtspServer:
    """The server; it can be killed and started again on the same port."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [SYSTEM_PYTHON, str(SCRIPT), str(self.port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def tell(self, words: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(words + "\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def url(self, path: str, user: str = "") -> str:
        return f"rtsp://{user}127.0.0.1:{self.port}/{path}"


@pytest.fixture(scope="module")
def server() -> Iterator[RtspServer]:
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    started = RtspServer()
    yield started
    started.kill()


@pytest.fixture
def opened() -> Iterator[Callable[..., LiveStream]]:
    streams = []

    def make(url: str, camera: CameraConfig = CAMERA, **more: Any) -> LiveStream:
        streams.append(LiveStream(camera_source(url, camera), camera, **more))
        return streams[-1]

    yield make
    for stream in streams:
        stream.close()


def until(stream: LiveStream, wanted: Callable[[Any], bool], *, within_s: float = 20.0) -> Any:
    end_s = time.monotonic() + within_s
    while time.monotonic() < end_s:
        item = stream.next()
        if wanted(item):
            return item
    pytest.fail(f"not within {within_s} s")


def began(item: Any) -> bool:
    return isinstance(item, Outage) and item.end_s is None


def ended(item: Any) -> bool:
    return isinstance(item, Outage) and item.end_s is not None


@pytest.mark.parametrize(("path", "user"), [("h264", ""), ("h265", ""), ("auth", "me:secret@")])
def test_frames_come(path: str, user: str, server: RtspServer, opened: Any) -> None:
    stream = opened(server.url(path, user))
    assert (stream.opened.kind, stream.opened.width, stream.opened.height) == ("network", 320, 240)
    frames = [stream.next() for _ in range(5)]
    assert all(isinstance(frame, Frame) and frame.load().shape == (240, 320, 3) for frame in frames)


def test_pixels_that_are_not_square_are_unsqueezed(server: RtspServer, opened: Any) -> None:
    stream = opened(server.url("wide"))
    assert (stream.opened.width, stream.opened.height) == (round(320 * 4 / 3), 240)


@pytest.mark.parametrize(
    ("path", "user", "words"),
    [
        ("auth", "", "the camera asks for a user and a password (401)"),
        ("auth", "me:wrong-one@", "the camera refuses this user and password (401)"),
        ("nope", "", "the camera has no stream of this path (404)"),
    ],
)
def test_the_reason_why_it_does_not_open(path: str, user: str, words: str, server: RtspServer, opened: Any) -> None:
    with pytest.raises(DeviceError) as caught:
        opened(server.url(path, user))
    assert words in caught.value.what
    assert "wrong-one" not in str(caught.value)


def test_a_source_that_is_slower_than_its_timeout(server: RtspServer, opened: Any) -> None:
    quick = CameraConfig(timeout_s=0.9, freeze_s=None, reconnect=CAMERA.reconnect)
    errors: list[BaseException] = []

    def open_without_waiting() -> None:
        try:
            opened(server.url("slow"), quick)
        except DeviceError as exc:
            errors.append(exc)

    first = threading.Thread(target=open_without_waiting)
    first.start()
    stream = opened(server.url("slow"), quick, wait=True)
    assert ended(until(stream, ended))
    assert isinstance(stream.next(), Frame)
    first.join(30)
    assert "--wait-for-camera, or a larger camera.timeout_s (now 0.9) in the profile" in str(errors[0])


def test_freeze_new_size_and_kill_are_all_recovered(server: RtspServer, opened: Any) -> None:
    camera = CameraConfig(timeout_s=2.0, freeze_s=0.7, reconnect=ReconnectConfig(first_s=0.1, max_s=4.0))
    stream = opened(server.url("h264"), camera, check_size_s=0.2)
    server.tell("freeze")
    assert until(stream, began).reason == "the image has not changed for 0.7 s"
    server.tell("move")
    until(stream, ended)
    assert isinstance(stream.next(), Frame)
    server.tell("size 480 240")
    assert until(stream, began).reason == "the stream changed from 320×240 to 480×240"
    until(stream, ended)
    assert until(stream, lambda item: isinstance(item, Frame)).load().shape == (240, 480, 3)
    server.kill()
    assert until(stream, began).hint is not None
    server.start()
    until(stream, ended)
    assert until(stream, lambda item: isinstance(item, Frame)).load().shape == (240, 320, 3)

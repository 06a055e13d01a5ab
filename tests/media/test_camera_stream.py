"""Live sources: the newest frame, and what happens when cameras do what cameras do."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.artifacts.secret import Secret
from edge.config.run_sections import CameraConfig, ReconnectConfig
from edge.errors import DataError, DeviceError, MissingDependencyError, UsageError
from edge.media import cameras, opencv_capture
from edge.media.camera_stream import LiveStream
from edge.media.streams import Frame, Outage
from tests.support.fake_cameras import (
    Bench,
    FakeCapture,
    frames,
    hang,
    hold,
    machine,
    picture,
    plug,
    same,
    then,
    unplug,
)
from tests.support.network_camera import Server

RECONNECT = ReconnectConfig(first_s=0.02, max_s=0.1)
# For what is to be noticed: short enough for a test, long enough for a busy machine.
QUICK = CameraConfig(width=32, height=24, timeout_s=0.8, freeze_s=0.8, reconnect=RECONNECT)
# For what is not to be taken for an outage, however long the machine stands still.
CAMERA = CameraConfig(width=32, height=24, timeout_s=30.0, freeze_s=30.0, reconnect=RECONNECT)


@pytest.fixture
def opened() -> Iterator[Callable[..., LiveStream]]:
    """``opened(root, bench, name="0", camera=CAMERA)``; whatever hangs is let go at the end."""
    streams: list[tuple[LiveStream, Bench]] = []

    def make(
        root: Path, bench: Bench, name: str = "0", camera: CameraConfig = CAMERA, *, wait: bool = False
    ) -> LiveStream:
        place = cameras.camera_source(name, camera, root=root, backend=lambda _api: True)
        stream = LiveStream(place, camera, wait=wait, open_capture=bench)
        streams.append((stream, bench))
        return stream

    yield make
    for stream, bench in streams:
        for capture in bench.captures:
            capture.never.set()
        stream.close()


def until(stream: LiveStream, wanted: Callable[[Any], bool], *, most: int = 2000) -> list[Any]:
    """What the stream gives, up to the first that is wanted."""
    given = []
    for _ in range(most):
        given.append(stream.next())
        if wanted(given[-1]):
            return given
    pytest.fail(f"not among {most} frames")


def began(item: Any) -> bool:
    return isinstance(item, Outage) and item.end_s is None


def ended(item: Any) -> bool:
    return isinstance(item, Outage) and item.end_s is not None


def value(frame: Frame) -> int:
    return int(frame.load()[0, 0, 0])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return machine(tmp_path / "root", video0="HD Webcam")


def test_the_newest_frame_is_given_and_the_others_are_counted(root: Path, opened: Any) -> None:
    taken = threading.Event()

    def held(_capture: FakeCapture) -> Iterator[Any]:
        taken.wait(30)
        yield from ()

    stream = opened(root, Bench(then(frames(1), held, frames(50, first=1), hang)))
    first = stream.next()
    taken.set()
    deadline = time.monotonic() + 30
    while stream.dropped < 49 and time.monotonic() < deadline:
        time.sleep(0.01)
    # The newest, not the oldest in a queue.
    second = stream.next()
    assert (first.seq, second.seq, stream.dropped) == (0, 50, 49)
    assert value(second) == 50
    assert first.since_s < second.since_s <= time.monotonic()
    assert (stream.opened.kind, stream.opened.live, stream.opened.width, stream.opened.height) == ("v4l2", True, 32, 24)


def test_a_frame_is_given_once(root: Path, opened: Any) -> None:
    stream = opened(root, Bench(frames(pause_s=0.01)))
    numbers = [stream.next().seq for _ in range(5)]
    assert numbers == sorted(set(numbers))


def test_a_camera_that_is_not_there_names_those_that_are(root: Path, opened: Any) -> None:
    plug(root, "video1", "HD Webcam", index=1)
    with pytest.raises(DeviceError, match="there is no camera here") as caught:
        opened(root, Bench(), "7")
    assert caught.value.where == "/dev/video7"
    assert caught.value.hint == "cameras on this machine: /dev/video0 (HD Webcam)"


def test_no_camera_at_all(tmp_path: Path, opened: Any) -> None:
    with pytest.raises(DeviceError, match="there is no camera here") as caught:
        opened(machine(tmp_path / "empty"), Bench())
    assert "v4l2-ctl --list-devices" in str(caught.value.hint)


def test_a_camera_that_comes_later_is_waited_for_where_that_is_asked_for(tmp_path: Path, opened: Any) -> None:
    root = machine(tmp_path / "root")
    stream = opened(root, Bench(frames(first=70)), wait=True)
    assert (stream.opened.live, stream.opened.kind, stream.opened.width) == (True, "v4l2", None)
    first = stream.next()
    assert began(first)
    assert first.reason == "there is no camera here"
    assert "v4l2-ctl" in str(first.hint)
    plug(root, "video0", "HD Webcam")
    again = until(stream, ended)[-1]
    assert (again.start_s, again.reopened_as) == (first.start_s, "/dev/video0")
    assert value(stream.next()) >= 70


def test_waiting_for_a_camera_hides_no_bug(root: Path, opened: Any) -> None:
    def broken(_capture: FakeCapture) -> Iterator[Any]:
        raise ZeroDivisionError
        yield

    with pytest.raises(ZeroDivisionError):
        opened(root, Bench(broken), wait=True)


def test_a_busy_camera_names_who_holds_it(root: Path, opened: Any) -> None:
    hold(root, "video0", pid=4321, name="cheese")
    with pytest.raises(DeviceError, match="in use by cheese, pid 4321") as caught:
        opened(root, Bench(DeviceError("it does not open")))
    assert caught.value.hint == "kill 4321"


def test_no_permission_says_which_group(root: Path, opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(DeviceError, match="no permission for /dev/video0") as caught:
        opened(root, Bench(DeviceError("it does not open")))
    assert "usermod -aG video" in str(caught.value.hint)


def test_a_camera_that_opens_and_gives_nothing(root: Path, opened: Any) -> None:
    with pytest.raises(DeviceError, match=r"it delivers no more frames"):
        opened(root, Bench(frames(0)))


def test_a_camera_whose_first_read_never_returns_does_not_hang_the_start(root: Path, opened: Any) -> None:
    bench = Bench(hang)
    with pytest.raises(DeviceError, match=r"no frame arrived within 0\.8 s"):
        opened(root, bench, camera=QUICK)
    bench.captures[0].never.set()
    # Given back as soon as the driver lets go of it.
    assert bench.captures[0].released.wait(10)


def test_an_opening_that_never_returns(root: Path, opened: Any) -> None:
    never = threading.Event()

    class Stuck(Bench):
        def __call__(self, request: Any) -> FakeCapture:
            never.wait(30)
            return super().__call__(request)

    with pytest.raises(DeviceError, match=r"it did not open within 0\.8 s"):
        opened(root, Stuck(frames()), camera=QUICK)
    never.set()


def test_an_argus_daemon_that_hangs_is_said_with_the_command_that_helps(tmp_path: Path, opened: Any) -> None:
    bench = Bench(hang)
    with pytest.raises(DeviceError) as caught:
        opened(tmp_path, bench, "csi://0", QUICK)
    assert "sudo systemctl restart nvargus-daemon" in str(caught.value.hint)
    assert caught.value.where == "csi://0"
    bench.captures[0].never.set()


def test_dies_at_frame_100_and_returns_as_another_node(root: Path, opened: Any) -> None:
    def gone(_capture: FakeCapture) -> Iterator[None]:
        unplug(root, "video0")
        plug(root, "video2", "HD Webcam")
        yield from ()

    bench = Bench(then(frames(100), gone), frames(first=100))
    stream = opened(root, bench)
    given = until(stream, ended)
    outage = given[-1]
    assert [item for item in given if isinstance(item, Outage)] == given[-2:]
    assert outage.reopened_as == "/dev/video0 -> /dev/video2"
    assert outage.attempts >= 1
    assert outage.start_s <= outage.end_s
    assert bench.requests[-1].target == "/dev/video2"
    assert bench.captures[0].released.wait(10)
    after = stream.next()
    assert isinstance(after, Frame)
    assert after.seq >= 100


def test_unplugged_the_reason_says_so_and_it_is_tried_until_it_is_back(root: Path, opened: Any) -> None:
    def pulled(_capture: FakeCapture) -> Iterator[None]:
        unplug(root, "video0")
        yield from ()

    bench = Bench(then(frames(3), pulled), frames(first=50))
    stream = opened(root, bench)
    outage = until(stream, began)[-1]
    assert outage.reason == "there is no camera here: unplugged?"
    threading.Timer(0.2, lambda: plug(root, "video0", "HD Webcam")).start()
    again = until(stream, ended)[-1]
    assert (again.reason, again.reopened_as) == (outage.reason, "/dev/video0")
    # Looked for more than once, and opened only when it was there.
    assert again.attempts > 1
    assert len(bench.requests) == 2


def test_another_camera_under_the_old_number_is_not_taken_for_the_lost_one(root: Path, opened: Any) -> None:
    def swapped(_capture: FakeCapture) -> Iterator[None]:
        unplug(root, "video0")
        plug(root, "video0", "Thermal Camera")
        yield from ()

    bench = Bench(then(frames(3), swapped), frames())
    camera = CameraConfig(timeout_s=0.4, reconnect=ReconnectConfig(first_s=0.02, max_s=0.05, give_up_s=0.4))
    stream = opened(root, bench, camera=camera)
    with pytest.raises(DeviceError, match=r"no frames for 0\.4 s, \d+ attempts"):
        until(stream, ended)
    assert len(bench.requests) == 1


@pytest.mark.parametrize("freeze_s", [0.4, None])
def test_the_same_frame_over_and_over(freeze_s: float | None, root: Path, opened: Any) -> None:
    camera = CameraConfig(timeout_s=5.0, freeze_s=freeze_s, reconnect=CAMERA.reconnect)
    bench = Bench(then(frames(3), same()), frames(first=20))
    stream = opened(root, bench, camera=camera)
    if freeze_s is None:
        seen = [stream.next() for _ in range(300)]
        assert not any(isinstance(item, Outage) for item in seen)
        return
    outage = until(stream, began)[-1]
    assert outage.reason == "the image has not changed for 0.4 s"
    assert "camera.freeze_s: null" in str(outage.hint)
    until(stream, ended)
    assert value(stream.next()) >= 20


def test_opened_again_and_still_frozen_is_still_lost(root: Path, opened: Any) -> None:
    bench = Bench(then(frames(3), same()), same(), frames(first=90))
    stream = opened(root, bench, camera=QUICK)
    given = until(stream, ended)
    assert [began(item) for item in given if isinstance(item, Outage)] == [True, False]
    assert given[-1].attempts == 2
    assert value(stream.next()) >= 90


def test_a_read_that_never_returns_is_left_alone_and_the_camera_opened_again(root: Path, opened: Any) -> None:
    bench = Bench(then(frames(5), hang), frames(first=30))
    stream = opened(root, bench, camera=QUICK)
    outage = until(stream, began)[-1]
    assert outage.reason == "no frame for 0.8 s"
    until(stream, ended)
    assert value(stream.next()) >= 30
    assert not bench.captures[0].released.is_set()
    # Its late frames are nobody's.
    bench.captures[0].never.set()
    assert bench.captures[0].released.wait(10)


def test_no_more_than_a_few_threads_are_stuck_and_then_it_is_an_error(root: Path, opened: Any) -> None:
    """Waiting for ever without trying would look alive to a supervisor; a new process may open it."""
    bench = Bench(then(frames(2), hang), *[hang] * 20)
    camera = CameraConfig(timeout_s=0.2, freeze_s=None, reconnect=ReconnectConfig(first_s=0.01, max_s=0.01))
    stream = opened(root, bench, camera=camera)
    with pytest.raises(DeviceError, match=r"3 calls into the driver do not return.*no frame for 0\.2 s") as caught:
        until(stream, ended)
    assert "restart edge to end these calls" in str(caught.value.hint)
    assert len(bench.captures) == 3


def test_a_driver_that_comes_back_is_opened_again(root: Path, opened: Any) -> None:
    bench = Bench(then(frames(2), hang), hang, hang, frames(first=60))
    camera = CameraConfig(timeout_s=0.8, freeze_s=None, reconnect=ReconnectConfig(first_s=0.01, max_s=0.01))
    stream = opened(root, bench, camera=camera)
    until(stream, began)
    waiting = threading.Thread(target=lambda: until(stream, ended), daemon=True)
    waiting.start()
    held = time.monotonic() + 30
    while len(bench.captures) < 3 and time.monotonic() < held:
        time.sleep(0.01)
    bench.captures[0].never.set()
    waiting.join(30)
    assert not waiting.is_alive()
    assert value(stream.next()) >= 60


def test_closing_does_not_wait_for_a_read_that_never_returns(root: Path, opened: Any) -> None:
    bench = Bench(then(frames(2), hang))
    stream = opened(root, bench, camera=CameraConfig(timeout_s=60.0))
    stream.next()
    waiting = threading.Thread(target=lambda: until(stream, lambda item: item is None))
    waiting.start()
    stream.close()
    waiting.join(10)
    assert not waiting.is_alive()
    assert stream.next() is None


def test_a_failed_read_now_and_then_is_no_loss(root: Path, opened: Any) -> None:
    def now_and_then(_capture: FakeCapture) -> Iterator[Any]:
        for number in range(200):
            yield None if number % 3 == 1 else picture(number)

    stream = opened(root, Bench(now_and_then))
    assert all(isinstance(stream.next(), Frame) for _ in range(20))


def test_another_size_than_asked_for_is_noted(root: Path, opened: Any) -> None:
    bench = Bench(then(frames(2, size=(48, 64)), frames(first=9, size=(12, 16))))
    stream = opened(root, bench)
    until(stream, lambda frame: value(frame) >= 10)
    assert stream.notes == [
        "requested 32×24, but the camera delivers 64×48: v4l2-ctl --list-formats-ext",
        "the frames changed from 64×48 to 16×12",
    ]


def test_a_bug_in_reading_is_not_an_outage(root: Path, opened: Any) -> None:
    def broken(_capture: FakeCapture) -> Iterator[Any]:
        yield picture(0)
        raise ZeroDivisionError

    stream = opened(root, Bench(broken))
    with pytest.raises(ZeroDivisionError):
        until(stream, began)


def test_without_gstreamer_it_is_said_before_opening(tmp_path: Path) -> None:
    def has(api: str) -> bool:
        return api != "gstreamer"

    with pytest.raises(MissingDependencyError, match="built without GStreamer") as caught:
        cameras.camera_source("csi://0", CameraConfig(), root=tmp_path, backend=has)
    assert "sudo apt install libopencv-python" in str(caught.value.hint)
    with pytest.raises(MissingDependencyError, match="built without GStreamer"):
        cameras.camera_source("0", CameraConfig(decoder="hardware"), root=tmp_path, backend=has)


@pytest.mark.parametrize("name", ["", "-1", "video0", "csi://", "csi://x", "ftp://host/x", "0x0", "rtsp"])
def test_what_is_no_camera(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a camera address") as caught:
        cameras.camera_source(name, CameraConfig(), root=tmp_path, backend=lambda _api: True)
    assert "csi://0" in str(caught.value.hint)


def test_a_video_file_is_no_camera(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("clip.mp4").touch()
    with pytest.raises(UsageError) as caught:
        cameras.camera_source("clip.mp4", CameraConfig(), root=tmp_path, backend=lambda _api: True)
    assert caught.value.hint == "--video clip.mp4"


def request_of(name: str, root: Path, **settings: Any) -> Any:
    return cameras.camera_source(name, CameraConfig(**settings), root=root, backend=lambda _api: True).request()


def test_usb_is_asked_for_mjpg_size_and_rate(root: Path) -> None:
    asked = request_of("0", root)
    assert (asked.api, asked.target, asked.fourcc) == ("v4l2", "/dev/video0", "MJPG")
    assert (asked.width, asked.height, asked.fps) == (1280, 720, 30.0)
    link = "/dev/v4l/by-id/usb-HD_Webcam-video-index0"
    linked = request_of(link, root, format="yuyv")
    assert (linked.target, linked.fourcc, linked.opened_as) == ("/dev/video0", "YUYV", f"{link} -> /dev/video0")


def test_pipelines_are_those_of_the_examples(root: Path) -> None:
    csi = request_of("csi://1", root, flip=2, fps=59.94)
    assert csi.target == (
        "nvarguscamerasrc sensor-id=1 ! video/x-raw(memory:NVMM),width=1280,height=720,framerate=60000/1001 ! "
        "nvvidconv flip-method=2 ! video/x-raw,width=1280,height=720,format=BGRx ! videoconvert ! "
        "video/x-raw,format=BGR ! appsink drop=true max-buffers=1 sync=false"
    )
    hardware = request_of("0", root, decoder="hardware")
    assert hardware.api == "gstreamer"
    assert hardware.target.startswith(
        "v4l2src device=/dev/video0 io-mode=2 ! image/jpeg,width=1280,height=720,framerate=30/1 ! "
        "nvv4l2decoder mjpeg=1 ! nvvidconv ! video/x-raw,format=BGRx ! videoconvert ! "
    )
    own = request_of("0", root, pipeline=Secret("v4l2src device={device} ! videoconvert ! appsink"))
    assert own.target.reveal() == "v4l2src device=/dev/video0 ! videoconvert ! appsink"


def test_passwords_are_in_no_message(tmp_path: Path) -> None:
    place = cameras.camera_source(
        "rtsp://me:secret@host:554/a", CameraConfig(), root=tmp_path, backend=lambda _api: True
    )
    error = place.diagnose("it does not open")
    assert "secret" not in f"{error}{place.name}{place.request().opened_as}"
    assert place.name == "rtsp://***@host:554/a"
    assert place.request().target == Secret("rtsp://me:secret@host:554/a")
    assert "secret" not in repr(place.request())
    assert "ffprobe -rtsp_transport tcp" in str(error.hint)


def test_damaged_jpegs_of_a_stream_are_skips_and_each_frame_has_its_own_size() -> None:
    """FFmpeg would give half a picture, and scale what follows to the first size."""
    server = Server()
    server.is_damaged = lambda number: number % 3 == 1
    server.size_of = lambda number: (48, 64) if number < 30 else (60, 160)
    try:
        camera = CameraConfig(timeout_s=10.0)
        stream = LiveStream(cameras.camera_source(server.url, camera), camera)
        shapes, reasons = set(), set()
        while len(shapes) < 2 or not reasons:
            frame = stream.next()
            assert isinstance(frame, Frame)
            try:
                shapes.add(frame.load().shape[:2])
            except DataError as exc:
                reasons.add(exc.what)
        stream.close()
    finally:
        server.close()
    assert shapes == {(48, 64), (60, 160)}
    assert all("without its end" in reason for reason in reasons)
    assert stream.notes == ["the frames changed from 64×48 to 160×60"]


def test_an_opening_gets_more_time_with_each_attempt(root: Path, opened: Any) -> None:
    bench = Bench(then(frames(2), hang), hang, hang, frames(first=60))
    camera = CameraConfig(timeout_s=0.2, freeze_s=None, reconnect=ReconnectConfig(first_s=0.01, max_s=0.5))
    stream = opened(root, bench, camera=camera)
    until(stream, began)
    waiting = threading.Thread(target=stream.next, daemon=True)
    waiting.start()
    deadline = time.monotonic() + 30
    while len(bench.requests) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    for capture in bench.captures:
        capture.never.set()
    waiting.join(30)
    assert [request.timeout_s for request in bench.requests][:3] == [0.2, 0.4, 0.5]


def test_a_region_of_interest_is_the_frame(root: Path, opened: Any) -> None:
    def marked(_capture: FakeCapture) -> Iterator[Any]:
        pixels = picture(1)
        pixels[6:18, 8:24] = 200
        while True:
            yield pixels

    camera = CameraConfig(width=32, height=24, freeze_s=None, roi=(0.25, 0.25, 0.5, 0.5))
    stream = opened(root, Bench(marked), camera=camera)
    frame = stream.next().load()
    assert (frame.shape, frame.min(), frame.flags.c_contiguous) == ((12, 16, 3), 200, True)
    assert (stream.opened.width, stream.opened.height) == (16, 12)


def test_a_region_beyond_the_frames_is_said_at_once(root: Path, opened: Any) -> None:
    camera = CameraConfig(width=32, height=24, freeze_s=None, roi=(0, 0, 640, 480))
    with pytest.raises(DataError, match=r"the roi \[0, 0, 640, 480\] reaches beyond the image of 32×24"):
        opened(root, Bench(frames()), camera=camera)


def test_captures_with_other_ffmpeg_options_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenCV reads them from one environment variable: TCP and UDP cameras of one run must not share a value."""
    name = "OPENCV_FFMPEG_CAPTURE_OPTIONS"
    monkeypatch.delenv(name, raising=False)
    seen: list[tuple[str, str | None]] = []
    opened_by = threading.Barrier(2)

    def open_one(options: dict[str, str]) -> None:
        opened_by.wait(10)
        for _ in range(20):
            with opencv_capture._FFMPEG_OPTIONS.set_to(options):
                seen.append((options.get("rtsp_transport", ""), os.environ.get(name)))

    threads = [threading.Thread(target=open_one, args=(each,)) for each in ({}, {"rtsp_transport": "udp"})]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert {pair for pair in seen if pair[0]} == {("udp", "rtsp_transport;udp")}
    assert {pair for pair in seen if not pair[0]} == {("", None)}
    assert (len(seen), name in os.environ) == (40, False)

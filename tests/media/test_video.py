"""Videos, recordings and what is kept for replaying, with files that OpenCV really reads."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edge.errors import DataError, UsageError
from edge.media.opencv_capture import VideoStream
from edge.media.recorder import INDEX, SavingStream
from edge.media.replay import ReplayStream
from edge.media.streams import Frame, LimitedStream, OpenedSource, Outage
from tests.support.fake_cameras import picture


@pytest.fixture
def video(tmp_path: Path) -> Callable[..., Path]:
    """``video(frames, fps=25)``: an MJPG file whose frame n is of brightness 10 n."""

    def make(count: int, *, fps: float = 25.0, name: str = "v.avi") -> Path:
        path = tmp_path / name
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), fps, (64, 48))
        for number in range(count):
            writer.write(np.full((48, 64, 3), 10 * number % 256, np.uint8))
        writer.release()
        return path

    return make


def everything(stream: Any) -> list[Any]:
    found = []
    while (item := stream.next()) is not None:
        found.append(item)
    return found


def brightness(frame: Frame) -> float:
    return float(frame.load().mean())


def test_every_frame_of_a_video_in_order(video: Callable[..., Path]) -> None:
    stream = VideoStream(video(20))
    assert (stream.opened.kind, stream.opened.live, stream.opened.total, stream.opened.fps) == (
        "video",
        False,
        20,
        25.0,
    )
    assert (stream.opened.width, stream.opened.height, stream.dropped) == (64, 48, None)
    frames = everything(stream)
    assert [frame.seq for frame in frames] == list(range(20))
    assert [brightness(frame) for frame in frames] == pytest.approx([10 * n for n in range(20)], abs=3)
    assert stream.notes == []


def test_a_truncated_video_gives_what_is_there_and_says_so(video: Callable[..., Path]) -> None:
    path = video(100)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    stream = VideoStream(path)
    count = len(everything(stream))
    assert 20 < count < 80
    assert stream.notes == [f"{path} ends after {count} of 100 frames: it may be truncated"]


@pytest.mark.parametrize("data", [b"", b"no video", b"RIFF\x00\x00\x00\x00AVI LIST"])
def test_what_is_no_video(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "v.avi"
    path.write_bytes(data)
    with pytest.raises(DataError, match="not one frame can be read"):
        VideoStream(path)


def test_no_such_video(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such video"):
        VideoStream(tmp_path / "gone.avi")
    with pytest.raises(DataError, match="this is a folder, not a video") as caught:
        VideoStream(tmp_path)
    assert caught.value.hint == f"--images {tmp_path}"


class Told:
    """A live stream that gives what it is told, with the times that it is told."""

    opened = OpenedSource(kind="v4l2", opened_as="/dev/video0", live=True, width=32, height=24, fps=30.0)
    dropped = 3
    notes = ("from the camera",)

    def __init__(self, *items: Frame | Outage) -> None:
        self._items = iter(items)
        self.closed = False

    def next(self) -> Frame | Outage | None:
        return next(self._items, None)

    def close(self) -> None:
        self.closed = True


def frame(number: int, t_s: float) -> Frame:
    return Frame(number, f"frame {number}", f"camera: frame {number}", 500.0 + t_s, lambda: picture(20 * number))


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Five frames, of which the fourth came after an outage."""
    folder = tmp_path / "recording"
    gap = {"reason": "unplugged", "hint": "plug it in"}
    told = Told(
        frame(0, 0.0), frame(2, 0.05), frame(3, 0.1), Outage(500.15, None, **gap),
        Outage(500.15, 500.25, **gap, reopened_as="/dev/video1", attempts=2), frame(7, 0.25), frame(8, 0.3),
    )  # fmt: skip
    stream = SavingStream(told, folder)
    while (item := stream.next()) is not None:
        if isinstance(item, Frame):
            item.load()
    assert (stream.dropped, stream.notes) == (3, ["from the camera"])
    stream.close()
    assert told.closed
    return folder


def test_what_was_saved_plays_again_fast(recording: Path) -> None:
    stream = ReplayStream(recording, fast=True)
    opened = stream.opened
    assert (opened.kind, opened.live, opened.total, opened.replayed) == ("replay", False, 5, str(recording))
    items = everything(stream)
    assert [item.seq for item in items if isinstance(item, Frame)] == [0, 2, 3, 7, 8]
    assert [brightness(item) for item in items if isinstance(item, Frame)] == pytest.approx(
        [0, 40, 60, 140, 160], abs=2
    )
    outages = [item for item in items if isinstance(item, Outage)]
    assert [(item.reason, item.reopened_as, item.attempts) for item in outages] == [
        ("unplugged", None, 0), ("unplugged", "/dev/video1", 2),
    ]  # fmt: skip
    assert stream.dropped is None


def test_at_its_own_pace_it_is_live(recording: Path) -> None:
    stream = ReplayStream(recording)
    assert stream.opened.live
    assert stream.opened.replayed == str(recording)
    started = time.monotonic()
    items = everything(stream)
    assert time.monotonic() - started >= 0.3
    frames = [item for item in items if isinstance(item, Frame)]
    # On a busy machine some are overtaken; then they are counted.
    assert len(frames) + (stream.dropped or 0) == 5
    whole = dict(zip([0, 2, 3, 7, 8], [0.0, 0.05, 0.1, 0.25, 0.3], strict=True))
    starts = [item.since_s - whole[item.seq] for item in frames]
    assert starts == pytest.approx([starts[0]] * len(frames), abs=1e-6)
    assert sum(isinstance(item, Outage) for item in items) == 2


def test_who_is_late_gets_the_newest_that_is_due(recording: Path) -> None:
    now = [100.0]
    stream = ReplayStream(recording, clock=lambda: now[0])
    first = stream.next()
    now[0] += 0.12
    second = stream.next()
    assert (first.seq, second.seq, stream.dropped) == (0, 3, 1)
    # An outage is never skipped.
    now[0] += 0.3
    assert isinstance(stream.next(), Outage)


def test_closing_ends_a_wait(video: Callable[..., Path]) -> None:
    stream = ReplayStream(video(5, fps=0.1))
    stream.next()
    stream.close()
    assert stream.next() is None


def test_a_video_is_a_recording_too(video: Callable[..., Path]) -> None:
    path = video(10, fps=50.0)
    stream = ReplayStream(path)
    frames = everything(stream)
    assert len(frames) + (stream.dropped or 0) == 10
    starts = [f.since_s - f.seq / 50 for f in frames]
    assert starts == pytest.approx([starts[0]] * len(frames), abs=1e-6)


def test_a_recording_that_was_cut_off_ends_there(recording: Path) -> None:
    data = (recording / INDEX).read_bytes()
    (recording / INDEX).write_bytes(data[:-20])
    assert ReplayStream(recording, fast=True).opened.total == 4


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: "", "not a recording: line 1"),
        (
            lambda text: text.replace('"edge_frames":1', '"edge_frames":9'),
            "recording of format 9; this edge reads format 1",
        ),
        (lambda text: text.replace('"seq":2', '"seq":"two"'), "the recording is damaged: line 3"),
        (lambda text: text.split("\n")[0] + "\n", "the recording has no frames"),
    ],
    ids=["empty", "format", "damaged", "no frames"],
)
def test_what_is_no_recording(damage: Callable[[str], str], words: str, recording: Path) -> None:
    index = recording / INDEX
    index.write_text(damage(index.read_text()))
    with pytest.raises(DataError, match=words):
        ReplayStream(recording)


def test_a_folder_without_a_recording_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a recording") as caught:
        ReplayStream(tmp_path)
    assert caught.value.hint == "edge run --save-frames DIR makes one"


def test_a_frame_that_is_gone_is_an_error_of_that_frame(recording: Path) -> None:
    (recording / "00000002.jpg").unlink()
    frames = [item for item in everything(ReplayStream(recording, fast=True)) if isinstance(item, Frame)]
    with pytest.raises(DataError, match="cannot read the image"):
        frames[1].load()


def test_a_file_name_in_a_recording_leads_nowhere_else(recording: Path) -> None:
    index = recording / INDEX
    index.write_text(index.read_text().replace("00000002.jpg", "../../etc/00000002.jpg"))
    frames = [item for item in everything(ReplayStream(recording, fast=True)) if isinstance(item, Frame)]
    assert frames[1].where == str(recording / "00000002.jpg")


def test_frames_are_not_saved_over_those_of_another_run(recording: Path) -> None:
    with pytest.raises(UsageError, match="already contains the frames of another run"):
        SavingStream(Told(), recording)


def test_a_disk_that_refuses_ends_the_saving_not_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    stream = SavingStream(Told(*(frame(n, n / 10) for n in range(3))), folder)
    (folder / "00000000.jpg").mkdir()
    assert [item.load().shape for item in everything(stream)] == [(24, 32, 3)] * 3
    stream.close()
    assert any(note.startswith("no more frames were saved: cannot write") for note in stream.notes)


def test_no_more_frames_than_wanted(video: Callable[..., Path]) -> None:
    stream = LimitedStream(VideoStream(video(10)), 3)
    assert (stream.opened.total, len(everything(stream))) == (3, 3)
    assert LimitedStream(Told(), 7).opened.total == 7


def test_a_codec_that_this_opencv_lacks_is_named(video: Callable[..., Path]) -> None:
    path = video(3)
    path.write_bytes(path.read_bytes().replace(b"MJPG", b"XYZ1"))
    with pytest.raises(DataError, match="its codec is XYZ1") as caught:
        VideoStream(path)
    assert "ffmpeg -i" in str(caught.value.hint)

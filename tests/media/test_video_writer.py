"""Videos that are written while frames come: codecs that OpenCV has, the pace, and what goes wrong."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edge.errors import StoreError, UsageError
from edge.media.video_writer import CODECS, LEAST_FREE_BYTES, VideoWriter, annotated, check_video_path, fitted


def gray(value: int, *, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    return np.full((*size, 3), value, np.uint8)


def whole(_path: Path) -> bool:
    return True


class Kept:
    """A writer that keeps what it gets; it can be slow, or fail."""

    def __init__(self) -> None:
        self.frames: list[np.ndarray] = []
        self.may_write = threading.Event()
        self.may_write.set()
        self.error: Exception | None = None
        self.size = (0, 0)

    def __call__(self, _path: Path, _fps: float, size: tuple[int, int]) -> tuple[Any, str]:
        self.size = size
        return self, "kept"

    def write(self, pixels: np.ndarray) -> None:
        self.may_write.wait(30)
        if self.error is not None:
            raise self.error
        assert pixels.shape == (self.size[1], self.size[0], 3)
        self.frames.append(pixels)

    def release(self) -> None:
        pass


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_what_is_written_can_be_read(suffix: str, tmp_path: Path) -> None:
    path, warnings = tmp_path / f"out{suffix}", []
    writer = VideoWriter(path, fps=10, live=False, warn=warnings.append)
    for number in range(6):
        writer.add(gray(40 * number), [], t_s=0.0)
    writer.close()
    assert (writer.failure, warnings, writer.written) == (None, [], 6)
    assert writer.codec in CODECS[suffix]
    capture = cv2.VideoCapture(str(path))
    values = []
    while (read := capture.read())[0]:
        values.append(float(read[1].mean()))
    assert values == pytest.approx([40 * number for number in range(6)], abs=6)


def test_a_live_source_keeps_its_pace_and_a_gap_is_short(tmp_path: Path) -> None:
    kept = Kept()
    writer = VideoWriter(tmp_path / "v.mp4", fps=10, live=True, warn=print, open_writer=kept, is_readable=whole)
    for t_s in (5.0, 5.05, 5.3, 65.3):
        writer.add(gray(1), [], t_s=t_s)
        while writer._queue:
            pass
    writer.close()
    # One at once; 0.05 s are half a frame; 0.3 s are three; a minute is two seconds.
    assert len(kept.frames) == 1 + 3 + 20


def test_a_live_source_never_waits_and_files_do(tmp_path: Path) -> None:
    kept = Kept()
    kept.may_write.clear()
    live = VideoWriter(tmp_path / "live.mp4", fps=10, live=True, warn=print, open_writer=kept, is_readable=whole)
    for number in range(20):
        live.add(gray(number), [], t_s=float(number))
    assert live.dropped >= 15
    kept.may_write.set()
    live.close()
    files = Kept()
    writer = VideoWriter(tmp_path / "files.mp4", fps=10, live=False, warn=print, open_writer=files, is_readable=whole)
    for number in range(20):
        writer.add(gray(number), [], t_s=0.0)
    writer.close()
    assert (len(files.frames), writer.dropped) == (20, 0)


def test_a_disk_that_becomes_full_ends_the_video_and_nothing_else(tmp_path: Path) -> None:
    warnings: list[str] = []
    writer = VideoWriter(
        tmp_path / "v.mp4", fps=10, live=False, warn=warnings.append, open_writer=Kept(),
        free_bytes=lambda _folder: LEAST_FREE_BYTES - 1,
    )  # fmt: skip
    for _ in range(20):
        writer.add(gray(1), [], t_s=0.0)
    writer.close()
    assert writer.failure == "the disk is nearly full"
    assert warnings == [f"{tmp_path / 'v.mp4'}: the video ends here: the disk is nearly full; the run goes on"]


def test_an_encoder_that_fails_is_said(tmp_path: Path) -> None:
    kept, warnings = Kept(), []
    kept.error = RuntimeError("no encoder left")
    writer = VideoWriter(
        tmp_path / "v.mp4", fps=10, live=False, warn=warnings.append, open_writer=kept, is_readable=whole
    )
    for _ in range(20):
        writer.add(gray(1), [], t_s=0.0)
    writer.close()
    assert writer.failure == "no encoder left"
    assert len(warnings) == 1


def test_frames_of_another_size_are_fitted_into_the_first(tmp_path: Path) -> None:
    kept = Kept()
    writer = VideoWriter(tmp_path / "v.mp4", fps=10, live=False, warn=print, open_writer=kept, is_readable=whole)
    for size in ((49, 65), (96, 64), (10, 200)):
        writer.add(gray(9, size=size), ["x"], t_s=0.0)
    writer.close()
    assert (len(kept.frames), kept.size, writer.failure) == (3, (64, 48), None)
    framed = fitted(gray(200, size=(96, 64)), (64, 48))
    assert (framed[:, :15].max(), framed[:, 17:47].min()) == (0, 200)


def test_text_is_drawn_whatever_is_in_it() -> None:
    for line in ("hen 97 %", "Ä\x1b[2J\n", "", "x" * 5000):
        picture = annotated(gray(100), [line, "front"])
        assert picture.max() > 150
        assert picture.min() < 50
    assert (annotated(gray(100), []) == 100).all()


def test_a_path_that_is_no_video_is_refused_first(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'\.txt' is not the extension of a video file"):
        check_video_path(tmp_path / "a.txt")
    with pytest.raises(StoreError, match="cannot be written here"):
        check_video_path(tmp_path / "missing" / "a.mp4")

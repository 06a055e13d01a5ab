"""Write frames with a few lines of text on them to a video file, in a thread of their own.

The codec is one that the installed OpenCV really has: each candidate of the file's ending is opened until one works. An
OpenCV with GStreamer tries the hardware encoder of a Jetson first (``nvv4l2h264enc``; the Orin Nano has none). That
pipeline follows NVIDIA's examples and was not run on a Jetson.

A live source is written at its own pace: a frame is repeated, or left out, so that the video takes as long as the
recording did. Frames of files are written once each. The queue is bounded: a live source that is faster than the
encoder loses frames, which are counted; files wait for the encoder.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from edge.errors import StoreError, UsageError
from edge.media.opencv_capture import has_backend
from edge.media.pictures import opencv

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Pixels = npt.NDArray[np.uint8]

# FOURCCs in the order in which they are tried. PyPI's OpenCV has no H.264 encoder.
CODECS: dict[str, tuple[str, ...]] = {
    ".mp4": ("avc1", "mp4v"),
    ".mkv": ("avc1", "mp4v", "MJPG"),
    ".mov": ("avc1", "mp4v"),
    ".avi": ("XVID", "MJPG"),
    ".webm": ("VP80",),
}
_MUXERS = {".mp4": "qtmux", ".mov": "qtmux", ".mkv": "matroskamux"}
_MOST_WAITING = 4
# Writing ends while there is still room for what closes the file and for the rest of the system.
LEAST_FREE_BYTES = 64 << 20
_LOOK_S = 1.0
# A gap of a live source is this long in the video, whatever it was.
_LONGEST_STILL_S = 2.0
_CLOSE_S = 10.0


class Writer(Protocol):
    """An open video file."""

    def write(self, pixels: Pixels) -> None:
        """Append one frame, uint8 H×W×3 BGR of the size that the file was opened with."""

    def release(self) -> None:
        """Finish and close the file."""


OpenWriter = Callable[[Path, float, tuple[int, int]], tuple[Writer, str]]


class _Frame(NamedTuple):
    pixels: Pixels
    lines: tuple[str, ...]
    t_s: float


def check_video_path(path: Path) -> None:
    """Refuse an unusable video file before anything is opened.

    Raises:
        UsageError: Its ending names no container.
        StoreError: Its folder is not there, or not writable.
    """
    if path.suffix.lower() not in CODECS:
        raise UsageError(
            f"'{path.suffix}' is not the extension of a video file", where=path, hint=f"use one of {', '.join(CODECS)}"
        )
    folder = path.absolute().parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise StoreError("the video cannot be written here", where=path, hint="name a file in an existing folder")


def open_opencv_writer(path: Path, fps: float, size: tuple[int, int]) -> tuple[Writer, str]:
    """Open a video file with the first codec that works.

    Args:
        path: The file; its ending chooses the container.
        fps: Frames per second.
        size: Width and height, both even.

    Returns:
        The writer, and the name of its codec.

    Raises:
        StoreError: No codec works.
    """
    cv2 = opencv()
    suffix = path.suffix.lower()
    attempts: list[tuple[str, tuple[Any, ...]]] = []
    if has_backend("gstreamer") and suffix in _MUXERS:
        attempts.append(("H.264, nvv4l2h264enc", (_pipeline(path), cv2.CAP_GSTREAMER, 0, fps, size)))
    if has_backend("ffmpeg"):
        for fourcc in CODECS[suffix]:
            arguments = (str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*fourcc), fps, size)
            attempts.append((fourcc, arguments))
    for name, arguments in attempts:
        writer = cv2.VideoWriter(*arguments)
        if writer.isOpened():
            return writer, name
        writer.release()
    raise StoreError(
        f"this OpenCV has no encoder for {suffix} (tried {', '.join(name for name, _ in attempts) or 'none'})",
        where=path,
        hint="use another extension: .mp4, .mkv or .avi; pip install opencv-python-headless has FFmpeg",
    )


def _pipeline(path: Path) -> str:
    location = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return (
        "appsrc ! videoconvert ! video/x-raw,format=BGRx ! nvvidconv ! video/x-raw(memory:NVMM),format=NV12 ! "
        f'nvv4l2h264enc ! h264parse ! {_MUXERS[path.suffix.lower()]} ! filesink location="{location}"'
    )


class VideoWriter:
    """A video that is written during the run. For a live source, ``add`` never waits.

    Args:
        path: The file; it is replaced.
        fps: Frames per second of the video.
        live: The frames have times, and more may come than can be encoded.
        warn: Gets one sentence when writing ends early.
    """

    def __init__(
        self, path: Path, *, fps: float, live: bool, warn: Callable[[str], None],
        open_writer: OpenWriter = open_opencv_writer, free_bytes: Callable[[Path], int] | None = None,
        is_readable: Callable[[Path], bool] | None = None,
    ) -> None:  # fmt: skip
        self.path = path
        self.codec: str | None = None
        self.written = self.dropped = 0
        self.failure: str | None = None
        self._fps = fps
        self._live = live
        self._warn = warn
        self._open_writer = open_writer
        self._free_bytes = free_bytes or (lambda folder: shutil.disk_usage(folder).free)
        self._is_readable = is_readable or _is_readable
        self._queue: deque[_Frame] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._writer: Writer | None = None
        self._size = (0, 0)
        self._slots = 0.0
        self._last_s: float | None = None
        self._looked_s = float("-inf")
        self._thread = threading.Thread(target=self._run, name="video", daemon=True)
        self._thread.start()

    def add(self, pixels: Pixels, lines: Sequence[str], *, t_s: float) -> None:
        """Write ``pixels``, uint8 H×W×3 BGR, with ``lines`` on them; ``t_s`` is the capture time in seconds."""
        with self._changed:
            if self.failure is not None or self._closing:
                return
            if self._live and len(self._queue) >= _MOST_WAITING:
                self._queue.popleft()
                self.dropped += 1
            while not self._live and len(self._queue) >= _MOST_WAITING and self.failure is None:
                self._changed.wait(_LOOK_S)
            self._queue.append(_Frame(pixels, tuple(lines), t_s))
            self._changed.notify_all()

    def close(self) -> None:
        """Write the queued frames, then finish and close the file.

        A file that cannot be read afterwards is a ``failure`` as well.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(_CLOSE_S)
        if self._thread.is_alive():
            self._fail(f"the encoder did not end within {_CLOSE_S:g} s")
        elif self.written and self.failure is None and not self._is_readable(self.path):
            self._fail("the file cannot be read back: is the disk full?")

    # in the thread

    def _run(self) -> None:
        try:
            while (frame := self._next()) is not None:
                self._write(frame)
        except Exception as exc:  # noqa: BLE001 - the loop goes on; the end of the run says it
            self._fail(getattr(exc, "what", None) or str(exc) or type(exc).__name__)
        finally:
            if self._writer is not None:
                self._writer.release()

    def _next(self) -> _Frame | None:
        with self._changed:
            while not self._queue and not self._closing:
                self._changed.wait()
            if not self._queue or self.failure is not None:
                return None
            frame = self._queue.popleft()
            self._changed.notify_all()
            return frame

    def _write(self, frame: _Frame) -> None:
        if not self._has_room():
            raise StoreError("the disk is nearly full")
        if self._writer is None:
            height, width = frame.pixels.shape[:2]
            # Most codecs take even sizes only.
            self._size = (max(width & ~1, 2), max(height & ~1, 2))
            self._writer, self.codec = self._open_writer(self.path, self._fps, self._size)
        count = self._count(frame.t_s)
        if count:
            picture = annotated(fitted(frame.pixels, self._size), frame.lines)
            for _ in range(count):
                self._writer.write(picture)
            self.written += count

    def _count(self, t_s: float) -> int:
        """Number of times that a frame is written, so that the video keeps the pace of its source."""
        if not self._live:
            return 1
        step_s = 0.0 if self._last_s is None else min(max(t_s - self._last_s, 0.0), _LONGEST_STILL_S)
        self._slots += 1.0 if self._last_s is None else step_s * self._fps
        self._last_s = t_s
        count = int(self._slots)
        self._slots -= count
        return count

    def _has_room(self) -> bool:
        now = time.monotonic()
        if now - self._looked_s < _LOOK_S:
            return True
        self._looked_s = now
        return self._free_bytes(self.path.absolute().parent) >= LEAST_FREE_BYTES

    def _fail(self, what: str) -> None:
        with self._changed:
            self.failure = what
            self._queue.clear()
            self._changed.notify_all()
        self._warn(f"{self.path}: the video ends here: {what}; the run goes on")


def fitted(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Return a copy of ``pixels`` in a frame of ``size`` (width, height): unchanged, cropped, or with bars."""
    cv2 = opencv()
    width, height = size
    rows, columns = pixels.shape[:2]
    if 0 <= rows - height <= 1 and 0 <= columns - width <= 1:
        same: Pixels = pixels[:height, :width].copy()
        return same
    scale = min(width / columns, height / rows)
    inner = (max(min(round(columns * scale), width), 1), max(min(round(rows * scale), height), 1))
    small = cv2.resize(pixels, inner, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    top, left = (height - inner[1]) // 2, (width - inner[0]) // 2
    framed: Pixels = cv2.copyMakeBorder(
        small, top, height - inner[1] - top, left, width - inner[0] - left, cv2.BORDER_CONSTANT
    )
    return framed


def annotated(pixels: Pixels, lines: Sequence[str]) -> Pixels:
    """Draw ``lines`` into the lower left corner of ``pixels``, white with a black edge; returns ``pixels``.

    OpenCV's own letters are those of ASCII: others become a question mark.
    """
    cv2 = opencv()
    height, width = pixels.shape[:2]
    scale = max(min(height / 480, width / 640), 0.35)
    step, edge = round(24 * scale), max(round(3 * scale), 2)
    for number, line in enumerate(reversed([line for line in lines if line])):
        text = "".join(letter if " " <= letter <= "~" else "?" for letter in line)[:200]
        at = (round(8 * scale), height - round(10 * scale) - number * step)
        font, size = cv2.FONT_HERSHEY_SIMPLEX, 0.7 * scale
        cv2.putText(pixels, text, at, font, size, (0, 0, 0), edge + 1, cv2.LINE_AA)
        cv2.putText(pixels, text, at, font, size, (255, 255, 255), max(edge // 2, 1), cv2.LINE_AA)
    return pixels


def _is_readable(path: Path) -> bool:
    cv2 = opencv()
    if not has_backend("ffmpeg"):
        return path.is_file() and path.stat().st_size > 0
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    try:
        return bool(capture.isOpened() and capture.grab())
    finally:
        capture.release()

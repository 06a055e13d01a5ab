"""Every frame of a video file, in order."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from edge.errors import DataError, DeviceError
from edge.media.labels import shown
from edge.media.opencv_capture import OpenCapture, Request, open_opencv_capture
from edge.media.streams import Clock, Frame, OpenedSource

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Pixels = npt.NDArray[np.uint8]

# Containers estimate their number of frames; this much less than they say is an end that was not meant.
_SHORTAGE = 0.01


class _Read(NamedTuple):
    pixels: Pixels | None
    since_s: float
    decode_ms: float


class VideoStream:
    """A video, from its first frame to its last.

    Raises:
        DataError: there is no such file, or not one frame can be had from it.
        MissingDependencyError: this OpenCV was built without FFmpeg.
    """

    def __init__(
        self, path: Path, *, open_capture: OpenCapture = open_opencv_capture, clock: Clock = time.monotonic
    ) -> None:
        self.dropped = None
        self.notes: list[str] = []
        self._path = path
        self._where = shown(str(path))
        self._clock = clock
        if not path.is_file():
            raise DataError("there is no such video", where=self._where)
        try:
            self._capture = open_capture(Request(api="ffmpeg", target=str(path), opened_as=self._where))
        except DeviceError as exc:
            raise self._no_video() from exc
        self._closed = False
        self._seq = 0
        self._first = self._read()
        if self._first is None or self._first.pixels is None:
            self._capture.release()
            raise self._no_video()
        height, width = self._first.pixels.shape[:2]
        self.opened = OpenedSource(
            kind="video", opened_as=self._where, live=False, width=width, height=height, fps=self._capture.fps,
            total=self._capture.frames,
        )  # fmt: skip

    def next(self) -> Frame | None:
        """The next frame, decoded: video has to be decoded in order."""
        if self._closed:
            return None
        read, self._first = self._first or self._read(), None
        if read is None:
            self._look_at_the_end()
            return None
        seq, name = self._seq, f"frame {self._seq}"
        self._seq += 1
        return Frame(seq, name, f"{self._where}: {name}", read.since_s, _VideoLoad(read.pixels), read.decode_ms)

    def close(self) -> None:
        """No more frames. The file is given back with the stream: somebody may be reading it now."""
        self._closed = True

    def _read(self) -> _Read | None:
        since_s, start = self._clock(), time.monotonic()
        if not self._capture.grab():
            return None
        pixels = self._capture.retrieve()
        return _Read(pixels, since_s, (time.monotonic() - start) * 1e3)

    def _look_at_the_end(self) -> None:
        self._closed = True
        self._capture.release()
        total = self.opened.total
        if total is not None and self._seq < total * (1 - _SHORTAGE) - 1:
            self.notes.append(f"{self._where} says that it has {total} frames, and ends after {self._seq}: cut off?")

    def _no_video(self) -> DataError:
        return DataError(
            "not one frame can be read: not a video, cut off at its head, or of a codec that this OpenCV lacks",
            where=self._where,
            hint=f"ffprobe '{self._where}'",
        )


class _VideoLoad:
    """The pixels that were decoded already."""

    __slots__ = ("_pixels",)

    def __init__(self, pixels: Pixels | None) -> None:
        self._pixels = pixels

    def __call__(self) -> Pixels:
        if self._pixels is None:
            raise DataError("the frame cannot be decoded")
        return self._pixels

"""Open cameras, streams and videos with OpenCV. No other module does.

The interface :class:`Capture` allows tests with captures that fail on purpose.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import msgspec

from edge.artifacts import Secret, masked_url
from edge.errors import DEPENDENCIES, DataError, DeviceError, MissingDependencyError
from edge.media.labels import shown
from edge.media.pictures import decode, opencv
from edge.media.streams import Clock, Frame, OpenedSource

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Pixels = npt.NDArray[np.uint8]
# Containers estimate their number of frames; if this many are missing, the file ended early.
_SHORTAGE = 0.01


class _Read(NamedTuple):
    pixels: Pixels | None
    since_s: float
    decode_ms: float


class _VideoLoad:
    """Returns pixels that are already decoded."""

    __slots__ = ("_pixels",)

    def __init__(self, pixels: Pixels | None) -> None:
        self._pixels = pixels

    def __call__(self) -> Pixels:
        if self._pixels is None:
            raise DataError("the frame cannot be decoded")
        return self._pixels


Api = Literal["v4l2", "gstreamer", "ffmpeg"]
_CONSTANTS: Mapping[str, str] = {"v4l2": "CAP_V4L2", "gstreamer": "CAP_GSTREAMER", "ffmpeg": "CAP_FFMPEG"}
# A driver's capture time that is older than this uses another clock.
_OLDEST_S = 60.0


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A capture to open: a node, URL, file or GStreamer pipeline, with the requested size, rate and FOURCC.

    ``opened_as`` is how it is called in records. With ``checks_jpegs``, the JPEGs of an MJPEG stream are decoded one by
    one: a damaged one is an error of its frame, and each has its own size.
    """

    api: Api
    target: str | Secret
    opened_as: str
    width: int | None = None
    height: int | None = None
    fps: float | None = None
    fourcc: str | None = None
    timeout_s: float | None = None
    options: dict[str, str] = {}
    checks_jpegs: bool = False


class Capture(Protocol):
    """An open source of frames, for use in one thread."""

    @property
    def fps(self) -> float | None:
        """Frames per second according to the source; None if unknown."""

    @property
    def frames(self) -> int | None:
        """Number of frames of a file according to its header; None for a live source."""

    def grab(self) -> bool:
        """Wait for the next frame; return False at the end."""

    def captured_s(self) -> float:
        """Return the capture time of the grabbed frame, on the monotonic clock."""

    def retrieve(self) -> npt.NDArray[np.uint8] | None:
        """Decode the grabbed frame: uint8 H×W×3 BGR; None if it cannot be decoded.

        Raises:
            DataError: This frame is damaged; the next ones may not be.
        """

    def release(self) -> None:
        """Release it."""


OpenCapture = Callable[[Request], Capture]


def open_opencv_capture(request: Request) -> Capture:
    """Open the source that ``request`` describes.

    Raises:
        DeviceError: it cannot be opened; OpenCV gives no reason, so the caller must find it.
        MissingDependencyError: OpenCV is missing, or was built without the needed backend.
    """
    cv2 = opencv()
    if not cv2.videoio_registry.hasBackend(getattr(cv2, _CONSTANTS[request.api])):
        raise missing_backend(request.api)
    _set_environment(request)
    target = request.target.reveal() if isinstance(request.target, Secret) else request.target
    try:
        with _FFMPEG_OPTIONS.set_to(request.options if request.api == "ffmpeg" else None):
            capture = cv2.VideoCapture(target, getattr(cv2, _CONSTANTS[request.api]), _parameters(cv2, request))
    except cv2.error as exc:
        text = str(getattr(exc, "err", "") or exc)
        text = request.target.scrub(text) if isinstance(request.target, Secret) else text
        # The cause contains the unmasked address, so it is dropped.
        raise DeviceError(f"OpenCV cannot open it: {text}", where=request.opened_as) from None
    if not capture.isOpened():
        capture.release()
        raise DeviceError("it cannot be opened", where=request.opened_as)
    if request.api == "v4l2":
        # The pixel format first: OpenCV would otherwise choose raw YUYV at a few frames per second before MJPG.
        _ask(cv2, capture, request)
    return _OpenCv(cv2, capture, request)


def has_backend(api: Api) -> bool:
    """Return True if this OpenCV was built with the backend ``api``.

    Raises:
        MissingDependencyError: OpenCV is not installed.
    """
    cv2 = opencv()
    return bool(cv2.videoio_registry.hasBackend(getattr(cv2, _CONSTANTS[api])))


def missing_backend(api: Api) -> MissingDependencyError:
    """Return the error for an OpenCV built without ``api``, with an install hint."""
    version = getattr(opencv(), "__version__", "?")
    if api == "gstreamer":
        return MissingDependencyError(
            f"OpenCV {version} was built without GStreamer, which this camera needs: PyPI's OpenCV never has it",
            hint="on a Jetson: sudo apt install libopencv-python, pip uninstall opencv-python opencv-python-headless, "
            "and a venv with --system-site-packages (./install.sh does all of it); a USB camera works without",
        )
    names = {"v4l2": "V4L2 (USB cameras)", "ffmpeg": "FFmpeg (videos and network streams)"}
    return MissingDependencyError(
        f"OpenCV {version} was built without {names[api]}", hint=f"{DEPENDENCIES['cv2']}, which has both"
    )


def codec_of(path: Path) -> str | None:
    """Return the FOURCC of a video's codec, such as ``av01``, even if this OpenCV cannot decode it; None without one.

    Raises:
        MissingDependencyError: OpenCV is not installed.
    """
    cv2 = opencv()
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_FORMAT, -1])
    try:
        return _fourcc(cv2, capture) if capture.isOpened() else None
    finally:
        capture.release()


def _fourcc(cv2: Any, capture: Any) -> str | None:  # noqa: ANN401
    code = int(capture.get(cv2.CAP_PROP_FOURCC))
    text = code.to_bytes(4, "little", signed=code < 0).decode("latin-1").strip("\0 ")
    return text if text and text.isascii() and text.isprintable() else None


class _OpenCv:
    """A capture of OpenCV."""

    def __init__(self, cv2: Any, capture: Any, request: Request) -> None:  # noqa: ANN401
        self._cv2 = cv2
        self._capture = capture
        self._api = request.api
        self._name = request.opened_as
        # MJPEG comes as it is: FFmpeg would make a picture of half a JPEG, and scale every size to the first one.
        self._is_encoded = (
            request.checks_jpegs
            and request.api == "ffmpeg"
            and _fourcc(cv2, capture) == "MJPG"
            and bool(capture.set(cv2.CAP_PROP_FORMAT, -1))
        )
        self._stretch = 1.0 if self._is_encoded or request.api != "ffmpeg" else _pixel_aspect(cv2, capture)
        self.fps = self._positive(cv2.CAP_PROP_FPS)
        count = self._positive(cv2.CAP_PROP_FRAME_COUNT) if request.api == "ffmpeg" else None
        self.frames = None if count is None else int(count)

    def grab(self) -> bool:
        return bool(self._capture.grab())

    def captured_s(self) -> float:
        now = time.monotonic()
        if self._api == "v4l2":
            # The driver's own time stamp, on CLOCK_MONOTONIC for uvcvideo and most others. Frames from the
            # driver's buffers have their true age.
            stamped = float(self._capture.get(self._cv2.CAP_PROP_POS_MSEC)) / 1e3
            if 0.0 <= now - stamped < _OLDEST_S:
                return stamped
        return now

    def retrieve(self) -> Any:  # noqa: ANN401
        is_there, pixels = self._capture.retrieve()
        if not is_there or pixels is None:
            return None
        if self._is_encoded:
            return decode(pixels.tobytes(), name=self._name, exif=False)
        if self._stretch != 1.0:
            return self._unsqueezed(pixels)
        channels = pixels.shape[2] if pixels.ndim == 3 else 1
        if channels == 3:
            return pixels
        # A pipeline from the profile may deliver grey or BGRx.
        return self._cv2.cvtColor(pixels, self._cv2.COLOR_GRAY2BGR if channels == 1 else self._cv2.COLOR_BGRA2BGR)

    def release(self) -> None:
        self._capture.release()

    def _unsqueezed(self, pixels: Any) -> Any:  # noqa: ANN401
        """``pixels`` with square pixels: the shorter side of a pixel is made as long as the other."""
        height, width = pixels.shape[:2]
        if self._stretch > 1:
            width = round(width * self._stretch)
        else:
            height = round(height / self._stretch)
        return self._cv2.resize(pixels, (width, height), interpolation=self._cv2.INTER_LINEAR)

    def _positive(self, name: int) -> float | None:
        value = float(self._capture.get(name))
        return value if math.isfinite(value) and 0 < value < 1e9 else None


def _ask(cv2: Any, capture: Any, request: Request) -> None:  # noqa: ANN401
    if request.fourcc is not None:
        capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*request.fourcc))
    for name, value in (
        (cv2.CAP_PROP_FRAME_WIDTH, request.width),
        (cv2.CAP_PROP_FRAME_HEIGHT, request.height),
        (cv2.CAP_PROP_FPS, request.fps),
    ):
        if value is not None:
            capture.set(name, value)


def _parameters(cv2: Any, request: Request) -> list[int]:  # noqa: ANN401
    if request.api != "ffmpeg" or request.timeout_s is None:
        return []
    milliseconds = max(int(request.timeout_s * 1e3), 1)
    return [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, milliseconds, cv2.CAP_PROP_READ_TIMEOUT_MSEC, milliseconds]


# Aspects of a pixel beyond these are a damaged header.
_WIDEST, _NARROWEST = 4.0, 0.25


def _pixel_aspect(cv2: Any, capture: Any) -> float:  # noqa: ANN401
    """Width of a pixel over its height, in the image as it is given (which OpenCV may have turned); 1 if unknown."""
    across, down = float(capture.get(cv2.CAP_PROP_SAR_NUM)), float(capture.get(cv2.CAP_PROP_SAR_DEN))
    if not (across > 0 and down > 0):
        return 1.0
    aspect = across / down
    if round(float(capture.get(cv2.CAP_PROP_ORIENTATION_META))) % 180 == 90:
        aspect = 1 / aspect
    return aspect if _NARROWEST <= aspect <= _WIDEST else 1.0


class _FfmpegOptions:
    """``OPENCV_FFMPEG_CAPTURE_OPTIONS``, which OpenCV reads when it opens a capture: one value at a time.

    A capture that needs another value than those that are being opened waits for its turn. A value from outside stays.
    """

    _NAME = "OPENCV_FFMPEG_CAPTURE_OPTIONS"

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._queue: deque[object] = deque()
        self._value = ""
        self._users = 0

    @contextlib.contextmanager
    def set_to(self, options: Mapping[str, str] | None) -> Iterator[None]:
        """Set the variable to ``options`` during the block; None leaves it unchanged."""
        if options is None or (self._NAME in os.environ and not self._users):
            yield
            return
        value = "|".join(f"{name};{option}" for name, option in options.items())
        ticket = object()
        with self._changed:
            self._queue.append(ticket)
            self._changed.wait_for(lambda: self._queue[0] is ticket and (not self._users or self._value == value))
            self._queue.popleft()
            self._value, self._users = value, self._users + 1
            if value:
                os.environ[self._NAME] = value
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._users -= 1
                if not self._users and self._value:
                    os.environ.pop(self._NAME, None)
                self._changed.notify_all()


_FFMPEG_OPTIONS = _FfmpegOptions()


def _set_environment(request: Request) -> None:
    """Set environment variables for OpenCV, which has no other interface for these options."""
    if request.timeout_s is not None:
        os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", str(max(math.ceil(request.timeout_s), 1)))
    # FFmpeg's log lines on stderr (-8 is "quiet"): edge already reports each failure.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    if request.options:
        options = "|".join(f"{name};{value}" for name, value in request.options.items())
        os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", options)


class VideoStream:
    """A video, from its first frame to its last.

    Raises:
        DataError: the file does not exist, or no frame of it can be decoded.
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
            if ":/" in str(path):
                url = masked_url(str(path).replace(":/", "://", 1))
                raise DataError("there is no such video", where=url, hint="use --camera for the URL of a stream")
            if path.is_dir():
                raise DataError("this is a folder, not a video", where=self._where, hint=f"--images {self._where}")
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
        """Return the next frame, already decoded: video must be decoded in order."""
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
        """End the stream. The file is closed later, because another thread may be reading from it."""
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
            self.notes.append(f"{self._where} ends after {self._seq} of {total} frames: it may be truncated")

    def _no_video(self) -> DataError:
        codec = codec_of(self._path)
        if codec is None:
            what, hint = "not one frame can be read: not a video, or cut off at its head", f"ffprobe '{self._where}'"
        else:
            what = (
                f"not one frame can be read: its codec is {codec}, which this OpenCV may lack, or the file is damaged"
            )
            hint = f"ffmpeg -i '{self._where}' -c:v libx264 converted.mp4"
        return DataError(what, where=self._where, hint=hint)

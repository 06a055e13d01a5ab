"""The newest frame of a camera or network stream, through unplugging, freezing and other faults of cameras.

One thread grabs into one slot; a frame that nobody took in time is replaced and counted. When no frame comes for
``timeout_s``, when the same frame comes over and over for ``freeze_s``, or when reading fails, the source is closed and
opened again after a pause that doubles up to a bound: by udev's links also under another node number. The thread that
asks for frames gets the outage as it begins and as it ends.

A call into a driver that never returns blocks its own thread only. At most three such threads are kept: then nothing is
opened until one of them returns. When none does, the stream ends with an error: another process may be able to open
what this one no longer can, and a supervisor must not take waiting without trying for being alive.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from edge.config import CameraConfig, roi_box
from edge.errors import DataError, DeviceError, EdgeError
from edge.media.cameras import CameraAddress
from edge.media.opencv_capture import Capture, OpenCapture, Request, open_opencv_capture
from edge.media.streams import Clock, Frame, OpenedSource, Outage

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Pixels = npt.NDArray[np.uint8]
    Offer = Callable[["Reader", Pixels | DataError, float, float], None]

# This many failures in a row end the stream: some drivers fail now and then, and a dead one fails at once.
_FAILURES = 5
_PAUSE_S = 0.02


class ReaderSettings(NamedTuple):
    """Settings of one opening: seconds for the first frame, whether to find out why it fails, and the size's period.

    ``check_size_s`` is the time between two looks at the size that a network stream announces.
    """

    timeout_s: float
    is_first: bool
    check_size_s: float


class Reader:
    """Calls ``offer(reader, pixels, captured_s, decode_ms)`` for each frame, and ``ended(reader)`` at its end.

    A damaged frame has an error in place of pixels. ``error`` says why the reader ended; ``opened_as``
    and ``fps`` are known when the first frame is offered.
    """

    def __init__(
        self, address: CameraAddress, open_capture: OpenCapture, settings: ReaderSettings, *, offer: Offer,
        ended: Callable[[Reader], None],
    ) -> None:  # fmt: skip
        self.opened_as: str | None = None
        self.fps: float | None = None
        self.error: BaseException | None = None
        self._address = address
        self._open_capture = open_capture
        self.settings = settings
        self._offer = offer
        self._ended = ended
        self._is_stopping = False
        self._has_ended = threading.Event()
        self._new_size: str | None = None
        self._thread = threading.Thread(target=self._run, name=f"grab {address.name}", daemon=True)

    def start(self) -> None:
        """Open the source and start to grab."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """True if the thread still runs or is stuck."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Stop grabbing, and release the capture as soon as the current call returns."""
        self._is_stopping = True
        self._has_ended.set()

    def join(self, timeout_s: float) -> None:
        """Wait at most ``timeout_s`` seconds for the end of the thread."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        capture: Capture | None = None
        try:
            request = self._address.request()
            if request.timeout_s is not None:
                request = msgspec.structs.replace(request, timeout_s=self.settings.timeout_s)
            capture = self._open(request)
            self.opened_as, self.fps = request.opened_as, capture.fps
            if self._address.announces_size:
                threading.Thread(target=self._watch_size, name=f"size {self._address.name}", daemon=True).start()
            self._grab(capture)
        except BaseException as exc:  # noqa: BLE001 - the thread that waits for frames raises or reports it
            self.error = exc
        finally:
            if capture is not None:
                with contextlib.suppress(Exception):
                    capture.release()
            self._has_ended.set()
            self._ended(self)

    def _open(self, request: Request) -> Capture:
        began_s, timeout_s = time.monotonic(), self.settings.timeout_s
        try:
            return self._open_capture(request)
        except DeviceError as exc:
            # OpenCV says only that it does not open; the address knows where to look.
            if time.monotonic() - began_s < 0.9 * timeout_s:
                raise self._address.diagnose(exc.what, ask=self.settings.is_first) from exc
            error = self._address.diagnose(f"it did not open within {timeout_s:g} s", ask=self.settings.is_first)
            raise needs_longer(error, timeout_s) from exc

    def _watch_size(self) -> None:
        """End the reader when the server announces another size: OpenCV would scale every frame to the first one."""
        first = size = self._address.announced_size()
        while first is not None and not self._has_ended.wait(self.settings.check_size_s):
            size = self._address.announced_size()
            if size is not None and size != first:
                self._new_size = f"the stream changed from {_by(first)} to {_by(size)}"
                return

    def _grab(self, capture: Capture) -> None:
        failures = 0
        while not self._is_stopping:
            if self._new_size is not None:
                raise DeviceError(self._new_size)
            pixels: Pixels | DataError | None = None
            if capture.grab():
                captured_s = capture.captured_s()
                start = time.monotonic()
                try:
                    pixels = capture.retrieve()
                except DataError as exc:
                    pixels = exc
            if pixels is not None:
                failures = 0
                self._offer(self, pixels, captured_s, (time.monotonic() - start) * 1e3)
                continue
            failures += 1
            if failures >= _FAILURES:
                raise self._address.diagnose("it delivers no more frames")
            time.sleep(_PAUSE_S)


def needs_longer(error: DeviceError, timeout_s: float) -> DeviceError:
    """``error`` with a hint for sources that are slow."""
    hint = (
        f"if it only needs longer: --wait-for-camera, or a larger camera.timeout_s (now {timeout_s:g}) in the profile"
    )
    return DeviceError(error.what, where=error.where, hint=f"{error.hint}; {hint}" if error.hint else hint)


def problem_and_hint(error: BaseException) -> tuple[str, str | None]:
    """Return the problem and the hint of a reader's error."""
    if isinstance(error, EdgeError):
        return error.what, error.hint
    raise error


# Maximum number of threads that may be stuck in a driver.
_MOST_STUCK = 3
# Time without opening anything because of stuck threads, as a multiple of ``timeout_s``.
_STUCK_TIMES = 10
# No wait is longer than this, so that timeouts are noticed in time.
_LOOK_S = 0.1
_RELEASE_S = 2.0
# Seconds between two looks at the size that a server announces.
_CHECK_SIZE_S = 10.0
# Step in pixels of the comparison that finds a frozen image.
_STRIDE = 8


class _Grabbed(NamedTuple):
    seq: int
    pixels: Pixels | DataError
    captured_s: float
    decode_ms: float


class LiveStream:
    """Stream of ``address`` that delivers only the newest frame.

    With ``wait``, a source that does not exist at the start is an outage, which ends when it appears; its size is then
    unknown, and ``first_error`` gives the reason.

    Raises:
        DeviceError: without ``wait``, the first frame did not arrive in time.
    """

    def __init__(
        self,
        address: CameraAddress,
        camera: CameraConfig,
        *,
        wait: bool = False,
        open_capture: OpenCapture = open_opencv_capture,
        check_size_s: float = _CHECK_SIZE_S,
        clock: Clock = time.monotonic,
    ) -> None:
        self.notes: list[str] = []
        self.first_error: DeviceError | None = None
        self._address = address
        self._camera = camera
        self._open_capture = open_capture
        self._check_size_s = check_size_s
        self._clock = clock
        self._changed = threading.Condition()
        self._slot: _Grabbed | None = None
        self._seq = 0
        self._dropped = 0
        self._checksum: int | None = None
        self._newest_s = self._moved_s = 0.0
        self._size: tuple[int, int] | None = None
        self._outage: Outage | None = None
        self._unreported: Outage | None = None
        # The first frame of the reader at work.
        self._first_s: float | None = None
        # The newest reason why it cannot be opened again.
        self._reason: str | None = None
        self._frozen = False
        self._retry_s = self._pause_s = self._began_s = 0.0
        self._stuck: list[Reader] = []
        self._closed = False
        self._reader: Reader | None = self._new_reader()
        self.opened = self._wait_for_first(or_begin_without=wait)

    @property
    def dropped(self) -> int:
        """Number of frames replaced by newer ones before they were read."""
        return self._dropped

    def next(self) -> Frame | Outage | None:
        """Return the newest unread frame; wait for one. None after ``close``.

        Raises:
            DeviceError: no frame for ``reconnect.give_up_s``, or calls into the driver never return.
        """
        with self._changed:
            while not self._closed:
                if self._unreported is not None:
                    outage, self._unreported = self._unreported, None
                    return outage
                given = self._in_outage() if self._outage is not None else self._running()
                if given is not None:
                    return given
                self._changed.wait(_LOOK_S)
            return None

    def close(self) -> None:
        """Release the camera; wait a moment for the current read."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            reader, self._reader = self._reader, None
            self._changed.notify_all()
        if reader is not None:
            reader.stop()
            reader.join(_RELEASE_S)

    # in the thread that asks for frames, holding the lock

    def _running(self) -> Frame | Outage | None:
        now = self._clock()
        freeze_s = self._camera.freeze_s
        if freeze_s is not None and self._seq and now - self._moved_s > freeze_s and self._newest_s > self._moved_s:
            self._slot, self._frozen = None, True
            error = self._address.diagnose(f"the image has not changed for {freeze_s:g} s")
            hint = f"{error.hint}; if a still image is normal, set camera.freeze_s: null in the profile"
            return self._lost(self._moved_s, error.what, hint)
        if self._slot is not None:
            return self._take()
        if self._reader is not None and self._reader.error is not None:
            return self._lost(self._newest_s, *problem_and_hint(self._reader.error))
        if now - self._newest_s > self._camera.timeout_s:
            error = self._address.diagnose(f"no frame for {self._camera.timeout_s:g} s")
            return self._lost(self._newest_s, error.what, error.hint)
        return None

    def _take(self) -> Frame:
        assert self._slot is not None  # noqa: S101 - for mypy
        seq, pixels, captured_s, decode_ms = self._slot
        self._slot = None
        name = f"frame {seq}"

        def load() -> Pixels:
            if isinstance(pixels, DataError):
                raise pixels
            return pixels

        return Frame(seq, name, f"{self._address.name}: {name}", captured_s, load, decode_ms)

    def _lost(self, since_s: float, reason: str, hint: str | None) -> Outage:
        self._outage = Outage(since_s, None, reason, hint)
        self._reason = None
        self._pause_s = self._camera.reconnect.first_s
        self._release_reader()
        if not self._frozen:
            # The next frame is new, whatever it shows.
            self._checksum = None
        return self._outage

    def _in_outage(self) -> Outage | None:
        """Retry when it is time; return the finished outage when frames arrive."""
        outage, now = self._outage, self._clock()
        assert outage is not None  # noqa: S101 - for mypy
        if self._slot is not None and self._reader is not None:
            self._outage, self._frozen = None, False
            return dataclasses.replace(outage, end_s=self._slot.captured_s, reopened_as=self._reader.opened_as)
        give_up_s = self._camera.reconnect.give_up_s
        if give_up_s is not None and now - outage.start_s > give_up_s:
            found = self._address.diagnose(self._reason or outage.reason, ask=True)
            raise DeviceError(
                f"no frames for {give_up_s:g} s, {outage.attempts} attempts: {found.what}",
                where=self._address.name,
                hint=found.hint,
            )
        if self._reader is None:
            if now >= self._retry_s:
                self._try_again(outage, now)
        elif self._reader.error is not None:
            self._reason, _hint = problem_and_hint(self._reader.error)
            self._release_reader()
        elif self._is_silent(self._reader, now) or self._still_frozen(now):
            self._release_reader()
        return None

    def _try_again(self, outage: Outage, now: float) -> None:
        if self._may_open():
            self._outage = dataclasses.replace(outage, attempts=outage.attempts + 1)
            self._reader = self._new_reader()
        elif now - self._retry_s > _STUCK_TIMES * self._camera.timeout_s:
            raise DeviceError(
                f"{_MOST_STUCK} calls into the driver do not return, so the camera cannot be opened: {outage.reason}",
                where=self._address.name,
                hint=f"restart edge to end these calls; {outage.hint}"
                if outage.hint
                else "restart edge to end these calls",
            )

    def _release_reader(self) -> None:
        """Stop the reader, and plan the next one."""
        if self._reader is not None:
            self._reader.stop()
            self._stuck.append(self._reader)
        self._reader = None
        self._retry_s = self._clock() + self._pause_s
        self._pause_s = min(self._pause_s * 2, self._camera.reconnect.max_s)

    def _may_open(self) -> bool:
        self._stuck = [reader for reader in self._stuck if reader.is_alive]
        return len(self._stuck) < _MOST_STUCK

    def _is_silent(self, reader: Reader, now: float) -> bool:
        is_opening = now - self._began_s <= reader.settings.timeout_s
        return not is_opening and now - self._newest_s > self._camera.timeout_s

    def _still_frozen(self, now: float) -> bool:
        freeze_s = self._camera.freeze_s
        if freeze_s is None or self._first_s is None:
            return False
        return self._frozen and now - self._first_s > freeze_s

    def _new_reader(self) -> Reader:
        self._began_s, self._first_s = self._clock(), None
        attempts = 0 if self._outage is None else self._outage.attempts
        settings = ReaderSettings(
            self._first_frame_timeout_s(attempts), is_first=attempts == 0, check_size_s=self._check_size_s
        )
        reader = Reader(self._address, self._open_capture, settings, offer=self._offer, ended=self._on_end)
        self._reader = reader
        reader.start()
        return reader

    def _first_frame_timeout_s(self, attempts: int) -> float:
        """Seconds that an opening may take until its first frame: more with each attempt, for sources that are slow."""
        least_s = self._camera.timeout_s
        return max(least_s, min(least_s * 2.0 ** min(attempts, 20), self._camera.reconnect.max_s))

    def _wait_for_first(self, *, or_begin_without: bool) -> OpenedSource:
        deadline = self._clock() + self._camera.timeout_s
        reader = self._reader
        assert reader is not None  # noqa: S101 - for mypy
        with self._changed:
            while self._slot is None and reader.error is None and self._clock() < deadline:
                self._changed.wait(_LOOK_S)
        error: BaseException | None = None
        if self._slot is None:
            opening = "it did not open" if reader.opened_as is None else "no frame arrived"
            error = reader.error or needs_longer(
                self._address.diagnose(f"{opening} within {self._camera.timeout_s:g} s", ask=True),
                self._camera.timeout_s,
            )
        with self._changed:
            first = None if self._slot is None else self._slot.pixels
            if isinstance(first, DataError) and self._camera.roi is not None and self._size is not None:
                # The first frame is too small for the region: so will be the others.
                error = first
            elif first is not None:
                # Also one that came while the reason was looked for.
                return self._describe(reader, first)
            if or_begin_without and isinstance(error, DeviceError):
                self.first_error = error
                self._unreported = self._lost(self._began_s, error.what, error.hint)
                return OpenedSource(kind=self._address.kind, opened_as=self._address.name, live=True)
        self.close()
        assert error is not None  # noqa: S101 - for mypy: there was no frame
        raise error

    def _describe(self, reader: Reader, pixels: Pixels | DataError) -> OpenedSource:
        height, width = (None, None) if isinstance(pixels, DataError) else pixels.shape[:2]
        return OpenedSource(
            kind=self._address.kind, opened_as=reader.opened_as or self._address.name, live=True, width=width,
            height=height, fps=reader.fps,
        )  # fmt: skip

    # in the reader's thread

    def _offer(self, reader: Reader, pixels: Pixels | DataError, captured_s: float, decode_ms: float) -> None:
        # A damaged frame is no sign of standing still.
        is_damaged = isinstance(pixels, DataError)
        found = None if isinstance(pixels, DataError) else zlib.crc32(pixels[::_STRIDE, ::_STRIDE].tobytes())
        with self._changed:
            if reader is not self._reader:
                return
            now = self._clock()
            self._newest_s = now
            self._first_s = now if self._first_s is None else self._first_s
            if is_damaged or found != self._checksum:
                self._checksum, self._moved_s = found, now
            elif self._frozen:
                # Opened again, and the image is still frozen.
                return
            if self._slot is not None:
                self._dropped += 1
            if not isinstance(pixels, DataError):
                self._check_size(pixels)
                pixels = self._cropped(pixels)
            self._slot = _Grabbed(self._seq, pixels, captured_s, decode_ms)
            self._seq += 1
            self._changed.notify_all()

    def _check_size(self, pixels: Pixels) -> None:
        size = (pixels.shape[1], pixels.shape[0])
        if size == self._size:
            return
        asked = (self._camera.width, self._camera.height)
        if self._size is not None:
            self._note(f"the frames changed from {_by(self._size)} to {_by(size)}")
        elif size != asked and self._address.kind != "network":
            self._note(f"requested {_by(asked)}, but the camera delivers {_by(size)}: v4l2-ctl --list-formats-ext")
        self._size = size

    def _cropped(self, pixels: Pixels) -> Pixels | DataError:
        """The region of interest as an array of its own, or why there is none."""
        if self._camera.roi is None:
            return pixels
        try:
            top, left, height, width = roi_box(self._camera.roi, *pixels.shape[:2])
        except DataError as exc:
            return DataError(exc.what, where=self._address.name, hint=exc.hint)
        found: Pixels = pixels[top : top + height, left : left + width].copy()
        return found

    def _note(self, text: str) -> None:
        if text not in self.notes and len(self.notes) < 20:
            self.notes.append(text)

    def _on_end(self, reader: Reader) -> None:
        del reader
        with self._changed:
            self._changed.notify_all()


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]}"

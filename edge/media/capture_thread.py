"""A thread that opens one capture and grabs from it until it ends or is let go.

Whatever OpenCV and the drivers below it do, also nothing for ever, happens in this thread. Who waits for its frames
looks at the clock and, when it takes too long, lets the thread go: it gives its capture back when the call returns, and
its frames are ignored.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from edge.errors import DeviceError, EdgeError
from edge.media.cameras import CameraAddress
from edge.media.opencv_capture import Capture, OpenCapture

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Offer = Callable[["Reader", npt.NDArray[np.uint8], float, float], None]

# So many failures in a row are the end of it: some drivers fail now and then, all fail fast.
_FAILURES = 5
_PAUSE_S = 0.02


class Reader:
    """Calls ``offer(reader, pixels, captured_s, decode_ms)`` for each frame, and ``ended(reader)`` at its end.

    ``error`` says why it ended; ``opened_as`` and ``fps`` are known when the first frame is offered.
    """

    def __init__(
        self, place: CameraAddress, open_capture: OpenCapture, *, offer: Offer, ended: Callable[[Reader], None]
    ) -> None:
        self.opened_as: str | None = None
        self.fps: float | None = None
        self.error: BaseException | None = None
        self._place = place
        self._open_capture = open_capture
        self._offer = offer
        self._ended = ended
        self._let_go = False
        self._thread = threading.Thread(target=self._run, name=f"grab {place.name}", daemon=True)

    def start(self) -> None:
        """Open and grab from now on."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """True if the thread still runs, or is stuck."""
        return self._thread.is_alive()

    def let_go(self) -> None:
        """Grab no more, and give the capture back as soon as the call in hand returns."""
        self._let_go = True

    def join(self, timeout_s: float) -> None:
        """Wait for its end, but not for longer."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        capture: Capture | None = None
        try:
            request = self._place.request()
            capture = self._open(request)
            self.opened_as, self.fps = request.opened_as, capture.fps
            self._grab(capture)
        except BaseException as exc:  # noqa: BLE001 - the thread that waits for frames raises or reports it
            self.error = exc
        finally:
            if capture is not None:
                with contextlib.suppress(Exception):
                    capture.release()
            self._ended(self)

    def _open(self, request: object) -> Capture:
        try:
            return self._open_capture(request)  # type: ignore[arg-type]
        except DeviceError as exc:
            # OpenCV says only that it does not open; the place knows where to look.
            raise self._place.diagnose(exc.what) from exc

    def _grab(self, capture: Capture) -> None:
        failures = 0
        while not self._let_go:
            if not capture.grab():
                pixels = None
            else:
                captured_s = capture.captured_s()
                start = time.monotonic()
                pixels = capture.retrieve()
            if pixels is not None:
                failures = 0
                self._offer(self, pixels, captured_s, (time.monotonic() - start) * 1e3)
                continue
            failures += 1
            if failures >= _FAILURES:
                raise self._place.diagnose("it gives no more frames")
            time.sleep(_PAUSE_S)


def words(error: BaseException) -> tuple[str, str | None]:
    """The problem and the hint of a reader's error."""
    if isinstance(error, EdgeError):
        return error.what, error.hint
    raise error

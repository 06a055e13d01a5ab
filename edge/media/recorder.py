"""Record the frames of a run with their times, so that the run can be replayed.

A recording is a folder with ``frames.jsonl``: a header, then one line per frame (file, number, capture time since the
first frame) and per outage. Frames are JPEG of quality 95: good for viewing and for replaying faults, not for
calibration. A separate thread writes. Frames that arrive while it is behind are skipped and counted; a write error ends
the recording, not the run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import msgspec

from edge.artifacts import store
from edge.errors import StoreError, UsageError, require
from edge.media.pictures import opencv
from edge.media.streams import Frame, OpenedSource, Outage, Stream

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Pixels = npt.NDArray[np.uint8]

INDEX = "frames.jsonl"
FORMAT = 1
_QUALITY = 95
_MOST_WAITING = 8
_TIMEOUT_S = 10.0


class RecordingHeader(msgspec.Struct, frozen=True, kw_only=True):
    """First line: format, and the source of the frames."""

    edge_frames: int
    source: OpenedSource


class SavedFrame(msgspec.Struct, frozen=True, kw_only=True):
    """One frame: its file, its number in the run, and its capture time since the first one."""

    file: str
    seq: int
    t_s: float


class SavedOutage(msgspec.Struct, frozen=True, kw_only=True):
    """An outage as it began (``end_s`` None) or ended."""

    start_s: float
    end_s: float | None
    reason: str
    hint: str | None = None
    reopened_as: str | None = None
    attempts: int = 0


class Saved(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line after the header; exactly one of the two fields is set."""

    frame: SavedFrame | None = None
    outage: SavedOutage | None = None


class SavingStream:
    """Passes ``stream`` on and saves every frame that is read from it in ``folder``.

    Raises:
        UsageError: the folder already contains frames.
        StoreError: it cannot be written.
    """

    def __init__(self, stream: Stream, folder: Path) -> None:
        if (folder / INDEX).exists():
            raise UsageError(f"{folder} already contains the frames of another run", hint="use a new folder")
        self.opened = stream.opened
        self._stream = stream
        self._folder = folder
        self._own_notes: list[str] = []
        self._first_s: float | None = None
        self._behind = 0
        self._lines = store.Lines(
            folder / INDEX, head=lambda: _line(RecordingHeader(edge_frames=FORMAT, source=stream.opened))
        )
        self._lines.append(b"")
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._failed = self._closed = False
        self._thread = threading.Thread(target=self._write_all, name="save frames", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int | None:
        """Number of frames that the stream dropped."""
        return self._stream.dropped

    @property
    def notes(self) -> list[str]:
        """The stream's notes, and the frames that were not saved."""
        behind = [f"{self._behind} frames were not saved: the disk was too slow"] if self._behind else []
        return [*self._stream.notes, *self._own_notes, *behind]

    def next(self) -> Frame | Outage | None:
        """Return the next item of the stream; its pixels are saved when they are loaded."""
        following = self._stream.next()
        if isinstance(following, Frame):
            frame = following
            self._first_s = frame.since_s if self._first_s is None else self._first_s
            return Frame(frame.seq, frame.name, frame.where, frame.since_s, lambda: self._load(frame), frame.decoded_ms)
        if following is not None and self._first_s is not None:
            first_s = self._first_s
            saved = SavedOutage(
                start_s=following.start_s - first_s,
                end_s=None if following.end_s is None else following.end_s - first_s,
                reason=following.reason, hint=following.hint, reopened_as=following.reopened_as,
                attempts=following.attempts,
            )  # fmt: skip
            self._put(lambda: self._lines.append(_line(Saved(outage=saved))))
        return following

    def close(self) -> None:
        """Close the stream, and wait until the queued frames are written."""
        self._stream.close()
        if not self._closed:
            self._closed = True
            self._queue.put(None)
            self._thread.join(_TIMEOUT_S)

    def _load(self, frame: Frame) -> Pixels:
        pixels = frame.load()
        if self._queue.qsize() >= _MOST_WAITING:
            self._behind += 1
        else:
            self._put(lambda: self._save(frame, pixels))
        return pixels

    def _put(self, work: Callable[[], None]) -> None:
        if not (self._failed or self._closed):
            self._queue.put(work)

    # in the thread that writes

    def _write_all(self) -> None:
        while (work := self._queue.get()) is not None:
            if self._failed:
                continue
            try:
                work()
            except StoreError as exc:
                self._failed = True
                self._own_notes.append(f"no more frames were saved: {exc.what}")
        self._lines.close()

    def _save(self, frame: Frame, pixels: Pixels) -> None:
        cv2 = opencv()
        is_done, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
        if not is_done:
            return
        name = f"{frame.seq:08d}.jpg"
        store.write_bytes(self._folder / name, require("numpy").asarray(data).tobytes())
        since_s = frame.since_s - (self._first_s or 0.0)
        self._lines.append(_line(Saved(frame=SavedFrame(file=name, seq=frame.seq, t_s=since_s))))


def _line(content: Any) -> bytes:  # noqa: ANN401
    return msgspec.json.encode(content) + b"\n"

"""Replay recorded frames, either at their recorded times like a camera, or as fast as possible.

A recording is a folder made by ``edge run --save-frames``, or a video, whose frame times follow from its rate. At the
recorded times the stream is live: it delivers the newest frame that is due and drops earlier ones. The stream is marked
as replayed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import msgspec

from edge.errors import DataError
from edge.media.labels import shown
from edge.media.opencv_capture import OpenCapture, VideoStream, open_opencv_capture
from edge.media.pictures import FileOrigin, decode
from edge.media.recorder import FORMAT, INDEX, RecordingHeader, Saved, SavedFrame, SavedOutage
from edge.media.streams import Clock, Frame, OpenedSource, Outage

_LOOK_S = 0.1


class _Due(msgspec.Struct, frozen=True):
    """A frame or an outage, and its due time since the first frame."""

    t_s: float
    item: SavedFrame | SavedOutage | Frame


class _Recording(Protocol):
    opened: OpenedSource

    def due(self) -> Iterator[_Due]: ...

    def frame(self, due: _Due, since_s: float) -> Frame: ...


def recordings(path: Path) -> list[Path]:
    """List the recordings of several cameras below ``path``, one folder each; empty for one recording or a video."""
    if not path.is_dir() or (path / INDEX).exists():
        return []
    return sorted(folder.parent for folder in path.glob(f"*/{INDEX}"))


class ReplayStream:
    """The recording at ``path``; with ``fast`` every frame is delivered as soon as it is requested.

    Raises:
        DataError: the recording does not exist or is damaged.
    """

    def __init__(
        self,
        path: Path,
        *,
        fast: bool = False,
        open_capture: OpenCapture = open_opencv_capture,
        clock: Clock = time.monotonic,
    ) -> None:
        self._recording: _Recording = (
            _Folder(path) if path.is_dir() or path.name == INDEX else _Video(path, open_capture)
        )
        self.opened = msgspec.structs.replace(
            self._recording.opened, kind="replay", opened_as=shown(str(path)), live=not fast, replayed=shown(str(path)),
            total=self._recording.opened.total if fast else None,
        )  # fmt: skip
        self.notes: list[str] = []
        self.dropped: int | None = None if fast else 0
        self._fast = fast
        self._clock = clock
        self._start_s: float | None = None
        self._all = self._recording.due()
        self._ahead: _Due | None = None
        self._closed = threading.Event()

    def next(self) -> Frame | Outage | None:
        """Return the next frame or, at the recorded times, wait for and return the newest one that is due."""
        due = self._following()
        if due is None or self._closed.is_set():
            return None
        if self._start_s is None:
            self._start_s = self._clock() - due.t_s
        if not self._fast:
            due = self._newest(due)
            if due is None:
                return None
        return self._given(due)

    def close(self) -> None:
        """End the stream."""
        self._closed.set()

    def _newest(self, due: _Due) -> _Due | None:
        """Wait until ``due`` is due; then skip to the newest frame that is also due, but not beyond an outage."""
        assert self._start_s is not None  # noqa: S101 - for mypy
        while (left_s := self._start_s + due.t_s - self._clock()) > 0:
            if self._closed.wait(min(left_s, _LOOK_S)):
                return None
        while not isinstance(due.item, SavedOutage):
            ahead = self._following()
            if ahead is None:
                break
            if isinstance(ahead.item, SavedOutage) or self._start_s + ahead.t_s > self._clock():
                self._ahead = ahead
                break
            due, self.dropped = ahead, (self.dropped or 0) + 1
        return due

    def _given(self, due: _Due) -> Frame | Outage:
        start_s = self._start_s or 0.0
        if isinstance(due.item, SavedOutage):
            outage = due.item
            end_s = None if outage.end_s is None else start_s + outage.end_s
            return Outage(
                start_s + outage.start_s, end_s, outage.reason, outage.hint, outage.reopened_as, outage.attempts
            )
        # At the recorded times a frame has its real age; otherwise it is due just now.
        return self._recording.frame(due, self._clock() if self._fast else start_s + due.t_s)

    def _following(self) -> _Due | None:
        ahead, self._ahead = self._ahead, None
        return ahead or next(self._all, None)


class _Folder:
    """A folder of saved frames."""

    def __init__(self, path: Path) -> None:
        self._index = path / INDEX if path.is_dir() else path
        self._folder = self._index.parent
        self._where = shown(str(self._index))
        try:
            head, *self._lines = self._index.read_bytes().rstrip(b"\0").split(b"\n")
            header = msgspec.json.decode(head, type=RecordingHeader)
        except OSError as exc:
            hint = "edge run --save-frames DIR makes one"
            raise DataError(f"not a recording: {exc.strerror or exc}", where=self._where, hint=hint) from exc
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise DataError(f"not a recording: line 1: {exc}", where=self._where) from exc
        if header.edge_frames != FORMAT:
            raise DataError(
                f"recording of format {header.edge_frames}; this edge reads format {FORMAT}", where=self._where
            )
        self._saved = list(self._read())
        frames = sum(saved.frame is not None for saved in self._saved)
        if not frames:
            raise DataError("the recording has no frames", where=self._where)
        self.opened = msgspec.structs.replace(header.source, total=frames)

    def due(self) -> Iterator[_Due]:
        """Yield everything sorted by time: several threads loaded the frames, so their lines may be out of order."""
        return iter(sorted((_due(saved) for saved in self._saved), key=lambda due: due.t_s))

    def frame(self, due: _Due, since_s: float) -> Frame:
        """Return a frame whose file is read when it is loaded."""
        assert isinstance(due.item, SavedFrame)  # noqa: S101 - for mypy
        path = self._folder / Path(due.item.file).name
        origin = FileOrigin(str(path))
        return Frame(
            due.item.seq, due.item.file, origin.where, since_s, lambda: decode(origin.read(), name=origin.where)
        )

    def _read(self) -> Iterator[Saved]:
        for number, line in enumerate(self._lines, start=2):
            if not line:
                continue
            try:
                saved = msgspec.json.decode(line, type=Saved)
                if saved.frame or saved.outage:
                    yield saved
            except (msgspec.DecodeError, UnicodeDecodeError) as exc:
                if number == len(self._lines) + 1:
                    # Truncated when the run was killed.
                    return
                raise DataError(f"the recording is damaged: line {number}: {exc}", where=self._where) from exc


def _due(saved: Saved) -> _Due:
    if saved.frame is not None:
        return _Due(saved.frame.t_s, saved.frame)
    outage = saved.outage
    assert outage is not None  # noqa: S101 - for mypy: empty lines were left out
    return _Due(outage.start_s if outage.end_s is None else outage.end_s, outage)


class _Video:
    """A video; frame n is due n / rate after the first."""

    def __init__(self, path: Path, open_capture: OpenCapture) -> None:
        self._video = VideoStream(path, open_capture=open_capture)
        self.opened = self._video.opened
        if self.opened.fps is None:
            raise DataError("the video file does not contain its frame rate", where=shown(str(path)))

    def due(self) -> Iterator[_Due]:
        """Yield every frame with its time."""
        while (frame := self._video.next()) is not None:
            yield _Due(frame.seq / (self.opened.fps or 1.0), frame)

    def frame(self, due: _Due, since_s: float) -> Frame:
        """Return a frame that is already decoded."""
        frame = due.item
        assert isinstance(frame, Frame)  # noqa: S101 - for mypy
        return Frame(frame.seq, frame.name, frame.where, since_s, frame.load, frame.decoded_ms)

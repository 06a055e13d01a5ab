"""Write results of a run for people and other programs: a CSV with a row per frame, and an annotated video.

Both have a thread of their own. A full disk or a failed encoder is reported once; the loop continues, and the run ends
with an error.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, final

from edge.artifacts import FrameResult, Skip, store
from edge.errors import StoreError, UsageError
from edge.media import OpenedSource, OpenWriter, VideoWriter, check_video_path, open_opencv_writer
from edge.runtime.classifier import UNKNOWN, seen_label
from edge.runtime.run_statistics import Event

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

# Columns of the CSV, in this order. New columns go to the end.
COLUMNS = (
    "time_utc", "t_s", "camera", "seq", "name", "label", "index", "confidence", "decision", "decision_index",
    "decision_confidence", "age_ms", "total_ms", "decode_ms", "preprocess_ms", "infer_ms", "postprocess_ms", "skipped",
)  # fmt: skip
_FLUSH_S = 1.0
_MOST_WAITING = 64
_TIMEOUT_S = 30.0
# Default frames per second of a video; an image file is shown for half a second.
_LIVE_FPS, _PICTURE_FPS = 30.0, 2.0
Warn = Callable[[str], None]


@final
class CsvFile:
    """A CSV file with one row per labelled or skipped frame (:data:`COLUMNS`), for the thread of the run loop.

    Text in a cell has no control characters, so each line of the file is a row. The file is updated every second.
    """

    def __init__(self, path: Path, *, warn: Warn) -> None:
        self._path = path
        self._warn = warn
        self._lines = store.Lines(path, head=(",".join(COLUMNS) + "\n").encode)
        self._rows: list[str] = []
        self._flushed_s = time.monotonic()
        self._start = datetime.now(timezone.utc)
        self._start_s = time.monotonic()
        self._lost = 0
        self._is_reported = False
        self._queue: SimpleQueue[str | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._write_all, name="csv", daemon=True)
        # The header, or an error that is seen before the run begins.
        self._lines.append(b"")
        self._thread.start()

    def on_event(self, event: Event) -> None:
        """Add the row of a frame."""
        if isinstance(event, FrameResult):
            self._rows.append(self._row(event))
        elif isinstance(event, Skip):
            self._rows.append(self._skipped(event))
        now_s = time.monotonic()
        if now_s - self._flushed_s >= _FLUSH_S:
            self._flushed_s = now_s
            self._hand_over()

    def close(self) -> None:
        """Write the remaining rows and close the file.

        Raises:
            StoreError: rows were lost.
        """
        self._hand_over()
        self._queue.put(None)
        self._thread.join(_TIMEOUT_S)
        if self._thread.is_alive():
            raise StoreError("the disk does not respond: the CSV is incomplete", where=self._path)
        if self._lost:
            raise StoreError(f"{self._lost} rows of the CSV could not be written and are missing", where=self._path)

    def _hand_over(self) -> None:
        rows, self._rows = self._rows, []
        if not rows:
            return
        if self._queue.qsize() < _MOST_WAITING:
            self._queue.put("".join(rows))
        else:
            self._lose(len(rows), "the disk is too slow")

    def _row(self, result: FrameResult) -> str:
        stages, decision = result.stages, result.decision
        best = result.guesses[0] if result.guesses else None
        guess = ",," if best is None else f"{cell(best.label)},{best.index},{best.confidence:.6f}"
        decided = ",,"
        if decision is not None:
            index = "" if decision.index is None else decision.index
            decided = f"{cell(decision.label)},{index},{decision.confidence:.6f}"
        age = "" if stages.age_ms is None else f"{stages.age_ms:.3f}"
        return (
            f"{self._time()},{result.t_s:.4f},{result.camera or ''},{result.seq},{cell(result.name)},{guess},{decided},"
            f"{age},{stages.total_ms:.3f},{stages.decode_ms:.3f},{stages.preprocess_ms:.3f},{stages.infer_ms:.3f},"
            f"{stages.postprocess_ms:.3f},\n"
        )

    def _skipped(self, skip: Skip) -> str:
        empty = "," * (len(COLUMNS) - 6)
        return f"{self._time()},,{skip.camera or ''},{skip.seq},{cell(skip.name)},{empty}{cell(skip.reason)}\n"

    def _time(self) -> str:
        """Return the UTC time with milliseconds, immune to jumps of the system clock."""
        now = self._start + timedelta(seconds=time.monotonic() - self._start_s)
        return now.isoformat(timespec="milliseconds")

    def _lose(self, count: int, why: str) -> None:
        self._lost += count
        if not self._is_reported:
            self._is_reported = True
            self._warn(f"{self._path}: rows of the CSV are lost: {why}; the run continues")

    # in the thread that writes

    def _write_all(self) -> None:
        while (rows := self._queue.get()) is not None:
            self._write(rows)
        self._lines.close()

    def _write(self, rows: str) -> None:
        try:
            self._lines.append(rows.encode("utf-8", "backslashreplace"))
        except StoreError as exc:
            self._lose(rows.count("\n"), exc.what)


def cell(text: str) -> str:
    r"""Format text as one CSV cell: quoted if necessary, control characters as ``\x1b``.

    Text that a spreadsheet would interpret as a formula gets a leading apostrophe.
    """
    if not text.isprintable():
        text = "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)
    if text[:1] in "=+-@" and text:
        text = "'" + text
    if "," in text or '"' in text:
        return '"' + text.replace('"', '""') + '"'
    return text


@final
class AnnotatedVideo:
    """A video of the run with label, confidence, camera and time: one file, or one per camera.

    Args:
        path: ``out.mp4``; several cameras get one file each, such as ``out-front.mp4``.
        opened: The description of the stream (:class:`edge.media.OpenedSource`).
        warn: called with a sentence when a file ends early.
    """

    def __init__(
        self, path: Path, opened: OpenedSource, *, warn: Warn, open_writer: OpenWriter = open_opencv_writer
    ) -> None:
        self._path = path
        self._opened = opened
        self._warn = warn
        self._open_writer = open_writer
        self._files: dict[str | None, VideoWriter] = {}
        self._start_s = time.monotonic()

    def show(self, pixels: Pixels, result: FrameResult) -> None:
        """Add a labelled frame, uint8 H×W×3 BGR."""
        file = self._files.get(result.camera)
        if file is None:
            file = self._files[result.camera] = self._open(result.camera)
        captured_s = time.monotonic() - (result.stages.age_ms or 0.0) / 1e3
        file.add(pixels, self._lines(result, captured_s), t_s=captured_s)

    @property
    def notes(self) -> list[str]:
        """Notes for the end of the run: frames that the encoder skipped."""
        return [
            f"{file.path}: {file.dropped} frames are not in the video: the encoder ({file.codec}) was too slow"
            for file in self._files.values()
            if file.dropped
        ]

    def close(self) -> None:
        """Finish the files.

        Raises:
            StoreError: a file is incomplete.
        """
        for file in self._files.values():
            file.close()
        for file in self._files.values():
            if file.failure is not None:
                raise StoreError(f"the video is incomplete: {file.failure}", where=file.path)

    def _open(self, camera: str | None) -> VideoWriter:
        path = self._path if camera is None else self._path.with_name(f"{self._path.stem}-{camera}{self._path.suffix}")
        own = self._opened.cameras.get(camera or "", self._opened)
        fps = own.fps or (_LIVE_FPS if self._opened.live else _PICTURE_FPS)
        return VideoWriter(
            path, fps=min(max(fps, 1.0), 120.0), live=self._opened.live, warn=self._warn, open_writer=self._open_writer
        )

    def _lines(self, result: FrameResult, captured_s: float) -> list[str]:
        _index, label, confidence = seen_label(result)
        first = label if label == UNKNOWN and not result.guesses else f"{label.replace('_', ' ')} {confidence:.0%}"
        if self._opened.live:
            moment = datetime.now().astimezone() - timedelta(seconds=time.monotonic() - captured_s)
            clock = moment.strftime("%Y-%m-%d %H:%M:%S") + f".{moment.microsecond // 100_000}"
        else:
            clock = result.name
        return [first, f"{result.camera}  {clock}" if result.camera else clock]


@final
class ResultFiles:
    """The files of ``--csv`` and ``--save-video``, open during the block.

    Raises:
        StoreError: a file cannot be written, or is incomplete at the end of the block.
    """

    def __init__(self, *, csv: Path | None, video: Path | None, opened: OpenedSource, warn: Warn) -> None:
        self._warn = warn
        self.csv = None if csv is None else CsvFile(csv, warn=warn)
        self.video = None if video is None else AnnotatedVideo(video, opened, warn=warn)

    @staticmethod
    def check(*, csv: Path | None, video: Path | None, record: Path | None) -> None:
        """Refuse invalid outputs before anything is opened.

        Raises:
            UsageError: the video's suffix is unknown, or two outputs have the same target.
            StoreError: the folder of the video does not exist.
        """
        if video is not None:
            check_video_path(video)
        named: dict[Path, str] = {}
        for option, path in (("--csv", csv), ("--save-video", video), ("--record", record)):
            if path is not None and not store.is_stream(path):
                other = named.setdefault(path.resolve(), option)
                if other != option:
                    raise UsageError(f"{other} and {option} name the same file: {path}", hint="a file for each")

    def __enter__(self) -> ResultFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        errors = []
        for file in (self.csv, self.video):
            try:
                if file is not None:
                    file.close()
            except StoreError as error:  # noqa: PERF203 - two files
                errors.append(error)
        for note in [] if self.video is None else self.video.notes:
            self._warn(note)
        # The error of the run is more informative than that of a file.
        if errors and kind is None:
            raise errors[0]

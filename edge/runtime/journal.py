"""Write the record during the run, so that a killed run leaves everything up to the last flush.

A ``.jsonl`` record grows by lines and is rotated by size; any other name is one JSON document that is rewritten. A
separate thread writes, so that a slow disk does not slow down the run. A write error is reported once; the data is
dropped and counted, and the next flush tries again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import final

import msgspec

from edge.artifacts import Gap, RecordLine, RunRecord, Skip, Tick, run_record, store
from edge.errors import StoreError
from edge.runtime.run_statistics import Event

# Lines are flushed early when there are this many bytes of them.
_LARGE = 1 << 20
# A disk that does not recover must not fill the memory.
_MOST_WAITING = 64
_TIMEOUT_S = 30.0
FLUSH_S = {".jsonl": 10.0}
FLUSH_JSON_S = 60.0
Warn = Callable[[str], None]


class Rotation(msgspec.Struct, frozen=True, kw_only=True):
    """Rotation of a ``.jsonl`` record: maximum size of a file in bytes, and number of files."""

    limit: int = 64 << 20
    files: int = 5


@final
class Journal:
    """A record that is written during the run. With ``every_frame``, a ``.jsonl`` record has a line per result.

    All methods are for the thread of the run loop. ``warn`` is called when writing fails, and when it works again.
    """

    def __init__(
        self,
        path: Path,
        *,
        flush_s: float | None = None,
        every_frame: bool = False,
        rotation: Rotation | None = None,
        warn: Warn = lambda _text: None,
    ) -> None:
        self.path = path
        self._is_lines = path.suffix == ".jsonl"
        self._is_stream = not self._is_lines and store.is_stream(path)
        self._flush_s = flush_s or FLUSH_S.get(path.suffix, FLUSH_JSON_S)
        self._every_frame = every_frame and self._is_lines
        self._warn = warn
        self._next_s = 0.0
        self._state: RunRecord | None = None
        self._pending: list[bytes] = []
        self._size = 0
        self._encoder = msgspec.json.Encoder()
        rotation = rotation or Rotation()
        self._lines = store.Lines(path, head=self._head, limit=rotation.limit, files=rotation.files)
        self._queue: SimpleQueue[bytes | None] = SimpleQueue()
        self._failure: StoreError | None = None
        self._reported: StoreError | None = None
        self._lost = 0
        self._thread = threading.Thread(target=self._write_all, name="journal", daemon=True)

    def begin(self, state: RunRecord) -> None:
        """Begin the record; ``state`` is the record so far."""
        self._thread.start()
        self.flush(0.0, state)

    def record(self, event: Event) -> None:
        """Add one result, skip or gap."""
        if not self._is_lines:
            return
        if isinstance(event, Gap):
            self._add(RecordLine(gap=event))
        elif isinstance(event, Skip):
            self._add(RecordLine(skip=event))
        elif self._every_frame:
            self._add(RecordLine(result=event))

    def add_ticks(self, ticks: list[Tick]) -> None:
        """Add finished bins of the time series."""
        if self._is_lines:
            for tick in ticks:
                self._add(RecordLine(tick=tick))

    def is_due(self, t_s: float) -> bool:
        """Return True if the record on disk should be updated; ``t_s`` is the time since the start of the run."""
        return t_s >= self._next_s

    def flush(self, t_s: float, state: RunRecord) -> None:
        """Pass all data so far to the writing thread."""
        self._next_s = t_s + self._flush_s
        self._look_at_failure()
        self._state = msgspec.structs.replace(
            state, status="interrupted", failure=run_record.KILLED, results=[], results_kept="newest"
        )
        if self._is_stream:
            # A pipe or a terminal gets the record once, at the end.
            return
        if self._is_lines:
            self._add(RecordLine(state=msgspec.structs.replace(self._state, timeline=[])))
            self._hand_over()
        else:
            self._put(run_record.encode(self._state))

    def end(self, finished: RunRecord) -> None:
        """Write the finished record.

        Raises:
            StoreError: the file cannot be written, or the disk does not respond.
        """
        if self._thread.ident is not None:
            self._queue.put(None)
            self._thread.join(_TIMEOUT_S)
        if self._thread.is_alive():
            raise StoreError("the disk does not respond: the record is incomplete", where=self.path)
        if self._lost:
            text = f"{self._lost} parts of the record could not be written and are missing"
            finished = msgspec.structs.replace(finished, warnings=[*finished.warnings, text])
        if not self._is_lines:
            run_record.save(self.path, finished)
            return
        self._state = msgspec.structs.replace(finished, results=[])
        last = msgspec.structs.replace(finished, results=[]) if self._every_frame else finished
        self._add(RecordLine(end=last))
        try:
            self._lines.append(b"".join(self._pending))
        finally:
            self._lines.close()

    def _add(self, line: RecordLine) -> None:
        data = self._encoder.encode(line) + b"\n"
        self._pending.append(data)
        self._size += len(data)
        if self._size >= _LARGE:
            self._hand_over()

    def _hand_over(self) -> None:
        data, self._pending, self._size = b"".join(self._pending), [], 0
        if data:
            self._put(data)

    def _put(self, data: bytes) -> None:
        if self._queue.qsize() < _MOST_WAITING:
            self._queue.put(data)
        else:
            self._lost += 1

    def _head(self) -> bytes:
        return self._encoder.encode(RecordLine(header=self._state)) + b"\n"

    def _look_at_failure(self) -> None:
        failure = self._failure
        if failure is not None and self._reported is None:
            self._warn(f"the record is not being written: {failure}; the run continues, and writing is retried")
        elif failure is None and self._reported is not None:
            self._warn(f"the record is being written again: {self.path}")
        self._reported = failure

    # in the thread that writes

    def _write_all(self) -> None:
        while (data := self._queue.get()) is not None:
            self._failure = self._write(data)

    def _write(self, data: bytes) -> StoreError | None:
        try:
            if self._is_lines:
                self._lines.append(data)
            else:
                store.write_bytes(self.path, data)
        except StoreError as exc:
            self._lost += 1
            return exc
        return None

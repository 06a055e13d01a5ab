"""Overlapping stages: threads prepare frames, one thread per session infers, and the caller gets results in order.

A session that takes the next batch before the one before it is done (``submit``) has two threads: one submits, the
other waits, so that a GPU always has its next batch.

::

    stream ─▶ prepare × P ─▶ ready ─▶ infer × K ─▶ done ─▶ the caller: in order, postprocess

OpenCV and the backends release the interpreter lock while they work, so threads are sufficient. The number of batches
bounds the queues: a batch is reserved when a frame is read and returned when its label is delivered. A slow consumer
therefore pauses the reading of files, while a live stream drops its oldest frames.

A thread that is stuck in a foreign call (a disk that disappeared, a driver) is abandoned: all threads are daemons, and
the end waits for them only briefly.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, final

import msgspec
import numpy as np

from edge.backends import FrameSession, Inference, Session
from edge.config import Roi, roi_box
from edge.errors import DataError
from edge.media import Frame, GroupStream, Outage, Stream

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge.model import Preprocessor

    Batch = NDArray[np.float32]
    Pixels = NDArray[np.uint8]

# Maximum wait at the end for a thread that does not return.
_TIMEOUT_S = 5.0


class Width(msgspec.Struct, frozen=True, kw_only=True):
    """Widths of the stages: preparing threads, images per inference, and the engine's smallest batch.

    A frame waits until it is ``batch_wait_s`` old for frames of the other cameras.
    """

    prepare: int = 1
    batch: int = 1
    min_batch: int = 1
    batch_wait_s: float = 0.0


class BatchItem:
    """One frame in flight: its times in milliseconds, and its pixels while they may be needed."""

    __slots__ = ("decode_ms", "frame", "pixels", "preprocess_ms", "skipped")

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self.skipped: str | None = None
        self.pixels: Pixels | None = None
        self.decode_ms = frame.decoded_ms
        self.preprocess_ms = 0.0


class FrameBatch:
    """One batch in flight: frames, or an outage. Its memory is reused."""

    __slots__ = ("error", "inference", "inputs", "number", "outage", "taken", "wall_ms")

    def __init__(self, inputs: Batch | None) -> None:
        self.inputs = inputs
        self.clear()

    def clear(self) -> None:
        """Reset the batch for its next use."""
        self.number = 0
        self.taken: list[BatchItem] = []
        self.outage: Outage | None = None
        self.inference: Inference | None = None
        self.wall_ms = 0.0
        self.error: BaseException | None = None

    @property
    def whole(self) -> list[BatchItem]:
        """The frames that were decoded, in the order of the batch."""
        return [taken for taken in self.taken if taken.skipped is None]


class _InFlight:
    """A submitted batch, what to wait for, and when it was submitted."""

    __slots__ = ("batch", "start_s", "ticket")

    def __init__(self, batch: FrameBatch, ticket: Any, start_s: float) -> None:  # noqa: ANN401
        self.batch = batch
        self.ticket = ticket
        self.start_s = start_s


@final
class Pipeline:
    """Runs during its block. Iterate over finished batches in order, and return each with :meth:`give_back`.

    ``preprocessor`` None means that the sessions preprocess; images smaller than ``roi`` do not reach them.
    ``keep_pixels`` keeps each frame's pixels until its batch is returned.
    """

    def __init__(
        self,
        stream: Stream,
        sessions: Sequence[Session] | Sequence[FrameSession],
        preprocessor: Preprocessor | None,
        *,
        width: Width,
        keep_pixels: bool = False,
        roi: Roi | None = None,
    ) -> None:
        self._stream = stream
        self._is_group = isinstance(stream, GroupStream)
        self._sessions = sessions
        self._preprocessor = preprocessor
        self._width = width
        self._keep_pixels = keep_pixels
        self._roi = roi
        self._free: SimpleQueue[FrameBatch | None] = SimpleQueue()
        self._ready: SimpleQueue[FrameBatch | None] = SimpleQueue()
        self._done: SimpleQueue[FrameBatch | None] = SimpleQueue()
        self._turn = threading.Lock()
        self._taken = 0
        self._ended = False
        self._failure: BaseException | None = None
        self._delivered = 0
        self._threads: list[threading.Thread] = []
        for _ in range(self._batch_count()):
            self._free.put(FrameBatch(self._inputs()))

    @property
    def in_flight(self) -> int:
        """Number of batches that were begun and not delivered."""
        return self._taken - self._delivered

    def __enter__(self) -> Pipeline:
        for index in range(self._width.prepare):
            self._start(self._prepare, f"prepare-{index}")
        for index, session in enumerate(self._sessions):
            submit = self._submit_of(session)
            if submit is None:
                self._start(partial(self._infer, session), f"infer-{index}")
                continue
            submitted: SimpleQueue[_InFlight | None] = SimpleQueue()
            # A slot of the session per batch: taken before it is submitted, free when it was waited for.
            slots = threading.Semaphore(session.in_flight)  # type: ignore[attr-defined]
            self._start(partial(self._submit, submit, submitted, slots), f"submit-{index}")
            self._start(partial(self._wait, submitted, slots), f"wait-{index}")
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: object, trace: object) -> None:
        self.stop()
        for _prepare in range(self._width.prepare):
            self._free.put(None)
        for _session in self._sessions:
            self._ready.put(None)
        # A second Ctrl-C is not an Exception and must not wait.
        timeout_s = _TIMEOUT_S if kind is None or issubclass(kind, Exception) else 0.0
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0.0))

    def stop(self) -> None:
        """Read no more frames; frames in flight are finished."""
        self._ended = True
        self._stream.close()

    def batches(self, *, poll_s: float) -> Iterator[FrameBatch | None]:
        """Yield finished batches in order, and None after each ``poll_s`` without one, until all are delivered.

        Raises:
            EdgeError, and whatever else a stage raised: when the batch with this error would be delivered.
        """
        waiting: dict[int, FrameBatch] = {}
        while not self._all_out():
            try:
                batch = self._done.get(timeout=poll_s)
            except Empty:
                yield None
                continue
            if batch is None:
                continue
            waiting[batch.number] = batch
            while (in_turn := waiting.pop(self._delivered, None)) is not None:
                if in_turn.error is not None:
                    raise in_turn.error
                self._delivered += 1
                yield in_turn
        if self._failure is not None:
            raise self._failure

    def give_back(self, batch: FrameBatch) -> None:
        """Return a batch for reuse."""
        batch.clear()
        self._free.put(batch)

    # the stages

    def _prepare(self) -> None:
        while (batch := self._free.get()) is not None:
            with self._turn:
                has_frames = self._take(batch)
            if not has_frames:
                # The thread that waits for the next one checks again whether there will be one.
                self._done.put(None)
                return
            try:
                for row, taken in enumerate(batch.taken):
                    self._load(batch, row, taken)
            except BaseException as exc:  # noqa: BLE001 - raised again in the caller's thread
                batch.error = exc
            (self._ready if batch.error is None and batch.whole else self._done).put(batch)

    def _take(self, batch: FrameBatch) -> bool:
        """Fill the batch with the next frames; return False at the end."""
        try:
            while len(batch.taken) < self._width.batch and not self._ended:
                following = self._following(batch)
                if following is None:
                    # Nothing from the other cameras in time, or the end of the stream.
                    self._ended = not (batch.taken and self._is_group)
                    break
                if isinstance(following, Outage):
                    batch.outage = following
                    break
                batch.taken.append(BatchItem(following))
        except BaseException as exc:  # noqa: BLE001 - raised in the caller's thread, after what was taken before
            self._failure, self._ended = exc, True
        if not (batch.taken or batch.outage):
            return False
        batch.number = self._taken
        self._taken += 1
        return True

    def _following(self, batch: FrameBatch) -> Frame | Outage | None:
        """Return the next frame or outage; wait for other cameras only as long as the first frame may wait."""
        stream = self._stream
        if not (batch.taken and isinstance(stream, GroupStream)):
            return stream.next()
        left_s = batch.taken[0].frame.since_s + self._width.batch_wait_s - time.monotonic()
        return stream.next_within(max(left_s, 0.0))

    def _load(self, batch: FrameBatch, row: int, taken: BatchItem) -> None:
        start = time.monotonic()
        try:
            pixels = taken.frame.load()
        except DataError as exc:
            taken.skipped = exc.what
            return
        decoded = time.monotonic()
        taken.decode_ms += (decoded - start) * 1e3
        try:
            if self._preprocessor is not None:
                # Remove rows of unusable images before the inference.
                self._preprocessor(pixels, out=None if batch.inputs is None else batch.inputs[row])
                taken.preprocess_ms = (time.monotonic() - decoded) * 1e3
            else:
                roi_box(self._roi, *pixels.shape[:2])
        except DataError as exc:
            taken.skipped = exc.what
            return
        if self._keep_pixels or self._preprocessor is None:
            taken.pixels = pixels

    def _infer(self, session: Any) -> None:  # noqa: ANN401
        while (batch := self._ready.get()) is not None:
            start = time.monotonic()
            try:
                if self._preprocessor is None:
                    frames = [taken.pixels for taken in batch.whole]
                    batch.inference = session.infer_frames(frames)
                else:
                    batch.inference = session.infer(self._rows(batch))
            except BaseException as exc:  # noqa: BLE001 - raised again in the caller's thread
                batch.error = exc
            batch.wall_ms = (time.monotonic() - start) * 1e3
            self._done.put(batch)

    def _submit_of(self, session: Any) -> Callable[[FrameBatch], Any] | None:  # noqa: ANN401
        """Return the function that puts a batch on the session's device without waiting; None where it cannot."""
        if self._preprocessor is None and hasattr(session, "submit_frames"):
            return lambda batch: session.submit_frames([taken.pixels for taken in batch.whole])
        if self._preprocessor is not None and hasattr(session, "submit"):
            return lambda batch: session.submit(self._rows(batch))
        return None

    def _submit(
        self,
        submit: Callable[[FrameBatch], Any],
        submitted: SimpleQueue[_InFlight | None],
        slots: threading.Semaphore,
    ) -> None:
        while (batch := self._ready.get()) is not None:
            slots.acquire()
            start = time.monotonic()
            try:
                submitted.put(_InFlight(batch, submit(batch), start))
            except BaseException as exc:  # noqa: BLE001 - raised again in the caller's thread
                slots.release()
                batch.error = exc
                self._done.put(batch)
        submitted.put(None)

    def _wait(self, submitted: SimpleQueue[_InFlight | None], slots: threading.Semaphore) -> None:
        ended = 0.0
        while (flying := submitted.get()) is not None:
            batch = flying.batch
            try:
                batch.inference = flying.ticket.wait()
            except BaseException as exc:  # noqa: BLE001 - raised again in the caller's thread
                batch.error = exc
            slots.release()
            # The time behind the batch before is not its own.
            start, ended = max(flying.start_s, ended), time.monotonic()
            batch.wall_ms = (ended - start) * 1e3
            self._done.put(batch)

    def _rows(self, batch: FrameBatch) -> Batch:
        """Return the inputs of the decoded images, padded with the first one to the smallest batch."""
        inputs = batch.inputs
        assert inputs is not None  # noqa: S101 - for mypy: there is a preprocessor
        count = len(batch.taken)
        if any(taken.skipped is not None for taken in batch.taken):
            rows = [row for row, taken in enumerate(batch.taken) if taken.skipped is None]
            count = len(rows)
            inputs[:count] = inputs[rows]
        if count < self._width.min_batch:
            inputs[count : self._width.min_batch] = inputs[0]
            count = self._width.min_batch
        return inputs[:count]

    # around them

    def _batch_count(self) -> int:
        """Return the maximum number of frames (or batches) between the stream and the caller.

        Live: one per session, and one in preparation; more would only make frames older.
        """
        if self._stream.opened.live:
            return len(self._sessions) + 1
        return 2 * len(self._sessions) + self._width.prepare

    def _inputs(self) -> Batch | None:
        if self._preprocessor is None:
            return None
        target = self._preprocessor.target
        rows = max(self._width.batch, self._width.min_batch)
        # Written once, so that its pages are there before the first frame is.
        return np.zeros((rows, 3, target.height, target.width), np.float32)

    def _all_out(self) -> bool:
        if not self._ended or self._delivered < self._taken:
            return False
        # A thread that is reading from the stream now may still return one more frame.
        if not self._turn.acquire(blocking=False):
            return False
        try:
            return self._delivered >= self._taken
        finally:
            self._turn.release()

    def _start(self, work: Any, name: str) -> None:  # noqa: ANN401
        thread = threading.Thread(target=work, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

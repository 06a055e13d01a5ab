"""The run loop: pass frames through the pipeline, deliver labels in order, and record statistics."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from edge.artifacts import FrameResult, Gap, NotifyCounts, RunRecord, Skip, Stages, Status, Subject, Warmup
from edge.backends import FrameSession, Inference, Session, session_messages
from edge.config import DecisionSettings, OutputKind, Roi
from edge.errors import DataError, DeviceError, EdgeError, StoreError
from edge.media import GroupStream, Outage, Stream
from edge.model import Preprocessor
from edge.runtime.classifier import Classifier, Decider
from edge.runtime.journal import Journal
from edge.runtime.pipeline import BatchItem, FrameBatch, Pipeline, Width
from edge.runtime.run_statistics import Event, RunStatistics
from edge.telemetry import Telemetry

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

# A request to stop, and the end of a duration, are noticed within this time.
_POLL_S = 0.1
# Frames in flight are finished after a request to stop, but not for longer than this.
_DRAIN_S = 10.0
# Size of the noise that warms the engine up, where the stream does not know its own.
_WARM_SIZE = (480, 640)


def _ignore(_item: object) -> None:
    """Observe nothing."""


class Observers(msgspec.Struct, frozen=True, kw_only=True):
    """Callbacks of a run, all called in the thread of the run loop: a slow callback slows down the run.

    ``on_event`` is called with results, skips and gaps in order, ``on_frame`` with the pixels of each labelled frame
    (uint8 H×W×3 BGR) and its result. ``on_end`` is called after the last frame, and ``on_record`` with the record; both
    are called once, however the run ended.
    """

    on_event: Callable[[Event], None] = _ignore
    on_frame: Callable[[Pixels, FrameResult], None] | None = None
    on_end: Callable[[], None] = lambda: None
    on_record: Callable[[RunRecord], None] = _ignore


class RunSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of a run: guesses per image, warm-up inferences per session, and widths of the pipeline.

    ``duration_s`` ends the run after that time; it is then complete. ``output`` is the kind of the engine's outputs
    (see :func:`edge.runtime.classifier.output_kind`); ``roi`` is the image region for sessions that preprocess.
    """

    topk: int = 5
    decision: DecisionSettings = DecisionSettings()
    warmup: int = 10
    width: Width = Width()
    duration_s: float | None = None
    output: OutputKind | None = None
    roi: Roi | None = None


def run(
    stream: Stream,
    *,
    sessions: Sequence[Session] | Sequence[FrameSession],
    preprocessor: Preprocessor | None,
    names: Sequence[str],
    subject: Subject,
    settings: RunSettings,
    telemetry: Telemetry,
    statistics: RunStatistics | None = None,
    observers: Observers | None = None,
    journal: Journal | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> RunRecord:
    """Classify every frame of ``stream``; an image that cannot be decoded is skipped, counted and reported.

    One thread per session infers, so sessions must be independent, or be one session that allows concurrent calls.
    ``preprocessor`` None means that the sessions preprocess. ``statistics`` collects the statistics of the run for
    display. ``should_stop`` ends the run after the frames in flight; the record then says ``interrupted``. ``journal``
    writes the record during the run. ``telemetry`` has a running sampler, or the reason why there is none.

    Raises:
        DataError: no image could be decoded.
        DeviceError: the backend or the camera failed, or the engine's output contains NaN or infinity.
    """
    opened = stream.opened
    observers = observers or Observers()
    loop = _Loop(
        stream, statistics or statistics_of(stream, telemetry, sessions=sessions),
        classifier=Classifier(names, topk=settings.topk, kind=settings.output), decision=settings.decision,
        subject=subject, telemetry=telemetry, observers=observers, journal=journal,
    )  # fmt: skip
    error: BaseException | None = None
    try:
        loop.warmup = warm_up(sessions, preprocessor, settings, size=(opened.height, opened.width))
        pipeline = Pipeline(
            stream,
            sessions,
            preprocessor,
            width=settings.width,
            keep_pixels=observers.on_frame is not None,
            roi=settings.roi,
        )
        loop.go(pipeline, should_stop, duration_s=settings.duration_s)
    except Exception as exc:  # noqa: BLE001 - raised again when the record is kept
        error = exc
    observers.on_end()
    finished = loop.record(loop.status if error is None else "failed", failure=None if error is None else _words(error))
    observers.on_record(finished)
    if journal is not None:
        # The error of the run is more informative than that of its record.
        with contextlib.nullcontext() if error is None else contextlib.suppress(StoreError):
            journal.end(finished)
    if error is not None:
        raise error
    return finished


def statistics_of(
    stream: Stream,
    telemetry: Telemetry,
    *,
    sessions: Sequence[Session] | Sequence[FrameSession],
    notify: Callable[[], tuple[NotifyCounts, ...]] = tuple,
) -> RunStatistics:
    """Make empty statistics for a run over ``stream`` with ``sessions``."""
    sampler = telemetry.sampler
    return RunStatistics(
        total=stream.opened.total,
        dropped=lambda: stream.dropped,
        cameras=stream.cameras if isinstance(stream, GroupStream) else None,
        reading=lambda: None if sampler is None else sampler.latest,
        notify=notify,
        messages=partial(session_messages, sessions),
    )


def warm_up(
    sessions: Sequence[Session] | Sequence[FrameSession],
    preprocessor: Preprocessor | None,
    settings: RunSettings,
    *,
    size: tuple[int | None, int | None],
) -> Warmup:
    """Run noise through each session without measuring."""
    height, width = size[0] or _WARM_SIZE[0], size[1] or _WARM_SIZE[1]
    if settings.roi is not None:
        # An image of unknown size is assumed to contain the region.
        x, y, across, down = settings.roi
        height, width = max(height, math.ceil(y + down)), max(width, math.ceil(x + across))
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    count = max(settings.width.batch, settings.width.min_batch)
    times: list[float] = []
    for session in sessions:
        work: Callable[[], Inference]
        if preprocessor is None:
            work = partial(session.infer_frames, [noise] * settings.width.batch)  # type: ignore[union-attr]
        else:
            work = partial(session.infer, np.repeat(preprocessor(noise)[None], count, axis=0))  # type: ignore[union-attr]
        times += [work().infer_ms for _ in range(settings.warmup)]
    return Warmup(len(times), times[0] if times else None, times[-1] if times else None)


class _Loop:
    """Processes the output of the pipeline, in order."""

    def __init__(
        self,
        stream: Stream,
        statistics: RunStatistics,
        *,
        classifier: Classifier,
        decision: DecisionSettings,
        subject: Subject,
        telemetry: Telemetry,
        observers: Observers,
        journal: Journal | None,
    ) -> None:
        self.status: Status = "complete"
        self.warmup = Warmup(0, None, None)
        self._stream = stream
        self._statistics = statistics
        self._subject = subject
        self._telemetry = telemetry
        self._notes: list[str] = []
        self._started_utc = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self._classifier = classifier
        decider = Decider(decision, classifier)
        self._decider = decider if decider.is_needed else None
        self._observers = observers
        self._journal = journal
        self._start_s = statistics.begin()

    def go(self, pipeline: Pipeline, should_stop: Callable[[], bool], *, duration_s: float | None) -> None:
        """Run until the end of the stream, the duration, or a stop request.

        Raises:
            DataError: no image could be decoded.
            DeviceError: a live source delivered no frame within the duration.
        """
        self._start_s = self._statistics.begin()
        if self._journal is not None:
            self._journal.begin(self.record("interrupted"))
        if should_stop():
            self.status = "interrupted"
            return
        with pipeline:
            self._take(pipeline, should_stop, self._start_s + (math.inf if duration_s is None else duration_s))
        counts = self._statistics
        if not counts.pictures and counts.skipped and self.status == "complete":
            raise DataError(f"none of the {counts.skipped} images could be decoded: {counts.first_reason}")
        if not counts.pictures and self._stream.opened.live and self.status == "complete":
            gap = counts.snapshot().gap
            reason, hint = ("the run was too short", None) if gap is None else (gap.reason, gap.hint)
            raise DeviceError(f"no frame was received: {reason}", hint=hint)

    def _take(self, pipeline: Pipeline, should_stop: Callable[[], bool], end_s: float) -> None:
        give_up_s: float | None = None
        for batch in pipeline.batches(poll_s=_POLL_S):
            now = time.monotonic()
            self._keep_up(now - self._start_s)
            if batch is not None:
                self._deliver(batch)
                pipeline.give_back(batch)
            if give_up_s is None:
                asked = should_stop()
                if asked or now >= end_s:
                    self.status = "interrupted" if asked else "complete"
                    pipeline.stop()
                    give_up_s = now + _DRAIN_S
            elif now >= give_up_s:
                self._notes.append(
                    f"{pipeline.in_flight} frames in flight were abandoned: a stage did not end within {_DRAIN_S:g} s"
                )
                return

    def record(self, status: Status, *, failure: str | None = None) -> RunRecord:
        """Make the record of everything so far."""
        opened = self._stream.opened
        return self._statistics.to_record(
            status, failure=failure, subject=self._subject, source=msgspec.to_builtins(opened),
            replayed=opened.replayed, started_utc=self._started_utc, warmup=self.warmup, telemetry=self._telemetry,
            notes=[*self._stream.notes, *self._notes],
        )  # fmt: skip

    def _keep_up(self, t_s: float) -> None:
        ticks = self._statistics.advance()
        if self._journal is not None:
            self._journal.add_ticks(ticks)
            if self._journal.is_due(t_s):
                self._journal.flush(t_s, self.record("interrupted"))

    def _deliver(self, batch: FrameBatch) -> None:
        if batch.outage is not None:
            self._report(self._gap(batch.outage))
        row = 0
        for taken in batch.taken:
            if taken.skipped is not None:
                self._report(Skip(taken.frame.seq, taken.frame.name, taken.skipped, taken.frame.camera))
                continue
            result = self._result(batch, taken, row)
            row += 1
            self._report(result)
            on_frame = self._observers.on_frame
            if on_frame is not None and taken.pixels is not None:
                on_frame(taken.pixels, result)

    def _result(self, batch: FrameBatch, taken: BatchItem, row: int) -> FrameResult:
        inference, frame = batch.inference, taken.frame
        assert inference is not None  # noqa: S101 - for mypy: a frame that was not skipped was inferred
        start = time.monotonic()
        logits = inference.logits[row]
        shares = self._classifier.shares(logits, where=frame.where)
        guesses = self._classifier.guesses(logits, shares)
        decide = self._decider
        decision = None if decide is None else decide(shares, camera=frame.camera, t_s=frame.since_s)
        end = time.monotonic()
        own_ms = taken.decode_ms + taken.preprocess_ms + batch.wall_ms + (end - start) * 1e3
        stages = Stages(
            decode_ms=taken.decode_ms,
            preprocess_ms=taken.preprocess_ms if inference.preprocess_ms is None else inference.preprocess_ms,
            host_to_device_ms=inference.host_to_device_ms,
            infer_ms=inference.infer_ms,
            device_to_host_ms=inference.device_to_host_ms,
            postprocess_ms=(end - start) * 1e3,
            total_ms=own_ms,
            age_ms=(end - frame.since_s) * 1e3,
        )
        return FrameResult(
            seq=frame.seq, name=frame.name, guesses=guesses, stages=stages, t_s=end - self._start_s,
            camera=frame.camera, decision=decision,
        )  # fmt: skip

    def _gap(self, outage: Outage) -> Gap:
        return Gap(
            start_s=max(outage.start_s - self._start_s, 0.0),
            end_s=None if outage.end_s is None else max(outage.end_s - self._start_s, 0.0),
            reason=outage.reason,
            hint=outage.hint,
            reopened_as=outage.reopened_as,
            attempts=outage.attempts,
            camera=outage.camera,
        )

    def _report(self, event: Event) -> None:
        self._statistics.record(event)
        if self._journal is not None:
            self._journal.record(event)
        self._observers.on_event(event)


def _words(error: BaseException) -> str:
    return str(error) if isinstance(error, EdgeError) else f"{type(error).__name__}: {error}"

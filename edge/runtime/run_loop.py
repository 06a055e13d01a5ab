"""From a stream of frames to a record: the pipeline runs, its labels are heard in order, everything is counted."""

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

from edge.artifacts import FrameResult, Gap, RunRecord, Skip, Stages, Status, Subject, Warmup
from edge.backends import FrameSession, Inference, Session
from edge.config import OutputKind
from edge.errors import DataError, EdgeError, StoreError
from edge.media import Outage, Stream
from edge.model import Preprocessor
from edge.runtime.classifier import Classifier
from edge.runtime.journal import Journal
from edge.runtime.pipeline import BatchItem, FrameBatch, Pipeline, Width
from edge.runtime.run_account import RunAccount
from edge.telemetry import Telemetry, Window

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

Heard = FrameResult | Skip | Gap
Hear = Callable[[Heard], None]
Keep = Callable[[RunRecord], None]
Show = Callable[["Pixels", FrameResult], None]


# Nothing may keep a wish to stop, or the end of a duration, waiting for longer.
_POLL_S = 0.1
# Frames in hand are finished after the wish to stop, but not for longer than this.
_DRAIN_S = 10.0
# Size of the noise that warms the engine up, where the stream does not know its own.
_WARM_SIZE = (480, 640)


class RunSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How to run: guesses per picture, warm-up inferences per session, and how wide the pipeline is.

    ``duration_s`` ends the run after that time, which is then complete. ``output`` is what the engine's outputs are
    (see :func:`edge.runtime.classifier.output_kind`).
    """

    topk: int = 5
    warmup: int = 10
    width: Width = Width()
    duration_s: float | None = None
    output: OutputKind | None = None


def run(
    stream: Stream,
    *,
    sessions: Sequence[Session] | Sequence[FrameSession],
    preprocessor: Preprocessor | None,
    names: Sequence[str],
    subject: Subject,
    settings: RunSettings,
    telemetry: Telemetry,
    hear: Hear = lambda _heard: None,
    show: Show | None = None,
    keep: Keep = lambda _record: None,
    journal: Journal | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> RunRecord:
    """Classify every frame of ``stream``; a picture that cannot be decoded is skipped, counted and named.

    One thread per session infers, so sessions must be independent, or the same one where it allows that.
    ``preprocessor`` None means that they preprocess themselves. ``hear`` gets results, skips and gaps in order, and
    ``show`` the pixels of each labelled frame with its result; both in this thread, and a slow one slows the run down.
    ``should_stop`` ends it after the frames in hand; the record then says ``interrupted``. ``keep`` gets the record
    once, however the run ended, also when this raises; ``journal`` keeps it on disk meanwhile. ``telemetry`` has a
    running sampler, or says why none.

    Raises:
        DataError: not one picture could be decoded.
        DeviceError: the backend or the camera failed, or the engine gave NaN or infinity.
    """
    opened = stream.opened
    account = RunAccount(
        subject=subject, source=msgspec.to_builtins(opened), replayed=opened.replayed,
        telemetry=telemetry, started_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )  # fmt: skip
    classify = Classifier(names, topk=settings.topk, kind=settings.output)
    loop = _Loop(account, stream, classify=classify, hear=hear, show=show, journal=journal)
    error: BaseException | None = None
    try:
        loop.warmup = warm_up(sessions, preprocessor, settings, size=(opened.height, opened.width))
        pipeline = Pipeline(stream, sessions, preprocessor, width=settings.width, keep_pixels=show is not None)
        loop.go(pipeline, should_stop, duration_s=settings.duration_s)
    except Exception as exc:  # noqa: BLE001 - raised again when the record is kept
        error = exc
    finished = loop.record(loop.status if error is None else "failed", failure=None if error is None else _words(error))
    keep(finished)
    if journal is not None:
        # The error of the run says more than that of its record.
        with contextlib.nullcontext() if error is None else contextlib.suppress(StoreError):
            journal.end(finished)
    if error is not None:
        raise error
    return finished


def warm_up(
    sessions: Sequence[Session] | Sequence[FrameSession],
    preprocessor: Preprocessor | None,
    settings: RunSettings,
    *,
    size: tuple[int | None, int | None],
) -> Warmup:
    """Run noise through each session, outside of every figure."""
    height, width = size[0] or _WARM_SIZE[0], size[1] or _WARM_SIZE[1]
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
    """Takes what comes out of the pipeline, in order."""

    def __init__(
        self,
        account: RunAccount,
        stream: Stream,
        *,
        classify: Classifier,
        hear: Hear,
        show: Show | None,
        journal: Journal | None,
    ) -> None:
        self.status: Status = "complete"
        self.warmup = Warmup(0, None, None)
        self._account = account
        self._stream = stream
        self._classify = classify
        self._hear = hear
        self._show = show
        self._journal = journal
        self._begin()

    def _begin(self) -> None:
        """The measured window begins: frames that were replaced until now are not counted."""
        self._start_s = time.monotonic()
        self._dropped_before = self._stream.dropped

    @property
    def dropped(self) -> int | None:
        """Frames that were dropped since the window began."""
        now, before = self._stream.dropped, self._dropped_before
        return None if now is None or before is None else now - before

    def go(self, pipeline: Pipeline, should_stop: Callable[[], bool], *, duration_s: float | None) -> None:
        """Until the stream or the duration ends, or a wish to stop.

        Raises:
            DataError: not one picture could be decoded.
        """
        self._begin()
        if self._journal is not None:
            self._journal.begin(self.record("interrupted"))
        if should_stop():
            self.status = "interrupted"
            return
        with pipeline:
            self._take(pipeline, should_stop, self._start_s + (math.inf if duration_s is None else duration_s))
        account = self._account
        if not account.pictures and account.skipped_count and self.status == "complete":
            raise DataError(f"none of the {account.skipped_count} pictures could be decoded: {account.first_reason}")

    def _take(self, pipeline: Pipeline, should_stop: Callable[[], bool], end_s: float) -> None:
        give_up_s: float | None = None
        for parcel in pipeline.parcels(poll_s=_POLL_S):
            now = time.monotonic()
            self._keep_up(now - self._start_s)
            if parcel is not None:
                self._deliver(parcel)
                pipeline.give_back(parcel)
            if give_up_s is None:
                asked = should_stop()
                if asked or now >= end_s:
                    self.status = "interrupted" if asked else "complete"
                    pipeline.stop()
                    give_up_s = now + _DRAIN_S
            elif now >= give_up_s:
                self._account.notes.append(
                    f"{pipeline.in_flight} frames in hand were given up: a stage did not come back in {_DRAIN_S:g} s"
                )
                return

    def record(self, status: Status, *, failure: str | None = None) -> RunRecord:
        """The record of everything so far."""
        return self._account.record(
            status, failure=failure, warmup=self.warmup, window=Window(self._start_s, time.monotonic()),
            dropped=self.dropped, notes=self._stream.notes,
        )  # fmt: skip

    def _keep_up(self, t_s: float) -> None:
        ticks = self._account.advance(t_s, dropped=self.dropped)
        if self._journal is not None:
            self._journal.ticked(ticks)
            if self._journal.is_due(t_s):
                self._journal.flush(t_s, self.record("interrupted"))

    def _deliver(self, parcel: FrameBatch) -> None:
        if parcel.outage is not None:
            self._tell(self._gap(parcel.outage))
        row = 0
        for taken in parcel.taken:
            if taken.skipped is not None:
                self._tell(Skip(taken.frame.seq, taken.frame.name, taken.skipped))
                continue
            result = self._result(parcel, taken, row)
            row += 1
            self._tell(result)
            if self._show is not None and taken.pixels is not None:
                self._show(taken.pixels, result)

    def _result(self, parcel: FrameBatch, taken: BatchItem, row: int) -> FrameResult:
        inference, frame = parcel.inference, taken.frame
        assert inference is not None  # noqa: S101 - for mypy: a frame that was not skipped was inferred
        start = time.monotonic()
        guesses = self._classify(inference.logits[row], where=frame.where)
        end = time.monotonic()
        own_ms = taken.decode_ms + taken.preprocess_ms + parcel.wall_ms + (end - start) * 1e3
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
        return FrameResult(seq=frame.seq, name=frame.name, guesses=guesses, stages=stages, t_s=end - self._start_s)

    def _gap(self, outage: Outage) -> Gap:
        return Gap(
            start_s=max(outage.start_s - self._start_s, 0.0),
            end_s=None if outage.end_s is None else max(outage.end_s - self._start_s, 0.0),
            reason=outage.reason,
            hint=outage.hint,
            reopened_as=outage.reopened_as,
            attempts=outage.attempts,
        )

    def _tell(self, heard: Heard) -> None:
        self._account.add(heard)
        if self._journal is not None:
            self._journal.heard(heard)
        self._hear(heard)


def _words(error: BaseException) -> str:
    return str(error) if isinstance(error, EdgeError) else f"{type(error).__name__}: {error}"

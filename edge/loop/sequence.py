"""The verb ``run``: frames -> preprocess -> infer -> labels, with the time of every stage and the power."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from edge.backends.base import Session
from edge.errors import DataError, EdgeError
from edge.frames.stream import Frame, Outage, Stream
from edge.loop.account import Account, Telemetry
from edge.loop.classify import Classifier
from edge.preprocess import Preprocessor
from edge.record import Gap, Result, RunRecord, Skip, Stages, Status, Subject, Warmup
from edge.telemetry import NoSource
from edge.telemetry.energy import Window
from edge.telemetry.sampler import Sampler

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Batch = NDArray[np.float32]
    Pixels = NDArray[np.uint8]

Heard = Result | Skip | Gap
Hear = Callable[[Heard], None]
Keep = Callable[[RunRecord], None]
Show = Callable[["Pixels", Result], None]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How to run: guesses per picture, warm-up inferences, and the smallest batch that the engine takes."""

    topk: int = 5
    warmup: int = 10
    batch: int = 1


def run(
    stream: Stream,
    *,
    session: Session,
    preprocessor: Preprocessor,
    names: Sequence[str],
    subject: Subject,
    settings: Settings,
    sampler: Sampler | None = None,
    no_power: NoSource | None = None,
    hear: Hear = lambda _heard: None,
    show: Show | None = None,
    keep: Keep = lambda _record: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> RunRecord:
    """Classify every frame of ``stream``; a picture that cannot be decoded is skipped, counted and named.

    ``should_stop`` ends it after the picture in hand; the record then says ``interrupted``. ``keep`` gets the record
    once, however the run ended, also when this raises. ``sampler`` is running; without one, ``no_power`` says why.

    Raises:
        DataError: not one picture could be decoded.
        DeviceError: the backend failed, or gave NaN or infinity.
    """
    loop = _Loop(session, preprocessor, Classifier(names, topk=settings.topk), settings)
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    opened = stream.opened
    account = Account(
        subject=subject, source=msgspec.to_builtins(opened), replayed=opened.replayed,
        telemetry=Telemetry(sampler, no_power), started_utc=started,
    )  # fmt: skip
    warmup = loop.warm_up(opened.height or 480, opened.width or 640)
    status: Status = "complete"
    error: BaseException | None = None
    loop.start_s = start = time.monotonic()
    try:
        while (frame := stream.next()) is not None:
            if should_stop():
                status = "interrupted"
                break
            heard, pixels = loop.step(frame)
            account.advance(time.monotonic() - start, dropped=stream.dropped)
            account.add(heard)
            hear(heard)
            if show is not None and isinstance(heard, Result) and pixels is not None:
                show(pixels, heard)
        if not account.pictures and account.skipped_count and status == "complete":
            raise DataError(  # noqa: TRY301 - the record is kept before it goes on
                f"none of the {account.skipped_count} pictures could be decoded: {account.first_reason}"
            )
    except Exception as exc:  # noqa: BLE001 - raised again when the record is kept
        status, error = "failed", exc
    account.notes += stream.notes
    failure = None if error is None else str(error.what if isinstance(error, EdgeError) else repr(error))
    finished = account.record(
        status, failure=failure, warmup=warmup, window=Window(start, time.monotonic()), dropped=stream.dropped
    )
    keep(finished)
    if error is not None:
        raise error
    return finished


class _Loop:
    """The stages, one after the other."""

    start_s = 0.0

    def __init__(self, session: Session, preprocessor: Preprocessor, classify: Classifier, settings: Settings) -> None:
        self._session = session
        self._preprocessor = preprocessor
        self._classify = classify
        self._settings = settings

    def warm_up(self, height: int, width: int) -> Warmup:
        """Run noise a few times, outside of every figure."""
        noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        batch = self._batch(self._preprocessor(noise))
        times = [self._session.infer(batch).infer_ms for _ in range(self._settings.warmup)]
        return Warmup(len(times), times[0] if times else None, times[-1] if times else None)

    def step(self, frame: Frame | Outage) -> tuple[Heard, Pixels | None]:
        """Classify one frame."""
        if isinstance(frame, Outage):
            return Gap(
                start_s=frame.start_s - self.start_s, end_s=None if frame.end_s is None else frame.end_s - self.start_s,
                reason=frame.reason, hint=frame.hint, reopened_as=frame.reopened_as, attempts=frame.attempts,
            ), None  # fmt: skip
        start = time.monotonic()
        try:
            pixels = frame.load()
        except DataError as exc:
            return Skip(frame.seq, frame.name, exc.what), None
        decoded = time.monotonic()
        batch = self._batch(self._preprocessor(pixels))
        ready = time.monotonic()
        inference = self._session.infer(batch)
        back = time.monotonic()
        guesses = self._classify(inference.logits[0], where=frame.where)
        end = time.monotonic()
        stages = Stages(
            decode_ms=(decoded - start) * 1e3,
            preprocess_ms=(ready - decoded) * 1e3,
            host_to_device_ms=inference.host_to_device_ms,
            infer_ms=inference.infer_ms,
            device_to_host_ms=inference.device_to_host_ms,
            postprocess_ms=(end - back) * 1e3,
            total_ms=(end - start) * 1e3,
            age_ms=(end - frame.since_s) * 1e3,
        )
        return Result(seq=frame.seq, name=frame.name, guesses=guesses, stages=stages, t_s=end - self.start_s), pixels

    def _batch(self, one: Batch) -> Batch:
        # An engine with a larger minimum gets the same picture several times; only the first answer is read.
        return np.repeat(one[None], self._settings.batch, axis=0)

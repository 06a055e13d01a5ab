"""The verb ``run``: pictures -> preprocess -> infer -> labels, with the time of every stage and the power."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np

from edge import __version__
from edge.backends.base import Session
from edge.errors import DataError, DeviceError
from edge.frames import Picture, Pictures, decode
from edge.preprocess import Preprocessor
from edge.record import FORMAT, Guess, Result, RunRecord, Skip, Stages, Subject, Warmup
from edge.stats import Summary, summarize
from edge.telemetry import NoSource, Source
from edge.telemetry.energy import Window
from edge.telemetry.sampler import Sampler

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Batch = NDArray[np.float32]

_STAGES = ("decode", "preprocess", "host_to_device", "infer", "device_to_host", "postprocess", "total")
# Fewer pictures than this say little about a tail.
_FEW = 100
# A second half slower than the first by this factor is not one steady state.
_DRIFT = 1.15

Heard = Result | Skip
Hear = Callable[[Heard], None]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How to run: guesses per picture, warm-up inferences, and the smallest batch that the engine takes."""

    topk: int = 5
    warmup: int = 10
    batch: int = 1


def run(
    pictures: Pictures,
    *,
    session: Session,
    preprocessor: Preprocessor,
    names: Sequence[str],
    subject: Subject,
    settings: Settings,
    power: Source | NoSource,
    hear: Hear = lambda _heard: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> RunRecord:
    """Classify every picture, one after the other; a picture that cannot be decoded is skipped, counted and named.

    ``should_stop`` ends it after the picture in hand; the record then says ``interrupted``.

    Raises:
        DataError: not one picture could be decoded.
        DeviceError: the backend failed, or gave NaN or infinity.
    """
    loop = _Loop(session, preprocessor, names, settings)
    started = datetime.now(timezone.utc)
    warmup = loop.warm_up(pictures)
    sampler = None if isinstance(power, NoSource) else Sampler(power)
    status: Literal["complete", "interrupted"] = "complete"
    start = time.monotonic()
    if sampler is not None:
        sampler.__enter__()
    try:
        for seq, picture in enumerate(pictures):
            if should_stop():
                status = "interrupted"
                break
            hear(loop.step(seq, picture))
    finally:
        end = time.monotonic()
        if sampler is not None:
            sampler.__exit__(None, None, None)
    if not loop.results and status == "complete":
        raise DataError(f"none of the {len(loop.skipped)} pictures could be decoded: {loop.skipped[0].reason}")
    return _record(loop, warmup, started, Window(start, end), status, subject=subject, power=power, sampler=sampler)


class _Loop:
    """The stages, and what came of them."""

    def __init__(self, session: Session, preprocessor: Preprocessor, names: Sequence[str], settings: Settings) -> None:
        self.results: list[Result] = []
        self.skipped: list[Skip] = []
        self._session = session
        self._preprocessor = preprocessor
        self._names = names
        self._settings = settings

    def warm_up(self, pictures: Pictures) -> Warmup:
        """Run the first picture that can be decoded a few times, outside of every figure."""
        times: list[float] = []
        for picture in pictures:
            try:
                batch = self._batch(self._preprocessor(decode(picture.read(), name=picture.where)))
            except DataError:
                continue
            times = [self._session.infer(batch).infer_ms for _ in range(self._settings.warmup)]
            break
        return Warmup(len(times), times[0] if times else None, times[-1] if times else None)

    def step(self, seq: int, picture: Picture) -> Heard:
        """Classify one picture."""
        start = time.perf_counter()
        try:
            pixels = decode(picture.read(), name=picture.where)
        except DataError as exc:
            skip = Skip(seq, picture.name, exc.what)
            self.skipped.append(skip)
            return skip
        decoded = time.perf_counter()
        batch = self._batch(self._preprocessor(pixels))
        ready = time.perf_counter()
        inference = self._session.infer(batch)
        back = time.perf_counter()
        guesses = self._guesses(inference.logits[0], picture.where)
        end = time.perf_counter()
        stages = Stages(
            decode_ms=(decoded - start) * 1e3,
            preprocess_ms=(ready - decoded) * 1e3,
            host_to_device_ms=inference.host_to_device_ms,
            infer_ms=inference.infer_ms,
            device_to_host_ms=inference.device_to_host_ms,
            postprocess_ms=(end - back) * 1e3,
            total_ms=(end - start) * 1e3,
        )
        result = Result(seq=seq, name=picture.name, guesses=guesses, stages=stages)
        self.results.append(result)
        return result

    def _batch(self, one: Batch) -> Batch:
        # An engine with a larger minimum gets the same picture several times; only the first answer is read.
        return np.repeat(one[None], self._settings.batch, axis=0)

    def _guesses(self, logits: Batch, where: str) -> list[Guess]:
        if not np.isfinite(logits).all():
            raise DeviceError(
                f"the engine's answer holds NaN or infinity for {where}",
                hint="the engine overflows: build it with --precision fp32, and see whether the model itself does",
            )
        top = np.argsort(-logits, kind="stable")[: self._settings.topk]
        shares = np.exp(logits - logits[top[0]])
        total = float(shares.sum())
        return [Guess(int(i), self._label(int(i)), float(shares[i]) / total) for i in top]

    def _label(self, index: int) -> str:
        return self._names[index] if index < len(self._names) else f"class {index}"


def _record(
    loop: _Loop,
    warmup: Warmup,
    started: datetime,
    window: Window,
    status: Literal["complete", "interrupted"],
    *,
    subject: Subject,
    power: Source | NoSource,
    sampler: Sampler | None,
) -> RunRecord:
    latency: dict[str, Summary] = {}
    absent: dict[str, str] = {}
    for stage in _STAGES:
        summary = summarize([v for r in loop.results if (v := getattr(r.stages, f"{stage}_ms")) is not None])
        if summary is not None:
            latency[stage] = summary
        elif loop.results:
            absent[stage] = "does not exist on this backend; its tensors stay in host memory"
    energy, unavailable, conditions = _power(power, sampler, window, pictures=len(loop.results))
    return RunRecord(
        format=FORMAT,
        edge_version=__version__,
        started_utc=started.isoformat(timespec="seconds"),
        status=status,
        subject=subject,
        pictures=len(loop.results),
        skipped=loop.skipped,
        warmup=warmup,
        measured_s=window.length_s,
        rate_per_s=len(loop.results) / window.length_s if loop.results else None,
        latency=latency,
        stages_absent=absent,
        power=energy,
        power_unavailable=unavailable,
        conditions=conditions,
        warnings=_doubts([r.stages.total_ms for r in loop.results], conditions),
        results=loop.results,
    )


def _power(
    power: Source | NoSource, sampler: Sampler | None, window: Window, *, pictures: int
) -> tuple[dict[str, Any] | None, str | None, dict[str, Any]]:
    """The energy reading, or why there is none; and temperatures, loads and throttling."""
    if sampler is None or isinstance(power, NoSource):
        return None, str(power), {}
    conditions = msgspec.to_builtins(sampler.conditions(window))
    energy = sampler.energy(window)
    if energy.joules is None:
        return None, f"{energy.source}: {energy.refusal}", conditions
    content = msgspec.to_builtins(energy)
    if pictures:
        content["joules_per_picture"] = energy.joules / pictures
    return content, None, conditions


def _doubts(total_ms: Sequence[float], conditions: dict[str, Any]) -> list[str]:
    """What a reader of the figures should know before quoting them."""
    doubts = []
    n = len(total_ms)
    if 0 < n < _FEW:
        doubts.append(f"{n} pictures: too few for the tail percentiles; use {_FEW} or more")
    half = n // 2
    if half >= _FEW // 4:
        first, second = summarize(total_ms[:half]), summarize(total_ms[half:])
        if first and second and second.p50_ms > first.p50_ms * _DRIFT:
            doubts.append(
                f"the second half was slower (median {second.p50_ms:.2f} ms against {first.p50_ms:.2f} ms): "
                "not one steady state"
            )
    if conditions.get("throttling") or any(conditions.get("throttles", {}).values()):
        doubts.append("the device was throttled during the run")
    return doubts

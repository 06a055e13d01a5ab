"""The operation ``run``: stages, warm-up, skips, interruption and power, with sessions whose answers are known."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.artifacts import run_record
from edge.artifacts.run_record import FrameResult, RunRecord, Skip, Subject
from edge.backends.fake import Fake, FakeSession
from edge.backends.interface import BackendMessage, Inference, Session
from edge.config.profiles import InputConfig, PreprocessConfig
from edge.errors import DataError, DeviceError
from edge.media.picture_sources import open_pictures
from edge.media.pictures import Pictures
from edge.media.streams import PictureStream
from edge.model.preprocessing import Preprocessor
from edge.runtime import pipeline, run_loop
from edge.telemetry.sampler import Sampler, Telemetry
from edge.telemetry.sources import NoSource, Reading, Scope, Unavailable

NO_POWER = NoSource((Unavailable("hwmon", "no sensor"),))
NAMES = ["cat", "dog", "newt"]
SUBJECT = Subject(
    profile="tiny", profile_digest="p", model="model.onnx", model_sha256="m", engine_sha256="e", table_sha256=None,
    preprocess_digest="d", backend={"backend": "fake"}, precision="fp32", layers={}, device={}, source="p",
)  # fmt: skip
STAGES = ("decode", "preprocess", "infer", "postprocess", "total", "age")


class Told:
    """A session that answers what it is told: times in milliseconds, one after the other, and fixed logits."""

    precision = "fp32"

    def __init__(self, times_ms: Sequence[float] = (1.0,), logits: Sequence[float] = (0.0, 1.0, 2.0)) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self._times_ms = itertools.chain(times_ms, itertools.repeat(times_ms[-1]))
        self._logits = np.asarray(logits, np.float32)

    def infer(self, batch: Any) -> Inference:
        self.shapes.append(batch.shape)
        logits = np.repeat(self._logits[None], len(batch), axis=0)
        return Inference(logits=logits, infer_ms=next(self._times_ms))

    def close(self) -> None:
        pass


class WithTransfers(Told):
    """The same with copies to and from a device."""

    def infer(self, batch: Any) -> Inference:
        inference = super().infer(batch)
        return Inference(
            logits=inference.logits, infer_ms=inference.infer_ms, host_to_device_ms=0.25, device_to_host_ms=0.125
        )


class Constant:
    """A power source that always says the same; ``events`` are counted at each reading."""

    name = "constant"
    scope: Scope = "module_input"

    def __init__(
        self, *, power_mw: float = 5000.0, throttles: int = 0, events: int = 0, warnings: tuple[str, ...] = ()
    ) -> None:
        self._power_mw = power_mw
        self._throttles = itertools.count(throttles, events)
        self._warnings = warnings

    def read(self) -> Reading:
        return Reading(
            t_s=time.monotonic(), power_mw=self._power_mw, temps_c={"cpu": 50.0},
            throttles={"cpu": next(self._throttles)}, warnings=self._warnings,
        )  # fmt: skip

    def close(self) -> None:
        pass


@pytest.fixture
def run(tmp_path: Path, pictures: Callable[..., list[Path]]) -> Callable[..., RunRecord]:
    """Run over the pictures in ``tmp_path / "p"``, five unless there are some."""

    def call(session: Session, *, source: Pictures | None = None, **options: Any) -> RunRecord:
        folder = tmp_path / "p"
        if not folder.exists():
            pictures(folder, 5)
        names = options.pop("names", NAMES)
        power = options.pop("power", None)
        width = {name: options.pop(name) for name in ("prepare", "batch", "min_batch") if name in options}
        further = {name: options.pop(name) for name in ("observers", "should_stop") if name in options}
        with contextlib.ExitStack() as stack:
            sampler = None if power is None else stack.enter_context(Sampler(power))
            return run_loop.run(
                PictureStream(source or open_pictures(folder)),
                sessions=[session],
                preprocessor=Preprocessor(PreprocessConfig(resize=36), InputConfig(height=32, width=32)),
                names=names,
                subject=SUBJECT,
                settings=run_loop.RunSettings(**{"warmup": 2, "topk": 5, "width": pipeline.Width(**width), **options}),
                telemetry=Telemetry(sampler, None if sampler else NO_POWER),
                **further,
            )

    return call


def test_every_picture_is_classified_in_order(run: Callable[..., RunRecord]) -> None:
    heard: list[FrameResult | Skip] = []
    finished = run(Told(), observers=run_loop.Observers(on_event=heard.append))
    assert (finished.status, finished.pictures, finished.skipped) == ("complete", 5, [])
    assert [(result.seq, result.name) for result in finished.results] == [(i, f"{i:03d}.jpg") for i in range(5)]
    assert heard == finished.results
    assert finished.subject == SUBJECT


def test_guesses_are_softmax_shares_best_first(run: Callable[..., RunRecord]) -> None:
    guesses = run(Told(logits=(0.0, 2.0, 1.0))).results[0].guesses
    shares = np.exp([2.0, 1.0, 0.0]) / np.exp([2.0, 1.0, 0.0]).sum()
    assert [(guess.index, guess.label) for guess in guesses] == [(1, "dog"), (2, "newt"), (0, "cat")]
    assert [guess.confidence for guess in guesses] == pytest.approx(shares)


def test_large_logits_do_not_overflow(run: Callable[..., RunRecord]) -> None:
    guesses = run(Told(logits=(3e4, -3e4, 2.9e4))).results[0].guesses
    assert [guess.confidence for guess in guesses] == pytest.approx([1.0, 0.0, 0.0])


@pytest.mark.parametrize(("topk", "expected"), [(1, 1), (2, 2), (3, 3), (50, 3)])
def test_no_more_guesses_than_asked_for_or_than_classes(
    topk: int, expected: int, run: Callable[..., RunRecord]
) -> None:
    assert {len(result.guesses) for result in run(Told(), topk=topk).results} == {expected}


def test_a_class_without_a_name_gets_its_number(run: Callable[..., RunRecord]) -> None:
    assert [guess.label for guess in run(Told(), names=["cat"]).results[0].guesses] == ["class 2", "class 1", "cat"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_engine_that_overflows_is_an_error_not_a_label(value: float, run: Callable[..., RunRecord]) -> None:
    with pytest.raises(DeviceError, match=r"NaN or infinity for .*000\.jpg"):
        run(Told(logits=(0.0, value, 1.0)))


def test_stages_have_their_own_times_that_fit_into_the_total(run: Callable[..., RunRecord]) -> None:
    finished = run(FakeSession(Fake(infer_ms=15.0, classes=10)))
    for result in finished.results:
        stages = result.stages
        assert stages.infer_ms >= 15.0
        parts = (stages.decode_ms, stages.preprocess_ms, stages.infer_ms, stages.postprocess_ms)
        assert min(parts) > 0.0
        assert sum(parts) <= stages.total_ms + 1e-6
    assert finished.latency["infer"].min_ms >= 15.0
    # One session infers one after the other; the other stages overlap with it.
    assert finished.measured_s * 1e3 >= sum(result.stages.infer_ms for result in finished.results) - 1e-3
    assert finished.rate_per_s == pytest.approx(5 / finished.measured_s)


def test_a_stage_that_does_not_exist_is_absent_with_a_reason(run: Callable[..., RunRecord]) -> None:
    finished = run(Told())
    assert set(finished.latency) == set(STAGES)
    assert set(finished.stages_absent) == {"host_to_device", "device_to_host"}
    assert set(finished.stages_absent.values()) == {"none (CPU backend)"}
    assert finished.results[0].stages.host_to_device_ms is None


def test_transfers_are_stages_of_their_own(run: Callable[..., RunRecord]) -> None:
    finished = run(WithTransfers())
    assert finished.stages_absent == {}
    assert (finished.latency["host_to_device"].mean_ms, finished.latency["device_to_host"].mean_ms) == (0.25, 0.125)
    assert finished.latency["infer"].mean_ms == 1.0


def test_the_warm_up_is_kept_apart(run: Callable[..., RunRecord]) -> None:
    session = Told([90.0, 40.0, 20.0, 2.0])
    finished = run(session, warmup=3)
    assert (finished.warmup.n, finished.warmup.first_ms, finished.warmup.last_ms) == (3, 90.0, 20.0)
    assert len(session.shapes) == 3 + 5
    assert (finished.latency["infer"].n, finished.latency["infer"].max_ms) == (5, 2.0)


def test_without_a_warm_up_the_first_picture_counts(run: Callable[..., RunRecord]) -> None:
    finished = run(Told([90.0, 2.0]), warmup=0)
    assert (finished.warmup.n, finished.warmup.first_ms, finished.warmup.last_ms) == (0, None, None)
    assert finished.latency["infer"].max_ms == 90.0


def test_an_engine_with_a_larger_smallest_batch_gets_it(run: Callable[..., RunRecord]) -> None:
    session = Told()
    assert run(session, min_batch=4).pictures == 5
    assert set(session.shapes) == {(4, 3, 32, 32)}


def test_what_cannot_be_decoded_is_skipped_counted_and_named(run: Callable[..., RunRecord], tmp_path: Path) -> None:
    run(Told())
    whole = (tmp_path / "p" / "000.jpg").read_bytes()
    (tmp_path / "p" / "000.jpg").write_bytes(b"")
    (tmp_path / "p" / "002.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "p" / "003.jpg").write_bytes(b"no image\n")
    source = open_pictures(tmp_path / "p")
    (tmp_path / "p" / "004.jpg").unlink()
    heard: list[FrameResult | Skip] = []
    finished = run(Told(), source=source, observers=run_loop.Observers(on_event=heard.append))
    assert [(skip.seq, skip.name) for skip in finished.skipped] == [
        (0, "000.jpg"), (2, "002.jpg"), (3, "003.jpg"), (4, "004.jpg"),
    ]  # fmt: skip
    words = ("empty", "truncated", "not a JPEG", "cannot read the image")
    assert all(word in skip.reason for word, skip in zip(words, finished.skipped, strict=True))
    assert (finished.pictures, [result.seq for result in finished.results]) == (1, [1])
    assert [type(one).__name__ for one in heard] == ["Skip", "FrameResult", "Skip", "Skip", "Skip"]
    # The first that can be decoded warmed the engine up.
    assert finished.warmup.n == 2


def test_not_one_picture_is_an_error(run: Callable[..., RunRecord], tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "p" / name).write_bytes(b"no image\n")
    with pytest.raises(DataError, match="none of the 2 images could be decoded: not a JPEG"):
        run(Told())


def test_a_wish_to_stop_ends_it_after_the_pictures_in_hand(
    run: Callable[..., RunRecord], tmp_path: Path, pictures: Callable[..., list[Path]]
) -> None:
    pictures(tmp_path / "p", 40, (16, 16))
    heard: list[FrameResult | Skip] = []
    finished = run(Told(), observers=run_loop.Observers(on_event=heard.append), should_stop=lambda: len(heard) >= 3)
    # One session and one thread that prepares have three pictures between them at most.
    assert (finished.status, 3 <= finished.pictures <= 6) == ("interrupted", True)
    assert [result.seq for result in finished.results] == list(range(finished.pictures))
    assert finished.latency["total"].n == finished.pictures


def test_stopped_before_the_first_picture_there_is_still_a_record(
    run: Callable[..., RunRecord], tmp_path: Path
) -> None:
    finished = run(Told(), should_stop=lambda: True)
    assert (finished.status, finished.pictures, finished.results) == ("interrupted", 0, [])
    assert (finished.latency, finished.stages_absent, finished.rate_per_s) == ({}, {}, None)
    run_record.save(tmp_path / "r.json", finished)
    assert run_record.load(tmp_path / "r.json") == finished


def test_a_backend_that_fails_says_so(run: Callable[..., RunRecord]) -> None:
    with pytest.raises(DeviceError, match="told to fail at call 4"):
        run(FakeSession(Fake(fail_at=4)))


def test_the_record_comes_back_as_it_was(run: Callable[..., RunRecord], tmp_path: Path) -> None:
    finished = run(WithTransfers())
    run_record.save(tmp_path / "runs" / "r.json", finished)
    assert run_record.load(tmp_path / "runs" / "r.json") == finished


def test_without_a_sensor_power_is_absent_with_the_reason(run: Callable[..., RunRecord]) -> None:
    finished = run(Told())
    assert (finished.power, finished.power_unavailable, finished.conditions) == (None, "hwmon: no sensor", {})


def test_power_comes_with_scope_and_samples(run: Callable[..., RunRecord]) -> None:
    finished = run(FakeSession(Fake(infer_ms=1000.0)), power=Constant(power_mw=4000.0), warmup=0)
    assert finished.power is not None
    assert (finished.power["source"], finished.power["scope"]) == ("constant", "module_input")
    assert finished.power["samples"] >= 10
    assert finished.power["mean_mw"] == pytest.approx(4000.0)
    assert finished.power["joules"] == pytest.approx(4.0 * finished.measured_s)
    assert finished.power["joules_per_picture"] == pytest.approx(finished.power["joules"] / 5)
    assert finished.power_unavailable is None
    assert finished.conditions["temps_c"]["cpu"]["mean"] == 50.0


def test_too_short_for_power_is_absent_with_the_reason(run: Callable[..., RunRecord]) -> None:
    finished = run(Told(), power=Constant())
    assert finished.power is None
    assert finished.power_unavailable is not None
    assert finished.power_unavailable.startswith("constant: ")


def test_a_counter_that_did_not_move_is_no_throttling(run: Callable[..., RunRecord]) -> None:
    """Counters run since boot: 17 before and 17 after are no events in between."""
    finished = run(FakeSession(Fake(infer_ms=300.0)), power=Constant(throttles=17), warmup=0)
    assert finished.conditions["throttles"] == {"cpu": 0}
    assert not any("throttled" in doubt for doubt in finished.warnings)


def test_throttling_is_a_doubt(run: Callable[..., RunRecord]) -> None:
    finished = run(FakeSession(Fake(infer_ms=300.0)), power=Constant(throttles=17, events=1), warmup=0)
    events = finished.conditions["throttles"]["cpu"]
    assert events >= 1
    assert f"the device was throttled during the run (cpu: {events} events)" in finished.warnings


def test_what_the_source_doubts_is_said_once(run: Callable[..., RunRecord]) -> None:
    doubt = "rail VDD_SOC is above VDD_IN, which should contain it"
    finished = run(FakeSession(Fake(infer_ms=300.0)), power=Constant(warnings=(doubt,)), warmup=0)
    assert [warning for warning in finished.warnings if "VDD_SOC" in warning] == [f"power: {doubt}"]


def test_few_pictures_are_a_doubt(run: Callable[..., RunRecord]) -> None:
    finished = run(Told())
    assert any(doubt.startswith("5 images are too few for the tail percentiles") for doubt in finished.warnings)
    assert finished.latency["infer"].p99_ms is None


class Slowing(Told):
    """Slower from the thirtieth picture on, as a device is that gets hot."""

    def infer(self, batch: Any) -> Inference:
        time.sleep(0.0 if len(self.shapes) < 29 else 0.03)
        return super().infer(batch)


def test_a_run_that_gets_slower_is_a_doubt(
    run: Callable[..., RunRecord], tmp_path: Path, pictures: Callable[..., list[Path]]
) -> None:
    pictures(tmp_path / "p", 56, (16, 16))
    finished = run(Slowing(), warmup=0)
    assert any("not a steady state" in doubt for doubt in finished.warnings)


class LoggingSession(Told):
    """A session whose library logs a warning at every inference."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def infer(self, batch: Any) -> Inference:
        self.count += 1
        return super().infer(batch)

    def messages(self) -> tuple[BackendMessage, ...]:
        text = "TensorRT: fewer multiprocessors"
        return (BackendMessage(severity="warning", text=text, count=self.count, hint="edge build"),)


def test_what_the_backend_logged_is_in_the_record_once_and_counted(run: Callable[..., RunRecord]) -> None:
    record = run(LoggingSession())
    assert record.warnings[0] == "TensorRT: fewer multiprocessors (7 times); edge build"
    assert sum("multiprocessors" in text for text in record.warnings) == 1

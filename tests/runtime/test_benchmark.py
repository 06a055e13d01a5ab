"""Scenarios on the fake backend and a clock that moves as the engine is told to take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest

from edge.artifacts import run_record
from edge.artifacts.run_record import RunRecord
from edge.backends.interface import Inference
from edge.errors import DeviceError, UsageError
from edge.events import Progress
from edge.runtime.benchmark import SCENARIOS, BenchSettings, age_result, batch_sizes, bench
from edge.telemetry.sampler import Sampler, Telemetry
from edge.telemetry.sources import NoSource, Reading, Scope, Unavailable
from tests.support.boards import ManualClock
from tests.support.run_records import made

NOTHING = Telemetry(None, NoSource((Unavailable("hwmon", "no sensor"),)))


class Engine:
    """A session that takes ``ms(call)`` on a clock of its own, and knows which batches it got."""

    precision = "int8"

    def __init__(self, clock: ManualClock, ms: Callable[[int], float], *, fail_at: int | None = None) -> None:
        self._clock = clock
        self._ms = ms
        self._fail_at = fail_at
        self.sizes: list[int] = []

    def infer(self, batch: Any) -> Inference:
        if len(self.sizes) == self._fail_at:
            raise DeviceError("the backend failed")
        ms = self._ms(len(self.sizes))
        self.sizes.append(len(batch))
        self._clock.now += ms / 1e3
        return Inference(logits=np.zeros((len(batch), 2), np.float32), infer_ms=ms * 0.9, host_to_device_ms=ms * 0.1)

    def close(self) -> None:
        pass


def batches(size: int) -> list[Any]:
    return [np.zeros((size, 3, 2, 2), np.float32) for _ in range(4)]


def measured(
    scenario: str = "single-stream",
    *,
    ms: Callable[[int], float] = lambda _call: 10.0,
    telemetry: Telemetry = NOTHING,
    should_stop: Callable[[], bool] = lambda: False,
    clock: ManualClock | None = None,
    engine: Engine | None = None,
    **settings: Any,
) -> RunRecord:
    clock = clock or ManualClock()
    settings = {"warmup": 3, "warmup_s": 0.0, "max_batch": 8} | settings
    return bench(
        batches,
        rules=SCENARIOS[scenario],
        session=engine or Engine(clock, ms),
        subject=made().subject,
        settings=BenchSettings(**settings),
        telemetry=telemetry,
        should_stop=should_stop,
        clock=clock,
    )


def test_a_run_by_the_rules() -> None:
    record = measured()
    result = record.bench
    assert result is not None
    assert (result["by_the_rules"], result["why_not"]) == (True, [])
    # The clock adds up floats: one query more or less.
    assert result["queries"] == result["samples"] == pytest.approx(60_000, abs=1)
    assert result["percentile_ms"] == pytest.approx(10.0)
    assert result["estimate_ms"] == pytest.approx(10.0)
    assert result["multi_stream_inferred_ms"] == pytest.approx(80.0)
    assert record.rate_per_s == pytest.approx(100.0)
    assert record.measured_s == pytest.approx(600.0, abs=0.02)
    assert record.warnings == []
    assert record.latency["total"].method == "nearest-rank"
    assert record.latency["infer"].p50_ms == pytest.approx(9.0)
    assert record.latency["host_to_device"].p50_ms == pytest.approx(1.0)
    assert "device_to_host" not in record.latency
    assert sum(b.count for b in record.histogram["total"]) == result["queries"]
    assert sum(tick.frames for tick in record.timeline) == result["queries"]
    assert len(record.timeline) <= run_record.MOST_TICKS


def test_the_percentile_is_that_of_the_scenario() -> None:
    tail = lambda call: 30.0 if call % 20 == 0 else 10.0  # noqa: E731 - 5 % are slow
    single = measured(ms=tail).bench
    assert single is not None
    assert (single["percentile_ms"], single["estimate_ms"]) == (pytest.approx(10.0), pytest.approx(10.0))
    multi = measured("multi-stream", ms=tail).bench
    assert multi is not None
    assert (multi["percentile_ms"], multi["estimate_ms"]) == (pytest.approx(30.0), pytest.approx(30.0))
    assert (multi["samples_per_query"], multi["batches"]) == (8, [8])
    assert multi["samples"] == 8 * multi["queries"]


def test_offline_is_a_rate_in_the_largest_batches() -> None:
    clock = ManualClock()
    engine = Engine(clock, lambda _call: 40.0)
    record = measured("offline", clock=clock, engine=engine, min_duration_s=600.0)
    assert record.bench is not None
    assert record.bench["rate_per_s"] == pytest.approx(200.0)
    assert record.bench["samples"] >= 24_576
    assert "percentile" not in record.bench
    assert set(engine.sizes) == {8}


def test_the_counts_of_the_rules_outlast_their_duration() -> None:
    record = measured("offline", ms=lambda _call: 1000.0)
    assert record.bench is not None
    assert record.pictures == 24_576
    assert record.measured_s == pytest.approx(3072.0)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"min_duration_s": 2.0}, ["it ran for 2.0 s; the rules require 600 s"]),
        (
            {"min_duration_s": 0.0, "min_samples": 5},
            ["it ran for 0.1 s; the rules require 600 s", "5 images; the rules require 64"],
        ),
    ],
    ids=["short", "few"],
)
def test_what_is_not_by_the_rules_says_why(settings: dict[str, Any], why: list[str]) -> None:
    result = measured(**settings).bench
    assert result is not None
    assert (result["by_the_rules"], result["why_not"]) == (False, why)


def test_too_few_queries_have_no_estimate() -> None:
    result = measured(min_duration_s=0.0, min_samples=63).bench
    assert result is not None
    assert (result["estimate_ms"], result["fewest_queries"]) == (None, 64)


def test_a_signal_ends_it_after_the_query_in_hand_and_it_is_not_valid() -> None:
    calls = iter([False] * 10 + [True])
    record = measured(should_stop=lambda: next(calls))
    assert (record.status, record.pictures) == ("interrupted", 10)
    assert record.bench is not None
    assert "a signal ended it" in record.bench["why_not"]


def test_a_signal_before_the_first_query_gives_a_record_of_nothing() -> None:
    record = measured(should_stop=lambda: True)
    assert (record.pictures, record.latency, record.histogram, record.rate_per_s) == (0, {}, {}, None)
    assert record.bench is not None
    assert record.bench["percentile_ms"] is None
    msgspec.json.encode(record)


def test_the_warm_up_is_in_no_figure() -> None:
    clock = ManualClock()
    engine = Engine(clock, lambda call: 500.0 if call < 4 else 10.0)
    record = measured(clock=clock, engine=engine, warmup=2, warmup_s=2.0, min_duration_s=1.0)
    assert (record.warmup.n, record.warmup.first_ms, record.warmup.last_ms) == (4, 450.0, 450.0)
    assert record.latency["total"].max_ms == pytest.approx(10.0)


@pytest.mark.parametrize(
    ("ms", "words"),
    [
        pytest.param(lambda call: 10.0 if call < 2000 else 13.0, "second half was slower (median 13.000", id="slower"),
        pytest.param(lambda call: 13.0 if call < 3000 else 10.0, "second half was faster", id="still-warming-up"),
        pytest.param(lambda call: 60.0 if call % 50 == 0 else 10.0, "99th percentile is 6.0 times", id="ragged"),
    ],
)
def test_what_is_not_steady_is_a_warning(ms: Callable[[int], float], words: str) -> None:
    record = measured(ms=ms, min_duration_s=70.0, warmup=0)
    assert len([warning for warning in record.warnings if words in warning]) == 1


@pytest.mark.parametrize(
    ("scenario", "low", "high", "sizes"),
    [
        ("single-stream", 1, 8, [1]),
        ("multi-stream", 1, 8, [8]),
        ("multi-stream", 1, 16, [8]),
        ("multi-stream", 1, 4, [4, 4]),
        ("multi-stream", 1, 3, [3, 3, 2]),
        ("multi-stream", 1, 1, [1] * 8),
        ("offline", 1, 16, [16]),
    ],
)
def test_queries_are_cut_into_batches_that_the_engine_takes(
    scenario: str, low: int, high: int, sizes: list[int]
) -> None:
    assert batch_sizes(SCENARIOS[scenario], BenchSettings(min_batch=low, max_batch=high)) == sizes


@pytest.mark.parametrize(("scenario", "low", "high"), [("single-stream", 4, 8), ("multi-stream", 5, 6)])
def test_an_engine_that_does_not_take_them_is_refused(scenario: str, low: int, high: int) -> None:
    with pytest.raises(UsageError, match=f"batches of {low} to {high}"):
        batch_sizes(SCENARIOS[scenario], BenchSettings(min_batch=low, max_batch=high))


def test_a_backend_that_fails_is_not_a_result() -> None:
    clock = ManualClock()
    with pytest.raises(DeviceError, match="the backend failed"):
        measured(clock=clock, engine=Engine(clock, lambda _call: 10.0, fail_at=20))


class Meter:
    """Five watts on the clock of the run."""

    name = "meter"
    scope: Scope = "module_input"

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock

    def read(self) -> Reading:
        return Reading(t_s=self._clock.now, power_mw=5000.0, throttles={"oc2": 3 if self._clock.now > 110 else 1})

    def close(self) -> None:
        pass


def test_energy_is_that_of_the_same_window() -> None:
    clock = ManualClock()
    sampler = Sampler(Meter(clock), clock=clock)

    def ms(_call: int) -> float:
        sampler.sample()
        return 10.0

    record = measured(clock=clock, engine=Engine(clock, ms), telemetry=Telemetry(sampler, None), min_duration_s=20.0)
    assert record.power is not None
    assert record.power["window_s"] == record.measured_s
    assert record.power["joules"] == pytest.approx(100.0, rel=1e-3)
    assert record.power["joules_per_picture"] == pytest.approx(0.05, rel=1e-3)
    assert "the device was throttled during the run (mean over-current: 2 events)" in record.warnings


def test_a_record_can_be_written_and_read() -> None:
    record = measured(min_duration_s=1.0)
    assert msgspec.json.decode(msgspec.json.encode(record), type=RunRecord) == record
    assert record.power is None
    assert record.power_unavailable == "hwmon: no sensor"


def test_a_time_that_was_asked_for_is_when_it_ends() -> None:
    record = measured(ms=lambda _call: 100.0, min_duration_s=3.0)
    assert record.bench is not None
    assert (record.bench["queries"] in {30, 31}, record.bench["by_the_rules"]) == (True, False)
    assert 3.0 <= record.measured_s < 3.2
    # With a number of queries asked for as well, both hold.
    assert measured(ms=lambda _call: 100.0, min_duration_s=3.0, min_samples=50).pictures == 50


def test_progress_counts_queries_to_as_many_as_are_expected() -> None:
    seen: list[Progress] = []
    clock = ManualClock()
    bench(
        batches, rules=SCENARIOS["single-stream"], session=Engine(clock, lambda _call: 100.0),
        subject=made().subject, settings=BenchSettings(min_duration_s=10.0, warmup=0, warmup_s=0.0, max_batch=8),
        telemetry=NOTHING, clock=clock, listen=seen.append,  # type: ignore[arg-type]
    )  # fmt: skip
    assert {one.unit for one in seen} == {"queries"}
    assert [one.done for one in seen] == sorted(one.done for one in seen)
    assert all(one.total == 100 for one in seen[:-1])


def test_the_age_of_labels_is_bounded_as_latency_is() -> None:
    ages = [float(n) for n in range(1, 1001)]
    result = age_result(ages, made())
    assert (result["percentile_ms"], result["queries"]) == (990.0, 1000)
    assert result["estimate_ms"] is not None
    assert result["estimate_ms"] >= 990.0
    assert age_result([], made())["percentile_ms"] is None

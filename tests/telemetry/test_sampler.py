"""Energy from samples: exact where it can be, bounded where it cannot, refused where it must be."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.telemetry.energy import Energy, Trace, Window
from edge.telemetry.sampler import Sampler
from edge.telemetry.sources import Reading, Scope


class Replay:
    """A source that gives readings from a list, then repeats the last one."""

    name = "replay"
    scope: Scope = "module_input"

    def __init__(self, readings: list[Reading]) -> None:
        self._readings = iter(readings)
        self._last = readings[0]
        self.reads = 0

    def read(self) -> Reading:
        self.reads += 1
        self._last = next(self._readings, self._last)
        return self._last

    def close(self) -> None:
        pass


def filled(samples: list[tuple[float, float]], *, capacity: int = 8192) -> Trace:
    trace = Trace(capacity=capacity)
    for t_s, power_mw in samples:
        trace.add(t_s, power_mw)
    return trace


def energy(trace: Trace, start_s: float, end_s: float) -> Energy:
    return trace.energy(Window(start_s, end_s), source="replay", scope="module_input")


def test_constant_power() -> None:
    result = energy(filled([(i / 10, 5000.0) for i in range(201)]), 5.0, 15.0)
    assert result.joules == pytest.approx(50.0)
    assert result.mean_mw == pytest.approx(5000.0)
    assert result.error_joules == pytest.approx(0.0)
    assert (result.samples, result.window_s) == (101, 10.0)
    assert result.interval_s == pytest.approx(0.1)
    assert result.longest_gap_s == pytest.approx(0.1)
    assert (result.source, result.scope, result.refusal) == ("replay", "module_input", None)


def test_a_ramp_is_exact_also_between_samples() -> None:
    result = energy(filled([(i / 10, 100.0 * i) for i in range(101)]), 2.03, 7.57)
    assert result.joules == pytest.approx((7.57**2 - 2.03**2) / 2)
    assert result.samples == 55


def test_a_square_wave_lies_within_the_error_bound() -> None:
    def watts(t_s: float) -> float:
        return 10.0 if t_s % 3.0 < 1.234 else 4.0

    samples = [(i * 0.097, 1000.0 * watts(i * 0.097)) for i in range(400)]
    result = energy(filled(samples), 3.0, 33.0)
    truth = 10 * (1.234 * 10.0 + 1.766 * 4.0)
    assert result.joules is not None
    assert result.error_joules is not None
    assert abs(result.joules - truth) <= result.error_joules
    assert result.error_joules == pytest.approx(20 * 6.0 / 2 * 0.097, rel=0.1)


@given(
    st.lists(st.tuples(st.floats(0.01, 0.5), st.floats(0, 60_000)), min_size=60, max_size=300),
    st.floats(0, 0.4),
    st.floats(0.6, 1),
)
def test_thinning_keeps_sums_within_the_bound_it_states(
    steps: list[tuple[float, float]], start: float, end: float
) -> None:
    times = list(itertools.accumulate(dt for dt, _ in steps))
    samples = [(t_s, power) for t_s, (_, power) in zip(times, steps, strict=True)]
    span = times[-1] - times[0]
    window = (times[0] + start * span, times[0] + end * span)
    full, thin = energy(filled(samples), *window), energy(filled(samples, capacity=40), *window)
    if full.refusal or thin.refusal:
        return
    assert full.joules is not None
    assert thin.joules is not None
    assert thin.error_joules is not None
    # A thinned trace knows less about its two ends: at most one of its steps each.
    loose = 2 * (max(p for _, p in samples) - min(p for _, p in samples)) * 1e-3 * 8 * 0.5
    assert abs(thin.joules - full.joules) <= thin.error_joules + loose
    assert thin.error_joules >= (full.error_joules or 0) - 1e-9
    # Between two points that were kept, it holds the samples to have been evenly spaced: 8 at each end, with 300 in 40.
    assert abs(thin.samples - full.samples) <= 2 * 8


def test_memory_is_bounded_and_a_long_run_is_still_summed() -> None:
    trace = filled([(i / 10, 1000.0 + i % 2) for i in range(100_000)], capacity=128)
    result = energy(trace, 0.0, 9999.9)
    assert result.joules == pytest.approx(1.0005 * 9999.9, rel=1e-6)
    assert result.samples == 100_000
    assert result.longest_gap_s == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("samples", "window", "why"),
    [
        pytest.param([], (0.0, 1.0), "0 power samples", id="nothing"),
        pytest.param([(i / 10, 1.0) for i in range(100)], (1.05, 1.95), "9 power samples in 0.90 s", id="nine"),
        pytest.param([(i / 10, 1.0) for i in range(100)], (20.0, 30.0), "0 power samples", id="after-the-samples"),
        pytest.param([(i / 10, 1.0) for i in range(100)], (-30.0, -20.0), "0 power samples", id="before-the-samples"),
        pytest.param([(i / 10, 1.0) for i in range(100)], (5.0, 5.0), "1 power samples in 0.00 s", id="no-length"),
        pytest.param([(i / 10, 1.0) for i in range(100)], (6.0, 2.0), "0 power samples", id="backwards"),
        pytest.param([(i / 10, 1.0) for i in range(100)], (5.0, 20.0), "no power was read for 10.10 s", id="half"),
        pytest.param(
            [(i / 10, 1.0) for i in range(30)] + [(6 + i / 10, 1.0) for i in range(30)],
            (0.0, 8.9),
            "no power was read for 3.10 s of a window of 8.90 s",
            id="hole",
        ),
    ],
)
def test_refusals(samples: list[tuple[float, float]], window: tuple[float, float], why: str) -> None:
    result = energy(filled(samples), *window)
    assert result.refusal is not None
    assert why in result.refusal
    assert (result.joules, result.mean_mw, result.error_joules) == (None, None, None)


def test_a_hole_is_seen_after_thinning_too() -> None:
    samples = [(i / 10, 1.0) for i in range(500)] + [(80 + i / 10, 1.0) for i in range(500)]
    result = energy(filled(samples, capacity=40), 0.0, 129.0)
    assert result.longest_gap_s == pytest.approx(30.1)
    assert result.refusal is not None


def test_ends_just_outside_the_samples_are_held_and_counted_as_error() -> None:
    result = energy(filled([(i / 10, 1000.0 if i < 50 else 3000.0) for i in range(101)]), 0.0, 10.1)
    assert result.joules == pytest.approx(5.0 + 15.0 + 0.3, abs=0.2)
    assert result.error_joules == pytest.approx(0.1 + 2.0 * 0.1)


def test_the_idle_baseline_is_taken_off() -> None:
    trace = filled([(i / 10, 2000.0 if i < 200 else 5000.0) for i in range(401)])
    idle = energy(trace, 0.0, 15.0)
    result = energy(trace, 25.0, 35.0).above(idle)
    assert result.idle_mw == pytest.approx(2000.0)
    assert result.net_joules == pytest.approx(30.0)
    assert result.idle_refusal is None


@pytest.mark.parametrize(
    ("idle", "why"),
    [
        pytest.param({"window_s": 9.0}, "9.0 s long; at least 10", id="short"),
        pytest.param({"scope": "partial"}, "the measurement is replay (module_input)", id="other-scope"),
        pytest.param({"mean_mw": None, "refusal": "2 power samples"}, "refused: 2 power samples", id="refused"),
    ],
)
def test_a_bad_idle_baseline_is_not_used(idle: dict[str, object], why: str) -> None:
    base = {"source": "replay", "scope": "module_input", "samples": 100, "window_s": 12.0, "mean_mw": 1.0}
    result = energy(filled([(i / 10, 2000.0) for i in range(101)]), 0.0, 10.0).above(Energy(**(base | idle)))  # type: ignore[arg-type]
    assert result.joules is not None
    assert (result.idle_mw, result.net_joules) == (None, None)
    assert result.idle_refusal is not None
    assert why in result.idle_refusal


# The sampler


def readings(n: int) -> list[Reading]:
    return [
        Reading(
            t_s=i / 10,
            power_mw=1000.0 if i % 10 else None,
            temps_c={"gpu": 40.0 + i / 10},
            clocks_mhz={"gpu": 600.0 if i < n // 2 else 300.0},
            throttles={"oc3": 7 + i // 10},
            throttling=("gpu",) if i == 5 else (),
        )
        for i in range(n)
    ]


def test_sampling_by_hand() -> None:
    sampler = Sampler(Replay(readings(100)))
    for _ in range(150):  # the last reading repeats and counts once
        sampler.sample()
    assert len(sampler.readings) == 100
    result = sampler.energy(Window(0.1, 9.9))
    assert result.samples == 90
    assert result.joules == pytest.approx(9.8)


def test_conditions_of_a_window() -> None:
    sampler = Sampler(Replay(readings(100)))
    for _ in range(100):
        sampler.sample()
    conditions = sampler.conditions(Window(0.0, 5.95))
    assert conditions.readings == 60
    assert conditions.temps_c["gpu"].low == 40.0
    assert conditions.temps_c["gpu"].high == pytest.approx(45.9)
    assert conditions.clocks_mhz["gpu"].mean == pytest.approx((50 * 600 + 10 * 300) / 60)
    assert conditions.throttles == {"oc3": 5}
    assert conditions.throttling == ("gpu",)
    assert conditions.loads_percent == {}
    nothing = sampler.conditions(Window(50.0, 60.0))
    assert (nothing.readings, nothing.throttles, nothing.temps_c) == (0, {}, {})


def test_readings_are_bounded() -> None:
    sampler = Sampler(Replay(readings(5000)))
    for _ in range(5000):
        sampler.sample()
    kept = sampler.readings
    assert 1000 < len(kept) <= 2048
    assert kept[0].t_s == 0.0
    assert kept[-1].t_s > 499.0
    assert sampler.energy(Window(1.0, 499.0)).samples == pytest.approx(4980 * 0.9, rel=0.01)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


class Steady:
    """A source that reads the real clock."""

    name = "steady"
    scope: Scope = "package"

    def __init__(self) -> None:
        self.closed = False

    def read(self) -> Reading:
        return Reading(t_s=time.monotonic(), power_mw=2500.0)

    def close(self) -> None:
        self.closed = True


def test_the_thread_samples_until_its_block_ends() -> None:
    source = Steady()
    started = time.monotonic()
    with Sampler(source, rate_hz=100) as sampler:
        inside = sampler.energy(Window(started, time.monotonic()))
        # Where the machine stood still there is a hole, until the window is so long that it does not matter.
        while (inside.joules is None or inside.window_s < 2.0) and inside.window_s < 60.0:
            time.sleep(0.01)
            inside = sampler.energy(Window(started, time.monotonic()))
    ended = time.monotonic()
    result = sampler.energy(Window(started, ended))
    assert inside.joules is not None
    assert result.joules == pytest.approx(2.5 * (ended - started), rel=0.01)
    # A busy machine may miss many, and never gives more than were asked for, and one at each end.
    assert 20 <= result.samples <= 100 * (ended - started) + 2
    taken = len(sampler.readings)
    time.sleep(0.05)
    assert len(sampler.readings) == taken
    assert not source.closed


def test_a_slow_source_does_not_make_samples_come_in_bunches() -> None:
    class Slow(Steady):
        def read(self) -> Reading:
            time.sleep(0.05)
            return super().read()

    with Sampler(Slow(), rate_hz=1000) as sampler:
        wait_until(lambda: len(sampler.readings) >= 5)
    gaps = [b.t_s - a.t_s for a, b in itertools.pairwise(sampler.readings)]
    assert min(gaps) >= 0.04


def test_a_bug_in_a_source_is_not_swallowed() -> None:
    class Broken(Steady):
        calls = 0

        def read(self) -> Reading:
            self.calls += 1
            if self.calls > 2:
                raise ZeroDivisionError("a bug")
            return super().read()

    source = Broken()
    with pytest.raises(ZeroDivisionError, match="a bug"), Sampler(source, rate_hz=200):
        wait_until(lambda: source.calls > 2)


def test_an_error_of_the_block_outranks_the_sampler() -> None:
    with pytest.raises(KeyError, match="mine"), Sampler(Steady(), rate_hz=50):
        raise KeyError("mine")

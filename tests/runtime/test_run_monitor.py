from __future__ import annotations

import sys
import threading

import pytest

from edge.artifacts.run_record import FrameResult, Gap, Guess, Skip, Stages
from edge.runtime.run_monitor import HISTORY_S, RECENT, RunMonitor
from edge.telemetry.source import Reading


class Clock:
    def __init__(self) -> None:
        self.t_s = 100.0

    def __call__(self) -> float:
        return self.t_s


def result(seq: int = 0, total_ms: float = 5.0, age_ms: float | None = None) -> FrameResult:
    stages = Stages(
        decode_ms=1.0, preprocess_ms=1.0, infer_ms=total_ms - 3.0, postprocess_ms=1.0, total_ms=total_ms, age_ms=age_ms
    )
    return FrameResult(seq=seq, name=f"{seq}.jpg", guesses=[Guess(1, "hen", 0.9)], stages=stages, t_s=0.0)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_nothing_yet(clock: Clock) -> None:
    now = RunMonitor(total=5, clock=clock).now()
    assert (now.pictures, now.result, now.rate_per_s, now.gap, now.reading, now.t_s) == (0, None, None, None, None, 0.0)
    assert now.line == "0 of 5 pictures"


def test_seconds_are_binned(clock: Clock) -> None:
    dropped = 0
    reading = Reading(t_s=0.0, power_mw=7000.0, temps_c={"gpu": 50.0}, throttling=("gpu",))
    pulse = RunMonitor(dropped=lambda: dropped, reading=lambda: reading, clock=clock)
    for value in (4.0, 6.0, 8.0):
        pulse.hear(result(total_ms=value, age_ms=value * 2))
    dropped = 2
    clock.t_s += 1.0
    pulse.hear(result(total_ms=9.0))
    clock.t_s += 2.5
    now = pulse.now()
    assert [(tick.t_s, tick.frames, tick.dropped) for tick in now.history] == [(1.0, 3, 2), (2.0, 1, 0), (3.0, 0, 0)]
    first, second, third = now.history
    assert (first.total_p50_ms, first.total_max_ms, first.age_p50_ms, first.age_max_ms) == (6.0, 8.0, 12.0, 16.0)
    assert (second.age_p50_ms, third.total_p50_ms) == (None, None)
    assert (third.power_mw, third.temps_c, third.throttling) == (7000.0, {"gpu": 50.0}, ("gpu",))
    assert now.rate_per_s == pytest.approx(4 / 3)
    assert now.dropped == 2
    assert now.line == "4 pictures, 1.3 pictures/s, p50 6.0, p90 9.0 ms, 7.00 W, 2 dropped"


def test_there_is_no_rate_before_the_first_second_is_over(clock: Clock) -> None:
    pulse = RunMonitor(clock=clock)
    pulse.hear(result())
    clock.t_s += 0.0001
    assert (pulse.now().rate_per_s, "pictures/s" in pulse.now().line) == (None, False)
    clock.t_s += 1.0
    assert pulse.now().rate_per_s == pytest.approx(1.0, rel=0.01)


def test_memory_does_not_grow(clock: Clock) -> None:
    pulse = RunMonitor(clock=clock)

    def some(n: int) -> int:
        for index in range(n):
            clock.t_s += 0.5
            pulse.hear(result(index))
            pulse.hear(Skip(index, "x", "broken"))
            pulse.hear(Gap(start_s=float(index), end_s=index + 1.0, reason="gone"))
        now = pulse.now()
        return sum(sys.getsizeof(part) for part in (now.history, now.gaps, now.recent_ms))

    assert some(3 * HISTORY_S) == some(3 * HISTORY_S)
    now = pulse.now()
    assert (len(now.history), len(now.recent_ms)) == (HISTORY_S, RECENT)
    assert now.gaps_count == now.skipped == 6 * HISTORY_S


def test_a_gap_opens_changes_and_closes(clock: Clock) -> None:
    pulse = RunMonitor(clock=clock)
    pulse.hear(Gap(start_s=1.0, end_s=None, reason="no frame for 5 s"))
    pulse.hear(Gap(start_s=1.0, end_s=None, reason="no frame for 5 s", attempts=3))
    now = pulse.now()
    assert now.gap is not None
    assert (now.gap.attempts, now.gaps_count) == (3, 1)
    assert now.line.endswith("no frames: no frame for 5 s")
    pulse.hear(Gap(start_s=1.0, end_s=9.0, reason="no frame for 5 s", reopened_as="/dev/video1"))
    now = pulse.now()
    assert (now.gap, now.gaps_count, now.gaps[0].reopened_as) == (None, 1, "/dev/video1")


def test_a_night_of_sleep_and_a_clock_that_stands_still(clock: Clock) -> None:
    pulse = RunMonitor(clock=clock)
    pulse.hear(result())
    clock.t_s += 1e6
    pulse.hear(result())
    assert len(pulse.now().history) <= HISTORY_S + 1
    clock.t_s -= 5e5
    pulse.hear(result())
    assert pulse.now().pictures == 3


def test_many_threads(clock: Clock) -> None:
    pulse = RunMonitor(clock=clock)
    writers = [threading.Thread(target=lambda: [pulse.hear(result()) for _ in range(500)]) for _ in range(4)]
    for thread in writers:
        thread.start()
    while any(thread.is_alive() for thread in writers):
        assert pulse.now().pictures <= 2000
    for thread in writers:
        thread.join()
    assert pulse.now().pictures == 2000

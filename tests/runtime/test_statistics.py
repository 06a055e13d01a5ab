from __future__ import annotations

import sys
import threading

import pytest

from edge.artifacts.run_record import MOST_TICKS, FrameResult, Gap, Guess, Skip, Stages
from edge.runtime.run_statistics import RECENT, RunStatistics
from edge.runtime.timeline import HISTORY_S, Timeline, merged
from edge.telemetry.sources import Reading


class Clock:
    def __init__(self) -> None:
        self.t_s = 100.0

    def __call__(self) -> float:
        return self.t_s


def result(seq: int = 0, total_ms: float = 5.0, age_ms: float | None = None, camera: str | None = None) -> FrameResult:
    stages = Stages(
        decode_ms=1.0, preprocess_ms=1.0, infer_ms=total_ms - 3.0, postprocess_ms=1.0, total_ms=total_ms, age_ms=age_ms
    )
    return FrameResult(
        seq=seq, name=f"{seq}.jpg", guesses=[Guess(1, "hen", 0.9)], stages=stages, t_s=0.0, camera=camera
    )


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_nothing_yet(clock: Clock) -> None:
    now = RunStatistics(total=5, clock=clock).snapshot()
    assert (now.pictures, now.result, now.rate_per_s, now.gap, now.reading, now.t_s) == (0, None, None, None, None, 0.0)
    assert now.status_line == "0 of 5 images"


def test_seconds_are_binned(clock: Clock) -> None:
    dropped = 0
    reading = Reading(t_s=0.0, power_mw=7000.0, temps_c={"gpu": 50.0}, throttling=("gpu",))
    run = RunStatistics(dropped=lambda: dropped, reading=lambda: reading, clock=clock)
    for value in (4.0, 6.0, 8.0):
        run.record(result(total_ms=value, age_ms=value * 2))
    dropped = 2
    clock.t_s += 1.0
    run.record(result(total_ms=9.0))
    clock.t_s += 2.5
    now = run.snapshot()
    assert [(tick.t_s, tick.frames, tick.dropped) for tick in now.history] == [(1.0, 3, 2), (2.0, 1, 0), (3.0, 0, 0)]
    first, second, third = now.history
    assert (first.total_p50_ms, first.total_max_ms, first.age_p50_ms, first.age_max_ms) == (6.0, 8.0, 12.0, 16.0)
    assert (second.age_p50_ms, third.total_p50_ms) == (None, None)
    assert (third.power_mw, third.temps_c, third.throttling) == (7000.0, {"gpu": 50.0}, ("gpu",))
    assert now.rate_per_s == pytest.approx(4 / 3)
    assert now.dropped == 2
    assert now.status_line == "4 images, 1.3 images/s, p50 6.0, p90 9.0 ms, 7.00 W, 2 dropped"


def test_there_is_no_rate_before_the_first_second_is_over(clock: Clock) -> None:
    run = RunStatistics(clock=clock)
    run.record(result())
    clock.t_s += 0.0001
    assert (run.snapshot().rate_per_s, "images/s" in run.snapshot().status_line) == (None, False)
    clock.t_s += 1.0
    assert run.snapshot().rate_per_s == pytest.approx(1.0, rel=0.01)


def test_memory_does_not_grow(clock: Clock) -> None:
    run = RunStatistics(clock=clock)

    def some(n: int) -> int:
        for index in range(n):
            clock.t_s += 0.5
            run.record(result(index))
            run.record(Skip(index, "x", "broken"))
            run.record(Gap(start_s=float(index), end_s=index + 1.0, reason="gone"))
        now = run.snapshot()
        return sum(sys.getsizeof(part) for part in (now.history, now.gaps, now.recent_ms))

    assert some(3 * HISTORY_S) == some(3 * HISTORY_S)
    now = run.snapshot()
    assert (len(now.history), len(now.recent_ms)) == (HISTORY_S, RECENT)
    assert now.gaps_count == now.skipped == 6 * HISTORY_S


def test_a_gap_opens_changes_and_closes(clock: Clock) -> None:
    run = RunStatistics(clock=clock)
    run.record(Gap(start_s=1.0, end_s=None, reason="no frame for 5 s"))
    run.record(Gap(start_s=1.0, end_s=None, reason="no frame for 5 s", attempts=3))
    now = run.snapshot()
    assert now.gap is not None
    assert (now.gap.attempts, now.gaps_count) == (3, 1)
    assert now.status_line.endswith("no frames: no frame for 5 s")
    run.record(Gap(start_s=1.0, end_s=9.0, reason="no frame for 5 s", reopened_as="/dev/video1"))
    now = run.snapshot()
    assert (now.gap, now.gaps_count, now.gaps[0].reopened_as) == (None, 1, "/dev/video1")


def test_a_night_of_sleep_and_a_clock_that_stands_still(clock: Clock) -> None:
    run = RunStatistics(clock=clock)
    run.record(result())
    clock.t_s += 1e6
    run.record(result())
    assert len(run.snapshot().history) <= HISTORY_S + 1
    clock.t_s -= 5e5
    run.record(result())
    assert run.snapshot().pictures == 3


def test_many_threads(clock: Clock) -> None:
    run = RunStatistics(clock=clock)
    writers = [threading.Thread(target=lambda: [run.record(result()) for _ in range(500)]) for _ in range(4)]
    for thread in writers:
        thread.start()
    while any(thread.is_alive() for thread in writers):
        assert run.snapshot().pictures <= 2000
    for thread in writers:
        thread.join()
    assert run.snapshot().pictures == 2000


def test_frames_that_were_dropped_before_the_window_do_not_count(clock: Clock) -> None:
    dropped = 7
    run = RunStatistics(dropped=lambda: dropped, clock=clock)
    run.begin()
    dropped = 9
    assert run.snapshot().dropped == 2


def test_each_camera_of_several_has_its_own_figures(clock: Clock) -> None:
    run = RunStatistics(dropped=lambda: 3, cameras={"front": lambda: 1, "gate": lambda: 2}, clock=clock)
    for seq in range(4):
        clock.t_s += 0.5
        run.record(result(seq, age_ms=20.0, camera="front"))
    run.record(result(9, age_ms=90.0, camera="gate"))
    run.record(Gap(start_s=1.0, end_s=None, reason="no frame for 5 s", camera="gate"))
    run.record(Gap(start_s=1.5, end_s=2.0, reason="unplugged", camera="front"))
    run.record(Skip(5, "frame 5", "damaged", camera="front"))
    now = run.snapshot()
    front, gate = now.cameras
    assert (front.name, front.pictures, front.skipped, front.dropped, front.reconnects) == ("front", 4, 1, 1, 1)
    assert (gate.name, gate.pictures, gate.dropped, gate.reconnects, gate.recent_age_ms) == ("gate", 1, 2, 0, (90.0,))
    assert (front.gap, front.gap_s) == (None, 0.5)
    assert gate.gap is not None
    assert (now.pictures, now.dropped, now.gaps_count, now.gap_s) == (5, 3, 2, 0.5)
    # The end of one camera's gap is not the end of another's.
    assert now.gap is gate.gap
    assert now.status_line.endswith("no frames: gate (no frame for 5 s)")
    assert front.rate_per_s == pytest.approx(4 / 1.5)


def test_bins_of_the_time_line_keep_every_frame(clock: Clock) -> None:
    run = RunStatistics(clock=clock)
    run.begin()
    clock.t_s += 0.5
    ticks = []
    for seq in range(3 * MOST_TICKS):
        clock.t_s += 1.0
        run.record(result(seq))
        ticks += run.advance()
    timeline = run.timeline()
    assert sum(tick.frames for tick in timeline) == 3 * MOST_TICKS
    assert len(timeline) <= MOST_TICKS
    assert [tick.t_s for tick in timeline] == sorted({tick.t_s for tick in timeline})
    assert sum(tick.frames for tick in ticks) >= 3 * MOST_TICKS - 4


def test_a_machine_that_slept_for_a_year_closes_few_bins() -> None:
    timeline = Timeline()
    timeline.add(5.0, None)
    closed = timeline.advance(3.2e7)
    assert len(closed) < 20 * MOST_TICKS
    assert (closed[0].frames, sum(tick.frames for tick in closed)) == (1, 1)
    assert 0 <= 3.2e7 - timeline.seconds[-1].t_s < 1.0


def test_power_of_a_bin_is_the_mean_of_its_seconds() -> None:
    timeline = Timeline(most=2)
    timeline.advance(4.0, reading=Reading(t_s=0.0, power_mw=9000.0))
    # Bins are four seconds long now; this one has the seconds 5, 6 and 7.
    for second, power_mw in enumerate((1000.0, 2000.0, 6000.0), start=5):
        timeline.advance(float(second), reading=Reading(t_s=0.0, power_mw=power_mw))
    whole = timeline.ticks(7.0)
    assert whole[-1].power_mw == pytest.approx(3000.0)
    assert merged(*whole[:2]).t_s == whole[1].t_s

"""Net energy, energy per picture, conditions, idle baselines: what of the samples goes into a record."""

from __future__ import annotations

import pytest

from edge.runtime.benchmark import condition_warnings
from edge.telemetry.energy import Energy, Window
from edge.telemetry.sampler import Sampler, Telemetry, idle_baseline
from edge.telemetry.sources import NoSource, Reading, Scope, Unavailable
from tests.support.boards import ManualClock


class Scripted:
    """A source whose readings are made by a function of the time since its clock's start."""

    name = "scripted"
    scope: Scope = "module_input"

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock

    def read(self) -> Reading:
        t_s = round(self._clock() - 100.0, 6)
        # Idle at 3 W for ten seconds, then at work: 5 and 7 W in turn.
        power = 3000.0 if t_s < 10.05 else 5000.0 + 2000.0 * (round(t_s * 10) % 2)
        return Reading(
            t_s=t_s,
            power_mw=power,
            loads_percent={"cpu": 4.0 if t_s < 10.05 else 80.0, "gpu": 0.0 if t_s < 10.05 else 95.0},
            power_mode="15W" if t_s < 25.0 else "25W",
            clocks_locked=False,
            throttles={"oc1": 0, "oc3": 7 if t_s < 15 else 11},
            throttling=("cpu",) if 18 < t_s < 19 else (),
            absent={"emc load": "only root"},
        )

    def close(self) -> None:
        pass


def sampled(seconds: float = 30.0) -> Sampler:
    clock = ManualClock()
    sampler = Sampler(Scripted(clock), clock=clock)
    while clock.now <= 100.0 + seconds:
        sampler.sample()
        clock.now += 0.1
    return sampler


def test_net_energy_has_the_errors_of_both_measurements() -> None:
    sampler = sampled()
    idle = sampler.energy(Window(0.0, 10.0))
    gross = sampler.energy(Window(11.0, 21.0), idle=idle)
    assert gross.joules == pytest.approx(60.0)
    assert gross.net_joules == pytest.approx(30.0)
    # Every interval swings by 2 W: half of that, for ten seconds. The idle baseline is flat and adds nothing.
    assert gross.error_joules == pytest.approx(10.0)
    assert gross.net_error_joules == pytest.approx(10.0)
    assert (gross.idle_mw, gross.idle_s, gross.idle_samples) == (pytest.approx(3000), 10.0, 101)


def test_the_error_of_an_unsteady_baseline_counts_by_length() -> None:
    sampler = sampled()
    unsteady_idle = sampler.energy(Window(11.0, 21.0))
    net = sampler.energy(Window(11.0, 16.0), idle=unsteady_idle)
    assert net.net_error_joules == pytest.approx(5.0 + 10.0 * 5.0 / 10.0)


def test_joules_per_picture() -> None:
    sampler = sampled()
    energy = sampler.energy(Window(11.0, 21.0), idle=sampler.energy(Window(0.0, 10.0)))
    assert energy.per_picture(200) == {
        "joules_per_picture": pytest.approx(0.3),
        "error_joules_per_picture": pytest.approx(0.05),
        "net_joules_per_picture": pytest.approx(0.15),
        "net_error_joules_per_picture": pytest.approx(0.05),
    }
    assert energy.per_picture(0) == {}
    assert set(sampler.energy(Window(11.0, 21.0)).per_picture(1)) == {"joules_per_picture", "error_joules_per_picture"}


@pytest.mark.parametrize(
    ("window", "why"),
    [
        pytest.param(Window(0.0, 9.0), "9.0 s long; at least 10 s are needed", id="short"),
        pytest.param(Window(60.0, 75.0), "the idle baseline was refused: 0 power samples", id="nothing"),
    ],
)
def test_a_baseline_that_will_not_do_is_named(window: Window, why: str) -> None:
    sampler = sampled()
    energy = sampler.energy(Window(11.0, 21.0), idle=sampler.energy(window))
    assert (energy.net_joules, energy.net_error_joules) == (None, None)
    assert why in str(energy.idle_refusal)


def test_a_baseline_of_another_scope_is_refused() -> None:
    other = Energy(
        source="rapl", scope="package", samples=100, window_s=10.0, joules=30.0, mean_mw=3000.0, error_joules=0.1
    )
    energy = sampled().energy(Window(11.0, 21.0), idle=other)
    assert energy.net_joules is None
    assert "rapl (package)" in str(energy.idle_refusal)


def test_a_baseline_while_something_ran_is_a_doubt() -> None:
    sampler = sampled()
    assert idle_baseline(sampler, Window(0.0, 10.0))[1] == []
    _, doubts = idle_baseline(sampler, Window(11.0, 22.0))
    assert doubts == ["the machine was not idle during the idle baseline: cpu 80 %, gpu 95 %"]
    _, doubts = idle_baseline(sampler, Window(50.0, 60.0))
    assert "no idle baseline: 0 power samples" in doubts[0]


def test_conditions_hold_the_power_mode_the_clocks_and_what_is_absent() -> None:
    telemetry = Telemetry(sampled(), None)
    power, unavailable, conditions = telemetry.account(Window(11.0, 30.0), pictures=100)
    assert power is not None
    assert unavailable is None
    assert power["joules_per_picture"] == pytest.approx(19 * 6.0 / 100)
    assert tuple(conditions["power_modes"]) == ("15W", "25W")
    assert tuple(conditions["clocks_locked"]) == (False,)
    assert conditions["absent"] == {"emc load": "only root"}
    assert conditions["throttles"] == {"oc1": 0, "oc3": 4}
    assert condition_warnings(conditions) == [
        "the device was throttled during the run (cpu, peak over-current: 4 events)",
        "the power mode changed during the run: 15W, 25W",
    ]


def test_a_window_that_is_too_short_says_so_and_keeps_the_conditions() -> None:
    power, unavailable, conditions = Telemetry(sampled(), None).account(Window(11.0, 11.5), pictures=3)
    assert power is None
    assert "scripted: 6 power samples in 0.50 s; at least 10 are needed" in str(unavailable)
    assert conditions["readings"] == 6


def test_without_a_source_there_are_the_reasons() -> None:
    nothing = NoSource((Unavailable("hwmon", "no sensor"), Unavailable("rapl", "only root may read it")))
    assert Telemetry(None, nothing).account(Window(0.0, 1.0), pictures=1) == (
        None, "hwmon: no sensor; rapl: only root may read it", {},
    )  # fmt: skip


@pytest.mark.parametrize("jump_s", [-3600.0, -0.5, 3600.0], ids=["back-an-hour", "back-half-a-second", "suspended"])
def test_a_clock_that_jumps_is_a_hole_and_never_negative_energy(jump_s: float) -> None:
    clock = ManualClock()
    sampler = Sampler(Scripted(clock), clock=clock)
    for i in range(300):
        sampler.sample()
        clock.now += 0.1 + (jump_s if i == 150 else 0.0)
    end = max(reading.t_s for reading in sampler.readings)
    energy = sampler.energy(Window(0.0, end))
    times = [reading.t_s for reading in sampler.readings]
    assert times == sorted(set(times))
    assert energy.joules is None or energy.joules > 0
    if jump_s == 3600.0:
        assert "no power was read for 3600" in str(energy.refusal)

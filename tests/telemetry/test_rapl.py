"""Power of CPU packages from energy counters."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.telemetry.rapl import Rapl
from edge.telemetry.sources import Unavailable
from tests.support.boards import Grow, ManualClock

_CLASS = "sys/class/powercap"


def package(number: int, energy_uj: object, wrap_uj: int = 1_000_000_000) -> dict[str, object]:
    zone = f"{_CLASS}/intel-rapl:{number}"
    return {
        f"{zone}/name": f"package-{number}",
        f"{zone}/energy_uj": energy_uj,
        f"{zone}/max_energy_range_uj": wrap_uj,
    }


TWO = (
    package(0, 5_000_000)
    | package(1, 7_000_000)
    | {
        f"{_CLASS}/intel-rapl/enabled": 1,
        f"{_CLASS}/intel-rapl:0:0/name": "core",
        f"{_CLASS}/intel-rapl:0:0/energy_uj": 1_000_000,
        f"{_CLASS}/intel-rapl:0:0/max_energy_range_uj": 1_000_000_000,
        f"{_CLASS}/intel-rapl:2/name": "psys",
        f"{_CLASS}/intel-rapl:2/energy_uj": 50_000_000,
    }
)


def opened(root: Path, clock: ManualClock) -> Rapl:
    source = Rapl.open(root, clock=clock)
    assert isinstance(source, Rapl)
    return source


def test_power_is_the_energy_of_all_packages_over_the_time_since_the_last_read(grow: Grow, clock: ManualClock) -> None:
    source = opened(grow(TWO), clock)
    grow(
        {
            f"{_CLASS}/intel-rapl:0/energy_uj": 25_000_000,
            f"{_CLASS}/intel-rapl:1/energy_uj": 17_000_000,
            f"{_CLASS}/intel-rapl:0:0/energy_uj": 9_000_000,
        }
    )
    clock.now += 2.0
    reading = source.read()
    assert source.scope == "package"
    assert reading.power_mw == pytest.approx(15_000)
    assert reading.rails_mw == pytest.approx({"package-0": 10_000, "package-0/core": 4_000, "package-1": 5_000})
    assert reading.t_s == pytest.approx(101.0)  # the middle of the two seconds


def test_a_counter_that_wraps(grow: Grow, clock: ManualClock) -> None:
    source = opened(grow(package(0, 990_000, wrap_uj=1_000_000)), clock)
    grow({f"{_CLASS}/intel-rapl:0/energy_uj": 40_000})
    clock.now += 0.1
    assert source.read().power_mw == pytest.approx(500)


def test_a_counter_that_goes_back_without_a_known_wrap_is_no_power(grow: Grow, clock: ManualClock) -> None:
    source = opened(grow(package(0, 990_000, wrap_uj=0)), clock)
    grow({f"{_CLASS}/intel-rapl:0/energy_uj": 40_000})
    clock.now += 0.1
    assert source.read().power_mw is None


def test_two_reads_at_one_instant_lose_nothing(grow: Grow, clock: ManualClock) -> None:
    source = opened(grow(package(0, 0)), clock)
    grow({f"{_CLASS}/intel-rapl:0/energy_uj": 3_000_000})
    assert source.read().power_mw is None
    clock.now += 1.0
    assert source.read().power_mw == pytest.approx(3_000)


def test_a_package_that_vanishes_and_comes_back(grow: Grow, clock: ManualClock) -> None:
    root = grow(TWO)
    source = opened(root, clock)
    counter = root / _CLASS / "intel-rapl:1/energy_uj"
    counter.unlink()
    clock.now += 1.0
    assert source.read().power_mw is None
    grow({f"{_CLASS}/intel-rapl:1/energy_uj": 7_000_000})
    clock.now += 1.0
    assert source.read().power_mw is None  # nothing to subtract from
    clock.now += 1.0
    assert source.read().power_mw == 0.0


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        pytest.param({}, "no RAPL package", id="none"),
        pytest.param({f"{_CLASS}/intel-rapl:0/name": "psys"}, "no RAPL package", id="psys-only"),
        pytest.param(package(0, "garbage"), "does not answer", id="garbage"),
    ],
)
def test_why_there_is_no_power(grow: Grow, files: dict[str, object], reason: str) -> None:
    source = Rapl.open(grow(files))
    assert isinstance(source, Unavailable)
    assert reason in source.reason


def test_counters_that_only_root_may_read_say_so(as_nobody: Path) -> None:
    for name, content in package(0, 1).items():
        path = as_nobody / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    (as_nobody / _CLASS / "intel-rapl:0/energy_uj").chmod(0)
    source = Rapl.open(as_nobody)
    assert isinstance(source, Unavailable)
    assert "only root may read" in source.reason
    assert source.hint is not None
    assert "chmod a+r" in source.hint

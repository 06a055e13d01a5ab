"""Power from current sensors, on made-up boards."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from edge.telemetry.hwmon import Hwmon
from edge.telemetry.sources import NoSource, Unavailable, probe
from tests.support.boards import (
    AGX_ORIN,
    AGX_XAVIER_JP4,
    NANO_JP4,
    ORIN_NANO,
    THOR,
    THOR_RAILS,
    TX2_JP4,
    Grow,
    ManualClock,
    ina3221,
    nvpmodel,
)


def opened(root: Path, clock: ManualClock | None = None) -> Hwmon:
    source = Hwmon.open(root, clock=clock or ManualClock())
    assert isinstance(source, Hwmon)
    return source


@pytest.mark.parametrize(
    ("files", "scope", "power_mw"),
    [
        pytest.param(ORIN_NANO, "module_input", 6500.0, id="orin-nano"),
        pytest.param(AGX_ORIN, "module_sum", 2280.0 + 380.0 + 4000.0, id="agx-orin-without-vddq"),
        pytest.param(THOR, "system_input", 19750.0, id="thor-with-ina238"),
        pytest.param(THOR_RAILS, "partial", 2400.0 + 6000.0 + 5000.0, id="thor-without-ina238"),
        pytest.param(
            {k: v for k, v in THOR.items() if "power1" not in k},
            "system_input",
            19800.0,
            id="ina238-volts-times-amperes",
        ),
        pytest.param(NANO_JP4, "module_input", 2100.0, id="nano-jetpack-4-iio"),
        pytest.param(TX2_JP4, "module_input", 5300.0, id="tx2-jetpack-4-iio-two-chips"),
        pytest.param(AGX_XAVIER_JP4, "module_sum", 3160.0, id="agx-xavier-jetpack-4-iio"),
        pytest.param(ORIN_NANO | NANO_JP4, "module_input", 6500.0, id="hwmon-before-iio"),
    ],
)
def test_power_of_a_board(grow: Grow, files: dict[str, object], scope: str, power_mw: float) -> None:
    source = opened(grow(files))
    assert source.scope == scope
    assert source.read().power_mw == pytest.approx(power_mw)


def test_everything_else_that_a_board_says(grow: Grow, clock: ManualClock) -> None:
    source = opened(grow(ORIN_NANO), clock)
    first = source.read()
    assert first.rails_mw == {"VDD_IN": 6500.0, "VDD_CPU_GPU_CV": 1500.0, "VDD_SOC": 1400.0}
    assert first.temps_c == {"cpu": 47.25, "gpu": 46.5}  # cv0 is off
    assert first.clocks_mhz == {"gpu": 611.0, "cpu0": 1344.0, "cpu4": 729.6}
    assert first.throttles == {"oc1": 0, "oc2": 3, "oc3": 41}
    assert first.loads_percent == {"gpu": pytest.approx(43.7)}  # a CPU load needs two looks
    assert first.throttling == ()
    assert first.warnings == ()
    assert first.t_s == 100.0

    grow({"proc/stat": "cpu  175 0 125 1000 0 0 0 0 0 0", "sys/class/thermal/cooling_device0/cur_state": 2})
    clock.now += 0.6
    second = source.read()
    assert second.loads_percent["cpu"] == pytest.approx(100 * 100 / 300)
    assert second.throttling == ("cpu",)


def test_what_surrounds_the_power_is_read_twice_a_second_only(grow: Grow, clock: ManualClock) -> None:
    source = opened(grow(ORIN_NANO), clock)
    source.read()
    grow({"sys/class/thermal/thermal_zone0/temp": 60000, "sys/class/hwmon/hwmon1/curr1_input": 2000})
    clock.now += 0.1
    assert source.read().temps_c["cpu"] == 47.25
    assert source.read().power_mw == 10_000.0
    clock.now += 0.5
    assert source.read().temps_c["cpu"] == 60.0


def test_the_time_of_a_reading_is_in_the_middle_of_its_rails(grow: Grow) -> None:
    source = opened(grow(ORIN_NANO), clock := ManualClock(step=0.25))
    clock.now = 10.0
    assert source.read().t_s == pytest.approx(10.375)


def test_a_rail_that_vanishes_takes_the_power_with_it_and_not_the_rest(grow: Grow) -> None:
    root = grow(AGX_ORIN)
    source = opened(root)
    (root / "sys/class/hwmon/hwmon0/curr2_input").unlink()
    reading = source.read()
    assert reading.power_mw is None
    assert reading.rails_mw == {"VDD_GPU_SOC": 2280.0, "VIN_SYS_5V0": 4000.0, "VDDQ_VDD2_1V8AO": 300.0}
    assert source.scope == "module_sum"


def test_losing_the_input_sensor_does_not_turn_thor_into_a_smaller_number(grow: Grow) -> None:
    root = grow(THOR)
    source = opened(root)
    shutil.rmtree(root / "sys/class/hwmon/hwmon5")
    reading = source.read()
    assert (reading.power_mw, source.scope) == (None, "system_input")
    assert len(reading.rails_mw) == 3


def test_hwmon_numbers_that_move_are_found_again(grow: Grow, clock: ManualClock) -> None:
    root = grow(ORIN_NANO)
    source = opened(root, clock)
    (root / "sys/class/hwmon/hwmon1").rename(root / "sys/class/hwmon/hwmon9")
    assert source.read().power_mw is None
    clock.now += 1.5
    source.read()  # looks again
    assert source.read().power_mw == 6500.0


@pytest.mark.parametrize(
    "content", ["", "n/a", "12.5.1", "\0\0", "9" * 400, "9" * 5000, "-", "0x10"], ids=lambda text: repr(text[:8])
)
def test_garbage_in_a_sensor_is_no_value(grow: Grow, content: str) -> None:
    root = grow(ORIN_NANO)
    source = opened(root)
    grow({"sys/class/hwmon/hwmon1/curr1_input": content, "sys/class/thermal/thermal_zone0/temp": content})
    reading = source.read()
    assert reading.power_mw is None
    assert "VDD_IN" not in reading.rails_mw
    assert "cpu" not in reading.temps_c


def test_a_rail_above_the_input_that_feeds_it_is_a_warning(grow: Grow) -> None:
    root = grow(ORIN_NANO | {"sys/class/hwmon/hwmon1/curr2_input": 2000})
    assert opened(root).read().warnings == ("rail VDD_CPU_GPU_CV is above VDD_IN, which should contain it",)


def test_two_sensors_with_one_label_are_not_added_up(grow: Grow) -> None:
    rails = opened(grow(ORIN_NANO | ina3221(2, {"VDD_IN": (5000, 100)}))).read()
    assert rails.power_mw == 6500.0
    assert rails.rails_mw["VDD_IN (hwmon2)"] == 500.0


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        pytest.param({}, "no INA3221 or INA238", id="no-hwmon"),
        pytest.param({"sys/class/hwmon/hwmon0/name": "coretemp"}, "no INA3221 or INA238", id="other-chip"),
        pytest.param(ina3221(0, {"NC": (0, 0), "NC_2": (0, 0)}), "no INA3221 or INA238", id="nothing-connected"),
        pytest.param(ina3221(0, {"MOTOR_12V": (12000, 5)}), "table of known boards: MOTOR_12V", id="unknown-rails"),
        pytest.param({"sys/class/hwmon": "a file"}, "no INA3221", id="not-a-folder"),
        pytest.param(
            ORIN_NANO | {f"sys/class/hwmon/hwmon1/in{n}_input": "" for n in (1, 2, 3)}, "none answers", id="dead"
        ),
    ],
)
def test_why_there_is_no_power(grow: Grow, files: dict[str, object], reason: str) -> None:
    source = Hwmon.open(grow(files))
    assert isinstance(source, Unavailable)
    assert reason in source.reason


def test_sensors_that_only_root_may_read_say_so(as_nobody: Path) -> None:
    for name, content in ORIN_NANO.items():
        path = as_nobody / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
        if name.endswith("_input"):
            path.chmod(0)
    source = Hwmon.open(as_nobody)
    assert isinstance(source, Unavailable)
    assert "no permission to read" in source.reason
    assert source.hint is not None
    assert "chmod" in source.hint


def test_the_power_mode_and_the_clocks_go_with_the_readings(grow: Grow, clock: ManualClock) -> None:
    gpu = "sys/class/devfreq/17000000.gpu"
    root = grow(ORIN_NANO | nvpmodel(1) | {f"{gpu}/min_freq": 306000000, f"{gpu}/max_freq": 1020000000})
    source = opened(root, clock)
    first = source.read()
    assert (first.power_mode, first.clocks_locked) == ("25W", False)
    grow(nvpmodel(2) | {f"{gpu}/min_freq": 1020000000})
    clock.now += 1.0
    second = source.read()
    assert (second.power_mode, second.clocks_locked) == ("MAXN_SUPER", True)
    shutil.rmtree(root / "var/lib/nvpmodel")
    clock.now += 1.0
    assert source.read().power_mode is None


def test_iio_sensors_that_only_root_may_read_say_so(as_nobody: Path) -> None:
    for name, content in NANO_JP4.items():
        path = as_nobody / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
        if name.endswith("_input"):
            path.chmod(0)
    source = Hwmon.open(as_nobody)
    assert isinstance(source, Unavailable)
    assert "no permission to read" in source.reason
    assert "ina3221x" in str(source.hint)


def test_probe_prefers_hwmon_and_names_every_reason(grow: Grow, tmp_path: Path) -> None:
    nothing = probe(tmp_path)
    assert isinstance(nothing, NoSource)
    assert [reason.source for reason in nothing.reasons] == ["hwmon", "tegrastats", "rapl"]
    assert "tegrastats: /usr/bin/tegrastats does not exist" in str(nothing)
    found = probe(grow(ORIN_NANO))
    assert not isinstance(found, NoSource)
    assert (found.name, found.scope) == ("hwmon", "module_input")
    found.close()


def test_a_preferred_source_is_not_replaced_by_another(grow: Grow) -> None:
    nothing = probe(grow(ORIN_NANO), "rapl")
    assert isinstance(nothing, NoSource)
    assert [reason.source for reason in nothing.reasons] == ["rapl"]

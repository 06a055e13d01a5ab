"""Made-up boards: small sysfs trees with numbers of our own, and a clock that stands still."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

Grow = Callable[[Mapping[str, object]], Path]


class ManualClock:
    """A clock that moves when it is told to, and by ``step`` each time that somebody looks at it."""

    def __init__(self, step: float = 0.0) -> None:
        self.now = 100.0
        self.step = step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def ina3221(number: int, rails: Mapping[str, tuple[int, int]]) -> dict[str, object]:
    """Files of one INA3221: label -> millivolts, milliamperes."""
    folder = f"sys/class/hwmon/hwmon{number}"
    files: dict[str, object] = {f"{folder}/name": "ina3221"}
    for n, (label, (mv, ma)) in enumerate(rails.items(), start=1):
        files |= {f"{folder}/in{n}_label": label, f"{folder}/in{n}_input": mv, f"{folder}/curr{n}_input": ma}
    return files


ORIN_NANO = ina3221(1, {"VDD_IN": (5000, 1300), "VDD_CPU_GPU_CV": (5000, 300), "VDD_SOC": (5000, 280)}) | {
    "sys/class/hwmon/hwmon1/in7_label": "sum of shunt voltages",
    "sys/class/hwmon/hwmon1/in7_input": 12,
    "sys/class/hwmon/hwmon3/name": "soctherm_oc",
    "sys/class/hwmon/hwmon3/oc1_event_cnt": 0,
    "sys/class/hwmon/hwmon3/oc2_event_cnt": 3,
    "sys/class/hwmon/hwmon3/oc3_event_cnt": 41,
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
    "sys/class/thermal/thermal_zone0/temp": 47250,
    "sys/class/thermal/thermal_zone1/type": "gpu-thermal",
    "sys/class/thermal/thermal_zone1/temp": 46500,
    "sys/class/thermal/thermal_zone2/type": "cv0-thermal",
    "sys/class/thermal/thermal_zone2/temp": -256000,
    "sys/class/thermal/cooling_device0/type": "cpu-throttle-alert",
    "sys/class/thermal/cooling_device0/cur_state": 0,
    "sys/class/devfreq/17000000.gpu/cur_freq": 611000000,
    "sys/class/devfreq/17000000.gpu/device/load": 437,
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": 1344000,
    "sys/devices/system/cpu/cpufreq/policy4/scaling_cur_freq": 729600,
    "proc/stat": "cpu  100 0 100 800 0 0 0 0 0 0\ncpu0 1 2 3",
}
AGX_ORIN = ina3221(0, {"VDD_GPU_SOC": (19000, 120), "VDD_CPU_CV": (19000, 20), "VIN_SYS_5V0": (5000, 800)}) | ina3221(
    1, {"NC": (0, 0), "VDDQ_VDD2_1V8AO": (5000, 60)}
)
THOR_RAILS = ina3221(2, {"VDD_GPU": (12000, 200), "VDD_CPU_SOC_MSS": (12000, 500), "VIN_SYS_5V0": (5000, 1000)})
THOR = THOR_RAILS | {
    "sys/class/hwmon/hwmon5/name": "ina238",
    "sys/class/hwmon/hwmon5/in1_input": 19800,
    "sys/class/hwmon/hwmon5/curr1_input": 1000,
    "sys/class/hwmon/hwmon5/power1_input": 19750000,
}


def iio_ina3221(chip: str, device: int, rails: Mapping[str, int]) -> dict[str, object]:
    """Files of one sensor under JetPack 4's own driver: label -> milliwatts."""
    folder = f"sys/bus/i2c/drivers/ina3221x/{chip}/iio:device{device}"
    files: dict[str, object] = {}
    for n, (label, mw) in enumerate(rails.items()):
        files |= {f"{folder}/rail_name_{n}": label, f"{folder}/in_power{n}_input": mw}
    return files


NANO_JP4 = iio_ina3221("6-0040", 0, {"POM_5V_IN": 2100, "POM_5V_GPU": 80, "POM_5V_CPU": 300})
TX2_JP4 = iio_ina3221("0-0040", 0, {"VDD_SYS_GPU": 180, "VDD_SYS_SOC": 730, "VDD_4V0_WIFI": 0}) | iio_ina3221(
    "0-0041", 1, {"VDD_IN": 5300, "VDD_SYS_CPU": 1900, "VDD_SYS_DDR": 1200}
)
AGX_XAVIER_JP4 = iio_ina3221("1-0040", 0, {"GPU": 100, "CPU": 210, "SOC": 800}) | iio_ina3221(
    "1-0041", 1, {"CV": 10, "VDDRQ": 140, "SYS5V": 1900}
)


def nvpmodel(number: int) -> dict[str, object]:
    """The files in which an Orin Nano notes its power mode."""
    conf = "# < POWER_MODEL ID=9 NAME=OLD >\n< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n"
    conf += "< POWER_MODEL ID=1 NAME=25W >\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n< PM_CONFIG DEFAULT=1 >"
    return {"etc/nvpmodel.conf": conf, "var/lib/nvpmodel/status": f"pmode:{number:04d} fmode:quiet"}

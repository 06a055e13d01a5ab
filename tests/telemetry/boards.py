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

"""Read the state of the board: temperatures, loads, clocks, throttle counters and the power mode.

Paths and units of the files: NVIDIA's Jetson Linux developer guide, "Platform Power and Performance"; the
kernel's Documentation/ABI for thermal, devfreq, cpufreq and thermal_throttle. Not tried on a Jetson: the tests use
artificial file trees.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import msgspec

from edge.system import device_tree, nvpmodel, sysfs
from edge.telemetry import nvml
from edge.telemetry.sources import Clock, Scope

_NOT_CONNECTED = re.compile(r"NC(?:\d|[ _-].*)?")


class Total(msgspec.Struct, frozen=True):
    """The rails to add up, and the scope of their sum."""

    scope: Scope
    rails: tuple[str, ...]

    def power_mw(self, rails_mw: Mapping[str, float]) -> float | None:
        """Return the sum of the rails in milliwatts; None if one is missing, because a smaller sum would mislead."""
        if not all(rail in rails_mw for rail in self.rails):
            return None
        return sum(rails_mw[rail] for rail in self.rails)

    def caveats(self, rails_mw: Mapping[str, float]) -> tuple[str, ...]:
        """Warn if one rail is above the input that feeds it: the labels, or their order, may then be wrong.

        Each text leaves out the values, so that one rail gives one warning and not one per reading.
        """
        if self.scope not in {"system_input", "module_input"} or self.rails[0] not in rails_mw:
            return ()
        name, total = self.rails[0], rails_mw[self.rails[0]]
        return tuple(
            f"rail {rail} is above {name}, which should contain it" for rail, mw in rails_mw.items() if mw > total
        )


# The first row whose rails are all present is used, so wider scopes come first.
TOTALS = (
    Total("system_input", ("VIN",)),
    Total("module_input", ("VDD_IN",)),
    Total("module_input", ("POM_5V_IN",)),
    Total("module_sum", ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")),
    Total("module_sum", ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V")),
    Total("partial", ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0")),
)


def total_of(names: Iterable[str]) -> Total | None:
    """Find the sum that gives the board's power from its rails ``names``; None for an unknown board."""
    there = set(names)
    return next((total for total in TOTALS if there.issuperset(total.rails)), None)


def is_connected(label: str) -> bool:
    """Return True if a channel's label names a rail; ``NC`` marks an unconnected channel."""
    return bool(label) and not _NOT_CONNECTED.fullmatch(label)


# CPU clocks are read per frequency domain. A server has one domain per core, so their number is limited.
_MAX_DOMAINS = 16
_PERMILLE_TO_PERCENT = 0.1
_MILLI = 1e-3
_MICRO = 1e-6
_NO_EMC = "only tegrastats reports it, and only to root (--power tegrastats)"


class BoardState(msgspec.Struct, frozen=True):
    """State of the board; :class:`edge.telemetry.sources.Reading` explains the fields."""

    temps_c: dict[str, float] = {}
    loads_percent: dict[str, float] = {}
    clocks_mhz: dict[str, float] = {}
    throttles: dict[str, int] = {}
    throttling: tuple[str, ...] = ()
    power_mode: str | None = None
    clocks_locked: bool | None = None
    absent: dict[str, str] = {}


class Board:
    """Reads the state of the board below ``root`` at most every ``refresh_s`` seconds, and repeats it in between.

    ``gpu_load`` returns the GPU's load in percent where sysfs has none; on a Thor, NVML is the default.
    """

    def __init__(
        self,
        root: Path,
        *,
        clock: Clock,
        refresh_s: float = 0.5,
        gpu_load: Callable[[], float | None] | None = None,
    ) -> None:
        self._clock = clock
        self._refresh_s = refresh_s
        self._read_at: float | None = None
        self._state = BoardState()
        self._root = root
        self._stat = str(root / "proc/stat")
        self._cpu_times: tuple[int, int] | None = None
        self._temps = list(_temperature_files(root))
        self._clocks = list(_clock_files(root))
        self._throttles = list(_throttle_files(root))
        self._alerts = list(_alert_files(root))
        self._status_file = str(nvpmodel.status_file(root))
        self._mode_status: bytes | None = None
        self._mode: str | None = None
        self._absent: dict[str, str] = {}
        self._gpu_load_file = _gpu_load_file(root)
        self._gpu_load = gpu_load
        gpu = nvpmodel.gpu_devfreq(root)
        self._gpu = (str(gpu / "min_freq"), str(gpu / "max_freq")) if gpu is not None else None
        self._explain(root)

    def _explain(self, root: Path) -> None:
        """Record once which values will be missing and why, and choose the source of the GPU's load."""
        soc = sysfs.read_text(device_tree(root) / "compatible") or ""
        if "tegra" not in soc:
            return
        self._absent["emc load"] = _NO_EMC
        if self._gpu_load_file is None and self._gpu_load is None:
            found = nvml.gpu_load() if "tegra264" in soc and root == Path("/") else "there is no load file in sysfs"
            if isinstance(found, str):
                self._absent["gpu load"] = found
            else:
                self._gpu_load = found

    def read(self) -> BoardState:
        """Return the current state, which is up to ``refresh_s`` old."""
        now = self._clock()
        if self._read_at is None or now - self._read_at >= self._refresh_s:
            self._read_at = now
            self._state = BoardState(
                temps_c=self._read_temperatures(),
                loads_percent=self._read_loads(),
                clocks_mhz=_scaled(self._clocks),
                throttles={name: n for name, path in self._throttles if (n := sysfs.read_int(path)) is not None},
                throttling=tuple(name for name, path in self._alerts if (sysfs.read_int(path) or 0) > 0),
                power_mode=self._power_mode(),
                clocks_locked=self._clocks_locked(),
                absent=self._absent,
            )
        return self._state

    def _read_temperatures(self) -> dict[str, float]:
        return {zone: temp_c for zone, temp_c in _scaled(self._temps).items() if is_temperature(temp_c)}

    def _read_loads(self) -> dict[str, float]:
        loads = {}
        permille = sysfs.read_int(self._gpu_load_file) if self._gpu_load_file else None
        if permille is not None:
            loads["gpu"] = permille * _PERMILLE_TO_PERCENT
        elif self._gpu_load is not None and (percent := self._gpu_load()) is not None:
            loads["gpu"] = percent
        times = _cpu_times(self._stat)
        if times and self._cpu_times and times[1] > self._cpu_times[1]:
            busy, total = times[0] - self._cpu_times[0], times[1] - self._cpu_times[1]
            loads["cpu"] = min(max(100.0 * busy / total, 0.0), 100.0)
        self._cpu_times = times
        return loads

    def _power_mode(self) -> str | None:
        """Return the mode's name, looked up in the configuration only when the status has changed."""
        status = sysfs.read_bytes(self._status_file)
        if status != self._mode_status:
            mode = nvpmodel.current(self._root)
            self._mode_status, self._mode = status, None if mode is None else mode.name
        return self._mode

    def _clocks_locked(self) -> bool | None:
        """Return the same as :func:`edge.system.nvpmodel.clocks_locked` without searching for the folder again."""
        if self._gpu is None:
            return None
        low, high = (sysfs.read_int(path) for path in self._gpu)
        return None if low is None or high is None else low == high


def is_temperature(temp_c: float) -> bool:
    """Return True for a plausible temperature: a disabled sensor reports -256 degrees Celsius."""
    return -100.0 < temp_c < 200.0


def _scaled(files: list[tuple[str, str, float]]) -> dict[str, float]:
    return {name: n * scale for name, path, scale in files if (n := sysfs.read_int(path)) is not None}


def _temperature_files(root: Path) -> Iterator[tuple[str, str, float]]:
    seen: set[str] = set()
    for zone in sysfs.folders(root / "sys/class/thermal"):
        kind = sysfs.read_text(zone / "type") if zone.name.startswith("thermal_zone") else None
        # PMIC is a constant on Jetson, not a measurement.
        if not kind or kind.lower().startswith("pmic"):
            continue
        name = kind.removesuffix("-thermal").removesuffix("-therm").lower()
        name = name if name not in seen else f"{name}.{zone.name.removeprefix('thermal_zone')}"
        seen.add(name)
        yield name, str(zone / "temp"), _MILLI


def _clock_files(root: Path) -> Iterator[tuple[str, str, float]]:
    gpu = nvpmodel.gpu_devfreq(root)
    if gpu is not None:
        yield "gpu", str(gpu / "cur_freq"), _MICRO
    emc = str(root / "sys/kernel/debug/bpmp/debug/clk/emc/rate")  # root only
    if sysfs.read_int(emc) is not None:
        yield "emc", emc, _MICRO
    domains = [f for f in sysfs.folders(root / "sys/devices/system/cpu/cpufreq") if f.name.startswith("policy")]
    for domain in sorted(domains, key=lambda f: (len(f.name), f.name))[:_MAX_DOMAINS]:
        # The actual hardware clock needs root; without it, use the governor's request.
        measured, asked = domain / "cpuinfo_cur_freq", domain / "scaling_cur_freq"
        path = measured if sysfs.read_int(str(measured)) else asked
        yield f"cpu{domain.name.removeprefix('policy')}", str(path), _MILLI


def _gpu_load_file(root: Path) -> str | None:
    gpu = nvpmodel.gpu_devfreq(root)
    places = [gpu / "device/load"] if gpu is not None else []
    places.append(root / "sys/devices/platform/gpu.0/load")
    return next((str(path) for path in places if sysfs.read_int(str(path)) is not None), None)


def _throttle_files(root: Path) -> Iterator[tuple[str, str]]:
    for folder in sysfs.folders(root / "sys/class/hwmon"):
        if sysfs.read_text(folder / "name") == "soctherm_oc":
            for n in (1, 2, 3):
                yield f"oc{n}", str(folder / f"oc{n}_event_cnt")
    package = root / "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count"
    if package.exists():
        yield "package", str(package)


def _alert_files(root: Path) -> Iterator[tuple[str, str]]:
    for device in sysfs.folders(root / "sys/class/thermal"):
        kind = sysfs.read_text(device / "type") if device.name.startswith("cooling_device") else None
        if kind and kind.endswith("throttle-alert"):
            yield kind.removesuffix("-throttle-alert"), str(device / "cur_state")


def _cpu_times(path: str) -> tuple[int, int] | None:
    """Return the busy and the total jiffies of all cores since boot."""
    words = (sysfs.read_bytes(path) or b"").split(b"\n", 1)[0].split()
    try:
        # user nice system idle iowait irq softirq steal. Time of virtual machines is part of user.
        times = [int(word) for word in words[1:9]]
    except ValueError:
        return None
    if len(times) < 5:
        return None
    return sum(times) - times[3] - times[4], sum(times)

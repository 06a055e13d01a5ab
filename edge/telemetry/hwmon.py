"""Read the power of a Jetson from its current sensors (INA3221, INA238) through hwmon, without root or child process.

Folders are found by ``name`` and channels by ``inN_label``, because hwmon numbers move from boot to boot. Units as in
the kernel's Documentation/hwmon: inN_input in mV, currN_input in mA, powerN_input in uW. NVIDIA's driver of JetPack 4
has another layout (``ina3221x``, under iio: rail_name_N, in_powerN_input in mW), which is read if there is no hwmon.
Not tried on a Jetson: the tests use artificial file trees.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from edge.system import sysfs
from edge.telemetry.board import Board, Total, is_connected, total_of
from edge.telemetry.sources import Clock, Reading, Scope, Unavailable

_CHANNELS = (1, 2, 3)
# If the rails cannot be read, the folders are searched again, but not at every sample.
_SEARCH_INTERVAL_S = 1.0


class _Channel(msgspec.Struct, frozen=True):
    """One rail: a file with its power and its unit in milliwatts, or two files with millivolts and milliamperes."""

    rail: str
    voltage: str = ""
    current: str = ""
    power: str | None = None
    unit_mw: float = 1e-3

    def read_mw(self) -> float | None:
        if self.power is not None:
            power = sysfs.read_int(self.power)
            return None if power is None else power * self.unit_mw
        millivolts = sysfs.read_int(self.voltage)
        milliamperes = sysfs.read_int(self.current) if millivolts is not None else None
        return None if millivolts is None or milliamperes is None else millivolts * milliamperes * 1e-3


class Hwmon:
    """Power of a Jetson board from its current sensors; use :meth:`open`."""

    name = "hwmon"

    def __init__(self, root: Path, channels: list[_Channel], total: Total, *, clock: Clock) -> None:
        self._root = root
        self._channels = channels
        self._total = total
        self._clock = clock
        self._board = Board(root, clock=clock)
        self._searched_at = clock()

    @classmethod
    def open(cls, root: Path = Path("/"), *, clock: Clock = time.monotonic) -> Hwmon | Unavailable:
        """Open the sensors below ``root``, or return the reason why they cannot be used."""
        channels = list(_find_channels(root))
        if not channels:
            return Unavailable(cls.name, "no INA3221 or INA238 current sensor under /sys/class/hwmon")
        forbidden = [c for c in channels if any(sysfs.is_forbidden(path) for path in _files(c))]
        readable = {c.rail for c in channels if c.read_mw() is not None}
        total = total_of(readable)
        if total is not None:
            return cls(root, channels, total, clock=clock)
        if forbidden:
            file = _files(forbidden[0])[0]
            return Unavailable(
                cls.name,
                f"no permission to read {file}",
                f"sudo chmod a+r {Path(file).parent}/*_input  (until the next boot), or run as root",
            )
        names = ", ".join(c.rail for c in channels)
        if not readable:
            return Unavailable(cls.name, f"the current sensors exist but none answers ({names})")
        return Unavailable(cls.name, f"the rails of this board are not in the table of known boards: {names}")

    @property
    def scope(self) -> Scope:
        """Scope of the power figure."""
        return self._total.scope

    def read(self) -> Reading:
        """Read all rails; ``t_s`` is halfway between the first and the last one."""
        before = self._clock()
        rails = {c.rail: mw for c in self._channels if (mw := c.read_mw()) is not None}
        after = self._clock()
        power = self._total.power_mw(rails)
        if power is None and after - self._searched_at >= _SEARCH_INTERVAL_S:
            self._searched_at = after
            self._channels = list(_find_channels(self._root)) or self._channels
        state = self._board.read()
        return Reading(
            t_s=(before + after) / 2,
            power_mw=power,
            rails_mw=rails,
            temps_c=state.temps_c,
            loads_percent=state.loads_percent,
            clocks_mhz=state.clocks_mhz,
            throttles=state.throttles,
            throttling=state.throttling,
            power_mode=state.power_mode,
            clocks_locked=state.clocks_locked,
            absent=state.absent,
            warnings=self._total.caveats(rails),
        )

    def close(self) -> None:
        """Do nothing: no file stays open."""


def _find_channels(root: Path) -> Iterator[_Channel]:
    seen: set[str] = set()
    found = [(folder, c) for folder in sysfs.folders(root / "sys/class/hwmon") for c in _channels_of(folder)]
    for folder, channel in found or _iio_channels(root):
        # If two sensors share a label, the first is used; the other is shown but not added up.
        name = channel.rail if channel.rail not in seen else f"{channel.rail} ({folder.name})"
        seen.add(name)
        yield msgspec.structs.replace(channel, rail=name)


def _iio_channels(root: Path) -> list[tuple[Path, _Channel]]:
    """Find the rails of JetPack 4's driver: ``ina3221x/7-0040/iio:device0/rail_name_0``, ``in_power0_input``, in mW."""
    found = []
    for chip in sysfs.folders(root / "sys/bus/i2c/drivers/ina3221x"):
        for folder in sysfs.folders(chip):
            for n in range(3) if folder.name.startswith("iio:device") else ():
                label = sysfs.read_text(folder / f"rail_name_{n}") or ""
                if is_connected(label):
                    found.append((folder, _Channel(label, power=str(folder / f"in_power{n}_input"), unit_mw=1.0)))
    return found


def _channels_of(folder: Path) -> Iterator[_Channel]:
    kind = sysfs.read_text(folder / "name")
    if kind == "ina3221":
        for n in _CHANNELS:
            label = sysfs.read_text(folder / f"in{n}_label") or ""
            if is_connected(label):
                yield _Channel(label, str(folder / f"in{n}_input"), str(folder / f"curr{n}_input"))
    elif kind == "ina238":
        # The sensor at the power input of the Thor carrier board has no label.
        label = sysfs.read_text(folder / "in1_label") or "VIN"
        power = folder / "power1_input"
        yield _Channel(
            label,
            str(folder / "in1_input"),
            str(folder / "curr1_input"),
            str(power) if power.exists() else None,
        )


def _files(channel: _Channel) -> tuple[str, ...]:
    return (channel.power,) if channel.power is not None else (channel.voltage, channel.current)

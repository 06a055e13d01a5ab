"""Read the power of a host's CPU packages from the RAPL energy counters in the kernel's powercap files.

Counters are in microjoules and wrap at ``max_energy_range_uj`` [Documentation/power/powercap/powercap.rst]. Since Linux
5.10 only root may read them (CVE-2020-8694).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from edge.system import sysfs
from edge.telemetry.board import Board
from edge.telemetry.sources import Clock, Reading, Scope, Unavailable

_CLASS = "sys/class/powercap"


class _Domain(msgspec.Struct, frozen=True):
    """One counter: its name (``package-0``, ``package-0/dram``), its file, and the value at which it wraps."""

    name: str
    energy: str
    wrap_uj: int
    is_package: bool


class Rapl:
    """Power of all CPU packages. A reading is the mean since the previous one; ``t_s`` is the middle of that time."""

    name = "rapl"

    def __init__(self, root: Path, domains: list[_Domain], *, clock: Clock) -> None:
        self._domains = domains
        self._clock = clock
        self._board = Board(root, clock=clock)
        self._last_t_s, self._last_uj = self._counters()

    @classmethod
    def open(cls, root: Path = Path("/"), *, clock: Clock = time.monotonic) -> Rapl | Unavailable:
        """Open the packages below ``root``, or return the reason why their counters cannot be used."""
        domains = list(_find_domains(root))
        packages = [domain for domain in domains if domain.is_package]
        if not packages:
            return Unavailable(cls.name, "no RAPL package under /sys/class/powercap (not that kind of CPU, or a VM)")
        for package in packages:
            if sysfs.is_forbidden(package.energy):
                return Unavailable(
                    cls.name,
                    f"only root may read {package.energy}",
                    "sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj  (until the next boot), or run as root",
                )
            if sysfs.read_int(package.energy) is None:
                return Unavailable(cls.name, f"{package.energy} does not answer")
        return cls(root, domains, clock=clock)

    @property
    def scope(self) -> Scope:
        """Scope of the power figure."""
        return "package"

    def read(self) -> Reading:
        """Return the mean power since the last read; None if no time has passed or a package does not answer."""
        last_t_s, last_uj = self._last_t_s, self._last_uj
        t_s, counters = self._counters()
        rails = {}
        # A second read at the same instant must not discard the current interval.
        if t_s > last_t_s:
            self._last_t_s, self._last_uj = t_s, counters
            for domain in self._domains:
                if domain.name in counters and domain.name in last_uj:
                    used = counters[domain.name] - last_uj[domain.name]
                    used += domain.wrap_uj if used < 0 else 0
                    # A counter that went back without a known wrap was reset: no power can be derived.
                    if used >= 0:
                        rails[domain.name] = used * 1e-3 / (t_s - last_t_s)
        packages = [domain.name for domain in self._domains if domain.is_package]
        state = self._board.read()
        return Reading(
            t_s=(t_s + last_t_s) / 2,
            power_mw=sum(rails[name] for name in packages) if all(name in rails for name in packages) else None,
            rails_mw=rails,
            temps_c=state.temps_c,
            loads_percent=state.loads_percent,
            clocks_mhz=state.clocks_mhz,
            throttles=state.throttles,
            throttling=state.throttling,
            power_mode=state.power_mode,
            clocks_locked=state.clocks_locked,
            absent=state.absent,
        )

    def close(self) -> None:
        """Do nothing: no file stays open."""

    def _counters(self) -> tuple[float, dict[str, int]]:
        before = self._clock()
        counters = {d.name: uj for d in self._domains if (uj := sysfs.read_int(d.energy)) is not None}
        return (before + self._clock()) / 2, counters


def _find_domains(root: Path) -> Iterator[_Domain]:
    zones = [folder for folder in sysfs.folders(root / _CLASS) if folder.name.startswith("intel-rapl:")]
    names = {folder.name: sysfs.read_text(folder / "name") or "" for folder in zones}
    for folder in zones:
        parent, _, child = folder.name.removeprefix("intel-rapl:").partition(":")
        package = names.get(f"intel-rapl:{parent}", "")
        # Other top-level zones (psys) include the packages a second time.
        if package.startswith("package"):
            name = f"{package}/{names[folder.name]}" if child else package
            wrap = sysfs.read_int(str(folder / "max_energy_range_uj")) or 0
            yield _Domain(name, str(folder / "energy_uj"), wrap, is_package=not child)

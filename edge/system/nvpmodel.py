"""Parse the power modes of a Jetson from nvpmodel's files and output: the available modes and the current one.

This module runs no program. Formats: nvpmodel of L4T 32 to 39, its configuration in ``/etc/nvpmodel.conf``, and its
status file below ``/var/lib``. A mode number has no meaning across modules: 0 is 15 W on one and unlimited on another.
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

# ``< POWER_MODEL ID=2 NAME=MAXN >`` in the file, ``POWER_MODEL: ID=2 NAME=MAXN`` from `nvpmodel -p --verbose`.
_MODEL = re.compile(r"(?m)^(?!\s*#).*?\bPOWER_MODEL:?\s+ID=(\d{1,6})\s+NAME=([^\s>]+)")
_DEFAULT = re.compile(r"(?m)^(?!\s*#).*?\bPM_CONFIG:?\s+DEFAULT=(\d{1,6})")
_STATUS = re.compile(r"\bpmode:(\d{1,6})")
_QUERY = re.compile(r"NV Power Mode:\s*(\S+)")
_NUMBER_LINE = re.compile(r"(?m)^\s*(\d{1,6})\s*$")
_REBOOT = re.compile(r"reboot required|do you want to reboot", re.IGNORECASE)
_BLOCK = re.compile(r"(?m)^\s*<\s*POWER_MODEL\s+ID=(\d{1,6})[^>]*>([^<]*)")
_GPU_MAX = re.compile(r"(?m)^\s*GPU\s+MAX_FREQ\s+(\d{1,12})\s*$")
# GPU clock of the Super modes, in MHz: their configuration says only "no limit". NVIDIA, Jetson Orin Nano and NX Super.
_SUPER_MHZ = {"p3767-0003": 1020, "p3767-0004": 1020, "p3767-0005": 1020, "p3767-0000": 1173, "p3767-0001": 1173}
_HZ_PER_MHZ = 1_000_000
_GPU_NAMES = ("gpu", "ga10b", "gv11b", "gp10b", "gm20b")


class Mode(msgspec.Struct, frozen=True):
    """One power mode: its number and its name; the name is the number if the configuration gives none."""

    number: int
    name: str

    def __str__(self) -> str:
        return self.name


class Listing(msgspec.Struct, frozen=True):
    """The power modes of this module, by number, and its default mode."""

    modes: tuple[Mode, ...] = ()
    default: Mode | None = None

    def find(self, wanted: str) -> Mode | None:
        """Return the mode with that number or name, ignoring case; ``30W`` also finds ``MODE_30W``."""
        lower = wanted.lower().removeprefix("mode_")
        for mode in self.modes:
            if lower in {str(mode.number), mode.name.lower().removeprefix("mode_")}:
                return mode
        return None


def parse_listing(text: str) -> Listing:
    """Parse the modes in ``/etc/nvpmodel.conf`` or in the output of ``nvpmodel -p --verbose``."""
    found = {int(number): Mode(int(number), name) for number, name in _MODEL.findall(text)}
    default = _DEFAULT.search(text)
    return Listing(tuple(found[n] for n in sorted(found)), found.get(int(default[1])) if default else None)


def parse_query(text: str) -> Mode | None:
    """Parse the output of ``nvpmodel -q``: the mode's name, and its number on a later line; None without a mode."""
    name = _QUERY.search(text)
    number = _NUMBER_LINE.search(text, name.end()) if name else None
    return None if name is None or number is None else Mode(int(number[1]), name[1])


def errors(text: str) -> tuple[str, ...]:
    """Return the lines in which nvpmodel warns or reports an error."""
    lines = (line.strip() for line in text.splitlines())
    return tuple(dict.fromkeys(line for line in lines if line.startswith(("NVPM WARN", "NVPM ERROR"))))


def asks_to_reboot(text: str) -> bool:
    """Return True if nvpmodel reports that this mode needs a reboot."""
    return bool(_REBOOT.search(text))


def listing(root: Path = Path("/")) -> Listing:
    """Read the modes in the configuration file; return an empty listing if the file is missing."""
    return parse_listing(_text(root / "etc/nvpmodel.conf") or "")


def current(root: Path = Path("/")) -> Mode | None:
    """Read the mode that nvpmodel stored when it was last set; None if no mode is stored."""
    status = _STATUS.search(_text(status_file(root)) or "")
    if status is None:
        return None
    number = int(status[1])
    return next((mode for mode in listing(root).modes if mode.number == number), Mode(number, str(number)))


def status_file(root: Path) -> Path:
    """Return the path of the file in which nvpmodel stores the current mode."""
    return root / "var/lib/nvpmodel/status"


def gpu_devfreq(root: Path) -> Path | None:
    """Return the devfreq folder of the GPU: ``17000000.gpu`` (Orin) or ``gpu-gpc-0`` (Thor)."""
    try:
        folders = sorted((root / "sys/class/devfreq").iterdir())
    except OSError:
        return None
    return next((folder for folder in folders if any(name in folder.name for name in _GPU_NAMES)), None)


def clocks_locked(root: Path = Path("/")) -> bool | None:
    """Return True if the GPU's minimum and maximum clock are equal, as after jetson_clocks; None if unknown."""
    gpu = gpu_devfreq(root)
    low, high = (_text(gpu / name) for name in ("min_freq", "max_freq")) if gpu is not None else (None, None)
    return None if not low or not high else low == high


def gpu_clock_cap(root: Path, module: str | None) -> tuple[int, int] | None:
    """Return the present and the allowed maximum GPU clock in MHz if the former is clearly lower; otherwise None.

    A board whose boot firmware is not that of a Super module keeps 624 MHz in the mode MAXN_SUPER. None where the clock
    is as the mode says, or either of the two is not known.

    Args:
        root: the root of the file system.
        module: the module's number, such as ``p3767-0005``.
    """
    mode, gpu = current(root), gpu_devfreq(root)
    top = _text(gpu / "max_freq") if gpu is not None else None
    if mode is None or top is None or not top.isdecimal():
        return None
    blocks = dict(_BLOCK.findall(_text(root / "etc/nvpmodel.conf") or ""))
    limit = _GPU_MAX.search(blocks.get(str(mode.number), ""))
    allowed = int(limit[1]) // _HZ_PER_MHZ if limit else _SUPER_MHZ.get(module or "") if "SUPER" in mode.name else None
    now = int(top) // _HZ_PER_MHZ
    return (now, allowed) if allowed is not None and now < allowed * 0.9 else None


def _text(path: Path) -> str | None:
    try:
        return path.read_bytes().decode(errors="replace").strip("\0 \t\r\n")
    except OSError:
        return None

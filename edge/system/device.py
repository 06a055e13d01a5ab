"""Identify the machine: a Jetson (module, L4T, JetPack, power mode) or a host. Only files are read.

All paths are below a root folder, so that tests can use their own. An unreadable value is None. Module numbers, JetPack
releases and compute capabilities come from NVIDIA's jetson-gpio and device trees and from jetson-stats' tables, as of
2026-11. A device tree may be wrong: carrier boards of other makers often keep the name of the developer kit.
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from edge.config import Family
from edge.system import nvpmodel, sysfs

# Tegra chip -> compute capability of its GPU. Only the last two run JetPack 6 and 7.
_SM = {"tegra210": "5.3", "tegra186": "6.2", "tegra194": "7.2", "tegra234": "8.7", "tegra264": "11.0"}
_OLD = {"tegra210": "Nano and TX1", "tegra186": "TX2", "tegra194": "Xavier"}

_MODULES: dict[str, tuple[Family, str]] = {
    "p3701-0000": ("agx-orin", "AGX Orin developer kit"),
    "p3701-0004": ("agx-orin", "AGX Orin 32GB"),
    "p3701-0005": ("agx-orin", "AGX Orin 64GB"),
    "p3701-0008": ("agx-orin", "AGX Orin Industrial"),
    "p3767-0000": ("orin-nx", "Orin NX 16GB"),
    "p3767-0001": ("orin-nx", "Orin NX 8GB"),
    "p3767-0003": ("orin-nano", "Orin Nano 8GB"),
    "p3767-0004": ("orin-nano", "Orin Nano 4GB"),
    "p3767-0005": ("orin-nano", "Orin Nano 8GB developer kit"),
    "p3834-0008": ("thor", "AGX Thor T5000"),
}
# Boards whose number is not in the table; p3767 alone does not tell an NX from a Nano.
_BOARDS: dict[str, Family] = {"p3701": "agx-orin", "p3834": "thor"}
_MODEL_WORDS: tuple[tuple[str, Family], ...] = (
    ("agx orin", "agx-orin"),
    ("orin nx", "orin-nx"),
    ("orin nano", "orin-nano"),
    ("orin jetson-small", "agx-orin"),
    ("thor", "thor"),
)
_MODULE = re.compile(r"p(?:3701|3767|3834|3668|2888|3310|3489|3636|3448|2180)-\d{4}")

_JETPACK = {
    "32.7.1": "4.6.1",
    "35.3.1": "5.1.1",
    "35.4.1": "5.1.2",
    "35.5.0": "5.1.3",
    "35.6.0": "5.1.4",
    "36.3.0": "6.0",
    "36.4.0": "6.1",
    "36.4.3": "6.2",
    "36.4.4": "6.2.1",
    "36.4.7": "6.2.1",
    "36.5.0": "6.2.2",
    "36.5.2": "6.2.3",
    "38.4.0": "7.1",
    "39.2.0": "7.2",
    "39.2.1": "7.2.1",
    "39.2.2": "7.2.2",
}
_OLDEST_L4T = 36
_OUT_OF_SCOPE = "JetPack 5 and older are out of scope"

# Cores that /proc/cpuinfo names by a number only [Linux, arch/arm64/include/asm/cputype.h].
_ARM_PARTS = {
    "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72",
    "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse-N1",
    "0xd42": "Cortex-A78AE",
    "0xd4f": "Neoverse-V2",
    "0xd83": "Neoverse-V3AE",
}

_PROFILES: dict[Family, str] = {
    "host": "host",
    "agx-orin": "orin",
    "orin-nx": "orin-nx",
    "orin-nano": "orin-nano",
    "thor": "thor",
    "rtx": "rtx",
}


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """One machine. ``family`` is None for a Jetson of an unknown family; ``unsupported`` then gives the reason.

    ``clocks_locked`` is true if the GPU runs at one fixed clock (``jetson_clocks``). ``cores`` is the number of online
    cores. ``unsupported`` may also be set with a known family: an Orin with JetPack 5.
    """

    is_jetson: bool
    family: Family | None
    unsupported: str | None = None
    model: str | None = None
    module: str | None = None
    product: str | None = None
    soc: str | None = None
    sm: str | None = None
    l4t: str | None = None
    jetpack: str | None = None
    power_mode: str | None = None
    clocks_locked: bool | None = None
    cpu: str | None = None
    cores: int | None = None
    memory_mib: int | None = None
    kernel: str | None = None
    machine: str | None = None


def identify(root: Path = Path("/")) -> Device:
    """Identify the machine whose ``/proc``, ``/sys`` and ``/etc`` are below ``root``."""
    tree = device_tree(root)
    compatible = _text(tree / "compatible") or ""
    model = _text(tree / "model")
    soc = next(iter(re.findall(r"tegra\d{3}\b", compatible)), None)
    l4t = _l4t(root, is_tegra=soc is not None)
    is_jetson = soc is not None or l4t is not None or bool(re.search(r"jetson|\borin\b", model or "", re.IGNORECASE))
    memory_mib = _memory_mib(root)
    cpuinfo = _text(root / "proc/cpuinfo") or ""
    common = Device(
        is_jetson=is_jetson,
        family=None if is_jetson else "host",
        model=model,
        cpu=_cpu_name(cpuinfo),
        cores=len(re.findall(r"(?m)^processor\s*:", cpuinfo)) or None,
        memory_mib=memory_mib,
        kernel=_text(root / "proc/sys/kernel/osrelease"),
        machine=_machine(root, cpuinfo),
    )
    if not is_jetson:
        return common
    module = next(iter(_MODULE.findall(compatible)), None)
    family = _family(module, model, soc)
    soc = soc or _soc_of(family)
    mode = nvpmodel.current(root)
    return msgspec.structs.replace(
        common,
        family=family,
        unsupported=_unsupported(family, soc, l4t, has_tree=bool(compatible)),
        module=module,
        product=_product(root, module, memory_mib),
        soc=soc,
        sm=_SM.get(soc or ""),
        l4t=l4t,
        jetpack=_jetpack(root, l4t),
        power_mode=None if mode is None else mode.name,
        clocks_locked=nvpmodel.clocks_locked(root),
    )


def device_tree(root: Path) -> Path:
    """Return the folder with the device tree: ``/proc/device-tree``, or in a container ``/run/host/device-tree``.

    Container runtimes mask the former and allow no mount there, so the host's is mounted at the latter
    (docs/containers.md; ``/run/host`` is where systemd's container interface puts files of the host).
    """
    own = root / "proc/device-tree"
    mounted = root / "run/host/device-tree"
    return mounted if not (own / "compatible").exists() and (mounted / "compatible").exists() else own


def in_container(root: Path = Path("/")) -> bool:
    """Return True inside a container of Docker, Podman, systemd or LXC, by the files and variables that they leave."""
    if any((root / name).exists() for name in (".dockerenv", "run/.containerenv", "run/systemd/container")):
        return True
    return b"\0container=" in b"\0" + (sysfs.read_bytes(str(root / "proc/1/environ")) or b"")


def default_profile(device: Device) -> str | None:
    """Return the name of the profile for ``device``: host, orin (for AGX Orin), orin-nx, orin-nano or thor.

    Returns None if no profile fits; ``device.unsupported`` then gives the reason.
    """
    return None if device.family is None else _PROFILES[device.family]


def family_of(module: str) -> Family | None:
    """Return the family of a module number such as ``p3701-0005``; None for an unknown number."""
    return _family(module, None, None)


def _family(module: str | None, model: str | None, soc: str | None) -> Family | None:
    if soc in _OLD:
        return None
    if module in _MODULES:
        return _MODULES[module][0]
    board = (module or "").split("-")[0]
    if board in _BOARDS:
        return _BOARDS[board]
    lower = (model or "").lower()
    named = next((family for words, family in _MODEL_WORDS if words in lower), None)
    # Every tegra264 is a Thor; a tegra234 that names neither module nor product may be any Orin.
    return named or ("thor" if soc == "tegra264" else None)


def _soc_of(family: Family | None) -> str | None:
    if family == "thor":
        return "tegra264"
    return "tegra234" if family in {"agx-orin", "orin-nx", "orin-nano"} else None


def _unsupported(family: Family | None, soc: str | None, l4t: str | None, *, has_tree: bool) -> str | None:
    if soc in _OLD:
        return f"Jetson {_OLD[soc]} cannot run JetPack 6: {_OUT_OF_SCOPE}"
    if l4t is not None and int(l4t.split(".")[0]) < _OLDEST_L4T:
        return f"L4T {l4t}: {_OUT_OF_SCOPE}"
    if family is not None:
        return None
    if not has_tree:
        return (
            "the device tree cannot be read, so the module is unknown; for a container, docker run "
            "-v /sys/firmware/devicetree/base:/run/host/device-tree:ro"
        )
    return "edge knows neither the module number nor the model in the device tree"


def _product(root: Path, module: str | None, memory_mib: int | None) -> str | None:
    """Return the module's name. The memory size outranks the module number, which some boards get wrong."""
    memory_gib = None if memory_mib is None else memory_mib / 1024
    if module is None:
        return None
    if module.startswith("p3834"):
        tnspec = _text(root / "etc/nv_boot_control.conf") or ""
        if "t4000" in tnspec.lower():
            return "Thor T4000"
        if memory_gib is not None:
            return "Thor T5000" if memory_gib >= 96 else "Thor T4000"
    if module == "p3701-0000" and memory_gib is not None:
        return f"AGX Orin {64 if memory_gib >= 56 else 32}GB"
    return _MODULES[module][1] if module in _MODULES else None


def _l4t(root: Path, *, is_tegra: bool) -> str | None:
    """Return the version of Jetson Linux, such as ``36.4.4``, from its release file or else the package database."""
    match = re.search(r"^# R(\d{1,4}) \(release\), REVISION: ([\d.]+)", _text(root / "etc/nv_tegra_release") or "")
    if match:
        return f"{match[1]}.{match[2].strip('.')}"
    # On a host the package database is large and does not list this package.
    version = _package_version(root, "nvidia-l4t-core") if is_tegra else None
    match = re.match(r"\d{1,4}\.\d+\.\d+", version or "")
    return match[0] if match else None


def _jetpack(root: Path, l4t: str | None) -> str | None:
    if l4t is None:
        return None
    if l4t.startswith("38.2."):
        return "7.0"
    version = _JETPACK.get(l4t) or _package_version(root, "nvidia-jetpack")
    return version.split("+")[0].split("-")[0] if version else None


def _package_version(root: Path, package: str) -> str | None:
    """Return the installed version of a Debian package without running dpkg."""
    for block in (_text(root / "var/lib/dpkg/status") or "").split("\n\n"):
        if block.startswith(f"Package: {package}\n") and re.search(r"(?m)^Status: .* installed$", block):
            match = re.search(r"(?m)^Version: (\S+)", block)
            return match[1] if match else None
    return None


def _memory_mib(root: Path) -> int | None:
    match = re.search(r"(?m)^MemTotal:\s+(\d{1,15}) kB", _text(root / "proc/meminfo") or "")
    return int(match[1]) // 1024 if match else None


def _cpu_name(cpuinfo: str) -> str | None:
    named = re.search(r"(?m)^model name\s*:\s*(.+)$", cpuinfo)
    parts = dict.fromkeys(re.findall(r"(?m)^CPU part\s*:\s*(0x[0-9a-f]+)", cpuinfo))
    if parts:
        # Jetson's "model name" is only "ARMv8 Processor rev 1": the part number is more specific.
        return ", ".join(_ARM_PARTS.get(part, f"ARM part {part}") for part in parts)
    return named[1].strip() if named else None


def _machine(root: Path, cpuinfo: str) -> str | None:
    named = _text(root / "proc/sys/kernel/arch")  # since Linux 6.1
    if named:
        return named
    if re.search(r"(?m)^CPU architecture\s*:\s*(8|AArch64)", cpuinfo):
        return "aarch64"
    return "x86_64" if re.search(r"(?m)^flags\s*:.*\blm\b", cpuinfo) else None


def _text(path: Path) -> str | None:
    """Return the text of a small file; the NULs of the device tree become line ends."""
    try:
        return path.read_bytes().decode(errors="replace").strip("\0 \t\r\n").replace("\0", "\n")
    except OSError:
        return None

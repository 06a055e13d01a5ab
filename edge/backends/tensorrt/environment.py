"""The environment that engines and timing caches depend on: device, GPU, CUDA, driver. Read from files.

Everything is under a root folder, so a test gives its own; what cannot be read is None. The compute capability of a
discrete GPU is in no file: the CUDA driver says it (:mod:`edge.backends.cuda.capability`), and it is asked only
where a
GPU is listed.
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from edge.system import Device, identify

_PACKAGE = re.compile(r"(?m)^Package: libnvinfer\d+\n(?:.+\n)*?Version: (\S+)")


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """The machine around TensorRT. ``package`` is the full version of JetPack's or Debian's libnvinfer.

    ``gpu`` is the name of the first discrete GPU, None on a Jetson, whose module names it; ``sm`` its compute
    capability, such as ``8.7``.
    """

    device: Device
    gpu: str | None = None
    sm: str | None = None
    cuda: str | None = None
    driver: str | None = None
    package: str | None = None


def look(root: Path = Path("/"), *, machine: Device | None = None) -> Environment:
    """The environment of the machine whose ``/proc``, ``/usr/local/cuda`` and package database are under ``root``."""
    found = identify(root) if machine is None else machine
    gpu = None if found.is_jetson else gpu_name(root)
    return Environment(
        device=found,
        gpu=gpu,
        sm=found.sm or (_compute_capability() if gpu is not None and root == Path("/") else None),
        cuda=_cuda(root),
        driver=_driver(root),
        package=_package(root),
    )


def gpu_name(root: Path = Path("/")) -> str | None:
    """Name of the first discrete GPU, as NVIDIA's kernel module lists it."""
    for folder in sorted((root / "proc/driver/nvidia/gpus").glob("*")):
        found = re.search(r"(?m)^Model:\s*(.+?)\s*$", _text(folder / "information"))
        if found:
            return found[1]
    return None


def _compute_capability() -> str | None:
    from edge.backends.cuda import capability

    return capability.compute_capability()


def _cuda(root: Path) -> str | None:
    """Version of the CUDA toolkit; its file has one entry per component since CUDA 11."""
    text = _text(root / "usr/local/cuda/version.json")
    found = re.search(r'"cuda"\s*:\s*\{[^}]*"version"\s*:\s*"([\d.]+)"', text)
    if found:
        return found[1]
    libraries = sorted((root / "usr/local/cuda/lib64").glob("libcudart.so.*.*"))
    return libraries[-1].name.removeprefix("libcudart.so.") if libraries else None


def _driver(root: Path) -> str | None:
    found = re.search(r"Kernel Module.*?\s(\d+\.\d+(?:\.\d+)?)\s", _text(root / "proc/driver/nvidia/version"))
    return found[1] if found else None


def _package(root: Path) -> str | None:
    found = _PACKAGE.search(_text(root / "var/lib/dpkg/status"))
    return found[1] if found else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


MIB = 1 << 20
# TensorRT, CUDA and its kernels before the first tactic runs.
_BASE_MIB = 1200
_LEFT_FOR_OTHERS_MIB = 256
_SMALLEST_MIB = 128
_SWAP_HINT = "add a swap file on disk: edge doctor shows how"


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Memory according to ``/proc``, in MiB; None where it cannot be read. ``swap_mib``: free swap, without zram."""

    total_mib: int | None = None
    available_mib: int | None = None
    swap_mib: int = 0
    zram_mib: int = 0


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Pool limits in MiB; None leaves TensorRT's default."""

    workspace_mib: int | None
    tactic_mib: int | None


def read(root: Path = Path("/")) -> Memory:
    """The memory of the machine whose ``/proc`` is under ``root``."""
    meminfo = _file_text(root / "proc/meminfo")
    disk = zram = 0
    for line in _file_text(root / "proc/swaps").splitlines()[1:]:
        fields = line.split()
        # Filename, Type, Size, Used, Priority; sizes in KiB [Linux, mm/swapfile.c].
        if len(fields) >= 4 and fields[2].isdigit() and fields[3].isdigit():
            free = (int(fields[2]) - int(fields[3])) // 1024
            if "zram" in fields[0]:
                zram += free
            else:
                disk += free
    return Memory(
        total_mib=_kib(meminfo, "MemTotal"),
        available_mib=_kib(meminfo, "MemAvailable"),
        swap_mib=disk,
        zram_mib=zram,
    )


def limits(memory: Memory, *, workspace_mib: int | None, shared: bool) -> Limits:
    """Limits for a build: the profile's workspace, and on shared memory what is free now.

    A discrete GPU keeps TensorRT's defaults: its memory is its own, and no process is killed for it.
    """
    if not shared or memory.available_mib is None:
        return Limits(workspace_mib=workspace_mib, tactic_mib=None)
    free = max(memory.available_mib - _LEFT_FOR_OTHERS_MIB, _SMALLEST_MIB)
    workspace = workspace_mib if workspace_mib is not None else max(free // 4, _SMALLEST_MIB)
    # Not below the workspace, which is taken from the same memory and would then be the useless larger number.
    return Limits(workspace_mib=workspace, tactic_mib=max(free * 3 // 4, workspace))


def warnings(memory: Memory, chosen: Limits, *, model_bytes: int, shared: bool) -> list[str]:
    """The reason why the out-of-memory killer may end this build; empty when it has no reason to."""
    if not shared or memory.available_mib is None:
        return []
    # The parsed weights, their packed form, and the one being timed.
    wanted = _BASE_MIB + (chosen.workspace_mib or 0) + 3 * (model_bytes // MIB)
    room = memory.available_mib + memory.swap_mib
    if room >= wanted:
        return []
    free = f"{memory.available_mib} MiB of memory are free"
    text = f"{free} and {memory.swap_mib} MiB of swap on disk; a build like this takes about {wanted} MiB"
    if memory.zram_mib and not memory.swap_mib:
        text = f"{free}, and swap is only zram, which is memory itself; a build like this takes about {wanted} MiB"
    return [f"{text} and may be killed: close other programs, set build.workspace_mib lower, or {_SWAP_HINT}"]


def peak_rss_mib() -> int | None:
    """The most memory that this process has held at once, in MiB, or None where the kernel does not say.

    VmHWM begins again with the program that runs, unlike getrusage, which still knows the parent's. On a Jetson what
    CUDA takes of the shared memory is not part of it.
    """
    return _kib(_file_text(Path("/proc/self/status")), "VmHWM")


def _kib(meminfo: str, name: str) -> int | None:
    match = re.search(rf"(?m)^{name}:\s+(\d{{1,15}}) kB", meminfo)
    return int(match[1]) // 1024 if match else None


def _file_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""

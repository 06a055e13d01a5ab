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

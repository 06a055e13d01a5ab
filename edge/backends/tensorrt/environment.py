"""Detect the environment of engines and timing caches from files: device, GPU, CUDA, driver.

All paths are below a root folder, so that tests can use their own. An unreadable value is None. The compute capability
of a discrete GPU is in no file: the CUDA driver says it (:mod:`edge.backends.cuda.driver`), and it is asked only
where a
GPU is listed.
"""

from __future__ import annotations

import functools
import re
import sys
from pathlib import Path
from typing import Any

import msgspec

from edge.errors import DEPENDENCIES, MissingDependencyError, require
from edge.quantization import AlgorithmName, TrtVersion
from edge.system import Device, identify, sysfs

INSTALL = (
    "on a Jetson: sudo apt install python3-libnvinfer, and a virtual environment with --system-site-packages; "
    f"on an RTX desktop: {DEPENDENCIES['tensorrt_rtx']}"
)
# NVIDIA's classes by edge's name of the algorithm.
CALIBRATORS: dict[AlgorithmName, str] = {
    "entropy2": "IInt8EntropyCalibrator2",
    "minmax": "IInt8MinMaxCalibrator",
    "entropy": "IInt8EntropyCalibrator",
    "legacy": "IInt8LegacyCalibrator",
}
_PRECISION_FLAGS = ("FP16", "INT8")


class Caps(msgspec.Struct, frozen=True, kw_only=True):
    """Capabilities of one binding. A true field means that the API exists, not that this machine's GPU has the unit.

    ``module`` is the import name; ``calibrators`` are those that can be subclassed. ``precision_flags``: FP16 and INT8
    are build flags; without them every network is strongly typed and precision lives in the ONNX graph.
    ``strongly_typed``: a network can be asked to be so. ``explicit_batch``: the creation flag exists (needed on 8.6,
    ignored on 10). ``timing_cache`` is false where a cache has no effect (RTX); ``timing_cache_keys``: it tells the
    keys of its entries. ``plan_check``: a plan can be asked whether it fits before it is loaded. ``parser_names``:
    parser errors name node and operator.
    """

    module: str
    version: str
    rtx: bool
    calibrators: tuple[AlgorithmName, ...]
    precision_flags: bool
    strongly_typed: bool
    explicit_batch: bool
    timing_cache: bool
    timing_cache_keys: bool
    editable_timing_cache: bool
    error_on_timing_cache_miss: bool
    progress_monitor: bool
    dla: bool
    dla_parsing: bool
    weight_streaming: bool
    version_compatible: bool
    hardware_compatibility: tuple[str, ...]
    compute_capabilities: tuple[str, ...]
    plan_check: bool
    parser_names: bool
    tactic_dram: bool

    @property
    def strongly_typed_only(self) -> bool:
        """True if only the ONNX graph can set the precision."""
        return not self.precision_flags

    @property
    def implicit_int8(self) -> bool:
        """True if TensorRT itself can read a calibration table."""
        return self.precision_flags and "entropy2" in self.calibrators

    @property
    def title(self) -> str:
        """Product and version for messages."""
        return f"TensorRT{' for RTX' if self.rtx else ''} {self.version}"

    @property
    def table_version(self) -> TrtVersion | None:
        """The version for the header of this TensorRT's calibration tables; None if it reads none."""
        numbers = re.match(r"\d+\.\d+\.\d+", self.version)
        return TrtVersion.parse(numbers[0]) if numbers and self.implicit_int8 else None


def load(*, rtx: bool | None = None) -> Caps:
    """Import the binding and determine its capabilities.

    Args:
        rtx: True for TensorRT for RTX only, False for TensorRT only, None for the first that is installed.

    Raises:
        MissingDependencyError: none is installed, its import fails (driver or library missing), or it is older than
        8.6.
    """
    finders = {"tensorrt": _tensorrt, "tensorrt_rtx": _tensorrt_rtx, "tensorrt_rtx_bindings": _tensorrt_rtx_bindings}
    wanted = [name for name in finders if rtx is None or rtx == name.startswith("tensorrt_rtx")]
    for name in wanted:
        try:
            return of(finders[name](), name)
        except MissingDependencyError as exc:  # noqa: PERF203 - three at most
            cause = exc.__cause__
            # Only "it is not there" may send us to the next one: a broken installation must be seen.
            if not (isinstance(cause, ModuleNotFoundError) and cause.name == name):
                raise
    raise MissingDependencyError(f"TensorRT is not installed (looked for {', '.join(wanted)})", hint=INSTALL)


def binding_module(caps: Caps) -> Any:  # noqa: ANN401
    """Return the binding behind ``caps``, which :func:`load` has already imported."""
    return sys.modules[caps.module]


@functools.lru_cache(maxsize=8)
def of(binding: Any, name: str) -> Caps:  # noqa: ANN401
    """Determine the capabilities of ``binding``, imported as ``name``.

    Raises:
        MissingDependencyError: the module is older than TensorRT 8.6, or not TensorRT.
    """
    version = str(getattr(binding, "__version__", ""))
    if not hasattr(getattr(binding, "IBuilderConfig", None), "builder_optimization_level"):
        what = f"{name} {version or '(no version)'} is not TensorRT 8.6 or newer"
        raise MissingDependencyError(what, hint=f"edge works with TensorRT 8.6 to 11; {INSTALL}")
    flags = _members(binding, "BuilderFlag")
    creation = _members(binding, "NetworkDefinitionCreationFlag")
    is_rtx = name.startswith("tensorrt_rtx")
    return Caps(
        module=name,
        version=version,
        rtx=is_rtx,
        calibrators=tuple(key for key, kind in CALIBRATORS.items() if hasattr(binding, kind)),
        precision_flags=all(flag in flags for flag in _PRECISION_FLAGS),
        strongly_typed="STRONGLY_TYPED" in creation,
        explicit_batch="EXPLICIT_BATCH" in creation,
        # It is there in RTX and does nothing (deprecated since RTX 1.2).
        timing_cache=hasattr(binding, "ITimingCache") and not is_rtx,
        timing_cache_keys=hasattr(getattr(binding, "ITimingCache", None), "queryKeys") and not is_rtx,
        editable_timing_cache="EDITABLE_TIMING_CACHE" in flags and not is_rtx,
        error_on_timing_cache_miss="ERROR_ON_TIMING_CACHE_MISS" in flags and not is_rtx,
        progress_monitor=hasattr(binding.IBuilderConfig, "progress_monitor"),
        # Only the builder knows how many cores there are: num_DLA_cores is 0 on most machines.
        dla=hasattr(binding.Builder, "num_DLA_cores") and not is_rtx,
        # The parser turns an ONNX node into the layer that a DLA needs: 10.16 and later.
        dla_parsing="ADJUST_FOR_DLA" in _members(binding, "OnnxParserFlag") and not is_rtx,
        weight_streaming="WEIGHT_STREAMING" in flags,
        version_compatible="VERSION_COMPATIBLE" in flags,
        hardware_compatibility=tuple(n for n in _members(binding, "HardwareCompatibilityLevel") if n != "NONE"),
        compute_capabilities=tuple(n for n in _members(binding, "ComputeCapability") if n.startswith("SM")),
        plan_check=hasattr(binding.Runtime, "get_engine_validity"),
        parser_names=hasattr(binding.ParserError, "node_name"),
        tactic_dram="TACTIC_DRAM" in _members(binding, "MemoryPoolType"),
    )


def _members(binding: Any, enumeration: str) -> list[str]:  # noqa: ANN401
    """Return the names of an enumeration's values, sorted; empty if the binding lacks the enumeration."""
    kind = getattr(binding, enumeration, None)
    return sorted(getattr(kind, "__members__", {}))


def _tensorrt() -> Any:  # noqa: ANN401
    return require("tensorrt")


def _tensorrt_rtx() -> Any:  # noqa: ANN401
    return require("tensorrt_rtx")


def _tensorrt_rtx_bindings() -> Any:  # noqa: ANN401
    return require("tensorrt_rtx_bindings")


_PACKAGE = re.compile(r"(?m)^Package: libnvinfer\d+\n(?:.+\n)*?Version: (\S+)")


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """The software and hardware around TensorRT. ``package`` is the full version of the Debian package libnvinfer.

    ``gpu`` is the name of CUDA's first GPU; None on a Jetson, where the module identifies it. ``sm`` is its
    compute capability, such as ``8.7``; ``multiprocessors`` is the number of enabled ones.
    """

    device: Device
    gpu: str | None = None
    sm: str | None = None
    multiprocessors: int | None = None
    cuda: str | None = None
    driver: str | None = None
    package: str | None = None


def look(root: Path = Path("/"), *, machine: Device | None = None) -> Environment:
    """Detect the environment of the machine whose ``/proc``, CUDA and package database are below ``root``."""
    found = identify(root) if machine is None else machine
    gpu = None if found.is_jetson else gpu_name(root)
    has_gpu = (gpu is not None or found.is_jetson) and root == Path("/")
    properties = None
    if has_gpu:
        from edge.backends.cuda import gpu_properties

        properties = gpu_properties()
    return Environment(
        device=found,
        # Of several GPUs, the kernel module's first need not be CUDA's, on which engines are built and run.
        gpu=gpu if gpu is None or properties is None else properties.name,
        sm=found.sm or (None if properties is None else properties.compute_capability),
        multiprocessors=None if properties is None else properties.multiprocessors,
        cuda=_cuda(root),
        driver=_driver(root),
        package=_package(root),
    )


def gpu_name(root: Path = Path("/")) -> str | None:
    """Return the name of the first discrete GPU according to NVIDIA's kernel module."""
    for folder in sorted((root / "proc/driver/nvidia/gpus").glob("*")):
        found = re.search(r"(?m)^Model:\s*(.+?)\s*$", _text(folder / "information"))
        if found:
            return found[1]
    return None


def _cuda(root: Path) -> str | None:
    """Return the version of the CUDA toolkit; its file has one entry per component since CUDA 11."""
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
    """Memory according to ``/proc``, in MiB; None if unknown. ``swap_mib``: free swap, without zram."""

    total_mib: int | None = None
    available_mib: int | None = None
    swap_mib: int = 0
    zram_mib: int = 0


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Pool limits in MiB; None leaves TensorRT's default."""

    workspace_mib: int | None
    tactic_mib: int | None


def read(root: Path = Path("/")) -> Memory:
    """Read the memory of the machine whose ``/proc`` is below ``root``."""
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
        total_mib=_mib(meminfo, "MemTotal"),
        available_mib=_mib(meminfo, "MemAvailable"),
        swap_mib=disk,
        zram_mib=zram,
    )


def limits(memory: Memory, *, workspace_mib: int | None, shared: bool) -> Limits:
    """Return limits for a build: the profile's workspace, and on shared memory the currently free amount.

    A discrete GPU has TensorRT's defaults: its memory is separate, so the out-of-memory killer is not involved.
    """
    if not shared or memory.available_mib is None:
        return Limits(workspace_mib=workspace_mib, tactic_mib=None)
    free = max(memory.available_mib - _LEFT_FOR_OTHERS_MIB, _SMALLEST_MIB)
    workspace = workspace_mib if workspace_mib is not None else max(free // 4, _SMALLEST_MIB)
    # Not below the workspace, which is taken from the same memory and would then be the useless larger number.
    return Limits(workspace_mib=workspace, tactic_mib=max(free * 3 // 4, workspace))


def warnings(memory: Memory, chosen: Limits, *, model_bytes: int, shared: bool) -> list[str]:
    """Return the reason why the out-of-memory killer may end this build; empty if that is unlikely."""
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
    """Return the peak memory of this process in MiB, or None if unknown.

    VmHWM starts at the exec of the program; getrusage would include the parent. On a Jetson, the shared memory that
    CUDA uses is not included.
    """
    return _mib(_file_text(Path("/proc/self/status")), "VmHWM")


def _mib(text: str, name: str) -> int | None:
    found = sysfs.proc_bytes(text, name)
    return None if found is None else found // MIB


def _file_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""

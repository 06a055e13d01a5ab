"""Capabilities of the installed TensorRT binding, worked out once. The only module that imports ``tensorrt``.

Everybody else branches on :class:`Caps` and never on a version. An attribute that a binding lacks is looked for here,
so no call elsewhere is wrapped in ``except AttributeError``.

TensorRT for RTX is another product with almost the same API: its wheels bring ``tensorrt_rtx_bindings``, its own
installer ``tensorrt_rtx``.
"""

from __future__ import annotations

import functools
import re
import sys
from typing import Any

import msgspec

from edge.errors import DEPENDENCIES, MissingDependencyError, require
from edge.quantization import AlgorithmName, TrtVersion

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
    """Capabilities of one binding. A true field says that the API is there, not that this machine's GPU has the unit.

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
    weight_streaming: bool
    version_compatible: bool
    hardware_compatibility: tuple[str, ...]
    compute_capabilities: tuple[str, ...]
    plan_check: bool
    parser_names: bool
    tactic_dram: bool

    @property
    def strongly_typed_only(self) -> bool:
        """True if precision can be said in no other way than in the ONNX graph."""
        return not self.precision_flags

    @property
    def implicit_int8(self) -> bool:
        """True if a calibration table can be handed to TensorRT itself."""
        return self.precision_flags and "entropy2" in self.calibrators

    @property
    def title(self) -> str:
        """Product and version for messages."""
        return f"TensorRT{' for RTX' if self.rtx else ''} {self.version}"

    @property
    def table_version(self) -> TrtVersion | None:
        """The version that is in the header of this TensorRT's calibration tables; None where it reads none."""
        numbers = re.match(r"\d+\.\d+\.\d+", self.version)
        return TrtVersion.parse(numbers[0]) if numbers and self.implicit_int8 else None


def load(*, rtx: bool | None = None) -> Caps:
    """Import the binding and say what it offers.

    Args:
        rtx: True for TensorRT for RTX only, False for TensorRT only, None for whichever is there, TensorRT first.

    Raises:
        MissingDependencyError: there is none, it does not import (driver or library missing), or it is older than 8.6.
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
    raise MissingDependencyError(f"no TensorRT is installed (looked for {', '.join(wanted)})", hint=INSTALL)


def binding_module(caps: Caps) -> Any:  # noqa: ANN401
    """The binding behind ``caps``. It was imported by :func:`load`, so this only looks it up."""
    return sys.modules[caps.module]


@functools.lru_cache(maxsize=8)
def of(binding: Any, name: str) -> Caps:  # noqa: ANN401
    """The capabilities of ``binding``, imported as ``name``.

    Raises:
        MissingDependencyError: older than TensorRT 8.6, or not TensorRT at all.
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
        weight_streaming="WEIGHT_STREAMING" in flags,
        version_compatible="VERSION_COMPATIBLE" in flags,
        hardware_compatibility=tuple(n for n in _members(binding, "HardwareCompatibilityLevel") if n != "NONE"),
        compute_capabilities=tuple(n for n in _members(binding, "ComputeCapability") if n.startswith("SM")),
        plan_check=hasattr(binding.Runtime, "get_engine_validity"),
        parser_names=hasattr(binding.ParserError, "node_name"),
        tactic_dram="TACTIC_DRAM" in _members(binding, "MemoryPoolType"),
    )


def _members(binding: Any, enumeration: str) -> list[str]:  # noqa: ANN401
    """Names of an enumeration's values, sorted; empty where the binding has no such enumeration."""
    kind = getattr(binding, enumeration, None)
    return sorted(getattr(kind, "__members__", {}))


def _tensorrt() -> Any:  # noqa: ANN401
    return require("tensorrt")


def _tensorrt_rtx() -> Any:  # noqa: ANN401
    return require("tensorrt_rtx")


def _tensorrt_rtx_bindings() -> Any:  # noqa: ANN401
    return require("tensorrt_rtx_bindings")

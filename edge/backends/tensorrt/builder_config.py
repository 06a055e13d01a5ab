"""The builder's configuration: flags, limits, batch range, DLA, compatibility. One function per subject."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from edge.backends.interface import BuildRequest
from edge.backends.tensorrt import log_watch
from edge.backends.tensorrt.environment import MIB, Caps, Limits
from edge.backends.tensorrt.int8_route import Decision
from edge.backends.tensorrt.log_watch import BuildWatch
from edge.errors import DeviceError, ModelError, ProfileError

_WEIGHTED = frozenset({"CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "FULLY_CONNECTED"})


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """Options of a build besides the profile.

    ``shared_memory``: CPU and GPU share one memory (a Jetson). ``root``: where ``/proc`` is read.
    """

    shared_memory: bool = False
    root: Path = Path("/")


class BuilderSetup(msgspec.Struct, frozen=True, kw_only=True):
    """The objects of one build that its configuration needs; ``scaled`` names the tensors with a usable scale.
    ``watch`` receives TensorRT's log.

    ``calibration_batch`` is the size of the batches that a calibrator brings, None where it brings none.
    ``float_layers`` names the ONNX nodes that the recipe keeps in float, with the tensor that each computes.
    """

    binding: Any
    caps: Caps
    request: BuildRequest
    decision: Decision
    builder: Any
    network: Any
    config: Any
    options: Options
    scaled: frozenset[str] = frozenset()
    float_layers: Mapping[str, str] = {}
    calibration_batch: int | None = None
    watch: BuildWatch | None = None


def creation_flags(binding: Any, caps: Caps) -> int:  # noqa: ANN401
    """Return the flags for ``create_network``: explicit batch if required, strong typing if it is the only mode."""
    kinds = binding.NetworkDefinitionCreationFlag
    flags = 0
    if caps.explicit_batch:
        flags |= 1 << int(kinds.EXPLICIT_BATCH)
    if caps.strongly_typed_only:
        flags |= 1 << int(kinds.STRONGLY_TYPED)
    return flags


def check_units(builder: Any, request: BuildRequest, caps: Caps) -> None:  # noqa: ANN401
    """Check that this machine has the units of the profile; nothing is built in another precision instead.

    Raises:
        DeviceError: the DLA core does not exist, or the GPU lacks FP16 or INT8.
    """
    core = request.profile.build.dla_core
    if core is not None and core >= builder.num_DLA_cores:
        has = f"{builder.num_DLA_cores} DLA cores" if builder.num_DLA_cores else "no DLA that TensorRT can use"
        raise DeviceError(
            f"build.dla_core: {core}, but this machine has {has}",
            hint="leave dla_core out; TensorRT 10.8 to 11.3 use no DLA, and 11.4.1 uses only that of an AGX Orin",
        )
    if caps.precision_flags and request.precision != "fp32":
        # 10.x still answers; 11 no longer asks.
        fast = builder.platform_has_fast_fp16 if request.precision == "fp16" else builder.platform_has_fast_int8
        if not fast:
            raise DeviceError(f"this GPU has no fast {request.precision}", hint="--precision fp32")


class DlaLayer(msgspec.Struct, frozen=True, kw_only=True):
    """A layer of the network, the unit that runs it, and TensorRT's reason if that is not the DLA."""

    name: str
    kind: str
    unit: Literal["DLA", "GPU"]
    why: str | None = None


class Accelerator(msgspec.Struct, frozen=True, kw_only=True):
    """The part of the network that runs on the DLA: weighted layers in the requested precision; notes for the user."""

    weighted: int = 0
    notes: list[str] = []
    layers: list[DlaLayer] = []


def apply(setup: BuilderSetup, *, limits: Limits, calibrator: Any, before_fusion: bool) -> Accelerator:  # noqa: ANN401
    """Apply all settings to ``setup.config``.

    ``before_fusion``: the calibrator works on fused layers by default (Entropy 1 and Legacy); its
    table would be invalid on any other device.

    Raises:
        DeviceError, ModelError, ProfileError: this TensorRT or network does not support a requested setting.
    """
    config, binding, build = setup.config, setup.binding, setup.request.profile.build
    batch = setup.request.profile.input.batch
    config.profiling_verbosity = binding.ProfilingVerbosity.DETAILED
    if build.optimization_level is not None:
        config.builder_optimization_level = build.optimization_level
    _limit_memory(setup, limits)
    _choose_precision(setup)
    profile = _batch_range(setup)
    if profile is not None:
        config.add_optimization_profile(profile)
    # It is asked by the sizes of the optimization profile, so that comes first.
    accelerator = _use_dla(setup)
    if calibrator is not None:
        config.int8_calibrator = calibrator
        if profile is not None:
            # Without one TensorRT uses profile 0 and warns; with one, its opt replaces min and max.
            config.set_calibration_profile(_batch_range(setup, only=setup.calibration_batch or batch.opt))
        if before_fusion:
            config.set_quantization_flag(binding.QuantizationFlag.CALIBRATE_BEFORE_FUSION)
    _make_compatible(setup)
    return accelerator


def refuse_misses(setup: BuilderSetup) -> None:
    """Make the build fail on a kernel that is not in the timing cache.

    Raises:
        DeviceError: this TensorRT has no such flag.
    """
    if not setup.caps.error_on_timing_cache_miss:
        why = "timing caches have no effect on it" if not setup.caps.timing_cache else "it came with TensorRT 10"
        raise DeviceError(
            f"--error-on-miss: {setup.caps.title} cannot report what a timing cache lacks ({why})",
            hint="leave --error-on-miss out; the manifest says how many entries a build added",
        )
    setup.config.set_flag(setup.binding.BuilderFlag.ERROR_ON_TIMING_CACHE_MISS)


def set_flags(config: Any, binding: Any) -> list[str]:  # noqa: ANN401
    """Return the names of the set builder flags, including TensorRT's defaults."""
    members = binding.BuilderFlag.__members__
    return sorted(name for name, flag in members.items() if config.get_flag(flag))


def _limit_memory(setup: BuilderSetup, limits: Limits) -> None:
    pools = setup.binding.MemoryPoolType
    if limits.workspace_mib is not None:
        setup.config.set_memory_pool_limit(pools.WORKSPACE, limits.workspace_mib * MIB)
    if limits.tactic_mib is not None and setup.caps.tactic_dram:
        setup.config.set_memory_pool_limit(pools.TACTIC_DRAM, limits.tactic_mib * MIB)


def _choose_precision(setup: BuilderSetup) -> None:
    """Set the precision flags. FP16 is allowed next to INT8, so that a layer without INT8 need not run in FP32.

    TF32 is cleared for FP32 only, where 10 bits of mantissa are not what was asked for. A strict profile asks for INT8
    in every weighted layer (PREFER: TensorRT may still refuse, and the manifest counts); otherwise TensorRT takes
    whatever is fastest, as it likes. Layers that the recipe keeps in float are asked for in FP16 in any case.
    """
    config, flags = setup.config, setup.binding.BuilderFlag
    if setup.request.precision == "fp32":
        config.clear_flag(flags.TF32)
    if setup.caps.strongly_typed_only or setup.request.precision == "fp32":
        return
    config.set_flag(flags.FP16)
    if setup.request.precision != "int8":
        return
    config.set_flag(flags.INT8)
    strict = setup.request.profile.build.strict
    if setup.decision.route != "implicit" or not (strict or setup.float_layers):
        return
    config.set_flag(flags.PREFER_PRECISION_CONSTRAINTS)
    layers = [setup.network.get_layer(index) for index in range(setup.network.num_layers)]
    floats = _layers_of(layers, setup.float_layers)
    for index, layer in enumerate(layers):
        if index in floats:
            layer.precision = setup.binding.DataType.HALF
        elif strict and layer.type.name in _WEIGHTED:
            layer.precision = setup.binding.DataType.INT8


def _layers_of(layers: Sequence[Any], nodes: Mapping[str, str]) -> set[int]:
    """Positions of the weighted layers that the parser made of ONNX ``nodes`` (names, with the tensor of each).

    It names a layer after its node; but the matrix product of a Gemm has no name in TensorRT 8.6, and only the sum
    behind it makes the tensor that the ONNX file knows.
    """
    makers = {layer.get_output(number).name: index
              for index, layer in enumerate(layers) for number in range(layer.num_outputs)}  # fmt: skip
    found = {index for index, layer in enumerate(layers) if layer.type.name in _WEIGHTED and layer.name in nodes}
    named = {layers[index].name for index in found}
    for node, tensor in nodes.items():
        index = None if node in named else makers.get(tensor)
        while index is not None and layers[index].type.name not in _WEIGHTED:
            layer = layers[index]
            given = (layer.get_input(number) for number in range(layer.num_inputs))
            behind = (makers.get(item.name) for item in given if item is not None)
            # Past sums and reshapes of the same node; constants have no inputs.
            index = next((other for other in behind if other is not None and layers[other].num_inputs), None)
        if index is not None:
            found.add(index)
    return found


def _use_dla(setup: BuilderSetup) -> Accelerator:
    build, config, binding = setup.request.profile.build, setup.config, setup.binding
    if build.dla_core is None:
        return Accelerator()
    batch = setup.request.profile.input.batch
    if not batch.min == batch.opt == batch.max:
        raise ProfileError(
            f"a DLA supports one batch size, but the profile requests {batch.min} to {batch.max}",
            where=setup.request.profile.name,
            hint=f"input.batch: {{min: {batch.opt}, opt: {batch.opt}, max: {batch.opt}}}",
        )
    config.default_device_type = binding.DeviceType.DLA
    config.DLA_core = build.dla_core
    if build.gpu_fallback:
        config.set_flag(binding.BuilderFlag.GPU_FALLBACK)
    layers, taken = _asked_of_dla(setup)
    # The DLA has no FP32: in an FP16 network its layers run in FP16, and in an INT8 network those with scales.
    is_fp16 = setup.request.precision == "fp16"
    weighted = sum(layer.type.name in _WEIGHTED and (is_fp16 or _is_scaled(layer, setup.scaled)) for layer in taken)
    notes = []
    if not setup.caps.implicit_int8 and not is_fp16:
        notes.append(f"NVIDIA documents FP16 for the DLA of {setup.caps.title}; INT8 there is unproven")
    refused = [layer for layer in layers if layer.unit == "GPU"]
    if not refused:
        return Accelerator(weighted=weighted, notes=notes, layers=layers)
    text = f"{len(refused)} of {len(layers)} layers of the network cannot run on the DLA: "
    if build.gpu_fallback:
        text += f"{', '.join(layer.name for layer in refused[:3])}; they go to the GPU (edge build --dla-report)"
        return Accelerator(weighted=weighted, notes=[*notes, text], layers=layers)
    text += ", ".join(f"{layer.name} ({layer.kind}{f': {layer.why}' if layer.why else ''})" for layer in refused[:12])
    raise DeviceError(text, where=setup.request.model, hint="build.gpu_fallback: true")


def _asked_of_dla(setup: BuilderSetup) -> tuple[list[DlaLayer], list[Any]]:
    """Ask TensorRT for every layer but constants if the DLA can run it; return all of them, and those it can run."""
    found, taken = [], []
    for index in range(setup.network.num_layers):
        layer = setup.network.get_layer(index)
        if layer.type.name == "CONSTANT":
            # Part of the layer that reads it: no unit runs it.
            continue
        if setup.watch is not None:
            setup.watch.recent.clear()
        can = bool(setup.config.can_run_on_DLA(layer))
        lines = [] if setup.watch is None or can else [line.text for line in setup.watch.recent]
        why = log_watch.one_line(lines[-1]) if lines else None
        found.append(DlaLayer(name=layer.name, kind=layer.type.name, unit="DLA" if can else "GPU", why=why))
        if can:
            taken.append(layer)
    return found, taken


def _is_scaled(layer: Any, scaled: frozenset[str]) -> bool:  # noqa: ANN401
    """Return True if every tensor of a layer has a scale: otherwise a DLA runs it in FP16, or not at all."""
    inputs = [layer.get_input(index) for index in range(layer.num_inputs)]
    outputs = [layer.get_output(index) for index in range(layer.num_outputs)]
    return all(tensor.name in scaled for tensor in (*inputs, *outputs) if tensor is not None)


def _batch_range(setup: BuilderSetup, *, only: int | None = None) -> Any:  # noqa: ANN401
    """Make the optimization profile of a network with a dynamic input; None for a fixed one.

    Raises:
        ModelError: an axis besides batch, height and width is dynamic.
    """
    given = setup.network.get_input(0)
    shape = tuple(given.shape)
    if all(size >= 0 for size in shape):
        return None
    wanted = setup.request.profile.input
    if len(shape) != 4 or shape[1] < 0:
        raise ModelError(
            f"the input {given.name} has the shape {list(shape)}: only batch, height and width may be dynamic",
            where=setup.request.model,
            hint="export it as N×3×H×W",
        )
    sizes = (only,) * 3 if only is not None else (wanted.batch.min, wanted.batch.opt, wanted.batch.max)
    shapes = []
    for size in sizes:
        asked = (size, shape[1], wanted.height, wanted.width)
        shapes.append(tuple(new if old < 0 else old for old, new in zip(shape, asked, strict=True)))
    profile = setup.builder.create_optimization_profile()
    profile.set_shape(given.name, *shapes)
    return profile


def _make_compatible(setup: BuilderSetup) -> None:
    """Apply the profile's settings for other machines: versions, GPU generations, compute capabilities."""
    build, caps, config, binding = setup.request.profile.build, setup.caps, setup.config, setup.binding
    where = setup.request.profile.name
    if build.version_compatible:
        if not caps.version_compatible:
            raise ProfileError(
                f"build.version_compatible: {caps.title} cannot build version-compatible engines", where=where
            )
        config.set_flag(binding.BuilderFlag.VERSION_COMPATIBLE)
    if build.hardware_compatibility is not None:
        if build.hardware_compatibility not in caps.hardware_compatibility:
            raise ProfileError(
                f"build.hardware_compatibility: {caps.title} has no {build.hardware_compatibility}",
                where=where,
                hint=f"use one of {', '.join(caps.hardware_compatibility)}",
            )
        level = getattr(binding.HardwareCompatibilityLevel, build.hardware_compatibility)
        config.hardware_compatibility_level = level
    unknown = [name for name in build.compute_capabilities if name not in caps.compute_capabilities]
    if unknown:
        known = ", ".join(caps.compute_capabilities) or "none: it builds for the GPU that is here"
        raise ProfileError(
            f"build.compute_capabilities: {caps.title} cannot build for {', '.join(unknown)}",
            where=where,
            hint=f"it knows {known}",
        )
    if build.compute_capabilities:
        config.num_compute_capabilities = len(build.compute_capabilities)
        for index, name in enumerate(build.compute_capabilities):
            config.set_compute_capability(getattr(binding.ComputeCapability, name), index)

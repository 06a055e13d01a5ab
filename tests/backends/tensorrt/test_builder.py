"""The builder against doubles of all eight bindings: what is asked of TensorRT, and what comes out."""

from __future__ import annotations

import ctypes
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest

from edge.backends.interface import BuildRequest, TimingUse
from edge.backends.tensorrt import builder, timing_cache
from edge.backends.tensorrt.builder_config import Options
from edge.backends.tensorrt.calibrator import Feed
from edge.backends.tensorrt.environment import Caps
from edge.errors import ArtifactError, DataError, DeviceError, EdgeError, ModelError, ProfileError
from edge.events import Event, Note, Progress
from edge.model import onnx_model, weighted_layers
from edge.quantization import FloatLayer, Recipe, apply
from edge.quantization.calibration_table import AlgorithmName
from tests.support.tensorrt.installed import table_for, world
from tests.support.tensorrt.timing_double import content

Ask = Callable[..., BuildRequest]
Bind = Callable[..., Caps]
IMPLICIT = ["8.6.1", "10.0.1", "10.3.0", "10.7.0", "10.13.3.9", "10.16.1.11"]
FIXED = {"batch": {"min": 4, "opt": 4, "max": 4}}


def last_build(caps: Caps) -> Any:
    return world(caps).builds[-1]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_every_version_builds_every_precision(precision: str, version: str, binding: Bind, asked: Ask) -> None:
    caps = binding(version)
    events: list[Event] = []
    built = builder.build(asked(precision), caps, listen=events.append)
    assert built is not None
    assert built.plan.startswith(b"double of a plan")
    assert len(world(caps).builds) == 1, "one build, not two"
    assert built.layers.weighted == 4
    assert built.layers.weighted_int8 == (4 if precision == "int8" else 0)
    assert built.notes == []
    assert built.inspection is not None
    assert json.loads(built.inspection)["Layers"]
    typed = not caps.precision_flags
    flags = {
        "fp32": [],
        "fp16": ["TF32"] if typed else ["FP16", "TF32"],
        "int8": ["TF32"] if typed else ["FP16", "INT8", "PREFER_PRECISION_CONSTRAINTS", "TF32"],
    }
    assert built.flags == flags[precision]
    if precision == "fp16":
        assert built.layers.weighted_fp16 == 4
    progress = [event.done for event in events if isinstance(event, Progress)]
    assert progress == sorted(set(progress))
    assert progress[-1:] == ([100] if caps.progress_monitor else [])


def test_the_network_is_explicit_and_strongly_typed_where_it_must_be(version: str, binding: Bind, asked: Ask) -> None:
    caps = binding(version)
    builder.build(asked("fp32"), caps)
    flags = last_build(caps).network._d.flags
    assert ("EXPLICIT_BATCH" in flags) == version.startswith(("8.", "10."))
    assert ("STRONGLY_TYPED" in flags) == (version in {"11.4.0.106", "rtx"})


def test_the_profile_is_what_is_configured(binding: Bind, asked: Ask, tmp_path: Path) -> None:
    caps = binding("10.3.0")
    request = asked(
        "fp16", build={"workspace_mib": 300, "optimization_level": 5}, input={"batch": {"opt": 2, "max": 6}}
    )
    builder.build(request, caps)
    config = last_build(caps).config
    (profile,) = config._d.profiles
    assert profile._d.shapes == {"input": ((1, 3, 32, 32), (2, 3, 32, 32), (6, 3, 32, 32))}
    assert config._d.pools == {"WORKSPACE": 300 << 20}
    assert config.builder_optimization_level == 5
    assert config.profiling_verbosity.name == "DETAILED"


def test_a_fixed_batch_needs_no_range(binding: Bind, asked: Ask, tiny_model: Callable[..., Path]) -> None:
    tiny_model("model.onnx", batch=4)
    caps = binding("10.3.0")
    builder.build(asked("int8", input=FIXED), caps)
    assert last_build(caps).config._d.profiles == []


def test_dynamic_height_and_width_come_from_the_profile(binding: Bind, asked: Ask, tmp_path: Path) -> None:
    request = asked("fp32", input={"height": 24, "width": 40})
    change_input(request.model, [None, 3, None, None])
    caps = binding("10.3.0")
    builder.build(request, caps)
    (profile,) = last_build(caps).config._d.profiles
    assert profile._d.shapes["input"][2] == (8, 3, 24, 40)


def test_a_table_is_read_at_the_best_batch(binding: Bind, asked: Ask) -> None:
    caps = binding("10.3.0")
    builder.build(asked("int8", input={"batch": {"min": 1, "opt": 2, "max": 8}}), caps)
    profile = last_build(caps).config._d.calibration_profile
    assert profile._d.shapes["input"] == ((2, 3, 32, 32),) * 3


def change_input(path: Path, shape: list[int | None]) -> None:
    model = onnx.load(path)
    kind = model.graph.input[0].type.tensor_type.shape
    for axis, size in zip(kind.dim, shape, strict=True):
        axis.Clear()
        if size is None:
            axis.dim_param = "unknown"
        else:
            axis.dim_value = size
    onnx.save(model, path)


def test_a_dynamic_channel_axis_has_the_three_channels_of_a_picture(binding: Bind, asked: Ask) -> None:
    request = asked("fp32")
    change_input(request.model, [None, None, 32, 32])
    caps = binding("10.3.0")
    builder.build(request, caps)
    (profile,) = last_build(caps).config._d.profiles
    assert profile._d.shapes["input"][2] == (8, 3, 32, 32)


# INT8, implicit


@pytest.mark.parametrize("version", IMPLICIT)
def test_the_table_is_served_with_scales_for_the_parsers_own_tensors(version: str, binding: Bind, asked: Ask) -> None:
    caps = binding(version)
    request = asked("int8")
    built = builder.build(request, caps)
    assert built is not None
    assert built.decision.route == "implicit"
    assert built.info["table_header"] == "TRT-8601-EntropyCalibration2"
    assert built.info["served_header"].startswith("TRT-")
    assert built.info["scales_added"] == 4
    job = last_build(caps)
    assert job.asked_batches == 0
    assert request.table is not None
    assert set(request.table.bits) < set(job.scales)
    added = set(job.scales) - set(request.table.bits)
    named = {"w5_output", "b5_output", "ONNXTRT_Broadcast_output", "gemm_9_output"}
    assert added == named if version != "8.6.1" else all(name.startswith("(Unnamed Layer* ") for name in added)


def test_a_table_of_another_major_version_is_retargeted(binding: Bind, asked: Ask) -> None:
    built = builder.build(asked("int8"), binding("10.3.0"))
    assert built is not None
    assert (built.info["table_header"], built.info["served_header"]) == (
        "TRT-8601-EntropyCalibration2",
        "TRT-100300-EntropyCalibration2",
    )


@pytest.mark.parametrize("version", IMPLICIT)
def test_a_refused_table_gives_no_engine(version: str, binding: Bind, asked: Ask) -> None:
    with pytest.raises(ArtifactError, match="refused the calibration table") as caught:
        builder.build(asked("int8"), binding(version, refuses_table=True))
    assert caught.value.exit_code == 7


def test_a_tensor_without_a_scale_keeps_its_layers_in_float_and_is_said(binding: Bind, asked: Ask) -> None:
    request = asked("int8")
    caps = binding("10.3.0")
    built = builder.build(asked("int8", table=table_for(request.model, leave_out=("sum",))), caps)
    assert built is not None
    # The sum's range follows from its two parts; a convolution's output follows from nothing.
    assert built.layers.weighted_int8 == 4
    built = builder.build(asked("int8", table=table_for(request.model, leave_out=("c3", "sum", "pool"))), caps)
    assert built is not None
    assert built.layers.weighted_int8 == 3
    assert "2 tensors of the parsed network have no scale: c3, pool" in built.notes[0] or "3 tensors" in built.notes[0]
    assert any("have no scale, so the layers at them stay in float" in note for note in built.notes)


def test_a_zero_scale_is_not_made_up(binding: Bind, asked: Ask) -> None:
    request = asked("int8")
    caps = binding("10.3.0")
    built = builder.build(asked("int8", table=table_for(request.model, c2=0.0)), caps)
    assert built is not None
    assert built.layers.weighted_int8 == 3
    assert last_build(caps).scales["c2"] == 0.0


@pytest.mark.parametrize(("strict", "expected"), [(True, "INT8"), (False, None)])
def test_a_strict_profile_asks_for_int8_in_every_weighted_layer(
    strict: bool, expected: str | None, binding: Bind, asked: Ask
) -> None:
    caps = binding("10.7.0")
    built = builder.build(asked("int8", build={"strict": strict}), caps)
    assert built is not None
    assert ("PREFER_PRECISION_CONSTRAINTS" in built.flags) == strict
    network = last_build(caps).network
    kinds = {layer._d.kind: layer._d.properties.get("precision") for layer in network._d.layers}
    assert getattr(kinds["CONVOLUTION"], "name", None) == getattr(kinds["MATRIX_MULTIPLY"], "name", None) == expected
    assert kinds["POOLING"] is None


# a recipe that keeps layers in float


def with_recipe(request: BuildRequest, *floats: str) -> BuildRequest:
    """The request for a prepared model whose recipe keeps the layers ``floats`` in float."""
    recipe = Recipe(float_layers=tuple(FloatLayer(name, "noisy") for name in floats))
    path = request.model.with_name("prepared.onnx")
    onnx.save(apply(onnx_model.folded(request.model), recipe), path)
    return msgspec.structs.replace(request, model=path)


def weighted_names(request: BuildRequest) -> list[str]:
    return [layer.name for layer in weighted_layers(onnx_model.folded(request.model))]


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("version", IMPLICIT)
def test_implicit_asks_for_fp16_in_the_layers_of_the_recipe(
    version: str, strict: bool, binding: Bind, asked: Ask
) -> None:
    caps = binding(version)
    request = asked("int8", int8_route="implicit", build={"strict": strict})
    names = weighted_names(request)
    built = builder.build(with_recipe(request, names[1], names[-1]), caps)
    assert built is not None
    assert "PREFER_PRECISION_CONSTRAINTS" in built.flags
    wanted = {
        layer._d.name: getattr(layer._d.properties.get("precision"), "name", None)
        for layer in last_build(caps).network._d.layers
        if layer._d.kind in {"CONVOLUTION", "MATRIX_MULTIPLY"}
    }
    others = "INT8" if strict else None
    assert list(wanted.values()) == [others, "HALF", others, "HALF"]
    assert (built.layers.weighted_int8, built.layers.weighted_fp16) == (2, 2)
    assert built.notes == []


def test_tensors_between_float_layers_have_no_scale(binding: Bind, asked: Ask) -> None:
    caps = binding("10.3.0")
    request = asked("int8", int8_route="implicit")
    layers = weighted_layers(onnx_model.folded(request.model))
    built = builder.build(with_recipe(request, layers[1].name, layers[2].name), caps)
    assert built is not None
    scales = last_build(caps).scales
    assert not {layers[1].output, layers[2].activation} & scales.keys(), "between two float layers"
    assert layers[1].activation in scales, "a quantized layer computes it"
    assert layers[2].output in scales, "a quantized layer reads it behind the sum"
    assert built.layers.weighted_int8 == 2
    assert built.notes == []


@pytest.mark.parametrize("version", ["10.3.0", "11.4.0.106", "rtx"])
def test_explicit_leaves_the_layers_of_the_recipe_without_qdq(version: str, binding: Bind, asked: Ask) -> None:
    caps = binding(version)
    request = asked("int8", int8_route="explicit")
    names = weighted_names(request)
    built = builder.build(with_recipe(request, names[1]), caps)
    assert built is not None
    graph = onnx.load_model_from_string(last_build(caps).network._d.proto).graph
    made = {name: node.op_type for node in graph.node for name in node.output}
    kinds = {node.name: [made.get(name) for name in node.input[:2]] for node in graph.node if node.name in names}
    assert all((kinds[name] == ["DequantizeLinear"] * 2) == (name != names[1]) for name in names)
    assert built.layers.weighted_int8 == 3
    if caps.strongly_typed_only:
        assert built.layers.weighted_fp16 == 1
        weights = {item.name: item.data_type for item in graph.initializer}
        (layer,) = [node for node in graph.node if node.name == names[1]]
        assert weights[layer.input[1]] == onnx.TensorProto.FLOAT16


# INT8, explicit


@pytest.mark.parametrize("version", [*IMPLICIT, "11.4.0.106", "rtx"])
def test_explicit_goes_in_as_qdq(version: str, binding: Bind, asked: Ask) -> None:
    caps = binding(version)
    built = builder.build(asked("int8", int8_route="explicit"), caps)
    assert built is not None
    assert built.decision.route == "explicit"
    assert built.layers.weighted_int8 == 4
    job = last_build(caps)
    assert job.config._d.properties.get("int8_calibrator") is None
    kinds = [node.op_type for node in onnx.load_model_from_string(job.network._d.proto).graph.node]
    assert kinds.count("QuantizeLinear") >= 4
    if caps.precision_flags:
        assert built.flags == ["FP16", "INT8", "TF32"]


def test_fp16_of_a_strongly_typed_network_stands_in_the_graph(binding: Bind, asked: Ask) -> None:
    caps = binding("11.4.0.106")
    builder.build(asked("fp16"), caps)
    graph = onnx.load_model_from_string(last_build(caps).network._d.proto).graph
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    types = {item.data_type for item in graph.initializer if item.name.startswith("w")}
    assert types == {onnx.TensorProto.FLOAT16}


# the device's own calibrators


class HostMemory:
    """The double's device memory is host memory."""

    def __init__(self) -> None:
        self.kept: list[Any] = []

    def upload(self, batch: Any) -> int:
        self.kept.append(np.ascontiguousarray(batch))
        return int(ctypes.addressof(ctypes.c_char.from_buffer(self.kept[-1])))


def pictures(count: int, *, size: int = 2, broken_at: int | None = None) -> Iterator[Any]:
    random = np.random.default_rng(0)
    for index in range(count):
        if index == broken_at:
            raise DataError("cannot decode", where=f"{index}.jpg")
        yield random.normal(size=(size, 3, 32, 32)).astype(np.float32)


def feed(algorithm: AlgorithmName = "entropy2", *, planned: int = 3, **options: Any) -> Feed:
    source = pictures(planned, **options)
    return Feed(algorithm=algorithm, batches=source, planned=planned, batch=2, memory=HostMemory())


@pytest.mark.parametrize("algorithm", ["entropy2", "minmax", "entropy", "legacy"])
@pytest.mark.parametrize("version", IMPLICIT)
def test_the_devices_own_calibrators(version: str, algorithm: AlgorithmName, binding: Bind, asked: Ask) -> None:
    caps = binding(version)
    request = asked("int8", input={"batch": {"min": 1, "opt": 2, "max": 8}})
    built = builder.build(request, caps, feed=feed(algorithm))
    assert built is not None
    assert built.table is not None
    assert built.info["calibrator"] == algorithm
    assert built.table.header.algorithm == algorithm
    assert set(built.table.names) == {"input", "c1", "r1", "c2", "r2", "c3", "sum", "pool", "gap", "flat", "logits"}
    assert built.table.range("input") > 3.0
    before_fusion = last_build(caps).config._d.quantization
    assert before_fusion == ({"CALIBRATE_BEFORE_FUSION"} if algorithm in {"entropy", "legacy"} else set())
    if algorithm == "legacy":
        assert (built.table.header.quantile, built.table.header.cutoff) == (0.99999, 1.0)


@pytest.mark.parametrize("version", IMPLICIT)
def test_a_picture_that_breaks_the_calibration(version: str, binding: Bind, asked: Ask) -> None:
    with pytest.raises(DataError, match="cannot decode") as caught:
        builder.build(asked("int8"), binding(version), feed=feed(broken_at=1))
    assert caught.value.where == "1.jpg"


def test_tensorrt_takes_fewer_batches_than_planned(binding: Bind, asked: Ask) -> None:
    with pytest.raises(DeviceError, match="read 2 of 3 calibration batches"):
        builder.build(asked("int8"), binding("10.3.0", takes=2), feed=feed())


# memory, timing cache, compatibility


def proc(root: Path, *, available_mib: int) -> Path:
    (root / "proc").mkdir()
    (root / "proc/meminfo").write_text(f"MemTotal: 7864320 kB\nMemAvailable: {available_mib * 1024} kB\n")
    return root


def test_a_jetson_is_left_some_memory_and_warned_before_it_is_too_little(
    binding: Bind, asked: Ask, tmp_path: Path
) -> None:
    caps = binding("8.6.1")
    events: list[Event] = []
    options = Options(shared_memory=True, root=proc(tmp_path, available_mib=1000))
    built = builder.build(asked("fp32"), caps, options=options, listen=events.append)
    assert built is not None
    assert last_build(caps).config._d.pools == {"WORKSPACE": 186 << 20, "TACTIC_DRAM": 558 << 20}
    (note,) = [event for event in events if isinstance(event, Note)]
    assert note.level == "warning"
    assert "1000 MiB of memory are free" in note.text
    assert built.notes[0] == note.text


FOREIGN = content("another device", ["a", "b"])


@pytest.mark.parametrize("version", ["8.6.1", "10.3.0", "10.16.1.11", "11.4.0.106"])
def test_a_timing_cache_is_started_and_used(version: str, binding: Bind, asked: Ask) -> None:
    caps = binding(version)
    cold = builder.build(asked("fp16"), caps)
    assert cold is not None
    timing = cold.timing
    assert (timing.use, timing.entries_before, timing.entries_after) == ("started", 0, timing.misses)
    assert timing.misses
    assert (timing.hits, timing.bytes_before, timing.not_counted) == (0, None, None)
    assert timing.bytes_after == len(cold.timing_cache or b"")
    # Only the largest batch changes: nothing has to be measured again.
    warm = builder.build(asked("fp16", input={"batch": {"max": 4}}), caps, timing_cache=cold.timing_cache)
    assert warm is not None
    assert (warm.timing.use, warm.timing.misses, warm.timing.hits) == ("used", 0, timing.misses)
    assert (warm.timing.entries_before, warm.timing.sha256_before) == (timing.misses, timing.sha256_after)
    # Another batch to optimize for means other kernels: the cache served nothing.
    other = builder.build(asked("fp16", input={"batch": {"opt": 4}}), caps, timing_cache=cold.timing_cache)
    assert other is not None
    assert (other.timing.use, other.timing.hits, other.timing.misses) == ("attached", 0, timing.misses)


@pytest.mark.parametrize(
    ("settings", "before"),
    [
        pytest.param({"refuses_cache": True}, content("10.16.1.11", ["a"]), id="TensorRT says no"),
        pytest.param({"refuses_by_return": True}, FOREIGN, id="of another device"),
        pytest.param({"refuses_by_return": True}, b"corrupt", id="corrupt"),
        pytest.param({}, FOREIGN, id="of another device, which only the log says"),
        pytest.param({}, b"corrupt", id="corrupt, which only the log says"),
        pytest.param({}, FOREIGN[:20], id="cut off"),
    ],
)
def test_a_timing_cache_that_is_refused(settings: dict[str, Any], before: bytes, binding: Bind, asked: Ask) -> None:
    for version in ("8.6.1", "10.16.1.11", "11.4.0.106"):
        built = builder.build(asked("fp16"), binding(version, **settings), timing_cache=before)
        assert built is not None
        assert (built.timing.use, built.timing.entries_before, built.timing.bytes_before) == ("refused", 0, None)
        assert built.timing.misses == built.timing.entries_after
        assert built.timing_cache is not None
        assert b"another device" not in built.timing_cache


@pytest.mark.parametrize(
    ("version", "profile", "use"),
    [("rtx", {}, "no effect"), ("10.3.0", {"build": {"timing_cache": False}}, "off"), ("10.3.0", {}, "off")],
)
def test_no_timing_cache(version: str, profile: dict[str, Any], use: str, binding: Bind, asked: Ask) -> None:
    caps = binding(version)
    request = msgspec.structs.replace(asked("fp32", **profile), timing=TimingUse(ask=bool(profile)))
    built = builder.build(request, caps, timing_cache=b"ptrt")
    assert built is not None
    assert (built.timing_cache, built.timing.use) == (None, use)
    assert not last_build(caps).cached


def test_misses_that_are_errors(version: str, binding: Bind, asked: Ask) -> None:
    caps = binding(version)
    cold = builder.build(asked("fp32"), caps)
    assert cold is not None
    strict = msgspec.structs.replace(asked("fp32"), timing=TimingUse(only=True))
    if not caps.error_on_timing_cache_miss:
        assert version in {"8.6.1", "rtx"}
        with pytest.raises(DeviceError, match="cannot report what a timing cache lacks") as caught:
            builder.build(strict, caps, timing_cache=cold.timing_cache)
        assert "leave --error-on-miss out" in str(caught.value.hint)
        return
    warm = builder.build(strict, caps, timing_cache=cold.timing_cache)
    assert warm is not None
    assert "ERROR_ON_TIMING_CACHE_MISS" in warm.flags
    other = msgspec.structs.replace(asked("fp16"), timing=TimingUse(only=True))
    with pytest.raises(DeviceError, match="the timing cache lacks a kernel of this build") as caught:
        builder.build(other, caps, timing_cache=cold.timing_cache)
    assert "without --error-on-miss" in str(caught.value.hint)


@pytest.mark.parametrize("version", ["8.6.1", "10.16.1.11", "11.4.0.106"])
def test_timing_caches_are_merged(version: str, binding: Bind) -> None:
    caps = binding(version)
    merged = timing_cache.combine([content(version, ["a", "b"]), content(version, ["b", "c"])], caps)
    assert merged == content(version, ["a", "b", "c"])
    for bad in (content("another device", ["z"]), b"corrupt"):
        with pytest.raises(ArtifactError, match="refuses the timing cache number 2 of 2") as caught:
            timing_cache.combine([content(version, ["a"]), bad], caps)
        assert caught.value.hint


def test_nothing_is_merged_where_caches_have_no_effect_or_no_builder_can_be_made(binding: Bind) -> None:
    with pytest.raises(DeviceError, match="have no effect on TensorRT for RTX"):
        timing_cache.combine([b"ptrt"], binding("rtx"))
    with pytest.raises(DeviceError, match="the NVIDIA driver is missing"):
        timing_cache.combine([b"ptrt"], binding("10.3.0", no_cuda="CUDA initialization failure with error: 35"))


def test_compatibility(binding: Bind, asked: Ask) -> None:
    caps = binding("10.3.0")
    built = builder.build(
        asked("fp32", build={"version_compatible": True, "hardware_compatibility": "AMPERE_PLUS"}), caps
    )
    assert built is not None
    assert built.flags == ["VERSION_COMPATIBLE"]
    assert last_build(caps).config.hardware_compatibility_level.name == "AMPERE_PLUS"


@pytest.mark.parametrize("version", ["8.6.1", "10.3.0", "11.4.0.106"])
def test_a_version_compatible_engine_is_looked_into(version: str, binding: Bind, asked: Ask) -> None:
    built = builder.build(asked("int8", build={"version_compatible": True}), binding(version))
    assert built is not None
    assert built.described.absent is None
    assert (built.layers.weighted, built.layers.weighted_int8) == (4, 4)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        ({"hardware_compatibility": "SAME_COMPUTE_CAPABILITY"}, "has no SAME_COMPUTE_CAPABILITY"),
        ({"compute_capabilities": ["SM86"]}, "cannot build for SM86"),
    ],
)
def test_compatibility_that_a_version_lacks(build: dict[str, Any], words: str, binding: Bind, asked: Ask) -> None:
    with pytest.raises(ProfileError, match=words):
        builder.build(asked("fp32", build=build), binding("10.3.0"))


def test_rtx_builds_for_gpus_that_are_not_here(binding: Bind, asked: Ask) -> None:
    caps = binding("rtx")
    builder.build(asked("fp32", build={"compute_capabilities": ["SM89", "SM120"]}), caps)
    config = last_build(caps).config
    assert (config.num_compute_capabilities, config._d.capabilities) == (2, {0: "SM89", 1: "SM120"})


# DLA


@pytest.mark.parametrize("version", ["8.6.1", "10.3.0", "10.7.0"])
def test_dla(version: str, binding: Bind, asked: Ask) -> None:
    caps = binding(version, dla_cores=2, dla_refuses=("pool_6", "maxpool_6"))
    built = builder.build(asked("int8", build={"dla_core": 1}, input=FIXED), caps)
    assert built is not None
    config = last_build(caps).config
    assert (config.DLA_core, config.default_device_type.name) == (1, "DLA")
    assert "GPU_FALLBACK" in built.flags
    assert built.decision.route == "implicit"
    assert "layers of the network cannot run on the DLA: maxpool_6; they go to the GPU" in built.notes[0]
    layers = {item["name"]: item for item in built.info["dla_layers"]}
    assert layers["maxpool_6"]["unit"] == "GPU"
    assert "not supported on DLA" in layers["maxpool_6"]["why"]
    assert {item["unit"] for name, item in layers.items() if name != "maxpool_6"} == {"DLA"}
    assert "CONSTANT" not in {item["kind"] for item in layers.values()}
    # All four weighted layers are inside of what the engine shows as one.
    assert (built.layers.weighted, built.layers.weighted_int8) == (4, 4)
    assert built.info["opaque_layers"] == 1


@pytest.mark.parametrize("version", ["8.6.1", "10.3.0", "10.7.0", "11.4.0.106"])
def test_what_a_dla_takes_of_fp16_runs_in_fp16(version: str, binding: Bind, asked: Ask) -> None:
    caps = binding(version, dla_cores=1, dla_refuses=("gemm_9",))
    built = builder.build(asked("fp16", build={"dla_core": 0}, input=FIXED), caps)
    assert built is not None
    # The double has no FP32 kernel that is faster, so the Gemm on the GPU is FP16, too.
    assert (built.layers.weighted, built.layers.weighted_fp16, built.layers.weighted_unknown) == (4, 4, 0)
    assert built.layers.weighted_int8 == 0
    assert built.info["opaque_layers"] == 1


@pytest.mark.parametrize(
    ("version", "flags"), [("10.3.0", []), ("10.16.1.11", ["ADJUST_FOR_DLA"]), ("11.4.0.106", ["ADJUST_FOR_DLA"])]
)
def test_the_parser_is_asked_for_what_a_dla_takes_where_it_can(
    version: str, flags: list[str], binding: Bind, asked: Ask
) -> None:
    caps = binding(version, dla_cores=1)
    builder.build(asked("fp16", build={"dla_core": 0}, input=FIXED), caps)
    assert world(caps).parser_flags == flags
    builder.build(asked("fp16", input=FIXED), caps)
    assert world(caps).parser_flags == flags


def test_int8_on_the_dla_of_11_is_called_unproven(binding: Bind, asked: Ask) -> None:
    built = builder.build(asked("int8", build={"dla_core": 0}, input=FIXED), binding("11.4.0.106", dla_cores=1))
    assert built is not None
    assert any("INT8 there is unproven" in note for note in built.notes)


def test_a_weighted_layer_that_a_dla_refuses_is_counted_on_the_gpu(binding: Bind, asked: Ask) -> None:
    caps = binding("10.3.0", dla_cores=1, dla_refuses=("gemm_9",))
    request = asked("int8", build={"dla_core": 0}, input=FIXED)
    built = builder.build(request, caps)
    assert built is not None
    assert (built.layers.weighted, built.layers.weighted_int8) == (4, 4)
    # Without a scale, INT8 is lost: on the GPU for the Gemm, on the DLA for the second convolution.
    for tensor in ("flat", "c2"):
        table = table_for(request.model, **{tensor: 0.0})
        built = builder.build(asked("int8", table=table, build={"dla_core": 0}, input=FIXED), caps)
        assert built is not None
        assert (built.layers.weighted, built.layers.weighted_int8) == (4, 3)


@pytest.mark.parametrize(
    ("version", "precision", "counts", "words"),
    [
        pytest.param("10.3.0", "int8", (4, 1), "3 weighted layers are hidden in fused ones", id="not claimed"),
        pytest.param("10.3.0", "fp16", (4, 0), "3 weighted layers .* and not counted as FP16", id="nor FP16"),
        pytest.param("11.4.0.106", "int8", (4, 4), "counted in the graph, not in the engine", id="decided by Q/DQ"),
        pytest.param("11.4.0.106", "fp16", (4, 0), "counted in the graph, not in the engine", id="FP16 in the graph"),
    ],
)
def test_layers_that_the_engine_hides(
    version: str, precision: str, counts: tuple[int, int], words: str, binding: Bind, asked: Ask
) -> None:
    built = builder.build(asked(precision), binding(version, fuses=("CONVOLUTION", "POOLING")))
    assert built is not None
    assert (built.layers.weighted, built.layers.weighted_int8) == counts
    assert any(re.search(words, note) for note in built.notes)


@pytest.mark.parametrize(
    ("settings", "profile", "kind", "words"),
    [
        pytest.param({"dla_cores": 0}, {}, DeviceError, "no DLA that TensorRT can use", id="none here"),
        pytest.param({"dla_cores": 1}, {"dla_core": 1}, DeviceError, "this machine has 1 DLA cores", id="only one"),
        pytest.param(
            {"dla_cores": 2, "dla_refuses": ("maxpool_6",)}, {"gpu_fallback": False}, DeviceError,
            r"cannot run on the DLA: maxpool_6 \(POOLING: .*not supported", id="no fallback",
        ),
    ],
)  # fmt: skip
def test_dla_that_is_not_there(
    settings: dict[str, Any], profile: dict[str, Any], kind: type[EdgeError], words: str, binding: Bind, asked: Ask
) -> None:
    with pytest.raises(kind, match=words) as caught:
        builder.build(asked("int8", build={"dla_core": 0} | profile, input=FIXED), binding("10.3.0", **settings))
    assert caught.value.hint


@pytest.mark.parametrize(("least", "best"), [(1, 1), (1, 8), (8, 8)])
def test_dla_takes_one_batch_size(least: int, best: int, binding: Bind, asked: Ask) -> None:
    caps = binding("10.3.0", dla_cores=1)
    request = asked("int8", build={"dla_core": 0}, input={"batch": {"min": least, "opt": best, "max": 8}})
    if least == 8:
        builder.build(request, caps)
        return
    with pytest.raises(ProfileError, match=f"one batch size, but the profile requests {least} to 8"):
        builder.build(request, caps)


def test_without_fallback_the_flag_is_not_set(binding: Bind, asked: Ask) -> None:
    """With it, a layer that the DLA refuses would go to the GPU unasked. The double asserts the profile's sizes."""
    caps = binding("10.3.0", dla_cores=1)
    built = builder.build(asked("int8", build={"dla_core": 0, "gpu_fallback": False}, input=FIXED), caps)
    assert built is not None
    assert "GPU_FALLBACK" not in built.flags


# what fails


@pytest.mark.parametrize(
    ("precision", "settings", "words"),
    [
        ("fp16", {"fast_fp16": False}, "this GPU has no fast fp16"),
        ("int8", {"fast_int8": False}, "this GPU has no fast int8"),
    ],
)
@pytest.mark.parametrize("version", IMPLICIT)
def test_no_silent_fp32(
    version: str, precision: str, settings: dict[str, Any], words: str, binding: Bind, asked: Ask
) -> None:
    with pytest.raises(DeviceError, match=words):
        builder.build(asked(precision), binding(version, **settings))


def test_no_cuda(version: str, binding: Bind, asked: Ask) -> None:
    caps = binding(version, no_cuda="CUDA initialization failure with error: 35. Please check your CUDA installation.")
    with pytest.raises(DeviceError, match="driver is missing, or older") as caught:
        builder.build(asked("fp32"), caps)
    assert caught.value.exit_code == 8


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("Error Code 2: OutOfMemory (Requested size was 2147483648 bytes.)", "ran out of GPU memory"),
        ("Error Code 10: Internal Error (Could not find any implementation for node /conv1.)", "no kernel for /conv1"),
    ],
)
def test_the_build_fails(line: str, words: str, version: str, binding: Bind, asked: Ask) -> None:
    with pytest.raises(DeviceError, match=words) as caught:
        builder.build(asked("fp32"), binding(version, fails=[line]))
    assert caught.value.hint
    assert str(caught.value.where).endswith("model.onnx")


@pytest.mark.parametrize("version", ["8.6.1", "10.3.0", "11.4.0.106"])
@pytest.mark.parametrize(("operator", "domain"), [("Elu", ""), ("Wobble", "com.example")])
def test_an_unknown_operator(operator: str, domain: str, version: str, binding: Bind, asked: Ask) -> None:
    request = asked("fp32")
    model = onnx.load(request.model)
    node = model.graph.node[1]
    node.op_type, node.domain = operator, domain
    del node.input[1:]
    if domain:
        model.opset_import.append(onnx.helper.make_opsetid(domain, 1))
    onnx.save(model, request.model)
    with pytest.raises(ModelError, match=rf"{operator} \(clip_1\): TensorRT has no such operator"):
        builder.build(request, binding(version))


@pytest.mark.parametrize(("precision", "route"), [("int8", "implicit"), ("int8", "explicit")])
def test_int8_without_a_table(precision: str, route: str, binding: Bind, asked: Ask) -> None:
    request = asked("fp32", int8_route=route)
    request = BuildRequest(profile=request.profile, model=request.model, precision="int8", table=None)
    with pytest.raises(DeviceError, match="INT8 needs a calibration table"):
        builder.build(request, binding("10.3.0"))


def test_an_engine_that_cannot_be_looked_into(binding: Bind, asked: Ask) -> None:
    caps = binding("11.4.0.106", can_load=False)
    built = builder.build(asked("int8"), caps)
    assert built is not None
    # A Q/DQ graph decides by itself what runs in INT8.
    assert (built.layers.weighted, built.layers.weighted_int8) == (4, 4)
    assert "could not be loaded here" in built.notes[0]
    assert "counted in the graph" in built.notes[1]
    with pytest.raises(DeviceError, match="it is unknown whether it runs in INT8"):
        builder.build(asked("int8"), binding("10.3.0", can_load=False))


@pytest.mark.parametrize("version", ["10.0.1", "10.13.3.9", "11.4.0.106", "rtx"])
def test_stopping_ends_the_build_and_gives_nothing(version: str, binding: Bind, asked: Ask) -> None:
    caps = binding(version, steps=100)
    asked_times: list[int] = []
    found = builder.build(asked("fp32"), caps, should_stop=lambda: len(asked_times) > 2 or bool(asked_times.append(1)))
    assert found is None
    assert len(asked_times) == 3


class Stopped(BaseException):
    """As a signal handler raises it."""


@pytest.mark.parametrize("version", ["10.3.0", "11.4.0.106"])
def test_a_signal_ends_the_build_with_its_own_exception(version: str, binding: Bind, asked: Ask) -> None:
    def listen(event: Event) -> None:
        if isinstance(event, Progress) and event.done > 0:
            raise Stopped

    caps = binding(version, steps=100)
    with pytest.raises(Stopped):
        builder.build(asked("fp32"), caps, listen=listen)


def test_warnings_of_tensorrt_are_in_the_notes(binding: Bind, asked: Ask) -> None:
    says = [("WARNING", "Your ONNX model has been generated with INT64 weights"), ("INFO", "nothing of interest")]
    built = builder.build(asked("fp32"), binding("8.6.1", says=says))
    assert built is not None
    assert built.notes == ["TensorRT reads the model's INT64 constants as INT32"]


def test_external_weights(binding: Bind, asked: Ask, tiny_model: Callable[..., Path]) -> None:
    tiny_model("model.onnx", external=True)
    for version, precision in (("10.3.0", "fp32"), ("10.3.0", "int8"), ("11.4.0.106", "fp16"), ("rtx", "int8")):
        assert builder.build(asked(precision), binding(version)) is not None

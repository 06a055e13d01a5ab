"""The self-test on the bindings' doubles: every route of every version, run in host memory."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge.artifacts import store
from edge.backends.interface import Session
from edge.backends.tensorrt.backend import TensorRT
from edge.backends.tensorrt.environment import Caps, load
from edge.backends.tensorrt.runner import TrtSession
from edge.calibration import cache_keys
from edge.config.profiles import Profile
from edge.diagnostics import selftest_engines
from edge.diagnostics.selftest_context import SelfTestContext, SelfTestStep
from edge.diagnostics.selftest_run import SelfTestRun
from edge.media.picture_sources import open_pictures
from edge.model import onnx_model, preprocessing
from edge.quantization import calibration_table
from edge.system.device import Device, identify
from tests.support.cuda.host_device import HostDevice
from tests.support.cuda.plain_cpp import build

# At the end: that folder has a conftest of its own.
from tests.support.tensorrt.installed import table_for, world

ORIN = Device(is_jetson=True, family="agx-orin", module="p3701-0005", sm="8.7", machine="aarch64")


class OnHost(TensorRT):
    """TensorRT whose sessions run in host memory. The double computes when it is asked, so no graph can hold that.

    ``kernel``: the preprocessing kernel as a library; None is a machine without nvcc.
    """

    def __init__(self, kernel: Path | None = None) -> None:
        super().__init__(rtx=load().rtx, machine=ORIN, isolate=False)
        self._kernel = kernel

    def open(self, engine: Path, *, precision: str, built_for: Any = None, **_: Any) -> Session:
        device = HostDevice(library=self._kernel, integrated=True, captures=False)
        core = (built_for or {}).get("dla_core")
        return TrtSession(engine, load(), precision=precision, device=device, dla_core=core)


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """The files by which an AGX Orin is known."""
    root = tmp_path / "root"
    (root / "proc/device-tree").mkdir(parents=True)
    (root / "proc/device-tree/compatible").write_bytes(b"nvidia,p3737-0000+p3701-0005\0nvidia,tegra234\0")
    (root / "proc/device-tree/model").write_bytes(b"NVIDIA Jetson AGX Orin Developer Kit\0")
    (root / "etc").mkdir()
    (root / "etc/nv_tegra_release").write_text(
        "# R36 (release), REVISION: 4.4, GCID: 1, BOARD: generic, EABI: aarch64\n"
    )
    return root


@pytest.fixture
def bench(tiny: Callable[..., Profile], pictures: Callable[..., Any], machine: Path, tmp_path: Path) -> SelfTestContext:
    profile = tiny(input={"batch": {"min": 1, "opt": 1, "max": 8}})
    keep_table(profile, tmp_path / "cache")
    pictures(tmp_path / "p", 4)
    return SelfTestContext(
        profile=profile,
        backend=lambda _profile: OnHost(),
        pictures=open_pictures(tmp_path / "p"),
        cache=tmp_path / "cache",
        work=tmp_path / "work",
        root=machine,
        pause=lambda _seconds: None,
    )


def keep_table(profile: Profile, cache: Path) -> None:
    """A table for the profile, with its manifest."""
    path = cache_keys.table_path(profile, cache)
    store.save(
        cache_keys.manifest_path(path), kind=cache_keys.TABLE,
        files={path.name: calibration_table.write(table_for(Path(profile.model)))}, key=cache_keys.table_key(profile),
        info={"zero_tensors": [], "pictures": 4},
    )  # fmt: skip


def steps_of(bench: SelfTestContext) -> dict[str, SelfTestStep]:
    bench.work.mkdir()
    run = SelfTestRun(bench)
    run.go()
    record = run.record()
    assert record.status == "complete"
    return {step.name: step for step in record.steps}


def test_every_route_of_every_version(version: str, binding: Callable[..., Caps], bench: SelfTestContext) -> None:
    caps = binding(version)
    steps = steps_of(bench)
    assert {name: step for name, step in steps.items() if step.status == "failed"}.keys() == {"power"}
    expected = {
        "fp32": True, "fp16": True, "int8 implicit": caps.implicit_int8, "int8 explicit": True, "int8 DLA 0": False,
    }  # fmt: skip
    for name, is_there in expected.items():
        status = "ok" if is_there else "skipped"
        assert (steps[f"build {name}"].status, steps[f"answers {name}"].status) == (status, status), steps
    assert steps["build fp16"].figures["fp16"] == 4
    assert steps["build int8 explicit"].figures["int8"] == 4
    assert steps["answers fp32"].figures["same_top1"] == 4
    assert steps["GPU preprocessing"].status == "skipped"
    assert "edge run preprocesses on the CPU" in steps["GPU preprocessing"].text
    timing = steps["timing cache"]
    assert timing.status == ("skipped" if caps.rtx else "ok"), timing
    assert caps.rtx or "hits" in timing.text or timing.figures["timing_cache"] == "used"
    places = ("other gpus",) if caps.rtx else ("other sm", "other module")
    for field in ("other tensorrt", *places, "not an engine"):
        assert field in steps["foreign engine"].text


def test_a_dla_is_tried_where_there_is_one(binding: Callable[..., Caps], bench: SelfTestContext) -> None:
    binding("10.3.0", dla_cores=2)
    steps = steps_of(bench)
    assert steps["build int8 DLA 0"].status == "ok", steps["build int8 DLA 0"]
    assert steps["answers int8 DLA 0"].status == "ok"


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("kernel") / "kernel_on_cpu.so", "-O2", "-shared", "-fPIC")


@pytest.mark.parametrize("version", ["8.6.1", "11.4.0.106"])
def test_the_gpus_preprocessing_is_compared(
    version: str, kernel: Path, binding: Callable[..., Caps], bench: SelfTestContext
) -> None:
    binding(version)
    bench.backend = lambda _profile: OnHost(kernel)
    step = steps_of(bench)["GPU preprocessing"]
    assert step.status == "ok", step
    assert step.figures["same_top1"] == step.figures["n"] == 4
    assert step.figures["preprocess_ms_p50"] > 0


def test_wrong_preprocessing_is_found(kernel: Path, binding: Callable[..., Caps], bench: SelfTestContext) -> None:
    class SwappedColours(OnHost):
        def open(self, engine: Path, **options: Any) -> Session:
            session = super().open(engine, **options)
            infer = session.infer_frames  # type: ignore[attr-defined]
            session.infer_frames = lambda frames: infer([frame[..., ::-1] for frame in frames])  # type: ignore[attr-defined]
            return session

    binding("10.3.0")
    bench.backend = lambda _profile: SwappedColours(kernel)
    steps = steps_of(bench)
    assert (steps["answers fp32"].status, steps["GPU preprocessing"].status) == ("ok", "failed")


def test_preprocessing_that_the_profile_wants_and_the_gpu_cannot(
    binding: Callable[..., Caps], bench: SelfTestContext
) -> None:
    binding("10.3.0")
    run = msgspec.structs.replace(bench.profile.run, preprocess_on="device")
    bench.profile = msgspec.structs.replace(bench.profile, run=run)
    step = steps_of(bench)["GPU preprocessing"]
    assert (step.status, "there is no nvcc" in step.text) == ("failed", True)


def test_layers_that_fall_out_of_int8_fail_the_step_and_no_other(
    binding: Callable[..., Caps], bench: SelfTestContext, tmp_path: Path
) -> None:
    binding("10.3.0")
    path = cache_keys.table_path(bench.profile, bench.cache)
    # All but two tensors of the network have no scale.
    names = onnx_model.load(Path(bench.profile.model)).activations
    short = table_for(Path(bench.profile.model), leave_out=tuple(names[2:]))
    manifest = store.load(cache_keys.manifest_path(path), kind=cache_keys.TABLE)
    store.save(
        cache_keys.manifest_path(path), kind=cache_keys.TABLE, files={path.name: calibration_table.write(short)},
        key=manifest.key,
        info=manifest.info,
    )  # fmt: skip
    steps = steps_of(bench)
    assert steps["build int8 implicit"].status == "failed"
    assert steps["answers int8 implicit"] == SelfTestStep(
        name="answers int8 implicit", status="skipped", text="not built", seconds=steps["answers int8 implicit"].seconds
    )
    assert steps["build fp16"].status == steps["unchanged"].status == steps["foreign table"].status == "ok"


def test_a_build_without_fp16_is_found(binding: Callable[..., Caps], bench: SelfTestContext) -> None:
    caps = binding("10.3.0")
    world(caps).fast_fp16 = False
    steps = steps_of(bench)
    assert steps["build fp16"].status == "failed"
    assert "no fast fp16" in steps["build fp16"].text


def test_wrong_answers_are_found(binding: Callable[..., Caps], bench: SelfTestContext) -> None:
    binding("10.3.0")
    assert bench.pictures is not None
    right = selftest_engines.compute(bench.profile, bench.pictures)

    class Mirrored(OnHost):
        def open(self, engine: Path, **options: Any) -> Session:
            session = super().open(engine, **options)
            infer = session.infer
            session.infer = lambda batch: infer(batch[:, :, ::-1].copy())  # type: ignore[method-assign]
            return session

    bench.backend = lambda _profile: Mirrored()
    steps = steps_of(bench)
    assert steps["answers fp32"].status == "failed"
    assert "are expected for fp32" in str(steps["answers fp32"].hint)
    assert steps["answers int8 implicit"].name == "answers int8 implicit"
    assert right.shape == (4, 10)
    assert preprocessing.digest(bench.profile.preprocess, bench.profile.input)


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None,
    reason="TensorRT for RTX is not installed: pip install tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings",
)
def test_the_real_builder_of_rtx_without_a_gpu(bench: SelfTestContext, tmp_path: Path) -> None:
    """Everything is built for real; what needs the GPU is skipped with its reason."""
    bench.profile = msgspec.structs.replace(bench.profile, family="rtx", int8_route="explicit")
    bench.root = tmp_path / "a host"
    bench.machine = identify(bench.root)
    bench.backend = lambda profile: TensorRT(profile=profile, isolate=False)
    steps = steps_of(bench)
    assert [name for name, step in steps.items() if step.status == "failed"] == []
    for name in ("fp32", "fp16", "int8 explicit"):
        assert steps[f"build {name}"].status == "ok"
        assert steps[f"answers {name}"].text == "no NVIDIA GPU on this machine to run it on"
    assert (steps["build fp16"].figures["fp16"], steps["build int8 explicit"].figures["int8"]) == (4, 4)
    assert "has no calibrators" in steps["build int8 implicit"].text
    assert "timing caches have no effect" in steps["timing cache"].text
    assert steps["unchanged"].status == steps["foreign engine"].status == "ok"

"""The self-test with ONNX Runtime and the public double; with TensorRT's doubles see tests/backends/tensorrt."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edge.artifacts import Secret, store
from edge.backends import interface
from edge.backends.interface import Backend, BuildRequest, BuiltEngine, Session
from edge.backends.onnxruntime import OnnxRuntime
from edge.config import profiles
from edge.config.profiles import Profile
from edge.diagnostics import selftest_engines
from edge.diagnostics.selftest_context import SelfTest, SelfTestContext, SelfTestStep, encode
from edge.diagnostics.selftest_run import SelfTestRun
from edge.errors import ArtifactError, DeviceError
from edge.media.picture_sources import open_pictures
from tests.support.boards import ORIN_NANO
from tests.support.calibrated import calibrated


@pytest.fixture
def tiny(tiny_profile: Callable[..., Path], pictures: Callable[..., Any], tmp_path: Path) -> Profile:
    chosen = profiles.read_profile(tiny_profile(tmp_path / "profiles"))
    pictures(tmp_path / "calibration", 4)
    pictures(tmp_path / "pictures", 5, seed=3)
    calibrated(chosen, tmp_path / "calibration", cache=tmp_path / "cache")
    return chosen


@pytest.fixture
def bench(tiny: Profile, tmp_path: Path) -> Callable[..., SelfTestContext]:
    """``bench(backend=...)``: everything that a self-test needs; a machine without sensors."""

    def make(backend: Backend | None = None, **changes: Any) -> SelfTestContext:
        (tmp_path / "work").mkdir()
        given: dict[str, Any] = {
            "profile": tiny, "backend": lambda item: backend or interface.get(item.backend),
            "pictures": open_pictures(tmp_path / "pictures"), "cache": tmp_path / "cache", "work": tmp_path / "work",
            "root": tmp_path / "root", "pause": lambda _seconds: None, "threads": 1, **changes,
        }  # fmt: skip
        return SelfTestContext(**given)

    return make


def taken(bench: SelfTestContext) -> dict[str, SelfTestStep]:
    run = SelfTestRun(bench)
    heard: list[SelfTestStep] = []
    run.go(heard.append)
    assert heard == run.record().steps or [step.name for step in heard] == [step.name for step in run.record().steps]
    assert run.record().status == "complete"
    return {step.name: step for step in heard}


def statuses(steps: dict[str, SelfTestStep]) -> dict[str, str]:
    return {name: step.status for name, step in steps.items()}


def test_on_a_host(bench: Callable[..., SelfTestContext]) -> None:
    steps = taken(bench())
    assert statuses(steps) == {
        "machine": "ok", "pictures": "ok", "reference": "ok", "table": "ok",
        "build fp32": "ok", "answers fp32": "ok", "build fp16": "skipped", "answers fp16": "skipped",
        "build int8 explicit": "ok", "answers int8 explicit": "ok", "GPU preprocessing": "skipped",
        "unchanged": "ok", "timing cache": "skipped", "foreign engine": "ok", "foreign table": "ok",
        "power": "skipped", "camera": "skipped",
    }  # fmt: skip
    assert "not fp16" in steps["build fp16"].text
    assert steps["answers fp16"].text == "not built"
    assert steps["answers fp32"].figures["same_top1"] == 5
    assert steps["answers fp32"].figures["n"] == 5
    assert steps["build int8 explicit"].figures["int8"] == 4
    assert set(steps["foreign engine"].figures["tried"]) >= {"other onnxruntime", "other table", "one bit flipped"}
    assert all(step.text for step in steps.values())


def test_nothing_of_the_user_is_touched(bench: Callable[..., SelfTestContext], tmp_path: Path) -> None:
    def content() -> dict[str, bytes]:
        folders = ("cache", "pictures", "profiles")
        return {
            str(path): path.read_bytes() for name in folders for path in (tmp_path / name).rglob("*") if path.is_file()
        }

    before = content()
    taken(bench())
    assert content() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "calibration", "pictures", "profiles", "work"]


class Without(OnnxRuntime):
    """ONNX Runtime that keeps ``floats`` layers of an INT8 engine in float, or says so."""

    def __init__(self, **changes: Any) -> None:
        self._changes = changes

    def build(self, request: BuildRequest, **options: Any) -> BuiltEngine:
        built = super().build(request, **options)
        if request.precision != "int8":
            return built
        return msgspec.structs.replace(built, layers=msgspec.structs.replace(built.layers, **self._changes))


def test_layers_that_fell_out_of_int8_fail_one_step_and_no_other(bench: Callable[..., SelfTestContext]) -> None:
    steps = taken(bench(Without(weighted_int8=1)))
    found = steps["build int8 explicit"]
    assert found.status == "failed"
    assert "INT8 was requested, but only 1 of 4 weighted layers run in it" in found.text
    assert found.trace is None
    assert steps["answers int8 explicit"].text == "not built"
    assert [name for name, step in steps.items() if step.status == "failed"] == ["build int8 explicit"]


class Wrong(OnnxRuntime):
    """Engines answer for a mirrored picture; ``trouble`` is raised instead where it is given."""

    def __init__(self, trouble: Exception | None = None) -> None:
        self._trouble = trouble

    def open(self, engine: Path, **options: Any) -> Session:
        session = super().open(engine, **options)
        infer = session.infer

        def wrong(batch: Any) -> Any:
            if self._trouble is not None:
                raise self._trouble
            return infer(np.ascontiguousarray(batch[:, :, ::-1, ::-1]))

        session.infer = wrong  # type: ignore[method-assign]
        return session


def test_wrong_answers_are_found(bench: Callable[..., SelfTestContext]) -> None:
    steps = taken(bench(Wrong()))
    assert steps["answers fp32"].status == "failed"
    assert "100% and 35 dB are expected for fp32" in str(steps["answers fp32"].hint)
    assert steps["answers fp32"].figures["sqnr_db"] < 35


def test_a_failing_backend_fails_its_steps(bench: Callable[..., SelfTestContext]) -> None:
    steps = taken(bench(Wrong(DeviceError("the device is gone", hint="edge doctor"))))
    assert (steps["answers fp32"].status, steps["answers fp32"].text) == ("failed", "the device is gone")
    assert steps["unchanged"].status == steps["foreign table"].status == "ok"


def test_a_bug_of_ours_is_a_failed_step_with_its_traceback(bench: Callable[..., SelfTestContext]) -> None:
    steps = taken(bench(Wrong(ZeroDivisionError("by nobody"))))
    assert steps["answers fp32"].status == "failed"
    assert "ZeroDivisionError: by nobody" in steps["answers fp32"].text
    assert "Traceback" in str(steps["answers fp32"].trace)
    assert steps["power"].status == "skipped"


def test_a_missing_table_is_said_once_and_int8_is_skipped(
    bench: Callable[..., SelfTestContext], tmp_path: Path
) -> None:
    steps = taken(bench(cache=tmp_path / "empty"))
    assert steps["table"].status == "failed"
    assert "no calibration table" in steps["table"].text
    assert statuses(steps)["build int8 explicit"] == statuses(steps)["foreign table"] == "skipped"
    # Then an FP32 engine is what the refusals are tried with.
    assert steps["foreign engine"].status == "ok"


def test_without_pictures(bench: Callable[..., SelfTestContext]) -> None:
    steps = taken(bench(pictures=None))
    assert steps["pictures"].status == "failed"
    assert (steps["reference"].status, steps["answers fp32"].text) == ("skipped", "no reference answers")
    assert steps["build fp32"].status == "ok"


def test_a_signal_ends_it_and_what_was_found_is_there(bench: Callable[..., SelfTestContext]) -> None:
    run = SelfTestRun(bench())

    def hear(step: SelfTestStep) -> None:
        if step.name == "build fp32":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.go(hear)
    record = run.record()
    assert record.status == "interrupted"
    assert record.steps[-1].name == "build fp32"


def test_the_record_names_no_path(
    bench: Callable[..., SelfTestContext], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    run = SelfTestRun(bench(Without(weighted_int8=0)))
    run.go()
    text = encode(run.record()).decode()
    assert str(tmp_path / "work") not in text
    assert str(tmp_path / "home") not in text
    assert msgspec.json.decode(text, type=SelfTest) == run.record()
    subject = run.record().subject
    assert subject["model"] == "model.onnx"
    assert (subject["profile"], subject["backend"]["backend"]) == ("tiny", "onnxruntime")


# reference answers


def test_kept_answers(bench: Callable[..., SelfTestContext], tiny: Profile, tmp_path: Path) -> None:
    pictures = open_pictures(tmp_path / "pictures")
    answers = selftest_engines.compute(tiny, pictures)
    path = selftest_engines.save(tmp_path / "kept", tiny, pictures, answers)
    assert np.array_equal(selftest_engines.load(tmp_path / "kept", tiny, pictures), answers)
    first = {item.name: item.read_bytes() for item in path.parent.iterdir() if item.suffix == ".npz"}
    selftest_engines.save(tmp_path / "kept", tiny, pictures, answers)
    assert {item.name: item.read_bytes() for item in path.parent.iterdir() if item.suffix == ".npz"} == first
    steps = taken(bench(kept_reference=tmp_path / "kept"))
    assert steps["reference"].text == "computed here for 5 images, identical to the saved ones"


def test_a_machine_that_answers_differently_is_found(
    bench: Callable[..., SelfTestContext], tiny: Profile, tmp_path: Path
) -> None:
    pictures = open_pictures(tmp_path / "pictures")
    answers = selftest_engines.compute(tiny, pictures)
    selftest_engines.save(tmp_path / "kept", tiny, pictures, answers[:, ::-1].copy())
    steps = taken(bench(kept_reference=tmp_path / "kept"))
    assert steps["reference"].status == "failed"
    assert "decodes or computes differently" in steps["reference"].text
    assert steps["answers fp32"].status == "ok"


def test_kept_answers_to_other_pictures_are_not_used(
    bench: Callable[..., SelfTestContext], tiny: Profile, tmp_path: Path
) -> None:
    others = open_pictures(tmp_path / "calibration")
    selftest_engines.save(tmp_path / "kept", tiny, others, selftest_engines.compute(tiny, others))
    with pytest.raises(ArtifactError, match="pictures: "):
        selftest_engines.load(tmp_path / "kept", tiny, open_pictures(tmp_path / "pictures"))
    steps = taken(bench(kept_reference=tmp_path / "kept"))
    assert steps["reference"].status == "ok"
    assert "saved answers: these reference results were made with other inputs" in steps["reference"].text


def spoiled(folder: Path, content: bytes) -> None:
    """Another array under a manifest that fits it."""
    manifest = store.load(folder / selftest_engines.MANIFEST, kind=selftest_engines.KIND)
    store.save(
        folder / selftest_engines.MANIFEST, kind=selftest_engines.KIND, files={"reference.npz": content},
        key=manifest.key,
        info=manifest.info,
    )  # fmt: skip


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x05\x06" + bytes(18)], ids=["empty", "text", "empty zip"])
def test_answers_that_are_none(content: bytes, tiny: Profile, tmp_path: Path) -> None:
    pictures = open_pictures(tmp_path / "pictures")
    selftest_engines.save(tmp_path / "kept", tiny, pictures, selftest_engines.compute(tiny, pictures))
    spoiled(tmp_path / "kept", content)
    with pytest.raises(ArtifactError, match="not reference results"):
        selftest_engines.load(tmp_path / "kept", tiny, pictures)


@pytest.mark.parametrize(
    "array", [np.zeros((5, 10)), np.zeros((4, 10), np.float32), np.full((5, 10), np.nan, np.float32)]
)
def test_answers_of_another_form(array: Any, tiny: Profile, tmp_path: Path) -> None:
    pictures = open_pictures(tmp_path / "pictures")
    selftest_engines.save(tmp_path / "kept", tiny, pictures, selftest_engines.compute(tiny, pictures))
    content = io.BytesIO()
    np.savez_compressed(content, logits=array)
    spoiled(tmp_path / "kept", content.getvalue())
    with pytest.raises(ArtifactError, match="not reference results"):
        selftest_engines.load(tmp_path / "kept", tiny, pictures)


def test_the_sample_answers_are_those_of_the_sample_model(repository: Path) -> None:
    chosen = profiles.read_profile(repository / "profiles/host.yaml")
    pictures = open_pictures(repository / "samples")
    kept = selftest_engines.load(repository / "samples", chosen, pictures)
    assert kept.shape == (12, 1000)
    here = selftest_engines.compute(chosen, pictures)
    assert (here.argmax(axis=1) == kept.argmax(axis=1)).all()
    # The same answers serve every profile that scales the pictures the same way.
    for name in ("orin", "orin-nano", "thor", "rtx"):
        other = profiles.read_profile(repository / "profiles" / f"{name}.yaml")
        assert selftest_engines.key(other, pictures) == selftest_engines.key(chosen, pictures)


# sensors


def grown(root: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


JETSON: dict[str, object] = {
    "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0005\0nvidia,tegra234",
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit",
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.4, GCID: 1, BOARD: generic, EABI: aarch64",
}


def test_power_of_a_jetson(bench: Callable[..., SelfTestContext], tmp_path: Path) -> None:
    step = taken(bench(root=grown(tmp_path / "root", ORIN_NANO)))["power"]
    assert (step.status, step.text) == ("ok", "6.50 W by hwmon (module_input), 5 readings")
    assert step.figures["power_mw"] == [6500.0] * 5


def test_a_jetson_without_power_has_failed(
    bench: Callable[..., SelfTestContext], tmp_path: Path, tiny: Profile
) -> None:
    chosen = msgspec.structs.replace(tiny, family="orin-nano")
    steps = taken(bench(root=grown(tmp_path / "root", JETSON), profile=chosen))
    assert steps["machine"].status == "ok"
    assert "JetPack 6.2.1" in steps["machine"].text
    assert steps["power"].status == "failed"
    assert set(steps["power"].figures) == {"hwmon", "tegrastats", "rapl"}


def test_a_profile_of_another_device(bench: Callable[..., SelfTestContext], tmp_path: Path, tiny: Profile) -> None:
    chosen = msgspec.structs.replace(tiny, family="thor")
    steps = taken(bench(root=grown(tmp_path / "root", JETSON), profile=chosen))
    assert steps["machine"].status == "failed"
    assert "the profile is for thor" in steps["machine"].text


def test_a_machine_that_is_out_of_scope(bench: Callable[..., SelfTestContext], tmp_path: Path) -> None:
    old = {**JETSON, "etc/nv_tegra_release": "# R35 (release), REVISION: 4.1, GCID: 1, BOARD: generic"}
    steps = taken(bench(root=grown(tmp_path / "root", old)))
    assert steps["machine"].status == "failed"
    assert "JetPack 5 and older are out of scope" in steps["machine"].text


class Captured:
    """A camera that gives ``left`` frames, and then nothing."""

    fps: float | None = 30.0
    frames: int | None = None

    def __init__(self, left: int = 1_000_000_000) -> None:
        self.left = left
        self.released = False

    def grab(self) -> bool:
        time.sleep(0.001)
        self.left -= 1
        return self.left >= 0

    def captured_s(self) -> float:
        return time.monotonic()

    def retrieve(self) -> Any:
        return np.full((48, 64, 3), self.left % 200, np.uint8)

    def release(self) -> None:
        self.released = True


def test_a_camera(bench: Callable[..., SelfTestContext], tmp_path: Path) -> None:
    capture = Captured()
    root = grown(tmp_path / "root", {"dev/video0": "", "sys/class/video4linux/video0/name": "A Camera"})
    step = taken(bench(root=root, open_capture=lambda _request: capture, has_capture=lambda _api: True))["camera"]
    assert step.status == "ok", step
    assert step.text.startswith("/dev/video0: 10 frames of 64×48")
    assert capture.released


@pytest.mark.parametrize("frames", [10, 2])
def test_a_camera_s_password_is_not_in_the_report(bench: Callable[..., SelfTestContext], frames: int) -> None:
    url = Secret.url("rtsp://ada:c4nary@cam/s?token=c4nary")
    step = taken(bench(camera=url, open_capture=lambda _request: Captured(frames), has_capture=lambda _api: True))[
        "camera"
    ]
    assert "rtsp://***@cam/s" in step.text
    assert b"c4nary" not in msgspec.json.encode(step)


def test_a_camera_that_stops(bench: Callable[..., SelfTestContext], tmp_path: Path) -> None:
    root = grown(tmp_path / "root", {"dev/video0": ""})
    step = taken(bench(root=root, open_capture=lambda _request: Captured(2), has_capture=lambda _api: True))["camera"]
    assert step.status == "failed"
    assert step.text


def test_a_camera_that_does_not_open(bench: Callable[..., SelfTestContext]) -> None:
    def refuse(_request: object) -> Any:
        raise DeviceError("it does not open")

    step = taken(bench(camera=Secret.url("csi://0"), open_capture=refuse, has_capture=lambda _api: True))["camera"]
    assert step.status == "failed"
    assert step.hint
    assert step.trace is None


def test_a_machine_without_onnxruntime_uses_the_kept_answers(
    bench: Callable[..., SelfTestContext], tiny: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = open_pictures(tmp_path / "pictures")
    answers = selftest_engines.compute(tiny, pictures)
    selftest_engines.save(tmp_path / "kept", tiny, pictures, answers)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with_kept = bench(kept_reference=tmp_path / "kept")
    told = selftest_engines.step(with_kept)
    assert (told.status, told.figures["computed_here"]) == ("ok", False)
    assert "saved answers for 5 images (onnxruntime" in told.text
    assert with_kept.reference is not None
    assert np.array_equal(with_kept.reference, answers)
    with_kept.kept_reference = None
    told = selftest_engines.step(with_kept)
    assert told.status == "failed"
    assert "--write-reference" in str(told.hint)

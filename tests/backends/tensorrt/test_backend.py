"""The backend as the operations see it, and builds in a process of their own."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge.artifacts import store
from edge.backends.interface import BuildRequest
from edge.backends.tensorrt import subprocess_build
from edge.backends.tensorrt.backend import TensorRT
from edge.backends.tensorrt.builder_config import Options
from edge.backends.tensorrt.environment import Caps, Environment
from edge.calibration import cache_keys
from edge.config.profiles import Profile
from edge.engines import building
from edge.errors import ArtifactError, DeviceError, MissingDependencyError, ModelError
from edge.events import Event, Progress
from edge.quantization import calibration_table
from edge.system import device
from edge.system.device import Device
from tests.support.tensorrt.installed import table_for, world

ORIN = Device(is_jetson=True, family="agx-orin", module="p3701-0005", sm="8.7", machine="aarch64")
HOST = Device(is_jetson=False, family="host", machine="x86_64")
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None,
    reason="TensorRT for RTX is not installed: pip install tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings",
)


def backend(**options: Any) -> TensorRT:
    return TensorRT(machine=ORIN, isolate=False, **options)


def test_identity_names_version_module_and_compute_capability(binding: Callable[..., Caps]) -> None:
    binding("10.3.0")
    assert TensorRT(machine=ORIN, rtx=False).identity() == {
        "backend": "tensorrt", "tensorrt": "10.3.0", "rtx": False, "module": "p3701-0005", "sm": "8.7", "gpu": None,
        "machine": "aarch64", "multiprocessors": None, "power_mode": None, "clocks_locked": None,
    }  # fmt: skip


def test_an_engine_for_more_machines_names_them(binding: Callable[..., Caps], tiny: Callable[..., Profile]) -> None:
    binding("10.3.0")
    wide = tiny(build={"hardware_compatibility": "AMPERE_PLUS", "version_compatible": True})
    assert TensorRT(profile=wide, machine=ORIN).identity() == {
        "backend": "tensorrt", "tensorrt": "10.x, version compatible", "rtx": False, "machine": "aarch64",
        "gpus": "AMPERE_PLUS",
    }  # fmt: skip
    binding("rtx")
    for names, said in ((["SM86", "SM120"], "SM86+SM120"), ([], "all that it knows")):
        desktop = tiny(family="rtx", build={"compute_capabilities": names})
        found = TensorRT(profile=desktop, machine=HOST).identity()
        assert (found["rtx"], found["gpus"]) == (True, said)
        assert "gpu" not in found


def test_identity_without_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingDependencyError, match="TensorRT is not installed"):
        TensorRT(machine=HOST, rtx=False).identity()


@needs_rtx
def test_identity_of_rtx_imports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", None)
    found = TensorRT(machine=HOST, rtx=True).identity()
    assert (found["rtx"], str(found["tensorrt"])[:2]) == (True, "1.")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_what_the_manifest_gets(
    precision: str, version: str, binding: Callable[..., Caps], asked: Callable[..., BuildRequest]
) -> None:
    caps = binding(version)
    built = backend().build(asked(precision))
    assert built.suffix == ".plan"
    assert built.info["tensorrt"] == caps.title
    assert built.info["why"]
    assert built.info["flags"] == ([] if precision == "fp32" else sorted(built.info["flags"]))
    expected = None if precision != "int8" else ("implicit" if caps.implicit_int8 else "explicit")
    assert built.route == expected
    # A Jetson's memory is shared, so the pools are limited.
    assert built.info["workspace_mib"] is not None


def save_table(profile: Profile, cache: Path) -> Path:
    """A table with its manifest, as `edge calibrate` leaves it."""
    path = cache_keys.table_path(profile, cache)
    store.save(
        cache_keys.manifest_path(path), kind=cache_keys.TABLE,
        files={path.name: calibration_table.write(table_for(Path(profile.model)))},
        key=cache_keys.table_key(profile), info={"zero_tensors": []},
    )  # fmt: skip
    return path


def test_the_verb_builds_with_it_on_every_version(
    version: str, binding: Callable[..., Caps], tiny: Callable[..., Profile], tmp_path: Path
) -> None:
    caps = binding(version)
    profile = tiny()
    save_table(profile, tmp_path / "cache")
    chosen = backend(rtx=caps.rtx)
    outcome = building.build(profile, chosen, cache=tmp_path / "cache", engines=tmp_path / "engines")
    assert outcome.work == "built"
    assert outcome.engine is not None
    assert outcome.engine.suffix == ".plan"
    assert outcome.layers is not None
    assert outcome.layers.int8_share == 1.0
    manifest = store.load(outcome.manifest, kind=cache_keys.ENGINE)
    assert manifest.info["int8_route"] == ("implicit" if caps.implicit_int8 else "explicit")
    assert manifest.key["tensorrt"]
    again = building.build(profile, chosen, cache=tmp_path / "cache", engines=tmp_path / "engines")
    assert again.work == "unchanged"


def test_another_power_mode_builds_anew_and_runs_with_a_warning_fewer_multiprocessors_are_refused(
    binding: Callable[..., Caps], tiny: Callable[..., Profile], tmp_path: Path
) -> None:
    binding("10.3.0")
    profile = tiny()
    save_table(profile, tmp_path / "cache")
    folders = {"cache": tmp_path / "cache", "engines": tmp_path / "engines"}

    def here(mode: str, multiprocessors: int | None) -> TensorRT:
        machine = msgspec.structs.replace(ORIN, power_mode=mode, clocks_locked=False)
        found = Environment(device=machine, sm="8.7", multiprocessors=multiprocessors)
        return TensorRT(environment=found, isolate=False, rtx=False)

    built = building.build(profile, here("MAXN", 16), **folders)
    assert cache_keys.find_engine(profile, here("30W", 16), precision="int8", **folders).path == built.engine
    # A service builds it again: it asks for exactly this device.
    with pytest.raises(ArtifactError, match="power_mode: MAXN -> 30W"):
        cache_keys.find_engine(profile, here("30W", 16), precision="int8", exact=True, **folders)
    with pytest.raises(ArtifactError, match="multiprocessors: 16 -> 14"):
        cache_keys.find_engine(profile, here("30W", 14), precision="int8", **folders)
    again = building.build(profile, here("30W", 14), dry_run=True, **folders)
    assert again.work == "would build"
    assert again.why == ["multiprocessors: 16 -> 14", "power_mode: MAXN -> 30W"]


def test_a_failed_build_keeps_the_engine_that_is_there(
    binding: Callable[..., Caps], tiny: Callable[..., Profile], tmp_path: Path
) -> None:
    caps = binding("10.3.0")
    profile = tiny()
    save_table(profile, tmp_path / "cache")
    folders = {"cache": tmp_path / "cache", "engines": tmp_path / "engines"}
    first = building.build(profile, backend(rtx=False), **folders)
    assert first.engine is not None
    before = first.engine.read_bytes()
    for setting in ({"fails": ["out of memory"]}, {"refuses_table": True}, {"no_cuda": "error: 100"}):
        for name, value in setting.items():
            setattr(world(caps), name, value)
        with pytest.raises((DeviceError, ArtifactError)):
            building.build(profile, backend(rtx=False), force=True, **folders)
        for name in setting:
            setattr(world(caps), name, [] if name == "fails" else None)
    assert first.engine.read_bytes() == before
    store.load(first.manifest, kind=cache_keys.ENGINE)


def test_this_machine_is_looked_at_when_none_is_given(binding: Callable[..., Caps]) -> None:
    binding("10.3.0")
    assert TensorRT(rtx=False).identity()["machine"] == device.identify().machine


# a process of its own


@pytest.fixture
def for_rtx(tiny_profile: Callable[..., Path], tmp_path: Path) -> Callable[..., BuildRequest]:
    from edge.config import profiles

    def make(precision: Any = "int8") -> BuildRequest:
        chosen = profiles.read_profile(tiny_profile(tmp_path, backend="tensorrt", family="rtx"))
        path = Path(chosen.model)
        table = table_for(path) if precision == "int8" else None
        return BuildRequest(profile=chosen, model=path, precision=precision, table=table)

    return make


@needs_rtx
def test_a_child_builds_and_reports(for_rtx: Callable[..., BuildRequest]) -> None:
    events: list[Event] = []
    built = TensorRT(rtx=True, machine=HOST).build(for_rtx(), listen=events.append)
    assert len(built.data) > 1000
    assert (built.layers.weighted, built.layers.weighted_int8, built.route) == (4, 4, "explicit")
    progress = [event.done for event in events if isinstance(event, Progress)]
    assert progress == sorted(progress)
    assert progress[-1] == 100


@needs_rtx
def test_a_childs_error_keeps_its_class_and_words(for_rtx: Callable[..., BuildRequest]) -> None:
    request = for_rtx("fp32")
    request.model.write_bytes(b"not a model at all")
    with pytest.raises(ModelError) as caught:
        subprocess_build.build(request, rtx=True, options=Options())
    assert caught.value.where is not None
    assert caught.value.hint


def test_no_tensorrt_for_the_child(for_rtx: Callable[..., BuildRequest], monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("tensorrt") is not None:
        pytest.skip("TensorRT is installed here")
    with pytest.raises(MissingDependencyError, match="TensorRT is not installed"):
        subprocess_build.build(for_rtx(), rtx=False, options=Options())


@pytest.mark.parametrize(
    ("script", "kind", "words"),
    [
        pytest.param("kill -KILL $$", DeviceError, "probably for lack of memory", id="killed for memory"),
        pytest.param("kill -SEGV $$", DeviceError, r"TensorRT crashed in the build \(SIGSEGV\)", id="crashed"),
        pytest.param("exit 3", RuntimeError, "ended with code 3", id="a bug"),
        pytest.param("exit 0", RuntimeError, "ended with code 0", id="ended and said nothing"),
    ],
)
def test_a_child_that_dies(
    script: str, kind: type[Exception], words: str, for_rtx: Callable[..., BuildRequest]
) -> None:
    with pytest.raises(kind, match=words) as caught:
        subprocess_build.build(for_rtx(), rtx=True, options=Options(), command=["sh", "-c", script])
    if isinstance(caught.value, DeviceError):
        assert caught.value.hint is not None
        assert "no partial engine was stored" in caught.value.hint


class Stopped(BaseException):
    """As the command line's signal handler raises it."""


@pytest.mark.parametrize("stubborn", [False, True], ids=["ends when asked", "has to be killed"])
def test_ctrl_c_ends_the_child(
    stubborn: bool, for_rtx: Callable[..., BuildRequest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    note = tmp_path / "child.pid"
    trap = "trap '' TERM; " if stubborn else ""
    command = ["sh", "-c", f"{trap}cat > /dev/null; echo $$ > {note}; while :; do sleep 0.05; done"]

    def on_signal(_number: int, _frame: object) -> None:
        raise Stopped

    def press() -> None:
        while not (note.exists() and note.read_text().strip()):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, on_signal)
    thread = threading.Thread(target=press)
    thread.start()
    try:
        with pytest.raises(Stopped):
            subprocess_build.build(for_rtx(), rtx=True, options=Options(), command=command, grace_s=0.3)
    finally:
        signal.signal(signal.SIGUSR1, before)
        thread.join()
    assert not is_alive(int(note.read_text()))
    assert list(tmp_path.glob("edge-build-*")) == []


def is_alive(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return True

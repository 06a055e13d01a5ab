"""NVIDIA's real runtimes: the lean and dispatch libraries of two versions, and the runtime of TensorRT for RTX.

Each runs in a process of its own, so that a crash is a red test. Without a GPU no lean runtime starts; that of TensorRT
for RTX does, and refuses plans before it needs one. ``pytest -m gpu`` gives plans to the lean runtime on a GPU.

The wheels come with ``tests/support/tensorrt/fetch_wheels.sh`` (another folder with EDGE_TRT_WHEELS).
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.support.tensorrt import real

SCRIPT = Path(real.__file__).with_name("real_runtime_script.py")
RUNTIMES = [(kind, version) for version in ("10.16.1.11", "11.4.0.106") for kind in ("lean", "dispatch")]
TRUNCATED = "the file is truncated or was changed"
NO_ENGINE = "the file is not a TensorRT engine"


def run_script(kind: str, site: Path, plans: list[Path], **environment: str) -> dict[str, dict[str, Any]]:
    """The outcome of each plan by its name."""
    done = subprocess.run(
        [sys.executable, SCRIPT, site, kind, *plans],
        env={**os.environ, "PYTHONPATH": _python_path(), **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr}"
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {item["plan"]: item for item in found}


def _python_path() -> str:
    return os.pathsep.join(filter(None, (str(real.REPOSITORY), os.environ.get("PYTHONPATH"))))


def unpacked(kind: str, version: str, folder: Path) -> Path:
    wheels = real.runtime_wheels(kind, version)
    if wheels is None:
        pytest.skip(f"no {kind} runtime {version} in {real.WHEELS}: tests/support/tensorrt/fetch_wheels.sh")
    return real.unpack_runtime(wheels, folder / f"{kind}-{version}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runtimes")


@pytest.mark.parametrize(("kind", "version"), RUNTIMES)
def test_a_runtime_that_cannot_start_is_a_device_error(kind: str, version: str, folder: Path, tmp_path: Path) -> None:
    plan = tmp_path / "an.plan"
    plan.write_bytes(b"ftrt" + bytes(100))
    # A machine with a GPU hides it: CUDA error 100 instead of 35.
    found = run_script(kind, unpacked(kind, version, folder), [plan, plan], CUDA_VISIBLE_DEVICES="")["an.plan"]
    assert (found["error"], found["code"]) == ("DeviceError", 8)
    assert "NVIDIA" in found["what"]
    assert "edge doctor" in found["hint"]
    assert "edge build" not in found["hint"]


def variants(plan: bytes, folder: Path) -> dict[str, tuple[Path, str]]:
    """Plans that a runtime refuses, made of a good one, and what is said of each."""
    made = {
        "empty": (b"", TRUNCATED),
        "short": (plan[:4], TRUNCATED),
        "truncated": (plan[: len(plan) // 2], TRUNCATED),
        "lengthened": (plan + bytes(100), TRUNCATED),
        "garbage": (b"not an engine" * 100, NO_ENGINE),
    }
    paths = {}
    for name, (content, words) in made.items():
        path = folder / f"{name}.plan"
        path.write_bytes(content)
        paths[name] = (path, words)
    return paths


def assert_said(found: dict[str, dict[str, Any]], plans: dict[str, tuple[Path, str]]) -> None:
    for path, words in plans.values():
        item = found[path.name]
        assert (item["error"], item["code"]) == ("DeviceError", 8), item
        assert words in item["what"], item
        assert "kind of GPU" not in item["hint"], item


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None, reason="TensorRT for RTX is not installed"
)
def test_the_runtime_of_rtx_says_what_is_wrong_with_a_plan(tiny_profile: Callable[..., Path], tmp_path: Path) -> None:
    from edge.backends.interface import BuildRequest
    from edge.backends.tensorrt import builder, environment
    from edge.config import profiles

    chosen = profiles.read_profile(tiny_profile(tmp_path, backend="tensorrt", family="rtx"))
    chosen = msgspec.structs.replace(
        chosen, build=msgspec.structs.replace(chosen.build, compute_capabilities=("SM86",))
    )
    request = BuildRequest(profile=chosen, model=tmp_path / "model.onnx", precision="fp32")
    built = builder.build(request, environment.load(rtx=True))
    assert built is not None
    plan = built.plan
    plans = variants(plan, tmp_path) | {
        "header": (tmp_path / "header.plan", TRUNCATED),
        "version": (tmp_path / "version.plan", "it was built with TensorRT-RTX 1.6."),
        "foreign": (tmp_path / "foreign.plan", "it is an engine for TensorRT, not for the installed product"),
    }
    (tmp_path / "header.plan").write_bytes(plan[:12] + b"\xff" + plan[13:])
    assert plan[24:26] == bytes((1, 7)), "the version is elsewhere in this release"
    (tmp_path / "version.plan").write_bytes(plan[:25] + b"\x06" + plan[26:])
    (tmp_path / "foreign.plan").write_bytes(b"ftrt" + plan[4:])
    found = run_script("rtx", tmp_path, [path for path, _words in plans.values()], CUDA_VISIBLE_DEVICES="")
    foreign = found.pop("foreign.plan"), plans.pop("foreign")
    version = found.pop("version.plan"), plans.pop("version")
    assert_said(found, plans)
    for item, (_path, words) in (foreign, version):
        assert words in item["what"]
        assert "that built it" in item["hint"]


@pytest.mark.gpu
@pytest.mark.parametrize("version", ["10.16.1.11", "11.4.0.106"])
def test_the_lean_runtime_on_a_gpu_says_what_is_wrong_with_a_plan(version: str, folder: Path, tmp_path: Path) -> None:
    from edge.backends.cuda import open_device
    from edge.errors import EdgeError

    try:
        open_device().close()
    except EdgeError as exc:
        pytest.skip(f"no GPU: {exc.what}")
    plans = variants(b"ftrt" + bytes(1000), tmp_path)
    foreign = tmp_path / "foreign.plan"
    foreign.write_bytes(b"vtrt" + bytes(1000))
    paths = [*(path for path, _words in plans.values()), foreign]
    found = run_script("lean", unpacked("lean", version, folder), paths, EDGE_TEST_GPU="1")
    assert "it is an engine for TensorRT for RTX, not for the installed product" in found.pop("foreign.plan")["what"]
    assert_said(found, plans)

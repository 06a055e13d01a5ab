"""NVIDIA's own bindings, imported without its libraries: our subclasses, called through its C++ objects.

Needs the wheels (``tests/support/tensorrt/fetch_wheels.sh``; another folder with EDGE_TRT_WHEELS), a C compiler, and
x86-64 Linux.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge.backends.tensorrt.environment import Caps
from edge.quantization import calibration_table
from tests.support.tensorrt import real
from tests.support.tensorrt.installed import table_for

SCRIPT = Path(real.__file__).with_name("real_script.py")
CODES = {"entropy2": 2, "minmax": 3, "entropy": 1, "legacy": 0}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {"folder": tmp_path_factory.mktemp("real")}


@pytest.fixture(params=real.VERSIONS)
def outcome(
    request: pytest.FixtureRequest, outcomes: dict[str, Any], tiny_profile: Callable[..., Path]
) -> dict[str, Any]:
    """What the script found with one version's binding; one run per version."""
    version = str(request.param)
    if version not in outcomes:
        wheel = _wheel(version)
        folder = outcomes["folder"] / version
        site, libraries = real.unpack(wheel, folder)
        tiny_profile(folder, backend="tensorrt", family="agx-orin")
        (folder / "t.table").write_bytes(calibration_table.write(table_for(folder / "model.onnx")))
        done = subprocess.run(
            [sys.executable, "-W", "error", SCRIPT, site, folder / "model.onnx", folder / "t.table"],
            env={
                **os.environ,
                "LD_LIBRARY_PATH": str(libraries),
                "PYTHONPATH": os.pathsep.join([str(real.REPOSITORY), str(SCRIPT.parent)]),
            },
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        # A trampoline that meets an exception of ours prints it.
        assert "Exception caught" not in done.stderr
        outcomes[version] = json.loads(done.stdout)
    return {"version": version, **outcomes[version]}


def _wheel(version: str) -> Path:
    if platform.machine() != "x86_64" or sys.platform != "linux":
        pytest.skip("the wheels of NVIDIA's bindings are for x86-64 Linux")
    missing = [tool for tool in ("cc", "readelf", "nm") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not found")
    found = real.wheel(version)
    if found is None:
        tag = f"{sys.version_info.major}.{sys.version_info.minor}"
        pytest.skip(
            f"no wheel of TensorRT {version} for Python {tag} in {real.WHEELS}: tests/support/tensorrt/fetch_wheels.sh"
        )
    return found


def test_the_double_has_the_same_capabilities(outcome: dict[str, Any], binding: Callable[..., Caps]) -> None:
    double = binding(outcome["version"])
    assert outcome["caps"] == json.loads(msgspec.json.encode(double))


def test_the_logger_hears_the_library(outcome: dict[str, Any]) -> None:
    assert sorted(outcome["logged"]) == [
        ["ERROR", "an error"],
        ["INTERNAL_ERROR", "by the binding"],
        ["WARNING", "a warning"],
    ]


def test_a_build_without_cuda_says_why(outcome: dict[str, Any]) -> None:
    found = outcome["builder"]
    assert found["error"] == "DeviceError"
    assert found["what"].startswith("the NVIDIA driver is missing, or older than this TensorRT needs")
    assert "error: 35" in found["what"]


def test_the_progress_monitor_is_called_and_stops(outcome: dict[str, Any]) -> None:
    if not outcome["caps"]["progress_monitor"]:
        assert outcome["version"] == "8.6.1"
        return
    found = outcome["monitor"]
    assert found["answers"] == [True, True, False]
    assert found["percents"] == [0, 25, 50, 75]
    assert found["stopped"]
    assert found["after_an_exception"] is False


@pytest.mark.parametrize("algorithm", CODES)
def test_a_calibrator_feeds_batches(algorithm: str, outcome: dict[str, Any]) -> None:
    found = outcome["calibrators"].get(algorithm)
    if found is None:
        assert outcome["version"].startswith("11.")
        return
    assert found["algorithm"] == CODES[algorithm]
    assert found["batch"] == 2
    assert [got for got, _address in found["asked"]] == [True, True, True, False]
    assert found["same_address"]
    assert found["seen"] == [1.0, 2.0, 3.0]
    assert found["cache"] is None
    assert found["table"] == ["input"]
    assert found["raises"] == [False, "the image is gone"]
    if algorithm == "legacy":
        assert (found["quantile"], found["cutoff"]) == (0.75, 0.5)


def test_a_table_is_served_to_the_byte(outcome: dict[str, Any]) -> None:
    if not outcome["caps"]["calibrators"]:
        assert outcome["version"].startswith("11.")
        return
    found = outcome["serving"]
    assert found["contents"] == [found["expected"]] * 2
    assert found["got"] is False
    assert "refused the calibration table" in found["refused"]

"""What a machine without CUDA is told. The room itself is tried in test_gpu.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# A process of its own: PyCUDA and its driver are looked for once.
ASK = """
import sys
{prepare}
from edge.backends.cuda import driver
from edge.errors import EdgeError
try:
    driver.open_device({ordinal})
except EdgeError as exc:
    print(type(exc).__name__, exc.exit_code, exc)
else:
    print("there is a GPU")
"""


def ask(folder: Path, *, prepare: str = "", ordinal: int = 0) -> str:
    command = [sys.executable, "-W", "ignore", "-c", ASK.format(prepare=prepare, ordinal=ordinal)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def fake_pycuda(folder: Path, body: str) -> None:
    (folder / "pycuda").mkdir()
    (folder / "pycuda" / "__init__.py").write_text("")
    (folder / "pycuda" / "driver.py").write_text(body)


def test_no_pycuda(tmp_path: Path) -> None:
    said = ask(tmp_path, prepare="sys.modules['pycuda'] = None; sys.modules['pycuda.driver'] = None")
    assert said.startswith("MissingDependencyError 4 pycuda")
    assert "try:" in said


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("libcuda.so.1: cannot open shared object file: No such file", "no NVIDIA driver on this machine"),
        ("libcurand.so.10: cannot open shared object file: No such file", "CUDA's libcurand.so.10 was not found"),
        ("/x/_driver.so: undefined symbol: cuCtxCreate_v4", "driver is older than the CUDA that PyCUDA was built with"),
    ],
    ids=["no driver", "no CUDA library", "old driver"],
)
def test_a_missing_or_old_cuda(tmp_path: Path, message: str, expected: str) -> None:
    fake_pycuda(tmp_path, f"raise ImportError({message!r})")
    said = ask(tmp_path)
    assert said.startswith("DeviceError 8")
    assert expected in said
    assert "edge doctor" in said


def test_another_failure_of_pycuda_keeps_its_words(tmp_path: Path) -> None:
    fake_pycuda(tmp_path, "raise ImportError('numpy.core.multiarray failed to import')")
    said = ask(tmp_path)
    assert said.startswith("MissingDependencyError 4")
    assert "multiarray failed" in said


DRIVER = """
class Error(Exception): pass
class MemoryError(Error): pass
class LaunchError(Error): pass
class Device:
    @staticmethod
    def count(): return {count}
def init():
    {init}
"""


def test_cuda_does_not_start(tmp_path: Path) -> None:
    fake_pycuda(
        tmp_path, DRIVER.format(count=1, init="raise Error('cuInit failed: no CUDA-capable device is detected')")
    )
    said = ask(tmp_path)
    assert said.startswith(
        "DeviceError 8 CUDA cannot be initialized: cuInit failed: no CUDA-capable device is detected"
    )
    assert "edge doctor" in said


@pytest.mark.parametrize(("count", "ordinal"), [(0, 0), (1, 1), (2, -1)])
def test_no_such_gpu(tmp_path: Path, count: int, ordinal: int) -> None:
    fake_pycuda(tmp_path, DRIVER.format(count=count, init="pass"))
    said = ask(tmp_path, ordinal=ordinal)
    assert said.startswith(f"DeviceError 8 there is no GPU {ordinal}: {count} found")


def test_a_machine_without_cuda_has_no_graphs() -> None:
    """Which is said by the call, not by a traceback of ctypes."""
    code = """
import ctypes
from edge.backends.cuda import cuda_graph
from edge.errors import DeviceError
try:
    ctypes.CDLL("libcuda.so.1")
except OSError:
    try:
        cuda_graph.capture(0, lambda: None)
    except DeviceError as exc:
        print("said:", exc)
else:
    print("said: there is CUDA here")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(("said: CUDA graphs need libcuda.so.1", "said: there is CUDA here"))

"""Errors on a machine without CUDA, and the calls that reach CUDA, on doubles. test_gpu.py runs on a GPU."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from edge.backends.cuda import cuda_graph
from edge.backends.cuda.driver import open_device
from edge.errors import DeviceError
from tests.support.tensorrt import site_double

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


# the calls that reach CUDA


@pytest.fixture
def pycuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ModuleType]:
    """``pycuda(integrated=0)`` installs the double of ``pycuda.driver`` with 9 GPUs."""

    def install(**settings: Any) -> ModuleType:
        modules = site_double.pycuda(tmp_path / "site", gpus=9, **settings)
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)
        return modules["pycuda.driver"]

    return install


@pytest.fixture
def ordinal() -> int:
    """The number of a GPU that no machine of ours has: edge keeps the context of each for the whole process."""
    return 8


def test_copies_go_to_the_devices_own_streams_and_the_context_is_popped(
    pycuda: Callable[..., ModuleType], ordinal: int
) -> None:
    cuda = pycuda()
    before = cuda.PUSHED[0]
    device = open_device(ordinal)
    with device.active():
        assert cuda.PUSHED[0] == before + 1
        host, back, memory = device.pinned(8, mapped=True), device.pinned(8), device.memory(8)
        assert host.address == host.array.ctypes.data
        assert back.address is None
        host.array[:] = np.arange(8)
        device.upload(memory.address, host.array)
        with device.beside():
            device.upload(memory.address, host.array)
        device.download(back.array, memory.address)
        device.synchronize()
        np.testing.assert_array_equal(back.array, np.arange(8))
        first, second, again = cuda.COPIES
        assert first is again
        assert first is not second
        assert (first.waited_for, second.waited_for) == (1, 1)
        for _ in range(2):
            memory.free()
        assert cuda.LIVE == {}
    with pytest.raises(KeyboardInterrupt), device.active():
        raise KeyboardInterrupt
    assert cuda.PUSHED[0] == before
    device.close()


@pytest.mark.parametrize("integrated", [0, 1])
def test_only_a_gpu_that_shares_memory_is_integrated(
    pycuda: Callable[..., ModuleType], ordinal: int, integrated: int
) -> None:
    pycuda(integrated=integrated)
    device = open_device(ordinal)
    assert device.integrated is bool(integrated)
    assert (device.name, device.sm) == ("a GPU in ordinary memory", "8.7")


def test_a_gpu_that_is_full(pycuda: Callable[..., ModuleType], ordinal: int) -> None:
    pycuda(memory=1 << 20)
    device = open_device(ordinal)
    with device.active():
        for allocate in (device.memory, device.pinned):
            with pytest.raises(DeviceError, match=r"out of GPU memory \(2 MiB requested\)") as caught:
                allocate(2 << 20)
            assert "close other programs" in (caught.value.hint or "")
        device.memory(1 << 10).free()


def test_gpus_are_numbered_from_0(pycuda: Callable[..., ModuleType], ordinal: int) -> None:
    pycuda()
    assert open_device(ordinal).stream == 0  # the handle that the double gives every stream
    with pytest.raises(DeviceError, match="there is no GPU 9: 9 found"):
        open_device(9)


DRIVER_C = """
#include <string.h>
static char diary[4000];
const char *edge_test_diary(void) { return diary; }
static int put(const char *what, int status) { strcat(diary, what); strcat(diary, " "); return status; }
int cuStreamBeginCapture_v2(void *stream, unsigned mode) { (void)stream;
  return put(mode == 0 ? "begin-global" : mode == 1 ? "begin" : "begin-relaxed", 0); }
int cuStreamEndCapture(void *stream, void **graph) { (void)stream; *graph = (void *)16; return put("end", END); }
int cuGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long flags) { (void)graph; (void)flags;
  *executable = (void *)32; return put("instantiate", 0); }
int cuGraphLaunch(void *executable, void *stream) { (void)executable; (void)stream; return put("launch", LAUNCH); }
int cuGraphExecDestroy(void *executable) { (void)executable; return put("destroy-executable", 0); }
int cuGraphDestroy(void *graph) { (void)graph; return put("destroy", 0); }
int cuGetErrorName(int status, const char **name) { (void)status; *name = "CUDA_ERROR_OF_A_TEST"; return 0; }
"""


@pytest.fixture
def libcuda(tmp_path: Path) -> Callable[..., tuple[str, Callable[[], list[str]]]]:
    """``libcuda(end=0, launch=0)``: a driver whose calls return these codes, and a function for what was called."""
    if shutil.which("cc") is None:
        pytest.skip("cc not found")

    def make(*, end: int = 0, launch: int = 0) -> tuple[str, Callable[[], list[str]]]:
        source, library = tmp_path / "driver.c", tmp_path / f"libcuda-{end}-{launch}.so"
        source.write_text(DRIVER_C)
        codes = [f"-DEND={end}", f"-DLAUNCH={launch}"]
        subprocess.run(["cc", "-shared", "-fPIC", *codes, "-o", library, source], check=True)
        diary = ctypes.CDLL(str(library)).edge_test_diary
        diary.restype = ctypes.c_char_p
        return str(library), lambda: diary().decode().split()

    return make


def test_a_capture_is_of_this_thread_and_frees_what_it_no_longer_needs(
    libcuda: Callable[..., tuple[str, Callable[[], list[str]]]],
) -> None:
    library, called = libcuda()
    graph = cuda_graph.capture(1, lambda: None, library)
    graph.launch()
    graph.free()
    graph.free()
    with pytest.raises(DeviceError, match="was freed"):
        graph.launch()
    assert called() == ["begin", "end", "instantiate", "destroy", "launch", "destroy-executable"]


def test_a_capture_ends_when_its_work_fails(libcuda: Callable[..., tuple[str, Callable[[], list[str]]]]) -> None:
    library, called = libcuda()

    def work() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cuda_graph.capture(1, work, library)
    assert called() == ["begin", "end", "destroy"]


def test_what_cuda_refuses_is_an_error_with_its_name(
    libcuda: Callable[..., tuple[str, Callable[[], list[str]]]],
) -> None:
    library, called = libcuda(end=901)
    with pytest.raises(DeviceError, match=r"cuStreamEndCapture failed: CUDA_ERROR_OF_A_TEST \(901\)"):
        cuda_graph.capture(1, lambda: None, library)
    assert called() == ["begin", "end", "destroy"]
    library, _called = libcuda(launch=700)
    with pytest.raises(DeviceError, match=r"cuGraphLaunch failed: CUDA_ERROR_OF_A_TEST \(700\)"):
        cuda_graph.capture(1, lambda: None, library).launch()

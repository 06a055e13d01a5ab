"""What an engine and a timing cache depend on besides TensorRT, read from a tree of files."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from edge.backends.cuda import driver
from edge.backends.tensorrt import environment
from edge.system.device import Device

ORIN = Device(is_jetson=True, family="agx-orin", module="p3701-0005", sm="8.7")
HOST = Device(is_jetson=False, family="host")


def put(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_desktop(tmp_path: Path) -> None:
    put(tmp_path, "proc/driver/nvidia/gpus/0000:01:00.0/information", "Model: \t\t NVIDIA GeForce RTX 4090\nIRQ: 1\n")
    put(
        tmp_path, "proc/driver/nvidia/version",
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27\n",
    )  # fmt: skip
    put(tmp_path, "usr/local/cuda/version.json", '{"cuda" : {"name" : "CUDA SDK", "version" : "13.0.48"}}')
    found = environment.look(tmp_path, machine=HOST)
    assert (found.gpu, found.driver, found.cuda, found.package) == (
        "NVIDIA GeForce RTX 4090", "580.65.06", "13.0.48", None,
    )  # fmt: skip


def test_a_jetson(tmp_path: Path) -> None:
    put(tmp_path, "usr/local/cuda/lib64/libcudart.so.12.6.68", "")
    put(
        tmp_path, "var/lib/dpkg/status",
        "Package: libnvinfer10\nStatus: install ok installed\nVersion: 10.3.0.30-1+cuda12.5\n\nPackage: zlib\n",
    )  # fmt: skip
    found = environment.look(tmp_path, machine=ORIN)
    assert (found.gpu, found.sm, found.cuda, found.package) == (None, "8.7", "12.6.68", "10.3.0.30-1+cuda12.5")


def test_nothing_is_there(tmp_path: Path) -> None:
    found = environment.look(tmp_path, machine=HOST)
    assert (found.gpu, found.sm, found.cuda, found.driver, found.package) == (None, None, None, None, None)


DRIVER = """
int cuInit(unsigned flags) { return %(init)s; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return %(get)s; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  *value = attribute == 75 ? 8 : (attribute == 16 ? 14 : 9);
  return 0;
}
"""


@pytest.mark.parametrize(("init", "get", "expected"), [(0, 0, ("8.9", 14)), (100, 0, None), (0, 101, None)])
def test_the_driver_tells_the_compute_capability_and_the_multiprocessors(
    init: int, get: int, expected: tuple[str, int] | None, tmp_path: Path
) -> None:
    if shutil.which("cc") is None:
        pytest.skip("cc not found")
    source, library = tmp_path / "cuda.c", tmp_path / "libcuda.so"
    source.write_text(DRIVER % {"init": init, "get": get})
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    found = driver.gpu_properties(str(library))
    assert (found and (found.compute_capability, found.multiprocessors)) == expected


def test_no_driver() -> None:
    assert driver.gpu_properties("libcuda-that-is-not-there.so") is None

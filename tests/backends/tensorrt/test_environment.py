"""What an engine and a timing cache depend on besides TensorRT, read from a tree of files."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from edge.backends.cuda import driver
from edge.backends.tensorrt import environment
from edge.backends.tensorrt.engine_compatibility import check_key
from edge.errors import ArtifactError
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
  *value = attribute == 75 ? 8 : (attribute == 16 ? %(multiprocessors)s : 9);
  return 0;
}
int cuDeviceGetName(char *name, int size, int device) { (void)device; (void)size;
  const char *text = "%(name)s"; while ((*name++ = *text++)); return 0;
}
"""


@pytest.fixture
def libcuda(tmp_path: Path) -> Callable[..., str]:
    """``libcuda(name="a GPU")``: a driver with one GPU; ``init`` and ``get`` are the results of two of its calls."""
    if shutil.which("cc") is None:
        pytest.skip("cc not found")

    def make(*, init: int = 0, get: int = 0, multiprocessors: int = 14, name: str = "a GPU") -> str:
        source, library = tmp_path / "cuda.c", tmp_path / f"libcuda-{multiprocessors}.so"
        source.write_text(DRIVER % {"init": init, "get": get, "multiprocessors": multiprocessors, "name": name})
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
        return str(library)

    return make


@pytest.mark.parametrize(("init", "get", "expected"), [(0, 0, ("8.9", 14, "a GPU")), (100, 0, None), (0, 101, None)])
def test_the_driver_tells_the_compute_capability_the_multiprocessors_and_the_name(
    init: int, get: int, expected: tuple[str, int, str] | None, libcuda: Callable[..., str]
) -> None:
    found = driver.gpu_properties(libcuda(init=init, get=get))
    assert (found and (found.compute_capability, found.multiprocessors, found.name)) == expected


def test_a_partition_of_a_gpu_has_a_key_of_its_own(libcuda: Callable[..., str]) -> None:
    """MIG: the driver names the partition and its multiprocessors, and an engine of the whole GPU is refused."""
    whole = driver.gpu_properties(libcuda(name="NVIDIA H200", multiprocessors=132))
    part = driver.gpu_properties(libcuda(name="NVIDIA H200 MIG 1g.18gb", multiprocessors=16))
    assert whole is not None
    assert part is not None
    built = {"gpu": whole.name, "multiprocessors": whole.multiprocessors}
    here = {"gpu": part.name, "multiprocessors": part.multiprocessors}
    with pytest.raises(ArtifactError, match=r"gpu: NVIDIA H200 -> .* MIG 1g\.18gb; multiprocessors: 132 -> 16"):
        check_key(built, here, Path("an.plan"))


def test_no_driver() -> None:
    assert driver.gpu_properties("libcuda-that-is-not-there.so") is None

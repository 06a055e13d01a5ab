"""The preprocessing kernel as plain C++, and a GPU where there is one.

``host_device`` and ``parity`` lie beside this file and are imported by name.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
sys.path.insert(0, str(HERE))

from edge.backends.cuda import kernels

WARNINGS = ("-std=c++17", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")


def build(output: Path, *options: str) -> Path:
    """Compile kernel_on_cpu.cpp with the tile that edge launches."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler (g++, clang++): the kernel cannot be built as plain C++")
    command = [compiler, *WARNINGS, *kernels.TILE.options, *options, "-I", str(REPOSITORY / "edge/backends/cuda")]
    done = subprocess.run(
        [*command, "-o", str(output), str(HERE / "kernel_on_cpu.cpp")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return output


@pytest.fixture(scope="session")
def checked_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernel as a program under AddressSanitizer and UndefinedBehaviorSanitizer."""
    output = tmp_path_factory.mktemp("kernel") / "kernel_on_cpu"
    return build(output, "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


@pytest.fixture(scope="session")
def cpu_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernel as a shared library, for HostDevice."""
    return build(tmp_path_factory.mktemp("kernel") / "kernel_on_cpu.so", "-O2", "-shared", "-fPIC")


@pytest.fixture
def gpu() -> Iterator[Any]:
    """A CUDA device; skips with the reason where there is none."""
    from edge.backends.cuda.driver import open_device
    from edge.errors import EdgeError

    try:
        device = open_device()
    except EdgeError as exc:
        pytest.skip(f"no GPU: {exc.what}")
    yield device
    device.close()

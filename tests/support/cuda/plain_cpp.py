"""The preprocessing kernel built as plain C++."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
# With every read, write and computation checked. At a fixed address: where a kernel randomizes addresses by 32 bits
# (vm.mmap_rnd_bits), some programs would come to lie where older AddressSanitizers have their heap (0x600000000000).
SANITIZED = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-pie", "-no-pie")
WARNINGS = ("-std=c++17", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")


def build(output: Path, *options: str) -> Path:
    """Compile kernel_on_cpu.cpp; skips where there is no compiler."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler (g++, clang++): the kernel cannot be built as plain C++")
    command = [compiler, *WARNINGS, *options, "-I", str(HERE.parents[2] / "edge/backends/cuda")]
    done = subprocess.run(
        [*command, "-o", str(output), str(HERE / "kernel_on_cpu.cpp")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return output

"""The preprocessing kernel as plain C++, and a GPU where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.cuda.plain_cpp import SANITIZED, build


@pytest.fixture(scope="session")
def checked_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernel as a program under AddressSanitizer and UndefinedBehaviorSanitizer."""
    return build(tmp_path_factory.mktemp("kernel") / "kernel_on_cpu", *SANITIZED)


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

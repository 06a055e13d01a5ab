"""A TensorRT session in host memory: the bindings' doubles, on a device that is none."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.backends.tensorrt import environment
from edge.backends.tensorrt.runner import TrtSession
from tests.support.cuda.host_device import HostDevice
from tests.support.cuda.plain_cpp import build
from tests.support.tensorrt.double import VERSIONS
from tests.support.tensorrt.engine_double import tensorrt, write_engine

NAMES = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    """Each of the eight bindings."""
    return str(request.param)


@pytest.fixture(scope="session")
def cpu_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The preprocessing kernel as a shared library, for HostDevice."""
    return build(tmp_path_factory.mktemp("kernel") / "kernel_on_cpu.so", "-O2", "-shared", "-fPIC")


@pytest.fixture
def open_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """``open_session(device=..., version="10.3.0", graphs=True, prepare=f, **engine)``: an open session.

    It has its ``world`` (of the TensorRT double) and its device as attributes ``world`` and ``on``. ``prepare`` gets
    the world before the session is opened.
    """
    opened = []

    def make(
        device: HostDevice | None = None,
        *,
        version: str = "10.3.0",
        graphs: bool = True,
        prepare: Callable[[Any], None] = lambda _world: None,
        path: Path | None = None,
        host_code: bool = False,
        **engine: Any,
    ) -> Any:
        device = device or HostDevice()
        module = tensorrt(version, device)
        for name in NAMES:
            monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        prepare(module.world)
        engine_path = path or write_engine(tmp_path / "an.engine", **engine)
        session = TrtSession(
            engine_path, environment.load(), precision="int8", device=device, graphs=graphs, host_code=host_code
        )
        session.world, session.on = module.world, device  # type: ignore[attr-defined]
        opened.append(session)
        return session

    yield make
    for session in opened:
        session.close()
        assert session.on.live == []
        assert session.world.leaks == []

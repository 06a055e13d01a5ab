"""Doubles of TensorRT's bindings, the real ones where they are, and models for both."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.backends.interface import BuildRequest
from edge.backends.tensorrt.environment import Caps, load
from edge.config import profiles
from edge.config.profiles import Profile
from edge.quantization.calibration_table import Table
from tests.support.tensorrt.double import VERSIONS
from tests.support.tensorrt.installed import NAMES, table_for
from tests.support.tensorrt.machine import machine


@pytest.fixture
def binding(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Caps]]:
    """``binding("10.3.0", dla_cores=2)`` installs the double of a version; its capabilities.

    The machine it runs on is ``world(caps)``. At the end, no exception may have got out of our callbacks.
    """
    worlds = []

    def install(version: str, **settings: Any) -> Caps:
        module = machine(version, **settings)
        for name in NAMES:
            monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        worlds.append(module.world)
        return load()

    yield install
    assert [world.leaks for world in worlds] == [[] for _ in worlds]


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    """Each of the eight."""
    return str(request.param)


@pytest.fixture
def tiny(tiny_profile: Callable[..., Path], tmp_path: Path) -> Callable[..., Profile]:
    """A profile for the tiny network on TensorRT; overrides as in ``tiny_profile``."""

    def make(**overrides: Any) -> Profile:
        return profiles.read_profile(
            tiny_profile(tmp_path, **{"backend": "tensorrt", "family": "agx-orin", **overrides})
        )

    return make


@pytest.fixture
def asked(tiny: Callable[..., Profile]) -> Callable[..., BuildRequest]:
    """``asked("int8", build={...})``: a build request for the tiny network, with a table of its tensors."""

    def make(precision: str, *, table: Table | None = None, **overrides: Any) -> BuildRequest:
        chosen = tiny(**overrides)
        path = Path(chosen.model)
        content = (table or table_for(path)) if precision == "int8" else None
        return BuildRequest(profile=chosen, model=path, precision=precision, table=content)  # type: ignore[arg-type]

    return make

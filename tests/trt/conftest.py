"""Doubles of TensorRT's bindings, the real ones where they are, and models for both.

The doubles' modules (``double``, ``machine``) and ``real`` lie beside this file and are imported by name.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from double import VERSIONS
from machine import machine

from edge.backends.interface import BuildRequest
from edge.backends.tensorrt.caps import Caps, binding_module, load
from edge.config import profiles
from edge.config.profiles import Profile
from edge.model import onnx_model
from edge.quantization import calibration_table
from edge.quantization.calibration_table import Table, TrtVersion

NAMES = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")


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


def world(caps: Caps) -> Any:
    """The machine behind an installed double."""
    return binding_module(caps).world


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


def table_for(path: Path, *, leave_out: tuple[str, ...] = (), **changes: float) -> Table:
    """A table with a range for every tensor of the model; ``changes`` are ranges by name."""
    names = [name for name in onnx_model.load(path).activations if name not in leave_out]
    ranges = {name: 2.0 + index / 8 for index, name in enumerate(names)} | changes
    return calibration_table.from_ranges(ranges, algorithm="entropy2", trt_version=TrtVersion(8, 6, 1))

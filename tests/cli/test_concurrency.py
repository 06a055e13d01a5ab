"""Which sessions a run opens, and who preprocesses for them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge.cli import options
from edge.config import profiles
from edge.errors import DeviceError
from edge.model.preprocessing import Preprocessor


class Session:
    def __init__(self) -> None:
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


class OnDevice(Session):
    def __init__(self, problem: str | None) -> None:
        super().__init__()
        self.problem = problem
        self.ready: list[Any] = []

    def preprocess_on_gpu(self, spec: profiles.PreprocessConfig, target: profiles.InputConfig) -> None:
        if self.problem is not None:
            raise DeviceError(self.problem)
        self.ready.append((spec, target))


class Backend:
    name = "double"

    def __init__(self, make: Callable[[], Session]) -> None:
        self.make = make

    def open(self, _engine: Path, **_given: object) -> Session:
        return self.make()


class Found(msgspec.Struct):
    path: Path = Path("an.engine")

    @property
    def manifest(self) -> Any:
        return type("Manifest", (), {"key": {}})


@pytest.fixture
def chosen(tiny_profile: Callable[..., Path]) -> Callable[..., profiles.Profile]:
    def make(on: str) -> profiles.Profile:
        loaded = profiles.read_profile(tiny_profile("profiles"))
        run = msgspec.structs.replace(loaded.run, preprocess_on=on, workers=2, threads=None)
        return msgspec.structs.replace(loaded, run=run)

    return make


def opened(backend: Backend, chosen: profiles.Profile) -> tuple[Any, Any, list[str]]:
    said: list[str] = []
    width = options.choose(chosen, live=False, cores=2)
    with contextlib.ExitStack() as stack:
        sessions, preprocessor = options.open_sessions(
            backend,
            Found(),
            chosen,
            width,
            precision="int8",
            stack=stack,
            warn=said.append,  # type: ignore[arg-type]
        )
    assert [session.closed for session in sessions] == [1, 1]
    return sessions, preprocessor, said


def test_the_device_preprocesses_where_it_can(chosen: Callable[..., profiles.Profile]) -> None:
    for wanted in ("auto", "device"):
        asked = chosen(wanted)
        sessions, preprocessor, said = opened(Backend(lambda: OnDevice(None)), asked)
        assert preprocessor is None
        assert [session.ready for session in sessions] == [[(asked.preprocess, asked.input)]] * 2
        assert said == []


def test_opencv_does_it_where_it_is_asked_for_or_nobody_else_can(chosen: Callable[..., profiles.Profile]) -> None:
    for wanted, make in (("cpu", lambda: OnDevice(None)), ("cpu", Session), ("auto", Session)):
        _sessions, preprocessor, said = opened(Backend(make), chosen(wanted))
        assert isinstance(preprocessor, Preprocessor)
        assert said == []


def test_a_kernel_that_does_not_compile_is_said(chosen: Callable[..., profiles.Profile]) -> None:
    backend = Backend(lambda: OnDevice("nvcc is not there"))
    _sessions, preprocessor, said = opened(backend, chosen("auto"))
    assert isinstance(preprocessor, Preprocessor)
    assert said == ["preprocessing runs on the CPU: nvcc is not there"]
    with pytest.raises(DeviceError, match="nvcc is not there"):
        opened(backend, chosen("device"))
    with pytest.raises(DeviceError, match="double does not preprocess"):
        opened(Backend(Session), chosen("device"))


class Shared(Session):
    """A session whose engine another one can run."""

    def another(self) -> Session:
        return Session()


def test_workers_share_one_engine(chosen: Callable[..., profiles.Profile]) -> None:
    loaded: list[Session] = []

    def load() -> Session:
        loaded.append(Shared())
        return loaded[-1]

    sessions, _preprocessor, _said = opened(Backend(load), chosen("cpu"))
    assert len(sessions) == 2
    assert len(loaded) == 1
    assert [session.closed for session in sessions] == [1, 1]

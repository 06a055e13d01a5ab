"""A public test double: a backend without optional dependencies that takes a configured time per batch.

Its logits depend on nothing but the batch, so runs can be compared. It is a double, not a device: records say
``backend: fake``, and no figure made with it is a measurement of a device.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edge.artifacts import Key, Scalar
from edge.backends.interface import BuildRequest, BuiltEngine, Inference, Int8Plan, Layers
from edge.config import Profile
from edge.errors import DeviceError, require
from edge.events import Listener, ignore_events

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Fake:
    """The ``fake`` backend: it takes ``infer_ms`` per batch and returns ``classes`` logits."""

    name = "fake"

    def __init__(self, *, infer_ms: float = 0.0, classes: int = 1000, fail_at: int | None = None) -> None:
        self.infer_ms = infer_ms
        self.classes = classes
        self.fail_at = fail_at

    def identity(self) -> Mapping[str, Scalar]:
        """Return name and number of classes."""
        return {"backend": self.name, "classes": self.classes}

    def int8_plan(self, profile: Profile) -> Int8Plan:
        """Return the explicit route: this backend reads no table."""
        del profile
        return Int8Plan(route="explicit", why="the test double reads no table")

    def build(self, request: BuildRequest, *, listen: Listener = ignore_events) -> BuiltEngine:
        """Build an engine file that describes the request."""
        del listen
        int8 = 1 if request.precision == "int8" else 0
        return BuiltEngine(
            data=f"fake engine, {request.precision}\n".encode(),
            suffix=".fake",
            layers=Layers(weighted=1, weighted_int8=int8, by_type={"Fake": 1}),
            route="explicit" if int8 else None,
            notes=[],
            info={},
        )

    def open(
        self, engine: Path, *, precision: str, threads: int | None = None, built_for: Key | None = None
    ) -> FakeSession:
        """Open the engine; ``threads`` and ``built_for`` are ignored."""
        del threads, built_for
        if not engine.read_bytes().startswith(b"fake engine"):
            raise DeviceError("not an engine of the fake backend", where=engine)
        return FakeSession(self, precision=precision)


class FakeSession:
    """A session of the fake backend."""

    def __init__(self, backend: Fake, *, precision: str = "fp32", wait: Callable[[float], None] = time.sleep) -> None:
        self.precision = precision
        self._backend = backend
        self._wait = wait
        self._calls = 0

    def infer(self, batch: NDArray[np.float32]) -> Inference:
        """Return one-hot logits: the class is the sum of the image, so the same image always gives the same label."""
        np = require("numpy")
        self._calls += 1
        if self._backend.fail_at == self._calls:
            raise DeviceError(f"told to fail at call {self._calls}")
        start = time.perf_counter()
        logits = np.zeros((batch.shape[0], self._backend.classes), np.float32)
        sums = np.abs(batch.reshape(batch.shape[0], -1).sum(axis=1)).astype(np.int64) % self._backend.classes
        logits[np.arange(batch.shape[0]), sums] = 1.0
        # The configured time includes the computation of the answer.
        left_s = self._backend.infer_ms / 1e3 - (time.perf_counter() - start)
        if left_s > 0:
            self._wait(left_s)
        return Inference(logits=logits, infer_ms=(time.perf_counter() - start) * 1e3)

    def close(self) -> None:
        """Do nothing: the session holds no resources."""

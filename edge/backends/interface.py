"""The interface of a backend: it builds an engine from a model and a table, and opens it for inference."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import msgspec

from edge.artifacts import Key, Scalar
from edge.config import Precision, Profile
from edge.errors import DeviceError
from edge.events import Listener, ignore_events

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edge.model import Inspection
    from edge.quantization import Table, TrtVersion


# How INT8 reaches an engine: a calibrator hands the table over, or Q/DQ nodes carry it in the graph.
Route = Literal["implicit", "explicit"]


class TimingUse(msgspec.Struct, frozen=True, kw_only=True):
    """Use of timing caches by a build, if its backend has them.

    ``folder`` contains them; None stores none. ``ask`` is False for a build that measures every kernel again and stores
    nothing. With ``only``, a kernel that is not in the cache is an error.
    """

    folder: Path | None = None
    ask: bool = True
    only: bool = False


class BuildRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Inputs of a build. ``table`` is set exactly if ``precision`` is int8."""

    profile: Profile
    model: Path
    precision: Precision
    table: Table | None = None
    timing: TimingUse = TimingUse()


class Int8Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The INT8 route of an engine, the reason, and the TensorRT version that reads the table, if any."""

    route: Route
    why: str
    reader: TrtVersion | None = None


class Layers(msgspec.Struct, frozen=True, kw_only=True):
    """The layers that the engine actually runs: weighted layers (convolutions, matrix products) by precision.

    ``weighted_unknown`` are hidden inside larger layers of the engine, so their precision is unknown.
    ``weighted_float`` is the number of layers that the recipe keeps in float on purpose.
    ``by_type`` counts all operators of the optimized graph.
    """

    weighted: int
    weighted_int8: int
    by_type: dict[str, int]
    weighted_fp16: int = 0
    weighted_unknown: int = 0
    weighted_float: int = 0

    @property
    def int8_share(self) -> float:
        """Share of the weighted layers to be quantized that run in INT8, 0 to 1; 1 if there are none."""
        wanted = self.weighted - self.weighted_float
        return min(self.weighted_int8 / wanted, 1.0) if wanted > 0 else 1.0

    @property
    def reduced_share(self) -> float | None:
        """Share of the weighted layers of known precision that run in FP16 or INT8; None if no precision is known."""
        known = self.weighted - self.weighted_unknown
        return (self.weighted_int8 + self.weighted_fp16) / known if known > 0 else None


class BuiltEngine(msgspec.Struct, frozen=True, kw_only=True):
    """A built engine: its bytes, file suffix, layer counts, and further fields for the manifest.

    ``inspection`` describes its layers; ``raw_inspection`` is the JSON of the backend's own inspector.
    """

    data: bytes
    suffix: str
    layers: Layers
    route: str | None
    notes: list[str]
    info: dict[str, Any]
    inspection: Inspection | None = None
    raw_inspection: bytes | None = None


class Inference(msgspec.Struct, frozen=True, kw_only=True):
    """Outputs of one batch and the time of each stage in milliseconds; None for a stage that does not exist."""

    logits: Any  # float32 N×classes
    infer_ms: float
    host_to_device_ms: float | None = None
    device_to_host_ms: float | None = None
    preprocess_ms: float | None = None


# Key fields of device settings at build time: an engine built with other settings runs, but
# perhaps not as fast as possible.
ENGINE_SETTINGS = frozenset({"power_mode", "clocks_locked"})


class BackendMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A warning or error that a backend's library logged while an engine was opened or ran.

    ``count`` is the number of occurrences; ``hint`` is what to do about it, if known.
    """

    severity: Literal["warning", "error"]
    text: str
    count: int = 1
    hint: str | None = None

    def __str__(self) -> str:
        times = f" ({self.count} times)" if self.count > 1 else ""
        return f"{self.text}{times}{f'; {self.hint}' if self.hint else ''}"


class Session(Protocol):
    """An open engine, for one thread at a time."""

    @property
    def precision(self) -> str:
        """Precision that the engine was built for."""

    def infer(self, batch: NDArray[np.float32]) -> Inference:
        """Run a float32 N×3×H×W batch.

        Raises:
            DeviceError: the backend failed.
        """

    def close(self) -> None:
        """Give back what the session holds; a second call does nothing."""


class FrameSession(Protocol):
    """An open engine that preprocesses frames itself, on its device; for one thread at a time."""

    @property
    def precision(self) -> str:
        """Precision that the engine was built for."""

    def infer_frames(self, frames: Sequence[NDArray[np.uint8]]) -> Inference:
        """Preprocess and run uint8 H×W×3 BGR frames; the result's ``preprocess_ms`` is the device's time for it.

        Raises:
            DataError: a frame has another type or shape.
            DeviceError: the backend failed.
        """

    def close(self) -> None:
        """Give back what the session holds; a second call does nothing."""


class LayerSamples(msgspec.Struct, frozen=True, kw_only=True):
    """Times of the layers of an engine, in milliseconds.

    ``layers`` has one value per run for each layer, in the order of the engine. ``whole_ms`` are inferences without the
    profiler, which itself takes time.
    """

    profiler: str
    layers: dict[str, list[float]]
    whole_ms: list[float]


class LayerTimer(Protocol):
    """A backend that times the layers of its engines."""

    def time_layers(
        self,
        engine: Path,
        batch: NDArray[np.float32],
        *,
        precision: str,
        runs: int,
        warmup: int,
        threads: int | None = None,
        built_for: Key | None = None,
    ) -> LayerSamples:
        """Run a verified engine file on ``batch``, float32 N×3×H×W, with its profiler on.

        Raises:
            DeviceError: the backend failed, or its profiler reports nothing.
        """


def session_messages(sessions: Iterable[object]) -> tuple[BackendMessage, ...]:
    """Return the warnings and errors logged by the libraries behind ``sessions``, with equal ones combined."""
    found: dict[tuple[str, str], BackendMessage] = {}
    for session in sessions:
        messages: Callable[[], Iterable[BackendMessage]] = getattr(session, "messages", tuple)
        for message in messages():
            key = (message.severity, message.text)
            count = message.count + (found[key].count if key in found else 0)
            found[key] = msgspec.structs.replace(message, count=count)
    return tuple(found.values())


def report_messages(sessions: Iterable[object], warn: Callable[[str], None]) -> None:
    """Call ``warn`` once with each message of :func:`session_messages`, now and during the block."""
    reported: set[str] = set()

    def report(message: BackendMessage) -> None:
        if message.text not in reported:
            reported.add(message.text)
            warn(str(msgspec.structs.replace(message, count=1)))

    for session in sessions:
        listen: Callable[[Callable[[BackendMessage], None]], None] | None = getattr(session, "on_message", None)
        if listen is not None:
            listen(report)


class Backend(Protocol):
    """A backend, which builds and runs engines."""

    @property
    def name(self) -> str:
        """Name in a profile."""

    def identity(self) -> Mapping[str, Scalar]:
        """Return what an engine of this backend depends on besides profile, model and table: versions and device.

        Must be fast: it runs in every no-op build, before any optional dependency is imported.

        Raises:
            MissingDependencyError: the optional dependency is not installed.
        """

    def int8_plan(self, profile: Profile) -> Int8Plan:
        """Choose the INT8 route of an engine for ``profile`` on this machine.

        Raises:
            ProfileError: the profile requires a route or a unit that this machine lacks.
            MissingDependencyError: the optional dependency is not installed.
        """

    def build(self, request: BuildRequest, *, listen: Listener = ignore_events) -> BuiltEngine:
        """Build an engine; ``listen`` receives the progress, and warnings before the work starts.

        Raises:
            DeviceError, ModelError, MissingDependencyError: it cannot be built.
        """

    def open(
        self, engine: Path, *, precision: str, threads: int | None = None, built_for: Key | None = None
    ) -> Session:
        """Open a verified engine file; ``built_for`` is the key of its manifest.

        Raises:
            DeviceError: the backend cannot load it.
        """


def get(name: str, profile: Profile | None = None) -> Backend:
    """Return the backend called ``name``; its optional dependency is imported on first use.

    ``profile`` determines the kind of engines: with TensorRT, for exactly this GPU or for several.

    Raises:
        DeviceError: there is no such backend in this version.
    """
    if name == "onnxruntime":
        from edge.backends.onnxruntime import OnnxRuntime

        return OnnxRuntime()
    if name == "tensorrt":
        from edge.backends.tensorrt import TensorRT

        return TensorRT(profile=profile)
    if name == "fake":
        from edge.backends.fake import Fake

        return Fake()
    raise DeviceError(
        f"backend {name!r} is not available in this version of edge",
        hint="use --profile host, or a profile with `backend: onnxruntime`",
    )


def of(profile: Profile) -> Backend:
    """Return the backend of ``profile``.

    Raises:
        DeviceError: there is no such backend in this version.
    """
    return get(profile.backend, profile)

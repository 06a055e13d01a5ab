"""The shared context of a self-test's steps: the profile, what was built so far, and where."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from edge.artifacts import Secret
from edge.backends import Backend
from edge.calibration import FoundArtifact
from edge.config import BatchRange, Precision, Profile
from edge.events import Listener, ignore_events
from edge.media import HasBackend, OpenCapture, Pictures, has_backend, open_opencv_capture
from edge.system import Device, identify

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


FORMAT = 1
Status = Literal["ok", "failed", "skipped"]


class StepOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of a step."""

    status: Status
    text: str
    figures: dict[str, Any] = {}
    hint: str | None = None


class SelfTestStep(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One step. ``trace`` is the traceback of a bug; an expected failure has none."""

    name: str
    status: Status
    text: str
    seconds: float
    figures: dict[str, Any] = {}
    hint: str | None = None
    trace: str | None = None


class SelfTest(msgspec.Struct, frozen=True, kw_only=True):
    """The whole self-test. ``status`` is ``interrupted`` if a signal ended it: the missing steps were not run."""

    format: int
    edge_version: str
    started_utc: str
    status: Literal["complete", "interrupted"]
    machine: dict[str, Any]
    software: dict[str, str]
    subject: dict[str, Any]
    doctor: list[str]
    steps: list[SelfTestStep]

    def count(self, status: Status) -> int:
        """Return the number of steps with that outcome."""
        return sum(step.status == status for step in self.steps)


def ok(text: str, **figures: Any) -> StepOutcome:  # noqa: ANN401
    """Make the outcome of a successful step."""
    return StepOutcome(status="ok", text=text, figures=figures)


def failed(text: str, *, hint: str | None = None, **figures: Any) -> StepOutcome:  # noqa: ANN401
    """Make the outcome of a failed step."""
    return StepOutcome(status="failed", text=text, figures=figures, hint=hint)


def skipped(why: str, *, hint: str | None = None, **figures: Any) -> StepOutcome:  # noqa: ANN401
    """Make the outcome of a step that cannot be run here, with the reason."""
    return StepOutcome(status="skipped", text=why, figures=figures, hint=hint)


def without_places(record: SelfTest, places: Mapping[str, Path]) -> SelfTest:
    """Replace paths in the record; ``places`` maps a placeholder to its folder."""
    # The longest first, so that a folder inside of another one keeps its own placeholder.
    ordered = sorted(places.items(), key=lambda item: -len(str(item[1])))

    def clean(value: Any) -> Any:  # noqa: ANN401
        if isinstance(value, str):
            for word, folder in ordered:
                if len(folder.parts) > 1:
                    value = value.replace(str(folder), word)
            return value
        if isinstance(value, dict):
            return {clean(name): clean(item) for name, item in value.items()}
        return [clean(item) for item in value] if isinstance(value, list) else value

    return msgspec.convert(clean(msgspec.to_builtins(record)), SelfTest)


def encode(record: SelfTest) -> bytes:
    """Return the file's content."""
    return msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"


class Variant(msgspec.Struct, frozen=True, kw_only=True):
    """One way to build the model: its name in the steps, and its profile."""

    name: str
    precision: Precision
    profile: Profile


@dataclasses.dataclass
class SelfTestContext:
    """Context of the steps: ``work`` is a temporary folder; ``cache`` and ``pictures`` are read only.

    ``root`` contains the machine's /sys, /dev and /proc; ``pause`` waits for seconds. ``backend`` returns the backend
    of a profile. ``camera`` is an address for ``edge run --camera``; None searches for one.
    """

    profile: Profile
    backend: Callable[[Profile], Backend]
    pictures: Pictures | None
    cache: Path
    work: Path
    kept_reference: Path | None = None
    camera: Secret | None = None
    open_capture: OpenCapture = open_opencv_capture
    has_capture: HasBackend = has_backend
    root: Path = Path("/")
    threads: int | None = None
    pause: Callable[[float], None] = time.sleep
    listen: Listener = ignore_events
    # Seconds for each row of the published table; None measures none.
    publish_s: float | None = None
    # Results of steps for later steps.
    reference: NDArray[np.float32] | None = None
    reference_from: str = ""
    table: FoundArtifact | None = None
    built: dict[str, Variant] = dataclasses.field(default_factory=dict)
    same_top1: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self.machine: Device = identify(self.root)

    @property
    def engines(self) -> Path:
        """The folder in which engines are built."""
        return self.work / "engines"

    @property
    def own_cache(self) -> Path:
        """A calibration cache with only the one table: without a timing cache the first build is cold."""
        return self.work / "cache"

    @property
    def has_gpu(self) -> bool:
        """True if there is an NVIDIA GPU to run an engine: a Jetson's, or one with the desktop driver."""
        return self.machine.is_jetson or (self.root / "dev/nvidia0").exists()

    def variants(self) -> list[Variant]:
        """Return every precision and route of the backend; unsupported ones report that when they are tried."""
        own = self.profile
        routes = {"tensorrt": ("implicit", "explicit")}.get(own.backend, ("explicit",))
        found = [self._variant(name, name) for name in ("fp32", "fp16")]
        found += [self._variant(f"int8 {route}", "int8", int8_route=route) for route in routes]
        if own.backend == "tensorrt" and own.family in {"agx-orin", "orin-nx"}:
            core = own.build.dla_core or 0
            found.append(self._variant(f"int8 DLA {core}", "int8", int8_route="auto", dla_core=core))
        return found

    def _variant(self, name: str, precision: str, *, int8_route: str = "auto", dla_core: int | None = None) -> Variant:
        own = self.profile
        # Strict: here a layer that fell out of its precision is a failure, not a remark.
        build = msgspec.structs.replace(own.build, strict=True, dla_core=dla_core)
        given = own.input
        if dla_core is not None:
            # A DLA supports only one batch size.
            only = BatchRange(min=given.batch.opt, opt=given.batch.opt, max=given.batch.opt)
            given = msgspec.structs.replace(given, batch=only)
        profile = msgspec.structs.replace(
            own, name=name.replace(" ", "-").lower(), precision=precision, int8_route=int8_route, build=build,
            input=given,
        )  # fmt: skip
        return Variant(name=name, precision=profile.precision, profile=profile)

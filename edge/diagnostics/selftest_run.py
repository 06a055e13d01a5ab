"""The flow itself: see :mod:`edge.diagnostics`."""

from __future__ import annotations

import dataclasses
import functools
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from edge import __version__
from edge.backends import Backend
from edge.calibration import FoundArtifact
from edge.config import BatchRange, Precision, Profile
from edge.diagnostics import doctor, selftest_checks, selftest_engines
from edge.errors import EdgeError
from edge.events import Listener, Note, ignore_events
from edge.media import HasBackend, OpenCapture, Pictures, has_backend, open_opencv_capture
from edge.model import onnx_model, preprocessing
from edge.system import Device, identify, this_process

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
    """All of it. ``status`` is ``interrupted`` when a signal ended it: the steps that are missing were not tried."""

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
        """The number of steps with that outcome."""
        return sum(step.status == status for step in self.steps)


def ok(text: str, **figures: Any) -> StepOutcome:  # noqa: ANN401
    """A step that did what it should."""
    return StepOutcome(status="ok", text=text, figures=figures)


def failed(text: str, *, hint: str | None = None, **figures: Any) -> StepOutcome:  # noqa: ANN401
    """A step that did not."""
    return StepOutcome(status="failed", text=text, figures=figures, hint=hint)


def skipped(why: str, *, hint: str | None = None, **figures: Any) -> StepOutcome:  # noqa: ANN401
    """A step that could not be tried here, and why."""
    return StepOutcome(status="skipped", text=why, figures=figures, hint=hint)


def without_places(record: SelfTest, places: Mapping[str, Path]) -> SelfTest:
    """The record with paths replaced: ``places`` maps a word to the folder that it stands for."""
    # The longest first, so that a folder inside of another one keeps its own word.
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
    """The file's content."""
    return msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"


class Variant(msgspec.Struct, frozen=True, kw_only=True):
    """One way to build the model: its name in the steps, and the profile that asks for it."""

    name: str
    precision: Precision
    profile: Profile


@dataclasses.dataclass
class SelfTestContext:
    """``work`` is a folder that is thrown away; ``cache`` and ``pictures`` are only read.

    ``root`` is where the machine's /sys, /dev and /proc are looked for; ``pause`` waits for seconds. ``backend`` gives
    the backend of a profile. ``camera`` is an address as ``edge run --camera`` takes it; None looks for one.
    """

    profile: Profile
    backend: Callable[[Profile], Backend]
    pictures: Pictures | None
    cache: Path
    work: Path
    kept_reference: Path | None = None
    camera: str | None = None
    open_capture: OpenCapture = open_opencv_capture
    has_capture: HasBackend = has_backend
    root: Path = Path("/")
    threads: int | None = None
    pause: Callable[[float], None] = time.sleep
    listen: Listener = ignore_events
    # What steps leave for the next.
    reference: NDArray[np.float32] | None = None
    reference_from: str = ""
    table: FoundArtifact | None = None
    built: dict[str, Variant] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self.machine: Device = identify(self.root)

    @property
    def engines(self) -> Path:
        """The folder in which engines are built."""
        return self.work / "engines"

    @property
    def own_cache(self) -> Path:
        """A calibration cache with nothing in it but the one table: no timing cache makes the first build warm."""
        return self.work / "cache"

    @property
    def has_gpu(self) -> bool:
        """True if an NVIDIA GPU is there to run an engine on: a Jetson's, or one with the desktop driver."""
        return self.machine.is_jetson or (self.root / "dev/nvidia0").exists()

    def variants(self) -> list[Variant]:
        """Every precision and route that the backend may have; those that it lacks say so when they are tried."""
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
            # A DLA takes one batch size.
            only = BatchRange(min=given.batch.opt, opt=given.batch.opt, max=given.batch.opt)
            given = msgspec.structs.replace(given, batch=only)
        profile = msgspec.structs.replace(
            own, name=name.replace(" ", "-").lower(), precision=precision, int8_route=int8_route, build=build,
            input=given,
        )  # fmt: skip
        return Variant(name=name, precision=profile.precision, profile=profile)


Do = Callable[[SelfTestContext], StepOutcome]
# Opened around every step; gives what receives its events.
Progress = Callable[[], AbstractContextManager[Listener]]


def _no_progress() -> AbstractContextManager[Listener]:
    return nullcontext(ignore_events)


class SelfTestRun:
    """One self-test. Whatever ends :meth:`go` early, :meth:`record` has what was found until then."""

    def __init__(self, bench: SelfTestContext, *, progress: Progress = _no_progress) -> None:
        self._bench = bench
        self._progress = progress
        self._started = datetime.now(timezone.utc)
        self._steps: list[SelfTestStep] = []
        self._complete = False

    def go(self, on_event: Callable[[SelfTestStep], None] = lambda _step: None) -> None:
        """Take all steps, in order; ``on_event`` gets each when it is through.

        Raises nothing of its own: a step that fails is a step that failed. Signals pass.
        """
        for name, do in self._plan():
            with self._progress() as self._bench.listen:
                step = self._take(name, do)
            self._steps.append(step)
            on_event(step)
        self._complete = True

    def record(self) -> SelfTest:
        """The record of the steps so far."""
        bench = self._bench
        found = SelfTest(
            format=FORMAT,
            edge_version=__version__,
            started_utc=self._started.isoformat(timespec="seconds"),
            status="complete" if self._complete else "interrupted",
            machine=msgspec.to_builtins(bench.machine),
            software=_software(),
            subject=_subject(bench),
            doctor=_findings(bench),
            steps=list(self._steps),
        )
        return without_places(found, {"WORK": bench.work, "~": Path.home()})

    def _plan(self) -> Iterator[tuple[str, Do]]:
        yield "machine", selftest_checks.machine
        yield "pictures", selftest_checks.pictures
        yield "reference", selftest_engines.step
        yield "table", selftest_engines.table
        variants = self._bench.variants()
        for variant in variants:
            yield f"build {variant.name}", functools.partial(selftest_engines.build, variant=variant)
            yield f"answers {variant.name}", functools.partial(selftest_engines.answers, variant=variant)
        yield "GPU preprocessing", selftest_engines.gpu_preprocessing
        yield "unchanged", selftest_engines.unchanged
        yield "timing cache", selftest_engines.warm
        yield "foreign engine", selftest_checks.engine
        yield "foreign table", selftest_checks.table
        yield "power", selftest_checks.power
        yield "camera", selftest_checks.camera

    def _take(self, name: str, do: Do) -> SelfTestStep:
        start = time.monotonic()
        trace = None
        try:
            reported = do(self._bench)
        except EdgeError as exc:
            reported = StepOutcome(status="failed", text=exc.what, hint=exc.hint)
        except Exception as exc:  # noqa: BLE001 - a bug of ours must not hide the steps that follow; it keeps its trace
            reported = StepOutcome(
                status="failed", text=f"a bug: {type(exc).__name__}: {exc}", hint="attach this file to a report"
            )
            trace = traceback.format_exc()
            self._bench.listen(Note(f"{name}: {type(exc).__name__}: {exc}", "warning"))
        return SelfTestStep(
            name=name, status=reported.status, text=reported.text, seconds=round(time.monotonic() - start, 3),
            figures=reported.figures, hint=reported.hint, trace=trace,
        )  # fmt: skip


def _software() -> dict[str, str]:
    process = this_process()
    return {name: dependency.version or "unknown" for name, dependency in process.dependencies.items()}


def _findings(bench: SelfTestContext) -> list[str]:
    """The problems that edge doctor would report."""
    report = doctor.examine(bench.root, [])
    return [
        f"{finding.level}: {finding.name}: {finding.text}"
        for finding in report.findings
        if finding.level != "ok" and finding.group != "profiles"
    ]


def _subject(bench: SelfTestContext) -> dict[str, Any]:
    profile = bench.profile
    subject: dict[str, Any] = {
        "profile": profile.name,
        "profile_digest": profile.digest,
        "model": Path(profile.model).name,
        "preprocess": preprocessing.digest(profile.preprocess, profile.input),
        "reference": bench.reference_from or None,
        "table_sha256": bench.table.sha256 if bench.table else None,
    }
    subject["model_sha256"] = _tried(lambda: onnx_model.fingerprint(Path(profile.model)))
    subject["backend"] = _tried(lambda: dict(bench.backend(profile).identity()))
    return subject


def _tried(get: Callable[[], Any]) -> Any:  # noqa: ANN401
    try:
        return get()
    except EdgeError as exc:
        return f"unknown: {exc.what}"

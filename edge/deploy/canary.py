"""Try a bundle on its device: build the engine, run the golden images, compare with the previous bundle.

Four checks, each with a limit: labels of the golden images, distance of the outputs from the references, speed, and
energy. Speed and energy are measured against the previous bundle in the same process, in turns, so that heat and clocks
are the same for both. An unmeasured value is absent with the reason, and its limit is not applied.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from edge import __version__
from edge.artifacts import store
from edge.backends import Backend, Session
from edge.calibration import cache_keys
from edge.config import Profile, profiles
from edge.deploy.bundle import Bundle, Deployed, check_models, check_target, golden, verify_bundle
from edge.deploy.trial import FACTORS, SLOWER_MS
from edge.engines import building
from edge.errors import ArtifactError, DataError, DeviceError, EdgeError, ModelError, ProfileError, QualityError
from edge.events import Listener, Note, Progress, ignore_events
from edge.media import decode
from edge.model import Preprocessor
from edge.stats import Summary, summarize
from edge.system import Device
from edge.telemetry import Energy, NoSource, Sampler, TelemetrySource, Window

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Batch = NDArray[np.float32]

FORMAT = 2
PROGRAM = "edge canary"
_WARMUP = 10
_TURN_INFERENCES = 30


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """Measurements of one bundle. ``millijoules`` per inference have the scope given in ``energy``.

    ``distance`` is the noise of the outputs against FP32, relative to the signal's amplitude. ``absent`` gives the
    reason
    quantity is missing.
    """

    bundle: str
    name: str
    precision: str
    engine: str
    build: str
    build_s: float
    pictures: int
    other_labels: int | None = None
    distance: float | None = None
    latency: Summary | None = None
    millijoules: float | None = None
    energy: list[Energy] = []
    absent: dict[str, str] = {}


class TrialReport(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a trial. The device's script depends on the order of the first five fields (``agent.sh``).

    ``nonce`` identifies the trial. ``failed`` has a sentence for every exceeded limit,
    or the reason why the bundle does not run here; ``own`` is then None.
    """

    program: str = PROGRAM
    format: int = FORMAT
    bundle: str
    nonce: str
    passed: bool
    failed: list[str]
    edge_version: str = __version__
    gates: dict[str, float] = {}
    own: Measured | None = None
    before: Measured | None = None
    before_absent: str | None = None
    device: dict[str, Any] = {}


class Tools(msgspec.Struct, frozen=True, kw_only=True):
    """Dependencies of a trial: backends by profile, a power source, the machine.

    Every bundle is measured in ``turns``; with a power source, each has at least ``turn_s`` seconds, as sensors are
    read ten times a second.
    """

    backend: Callable[[Profile], Backend]
    power: TelemetrySource | NoSource
    machine: Device
    turns: int = 6
    turn_s: float = 1.5


def canary(
    bundle: Bundle,
    state: Path,
    *,
    against: Bundle | None,
    gates: Mapping[str, float],
    tools: Tools,
    nonce: str = "",
    listen: Listener = ignore_events,
) -> TrialReport:
    """Try ``bundle`` (a folder). Engines are stored in ``state/engines/<digest>``, timing caches in ``state/timing``.

    A bundle fails if it is damaged or for another device, or if its engine cannot be built or run. A full disk or a
    missing library is not the bundle's fault, and raises an error.

    Raises:
        StoreError, MissingDependencyError, UsageError: the trial cannot be made.
    """
    machine = msgspec.to_builtins(tools.machine)
    try:
        verify_bundle(bundle)
        check_models(bundle)
        check_target(bundle.about, tools.machine)
        with contextlib.ExitStack() as stack:
            own = _Candidate(bundle, state, tools, listen)
            stack.callback(own.close)
            before, why = _before(against, state, tools, listen)
            if before is not None:
                stack.callback(before.close)
            own.run_golden()
            _take_turns([own] if before is None else [own, before], tools, listen)
            mine = own.measured()
            theirs = before.measured() if before is not None else None
    except _ABOUT_THE_BUNDLE as exc:
        return TrialReport(bundle=bundle.digest, nonce=nonce, passed=False, failed=[str(exc.what)], device=machine)
    limits = {**FACTORS, **own.limits, **gates}
    failed = _judge(mine, theirs, limits)
    if not own.is_finite:
        failed.append("the outputs contain NaN or infinity")
    return TrialReport(
        bundle=bundle.digest, nonce=nonce, passed=not failed, failed=failed, gates=limits, own=mine, before=theirs,
        before_absent=why, device=machine,
    )  # fmt: skip


# Errors that speak against the bundle on this device.
_ABOUT_THE_BUNDLE = (ArtifactError, DataError, DeviceError, ModelError, ProfileError, QualityError)


def _before(
    against: Bundle | None, state: Path, tools: Tools, listen: Listener
) -> tuple[_Candidate | None, str | None]:
    if against is None:
        return None, "there is no previous bundle"
    try:
        return _Candidate(against, state, tools, listen), None
    except EdgeError as exc:
        # If the old bundle no longer runs, that is no argument against the new one.
        listen(Note(f"the previous bundle cannot be measured for comparison: {exc.what}", "warning"))
        return None, exc.what


class _Candidate:
    """An open engine of a bundle, with its measurements."""

    def __init__(self, bundle: Bundle, state: Path, tools: Tools, listen: Listener) -> None:
        self._bundle = bundle
        place = Deployed(folder=bundle.path, digest=bundle.digest, state=state)
        self._profile: Profile = profiles.read_profile(place.profile)
        backend = tools.backend(self._profile)
        listen(Note(f"building {bundle.about.name} ({bundle.digest[:12]})"))
        self._outcome = building.build(
            self._profile, backend, cache=place.build_cache(), engines=place.engines, listen=listen
        )  # fmt: skip
        assert self._outcome.engine is not None  # noqa: S101 - not a dry run
        self._session: Session = backend.open(
            self._outcome.engine, precision=self._outcome.precision, threads=self._profile.run.threads,
            built_for=store.load(self._outcome.manifest, kind=cache_keys.ENGINE).key,
        )  # fmt: skip
        self._turn_s = tools.turn_s
        self.limits: dict[str, float] = {}
        self.is_finite = True
        self._verdict: golden.GoldenVerdict | None = None
        self._times_ms: list[float] = []
        self._energy: list[Energy] = []
        self._energy_count = 0
        self._absent: dict[str, str] = {}
        self._inputs = self._read_inputs()
        for batch in self._inputs[:1] * _WARMUP:
            self._session.infer(batch)

    def close(self) -> None:
        """Close the engine."""
        self._session.close()

    def run_golden(self) -> None:
        """Run every golden image once and compare with the references."""
        if golden.FILE not in self._bundle.files:
            self._absent["labels"] = self._absent["distance"] = "the bundle has no golden images"
            return
        expected = golden.decode_expected(self._bundle.read(golden.FILE), where=str(self._bundle.path / golden.FILE))
        logits = np.stack([self._session.infer(batch).logits[0] for batch in self._inputs])
        self._verdict = golden.judge(expected, self._outcome.precision, logits)
        self.is_finite = bool(np.isfinite(logits).all())
        tolerance = self._verdict.tolerance
        self.limits = {"labels": tolerance.max_other_top1, "distance": _as_share(tolerance.min_sqnr_db)}

    def turn(self, power: TelemetrySource | NoSource) -> None:
        """Run some inferences, and measure power if there is a source."""
        at_least_s = 0.0 if isinstance(power, NoSource) else self._turn_s
        sampler = None if isinstance(power, NoSource) else Sampler(power)
        with contextlib.nullcontext() if sampler is None else sampler:
            start = time.monotonic()
            count = 0
            while count < _TURN_INFERENCES or time.monotonic() - start < at_least_s:
                begun = time.perf_counter()
                self._session.infer(self._inputs[count % len(self._inputs)])
                self._times_ms.append((time.perf_counter() - begun) * 1e3)
                count += 1
            window = Window(start, time.monotonic())
        if sampler is not None:
            self._energy.append(sampler.energy(window))
            self._energy_count += count

    def measured(self) -> Measured:
        """Return the measurements."""
        absent = dict(self._absent)
        joules = [energy.joules for energy in self._energy if energy.joules is not None]
        millijoules = None
        if self._energy and len(joules) == len(self._energy):
            millijoules = 1e3 * sum(joules) / self._energy_count
        else:
            absent["energy"] = next((e.refusal for e in self._energy if e.refusal), None) or "there is no power sensor"
        verdict = self._verdict
        noise = verdict.sqnr_db if verdict is not None else None
        return Measured(
            bundle=self._bundle.digest, name=self._bundle.about.name, precision=self._outcome.precision,
            engine=str(self._outcome.engine), build=self._outcome.work, build_s=round(self._outcome.seconds, 3),
            pictures=len(self._inputs),
            other_labels=verdict.other_top1 if verdict is not None else None,
            distance=None if verdict is None or not self.is_finite else 0.0 if noise is None else _as_share(noise),
            latency=summarize(self._times_ms), millijoules=millijoules, energy=self._energy, absent=absent,
        )  # fmt: skip

    def _read_inputs(self) -> list[Batch]:
        """Return the golden images as batches of the engine's smallest size."""
        wanted, repeats = self._profile.input, self._profile.input.batch.min
        names: list[str] = []
        if golden.FILE in self._bundle.files:
            data = self._bundle.read(golden.FILE)
            names = sorted(golden.decode_expected(data, where=str(self._bundle.path / golden.FILE)).pictures)
        preprocessor = Preprocessor(self._profile.preprocess, wanted)
        exif = self._profile.preprocess.exif
        inputs = [preprocessor(decode(self._bundle.read(name), name=name, exif=exif)) for name in names]
        if not inputs:
            # Speed does not depend on the image content.
            inputs = [np.zeros((3, wanted.height, wanted.width), np.float32)]
        return [np.repeat(one[None], repeats, axis=0) for one in inputs]


def _take_turns(candidates: list[_Candidate], tools: Tools, listen: Listener) -> None:
    """Measure both bundles in turns, in both orders, so that neither is always second."""
    for index in range(tools.turns):
        listen(Progress("trial", index, tools.turns, "turns"))
        for candidate in candidates if index % 2 == 0 else reversed(candidates):
            candidate.turn(tools.power)
    listen(Progress("trial", tools.turns, tools.turns, "turns"))


def _judge(mine: Measured, theirs: Measured | None, limits: Mapping[str, float]) -> list[str]:
    failed = []
    if mine.other_labels is not None and mine.other_labels > limits["labels"]:
        allowed = f"{limits['labels']:g} may"
        failed.append(f"{mine.other_labels} of {mine.pictures} golden images have another label; {allowed}")
    if mine.distance is not None and mine.distance > limits["distance"]:
        failed.append(
            f"the outputs' distance from the references is {mine.distance:.3g}; the limit is {limits['distance']:.3g}"
        )
    if theirs is None:
        return failed
    if mine.latency is not None and theirs.latency is not None:
        new, old, limit = mine.latency.p50_ms, theirs.latency.p50_ms, limits["latency"]
        if new > old * limit and new - old > SLOWER_MS:
            failed.append(f"{new:.2f} ms per inference (median), {old:.2f} ms before: more than {limit:g} times")
    if mine.millijoules is not None and theirs.millijoules is not None:
        now, then, limit = mine.millijoules, theirs.millijoules, limits["energy"]
        if now > then * limit:
            failed.append(f"{now:.2f} mJ per inference, {then:.2f} mJ before: more than {limit:g} times")
    return failed


def _as_share(decibels: float) -> float:
    """Return the noise relative to the signal's amplitude."""
    return float(10 ** (-decibels / 20))

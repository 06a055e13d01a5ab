"""TensorRT as a backend: :class:`TensorRT`. Only :mod:`.environment` imports ``tensorrt``."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edge.artifacts import Key, Scalar
from edge.backends.interface import BuildRequest, BuiltEngine, Int8Plan, LayerSamples
from edge.backends.tensorrt.environment import Environment, look
from edge.config import Profile
from edge.errors import ArtifactError, DeviceError, StoreError
from edge.events import Listener, ignore_events
from edge.system import Device

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edge.backends.tensorrt.builder import Built
    from edge.backends.tensorrt.builder_config import Options
    from edge.backends.tensorrt.calibrator import Feed
    from edge.backends.tensorrt.environment import Caps
    from edge.backends.tensorrt.runner import TrtSession
    from edge.backends.tensorrt.timing_cache import TimingStore

# Distributions with the version of the binding; NVIDIA's Debian packages provide "tensorrt".
_DISTRIBUTIONS = ("tensorrt", "tensorrt-cu12", "tensorrt-cu13")
_RTX_DISTRIBUTIONS = ("tensorrt-rtx", "tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu12-bindings")
_JETSONS = frozenset({"agx-orin", "orin-nx", "orin-nano", "thor"})


class TensorRT:
    """The ``tensorrt`` backend.

    ``profile`` determines the product (family ``rtx`` is TensorRT for RTX, a Jetson is TensorRT, anything else is the
    installed one), and whether engines must run on other machines, too. ``rtx`` overrides the product. ``machine`` is
    the target device, and ``environment`` its software; None detects them. With ``isolate``, builds run in a separate
    process.
    """

    name = "tensorrt"

    def __init__(
        self,
        *,
        profile: Profile | None = None,
        rtx: bool | None = None,
        machine: Device | None = None,
        environment: Environment | None = None,
        options: Options | None = None,
        isolate: bool = True,
    ) -> None:
        self._rtx = rtx if rtx is not None or profile is None else _product(profile)
        self._profile = profile
        self._machine = machine
        self._options = options
        self._isolate = isolate
        self._seen = environment

    def identity(self) -> Mapping[str, Scalar]:
        """Return what an engine depends on: TensorRT's version, and the device with its power mode, or its GPUs.

        TensorRT is imported only if pip has no metadata. An engine for several GPUs has those in its key instead.
        """
        version, rtx = self._version()
        build = None if self._profile is None else self._profile.build
        device = self._device()
        wide = build.hardware_compatibility if build is not None else None
        found: dict[str, Scalar] = {
            "backend": self.name,
            "tensorrt": version,
            "rtx": rtx,
            "machine": device.machine or platform.machine(),
        }
        if build is not None and build.version_compatible:
            found["tensorrt"] = f"{version.split('.')[0]}.x, version compatible"
        if rtx:
            # Its engines run on every GPU that they were built for, and are finished on the GPU when they are loaded.
            for_these = () if build is None else build.compute_capabilities
            return found | {"gpus": "+".join(for_these) or "all that it knows"}
        if wide is not None:
            return found | {"gpus": wide}
        here = self._environment()
        return found | {
            "module": device.module,
            "sm": device.sm,
            "gpu": here.gpu,
            "multiprocessors": here.multiprocessors,
            "power_mode": device.power_mode,
            "clocks_locked": device.clocks_locked,
        }

    def int8_plan(self, profile: Profile) -> Int8Plan:
        """Return route and table reader for ``profile``, from the capabilities of the installed TensorRT."""
        from edge.backends.tensorrt import environment, int8_route

        found = environment.load(rtx=self._rtx)
        decision = int8_route.decide(profile, "int8", found)
        implicit = decision.route == "implicit"
        return Int8Plan(
            route="implicit" if implicit else "explicit",
            why=decision.why,
            reader=found.table_version if implicit else None,
        )

    def build(self, request: BuildRequest, *, listen: Listener = ignore_events) -> BuiltEngine:
        """Build an engine; see :func:`edge.backends.tensorrt.builder.build`."""
        from edge.backends.tensorrt import environment

        found = environment.load(rtx=self._rtx)
        built = self._build(request, found, feed=None, listen=listen)
        return as_engine(built, found, self._environment())

    def calibrate(self, request: BuildRequest, feed: Feed, *, listen: Listener = ignore_events) -> Built:
        """Make a table from ``feed`` with one of the device's own calibrators; it is in ``Built.table``.

        The engine of this build is discarded, but its kernel times go into the timing cache, so that the following
        build does not measure them again.

        Raises:
            DeviceError: this TensorRT has no such calibrator, or there is no GPU.
            MissingDependencyError: TensorRT or PyCUDA is not installed.
        """
        from edge.backends.tensorrt import environment

        found = environment.load(rtx=self._rtx)
        return self._build(request, found, feed=feed, listen=listen)

    def calibrators(self) -> tuple[str, tuple[str, ...]]:
        """Return the installed TensorRT and the algorithms of its own calibrators; none on 11 and on RTX."""
        from edge.backends.tensorrt import environment

        found = environment.load(rtx=self._rtx)
        return found.title, tuple(found.calibrators) if found.implicit_int8 else ()

    def merge_timing_caches(self, contents: list[bytes]) -> bytes:
        """Merge timing caches into one.

        Raises:
            ArtifactError: TensorRT refuses one of them.
            MissingDependencyError, DeviceError: no TensorRT or no GPU to ask.
        """
        from edge.backends.tensorrt import environment, subprocess_build, timing_cache

        found = environment.load(rtx=self._rtx)
        return (
            subprocess_build.merge(contents, rtx=found.rtx) if self._isolate else timing_cache.combine(contents, found)
        )

    def timing_store(self, folder: Path, *, listen: Listener = ignore_events) -> TimingStore:
        """Return the timing cache of this TensorRT on this device in ``folder``.

        Raises:
            MissingDependencyError: TensorRT is not installed. DeviceError: timing caches have no effect on it.
        """
        from edge.backends.tensorrt import environment

        found = environment.load(rtx=self._rtx)
        if not found.timing_cache:
            raise DeviceError(f"timing caches have no effect on {found.title}")
        return self._store(folder, found, listen)

    def open(
        self, engine: Path, *, precision: str, threads: int | None = None, built_for: Key | None = None
    ) -> TrtSession:
        """Open an engine file; ``threads`` is ignored.

        Raises:
            ArtifactError: it was built for another TensorRT or GPU; the message names the field.
            DeviceError, MissingDependencyError: no GPU, no driver, no PyCUDA.
        """
        del threads
        from edge.backends.tensorrt import engine_compatibility, environment
        from edge.backends.tensorrt.runner import TrtSession

        key = built_for or {}
        notices = engine_compatibility.check_key(key, self.identity(), engine)
        return TrtSession(
            engine,
            environment.load(rtx=self._rtx),
            precision=precision,
            gpus=str(key["gpus"]) if key.get("gpus") else None,
            host_code="version compatible" in str(key.get("tensorrt", "")),
            dla_core=core if isinstance(core := key.get("dla_core"), int) else None,
            notices=notices,
        )

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
        """Time the layers of an engine by TensorRT's IProfiler."""
        session = self.open(engine, precision=precision, threads=threads, built_for=built_for)
        try:
            return session.time_layers(batch, runs=runs, warmup=warmup)
        finally:
            session.close()

    def _build(self, request: BuildRequest, found: Caps, *, feed: Feed | None, listen: Listener) -> Built:
        from edge.backends.tensorrt import builder, subprocess_build, timing_cache
        from edge.backends.tensorrt.builder_config import Options

        options = self._options or Options(shared_memory=self._device().is_jetson)
        use = request.timing
        kept: TimingStore | None = None
        if use.folder is not None and use.ask and request.profile.build.timing_cache and found.timing_cache:
            kept = self._store(timing_cache.folder_of(use.folder), found, listen)
        before = None if kept is None else kept.read()
        if use.only and kept is not None and before is None and found.error_on_timing_cache_miss:
            raise DeviceError(
                f"--error-on-miss, and there is no timing cache of {found.title} on this device yet",
                where=kept.path,
                hint="build once without --error-on-miss",
            )
        start = time.monotonic()
        if self._isolate:
            built = subprocess_build.build(
                request, rtx=found.rtx, options=options, timing_cache=before, feed=feed, listen=listen
            )
        else:
            done = builder.build(
                request, found, timing_cache=before, feed=feed, options=options, listen=listen
            )  # fmt: skip
            if done is None:
                raise DeviceError("the build was stopped", where=request.model)
            built = done
        return self._note_times(built, request, kept, before, seconds=time.monotonic() - start)

    def _note_times(
        self, built: Built, request: BuildRequest, kept: TimingStore | None, before: bytes | None, *, seconds: float
    ) -> Built:
        """Save the timing cache, and record how long this build takes with and without it.

        The engine is worth more than the measured times: if they cannot be saved, a note says so.
        """
        mode = "with_cache_s" if built.timing.use == "used" else "without_cache_s"
        times: dict[str, Any] = {mode: round(seconds, 3)}
        notes = built.notes
        if kept is not None:
            name = f"{Path(request.model).stem}-{request.precision}"
            times = {**kept.builds().get(name, {}), **times}
            try:
                if built.timing.use == "refused":
                    kept.refused(f"TensorRT refuses it ({built.timing.reason or 'without a reason'})")
                    before = None
                if built.timing_cache:
                    kept.write(
                        built.timing_cache,
                        before=before,
                        merge=self.merge_timing_caches,
                        info={"entries": built.timing.entries_after, "builds": {name: times}},
                    )
            except (ArtifactError, DeviceError, StoreError) as exc:
                notes = [*notes, f"the timing cache of this build is not kept: {exc.where or kept.path}: {exc.what}"]
        return msgspec.structs.replace(built, info={**built.info, "build_times": times}, notes=notes)

    def _store(self, folder: Path, found: Caps, listen: Listener) -> TimingStore:
        from edge.backends.tensorrt.timing_cache import TimingStore, timing_key

        return TimingStore(folder, timing_key(found, self._environment()), listen=listen)

    def _device(self) -> Device:
        return self._environment().device

    def _environment(self) -> Environment:
        if self._seen is None:
            self._seen = look(machine=self._machine)
        return self._seen

    def _version(self) -> tuple[str, bool]:
        """Return the version, and True for TensorRT for RTX, in the search order of caps.load."""
        products: list[tuple[bool, tuple[str, ...]]] = [(False, _DISTRIBUTIONS), (True, _RTX_DISTRIBUTIONS)]
        for rtx, names in products:
            if self._rtx is None or self._rtx == rtx:
                for name in names:
                    try:
                        return metadata.version(name), rtx
                    except metadata.PackageNotFoundError:  # noqa: PERF203 - six at most
                        continue
        from edge.backends.tensorrt import environment

        found = environment.load(rtx=self._rtx)
        return found.version, found.rtx


def as_engine(built: Built, found: Caps, here: Environment) -> BuiltEngine:
    """Convert the result of a build to what ``edge build`` stores."""
    decision = built.decision
    return BuiltEngine(
        data=built.plan,
        suffix=".plan",
        layers=built.layers,
        route=decision.route,
        notes=built.notes,
        info={
            **built.info,
            "tensorrt": found.title,
            "why": decision.why,
            "flags": built.flags,
            "timing_cache": None if built.timing.use in {"off", "no effect"} else built.timing.use,
            "timing": msgspec.to_builtins(built.timing),
            "environment": {
                name: value
                for name, value in msgspec.to_builtins(here).items()
                if name != "device" and value is not None
            },
        },
        inspection=built.described,
        raw_inspection=None if built.inspection is None else built.inspection.encode(),
    )


def _product(profile: Profile) -> bool | None:
    if profile.family == "rtx":
        return True
    return False if profile.family in _JETSONS else None

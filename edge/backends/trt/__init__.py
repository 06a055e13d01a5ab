"""TensorRT as a backend: :class:`TensorRT`. The only room that knows ``tensorrt``; :mod:`.caps` alone imports it."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from edge import device as devices
from edge.backends.base import BuildRequest, BuiltEngine, Session
from edge.device import Device
from edge.errors import DeviceError
from edge.events import Listener, silence
from edge.store import Scalar

if TYPE_CHECKING:
    from edge.backends.trt.builder import Built
    from edge.backends.trt.configure import Options

# Distributions whose version is the binding's; NVIDIA's Debian packages bring "tensorrt".
_DISTRIBUTIONS = ("tensorrt", "tensorrt-cu12", "tensorrt-cu13")
_RTX_DISTRIBUTIONS = ("tensorrt-rtx", "tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu12-bindings")


class TimingCaches(Protocol):
    """Where timing caches are kept between builds."""

    def read(self) -> bytes | None:
        """The cache for this TensorRT and device, or None."""

    def write(self, content: bytes) -> None:
        """Keep what a build has added."""


class TensorRT:
    """The ``tensorrt`` backend.

    ``rtx``: True for TensorRT for RTX only, False for TensorRT only, None for whichever is installed. ``machine`` is
    the device that engines are for; None looks. ``gpu`` is what else an engine depends on there (name and compute
    capability of a discrete GPU), which only CUDA can say.
    """

    name = "tensorrt"

    def __init__(
        self,
        *,
        rtx: bool | None = None,
        machine: Device | None = None,
        gpu: Mapping[str, Scalar] | None = None,
        caches: TimingCaches | None = None,
        options: Options | None = None,
        isolate: bool = True,
        listen: Listener = silence,
    ) -> None:
        self._rtx = rtx
        self._machine = machine
        self._gpu = dict(gpu or {})
        self._caches = caches
        self._options = options
        self._isolate = isolate
        self._listen = listen

    def identity(self) -> Mapping[str, Scalar]:
        """TensorRT's version, the module and its compute capability. Imports TensorRT only where pip knows nothing."""
        version, rtx = self._version()
        machine = self._device()
        return {
            "backend": self.name,
            "tensorrt": version,
            "rtx": rtx,
            "module": machine.module,
            "sm": machine.sm,
            "machine": machine.machine or platform.machine(),
            **self._gpu,
        }

    def build(self, request: BuildRequest) -> BuiltEngine:
        """Build an engine; see :func:`edge.backends.trt.builder.build`."""
        from edge.backends.trt import builder, caps, isolated
        from edge.backends.trt.configure import Options

        found = caps.load(rtx=self._rtx)
        options = self._options or Options(shared_memory=self._device().is_jetson)
        caches = self._caches if request.profile.build.timing_cache and found.timing_cache else None
        before = None if caches is None else caches.read()
        if self._isolate:
            built = isolated.build(
                request, rtx=found.rtx, options=options, timing_cache=before, listen=self._listen
            )  # fmt: skip
        else:
            done = builder.build(request, found, timing_cache=before, options=options, listen=self._listen)
            if done is None:
                raise DeviceError("the build was stopped", where=request.model)
            built = done
        if caches is not None and built.timing_cache and built.timing_cache != before:
            caches.write(built.timing_cache)
        return as_engine(built, found.title)

    def open(self, engine: Path, *, precision: str, threads: int | None = None) -> Session:
        """Open an engine file; ``threads`` means nothing here."""
        del threads
        from edge.backends.trt import caps
        from edge.backends.trt.runner import TrtSession

        session: Session = TrtSession(engine, caps.load(rtx=self._rtx), precision=precision)
        return session

    def _device(self) -> Device:
        if self._machine is None:
            self._machine = devices.identify()
        return self._machine

    def _version(self) -> tuple[str, bool]:
        """Version and whether it is TensorRT for RTX, in the order in which caps.load looks."""
        products: list[tuple[bool, tuple[str, ...]]] = [(False, _DISTRIBUTIONS), (True, _RTX_DISTRIBUTIONS)]
        for rtx, names in products:
            if self._rtx is None or self._rtx == rtx:
                for name in names:
                    try:
                        return metadata.version(name), rtx
                    except metadata.PackageNotFoundError:  # noqa: PERF203 - six at most
                        continue
        from edge.backends.trt import caps

        found = caps.load(rtx=self._rtx)
        return found.version, found.rtx


def as_engine(built: Built, title: str) -> BuiltEngine:
    """What the verb ``build`` keeps of a built engine."""
    decision = built.decision
    return BuiltEngine(
        data=built.plan,
        suffix=".plan",
        layers=built.layers,
        route=decision.route,
        notes=built.notes,
        info={**built.info, "tensorrt": title, "why": decision.why, "flags": built.flags},
        inspection=built.described,
        raw_inspection=None if built.inspection is None else built.inspection.encode(),
    )

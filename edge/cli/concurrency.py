"""Concurrency of a run: sessions that infer at the same time, threads of each, and threads that prepare."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edge.errors import DeviceError, MissingDependencyError, UsageError

if TYPE_CHECKING:
    from edge.backends import Backend, FrameSession, Session
    from edge.calibration import cache_keys
    from edge.config import Profile
    from edge.model import Preprocessor
    from edge.runtime import Width

# More sessions than this each hold the whole model for little.
_MOST = 4


class Concurrency(msgspec.Struct, frozen=True, kw_only=True):
    """Sessions, threads per session (None: the backend's choice), and the width of the pipeline around them."""

    workers: int
    threads: int | None
    width: Width


def choose(profile: Profile, *, live: bool, cameras: int = 1, cores: int | None = None) -> Concurrency:
    """The concurrency that suits the backend and the source.

    ONNX Runtime on a CPU: pictures from files go through one session per core, of one thread each, which is the faster
    way for many (benchmarks/loop.py); a camera's frame goes through one session over all cores, which all work on the
    newest one. Elsewhere one session keeps the device busy, and the other cores prepare. Frames of several ``cameras``
    share a batch, up to the largest that the engine takes.

    Raises:
        UsageError: The profile asks for a batch that the engine does not take.
    """
    from edge.runtime import Width

    has = profile.input.batch
    if profile.run.batch > has.max:
        raise UsageError(
            f"run.batch: the engine takes {has.max} pictures at most, not {profile.run.batch}",
            hint="a larger input.batch.max in the profile, then edge build",
        )
    batch = max(min(cameras, has.max), 1) if live else profile.run.batch
    cores = cores or len(os.sched_getaffinity(0))
    most, count = profile.run.threads or cores, profile.run.workers
    prepare = profile.run.prepare or (1 if live else 2)
    wait_s = profile.run.batch_wait_ms / 1e3
    if profile.backend == "onnxruntime":
        count = count or (1 if live else min(most, _MOST))
        each = max(most // count, 1)
        return Concurrency(
            workers=count,
            threads=each,
            width=Width(prepare=prepare, batch=batch, min_batch=has.min, batch_wait_s=wait_s),
        )
    if profile.run.prepare is None and not live:
        prepare = min(max(cores - 1, 1), _MOST)
    return Concurrency(
        workers=count or 1,
        threads=profile.run.threads,
        width=Width(prepare=prepare, batch=batch, min_batch=has.min, batch_wait_s=wait_s),
    )


def open_sessions(
    backend: Backend,
    found: cache_keys.FoundArtifact,
    profile: Profile,
    chosen: Concurrency,
    *,
    precision: str,
    stack: contextlib.ExitStack,
    warn: Callable[[str], None],
) -> tuple[Sequence[Session] | Sequence[FrameSession], Preprocessor | None]:
    """Open sessions, closed with ``stack``, and what preprocesses for them: None where they do it on their device.

    Where the profile leaves the choice and the device cannot, ``warn`` gets the reason, and OpenCV does it.

    Raises:
        DeviceError: an engine cannot be opened, or the profile asks for the device and it cannot.
    """
    from edge.model import Preprocessor

    sessions: list[Any] = []
    for _ in range(chosen.workers):
        session = backend.open(
            Path(found.path), precision=precision, threads=chosen.threads, built_for=found.manifest.key
        )
        stack.callback(session.close)
        sessions.append(session)
    on_cpu = Preprocessor(profile.preprocess, profile.input)
    wanted = profile.run.preprocess_on
    if wanted == "device" and not all(hasattr(session, "preprocess_on_gpu") for session in sessions):
        raise DeviceError(
            f"run.preprocess_on: device, and {backend.name} does not preprocess", hint="preprocess_on: auto"
        )
    if wanted == "cpu" or not all(hasattr(session, "preprocess_on_gpu") for session in sessions):
        return sessions, on_cpu
    try:
        for session in sessions:
            session.preprocess_on_gpu(profile.preprocess, profile.input)
    except (DeviceError, MissingDependencyError) as exc:
        if wanted == "device":
            raise
        warn(f"preprocessing runs on the CPU: {exc.what}")
        return sessions, on_cpu
    return sessions, None

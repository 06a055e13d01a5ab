"""How many sessions infer at the same time, with how many threads each, and how many threads prepare for them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from edge.errors import UsageError

if TYPE_CHECKING:
    from edge import identity
    from edge.backends.base import Backend, FrameSession, Session
    from edge.loop import Width
    from edge.preprocess import Preprocessor
    from edge.profile import Profile

Workers = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="Sessions that infer at the same time.", show_default="by the source"),
]
Batch = Annotated[int, typer.Option("--batch", min=1, help="Pictures per inference; files only.")]
# More sessions than this each hold the whole model for little.
_MOST = 4


class Lanes(msgspec.Struct, frozen=True, kw_only=True):
    """Sessions, threads per session (None: the backend's choice), and the width of the pipeline around them."""

    workers: int
    threads: int | None
    width: Width


def choose(
    profile: Profile, *, live: bool, workers: int | None, threads: int | None, batch: int, cores: int | None = None
) -> Lanes:
    """What suits the backend and the source.

    ONNX Runtime on a CPU: pictures from files go through one session per core, of one thread each, which is a third
    more per second than one session over all cores (benchmarks/loop.py); a camera's frame goes through one session over
    all cores, which has its label sooner. Elsewhere one session keeps the device busy, and the other cores prepare.

    Raises:
        UsageError: a batch that the engine does not take, or one from a live source.
    """
    from edge.loop import Width

    has = profile.input.batch
    if batch > has.max:
        raise UsageError(
            f"the engine takes {has.max} pictures at most, not {batch}", hint="input.batch.max; edge build"
        )
    if batch > 1 and live:
        raise UsageError("a live source is classified frame by frame", hint="leave --batch out")
    cores = cores or len(os.sched_getaffinity(0))
    most, count = threads or profile.run.threads or cores, workers or profile.run.workers
    prepare = profile.run.prepare or (1 if live else 2)
    if profile.backend == "onnxruntime":
        count = count or (1 if live else min(most, _MOST))
        each = max(most // count, 1)
        return Lanes(workers=count, threads=each, width=Width(prepare=prepare, batch=batch, min_batch=has.min))
    if profile.run.prepare is None and not live:
        prepare = min(max(cores - 1, 1), _MOST)
    return Lanes(
        workers=count or 1,
        threads=threads or profile.run.threads,
        width=Width(prepare=prepare, batch=batch, min_batch=has.min),
    )


def open_sessions(
    backend: Backend,
    found: identity.Found,
    profile: Profile,
    lanes: Lanes,
    *,
    precision: str,
    stack: contextlib.ExitStack,
) -> tuple[Sequence[Session] | Sequence[FrameSession], Preprocessor | None]:
    """Open sessions, closed with ``stack``, and what preprocesses for them: None where they do it on their device."""
    from edge.preprocess import Preprocessor

    sessions: list[Any] = []
    for _ in range(lanes.workers):
        session = backend.open(
            Path(found.path), precision=precision, threads=lanes.threads, built_for=found.manifest.key
        )
        stack.callback(session.close)
        sessions.append(session)
    if not all(hasattr(session, "preprocess_on_gpu") for session in sessions):
        return sessions, Preprocessor(profile.preprocess, profile.input)
    for session in sessions:
        session.preprocess_on_gpu(profile.preprocess, profile.input)
    return sessions, None

"""Observe the FP32 network over pictures: statistics collected, saved while they grow, and reused.

Pictures are worked through in the order of their sha256, in chunks. Every few seconds what is done is saved beside the
table, so a calibration that is killed goes on where it was; at most one chunk is counted twice, none is lost.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np

from edge import model as models
from edge import store
from edge.backends.ort import OrtSession
from edge.calibration import collect, network
from edge.calibration.statistics import FORMAT, Statistics
from edge.errors import ArtifactError, EdgeError
from edge.events import Listener, Note, Progress, silence
from edge.frames import Picture, Pictures, decode
from edge.model import Model
from edge.preprocess import Preprocessor
from edge.profile import Input, Preprocess, Profile

if TYPE_CHECKING:
    from numpy.typing import NDArray

KIND = "calibration statistics"
PARTIAL = "unfinished calibration statistics"
_CHUNK = 64
_SAVE_EVERY_S = 5.0

Needs = Literal["ranges", "histogram"]


class Observed(msgspec.Struct, frozen=True):
    """Statistics of the watched tensors, where they are kept, and whether they were there before."""

    statistics: Statistics
    path: Path
    reused: bool


class Task(msgspec.Struct, frozen=True):
    """What to count, in a form that travels to another process; the network is opened there, once."""

    model: str
    model_sha256: str
    preprocess: Preprocess
    input: Input
    watched: tuple[str, ...]
    needs: Needs
    threads: int


def observe(
    profile: Profile,
    model: Model,
    plan: network.Watch,
    pictures: Pictures,
    *,
    needs: Needs,
    cache: Path,
    key: store.Key,
    force: bool = False,
    threads: int | None = None,
    listen: Listener = silence,
    should_stop: Callable[[], bool] = lambda: False,
) -> Observed | None:
    """Statistics of ``plan.watched`` over ``pictures``; None when ``should_stop`` ended it early.

    ``key`` is the table's key; of it, the statistics depend on model, preprocessing and pictures.

    Raises:
        DataError: a picture is unreadable, broken or changed meanwhile.
        ModelError: the network overflows on a picture.
        StoreError: ``cache`` cannot be written.
    """
    own = {name: key[name] for name in ("model", "preprocess", "images")} | {"format": FORMAT}
    if not force:
        for kind in ("histogram", "ranges") if needs == "ranges" else ("histogram",):
            kept = {**own, "needs": kind}
            path = _path(cache, kept)
            found = _load(path, kind=KIND, key=kept, listen=listen)
            if found is not None:
                return Observed(found, path, reused=True)
    own |= {"needs": needs}
    path = _path(cache, own)
    task = Task(
        str(model.path), model.sha256, profile.preprocess, profile.input, tuple(plan.watched), needs,
        threads or os.cpu_count() or 1,
    )  # fmt: skip
    statistics = _collect(task, pictures, path=path, key=own, force=force, listen=listen, should_stop=should_stop)
    if statistics is None:
        return None
    _save(path, statistics, kind=KIND, key=own)
    _forget(_partial(path))
    return Observed(statistics, path, reused=False)


def count(
    task: Task,
    pictures: Sequence[Picture],
    *,
    advance: Callable[[int], None] = lambda _done: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Statistics | None:
    """Statistics of the watched tensors over ``pictures``; runs in any process that has the model file.

    Raises:
        ArtifactError: the model file here is not the one that was planned with.
    """
    session, preprocessor, fixed = _opened(task)

    def run(batch: NDArray[np.float32]) -> Sequence[NDArray[np.float32]]:
        real = len(batch)
        if fixed is not None and real < fixed:
            batch = np.concatenate([batch, np.repeat(batch[-1:], fixed - real, axis=0)])
        return [output[:real] for output in (batch, *session.outputs(batch))]

    def load(index: int) -> NDArray[np.float32]:
        picture = pictures[index]
        return preprocessor(decode(picture.read_checked(), name=picture.where))

    return collect.collect(
        [picture.where for picture in pictures],
        load,
        run,
        task.watched,
        with_histogram=task.needs == "histogram",
        # One picture at a time: the result does not depend on it, and memory does.
        batch=fixed or 1,
        threads=task.threads,
        advance=advance,
        should_stop=should_stop,
    )


@functools.lru_cache(maxsize=2)
def _opened(task: Task) -> tuple[OrtSession, Preprocessor, int | None]:
    path = Path(task.model)
    model = models.load(path)
    if model.sha256 != task.model_sha256:
        raise ArtifactError("the model is not the one that the calibration was planned with", where=path)
    outputs = network.with_outputs(models.read(path), list(task.watched))
    session = OrtSession(outputs, precision="fp32", threads=1)
    return session, Preprocessor(task.preprocess, task.input), model.fixed_batch


def _collect(
    task: Task,
    pictures: Pictures,
    *,
    path: Path,
    key: store.Key,
    force: bool,
    listen: Listener,
    should_stop: Callable[[], bool],
) -> Statistics | None:
    ordered = sorted(pictures, key=lambda picture: picture.sha256)
    total = Statistics.empty(task.watched, with_histogram=task.needs == "histogram")
    partial = _partial(path)
    if not force and (before := _load(partial, kind=PARTIAL, key=key, listen=listen)) is not None:
        listen(Note(f"going on after {before.pictures} of {len(ordered)} pictures"))
        total = before
    saved_at, saved = time.monotonic(), total.pictures

    def save() -> None:
        nonlocal saved_at, saved
        if total.pictures > saved:
            _save(partial, total, kind=PARTIAL, key=key)
        saved_at, saved = time.monotonic(), total.pictures

    done = total.pictures

    def advance(more: int) -> None:
        nonlocal done
        done += more
        listen(Progress("calibrate", done, len(ordered)))

    listen(Progress("calibrate", done, len(ordered)))
    try:
        while total.pictures < len(ordered):
            chunk = ordered[total.pictures : total.pictures + _CHUNK]
            part = count(task, chunk, advance=advance, should_stop=should_stop)
            if part is None:
                return None
            total.merge(part)
            if time.monotonic() - saved_at >= _SAVE_EVERY_S:
                save()
        return total
    finally:
        if total.pictures < len(ordered):
            save()


def _path(cache: Path, key: store.Key) -> Path:
    return cache / f"{store.digest(dict(key))[:16]}.stats.npz"


def _partial(path: Path) -> Path:
    return path.with_name(path.name.replace(".stats.npz", ".partial.npz"))


def _manifest(path: Path) -> Path:
    return path.with_suffix(".json")


def _save(path: Path, statistics: Statistics, *, kind: str, key: store.Key) -> None:
    info: dict[str, Any] = {"pictures": statistics.pictures, "tensors": len(statistics.tensors)}
    store.save(_manifest(path), kind=kind, files={path.name: statistics.to_bytes()}, key=key, info=info)


def _load(path: Path, *, kind: str, key: store.Key, listen: Listener) -> Statistics | None:
    """Statistics that were kept for ``key``, or None; damaged or foreign ones are said, and collected again."""
    if not _manifest(path).is_file():
        return None
    try:
        manifest = store.load(_manifest(path), kind=kind)
        # The file's name says the key; a copy under another name must not pass for what it is called.
        if path.name not in manifest.files or store.differences(manifest.key, key):
            raise ArtifactError("these statistics are of something else", where=path)
        return Statistics.from_bytes(path.read_bytes(), where=path)
    except EdgeError as exc:
        listen(Note(f"kept statistics cannot be used and are collected again: {exc.what} ({exc.where})", "warning"))
        return None


def _forget(path: Path) -> None:
    for file in (_manifest(path), path):
        file.unlink(missing_ok=True)

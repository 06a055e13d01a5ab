"""Observe the FP32 network over pictures: statistics collected, saved while they grow, and reused.

Pictures are put in the order of their sha256 and cut into chunks of a fixed size; a :class:`Crew` counts the chunks, in
whatever order. Every few seconds what is done is saved beside the table with the numbers of its chunks, so a calibration
that is killed goes on where it was, with the same crew or another one; only chunks in hand are counted again.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

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
# Pictures per chunk. A checkpoint that was written with another number is not gone on with.
_CHUNK = 16
_TOGETHER = 4
# Saving may take a twentieth of the time, and a crash at most this much work, or twenty times what saving takes.
_SAVE_EVERY_S = 5.0
_SAVE_SHARE = 1 / 20

Needs = Literal["ranges", "histogram"]
Chunks = Mapping[int, Sequence[Picture]]


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


class Part(msgspec.Struct, frozen=True):
    """What a crew has counted: the numbers of the chunks, and their statistics."""

    chunks: tuple[int, ...]
    statistics: Statistics


class Crew(Protocol):
    """Who counts: this process alone, or others. Every crew gives the same statistics, to the bit."""

    @property
    def threads(self) -> int:
        """Threads that each process counts with, where the user does not say."""

    def count(
        self,
        task: Task,
        chunks: Chunks,
        *,
        advance: Callable[[int], None],
        listen: Listener,
        should_stop: Callable[[], bool],
    ) -> Generator[Part, None, None]:
        """Count all chunks, each once, and give them as they come; ends early when ``should_stop`` says so.

        ``advance`` hears how many more pictures are done. Closing the generator ends the work.

        Raises:
            EdgeError: what :func:`count` raises, wherever it ran.
            DeviceError: those who count died too often, or cannot be reached.
        """
        ...


class Alone:
    """The crew that is this process."""

    @property
    def threads(self) -> int:
        """All cores."""
        return os.cpu_count() or 1

    def count(
        self,
        task: Task,
        chunks: Chunks,
        *,
        advance: Callable[[int], None],
        listen: Listener,  # noqa: ARG002 - there is nobody to report on
        should_stop: Callable[[], bool],
    ) -> Generator[Part, None, None]:
        """Count the chunks in their order, some at a time: at the end of each lot, threads wait for the slowest."""
        left = list(chunks)
        while left:
            numbers, left = tuple(left[:_TOGETHER]), left[_TOGETHER:]
            pictures = [picture for number in numbers for picture in chunks[number]]
            statistics = count(task, pictures, advance=advance, should_stop=should_stop)
            if statistics is None:
                return
            yield Part(numbers, statistics)


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
    crew: Crew | None = None,
    listen: Listener = silence,
    should_stop: Callable[[], bool] = lambda: False,
) -> Observed | None:
    """Statistics of ``plan.watched`` over ``pictures``; None when ``should_stop`` ended it early.

    ``crew`` counts them, or else this process alone; ``threads`` is per process of it. ``key`` is the table's key; of it, the statistics depend on model, preprocessing and pictures.

    Raises:
        DataError: a picture is unreadable, broken or changed meanwhile.
        ModelError: the network overflows on a picture.
        DeviceError: a crew's workers died too often, or cannot be reached; what they counted is kept.
        StoreError: ``cache`` cannot be written.
    """
    own = {name: key[name] for name in ("model", "preprocess", "images")} | {"format": FORMAT}
    if not force:
        for kind in ("histogram", "ranges") if needs == "ranges" else ("histogram",):
            kept = {**own, "needs": kind}
            path = _path(cache, kept)
            found = _load(_manifest(path), kind=KIND, key=kept, listen=listen)
            if found is not None:
                return Observed(found[0], path, reused=True)
    own |= {"needs": needs}
    path = _path(cache, own)
    crew = crew or Alone()
    # Absolute: who counts may have another working directory.
    task = Task(
        str(model.path.absolute()), model.sha256, profile.preprocess, profile.input, tuple(plan.watched), needs,
        threads or crew.threads,
    )  # fmt: skip
    tally = _Tally(task, pictures, _partial(path), own)
    if not force:
        tally.resume(listen)
    if not tally.complete(crew, listen=listen, should_stop=should_stop):
        return None
    _save(_manifest(path), path.name, tally.total, kind=KIND, key=own, info=_describe(tally.total))
    tally.forget()
    return Observed(tally.total, path, reused=False)


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


class _Kept(msgspec.Struct, frozen=True):
    """Which pictures a checkpoint holds: numbers of chunks, and how many pictures make a chunk."""

    chunk: int
    done: list[int]


class _Tally:
    """Statistics while they grow, and their checkpoint."""

    def __init__(self, task: Task, pictures: Pictures, manifest: Path, key: store.Key) -> None:
        ordered = sorted(pictures, key=lambda picture: picture.sha256)
        starts = range(0, len(ordered), _CHUNK)
        self.total = Statistics.empty(task.watched, with_histogram=task.needs == "histogram")
        self._task = task
        self._count = len(ordered)
        self._chunks: Chunks = {start // _CHUNK: ordered[start : start + _CHUNK] for start in starts}
        self._done: set[int] = set()
        self._manifest = manifest
        self._key = key
        self._saved = 0
        self._whole = True

    def resume(self, listen: Listener) -> None:
        """Go on from the checkpoint, if there is one."""
        found = _load(self._manifest, kind=PARTIAL, key=self._key, listen=listen, check=self._check)
        if found is not None:
            self.total, info = found
            self._done = set(_kept(info).done)
            self._saved = self.total.pictures
            listen(Note(f"going on after {self._saved} of {self._count} pictures"))

    def complete(self, crew: Crew, *, listen: Listener, should_stop: Callable[[], bool]) -> bool:
        """Let ``crew`` count what is left; False when it stopped before the end. What came back is saved either way."""
        seen = self.total.pictures

        def advance(more: int) -> None:
            nonlocal seen
            seen += more
            listen(Progress("calibrate", seen, self._count))

        advance(0)
        left = {number: chunk for number, chunk in self._chunks.items() if number not in self._done}
        due = time.monotonic() + _SAVE_EVERY_S
        try:
            parts = crew.count(self._task, left, advance=advance, listen=listen, should_stop=should_stop)
            with contextlib.closing(parts):
                for part in parts:
                    self._add(part)
                    if (start := time.monotonic()) >= due:
                        self._save()
                        cost = time.monotonic() - start
                        due = start + max(_SAVE_EVERY_S, cost / _SAVE_SHARE)
        finally:
            if len(self._done) < len(self._chunks):
                self._save()
        return len(self._done) == len(self._chunks)

    def forget(self) -> None:
        """Remove the checkpoint: the manifest first, so that it never names a file that is not there."""
        self._manifest.unlink(missing_ok=True)
        self._sweep(keep=None)

    def _add(self, part: Part) -> None:
        # A second Ctrl-C can come anywhere: half a sum must not be saved.
        self._whole = False
        self.total.merge(part.statistics)
        self._done.update(part.chunks)
        self._whole = True

    def _save(self) -> None:
        if not self._whole or self.total.pictures == self._saved:
            return
        # A name of its own: until the new manifest stands, the one before it and its file are whole.
        stem = self._manifest.name.removesuffix(".partial.json")
        name = f"{stem}-{self.total.pictures}.partial.npz"
        info = _describe(self.total) | {"chunk": _CHUNK, "done": sorted(self._done)}
        _save(self._manifest, name, self.total, kind=PARTIAL, key=self._key, info=info)
        self._saved = self.total.pictures
        self._sweep(keep=name)

    def _sweep(self, keep: str | None) -> None:
        stem = self._manifest.name.removesuffix(".partial.json")
        for file in self._manifest.parent.glob(f"{stem}*.partial.npz"):
            if file.name != keep:
                file.unlink(missing_ok=True)

    def _check(self, statistics: Statistics, info: Mapping[str, object]) -> str | None:
        """Why a checkpoint cannot be gone on with, or None."""
        kept = _kept(info)
        known = kept.chunk == _CHUNK and set(kept.done) <= self._chunks.keys()
        if not known or statistics.pictures != sum(len(self._chunks[number]) for number in set(kept.done)):
            return "they do not say which pictures were counted"
        return None


def _kept(info: Mapping[str, object]) -> _Kept:
    try:
        return msgspec.convert(info, _Kept)
    except msgspec.ValidationError:
        # Written by an edge that counted in one row.
        return _Kept(0, [])


def _path(cache: Path, key: store.Key) -> Path:
    return cache / f"{store.digest(dict(key))[:16]}.stats.npz"


def _partial(path: Path) -> Path:
    """Manifest of the checkpoint."""
    return path.with_name(path.name.replace(".stats.npz", ".partial.json"))


def _manifest(path: Path) -> Path:
    return path.with_suffix(".json")


def _describe(statistics: Statistics) -> dict[str, object]:
    return {"pictures": statistics.pictures, "tensors": len(statistics.tensors)}


def _save(
    manifest: Path, name: str, statistics: Statistics, *, kind: str, key: store.Key, info: Mapping[str, object]
) -> None:
    store.save(manifest, kind=kind, files={name: statistics.to_bytes()}, key=key, info=info)


def _load(
    where: Path,
    *,
    kind: str,
    key: store.Key,
    listen: Listener,
    check: Callable[[Statistics, Mapping[str, object]], str | None] = lambda _statistics, _info: None,
) -> tuple[Statistics, Mapping[str, object]] | None:
    """Statistics kept for ``key`` under the manifest ``where``, and its info; or None.

    Damaged or foreign ones are said, and collected again; ``check`` says what else is wrong with them.
    """
    if not where.is_file():
        return None
    try:
        manifest = store.load(where, kind=kind)
        path = where.with_name(next(iter(manifest.files), where.name))
        # The file's name says the key; a copy under another name must not pass for what it is called.
        if not path.name.startswith(_stem(where)) or store.differences(manifest.key, key):
            raise ArtifactError("these statistics are of something else", where=path)
        statistics = Statistics.from_bytes(path.read_bytes(), where=path)
        if (wrong := check(statistics, manifest.info)) is not None:
            raise ArtifactError(wrong, where=where)
    except EdgeError as exc:
        listen(Note(f"kept statistics cannot be used and are collected again: {exc.what} ({exc.where})", "warning"))
        return None
    return statistics, manifest.info


def _stem(path: Path) -> str:
    return path.name.partition(".")[0]

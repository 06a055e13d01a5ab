"""Statistics while they grow, and where they are kept: finished ones, and checkpoints of unfinished ones.

Pictures are counted in chunks of a fixed size, in any order. A checkpoint names the chunks that it holds: whoever goes
on from it may count with other processes, on other machines, in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from edge.artifacts import store
from edge.errors import ArtifactError, EdgeError
from edge.events import Listener, Note
from edge.media import Picture
from edge.quantization import Statistics

KIND = "calibration statistics"
PARTIAL = "unfinished calibration statistics"
# Pictures per chunk. A checkpoint that was written with another number is not gone on with.
CHUNK = 4

Info = Mapping[str, object]


def chunk_size(fixed_batch: int | None) -> int:
    """Pictures per chunk: a whole number of batches where the network takes one size only."""
    return CHUNK if fixed_batch is None else fixed_batch * -(-CHUNK // fixed_batch)


class _Kept(msgspec.Struct, frozen=True):
    """Pictures that a checkpoint holds: numbers of chunks, and how many pictures make a chunk."""

    chunk: int = 0
    done: list[int] = []


class Checkpoint:
    """Statistics of the chunks that have been counted so far, and their checkpoint.

    ``pictures`` are in the order in which they are cut into chunks; ``manifest`` is where the checkpoint's lies.
    """

    def __init__(
        self, empty: Statistics, pictures: Sequence[Picture], *, manifest: Path, key: store.Key, size: int = CHUNK
    ) -> None:
        self.total = empty
        self._pictures = pictures
        self._size = size
        self._done: set[int] = set()
        self._manifest = manifest
        self._key = key
        self._saved = 0
        self._whole = True

    @property
    def left(self) -> dict[int, Sequence[Picture]]:
        """The chunks that are still to be counted, by number."""
        return {number: self._chunk(number) for number in self._numbers if number not in self._done}

    @property
    def complete(self) -> bool:
        """True if every picture is in."""
        return len(self._done) == len(self._numbers)

    def resume(self, listen: Listener) -> None:
        """Go on from the checkpoint, if there is a usable one."""
        found = load(self._manifest, kind=PARTIAL, key=self._key, listen=listen, check=self._check)
        if found is not None:
            self.total, info = found
            self._done = set(_kept(info).done)
            self._saved = self.total.pictures
            listen(Note(f"going on after {self._saved} of {len(self._pictures)} pictures"))

    def add(self, numbers: Sequence[int], part: Statistics) -> None:
        """Add the statistics of some chunks."""
        # A second Ctrl-C can end this anywhere: half a sum must not be saved.
        self._whole = False
        self.total.merge(part)
        self._done.update(numbers)
        self._whole = True

    def save(self) -> None:
        """Write the checkpoint, if there is anything new.

        Raises:
            StoreError: the disk refused; the checkpoint that was there before is whole.
        """
        if not self._whole or self.total.pictures == self._saved:
            return
        # A name of its own: until the new manifest stands, the one before it still finds its file.
        name = f"{_stem(self._manifest)}-{self.total.pictures}.partial.npz"
        info = {"chunk": self._size, "done": sorted(self._done)}
        save(self._manifest, name, self.total, kind=PARTIAL, key=self._key, info=info)
        self._saved = self.total.pictures
        self._sweep(keep=name)

    def forget(self) -> None:
        """Remove the checkpoint."""
        self._manifest.unlink(missing_ok=True)
        self._sweep(keep=None)

    def _sweep(self, keep: str | None) -> None:
        for file in self._manifest.parent.glob(f"{_stem(self._manifest)}*.partial.npz"):
            if file.name != keep:
                file.unlink(missing_ok=True)

    @property
    def _numbers(self) -> range:
        return range(-(-len(self._pictures) // self._size))

    def _chunk(self, number: int) -> Sequence[Picture]:
        return self._pictures[number * self._size : (number + 1) * self._size]

    def _check(self, statistics: Statistics, info: Info) -> str | None:
        kept = _kept(info)
        known = kept.chunk == self._size and set(kept.done) <= set(self._numbers)
        if known and statistics.pictures == sum(len(self._chunk(number)) for number in set(kept.done)):
            return None
        return "they do not say which of these pictures were counted"


def save(manifest: Path, name: str, statistics: Statistics, *, kind: str, key: store.Key, info: Info) -> None:
    """Keep statistics as ``name`` next to ``manifest``; unfinished ones without compression, which takes longer."""
    about = {"pictures": statistics.pictures, "tensors": len(statistics.tensors), **info}
    store.save(manifest, kind=kind, files={name: statistics.to_bytes(compress=kind == KIND)}, key=key, info=about)


def load(
    where: Path,
    *,
    kind: str,
    key: store.Key,
    listen: Listener,
    check: Callable[[Statistics, Info], str | None] = lambda _statistics, _info: None,
) -> tuple[Statistics, Info] | None:
    """Statistics that were kept for ``key`` under the manifest ``where``, and its info; None when there are none.

    Damaged or foreign ones are said, and count as none; ``check`` says what else is wrong with them.
    """
    if not where.is_file():
        return None
    try:
        manifest = store.load(where, kind=kind)
        path = where.with_name(next(iter(manifest.files), ""))
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


def _kept(info: Info) -> _Kept:
    try:
        return msgspec.convert(info, _Kept)
    except msgspec.ValidationError:
        return _Kept()


def _stem(path: Path) -> str:
    return path.name.partition(".")[0]

"""Checkpoints of unfinished statistics, and the files of finished ones.

Images are processed in chunks of a fixed size, in any order. A checkpoint names its chunks, so it can be continued with
other processes, on other machines, and in another order.
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
# Images per chunk. A checkpoint with another number is not continued.
CHUNK = 4

Info = Mapping[str, object]


def chunk_size(fixed_batch: int | None) -> int:
    """Return the number of images per chunk: a whole number of batches if the network has a fixed batch size."""
    return CHUNK if fixed_batch is None else fixed_batch * -(-CHUNK // fixed_batch)


class _Kept(msgspec.Struct, frozen=True):
    """Content of a checkpoint: the numbers of its chunks, and the number of images per chunk."""

    chunk: int = 0
    done: list[int] = []


class Checkpoint:
    """Statistics of the chunks processed so far, and their checkpoint file.

    ``pictures`` are in the order in which they are divided into chunks; ``manifest`` is that of the checkpoint.
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
        """Numbers of the remaining chunks."""
        return {number: self._chunk(number) for number in self._numbers if number not in self._done}

    @property
    def complete(self) -> bool:
        """True if every image is included."""
        return len(self._done) == len(self._numbers)

    def resume(self, listen: Listener) -> None:
        """Continue from the checkpoint if there is a usable one."""
        found = load(self._manifest, kind=PARTIAL, key=self._key, listen=listen, check=self._check)
        if found is not None:
            self.total, info = found
            self._done = set(_kept(info).done)
            self._saved = self.total.pictures
            listen(Note(f"continuing after {self._saved} of {len(self._pictures)} images"))

    def add(self, numbers: Sequence[int], part: Statistics) -> None:
        """Add the statistics of some chunks."""
        # A second Ctrl-C can interrupt this anywhere: an incomplete sum must not be saved.
        self._whole = False
        self.total.merge(part)
        self._done.update(numbers)
        self._whole = True

    def save(self) -> None:
        """Write the checkpoint if it has changed.

        Raises:
            StoreError: the file cannot be written; the previous checkpoint is intact.
        """
        if not self._whole or self.total.pictures == self._saved:
            return
        # A new name: until the new manifest is written, the previous one still finds its file.
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
        return "they do not name the images that they include"


def save(manifest: Path, name: str, statistics: Statistics, *, kind: str, key: store.Key, info: Info) -> None:
    """Save statistics as ``name`` next to ``manifest``; unfinished ones without slow compression."""
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
    """Load the statistics for ``key`` under the manifest ``where``, and its info; None if there are none.

    Damaged or foreign statistics are reported and ignored; ``check`` returns any further problem.
    """
    if not where.is_file():
        return None
    try:
        manifest = store.load(where, kind=kind)
        path = where.with_name(next(iter(manifest.files), ""))
        # The file name contains the key; a copy under another name must not be accepted.
        if not path.name.startswith(_stem(where)) or store.differences(manifest.key, key):
            raise ArtifactError("these statistics were made with other inputs", where=path)
        statistics = Statistics.from_bytes(path.read_bytes(), where=path)
        if (wrong := check(statistics, manifest.info)) is not None:
            raise ArtifactError(wrong, where=where)
    except EdgeError as exc:
        listen(
            Note(f"the stored statistics cannot be used and are collected again: {exc.what} ({exc.where})", "warning")
        )
        return None
    return statistics, manifest.info


def _kept(info: Info) -> _Kept:
    try:
        return msgspec.convert(info, _Kept)
    except msgspec.ValidationError:
        return _Kept()


def _stem(path: Path) -> str:
    return path.name.partition(".")[0]

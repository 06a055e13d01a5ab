"""One picture, and an ordered set of them.

A picture here is its encoded bytes, wherever they lie; nothing is decoded. Its sha256 is kept once computed, so that
every later :meth:`Picture.read_checked` notices a file that changed while edge was working with it.
"""

from __future__ import annotations

import dataclasses
import itertools
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from edge.artifacts import canonical_digest, sha256_bytes
from edge.errors import DataError, UsageError
from edge.events import Listener, Progress, ignore_events
from edge.media.labels import shown


class PictureOrigin(Protocol):
    """Location of the encoded bytes of one picture."""

    @property
    def where(self) -> str:
        """The place, for messages: a path, or a shard and a record number."""

    def read(self) -> bytes:
        """The encoded bytes; DataError when they cannot be had."""


@dataclasses.dataclass(frozen=True, slots=True)
class FileOrigin:
    """A file that holds one picture."""

    path: str

    @property
    def where(self) -> str:
        """Its path, without bytes that a terminal cannot show."""
        return shown(self.path)

    def read(self) -> bytes:
        """All bytes of the file.

        Raises:
            DataError: it is gone, not permitted, or the disk failed.
        """
        try:
            return Path(self.path).read_bytes()
        except OSError as exc:
            raise DataError(f"cannot read the picture: {exc.strerror or exc}", where=self.where) from exc


class _Memo:
    """Facts about a picture that are computed once: its sha256."""

    __slots__ = ("sha256",)

    def __init__(self) -> None:
        self.sha256: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Picture:
    """One encoded picture.

    ``name`` is relative to the source, with ``/``, the same on every machine (it leads upwards only where a list says
    so); ``label`` is its class index, if known.
    """

    name: str
    label: int | None
    origin: PictureOrigin
    _memo: _Memo = dataclasses.field(default_factory=_Memo, repr=False, compare=False)

    @property
    def where(self) -> str:
        """Location of the bytes, for messages."""
        return self.origin.where

    @property
    def sha256(self) -> str:
        """Hex sha256 of the encoded bytes; they are read on the first call only.

        Raises:
            DataError: they cannot be read.
        """
        if self._memo.sha256 is None:
            self._memo.sha256 = sha256_bytes(self.origin.read())
        return self._memo.sha256

    def read(self) -> bytes:
        """The original encoded bytes, unchanged.

        Raises:
            DataError: they cannot be read.
        """
        return self.origin.read()

    def read_checked(self) -> bytes:
        """The original encoded bytes, which must be those that were hashed first.

        Raises:
            DataError: they cannot be read, or they changed since.
        """
        data = self.origin.read()
        found = sha256_bytes(data)
        if self._memo.sha256 is None:
            self._memo.sha256 = found
        elif self._memo.sha256 != found:
            raise DataError(
                "the picture changed since it was first read",
                where=self.where,
                hint="leave the source alone while edge works with it, and run the same command again",
            )
        return data

    def labelled(self, label: int | None) -> Picture:
        """The same picture with another label."""
        return dataclasses.replace(self, label=label)


class Pictures:
    """Pictures in a fixed order, listed as far as somebody looked: ``take(100)`` of a shard reads 100 records of it.

    It can be pickled (which lists all of it), and the sets made from it share its pictures and their digests.
    Looking at pictures can raise DataError where listing goes on behind the scenes, as it does for TFRecord shards.
    """

    def __init__(self, source: Path, pictures: Iterable[Picture]) -> None:
        self.source = source
        self._known: list[Picture] = pictures if isinstance(pictures, list) else []
        self._rest: Iterator[Picture] | None = None if isinstance(pictures, list) else iter(pictures)
        self._failure: DataError | None = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        self._list(None)
        return len(self._known)

    def __iter__(self) -> Iterator[Picture]:
        for index in itertools.count():
            self._list(index + 1)
            if index >= len(self._known):
                return
            yield self._known[index]

    def __getitem__(self, index: int) -> Picture:
        self._list(index + 1 if index >= 0 else None)
        return self._known[index]

    def __repr__(self) -> str:
        more = "" if self._rest is None else " or more"
        return f"Pictures({str(self.source)!r}, {len(self._known)}{more})"

    def __getstate__(self) -> dict[str, Any]:
        self._list(None)
        return {"source": self.source, "known": self._known}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["source"], state["known"])  # type: ignore[misc]

    def take(self, count: int) -> Pictures:
        """The first ``count`` pictures, or all where there are fewer.

        Raises:
            UsageError: ``count`` is not above 0.
        """
        if count < 1:
            raise UsageError(f"cannot take {count} pictures: at least 1")
        self._list(count)
        return Pictures(self.source, self._known[:count])

    def shard(self, index: int, count: int) -> Pictures:
        """Every ``count``-th picture from ``index`` on: the shards 0 to ``count - 1`` hold each picture once.

        Raises:
            UsageError: not ``0 <= index < count``.
        """
        if not 0 <= index < count:
            raise UsageError(f"there is no shard {index} of {count}: count from 0")
        self._list(None)
        return Pictures(self.source, self._known[index::count])

    def digest(self, listen: Listener = ignore_events) -> str:
        """Hex sha256 that names the set: of the sorted list of its pictures' sha256, as canonical JSON.

        Names, labels and order do not matter; a picture that is there twice counts twice. Reads every picture.

        Raises:
            DataError: a picture cannot be read.
        """
        total = len(self)
        found = []
        for done, picture in enumerate(self, start=1):
            found.append(picture.sha256)
            listen(Progress("hash", done, total))
        return canonical_digest(sorted(found))

    def _list(self, count: int | None) -> None:
        """List until ``count`` pictures are known, or all of them for None."""
        if self._rest is None:
            return
        with self._lock:
            if self._failure is not None and (count is None or count > len(self._known)):
                # A generator that raised is at its end: without this, the second look would see a shorter set.
                raise self._failure
            try:
                while self._rest is not None and (count is None or len(self._known) < count):
                    picture = next(self._rest, None)
                    if picture is None:
                        self._rest = None
                    else:
                        self._known.append(picture)
            except DataError as exc:
                self._failure = exc
                raise

"""Frames in order from any source: images, a video, a camera, a recording.

A stream of files delivers every frame, as fast as requested. A live stream delivers the newest frame when requested,
and counts the frames that were not read in time.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import msgspec

from edge.media.pictures import MOST_MEGAPIXELS, Picture, Pictures, decode

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Pixels = npt.NDArray[np.uint8]

Clock = Callable[[], float]


class OpenedSource(msgspec.Struct, frozen=True, kw_only=True):
    """Description of an open stream: kind, address, size in pixels and rate if known, live or not.

    ``replayed`` names the recording if the frames come from one. ``cameras`` describes each camera if there are
    several.
    """

    kind: str
    opened_as: str
    live: bool
    width: int | None = None
    height: int | None = None
    fps: float | None = None
    total: int | None = None
    replayed: str | None = None
    cameras: dict[str, OpenedSource] = {}


@dataclasses.dataclass(frozen=True, slots=True)
class Frame:
    """One frame: its number (from 0, with gaps for dropped frames), its name, and its capture time.

    ``since_s`` is the capture time of a live frame, and the due time of a file, on the stream's monotonic clock.
    ``load`` returns the pixels, uint8 H×W×3 BGR; it may be called once, in any thread, and raises DataError if they
    cannot be read. ``decoded_ms`` is the time already spent on them, such as for reading a video. ``camera`` is the
    camera's name if there are several.
    """

    seq: int
    name: str
    where: str
    since_s: float
    load: Callable[[], Pixels]
    decoded_ms: float = 0.0
    camera: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Outage:
    """A live stream has no frames since ``start_s`` (its clock): still, or until ``end_s``."""

    start_s: float
    end_s: float | None
    reason: str
    hint: str | None = None
    reopened_as: str | None = None
    attempts: int = 0
    camera: str | None = None


class Stream(Protocol):
    """A source of frames for one thread at a time. ``close`` may be called from any thread and ends a wait."""

    @property
    def opened(self) -> OpenedSource:
        """Description of the source."""

    @property
    def dropped(self) -> int | None:
        """Number of frames of a live stream that were replaced before they were read; None for files."""

    @property
    def notes(self) -> list[str]:
        """Notes for the record: a file that ended early, a size other than the requested one."""

    def next(self) -> Frame | Outage | None:
        """Return the next frame, or an outage when it begins and when it ends; None at the end and after ``close``.

        Raises:
            DataError, DeviceError: the stream cannot continue.
        """

    def close(self) -> None:
        """Release the source; further calls do nothing."""


@runtime_checkable
class GroupStream(Stream, Protocol):
    """A stream of several cameras, whose frames can be put into one batch."""

    @property
    def cameras(self) -> dict[str, Callable[[], int | None]]:
        """Functions that return the number of dropped frames, by camera name."""

    def next_within(self, wait_s: float) -> Frame | Outage | None:
        """Work like ``next``, but return None if nothing arrives within ``wait_s`` seconds."""


class PictureStream:
    """Every image of a set in its order; ``exif`` rotates them by their EXIF orientation."""

    def __init__(
        self, pictures: Pictures, *, exif: bool = True, max_megapixels: float = MOST_MEGAPIXELS,
        clock: Clock = time.monotonic,
    ) -> None:  # fmt: skip
        self.opened = OpenedSource(kind="pictures", opened_as=str(pictures.source), live=False, total=len(pictures))
        self.dropped = None
        self.notes: list[str] = []
        self._pictures = enumerate(pictures)
        self._options = {"exif": exif, "max_megapixels": max_megapixels}
        self._clock = clock
        self._closed = False

    def next(self) -> Frame | None:
        """Return the next image; its bytes are read when it is loaded."""
        if self._closed:
            return None
        since_s = self._clock()
        seq, picture = next(self._pictures, (0, None))
        if picture is None:
            return None
        return Frame(seq, picture.name, picture.where, since_s, _Load(picture, self._options))

    def close(self) -> None:
        """End the stream."""
        self._closed = True


class _Load:
    """Reads and decodes an image when called."""

    __slots__ = ("_options", "_picture")

    def __init__(self, picture: Picture, options: dict[str, Any]) -> None:
        self._picture = picture
        self._options = options

    def __call__(self) -> Any:  # noqa: ANN401
        return decode(self._picture.read(), name=self._picture.where, **self._options)


class LimitedStream:
    """The first ``count`` frames of ``stream``."""

    def __init__(self, stream: Stream, count: int) -> None:
        total = stream.opened.total
        self.opened = msgspec.structs.replace(stream.opened, total=count if total is None else min(total, count))
        self._stream = stream
        self._left = count

    @property
    def dropped(self) -> int | None:
        """See :class:`Stream`; the value of the wrapped stream."""
        return self._stream.dropped

    @property
    def notes(self) -> list[str]:
        """See :class:`Stream`; the value of the wrapped stream."""
        return self._stream.notes

    def next(self) -> Frame | Outage | None:
        """Return the next item until ``count`` frames were delivered."""
        return self._counted(self._stream.next()) if self._left else None

    def _counted(self, following: Frame | Outage | None) -> Frame | Outage | None:
        if isinstance(following, Frame):
            self._left -= 1
        return following

    def close(self) -> None:
        """Close the stream."""
        self._stream.close()


class LimitedGroup(LimitedStream):
    """The first ``count`` frames of several cameras."""

    def __init__(self, stream: GroupStream, count: int) -> None:
        super().__init__(stream, count)
        self._group = stream

    @property
    def cameras(self) -> dict[str, Callable[[], int | None]]:
        """See :class:`Stream`; the value of the wrapped stream."""
        return self._group.cameras

    def next_within(self, wait_s: float) -> Frame | Outage | None:
        """Return the next item that arrives in time, until ``count`` frames were delivered."""
        return self._counted(self._group.next_within(wait_s)) if self._left else None

"""Where the frames of a run come from, as the command line says it: checked first, opened when the engine is loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
import typer

from edge.errors import UsageError

if TYPE_CHECKING:
    from edge.config import Profile
    from edge.media import Stream

Camera = Annotated[
    str | None,
    typer.Option(
        "--camera", "-c", metavar="CAMERA", help="0, /dev/video0, /dev/v4l/by-id/…, csi://0, rtsp://… or http://….",
    ),
]  # fmt: skip
WaitForCamera = Annotated[bool, typer.Option("--wait-for-camera", help="Begin without a camera that is not there yet.")]
Video = Annotated[Path | None, typer.Option("--video", metavar="FILE", help="Every frame of a video file.")]
Replay = Annotated[
    Path | None,
    typer.Option("--replay", metavar="DIR|FILE", help="Frames of --save-frames, or a video, as if from a camera."),
]
ReplaySpeed = Annotated[
    Literal["real", "fast"],
    typer.Option("--replay-speed", help="real: at their own times, newest frame only. fast: every frame."),
]
SaveFrames = Annotated[
    Path | None,
    typer.Option("--save-frames", metavar="DIR", help="Keep the frames with their times (JPEG), for --replay."),
]
Open = Callable[[], "Stream"]


class FrameSource(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line says; exactly one of the first four is there."""

    images: Path | None
    camera: str | None
    video: Path | None
    replay: Path | None
    fast: bool
    limit: int | None
    save: Path | None
    wait: bool = False

    @property
    def name(self) -> str:
        """The source as it was typed, without passwords.

        Raises:
            UsageError: none or several were given.
        """
        from edge.media import masked

        given = {
            "--images": self.images, "--camera": self.camera, "--video": self.video, "--replay": self.replay,
        }  # fmt: skip
        said = {option: value for option, value in given.items() if value is not None}
        if not said:
            raise UsageError("nothing to classify", hint="--images DIR, --camera 0, --video FILE or --replay DIR")
        if len(said) > 1:
            raise UsageError(f"{' and '.join(said)} exclude each other")
        if self.wait and self.camera is None:
            raise UsageError("--wait-for-camera is for --camera")
        return masked(str(next(iter(said.values()))))

    @property
    def is_live(self) -> bool:
        """True if frames come in their own time."""
        return self.camera is not None or (self.replay is not None and not self.fast)

    def plan(self, profile: Profile) -> Open:
        """What opens the stream; what can be found out without opening it is found out now.

        Raises:
            UsageError, DataError, MissingDependencyError: the source cannot be had.
        """
        opening = self._plan(profile)

        def opened() -> Stream:
            from edge.media import LimitedStream, SavingStream

            stream = opening()
            with contextlib.ExitStack() as stack:
                stack.callback(stream.close)
                if self.save is not None:
                    stream = SavingStream(stream, self.save)
                if self.limit is not None:
                    stream = LimitedStream(stream, self.limit)
                stack.pop_all()
            return stream

        return opened

    def _plan(self, profile: Profile) -> Open:
        if self.images is not None:
            from edge.media import PictureStream, open_pictures

            pictures = open_pictures(self.images)
            pictures = pictures.take(self.limit) if self.limit else pictures
            return lambda: PictureStream(pictures)
        if self.camera is not None:
            from edge.media import LiveStream, cameras

            place = cameras.place(self.camera, profile.camera)
            return lambda: LiveStream(place, profile.camera, wait=self.wait)
        if self.video is not None:
            from edge.media import VideoStream

            video = VideoStream(self.video)
            return lambda: video
        from edge.media import ReplayStream

        assert self.replay is not None  # noqa: S101 - for mypy
        replay = ReplayStream(self.replay, fast=self.fast)
        return lambda: replay

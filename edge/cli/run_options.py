"""Options of ``edge run``: the source of the frames, the record, and the addresses of ``--web`` and ``--metrics``.

All checks that need no camera or port are made before the engine is loaded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from edge.artifacts import Secret, hides, masked_url, read_address, temporary_folder
from edge.errors import UsageError

if TYPE_CHECKING:
    from edge.artifacts import Subject
    from edge.config import CameraConfig, Profile, RecordConfig
    from edge.media import GroupStream, Stream
    from edge.runtime import Journal, RunStatistics
    from edge.telemetry import Sampler
    from edge.ui.terminal import Terminal
    from edge.ui.web import Access, Address, Metrics, RunView


Camera = Annotated[
    list[str] | None,
    typer.Option(
        "--camera", "-c", metavar="[NAME=]CAMERA",
        help="0, /dev/video0, csi://0, rtsp://…, http://…, or @FILE with a URL in it; repeat for several cameras.",
    ),
]  # fmt: skip
WaitForCamera = Annotated[
    bool, typer.Option("--wait-for-camera", help="Start even if the camera is not available yet.")
]
Video = Annotated[Path | None, typer.Option("--video", metavar="FILE", help="Every frame of a video file.")]
Replay = Annotated[
    Path | None,
    typer.Option("--replay", metavar="DIR|FILE", help="Replay the frames of --save-frames, or a video, like a camera."),
]
SaveFrames = Annotated[
    Path | None,
    typer.Option("--save-frames", metavar="DIR", help="Save the frames with their times (JPEG), for --replay."),
]
SaveVideo = Annotated[
    Path | None,
    typer.Option("--save-video", metavar="FILE", help="Save the frames with their labels on them: .mp4, .mkv, .avi."),
]
Csv = Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write one row per frame.")]
Open = Callable[[], "Stream"]
CAMERA_VARIABLE = "EDGE_CAMERA_URL"
TOKEN_VARIABLE = "EDGE_WEB_TOKEN_FILE"  # noqa: S105 - the name of a variable


class NamedAddress(msgspec.Struct, frozen=True):
    """One camera: its name if there are several, its address, and its settings."""

    name: str
    address: Secret
    config: CameraConfig


class FrameSource(msgspec.Struct, frozen=True, kw_only=True):
    """The source on the command line: one of the first four, or cameras of the profile or the environment."""

    images: Path | None
    camera: list[str]
    video: Path | None
    replay: Path | None
    limit: int | None
    save: Path | None
    wait: bool = False

    def check(self) -> None:
        """Refuse options that exclude each other.

        Raises:
            UsageError: They do.
        """
        given = {
            "--images": self.images, "--camera": self.camera or None, "--video": self.video, "--replay": self.replay,
        }  # fmt: skip
        given_options = [option for option, value in given.items() if value is not None]
        if len(given_options) > 1:
            raise UsageError(f"{' and '.join(given_options)} exclude each other")
        if self.wait and self.file is not None:
            raise UsageError("--wait-for-camera has no effect without --camera")

    def cameras(self, profile: Profile, warn: Callable[[str], None]) -> list[NamedAddress]:
        """Return the cameras of the command line, the profile, or ``EDGE_CAMERA_URL``; none for other sources.

        Raises:
            UsageError: there is no source, two cameras have the same name, or one device is given twice.
        """
        if self.images is not None or self.video is not None or self.replay is not None:
            return []
        found = [_parse(text, number, profile, warn) for number, text in enumerate(self.camera, start=1)]
        if not found:
            found = [
                NamedAddress(name, _address(camera.source, f"cameras.{name}", warn), camera)
                for name, camera in profile.cameras.items()
            ]
        if not found and os.environ.get(CAMERA_VARIABLE):
            found = [NamedAddress("camera1", Secret.url(os.environ[CAMERA_VARIABLE]), profile.camera)]
        if not found:
            raise UsageError("no source", hint="use --images DIR, --camera 0, --video FILE or --replay DIR")
        _check_unique(found)
        return found

    @property
    def file(self) -> Path | None:
        """Return the folder, list or video of the frames; None for cameras."""
        return self.images or self.video or self.replay

    def plan(self, profile: Profile, cameras: list[NamedAddress]) -> Open:
        """Return the function that opens the stream; check everything that can be checked without opening it.

        Raises:
            UsageError, DataError, MissingDependencyError: the source is invalid or cannot be opened.
        """
        opening = self._plan(profile, cameras)

        def opened() -> Stream:
            from edge.media import GroupStream, LimitedGroup, LimitedStream

            stream = opening()
            with contextlib.ExitStack() as stack:
                stack.callback(stream.close)
                if self.save is not None and len(cameras) < 2:
                    from edge.media import SavingStream

                    stream = SavingStream(stream, self.save)
                if self.limit is not None:
                    is_group = isinstance(stream, GroupStream)
                    stream = LimitedGroup(stream, self.limit) if is_group else LimitedStream(stream, self.limit)  # type: ignore[arg-type]
                stack.pop_all()
            return stream

        return opened

    def _plan(self, profile: Profile, cameras: list[NamedAddress]) -> Open:
        if self.images is not None:
            from edge.media import PictureStream, open_pictures

            pictures = open_pictures(self.images)
            pictures = pictures.take(self.limit) if self.limit else pictures
            spec = profile.preprocess
            return lambda: PictureStream(pictures, exif=spec.exif, max_megapixels=spec.max_megapixels)
        if self.video is not None:
            from edge.media import VideoStream

            video = VideoStream(self.video)
            return lambda: video
        if self.replay is not None:
            return _plan_replay(self.replay, fast=profile.run.replay_speed == "fast")
        return self._plan_cameras(cameras)

    def _plan_cameras(self, cameras: list[NamedAddress]) -> Open:
        from edge.media import CameraGroup, LiveStream, SavingStream, camera_source

        places = {camera.name: (camera_source(camera.address, camera.config), camera.config) for camera in cameras}
        if len(places) == 1:
            [(place, config)] = places.values()
            return lambda: LiveStream(place, config, wait=self.wait)

        def opening(name: str) -> Stream:
            place, config = places[name]
            # A missing camera is retried while the others run.
            stream: Stream = LiveStream(place, config, wait=True)
            return stream if self.save is None else SavingStream(stream, self.save / name)

        opens: dict[str, Open] = {name: partial(opening, name) for name in places}
        return lambda: CameraGroup(opens, wait=self.wait)


def source_name(source: FrameSource, cameras: list[NamedAddress]) -> str:
    """Return the display name of the source, without secrets."""
    if source.file is not None:
        return str(source.file)
    if len(cameras) == 1:
        return str(cameras[0].address)
    return ", ".join(f"{camera.name}={camera.address}" for camera in cameras)


def _plan_replay(path: Path, *, fast: bool) -> Open:
    from edge.media import CameraGroup, ReplayStream, recordings

    several = recordings(path)
    if not several:
        replay = ReplayStream(path, fast=fast)
        return lambda: replay
    if fast:
        raise UsageError(
            "frames of several cameras can only be replayed at their own times", where=path,
            hint="set run.replay_speed: real, or give --replay the folder of one camera",
        )  # fmt: skip
    opens: dict[str, Open] = {folder.name: partial(ReplayStream, folder) for folder in several}

    def opened() -> GroupStream:
        return CameraGroup(opens)

    return opened


def _parse(text: str, number: int, profile: Profile, warn: Callable[[str], None]) -> NamedAddress:
    """Parse one ``--camera``: an address, ``NAME=ADDRESS``, ``@FILE``, ``NAME=@FILE``, or a name from the profile."""
    from edge.config import is_camera_name

    name, equals, address = text.partition("=")
    if not (equals and is_camera_name(name)):
        name, address = f"camera{number}", text
    if text in profile.cameras:
        camera = profile.cameras[text]
        return NamedAddress(text, _address(camera.source, f"cameras.{text}", warn), camera)
    if not address:
        raise UsageError(f"--camera {text}: no address after the =", hint="--camera front=0")
    config = profile.cameras.get(name, profile.camera)
    return NamedAddress(name, typed_camera(address, warn, shown=masked_url(text)), config)


def typed_camera(address: str, warn: Callable[[str], None], *, shown: str | None = None) -> Secret:
    """Read an address of the command line, with a warning about one that other users should not see there.

    Args:
        address: the address, or ``@FILE``.
        warn: gets the warning.
        shown: the option's value as it is shown.

    Raises:
        ArtifactError, UsageError: the file cannot be read, or is empty.
    """
    if not address.startswith("@") and hides(address):
        warn(
            f"other users can see the password of --camera {shown or masked_url(address)} on a command line; "
            f"write the URL into a file for --camera @FILE, or into {CAMERA_VARIABLE}"
        )
    return _address(Secret.url(address), "--camera", warn)


def _address(given: Secret, where: str, warn: Callable[[str], None]) -> Secret:
    """Read the address from its file if it is given as ``@FILE``."""
    try:
        return read_address(given, what="camera URL", warn=warn)
    except UsageError as exc:
        raise UsageError(exc.what, where=f"{where}: {exc.where}", hint=exc.hint) from exc


def _check_unique(cameras: Iterable[NamedAddress]) -> None:
    names: set[str] = set()
    devices: dict[str, str] = {}
    for camera in cameras:
        if camera.name in names:
            raise UsageError(f"two cameras have the name {camera.name}", hint="--camera front=0 --camera gate=1")
        names.add(camera.name)
        device = _device(camera.address.reveal())
        if device in devices:
            raise UsageError(
                f"the cameras {devices[device]} and {camera.name} are the same device: {camera.address}",
                hint="name each camera once",
            )
        devices[device] = camera.name


def _device(address: str) -> str:
    """Return the device of an address, equal for two names of one device."""
    if address.isdecimal():
        address = f"/dev/video{int(address)}"
    return os.path.realpath(address) if address.startswith("/") else address


Record = Annotated[
    Path | None,
    typer.Option("--record", metavar="FILE", help="Run record: .json, or .jsonl, which is appended to and rotated."),
]


def check_record(path: Path | None, config: RecordConfig) -> None:
    """Refuse ``record.every_frame`` if the record is not a ``.jsonl`` file.

    Raises:
        UsageError: the record is not a ``.jsonl`` file.
    """
    if config.every_frame and path is not None and path.suffix != ".jsonl":
        raise UsageError("record.every_frame in the profile needs a .jsonl record", hint="--record run.jsonl")


def open_journal(path: Path | None, config: RecordConfig, terminal: Terminal) -> Journal | None:
    """Open the journal, which writes the record during the run; return None without --record."""
    from edge.runtime import Journal, Rotation

    if path is None:
        return None
    return Journal(
        path,
        flush_s=config.flush_s,
        every_frame=config.every_frame,
        rotation=Rotation(limit=config.size_mib << 20, files=config.files),
        warn=terminal.warn,
    )


Web = Annotated[str | None, typer.Option("--web", metavar="HOST:PORT", help="Show the run in a browser.")]
MetricsAt = Annotated[str | None, typer.Option("--metrics", metavar="HOST:PORT", help="Serve /metrics to Prometheus.")]


class HttpOptions:
    """The requested addresses and token file."""

    def __init__(self, web: str | None = None, metrics: str | None = None, token_file: str | None = None) -> None:
        self.web = web
        self.metrics = metrics
        self.token_file = token_file


@dataclasses.dataclass(frozen=True)
class ListeningPort:
    """One open address, and the services on it."""

    address: Address
    listening: socket.socket
    has_page: bool
    has_metrics: bool


class ListeningPorts:
    """All open addresses, and their access rules."""

    def __init__(self, each: list[ListeningPort], access: Access | None) -> None:
        self.each = each
        self.access = access

    @property
    def has_page(self) -> bool:
        """True if any port serves the web page."""
        return any(port.has_page for port in self.each)


def open_ports(asked: HttpOptions, stack: contextlib.ExitStack, terminal: Terminal) -> ListeningPorts:
    """Listen on the requested addresses until ``stack`` unwinds, and print them.

    A generated token is printed once if stdout is a terminal; otherwise it is written to a file, so that no log has it.

    Raises:
        UsageError: an address is invalid.
        DeviceError: a port is in use.
        MissingDependencyError: starlette, uvicorn or prometheus_client is missing.
        ArtifactError: the file of the token cannot be read.
    """
    addresses = [("--web", asked.web), ("--metrics", asked.metrics)]
    if asked.web is None and asked.metrics is None:
        return ListeningPorts([], None)
    # Check the optional dependencies before anything is opened.
    from edge.ui.web import Access, Address, app, check, listen, new_token, parse_address, read_token  # noqa: F401

    if asked.metrics is not None:
        check()
    places: dict[Address, list[str]] = {}
    for option, text in addresses:
        if text is not None:
            places.setdefault(parse_address(text, option=option), []).append(option)
    token_file = asked.token_file or os.environ.get(TOKEN_VARIABLE)
    token = read_token(Path(token_file)) if token_file else None
    is_new = token is None and not all(place.is_loopback for place in places)
    if is_new:
        token = new_token()
    each = []
    for place, options in places.items():
        listening = listen(place, option=options[0])
        stack.callback(listening.close)
        # Port 0 means any free port: print the actual one.
        opened = Address(place.host, listening.getsockname()[1])
        each.append(ListeningPort(opened, listening, has_page="--web" in options, has_metrics="--metrics" in options))
    shown = token.reveal() if is_new and token is not None else None
    if shown is not None and not terminal.err.is_terminal:
        terminal.info(f"token: in {_token_file(shown, stack)}")
        shown = None
    for port in each:
        if port.has_page:
            terminal.info(f"web: {port.address.url}" + (f"#token={shown}" if shown else ""))
        if port.has_metrics:
            terminal.info(f"metrics: {port.address.url}metrics" + (f" (bearer token {shown})" if shown else ""))
    return ListeningPorts(each, Access(token))


def _token_file(token: str, stack: contextlib.ExitStack) -> Path:
    """Write the token to a file of mode 0600 until ``stack`` unwinds; return its path."""
    path = stack.enter_context(temporary_folder("web")) / "token"
    path.touch(mode=0o600)
    path.write_text(f"{token}\n")
    return path


def serve_run(
    ports: ListeningPorts, stack: contextlib.ExitStack, statistics: RunStatistics, subject: Subject, *,
    sampler: Sampler | None, headline: str, power: str,
) -> RunView | None:  # fmt: skip
    """Serve the run at the open addresses until ``stack`` unwinds; return the view that shows its frames, if any."""
    if not ports.each or ports.access is None:
        return None
    from edge.ui.web import RunView, Server, application

    view = RunView(statistics, subject, headline=headline, power=power) if ports.has_page else None
    metrics = _metrics(statistics, subject, sampler) if any(port.has_metrics for port in ports.each) else None
    for port in ports.each:
        app = application(
            ports.access,
            view=view if port.has_page else None,
            metrics=metrics if port.has_metrics else None,
            cookie=f"edge_{port.address.port}",
        )
        stack.enter_context(Server(app, port.listening))
    return view


def _metrics(statistics: RunStatistics, subject: Subject, sampler: Sampler | None) -> Metrics:
    import time

    from edge.telemetry import Window
    from edge.ui.web import Metrics

    if sampler is None:
        return Metrics(statistics, subject)
    started_s = time.monotonic()

    def joules() -> float | None:
        return sampler.energy(Window(started_s, time.monotonic())).joules

    source = sampler.source
    # A replay is called so wherever its figures go.
    name = f"replay of {source.name}" if getattr(source, "replayed", None) else source.name
    return Metrics(statistics, subject, power=(source.scope, name), joules=joules)

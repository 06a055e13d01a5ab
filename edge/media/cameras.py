"""The kinds of live source: how to open each, and how to diagnose a failure.

docs/running.md lists the sources of the pipelines and settings. The pipelines for CSI and hardware decoding follow
published examples of NVIDIA and others; none was run on a Jetson.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec

from edge.artifacts import Secret
from edge.config import CameraConfig
from edge.errors import DeviceError, UsageError
from edge.media.network_probe import describe_stream, undecodable
from edge.media.opencv_capture import Api, Request, has_backend, missing_backend

_NODE = re.compile(r"video(\d+)$")
_LINKS = ("dev/v4l/by-id", "dev/v4l/by-path")


class VideoNode(msgspec.Struct, frozen=True):
    """A video node: its path, the camera's name, and the udev links to it."""

    path: str
    name: str | None
    links: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.path} ({self.name})" if self.name else self.path


class Holder(msgspec.Struct, frozen=True):
    """A process that has a video node open."""

    pid: int
    name: str

    def __str__(self) -> str:
        return f"{self.name}, pid {self.pid}"


def cameras(root: Path = Path("/")) -> list[VideoNode]:
    """List the nodes that deliver images, by number, without the metadata nodes next to them."""
    return [
        look(f"/dev/{path.name}", root)
        for path in sorted((root / "dev").glob("video*"), key=lambda path: (len(path.name), path.name))
        if _NODE.search(path.name) and _text(_sysfs(path.name, root) / "index") in {None, "0"}
    ]


def look(path: str, root: Path = Path("/")) -> VideoNode:
    """Return the facts about the node at ``path``, which need not exist."""
    name = Path(path).name
    links = tuple(
        f"/{folder}/{link.name}"
        for folder in _LINKS
        for link in sorted((root / folder).glob("*"))
        if Path(os.path.realpath(link)).name == name
    )
    return VideoNode(path, _text(_sysfs(name, root) / "name"), links)


def resolve(path: str, root: Path = Path("/")) -> str | None:
    """Return the node that ``path``, a node or a link to one, currently refers to; None if it does not exist."""
    real = Path(os.path.realpath(root / path.lstrip("/")))
    return f"/dev/{real.name}" if real.exists() else None


def find_again(lost: VideoNode, root: Path = Path("/")) -> str | None:
    """Find a ``lost`` camera: by its udev links, then by its name, then by its number."""
    for link in lost.links:
        found = resolve(link, root)
        if found is not None:
            return found
    if lost.name is not None:
        named = [node.path for node in cameras(root) if node.name == lost.name]
        if named:
            return lost.path if lost.path in named else named[0]
    # A known name that is missing means that another camera has the old number.
    return resolve(lost.path, root) if lost.name is None else None


def holders(path: str, root: Path = Path("/")) -> list[Holder]:
    """List the other processes that have the node open, as far as this user may see them."""
    found = [
        Holder(int(folder.name), _text(folder / "comm") or "?")
        for folder in (root / "proc").glob("[0-9]*")
        if folder.name != str(os.getpid()) and _has_open(folder / "fd", path)
    ]
    return sorted(found, key=lambda holder: holder.pid)


def _has_open(folder: Path, path: str) -> bool:
    try:
        return any(os.readlink(handle) == path for handle in folder.iterdir())  # noqa: PTH115 - as it is written there
    except OSError:
        # Another user's process, or one that has just ended.
        return False


def _sysfs(name: str, root: Path) -> Path:
    return root / "sys/class/video4linux" / name


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip() or None
    except OSError:
        return None


_NETWORK = ("rtsp", "rtsps", "http", "https", "rtmp", "tcp", "udp")
_FORMS = "0, /dev/video0, /dev/v4l/by-id/…, csi://0, rtsp://… or http://…"
_BGR = "videoconvert ! video/x-raw,format=BGR ! appsink drop=true max-buffers=1 sync=false"
# A network stream may have pixels that are not square.
_SQUARE_BGR = _BGR.replace("! video/x-raw,format=BGR", "! videoscale ! video/x-raw,format=BGR,pixel-aspect-ratio=1/1")
# From the module's video memory to the input of videoconvert.
_FROM_NVMM = f"nvvidconv ! video/x-raw,format=BGRx ! {_BGR}"

HasBackend = Callable[[Api], bool]


class CameraAddress(Protocol):
    """A live source that may disappear and return."""

    kind: str
    name: str
    announces_size: bool

    def request(self) -> Request:
        """Return the request that opens the source now; its node may have changed.

        Raises:
            DeviceError: the source does not exist.
        """

    def diagnose(self, what: str, *, ask: bool = False) -> DeviceError:
        """Return the error for ``what`` went wrong, with its cause and the command that helps.

        ``ask`` also asks a server, which takes a few seconds where it does not answer.
        """

    def announced_size(self) -> tuple[int, int] | None:
        """Return the width and height that a server announces for its stream now; None if unknown."""


def camera_source(
    address: Secret | str, camera: CameraConfig, *, root: Path = Path("/"), backend: HasBackend = has_backend
) -> CameraAddress:
    """Make the source for ``address``, a value of ``--camera``.

    Raises:
        UsageError: the address has an unknown form.
        MissingDependencyError: this OpenCV lacks the backend for it.
    """
    secret = Secret.url(address) if isinstance(address, str) else address
    address = secret.reveal()
    scheme = address.partition("://")[0].lower() if "://" in address else ""
    if address.isdecimal():
        found: UsbCamera | CsiCamera | NetworkCamera = UsbCamera(f"/dev/video{int(address)}", camera, root=root)
    elif address.startswith("/"):
        found = UsbCamera(address, camera, root=root)
    elif scheme == "csi" and address[6:].isdecimal():
        found = CsiCamera(int(address[6:]), camera)
    elif scheme in _NETWORK:
        found = NetworkCamera(secret, camera, api="ffmpeg" if backend("ffmpeg") else "gstreamer")
    else:
        hint = f"--video {address}" if not scheme and Path(address).is_file() else f"--camera {_FORMS}"
        raise UsageError(f"'{secret}' is not a camera address", hint=hint)
    if not backend(found.api):
        raise missing_backend(found.api)
    return found


class UsbCamera:
    """A V4L2 camera, given by its node or by a udev link."""

    kind = "v4l2"
    announces_size = False

    def __init__(self, path: str, camera: CameraConfig, *, root: Path = Path("/")) -> None:
        self.name = path
        self._camera = camera
        self._root = root
        self._known: VideoNode | None = None
        by_pipeline = camera.pipeline is not None or camera.decoder == "hardware"
        self.api: Api = "gstreamer" if by_pipeline else "v4l2"

    def request(self) -> Request:
        """Return the request that opens the camera, perhaps under another number after it was lost."""
        node = resolve(self.name, self._root)
        if self._known is not None:
            node = find_again(self._known, self._root)
        if node is None:
            raise self.diagnose("the source does not exist")
        if self._known is None:
            self._known = look(node, self._root)
        camera = self._camera
        opened_as = node if node == self.name else f"{self.name} -> {node}"
        return Request(
            api=self.api,
            target=self._pipeline(node) if self.api == "gstreamer" else node,
            opened_as=opened_as,
            width=camera.width,
            height=camera.height,
            fps=camera.fps,
            fourcc={"mjpg": "MJPG", "yuyv": "YUYV", "any": None}[camera.format],
            timeout_s=camera.timeout_s,
        )

    def announced_size(self) -> tuple[int, int] | None:
        """Return None: the frames of a driver have their own size."""
        return None

    def diagnose(self, what: str, *, ask: bool = False) -> DeviceError:  # noqa: ARG002
        """Find the problem with the node: missing, not permitted, or used by another process."""
        node = resolve(self.name, self._root)
        if node is None and self._known is not None:
            node = find_again(self._known, self._root)
        if node is None:
            there = ", ".join(str(found) for found in cameras(self._root))
            return DeviceError(
                f"there is no camera here{': unplugged?' if self._known else ''}",
                where=self.name,
                hint=f"cameras on this machine: {there}" if there else "plug it in; v4l2-ctl --list-devices",
            )
        held = holders(node, self._root)
        if held:
            names = "; ".join(str(holder) for holder in held)
            return DeviceError(f"{what}: {node} is in use by {names}", where=self.name, hint=f"kill {held[0].pid}")
        if not os.access(self._root / node.lstrip("/"), os.R_OK | os.W_OK):
            return DeviceError(
                f"{what}: no permission for {node}",
                where=self.name,
                hint='sudo usermod -aG video "$USER", then log in again',
            )
        return DeviceError(what, where=self.name, hint=f"sudo fuser -v {node}; v4l2-ctl -d {node} --list-formats-ext")

    def _pipeline(self, node: str) -> str | Secret:
        camera = self._camera
        if camera.pipeline is not None:
            return _for_device(camera.pipeline, Secret(node, shown=node))
        size = f"width={camera.width},height={camera.height},framerate={_fraction(camera.fps)}"
        if camera.format == "mjpg":
            return f"v4l2src device={node} io-mode=2 ! image/jpeg,{size} ! nvv4l2decoder mjpeg=1 ! {_FROM_NVMM}"
        return f"v4l2src device={node} ! video/x-raw,{size} ! {_BGR}"


class CsiCamera:
    """A camera on the module's CSI connector, through the argus daemon."""

    kind = "csi"
    announces_size = False
    api: Api = "gstreamer"

    def __init__(self, sensor: int, camera: CameraConfig) -> None:
        self.name = f"csi://{sensor}"
        self._sensor = sensor
        self._camera = camera

    def request(self) -> Request:
        """Return the request that opens the camera; only argus knows if the sensor exists."""
        camera = self._camera
        size = f"width={camera.width},height={camera.height}"
        pipeline: str | Secret = (
            f"nvarguscamerasrc sensor-id={self._sensor} ! video/x-raw(memory:NVMM),{size},"
            f"framerate={_fraction(camera.fps)} ! nvvidconv flip-method={camera.flip} ! "
            f"video/x-raw,{size},format=BGRx ! {_BGR}"
        )
        if camera.pipeline is not None:
            pipeline = _for_device(camera.pipeline, Secret(str(self._sensor), shown=str(self._sensor)))
        return Request(
            api=self.api, target=pipeline, opened_as=self.name, width=camera.width, height=camera.height,
            fps=camera.fps, timeout_s=camera.timeout_s,
        )  # fmt: skip

    def announced_size(self) -> tuple[int, int] | None:
        """Return None: the frames of a driver have their own size."""
        return None

    def diagnose(self, what: str, *, ask: bool = False) -> DeviceError:  # noqa: ARG002
        """Suggest to restart argus, which keeps the session of a killed client until then."""
        return DeviceError(
            what,
            where=self.name,
            hint="sudo systemctl restart nvargus-daemon (after a reboot if that does not help); is the sensor's "
            f"ribbon in, and is {self._sensor} its number?",
        )


class NetworkCamera:
    """A stream by URL."""

    kind = "network"

    def __init__(self, url: Secret, camera: CameraConfig, *, api: Api = "ffmpeg") -> None:
        self.name = str(url)
        self.announces_size = url.reveal().partition("://")[0].lower() in {"rtsp", "rtsps"}
        self._url = url
        self._camera = camera
        self.api: Api = "gstreamer" if camera.pipeline is not None else api

    def request(self) -> Request:
        """Return the request that opens the stream; OpenCV uses TCP by default."""
        camera = self._camera
        target = self._url
        if self.api == "gstreamer":
            target = _for_device(
                camera.pipeline or Secret.url(f"uridecodebin uri={{device}} ! {_SQUARE_BGR}"), self._url
            )
        return Request(
            api=self.api,
            target=target,
            opened_as=self.name,
            timeout_s=camera.timeout_s,
            options={"rtsp_transport": "udp"} if camera.transport == "udp" else {},
            checks_jpegs=True,
        )

    def announced_size(self) -> tuple[int, int] | None:
        """Return width and height from the server's answer to RTSP's DESCRIBE."""
        try:
            description = describe_stream(self._url)
        except DeviceError:
            return None
        return None if description is None else description.size

    def diagnose(self, what: str, *, ask: bool = False) -> DeviceError:
        """Ask the server what is wrong, or name the commands that show whether it is there and what it sends."""
        host = self.name.partition("://")[2].rpartition("@")[2].partition("/")[0] or "?"
        host = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        transport = "-rtsp_transport tcp " if self.name.startswith("rtsp") else ""
        what, hint = self._url.scrub(what), f"ping {host}; ffprobe {transport}'{self.name}'"
        if not ask:
            return DeviceError(what, where=self.name, hint=hint)
        try:
            description = describe_stream(self._url)
        except DeviceError as exc:
            return DeviceError(f"{what}: {exc.what}", where=self.name, hint=exc.hint or hint)
        found = None if description is None else undecodable(description)
        if found is not None:
            return DeviceError(f"{what}: {found}", where=self.name, hint="choose H.264 or H.265 in the camera")
        if description is not None:
            size = f", {description.size[0]}×{description.size[1]}" if description.size is not None else ""
            what += f"; the server announces {' and '.join(description.codecs)}{size}"
        return DeviceError(what, where=self.name, hint=hint)


def _for_device(pipeline: Secret, device: Secret) -> Secret:
    """The pipeline with node, sensor or URL in the place of ``{device}``."""
    return Secret(
        pipeline.reveal().replace("{device}", device.reveal()), shown=str(pipeline).replace("{device}", str(device))
    )


def _fraction(fps: float) -> str:
    # 29.97 and its like are n · 1000/1001.
    if fps == int(fps):
        return f"{int(fps)}/1"
    return f"{round(fps * 1001)}/1001" if abs(fps * 1001 - round(fps * 1001, -3)) < 1.1 else f"{round(fps * 1000)}/1000"

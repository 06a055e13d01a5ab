"""Cameras that misbehave on purpose, behind the same seam as OpenCV's; and a machine's /dev, /sys and /proc."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from edge.errors import DeviceError
from edge.media.opencv_capture import Request

Pixels = np.ndarray
Script = Callable[["FakeCapture"], Iterator[Pixels | None]]


def picture(number: int, *, size: tuple[int, int] = (24, 32)) -> Pixels:
    """Each number another picture; size is height, width."""
    return np.full((*size, 3), number % 256, np.uint8)


class FakeCapture:
    """Plays a script: pixels are a frame, None is a read that fails; the script may sleep, raise, or never return."""

    fps = 30.0
    frames = None

    def __init__(self, script: Script) -> None:
        self.released = threading.Event()
        self.never = threading.Event()
        self._frames = script(self)
        self._pixels: Pixels | None = None

    def grab(self) -> bool:
        self._pixels = next(self._frames, None)
        return self._pixels is not None

    def captured_s(self) -> float:
        return time.monotonic()

    def retrieve(self) -> Pixels | None:
        return self._pixels

    def release(self) -> None:
        self.released.set()


class Bench:
    """Gives one capture after the other, one per opening; a DeviceError in the place of one does not open."""

    def __init__(self, *scripts: Script | DeviceError) -> None:
        self.requests: list[Request] = []
        self.captures: list[FakeCapture] = []
        self._scripts = iter(scripts)

    def __call__(self, request: Request) -> FakeCapture:
        self.requests.append(request)
        script = next(self._scripts, None)
        if script is None:
            raise DeviceError("it does not open")
        if isinstance(script, DeviceError):
            raise script
        self.captures.append(FakeCapture(script))
        return self.captures[-1]


def frames(
    count: int | None = None, *, first: int = 0, pause_s: float = 0.002, size: tuple[int, int] = (24, 32)
) -> Script:
    """``count`` different frames, then failing reads; for ever without a count."""

    def script(_capture: FakeCapture) -> Iterator[Pixels | None]:
        number = first
        while count is None or number < first + count:
            time.sleep(pause_s)
            yield picture(number, size=size)
            number += 1

    return script


def then(*scripts: Script) -> Script:
    """One script after the other."""

    def script(capture: FakeCapture) -> Iterator[Pixels | None]:
        for one in scripts:
            yield from one(capture)

    return script


def same(number: int = 7, *, pause_s: float = 0.002) -> Script:
    """The same frame over and over."""

    def script(_capture: FakeCapture) -> Iterator[Pixels | None]:
        while True:
            time.sleep(pause_s)
            yield picture(number)

    return script


def hang(capture: FakeCapture) -> Iterator[Pixels | None]:
    """A read that does not return, until the test is over."""
    capture.never.wait(30)
    yield None


def machine(root: Path, **nodes: str) -> Path:
    """``machine(root, video0="HD Webcam")``: nodes with names, and links by-id from the names."""
    (root / "proc").mkdir(parents=True, exist_ok=True)
    for node, name in nodes.items():
        plug(root, node, name)
    return root


def plug(root: Path, node: str, name: str, *, index: int = 0) -> None:
    """A camera comes: node, name and link."""
    for folder in ("dev", f"sys/class/video4linux/{node}", "dev/v4l/by-id"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "dev" / node).touch()
    (root / f"sys/class/video4linux/{node}/name").write_text(f"{name}\n")
    (root / f"sys/class/video4linux/{node}/index").write_text(f"{index}\n")
    link = root / f"dev/v4l/by-id/usb-{name.replace(' ', '_')}-video-index{index}"
    link.unlink(missing_ok=True)
    link.symlink_to(f"../../{node}")


def unplug(root: Path, node: str) -> None:
    """It goes, with everything that led to it."""
    (root / "dev" / node).unlink()
    for name in ("name", "index"):
        (root / f"sys/class/video4linux/{node}/{name}").unlink()
    for link in (root / "dev/v4l/by-id").iterdir():
        if not link.exists():
            link.unlink()


def hold(root: Path, node: str, *, pid: int, name: str) -> None:
    """A process has the node open."""
    (root / f"proc/{pid}/fd").mkdir(parents=True)
    (root / f"proc/{pid}/comm").write_text(f"{name}\n")
    (root / f"proc/{pid}/fd/5").symlink_to(f"/dev/{node}")

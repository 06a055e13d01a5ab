"""A ``Device`` in ordinary memory: addresses are NumPy's, the stream runs at once, and its clock counts what was done.

Kernels are those of edge as plain C++ (``kernel_on_cpu.cpp``), through ctypes.
"""

from __future__ import annotations

import contextlib
import ctypes
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edge.errors import DeviceError

# struct Launch of kernel_on_cpu.cpp
LAUNCH = struct.Struct("=32s160s4iq")
# What the clock adds for each kind of work, in milliseconds.
UPLOAD_MS, KERNEL_MS, RUN_MS, DOWNLOAD_MS = 1.0, 2.0, 4.0, 8.0


class HostDevice:
    """``limit``: bytes that may be allocated. ``integrated``: as a Jetson. ``captures``: whether graphs work.

    ``library``: the preprocessing kernel; without it there is no compiler here.
    ``diary`` says what was done, in order; ``live`` is what was allocated and not freed.
    """

    name = "host memory"
    sm = "0.0"
    stream = 4711

    def __init__(
        self, *, library: Path | None = None, integrated: bool = False, captures: bool = True, limit: int = 1 << 40
    ) -> None:
        self.integrated = integrated
        self.library = library
        self.captures = captures
        self.limit = limit
        self.fails_at: str | None = None
        self.diary: list[str] = []
        self.live: list[Any] = []
        self.clock_ms = 0.0
        self.closed = 0
        # Work put on the second stream so far, and how much of it the first stream waits for.
        self._beside = self._followed = 0
        self._is_beside = False
        self._active = threading.local()
        self._captured: list[Callable[[], None]] | None = None

    @property
    def is_active(self) -> bool:
        return getattr(self._active, "now", False)

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        assert not self.is_active, "active() is not to be nested"
        self._active.now = True
        try:
            yield
        finally:
            self._active.now = False

    def pinned(self, nbytes: int, *, mapped: bool = False) -> Memory:
        return self._allocate("pinned", nbytes, mapped=mapped)

    def memory(self, nbytes: int) -> Memory:
        return self._allocate("memory", nbytes, mapped=True)

    def _allocate(self, kind: str, nbytes: int, *, mapped: bool) -> Memory:
        assert self.is_active
        if sum(item.array.nbytes for item in self.live) + nbytes > self.limit:
            raise DeviceError("out of GPU memory")
        made = Memory(self, np.zeros(nbytes, np.uint8), mapped=mapped)
        if kind == "memory":
            made.array[:] = 0xFF  # what nobody writes must not look like a result
        self.live.append(made)
        self.diary.append(kind)
        return made

    def upload(self, address: int, array: np.ndarray) -> None:
        assert array.flags.c_contiguous
        self.put("upload", lambda: ctypes.memmove(address, array.ctypes.data, array.nbytes), UPLOAD_MS)

    def download(self, array: np.ndarray, address: int) -> None:
        assert array.flags.c_contiguous
        self.put("download", lambda: ctypes.memmove(array.ctypes.data, address, array.nbytes), DOWNLOAD_MS)

    def event(self) -> list[float]:
        return []

    def record(self, event: list[float]) -> None:
        assert self.is_active
        event[:] = [self.clock_ms, self._beside]

    def elapsed_ms(self, start: list[float], end: list[float]) -> float:
        return end[0] - start[0]

    @contextlib.contextmanager
    def beside(self) -> Iterator[None]:
        assert self.is_active
        self._is_beside = True
        try:
            yield
        finally:
            self._is_beside = False

    def follow(self, event: list[float]) -> None:
        assert event, "the event was never recorded"
        self._followed = max(self._followed, int(event[1]))

    def wait(self, event: list[float]) -> None:
        assert event, "the event was never recorded"
        self.put("synchronize", lambda: None, 0.0)

    def synchronize(self) -> None:
        self.put("synchronize", lambda: None, 0.0)

    def capture(self, work: Callable[[], None]) -> Graph:
        self.diary.append("capture")
        self._captured = []
        try:
            work()
            if not self.captures:
                raise DeviceError("the stream cannot be captured")
            made = Graph(self, self._captured)
        finally:
            self._captured = None
        self.live.append(made)
        return made

    def kernels(self, source: str) -> Kernels:
        assert "edge_filter" in source
        if self.library is None:
            raise DeviceError("the preprocessing kernel cannot be compiled: there is no nvcc")
        self.diary.append("compile")
        return Kernels(self, ctypes.CDLL(str(self.library)))

    def free_bytes(self) -> int:
        return self.limit - sum(item.array.nbytes for item in self.live)

    def close(self) -> None:
        self.closed += 1
        self.diary.append("close")

    def put(self, what: str, work: Callable[[], Any], took_ms: float) -> None:
        """Do it now, or when the graph that is being captured is launched."""
        assert self.is_active

        def run() -> None:
            if self.fails_at == what:
                raise DeviceError(f"told to fail at {what}")
            self._beside += self._is_beside
            assert what != "run" or self._followed >= self._beside, "the engine does not wait for its input"
            self.diary.append(what)
            work()
            self.clock_ms += took_ms

        if self._captured is None:
            run()
        else:
            self._captured.append(run)

    def done(self, what: str) -> int:
        """How often something was done."""
        return self.diary.count(what)


class Memory:
    def __init__(self, device: HostDevice, array: np.ndarray, *, mapped: bool) -> None:
        self._device = device
        self.array = array
        self.address: Any = array.ctypes.data if mapped else None

    def free(self) -> None:
        if self in self._device.live:
            assert self._device.is_active
            self._device.live.remove(self)
            self._device.diary.append("free")
            self.array = self.array[:0]


class Graph:
    array = np.zeros(0)

    def __init__(self, device: HostDevice, work: list[Callable[[], None]]) -> None:
        self._device = device
        self._work = work

    def launch(self) -> None:
        assert self in self._device.live
        self._device.diary.append("graph")
        for item in self._work:
            item()

    def free(self) -> None:
        if self in self._device.live:
            self._device.live.remove(self)
            self._device.diary.append("free graph")


class Kernels:
    def __init__(self, device: HostDevice, library: ctypes.CDLL) -> None:
        self._device = device
        self._library = library

    def launch(self, name: str, parameters: bytes, *, grid: tuple[int, int, int], threads: int, shared: int) -> None:
        _target, stride, row_stride = struct.unpack_from("=Qqq", parameters, 8)
        # The kernel reads whole words.
        assert stride % 4 == row_stride % 4 == 0, "rows must start at multiples of four bytes"

        def run() -> None:
            packed = LAUNCH.pack(name.encode(), parameters, *grid, threads, shared)
            if self._library.edge_launch(packed):
                raise DeviceError(f"there is no kernel {name}")

        self._device.put("kernel", run, KERNEL_MS)

"""Decoded frames to the network's input on the GPU: page-locked staging, upload, and the fused kernel.

Only the part of a frame that the spec's crop reads is copied: once, where CPU and GPU share memory, else twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from edge.backends.cuda import kernels
from edge.backends.cuda.kernels import Frames, LaunchPlan
from edge.backends.cuda.protocols import DeviceMemory, GpuDevice, HostMemory, RowCopy
from edge.config import InputConfig, PreprocessConfig
from edge.errors import DataError, DeviceError, require

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Bytes around each uploaded frame that the kernel may read: whole words, and the neighbour of the last 2×2 box.
GUARD = 16
_ALIGNMENT = 256
# Frame sizes whose plans and views are kept; a folder of pictures may have any number.
_SIZES = 64


class _Run(msgspec.Struct, frozen=True):
    """Frames ``first`` to ``first + count - 1`` of a batch, all of one size."""

    first: int
    count: int
    height: int
    width: int


class GpuPreprocessor:
    """The spec bound to a device, for up to ``batch`` frames at a time.

    The output is float16 when ``half``, else float32. Memory grows with the largest frame and is then kept. A batch
    goes through :meth:`stage`, :meth:`upload` and :meth:`launch`, all inside ``with device.active()``.
    """

    def __init__(
        self, spec: PreprocessConfig, target: InputConfig, device: GpuDevice, *, batch: int, half: bool = False
    ) -> None:
        self.spec = spec
        self.target = target
        self.batch = batch
        self._np = require("numpy")
        self._device = device
        self._kernels = device.kernels(kernels.source(), options=kernels.TILE.options)
        self._suffix = "_f16" if half else "_f32"
        self._output_bytes = 3 * target.height * target.width * (2 if half else 4)
        self._plans: dict[tuple[int, int], LaunchPlan] = {}
        self._jobs: dict[tuple[_Run, int], bytes] = {}
        self._host: HostMemory | None = None
        self._host_stride = 0
        self._memory: DeviceMemory | None = None
        self._stride = 0
        self._fitting: set[tuple[int, int]] = set()
        self._slots: dict[tuple[int, int, int], NDArray[np.uint8]] = {}
        self._copies: dict[tuple[int, int, int], RowCopy] = {}
        self._runs: list[_Run] = []

    @property
    def copies(self) -> bool:
        """True if frames are copied to the device; false where it reads them in place."""
        return not self._device.integrated

    def plan(self, height: int, width: int) -> LaunchPlan:
        """The plan for a frame size, worked out once."""
        found = self._plans.get((height, width))
        if found is None:
            found = self._plans[height, width] = kernels.plan(height, width, self.spec, self.target)
        return found

    def stage(self, frames: Sequence[NDArray[np.uint8]]) -> None:
        """Copy frames, uint8 H×W×3 BGR with any strides, to page-locked memory.

        Raises:
            DataError: a frame is not such an array.
            DeviceError: more frames than ``batch``, or not enough memory.
        """
        if not 1 <= len(frames) <= self.batch:
            raise DeviceError(f"{len(frames)} frames for a batch of 1 to {self.batch}")
        sizes = [self._size(frame) for frame in frames]
        self._reserve(sizes)
        for index, (frame, (height, width)) in enumerate(zip(frames, sizes, strict=True)):
            slot = self._slot(index, height, width)
            area = self.plan(height, width).area
            part = (slice(area.top, area.top + area.height), slice(area.left, area.left + area.width))
            self._np.copyto(slot[part], frame[part])
        self._runs = list(_runs(sizes))

    def upload(self) -> None:
        """Put copies of the staged frames on the stream; nothing, where the device reads them in place."""
        if self._memory is None:
            return
        for run in self._runs:
            for index in range(run.first, run.first + run.count):
                key = (index, run.height, run.width)
                copy = self._copies.get(key)
                if copy is None:
                    copy = self._copies[key] = self._copy_of(*key, self._memory)
                copy.start()

    def launch(self, target: int) -> None:
        """Put the kernel on the stream: the uploaded frames into the network input at device address ``target``."""
        for run in self._runs:
            plan = self.plan(run.height, run.width)
            key = (run, target)
            job = self._jobs.get(key)
            if job is None:
                job = self._jobs[key] = kernels.job(
                    plan, self._frames(run, plan), self.spec, target=target + run.first * self._output_bytes
                )
            self._kernels.launch(
                plan.kernel + self._suffix,
                job,
                grid=plan.grid(run.count),
                threads=plan.tile.threads,
                shared=plan.shared_bytes,
            )

    def free(self) -> None:
        """Give back all memory; a second call does nothing."""
        for memory in (self._host, self._memory):
            if memory is not None:
                memory.free()
        self._host = self._memory = None
        self._host_stride = self._stride = 0
        self._runs = []
        self._forget()

    def _forget(self) -> None:
        for kept in (self._plans, self._jobs, self._slots, self._copies, self._fitting):
            kept.clear()

    def _size(self, frame: NDArray[Any]) -> tuple[int, int]:
        if frame.dtype != self._np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
            raise DataError(f"a frame must be uint8 H×W×3, not {frame.dtype} {'×'.join(map(str, frame.shape))}")
        return frame.shape[0], frame.shape[1]

    def _reserve(self, sizes: Sequence[tuple[int, int]]) -> None:
        """Memory for frames of these sizes. Larger ones than ever replace what is there."""
        if self._fitting.issuperset(sizes):
            return
        if len(self._fitting) > _SIZES:
            self._forget()
        host = max(_aligned(3 * height * width) for height, width in sizes)
        areas = [self.plan(height, width).area for height, width in sizes]
        device = max(_aligned(3 * area.height * area.width + 2 * GUARD) for area in areas)
        if host > self._host_stride or device > self._stride:
            host, device = max(host, self._host_stride), max(device, self._stride)
            self.free()
            self._host = self._device.pinned(self.batch * host, mapped=not self.copies)
            if self.copies:
                self._memory = self._device.memory(self.batch * device)
            self._host_stride, self._stride = host, device
        self._fitting.update(sizes)

    def _slot(self, index: int, height: int, width: int) -> NDArray[np.uint8]:
        found = self._slots.get((index, height, width))
        if found is None:
            assert self._host is not None  # noqa: S101 - _reserve came before
            start = index * self._host_stride
            found = self._host.array[start : start + 3 * height * width].reshape(height, width, 3)
            self._slots[index, height, width] = found
        return found

    def _copy_of(self, index: int, height: int, width: int, memory: DeviceMemory) -> RowCopy:
        """The copy of frame ``index``'s area from its slot to its place on the device."""
        area = self.plan(height, width).area
        rows = self._slot(index, height, width).reshape(height, 3 * width)
        part = rows[area.top : area.top + area.height, 3 * area.left : 3 * (area.left + area.width)]
        return self._device.row_copy(memory.address + index * self._stride + GUARD, part)

    def _frames(self, run: _Run, plan: LaunchPlan) -> Frames:
        if self._memory is None:
            assert self._host is not None  # noqa: S101 - stage came before
            assert self._host.address is not None  # noqa: S101 - it is mapped
            return Frames(
                address=self._host.address + run.first * self._host_stride,
                row_stride=3 * run.width,
                frame_stride=self._host_stride,
                height=run.height,
                width=run.width,
            )
        return Frames(
            address=self._memory.address + run.first * self._stride + GUARD,
            row_stride=3 * plan.area.width,
            frame_stride=self._stride,
            height=plan.area.height,
            width=plan.area.width,
            top=plan.area.top,
            left=plan.area.left,
            guard=GUARD,
        )


def _runs(sizes: Sequence[tuple[int, int]]) -> Iterator[_Run]:
    first = 0
    for index in range(1, len(sizes) + 1):
        if index == len(sizes) or sizes[index] != sizes[first]:
            yield _Run(first, index - first, *sizes[first])
            first = index


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT

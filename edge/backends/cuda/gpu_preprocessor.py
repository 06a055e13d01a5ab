"""Convert decoded frames to the network's input on the GPU: page-locked staging, upload, and the fused kernel.

Only the part of a frame that the network sees is copied: once if CPU and GPU share memory, otherwise twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from edge.backends.cuda import kernels
from edge.backends.cuda.kernels import GUARD, FrameLayout, LaunchPlan
from edge.backends.cuda.protocols import DeviceMemory, GpuDevice, HostMemory
from edge.config import InputConfig, PreprocessConfig
from edge.errors import DataError, DeviceError, require
from edge.model import Box

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_ALIGNMENT = 256
# Number of frame sizes whose plans, tables and views are cached.
_SIZES = 64


class _FrameRun(msgspec.Struct, frozen=True):
    """Frames ``first`` to ``first + count - 1`` of a batch, all of one size."""

    first: int
    count: int
    height: int
    width: int


class GpuPreprocessor:
    """Preprocesses up to ``batch`` frames at a time on a device.

    The output is float16 if ``half``, else float32. Memory grows with the largest frame and never shrinks. A batch
    goes through :meth:`stage`, :meth:`upload` and :meth:`launch`, all inside ``with device.active()``. Each of the
    ``slots`` has page-locked memory of its own: one is staged while the work of another is still on the stream.
    """

    def __init__(
        self,
        spec: PreprocessConfig,
        target: InputConfig,
        device: GpuDevice,
        *,
        batch: int,
        half: bool = False,
        slots: int = 1,
    ) -> None:
        self.spec = spec
        self.target = target
        self.batch = batch
        self.slots = slots
        self._np = require("numpy")
        self._device = device
        self._kernels = device.kernels(kernels.source())
        self._suffix = "_f16" if half else "_f32"
        self._output_bytes = 3 * target.height * target.width * (2 if half else 4)
        self._plans: dict[tuple[int, int], LaunchPlan] = {}
        self._tables: dict[tuple[int, int], HostMemory | DeviceMemory] = {}
        self._jobs: dict[tuple[_FrameRun, int, int], bytes] = {}
        self._views: dict[tuple[int, int, int], NDArray[np.uint8]] = {}
        self._host: HostMemory | None = None
        self._memory: DeviceMemory | None = None
        self._stride = 0
        self._fitting: set[tuple[int, int]] = set()
        self._runs: list[list[_FrameRun]] = [[] for _ in range(slots)]

    @property
    def copies(self) -> bool:
        """True if frames are copied to the device; False if it reads them in place."""
        return not self._device.integrated

    def plan(self, height: int, width: int) -> LaunchPlan:
        """Return the plan for a frame size; it is computed once.

        Raises:
            DataError: the frame shrinks too much.
        """
        found = self._plans.get((height, width))
        if found is None:
            found = self._plans[height, width] = kernels.plan(height, width, self.spec, self.target)
        return found

    def stage(self, frames: Sequence[NDArray[np.uint8]], *, slot: int = 0) -> None:
        """Copy the needed part of frames, uint8 H×W×3 BGR with any strides, to the page-locked memory of ``slot``.

        Raises:
            DataError: a frame has another type or shape.
            DeviceError: there are more frames than ``batch``, or not enough memory.
        """
        if not 1 <= len(frames) <= self.batch:
            raise DeviceError(f"{len(frames)} frames for a batch of 1 to {self.batch}")
        sizes = [self._size(frame) for frame in frames]
        self._reserve(sizes)
        for index, (frame, (height, width)) in enumerate(zip(frames, sizes, strict=True)):
            area = self.plan(height, width).area
            part = frame[area.top : area.top + area.height, area.left : area.left + area.width]
            self._np.copyto(self._view(slot * self.batch + index, height, width), part)
        self._runs[slot] = list(_runs(sizes))

    def upload(self, *, slot: int = 0) -> None:
        """Enqueue copies of the staged frames on the stream, unless the device reads them in place."""
        if self._memory is None:
            return
        assert self._host is not None  # noqa: S101 - it comes and goes with the memory
        first = slot * self.batch * self._stride
        for run in self._runs[slot]:
            nbytes = self._bytes(run.height, run.width)
            for index in range(run.first, run.first + run.count):
                start = index * self._stride
                staged = self._host.array[first + start : first + start + nbytes]
                self._device.upload(self._memory.address + start, staged)

    def launch(self, target: int, *, slot: int = 0) -> None:
        """Enqueue the kernel, which converts the uploaded frames to the network input at device address ``target``."""
        for run in self._runs[slot]:
            plan = self.plan(run.height, run.width)
            key = (run, target, slot)
            job = self._jobs.get(key)
            if job is None:
                job = self._jobs[key] = self._job(run, plan, target, slot=slot)
            self._kernels.launch(
                plan.kernel + self._suffix,
                job,
                grid=plan.grid(run.count),
                threads=kernels.THREADS,
                shared=plan.tile.shared,
            )

    def free(self) -> None:
        """Free all memory; further calls do nothing."""
        self._free_frames()
        self._runs = [[] for _ in range(self.slots)]
        self._forget()

    def _forget(self) -> None:
        for table in self._tables.values():
            table.free()
        for kept in (self._plans, self._tables, self._jobs, self._views, self._fitting):
            kept.clear()

    def _free_frames(self) -> None:
        for memory in (self._host, self._memory):
            if memory is not None:
                memory.free()
        self._host = self._memory = None
        self._stride = 0
        self._jobs.clear()
        self._views.clear()

    def _size(self, frame: NDArray[Any]) -> tuple[int, int]:
        if frame.dtype != self._np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
            raise DataError(f"a frame must be uint8 H×W×3, not {frame.dtype} {'×'.join(map(str, frame.shape))}")
        return frame.shape[0], frame.shape[1]

    def _bytes(self, height: int, width: int) -> int:
        area = self.plan(height, width).area
        return area.height * _row_bytes(area)

    def _reserve(self, sizes: Sequence[tuple[int, int]]) -> None:
        """Allocate memory for frames of these sizes, and for their tables on the device; replace smaller buffers."""
        if self._fitting.issuperset(sizes):
            return
        if len(self._fitting) > _SIZES:
            self._device.synchronize()
            self._forget()
        stride = max(_aligned(self._bytes(*size) + GUARD) for size in sizes)
        if stride > self._stride:
            if self._host is not None:
                # Earlier batches may still be on their way out of it.
                self._device.synchronize()
            self._free_frames()
            self._host = self._device.pinned(self.slots * self.batch * stride, mapped=not self.copies)
            if self.copies:
                self._memory = self._device.memory(self.batch * stride)
            self._stride = stride
        for size in sizes:
            if size not in self._tables:
                self._tables[size] = self._table(self.plan(*size))
        self._fitting.update(sizes)

    def _table(self, plan: LaunchPlan) -> HostMemory | DeviceMemory:
        """Copy the plan's table to memory that the device can read."""
        host = self._device.pinned(plan.table.nbytes, mapped=not self.copies)
        host.array[: plan.table.nbytes] = plan.table
        if not self.copies:
            return host
        memory = self._device.memory(plan.table.nbytes)
        self._device.upload(memory.address, host.array[: plan.table.nbytes])
        self._device.synchronize()
        host.free()
        return memory

    def _view(self, index: int, height: int, width: int) -> NDArray[np.uint8]:
        """The staging memory of a frame, counted through all slots."""
        found = self._views.get((index, height, width))
        if found is None:
            assert self._host is not None  # noqa: S101 - _reserve came before
            area = self.plan(height, width).area
            start = index * self._stride
            rows = self._host.array[start : start + self._bytes(height, width)].reshape(area.height, -1)
            found = rows[:, : 3 * area.width].reshape(area.height, area.width, 3)
            self._views[index, height, width] = found
        return found

    def _job(self, run: _FrameRun, plan: LaunchPlan, target: int, *, slot: int) -> bytes:
        assert self._host is not None  # noqa: S101 - stage came before
        frames = self._memory.address if self._memory is not None else self._host.address
        # Where nothing is copied, the device reads the slot itself.
        first = run.first + (slot * self.batch if self._memory is None else 0)
        assert frames is not None  # noqa: S101 - where nothing is copied it is mapped
        table = self._tables[run.height, run.width].address
        assert table is not None  # noqa: S101 - likewise
        layout = FrameLayout(
            address=frames + first * self._stride,
            row_stride=_row_bytes(plan.area),
            frame_stride=self._stride,
            top=plan.area.top,
            left=plan.area.left,
        )
        return kernels.job(
            plan,
            layout,
            self.spec,
            table=table,
            target=target + run.first * self._output_bytes,
        )


def _runs(sizes: Sequence[tuple[int, int]]) -> Iterator[_FrameRun]:
    first = 0
    for index in range(1, len(sizes) + 1):
        if index == len(sizes) or sizes[index] != sizes[first]:
            yield _FrameRun(first, index - first, *sizes[first])
            first = index


def _row_bytes(area: Box) -> int:
    """Return the distance between staged rows: the kernel reads whole words."""
    return -(-3 * area.width // 4) * 4


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT

"""The preprocessing kernel: source code, and tables, parameters and launch geometry for an image size.

One launch converts a batch of equal frames, uint8 BGR H×W×3 with any row stride, to normalized float32 or
float16 N×3×h×w. :mod:`edge.model.preprocessing` defines the computation; the arithmetic is in
``preprocess_kernel.cuh``, which also compiles as plain C++. The 8-bit pixels are exactly those of the CPU path.
"""

from __future__ import annotations

import struct
from importlib import resources
from typing import TYPE_CHECKING

import msgspec

from edge.config import InputConfig, PreprocessConfig
from edge.errors import DataError, require
from edge.model import AxisTable, Box, placed, tables

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

THREADS = 128  # kThreads of the kernel
GUARD = 16  # bytes behind each frame that must be readable: groups of four pixels are read
_PITCH = 36  # kPitch of the kernel
# struct Job of preprocess_kernel.cuh, field by field: addresses and strides, two axes, the rest.
_JOB = struct.Struct("=QQqq QQiiiiii QQiiiiii iiii 3f 3f ii")
# Output columns and rows of a block. The first tile is taken whose shared memory lets several blocks run on one
# multiprocessor, else the first that fits every GPU.
_TILES = ((16, 16), (16, 8), (8, 8), (8, 4), (4, 4), (4, 2), (2, 2), (1, 1))
_GOOD_BYTES, _MOST_BYTES = 24 << 10, 48 << 10


class Tile(msgspec.Struct, frozen=True):
    """Output columns and rows of a block, and its shared memory in bytes.

    The sums along x begin ``bytes_from`` the start, with ``pitch`` from a column to the next.
    """

    width: int
    height: int
    bytes_from: int = 0
    pitch: int = 4
    shared: int = 0


class LaunchPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The launch parameters to convert one image size to the network input.

    ``area`` is the used part of the image in source pixels; ``place`` is its position in the output, of height × width.
    ``kernel`` lacks the suffix of the output type. ``groups`` of four source pixels make an output pixel along y and x.
    ``table`` has the tables of both axes, to be copied to the device unchanged.
    """

    kernel: str
    area: Box
    place: Box
    height: int
    width: int
    groups: tuple[int, int]
    tile: Tile
    table: NDArray[np.uint8]
    offsets: tuple[int, int, int, int]

    def grid(self, frames: int) -> tuple[int, int, int]:
        """Number of blocks along x, y and z."""
        return -(-self.width // self.tile.width), -(-self.height // self.tile.height), frames

    def bytes_moved(self, *, itemsize: int) -> int:
        """Return the minimum memory traffic per frame in bytes: the used pixels read once, the output written once.

        All of ``area`` is used, except by nearest, which reads as many pixels as it writes. ``itemsize`` is that of
        the output.
        """
        read = self.area.height * self.area.width
        if self.kernel == "edge_nearest":
            read = min(read, self.place.height * self.place.width)
        return 3 * read + 3 * self.height * self.width * itemsize


class FrameLayout(msgspec.Struct, frozen=True, kw_only=True):
    """The layout of a batch of equal frames in memory that the device can read; distances in bytes.

    ``address`` is that of row ``top``, column ``left`` of the first image. ``row_stride`` may be negative. Rows start
    at multiples of four bytes, and GUARD bytes behind each frame are readable.
    """

    address: int
    row_stride: int
    frame_stride: int
    top: int = 0
    left: int = 0


def source() -> str:
    """Return the CUDA source of all variants as one string without includes."""
    return resources.files(__package__).joinpath("preprocess_kernel.cuh").read_text(encoding="utf-8")


def plan(height: int, width: int, spec: PreprocessConfig, target: InputConfig) -> LaunchPlan:
    """Compute the launch plan for images of height × width.

    Raises:
        DataError: the image shrinks too much for the shared memory.
    """
    down, across = tables(height, width, spec, target)
    # Rows of the area start at a whole group of four pixels, so at a whole word where the picture's rows do.
    left = across.start // 4 * 4
    area = Box(down.start, left, down.stop - down.start, across.stop - left)
    if spec.interpolation == "nearest":
        kernel, tile = "edge_nearest", Tile(32, 32)
        parts = [across.first - left, across.first[:0], down.first - area.top, down.first[:0]]
        groups = (0, 0)
    else:
        grouped = _grouped(down, area.top, area.height), _grouped(across, left, area.width)
        found = _tile(*grouped)
        if found is None:
            raise DataError(f"{width}x{height} shrinks too much for GPU preprocessing", hint="preprocess on the CPU")
        kernel, tile = "edge_filter", found
        parts = [grouped[1].first, grouped[1].weights, grouped[0].first, grouped[0].weights]
        groups = (grouped[0].weights.shape[0], grouped[1].weights.shape[0])
    table, offsets = _packed(parts)
    return LaunchPlan(
        kernel=kernel,
        area=area,
        place=placed(height, width, spec, target),
        height=target.height,
        width=target.width,
        groups=groups,
        tile=tile,
        table=table,
        offsets=offsets,
    )


def job(plan: LaunchPlan, frames: FrameLayout, spec: PreprocessConfig, *, table: int, target: int) -> bytes:
    """Pack the parameters of a launch: struct Job of ``preprocess_kernel.cuh``.

    Args:
        plan: the plan for the frames' size.
        frames: the frames' location.
        spec: the preprocessing of the plan.
        table: device address of a copy of ``plan.table``.
        target: device address of the output.
    """
    first_x, weights_x, first_y, weights_y = (table + offset for offset in plan.offsets)
    # The kernel normalizes in the source's order: blue, green, red.
    channels = list(zip(spec.mean, spec.std, strict=True))[:: -1 if spec.color == "rgb" else 1]
    return _JOB.pack(
        frames.address + (plan.area.top - frames.top) * frames.row_stride + 3 * (plan.area.left - frames.left),
        target,
        frames.frame_stride,
        frames.row_stride,
        *(first_x, weights_x, plan.place.width, plan.groups[1], plan.place.left, plan.width, plan.tile.width, 0),
        *(first_y, weights_y, plan.place.height, plan.groups[0], plan.place.top, plan.height, plan.tile.height, 0),
        *(plan.area.height, plan.tile.bytes_from, plan.tile.pitch, spec.color == "rgb"),
        *(1.0 / std for _, std in channels),
        *(-mean / std for mean, std in channels),
        *(spec.pad, 0),
    )


class _Grouped(msgspec.Struct, frozen=True):
    """An axis's table in groups of four source pixels: ``first`` (count,) groups and ``weights`` (groups, count, 4)."""

    first: NDArray[np.int64]
    weights: NDArray[np.int64]

    def most(self, outputs: int) -> int:
        """Return the maximum number of groups that a run of that many output pixels needs, wherever it begins."""
        last = min(outputs, len(self.first)) - 1
        return int((self.first[last:] - self.first[: len(self.first) - last]).max() + self.weights.shape[0])


def _grouped(table: AxisTable, start: int, size: int) -> _Grouped:
    """Group ``table`` from source pixel ``start`` on, with no group beyond ``size`` pixels from there."""
    np = require("numpy")
    count, taps = table.weights.shape
    at = table.first - start
    groups = int((-(-(at + taps) // 4) - at // 4).max())
    first = np.minimum(at // 4, -(-size // 4) - groups)
    weights = np.zeros((count, 4 * groups), np.int64)
    columns = (at - 4 * first)[:, None] + np.arange(taps)
    weights[np.arange(count)[:, None], columns] = table.weights
    return _Grouped(first, weights.reshape(count, groups, 4).transpose(1, 0, 2))


def _tile(down: _Grouped, across: _Grouped) -> Tile | None:
    """Return the tile of a block; None if even the smallest needs too much shared memory."""
    fitting = None
    for width, height in _TILES:
        staged = 3 * 4 * _PITCH * across.most(width)
        pitch = 4 * (down.most(height) | 1)
        tile = Tile(width, height, staged, pitch, staged + 3 * width * pitch)
        if tile.shared <= _GOOD_BYTES:
            return tile
        if fitting is None and tile.shared <= _MOST_BYTES:
            fitting = tile
    return fitting


def _packed(parts: list[NDArray[np.int64]]) -> tuple[NDArray[np.uint8], tuple[int, int, int, int]]:
    """Pack first and weights along x, then along y, into one array; return it with the offsets."""
    np = require("numpy")
    chunks, offsets, at = [], [], 0
    for part, kind in zip(parts, (np.int32, np.int16, np.int32, np.int16), strict=True):
        data = np.ascontiguousarray(part, kind).reshape(-1).view(np.uint8)
        data = np.concatenate([data, np.zeros(-data.size % 16, np.uint8)])
        chunks.append(data)
        offsets.append(at)
        at += data.size
    return np.concatenate(chunks), (offsets[0], offsets[1], offsets[2], offsets[3])

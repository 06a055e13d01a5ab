"""The fused preprocessing kernel: its source, and the parameters and launch geometry for a picture size.

One launch takes a batch of equal frames, uint8 BGR H×W×3 with any distance between rows, to normalized float32 or
float16 N×3×h×w. What it computes is defined by :mod:`edge.model.preprocessing`; the arithmetic is in
``preprocess_pixel.h``,
which also compiles as plain C++. Bilinear is fixed-point as OpenCV's is for uint8, so results differ from the CPU by at
most one step of 255 before normalization.
"""

from __future__ import annotations

import struct
from importlib import resources

import msgspec

from edge.config import InputConfig, PreprocessConfig
from edge.errors import DataError
from edge.model import Box, placed, region

MAX_SIDE = 32767  # products of two sides are 32-bit numbers in the kernel
MAX_FRAME = (1 << 31) - (1 << 16)  # bytes from a frame's first to its last, likewise
MAX_BOX = 1 << 23  # pixels in a box, beyond which sums of bytes leave an int (OpenCV's own limit)
# struct Job of preprocess_pixel.h, field by field.
_JOB = struct.Struct("=QQq iii iif iif ii iiii ii 3f 3f f")


class Tile(msgspec.Struct, frozen=True):
    """Output pixels of one block, and its threads: a multiple of the width."""

    width: int = 32
    height: int = 32
    threads: int = 128

    @property
    def options(self) -> tuple[str, ...]:
        """What the compiler is told."""
        values = {"TILE_WIDTH": self.width, "TILE_HEIGHT": self.height, "THREADS": self.threads}
        return tuple(f"-DEDGE_{name}={value}" for name, value in values.items())


TILE = Tile()


class LaunchPlan(msgspec.Struct, frozen=True, kw_only=True):
    """How one picture size becomes the network input.

    ``area`` is the part of the picture that is read, in source pixels: rows × columns boxes of down × right pixels.
    ``place`` is where they land in the height × width output. ``kernel`` lacks the suffix of the output type;
    ``shared_bytes`` is what a block needs of shared memory.
    """

    kernel: str
    area: Box
    rows: int
    columns: int
    down: int
    right: int
    place: Box
    height: int
    width: int
    shared_bytes: int
    tile: Tile

    def grid(self, frames: int) -> tuple[int, int, int]:
        """Blocks along x, y and z."""
        return -(-self.width // self.tile.width), -(-self.height // self.tile.height), frames

    def bytes_moved(self, *, itemsize: int) -> int:
        """Fewest bytes to and from memory per frame: what is needed of it read once, the output written once.

        All of ``area`` is needed: the scale left to interpolation is below 2, so that its taps skip no pixel. Only
        nearest does; it needs as many as it writes. ``itemsize`` is that of the output.
        """
        read = self.area.height * self.area.width
        if self.kernel == "edge_nearest":
            read = min(read, self.place.height * self.place.width)
        return 3 * read + 3 * self.height * self.width * itemsize


class Frames(msgspec.Struct, frozen=True, kw_only=True):
    """Where a batch of equal frames is in memory that the device can read; distances in bytes.

    ``address`` is that of row ``top``, column ``left`` of the first picture; height × width pixels from there are in
    memory. ``row_stride`` may be negative. ``guard`` bytes before and after each frame may be read, whatever they hold.
    """

    address: int
    row_stride: int
    frame_stride: int
    height: int
    width: int
    top: int = 0
    left: int = 0
    guard: int = 0


def source() -> str:
    """CUDA source of all variants, in one text without includes."""
    folder = resources.files(__package__)
    pixel = folder.joinpath("preprocess_pixel.h").read_text(encoding="utf-8")
    return folder.joinpath("preprocess.cu").read_text(encoding="utf-8").replace('#include "preprocess_pixel.h"', pixel)


def plan(height: int, width: int, spec: PreprocessConfig, target: InputConfig, *, tile: Tile = TILE) -> LaunchPlan:
    """The plan for pictures of height × width.

    Raises:
        DataError: the picture or its boxes are larger than the kernel can count.
    """
    if max(height, width, target.height, target.width) > MAX_SIDE:
        raise DataError(
            f"{width}x{height} is too large for GPU preprocessing: {MAX_SIDE} pixels per side",
            hint="preprocess on the CPU",
        )
    box = region(height, width, spec, target)
    place = placed(box, spec, target)
    down, right, cubic = 1, 1, spec.interpolation == "bicubic"
    if spec.interpolation == "nearest":
        rows, columns, kernel = box.height, box.width, "edge_nearest"
    else:
        down, right = max(box.height // place.height, 1), max(box.width // place.width, 1)
        rows, columns = box.height // down, box.width // right
        box = Box(
            box.top + (box.height - rows * down) // 2,
            box.left + (box.width - columns * right) // 2,
            rows * down,
            columns * right,
        )
        kernel = "edge_bicubic_n" if cubic else f"edge_bilinear_{_variant(down, right)}"
    if down * right > MAX_BOX:
        raise DataError(f"{width}x{height} shrinks too much for GPU preprocessing", hint="preprocess on the CPU")
    lines = _window(rows, place.height, tile.height, cubic=cubic)
    pitch = -(-_window(columns, place.width, tile.width, cubic=cubic) // 2) * 2
    return LaunchPlan(
        kernel=kernel,
        area=box,
        rows=rows,
        columns=columns,
        down=down,
        right=right,
        place=place,
        height=target.height,
        width=target.width,
        shared_bytes=0 if spec.interpolation == "nearest" else 8 * tile.height + 4 * lines * pitch,
        tile=tile,
    )


def job(plan: LaunchPlan, frames: Frames, spec: PreprocessConfig, *, target: int) -> bytes:
    """Parameters of a launch that writes to device address ``target``: struct Job of ``preprocess_pixel.h``.

    Raises:
        DataError: a frame spans more bytes than the kernel can count.
    """
    if abs(frames.row_stride) * frames.height + 2 * frames.guard > MAX_FRAME:
        raise DataError(f"{frames.height} rows, {abs(frames.row_stride)} bytes apart, are too large for the GPU kernel")
    source = frames.address + (plan.area.top - frames.top) * frames.row_stride + 3 * (plan.area.left - frames.left)
    last_row = (frames.height - 1) * frames.row_stride
    low = frames.address + min(last_row, 0) - frames.guard - source
    high = frames.address + max(last_row, 0) + 3 * frames.width + frames.guard - source
    # The kernel normalizes in the source's order: blue, green, red.
    channels = list(zip(spec.mean, spec.std, strict=True))[:: -1 if spec.color == "rgb" else 1]
    return _JOB.pack(
        source,
        target,
        frames.frame_stride,
        frames.row_stride,
        low,
        high,
        *(plan.columns, plan.place.width, 0.5 / plan.place.width),
        *(plan.rows, plan.place.height, 0.5 / plan.place.height),
        *(plan.right, plan.down),
        *(plan.place.top, plan.place.left, plan.height, plan.width),
        *(spec.color == "rgb", spec.pad),
        *(1.0 / std for _, std in channels),
        *(-mean / std for mean, std in channels),
        1.0 / (plan.down * plan.right),
    )


def _variant(down: int, right: int) -> str:
    return {(1, 1): "1", (2, 2): "2"}.get((down, right), "n")


def _window(source: int, target: int, tile: int, *, cubic: bool) -> int:
    """Most reduced pixels along one axis that a tile reads: its width at the scale, and the taps at both ends.

    Two at least: the kernel reads a pair even where there is one pixel, and gives the second no weight.
    """
    steps = min(tile, target) - 1
    return max(min(-(-steps * source // target) + 2 + 2 * cubic, source), 2)

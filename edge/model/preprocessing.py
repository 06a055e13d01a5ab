"""The only definition of preprocessing, for calibrate, run and eval: it matches torchvision and Pillow.

It converts a decoded image, uint8 H×W×3 BGR as in OpenCV, to float32 3×h×w in these steps:

0. *roi*, if the spec has one: the image is cropped to this region, in whole pixels.
1. *region*: ``crop`` is torchvision's ``Resize(resize)`` and ``CenterCrop``: the shorter side becomes ``resize``, the
   longer one keeps the proportion, rounded down, and the centred h×w part of that is kept. Only this part is computed;
   in source pixels it is a box with fractional edges. ``squash`` and ``letterbox`` take the whole image.
2. *resize* of the region to the target size with Pillow's antialiased filters: ``bilinear`` (a triangle) or ``bicubic``
   (a = -0.5), as wide as the step from one output pixel to the next where that is more than one source pixel. Pixels
   beyond the region's edge count as far as the filter reaches, as they do when the whole image is scaled first.
   Along x first, rounded to uint8, then along y, rounded again, as Pillow did up to version 12 (13 begins with y where
   an image is more than twice as tall as wide). ``nearest`` takes the pixel under
   each centre.
3. *letterbox* only: centred on a canvas filled with ``pad``.
4. channel order, then ``(x - mean) / std`` in float32.

Weights are whole numbers of 1/16384 (Pillow's are of 1/4194304) whose sum is one. All products and sums are then whole
numbers below 2^24, exact in float32 in any order: every CPU and the GPU kernel give the same pixels, at most one step
of 255 away from Pillow's.

``exif: true`` turns images upright as their EXIF orientation says, before all this: see :mod:`edge.media.pictures`.

``DEFINITION`` is part of the digest: raise it when a step computes something else; tables made with an older
definition are refused.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from edge.artifacts import canonical_digest
from edge.config import InputConfig, PreprocessConfig, roi_box
from edge.errors import require

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# 1 took whole source pixels, averaged whole boxes and interpolated with OpenCV's kernels.
DEFINITION = 2
WEIGHT_ONE = 1 << 14
# Half the width of each filter, in steps.
_SUPPORT = {"bilinear": 1.0, "bicubic": 2.0}
# Number of output pixels that one call computes.
_OUTPUTS = 32
# Multiplications of a matrix-vector product from which on OpenBLAS starts threads, which wait longer than they work.
_ONE_THREAD = 9216
# Source values that are converted to float32 at a time: they stay in the processor's cache.
_CACHED = 1 << 17
# Number of image sizes whose tables are cached.
_SIZES = 64


class Region(msgspec.Struct, frozen=True):
    """A rectangle in source pixels; its edges may be fractional."""

    top: float
    left: float
    height: float
    width: float


class Box(msgspec.Struct, frozen=True):
    """A rectangle of whole pixels."""

    top: int
    left: int
    height: int
    width: int


def digest(spec: PreprocessConfig, target: InputConfig) -> str:
    """Return the sha256 of everything that the result depends on: definition, spec, height and width."""
    content = msgspec.to_builtins(spec)
    del content["max_megapixels"]
    if spec.roi is None:
        # Tables that were made before there was one stay valid.
        del content["roi"]
    return canonical_digest({"definition": DEFINITION, "height": target.height, "width": target.width, **content})


def older_definition(found: str, spec: PreprocessConfig, target: InputConfig) -> str | None:
    """Return the name of the older definition with the digest ``found`` for the same settings, or None."""
    content = msgspec.to_builtins(spec)
    del content["exif"], content["roi"], content["max_megapixels"]
    first = canonical_digest({"definition": 1, "height": target.height, "width": target.width, **content})
    return "preprocessing definition 1 (whole-pixel crop, OpenCV's filters)" if found == first else None


def region(height: int, width: int, spec: PreprocessConfig, target: InputConfig) -> Region:
    """Return the part of an H×W image that becomes the network input, in source pixels.

    Raises:
        DataError: the roi extends beyond the image.
    """
    y, x, height, width = roi_box(spec.roi, height, width)
    if spec.fit != "crop":
        return Region(float(y), float(x), float(height), float(width))
    # torchvision's Resize, then its CenterCrop, which rounds halves to even.
    resized_height = spec.resize if height <= width else int(spec.resize * height / width)
    resized_width = spec.resize if width <= height else int(spec.resize * width / height)
    down, across = height / resized_height, width / resized_width
    top = round((resized_height - target.height) / 2)
    left = round((resized_width - target.width) / 2)
    return Region(y + top * down, x + left * across, target.height * down, target.width * across)


def placed(height: int, width: int, spec: PreprocessConfig, target: InputConfig) -> Box:
    """Return the position of the resized region of an H×W image in the network input, in target pixels."""
    if spec.fit != "letterbox":
        return Box(0, 0, target.height, target.width)
    _y, _x, height, width = roi_box(spec.roi, height, width)
    scale = min(target.height / height, target.width / width)
    inner_height = min(max(round(height * scale), 1), target.height)
    inner_width = min(max(round(width * scale), 1), target.width)
    return Box((target.height - inner_height) // 2, (target.width - inner_width) // 2, inner_height, inner_width)


class AxisTable(msgspec.Struct, frozen=True):
    """Source pixels and weights of the output pixels along one axis.

    ``first``, int64 (count,), is the first source pixel of each; ``weights``, int64 (count, taps), are those of the
    source pixels from there, in 1/16384. ``first`` never falls, and every tap is inside the image.
    """

    first: NDArray[np.int64]
    weights: NDArray[np.int64]

    @property
    def is_copy(self) -> bool:
        """True if each output pixel is a source pixel, and these are neighbors: nothing is scaled."""
        consecutive = self.first[0] + require("numpy").arange(len(self.first))
        return self.weights.shape[1] == 1 and bool((self.first == consecutive).all())

    @property
    def start(self) -> int:
        """The first used source pixel."""
        return int(self.first[0])

    @property
    def stop(self) -> int:
        """One past the last used source pixel."""
        return int(self.first[-1] + self.weights.shape[1])


def axis_table(start: float, length: float, *, count: int, size: int, interpolation: str) -> AxisTable:
    """Make the table that scales ``length`` pixels from ``start`` on, of ``size``, to ``count`` pixels.

    Source: Pillow's ``precompute_coeffs`` (src/libImaging/Resample.c), with shorter weights.
    """
    np = require("numpy")
    scale = length / count
    centres = start + (np.arange(count) + 0.5) * scale
    if interpolation == "nearest":
        at = np.clip(centres.astype(np.int64), 0, size - 1)
        return AxisTable(at, np.full((count, 1), WEIGHT_ONE, np.int64))
    step = max(scale, 1.0)
    reach = _SUPPORT[interpolation] * step
    first = np.maximum((centres - reach + 0.5).astype(np.int64), 0)
    last = np.minimum((centres + reach + 0.5).astype(np.int64), size)
    taps = int((last - first).max())
    first = np.minimum(first, size - taps)
    at = first[:, None] + np.arange(taps)
    distances = np.abs(at + 0.5 - centres[:, None]) / step
    exact = _triangle(distances) if interpolation == "bilinear" else _cubic(distances)
    exact /= exact.sum(axis=1, keepdims=True)
    weights = np.rint(exact * WEIGHT_ONE).astype(np.int64)
    # The rounding remainder goes to the largest weight of each pixel.
    weights[np.arange(count), weights.argmax(axis=1)] += WEIGHT_ONE - weights.sum(axis=1)
    return _trimmed(first, weights)


def _trimmed(first: NDArray[np.int64], weights: NDArray[np.int64]) -> AxisTable:
    """Make the table without the zeros that begin and end the rows of ``weights``, as far as its longest row allows."""
    np = require("numpy")
    taps = weights.shape[1]
    used = weights != 0
    # ``first`` must not fall, so a row begins no later than those behind it.
    begin = np.minimum.accumulate((first + used.argmax(axis=1))[::-1])[::-1]
    longest = int((first + taps - used[:, ::-1].argmax(axis=1) - begin).max())
    # Taps stay inside the image: rows near its far edge keep zeros at their beginning.
    begin = np.minimum(begin, first + taps - longest)
    columns = (begin - first)[:, None] + np.arange(longest)
    return AxisTable(begin, np.take_along_axis(weights, columns, axis=1))


def _triangle(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = require("numpy").maximum(1.0 - distances, 0.0)
    return found


def _cubic(distances: NDArray[np.float64], a: float = -0.5) -> NDArray[np.float64]:
    near = ((a + 2.0) * distances - (a + 3.0)) * distances * distances + 1.0
    far = (((distances - 5.0) * distances + 8.0) * distances - 4.0) * a
    where = require("numpy").where
    found: NDArray[np.float64] = where(distances < 1.0, near, where(distances < 2.0, far, 0.0))
    return found


def tables(height: int, width: int, spec: PreprocessConfig, target: InputConfig) -> tuple[AxisTable, AxisTable]:
    """Return the tables along y and x that map an H×W image to its place in the network input."""
    part, place = region(height, width, spec, target), placed(height, width, spec, target)
    y, x, height, width = roi_box(spec.roi, height, width)
    kind = spec.interpolation
    down = axis_table(part.top - y, part.height, count=place.height, size=height, interpolation=kind)
    across = axis_table(part.left - x, part.width, count=place.width, size=width, interpolation=kind)
    return AxisTable(down.first + y, down.weights), AxisTable(across.first + x, across.weights)


def use_one_thread() -> None:
    """Limit OpenCV to the calling thread, in the whole process: for callers with threads of their own."""
    require("cv2").setNumThreads(1)


class _ThreadMemory:
    """Arrays of one thread, used again for each image: the page faults of fresh ones cost more than the arithmetic."""

    def __init__(self) -> None:
        self._arrays: dict[str, NDArray[Any]] = {}

    def array(self, name: str, shape: tuple[int, ...], kind: str) -> NDArray[Any]:
        """Return an array of this shape with any finite contents; it shares its memory with others of this name."""
        size = math.prod(shape)
        found = self._arrays.get(name)
        if found is None or found.size < size:
            found = self._arrays[name] = require("numpy").zeros(size, kind)
        return found[:size].reshape(shape)


class _SumStep(NamedTuple):
    """Output pixels of one call: copy ``source`` lines to ``lines`` as float32; ``sums`` are weights times windows."""

    source: slice
    lines: NDArray[np.float32]
    weights: NDArray[np.float32]
    sums: NDArray[np.float32]


class _WindowGrid(NamedTuple):
    """Constant distances between the windows of a table's output pixels, in source lines.

    ``near`` is the distance between the ``neighbors`` of a group, ``far`` that between groups. ``starts`` is where the
    windows of each call begin, and ``shift`` how far in its window the first source line of each output pixel is.
    """

    neighbors: int
    near: int
    far: int
    starts: NDArray[np.int64]
    shift: NDArray[np.int64]


def _grid(table: AxisTable, neighbors: int) -> _WindowGrid:
    np = require("numpy")
    count = len(table.first)
    scale = float(table.first[-1] - table.first[0]) / max(count - 1, 1)
    near, far = round(scale), round(scale * neighbors)
    number = np.arange(count) % _OUTPUTS
    starts = table.first - table.start - number // neighbors * far - number % neighbors * near
    lowest = np.minimum.reduceat(starts, np.arange(0, count, _OUTPUTS))
    return _WindowGrid(neighbors, near, far, lowest, starts - np.repeat(lowest, _OUTPUTS)[:count])


class _AxisSums:
    """The weighted sums of source lines by a table, ``pixels`` of each line at a time.

    Each output pixel is a matrix-vector product of its weights and a window of source lines: a matrix product for
    several of them would mostly multiply with zeros. One call of NumPy computes several neighbors of several groups,
    since their windows start at constant distances, rounded to lines; a window is wider than the table's rows by the
    difference.
    """

    def __init__(self, table: AxisTable, pixels: int, memory: _ThreadMemory, *, name: str, clamp: bool) -> None:
        np = require("numpy")
        self._cv2, self._copy, self._multiply = require("cv2"), np.copyto, np.matmul
        self._clamp = clamp
        taps = table.weights.shape[1]
        self._count, size = len(table.first), table.stop - table.start
        grids = (_grid(table, neighbors) for neighbors in (1, 2, 4, 8, 16, 32))
        grid = min(grids, key=lambda grid: int(grid.shift.max()))
        groups, neighbors = _OUTPUTS // grid.neighbors, grid.neighbors
        calls, wide = len(grid.starts), taps + int(grid.shift.max())
        weights = np.zeros((calls * _OUTPUTS, wide), np.float32)
        np.put_along_axis(weights[: self._count], grid.shift[:, None] + np.arange(taps), table.weights, axis=1)
        weights = weights.reshape(calls, groups, neighbors, 1, wide)
        span = (groups - 1) * grid.far + (neighbors - 1) * grid.near + wide
        most = max(min((_ONE_THREAD - 1) // wide, _CACHED // span) // 3, 1)
        self.pixels = -(-pixels // -(-pixels // most))
        columns = 3 * self.pixels
        lines = memory.array(name + " lines", (span, columns), "float32")
        down, right = lines.strides
        self._windows = np.lib.stride_tricks.as_strided(
            lines, (groups, neighbors, wide, columns), (grid.far * down, grid.near * down, down, right)
        )
        self._sums = memory.array(name + " sums", (calls * _OUTPUTS, columns), "float32")
        sums = self._sums.reshape(calls, groups, neighbors, 1, columns)
        self._steps = []
        for call, start in enumerate(grid.starts.tolist()):
            source = slice(max(start, 0), min(start + span, size))
            used = lines[source.start - start : source.stop - start]
            self._steps.append(_SumStep(source, used, weights[call], sums[call]))

    def __call__(self, lines: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
        """Write the sums of ``lines``, (size, 3 * pixels), to ``out``, rounded to the nearest, halves up."""
        copy, multiply, windows = self._copy, self._multiply, self._windows
        for source, used, weights, sums in self._steps:
            copy(used, lines[source])
            multiply(weights, windows, sums)
        sums = self._sums[: self._count]
        if self._clamp:
            self._cv2.max(sums, 0, sums)  # what is next takes the absolute value
        # A quarter of a weight's step leaves no halves, which OpenCV would round to even.
        self._cv2.convertScaleAbs(sums, out, 1 / WEIGHT_ONE, 0.25 / WEIGHT_ONE)


class _Pick(msgspec.Struct, frozen=True):
    """A scaling with one source pixel per output pixel, as ``nearest`` has."""

    down: AxisTable
    across: AxisTable

    def __call__(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the pixels of ``picture``; the array may be a view of it."""
        if self.down.is_copy and self.across.is_copy:
            return picture[self.down.start : self.down.stop, self.across.start : self.across.stop]
        picked: NDArray[np.uint8] = picture.take(self.down.first, axis=0).take(self.across.first, axis=1)
        return picked


class _Resize:
    """The scaling of images of one size, along x a few rows at a time, which then stay in the processor's cache."""

    def __init__(self, down: AxisTable, across: AxisTable, memory: _ThreadMemory, *, clamp: bool) -> None:
        self._cv2 = require("cv2")
        self._rows, self._columns = slice(down.start, down.stop), slice(across.start, across.stop)
        self._height, width = down.stop - down.start, len(across.first)
        self._down = self._across = None
        if not across.is_copy:
            self._across = _AxisSums(across, self._height, memory, name="x", clamp=clamp)
            rows = self._across.pixels
            self._turned = memory.array("turned", (across.stop - across.start, rows, 3), "uint8")
            self._sums = memory.array("turned sums", (width, rows, 3), "uint8")
            self._lines = memory.array("lines", (self._height, width, 3), "uint8")
        if not down.is_copy:
            self._down = _AxisSums(down, width, memory, name="y", clamp=clamp)
            self._out = memory.array("out", (len(down.first), width, 3), "uint8")

    def __call__(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the scaled part of ``picture``, uint8 h×w×3; this thread's next call overwrites it."""
        lines = picture[self._rows, self._columns]
        if self._across is not None:
            lines = self._along_x(lines)
        if self._down is None:
            return lines
        flat, out = lines.reshape(self._height, -1), self._out.reshape(self._out.shape[0], -1)
        for part in _parts(flat.shape[1], 3 * self._down.pixels):
            self._down(flat[:, part], out[:, part])
        return self._out

    def _along_x(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        turned, sums = (array.reshape(array.shape[0], -1) for array in (self._turned, self._sums))
        assert self._across is not None  # noqa: S101 - for mypy: checked by the caller
        for part in _parts(self._height, self._across.pixels):
            self._cv2.transpose(picture[part], self._turned)
            self._across(turned, sums)
            self._cv2.transpose(self._sums, self._lines[part])
        return self._lines


def _parts(size: int, part: int) -> Iterator[slice]:
    """Divide ``size`` into slices of ``part``; the last one may overlap the one before it."""
    for start in range(0, size, part):
        begin = min(start, size - part)
        yield slice(begin, begin + part)


class Preprocessor:
    """The spec prepared for OpenCV and NumPy. It is thread-safe."""

    def __init__(self, spec: PreprocessConfig, target: InputConfig) -> None:
        self.spec = spec
        self.target = target
        self._cv2 = require("cv2")
        self._np = require("numpy")
        self._threads = _Threads(self._prepare)
        # One table per channel in output order: 256 possible inputs, each normalized exactly once.
        values = self._np.arange(256, dtype=self._np.float32)
        self._tables = [
            (values - self._np.float32(mean)) / self._np.float32(std)
            for mean, std in zip(spec.mean, spec.std, strict=True)
        ]
        self._source_channels = (2, 1, 0) if spec.color == "rgb" else (0, 1, 2)

    def __call__(self, picture: NDArray[np.uint8], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Return the normalized input, float32 3×h×w, of a uint8 H×W×3 BGR image; write it to ``out`` if given.

        Raises:
            ValueError: ``out`` has another type or shape.
        """
        np = self._np
        shape = (3, self.target.height, self.target.width)
        if out is None:
            out = np.empty(shape, np.float32)
        elif out.dtype != np.float32 or out.shape != shape:
            # OpenCV would allocate an array of its own instead, and leave ``out`` unchanged.
            raise ValueError(f"out is {out.dtype} {out.shape}, not float32 {shape}")
        planes = self._cv2.split(self._placed(picture))
        for target, source, table in zip(out, self._source_channels, self._tables, strict=True):
            # A table look-up is exact, and six times as fast here as NumPy's.
            if target.flags.c_contiguous:
                self._cv2.LUT(planes[source], table, dst=target)
            else:
                target[:] = self._cv2.LUT(planes[source], table)
        return out

    def pixels(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Compute steps 1 to 3: the network input as uint8 h×w×3 BGR before normalization, for tests and displays."""
        found: NDArray[np.uint8] = self._placed(picture).copy()
        return found

    def _placed(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return :meth:`pixels`, which may be a view of the image or be overwritten by this thread's next call."""
        height, width = picture.shape[:2]
        resized = self._threads.resize_of(height, width)(picture)
        if resized.shape[:2] == (self.target.height, self.target.width):
            return resized
        place = placed(height, width, self.spec, self.target)
        canvas: NDArray[np.uint8] = self._np.full(
            (self.target.height, self.target.width, 3), self.spec.pad, self._np.uint8
        )
        canvas[place.top : place.top + place.height, place.left : place.left + place.width] = resized
        return canvas

    def _prepare(self, height: int, width: int, memory: _ThreadMemory) -> _Resize | _Pick:
        down, across = tables(height, width, self.spec, self.target)
        if down.weights.shape[1] == across.weights.shape[1] == 1:
            return _Pick(down, across)
        return _Resize(down, across, memory, clamp=self.spec.interpolation == "bicubic")


class _Threads(threading.local):
    """The scalings of the newest image sizes, of each thread its own: they share the memory of the thread."""

    def __init__(self, prepare: Callable[[int, int, _ThreadMemory], _Resize | _Pick]) -> None:
        memory = _ThreadMemory()
        self.resize_of = functools.lru_cache(maxsize=_SIZES)(lambda height, width: prepare(height, width, memory))

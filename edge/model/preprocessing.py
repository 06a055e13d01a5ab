"""The only definition of preprocessing, for calibrate, run and eval: it matches torchvision and Pillow.

It converts a decoded image, uint8 H×W×3 BGR as in OpenCV, to float32 3×h×w in these steps:

0. *roi*, if the spec has one: the image is cropped to this region, in whole pixels.
1. *region*: ``crop`` is torchvision's ``Resize(resize)`` and ``CenterCrop``: the shorter side becomes ``resize``, the
   longer one keeps the proportion, rounded down, and the centred h×w part of that is kept. Only this part is computed;
   in source pixels it is a box with fractional edges. ``squash`` and ``letterbox`` take the whole picture.
2. *resize* of the region to the target size with Pillow's antialiased filters: ``bilinear`` (a triangle) or ``bicubic``
   (a = -0.5), as wide as the step from one output pixel to the next where that is more than one source pixel. Pixels
   beyond the region's edge count as far as the filter reaches, as they do when the whole picture is scaled first.
   Along x first, rounded to uint8, then along y, rounded again, as Pillow did up to version 12 (13 begins with y where
   a picture is more than twice as tall as wide). ``nearest`` takes the pixel under
   each centre.
3. *letterbox* only: centred on a canvas filled with ``pad``.
4. channel order, then ``(x - mean) / std`` in float32.

Weights are whole numbers of 1/16384 (Pillow's are of 1/4194304) whose sum is one. All products and sums are then whole
numbers below 2^24, exact in float32 in any order: every CPU and the GPU kernel give the same pixels, at most one step
of 255 away from Pillow's.

``exif: true`` turns pictures upright as their EXIF orientation says, before all this: see :mod:`edge.media.pictures`.

``DEFINITION`` is part of the digest: raise it when a step computes something else; tables made with an older
definition are refused.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

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
# Multiplications of one matrix product below which OpenBLAS stays in the thread that calls it.
_ONE_THREAD = 1 << 19
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
    source pixels from there, in 1/16384. ``first`` never falls, and every tap is inside the picture.
    """

    first: NDArray[np.int64]
    weights: NDArray[np.int64]

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
    used = np.flatnonzero(weights.any(axis=0))
    return AxisTable(first + used[0], weights[:, used[0] : used[-1] + 1])


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


class _Band(msgspec.Struct, frozen=True):
    """Output pixels ``begin`` to ``end`` as a matrix product: ``weights``, float32, times source pixels."""

    begin: int
    end: int
    source: slice
    weights: NDArray[np.float32]


def _bands(table: AxisTable, columns: int) -> list[_Band]:
    """Split ``table`` into bands small enough that a product with ``columns`` columns stays in one thread."""
    np = require("numpy")
    count, taps = table.weights.shape
    for outputs in (8, 4, 2, 1):
        result = []
        for begin in range(0, count, outputs):
            end = min(begin + outputs, count)
            start = int(table.first[begin])
            weights = np.zeros((end - begin, int(table.first[end - 1]) + taps - start), np.float32)
            for row in range(begin, end):
                at = int(table.first[row]) - start
                weights[row - begin, at : at + taps] = table.weights[row]
            source = slice(start - table.start, start - table.start + weights.shape[1])
            result.append(_Band(begin, end, source, weights))
        if max(band.weights.size for band in result) * columns < _ONE_THREAD:
            break
    return result


class _Resize(msgspec.Struct, frozen=True):
    """The scaling of images of one size: the used source pixels, and the products along x and y."""

    rows: slice
    columns: slice
    across: list[_Band]
    down: list[_Band]


class _Pick(msgspec.Struct, frozen=True):
    """A scaling with one source pixel per output pixel, as ``nearest`` has."""

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]


class Preprocessor:
    """The spec prepared for OpenCV and NumPy. It is thread-safe."""

    def __init__(self, spec: PreprocessConfig, target: InputConfig) -> None:
        self.spec = spec
        self.target = target
        self._cv2 = require("cv2")
        self._np = require("numpy")
        self._resize_of = functools.lru_cache(maxsize=_SIZES)(self._prepare)
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
        planes = self._cv2.split(self.pixels(picture))
        for target, source, table in zip(out, self._source_channels, self._tables, strict=True):
            # A table look-up is exact, and six times as fast here as NumPy's.
            if target.flags.c_contiguous:
                self._cv2.LUT(planes[source], table, dst=target)
            else:
                target[:] = self._cv2.LUT(planes[source], table)
        return out

    def pixels(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Compute steps 1 to 3: the network input as uint8 h×w×3 BGR before normalization, for tests and displays."""
        place = placed(picture.shape[0], picture.shape[1], self.spec, self.target)
        resized = self._resize(picture, place.height, place.width)
        if (place.height, place.width) == (self.target.height, self.target.width):
            return resized
        canvas: NDArray[np.uint8] = self._np.full(
            (self.target.height, self.target.width, 3), self.spec.pad, self._np.uint8
        )
        canvas[place.top : place.top + place.height, place.left : place.left + place.width] = resized
        return canvas

    def _prepare(self, height: int, width: int) -> _Resize | _Pick:
        down, across = tables(height, width, self.spec, self.target)
        if down.weights.shape[1] == across.weights.shape[1] == 1:
            return _Pick(down.first, across.first)
        rows, columns = slice(down.start, down.stop), slice(across.start, across.stop)
        return _Resize(
            rows,
            columns,
            _bands(across, 3 * (down.stop - down.start)),
            _bands(down, 3 * len(across.first)),
        )

    def _resize(self, picture: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
        resize = self._resize_of(picture.shape[0], picture.shape[1])
        if isinstance(resize, _Pick):
            picked: NDArray[np.uint8] = picture.take(resize.rows, axis=0).take(resize.columns, axis=1)
            return picked
        turned = self._cv2.transpose(self._np.ascontiguousarray(picture[resize.rows, resize.columns]))
        return self._summed(self._cv2.transpose(self._summed(turned, resize.across, width)), resize.down, height)

    def _summed(self, lines: NDArray[np.uint8], bands: list[_Band], count: int) -> NDArray[np.uint8]:
        """Return ``count`` weighted sums of ``lines``, uint8 (lines, n, 3), rounded to the nearest, halves up."""
        columns, new = 3 * lines.shape[1], self._np.empty
        source = new((max(band.weights.shape[1] for band in bands), lines.shape[1], 3), "float32")
        flat, sums = source.reshape(-1, columns), new((count, columns), "float32")
        for band in bands:
            taken = band.weights.shape[1]
            source[:taken] = lines[band.source]
            self._np.dot(band.weights, flat[:taken], sums[band.begin : band.end])
        if self.spec.interpolation == "bicubic":
            self._cv2.max(sums, 0, sums)  # what is next takes the absolute value
        # A quarter of a weight's step leaves no halves, which OpenCV would round to even.
        rounded: NDArray[np.uint8] = self._cv2.convertScaleAbs(sums, None, 1 / WEIGHT_ONE, 0.25 / WEIGHT_ONE)
        return rounded.reshape(count, lines.shape[1], 3)

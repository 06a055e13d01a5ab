"""One definition of preprocessing, used by calibrate, run and eval.

From a decoded picture, uint8 H×W×3 BGR as OpenCV gives it, to float32 3×h×w:

1. *region*: ``crop`` takes the centred box that becomes the network input when the shorter side is scaled to
   ``resize``; ``squash`` and ``letterbox`` take the whole picture.
2. *resize* of the region to the target size. When it shrinks by a factor of two or more on an axis, the region is
   first averaged over whole boxes of floor(factor) pixels (so that no pixel is skipped), then interpolated with
   half-pixel centres: ``nearest``, ``bilinear`` or ``bicubic`` (OpenCV's kernel, a = -0.75). The result is rounded to
   uint8. ``nearest`` skips the averaging.
3. *letterbox* only: centred on a canvas filled with ``pad``.
4. channel order, then ``(x - mean) / std`` in float32.

``DEFINITION`` is part of the digest: whoever changes what the steps compute raises it, and old tables are refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from edge.artifacts import canonical_digest
from edge.config import InputConfig, PreprocessConfig
from edge.errors import require

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DEFINITION = 1


class Box(msgspec.Struct, frozen=True):
    """A rectangle in pixels."""

    top: int
    left: int
    height: int
    width: int


def digest(spec: PreprocessConfig, target: InputConfig) -> str:
    """Sha256 of everything that the result depends on: definition, spec, height and width."""
    content = msgspec.to_builtins(spec)
    return canonical_digest({"definition": DEFINITION, "height": target.height, "width": target.width, **content})


def region(height: int, width: int, spec: PreprocessConfig, target: InputConfig) -> Box:
    """The part of an H×W picture that becomes the network input, in source pixels."""
    if spec.fit != "crop":
        return Box(0, 0, height, width)
    shorter = min(height, width)
    box_height = min(max(round(shorter * target.height / spec.resize), 1), height)
    box_width = min(max(round(shorter * target.width / spec.resize), 1), width)
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)


def placed(box: Box, spec: PreprocessConfig, target: InputConfig) -> Box:
    """Where the resized region is in the network input, in target pixels."""
    if spec.fit != "letterbox":
        return Box(0, 0, target.height, target.width)
    scale = min(target.height / box.height, target.width / box.width)
    height = min(max(round(box.height * scale), 1), target.height)
    width = min(max(round(box.width * scale), 1), target.width)
    return Box((target.height - height) // 2, (target.width - width) // 2, height, width)


def use_one_thread() -> None:
    """Let OpenCV work in the thread that calls it, in all of this process: for callers with threads of their own."""
    require("cv2").setNumThreads(1)


class Preprocessor:
    """The spec bound to OpenCV, with its constants laid out once. Safe to use from several threads."""

    def __init__(self, spec: PreprocessConfig, target: InputConfig) -> None:
        self.spec = spec
        self.target = target
        self._cv2 = require("cv2")
        self._np = require("numpy")
        # One table per channel in output order: 256 possible inputs, each normalized exactly once.
        values = self._np.arange(256, dtype=self._np.float32)
        self._tables = [
            (values - self._np.float32(mean)) / self._np.float32(std)
            for mean, std in zip(spec.mean, spec.std, strict=True)
        ]
        self._source_channels = (2, 1, 0) if spec.color == "rgb" else (0, 1, 2)

    def __call__(self, picture: NDArray[np.uint8], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Normalized input, float32 3×h×w, of a uint8 H×W×3 BGR picture; written to ``out`` when given.

        Raises:
            ValueError: ``out`` is of another type or shape.
        """
        np = self._np
        shape = (3, self.target.height, self.target.width)
        if out is None:
            out = np.empty(shape, np.float32)
        elif out.dtype != np.float32 or out.shape != shape:
            # OpenCV would fill an array of its own instead, and leave this one as it is.
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
        """Steps 1 to 3: the network input as uint8 h×w×3 BGR, before normalization. For parity tests and displays."""
        box = region(picture.shape[0], picture.shape[1], self.spec, self.target)
        place = placed(box, self.spec, self.target)
        part = picture[box.top : box.top + box.height, box.left : box.left + box.width]
        resized = self._resize(part, place.height, place.width)
        if (place.height, place.width) == (self.target.height, self.target.width):
            return resized
        canvas: NDArray[np.uint8] = self._np.full(
            (self.target.height, self.target.width, 3), self.spec.pad, self._np.uint8
        )
        canvas[place.top : place.top + place.height, place.left : place.left + place.width] = resized
        return canvas

    def _resize(self, part: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
        cv2 = self._cv2
        if self.spec.interpolation == "nearest":
            return self._nearest(part, height, width)
        down, right = max(part.shape[0] // height, 1), max(part.shape[1] // width, 1)
        if down > 1 or right > 1:
            # Whole boxes only: the rest at the far edges, less than one box, is split evenly and left out.
            rows, columns = part.shape[0] // down, part.shape[1] // right
            top, left = (part.shape[0] - rows * down) // 2, (part.shape[1] - columns * right) // 2
            part = part[top : top + rows * down, left : left + columns * right]
            part = cv2.resize(part, (columns, rows), interpolation=cv2.INTER_AREA)
        if part.shape[:2] == (height, width):
            return part
        kernel = cv2.INTER_CUBIC if self.spec.interpolation == "bicubic" else cv2.INTER_LINEAR
        resized: NDArray[np.uint8] = cv2.resize(part, (width, height), interpolation=kernel)
        return resized

    def _nearest(self, part: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
        # OpenCV's INTER_NEAREST takes the left edge of each target pixel, not its centre.
        np = self._np
        rows = ((np.arange(height) + 0.5) * part.shape[0] / height).astype(np.intp)
        columns = ((np.arange(width) + 0.5) * part.shape[1] / width).astype(np.intp)
        picked: NDArray[Any] = part[rows[:, None], columns[None, :]]
        return picked

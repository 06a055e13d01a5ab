"""Encoded bytes to pixels, by OpenCV; the bytes are checked to be all there before.

OpenCV 4.9 decodes a JPEG that was cut in the middle to a picture whose lower part is grey, and reports nothing that a
program can read (5.0 refuses it). See :mod:`edge.media.truncation` for what is checked.

What stays unnoticed: bytes that were changed, not lost, inside the compressed data of a JPEG, lossy WebP or TIFF. These
formats carry no checksum; libjpeg then prints "Corrupt JPEG data" on stderr, which nobody can turn off from Python.
"""

from __future__ import annotations

import functools
import os
from types import ModuleType
from typing import TYPE_CHECKING

from edge.errors import DataError, require
from edge.media.truncation import problem

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def decode(data: bytes, *, name: str, exif: bool = True) -> npt.NDArray[np.uint8]:
    """Pixels of an encoded picture: H × W × 3, uint8, BGR, contiguous.

    Grey becomes three equal channels, transparency is dropped, 16 bits per channel become 8. ``name`` is for messages.
    ``exif`` turns the picture upright as its EXIF orientation says, if it says anything.

    Raises:
        DataError: no bytes, not a picture, cut off, or damaged so that OpenCV refuses it.
        MissingDependencyError: OpenCV is not installed.
    """
    wrong = problem(data)
    if wrong is not None:
        raise DataError(wrong, where=name)
    cv2, numpy = opencv(), require("numpy")
    flags = cv2.IMREAD_COLOR if exif else cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        pixels = cv2.imdecode(numpy.frombuffer(data, numpy.uint8), flags)
    except cv2.error as exc:
        raise DataError(f"OpenCV refuses the picture: {getattr(exc, 'err', '') or exc}", where=name) from exc
    if pixels is None:
        raise DataError(
            "the picture is damaged, or of a kind that this OpenCV was built without",
            where=name,
            hint="open it with another program; save it again as JPEG or PNG, or leave it out",
        )
    result: npt.NDArray[np.uint8] = numpy.ascontiguousarray(pixels)
    return result


@functools.cache
def opencv() -> ModuleType:
    """OpenCV with its own log lines switched off: each failure is an EdgeError already."""
    cv2 = require("cv2")
    if "OPENCV_LOG_LEVEL" not in os.environ:
        logging = getattr(cv2.utils, "logging", None)
        # OpenCV 4.9 has only the first of these, 5.0 only the second; 0 is "silent" in both.
        setter = getattr(cv2, "setLogLevel", None) or getattr(logging, "setLogLevel", None)
        if setter is not None:
            setter(0)
    return cv2


def encode(pixels: npt.NDArray[np.uint8], *, longest_px: int = 640, quality: int = 75) -> bytes:
    """``pixels`` (uint8 H×W×3 BGR) as a JPEG whose longer side has at most ``longest_px``; never enlarged.

    Costs 1 to 3 ms whatever the size of the frame: a large one is thinned out before it is averaged.

    Raises:
        DataError: OpenCV cannot encode it.
        MissingDependencyError: OpenCV is missing.
    """
    cv2 = require("cv2")
    height, width = pixels.shape[:2]
    longer = max(height, width)
    if longer > longest_px:
        step = longer // (2 * longest_px)
        thin = pixels[::step, ::step] if step > 1 else pixels
        scale = longest_px / longer
        size = (max(round(width * scale), 1), max(round(height * scale), 1))
        pixels = cv2.resize(thin, size, interpolation=cv2.INTER_AREA)
    done, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise DataError(f"OpenCV cannot write a frame of {width}×{height} as JPEG")
    return bytes(data)

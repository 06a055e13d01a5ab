"""One image, and an ordered set of images.

An image here is the encoded file content, wherever it is stored; nothing is decoded. Its sha256 is computed once, so
that later calls of :meth:`Picture.read_checked` notice a file that changed in the meantime.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import itertools
import os
import re
import struct
import threading
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Protocol

from edge.artifacts import canonical_digest, sha256_bytes
from edge.errors import DEPENDENCIES, DataError, MissingDependencyError, UsageError, require
from edge.events import Listener, Progress, ignore_events
from edge.media.labels import shown

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


# A larger image is not decoded unless the profile allows it: 100 million pixels are 300 MB.
MOST_MEGAPIXELS = 100.0


def decode(
    data: bytes, *, name: str, exif: bool = True, max_megapixels: float = MOST_MEGAPIXELS
) -> npt.NDArray[np.uint8]:
    """Decode an image to pixels: H × W × 3, uint8, BGR, contiguous.

    Grey becomes three equal channels, transparency is dropped, 16 bits per channel become 8; of an animation, the first
    image counts. ``name`` is for messages. ``exif`` turns the image upright as its EXIF orientation says, if it
    says anything. Pillow with pillow-heif, where these are there, reads what the installed OpenCV does not, such as
    HEIC.

    Raises:
        DataError: the data is empty, not an image, truncated, damaged, of an unsupported format, or larger than
            ``max_megapixels``.
        MissingDependencyError: OpenCV is not installed.
    """
    wrong = problem(data)
    if wrong is not None:
        raise DataError(wrong, where=name)
    size = encoded_size(data)
    if size is not None and size[0] * size[1] > max_megapixels * 1e6:
        raise DataError(
            f"the image has {size[0]}×{size[1]} pixels, more than the limit of {max_megapixels:g} megapixels",
            where=name, hint="make it smaller, or raise preprocess.max_megapixels in the profile",
        )  # fmt: skip
    cv2, numpy = opencv(), require("numpy")
    flags = cv2.IMREAD_COLOR if exif else cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        pixels = cv2.imdecode(numpy.frombuffer(data, numpy.uint8), flags)
    except cv2.error as exc:
        raise DataError(f"OpenCV cannot decode the image: {getattr(exc, 'err', '') or exc}", where=name) from exc
    kind = _other_format(data)
    if pixels is None and kind is not None:
        pixels = _by_pillow(data, kind, name=name, exif=exif)
    if pixels is None:
        raise DataError(
            "the image is damaged, or its format is not supported by this OpenCV",
            where=name,
            hint="open it with another program; save it again as JPEG or PNG, or leave it out",
        )
    result: npt.NDArray[np.uint8] = numpy.ascontiguousarray(pixels)
    return result


def _by_pillow(data: bytes, kind: str, *, name: str, exif: bool) -> npt.NDArray[np.uint8]:
    """Decode a format that OpenCV did not.

    Raises:
        DataError: Pillow is not there, or does not read it either.
    """
    try:
        image_module, ops = require("PIL.Image"), require("PIL.ImageOps")
        require("pillow_heif").register_heif_opener()
    except MissingDependencyError as exc:
        raise DataError(
            f"the image is {kind}, which this OpenCV does not read", where=name,
            hint=f"{DEPENDENCIES['pillow_heif']}; or save it again as JPEG or PNG",
        ) from exc  # fmt: skip
    try:
        with image_module.open(io.BytesIO(data)) as image:
            turned = ops.exif_transpose(image) if exif else image
            rgb = require("numpy").asarray(turned.convert("RGB"))
    except (OSError, ValueError, SyntaxError, RuntimeError, image_module.DecompressionBombError) as exc:
        raise DataError(
            f"the image is {kind}, and damaged or not read by Pillow: {exc}", where=name,
            hint="save it again as JPEG or PNG, or leave it out",
        ) from exc  # fmt: skip
    bgr: npt.NDArray[np.uint8] = rgb[:, :, ::-1]
    return bgr


@functools.cache
def opencv() -> ModuleType:
    """Import OpenCV with its log lines switched off: edge already reports each failure."""
    cv2 = require("cv2")
    if "OPENCV_LOG_LEVEL" not in os.environ:
        logging = getattr(cv2.utils, "logging", None)
        # OpenCV 4.9 has only the first of these, 5.0 only the second; 0 is "silent" in both.
        setter = getattr(cv2, "setLogLevel", None) or getattr(logging, "setLogLevel", None)
        if setter is not None:
            setter(0)
    return cv2


def encode(pixels: npt.NDArray[np.uint8], *, longest_px: int = 640, quality: int = 75) -> bytes:
    """Encode ``pixels`` (uint8 H×W×3 BGR) as JPEG, scaled down to at most ``longest_px`` on the longer side.

    This takes 1 to 3 ms for any frame size: a large frame is subsampled before it is averaged.

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


# A marker that is neither a stuffed zero, nor a fill byte, nor a restart inside entropy-coded data.
_JPEG_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_SOI, _EOI, _SOS, _TEM = 0xD8, 0xD9, 0xDA, 0x01
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PNM = re.compile(rb"P[1-6][\s#]")
_CUT = "the image is truncated: "

# Typical content of a file after a failed download.
_OTHERS = (
    (re.compile(rb"\s*<(!doctype|html)", re.IGNORECASE), "this is an HTML page with the name of an image"),
    (re.compile(rb"version https://git-lfs"), "this is a Git LFS pointer, not the image (git lfs pull downloads it)"),
)


def problem(data: bytes) -> str | None:
    """Return a sentence about what is wrong with the encoded image ``data``, or None."""
    if not data:
        return "the image is empty (0 bytes)"
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg(data)
    if data.startswith(_PNG_SIGNATURE):
        return _png(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _webp(data)
    if data.startswith(b"BM"):
        return _bmp(data)
    if data.startswith(_TIFF) or _PNM.match(data) or _other_format(data) is not None:
        return None
    for pattern, words in _OTHERS:
        if pattern.match(data):
            return words
    return f"not a JPEG, PNG, WebP, BMP, TIFF or PNM image: it starts with {data[:8]!r}"


def _other_format(data: bytes) -> str | None:
    """The name of a format that not every OpenCV reads; None for the usual ones."""
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data.startswith((b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")):
        return "JPEG 2000"
    if data.startswith((b"\0\0\0\x0cJXL ", b"\xff\x0a")):
        return "JPEG XL"
    if data[4:8] == b"ftyp":
        return "AVIF" if data[8:12] in {b"avif", b"avis"} else "HEIC"
    return None


def encoded_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height from the header of an encoded image; None if the header does not have them."""
    try:
        if data.startswith(b"\xff\xd8"):
            return _jpeg_size(data)
        if data.startswith(_PNG_SIGNATURE):
            return struct.unpack_from(">II", data, 16)
        if data.startswith(b"GIF8"):
            return struct.unpack_from("<HH", data, 6)
        if data.startswith(b"BM"):
            width, height = struct.unpack_from("<ii" if data[14] > 12 else "<HH", data, 18)
            return abs(width), abs(height)
        if data[8:12] == b"WEBP":
            return _webp_size(data)
        if data.startswith(_TIFF[:2]):
            return _tiff_size(data)
        return _boxed_size(data)
    except (struct.error, IndexError):
        return None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    at = 2
    while marker := _JPEG_MARKER.search(data, at):
        code, at = data[marker.end() - 1], marker.end()
        # Start of frame, all kinds (ITU-T T.81, table B.1); the others in this range are tables.
        if 0xC0 <= code <= 0xCF and code not in {0xC4, 0xC8, 0xCC}:
            height, width = struct.unpack_from(">HH", data, at + 3)
            return width, height
        if code not in {_SOI, _TEM}:
            at += int.from_bytes(data[at : at + 2], "big")
    return None


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """By the kind of the first chunk (RFC 9649, sections 2.5 to 2.7)."""
    if data[12:16] == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def _tiff_size(data: bytes) -> tuple[int, int] | None:
    """Tags 256 and 257 of the first directory (TIFF 6.0, section 2)."""
    order: Literal["little", "big"] = "little" if data.startswith(b"II") else "big"
    at = int.from_bytes(data[4:8], order)
    found: dict[int, int] = {}
    for entry in range(int.from_bytes(data[at : at + 2], order)):
        start = at + 2 + 12 * entry
        tag, kind = (int.from_bytes(data[start + o : start + o + 2], order) for o in (0, 2))
        if tag in {256, 257}:
            found[tag] = int.from_bytes(data[start + 8 : start + (10 if kind == 3 else 12)], order)
    return (found[256], found[257]) if len(found) == 2 else None


def _boxed_size(data: bytes) -> tuple[int, int] | None:
    """Of JPEG 2000 (box ``ihdr``), AVIF and HEIC (the largest ``ispe``: tiles and thumbnails have one of their own)."""
    if (at := data.find(b"ihdr", 0, 4096)) >= 0:
        height, width = struct.unpack_from(">II", data, at + 4)
        return width, height
    sizes = [struct.unpack_from(">II", data, match.start() + 8) for match in re.finditer(b"ispe", data[: 1 << 16])]
    return max(sizes, key=lambda size: size[0] * size[1], default=None)


def _jpeg(data: bytes) -> str | None:
    at, scanned = 2, False
    while marker := _JPEG_MARKER.search(data, at):
        code, at = data[marker.end() - 1], marker.end()
        if code == _EOI:
            return None if scanned else "the JPEG ends before its first scan"
        if code in {_SOI, _TEM}:
            continue
        if at + 2 > len(data):
            break
        # Inside a scan only DNL and similar markers can occur, and each has a length as well.
        at += int.from_bytes(data[at : at + 2], "big")
        scanned = scanned or code == _SOS
    return f"{_CUT}a JPEG of {len(data)} bytes without its end (EOI marker)"


def _png(data: bytes) -> str | None:
    at = len(_PNG_SIGNATURE)
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            break
        # An upper-case first letter means critical; decoders only warn about the others.
        is_critical = not kind[0] & 0x20
        if is_critical and zlib.crc32(data[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            return f"the PNG is damaged: the checksum of its {kind.decode('latin-1')!r} chunk at byte {at} is wrong"
        if kind == b"IEND":
            return None
        at = end
    return f"{_CUT}a PNG of {len(data)} bytes without its end (IEND chunk)"


def _webp(data: bytes) -> str | None:
    needed = 8 + int.from_bytes(data[4:8], "little")
    return None if len(data) >= needed else f"{_CUT}{len(data)} bytes, but its header says {needed}"


def _bmp(data: bytes) -> str | None:
    if len(data) < 26:
        return f"{_CUT}a BMP of {len(data)} bytes has no room for its header"
    size, pixels_at, header = struct.unpack_from("<I4xII", data, 2)
    if header == 12:
        width, height, _planes, bits = struct.unpack_from("<HHHH", data, 18)
        compression = 0
    elif len(data) >= 34:
        width, height, _planes, bits, compression = struct.unpack_from("<iiHHI", data, 18)
    else:
        return f"{_CUT}a BMP of {len(data)} bytes has no room for its header"
    needed = size
    if compression in {0, 3, 6}:  # not compressed: rows of whole 4-byte words; the size field is often wrong
        row = (abs(width) * bits + 31) // 32 * 4
        unpadded = (abs(width) * bits + 7) // 8
        needed = pixels_at + row * (abs(height) - 1) + unpadded if height else pixels_at
    return None if len(data) >= needed else f"{_CUT}{len(data)} bytes, but its header requires {needed}"


class PictureOrigin(Protocol):
    """Location of the encoded bytes of one image."""

    @property
    def where(self) -> str:
        """Location for messages: a path, or a shard and a record number."""

    def read(self) -> bytes:
        """Return the encoded bytes; raise DataError if the bytes cannot be read."""


@dataclasses.dataclass(frozen=True, slots=True)
class FileOrigin:
    """A file with one image."""

    path: str

    @property
    def where(self) -> str:
        """The file's path, without bytes that a terminal cannot show."""
        return shown(self.path)

    def read(self) -> bytes:
        """Return all bytes of the file.

        Raises:
            DataError: the file is missing, not permitted, or the disk failed.
        """
        try:
            return Path(self.path).read_bytes()
        except OSError as exc:
            raise DataError(f"cannot read the image: {exc.strerror or exc}", where=self.where) from exc


class _Memo:
    """Values that are computed once for an image: its sha256."""

    __slots__ = ("sha256",)

    def __init__(self) -> None:
        self.sha256: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Picture:
    """One encoded image.

    ``name`` is relative to the source, with ``/``, the same on every machine (it contains ``..`` only if a list does
    so); ``label`` is its class index, if known.
    """

    name: str
    label: int | None
    origin: PictureOrigin
    _memo: _Memo = dataclasses.field(default_factory=_Memo, repr=False, compare=False)

    @property
    def where(self) -> str:
        """Location of the bytes, for messages."""
        return self.origin.where

    @property
    def sha256(self) -> str:
        """Hex sha256 of the encoded bytes, which are read on the first call only.

        Raises:
            DataError: the bytes cannot be read.
        """
        if self._memo.sha256 is None:
            self._memo.sha256 = sha256_bytes(self.origin.read())
        return self._memo.sha256

    def read(self) -> bytes:
        """Return the original encoded bytes.

        Raises:
            DataError: the bytes cannot be read.
        """
        return self.origin.read()

    def read_checked(self) -> bytes:
        """Return the original encoded bytes after checking that they have not changed since they were first hashed.

        Raises:
            DataError: the bytes cannot be read, or they changed since.
        """
        data = self.origin.read()
        found = sha256_bytes(data)
        if self._memo.sha256 is None:
            self._memo.sha256 = found
        elif self._memo.sha256 != found:
            raise DataError(
                "the image changed since it was first read",
                where=self.where,
                hint="do not change the source while edge uses it; run the command again",
            )
        return data

    def labelled(self, label: int | None) -> Picture:
        """Return the same image with another label."""
        return dataclasses.replace(self, label=label)


class Pictures:
    """Images in a fixed order, listed lazily: ``take(100)`` of a shard reads 100 of its records.

    The set can be pickled (which lists all of it), and sets made from it share its images and their digests. Any
    access can raise DataError if it lists more of a source, as with TFRecord shards.
    """

    def __init__(self, source: Path, pictures: Iterable[Picture]) -> None:
        self.source = source
        self._known: list[Picture] = pictures if isinstance(pictures, list) else []
        self._rest: Iterator[Picture] | None = None if isinstance(pictures, list) else iter(pictures)
        self._failure: DataError | None = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        self._list(None)
        return len(self._known)

    def __iter__(self) -> Iterator[Picture]:
        for index in itertools.count():
            self._list(index + 1)
            if index >= len(self._known):
                return
            yield self._known[index]

    def __getitem__(self, index: int) -> Picture:
        self._list(index + 1 if index >= 0 else None)
        return self._known[index]

    def __repr__(self) -> str:
        more = "" if self._rest is None else " or more"
        return f"Images({str(self.source)!r}, {len(self._known)}{more})"

    def __getstate__(self) -> dict[str, Any]:
        self._list(None)
        return {"source": self.source, "known": self._known}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["source"], state["known"])  # type: ignore[misc]

    def take(self, count: int) -> Pictures:
        """Return the first ``count`` images, or all if there are fewer.

        Raises:
            UsageError: ``count`` is not above 0.
        """
        if count < 1:
            raise UsageError(f"cannot take {count} images: the minimum is 1")
        self._list(count)
        return Pictures(self.source, self._known[:count])

    def shard(self, index: int, count: int) -> Pictures:
        """Return every ``count``-th image from ``index`` on: shards 0 to ``count - 1`` are a partition of the set.

        Raises:
            UsageError: ``index`` is not in 0 to ``count - 1``.
        """
        if not 0 <= index < count:
            raise UsageError(f"there is no shard {index} of {count}: shards are numbered from 0")
        self._list(None)
        return Pictures(self.source, self._known[index::count])

    def digest(self, listen: Listener = ignore_events) -> str:
        """Return a hex sha256 that identifies the set: that of the sorted sha256 list of its images, as canonical JSON.

        Names, labels and order do not matter; a duplicate image counts twice. Reads every image.

        Raises:
            DataError: an image cannot be read.
        """
        total = len(self)
        found = []
        for done, picture in enumerate(self, start=1):
            found.append(picture.sha256)
            listen(Progress("hash", done, total))
        return canonical_digest(sorted(found))

    def _list(self, count: int | None) -> None:
        """List until ``count`` images are known, or all of them for None."""
        if self._rest is None:
            return
        with self._lock:
            if self._failure is not None and (count is None or count > len(self._known)):
                # A generator that raised is finished: without this, a second access would see a shorter set.
                raise self._failure
            try:
                while self._rest is not None and (count is None or len(self._known) < count):
                    picture = next(self._rest, None)
                    if picture is None:
                        self._rest = None
                    else:
                        self._known.append(picture)
            except DataError as exc:
                self._failure = exc
                raise

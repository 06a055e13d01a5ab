"""Is an encoded picture all there? Decoders are lenient about files that were cut off; edge is not.

===== ================================================================================================================
JPEG  markers are walked from SOI; after the last scan an EOI marker must come (ITU-T T.81, annex B). Thumbnails lie
      inside APPn segments and are stepped over by length; what follows EOI (padding, the second picture of an MPO)
      is not looked at. A file that never had an EOI, as a few cameras write, is refused: nobody can tell it from one
      that lost its end
PNG   chunks are walked to IEND, with the CRC of the critical ones (PNG specification, 3rd edition, section 5)
WebP  the size in the RIFF header must be there (RFC 9649, section 2.3)
BMP   the rows that the header asks for must be there; where rows are compressed, the size in the file header
===== ================================================================================================================

TIFF and PNM that were cut off are refused by OpenCV itself, 4.9 and 5.0 alike.
"""

from __future__ import annotations

import re
import struct
import zlib

# A marker that is neither a stuffed zero, nor a fill byte, nor a restart inside entropy-coded data.
_JPEG_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_SOI, _EOI, _SOS, _TEM = 0xD8, 0xD9, 0xDA, 0x01
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PNM = re.compile(rb"P[1-6][\s#]")
_CUT = "the picture is cut off: "

# What is found under a picture's name when a download went wrong.
_OTHERS = (
    (re.compile(rb"\s*<(!doctype|html)", re.IGNORECASE), "this is an HTML page under a picture's name"),
    (re.compile(rb"version https://git-lfs"), "this is a Git LFS pointer, not the picture (git lfs pull gets it)"),
)


def problem(data: bytes) -> str | None:
    """Find what is wrong with the encoded picture ``data`` as a whole: a sentence, or None."""
    if not data:
        return "the picture is empty (0 bytes)"
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg(data)
    if data.startswith(_PNG_SIGNATURE):
        return _png(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _webp(data)
    if data.startswith(b"BM"):
        return _bmp(data)
    if data.startswith(_TIFF) or _PNM.match(data):
        return None
    for pattern, words in _OTHERS:
        if pattern.match(data):
            return words
    return f"not a JPEG, PNG, WebP, BMP, TIFF or PNM picture: it starts with {data[:8]!r}"


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
        # Inside a scan only DNL, DHT and the like can come here, and each has a length as well.
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
    return None if len(data) >= needed else f"{_CUT}{len(data)} bytes, its header says {needed}"


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
    return None if len(data) >= needed else f"{_CUT}{len(data)} bytes, its header asks for {needed}"

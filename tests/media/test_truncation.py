from __future__ import annotations

import io
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from edge.media.pictures import problem


def _save(kind: str, *, size: tuple[int, int] = (64, 48), mode: str = "RGB", **options: object) -> bytes:
    noise = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(out, kind, **options)
    return out.getvalue()


def _thumbnail() -> bytes:
    """An EXIF block that holds a whole small JPEG, with its own SOI and EOI."""
    inner = _save("JPEG", size=(16, 16))
    return b"Exif\0\0" + b"II*\0\x08\0\0\0\0\0\0\0\0\0" + inner


WHOLE = {
    "jpeg": _save("JPEG"),
    "jpeg-progressive": _save("JPEG", progressive=True),
    "jpeg-optimized": _save("JPEG", optimize=True, quality=100),
    "jpeg-restart": _save("JPEG", restart_marker_blocks=1),
    "jpeg-grey": _save("JPEG", mode="L"),
    "jpeg-cmyk": _save("JPEG", mode="CMYK"),
    "jpeg-thumbnail": _save("JPEG", exif=_thumbnail()),
    "jpeg-comment": _save("JPEG", comment=b"\xff\xd9 is not the end"),
    "jpeg-trailing-zeros": _save("JPEG") + bytes(1000),
    "jpeg-trailing-text": _save("JPEG") + b"\r\n--boundary--\r\n",
    "jpeg-fill-bytes": _save("JPEG").replace(b"\xff\xda", b"\xff\xff\xff\xda"),
    "jpeg-mpo": _save("MPO", save_all=True, append_images=[Image.new("RGB", (64, 48))]),
    "png": _save("PNG"),
    "png-interlaced-grey": _save("PNG", mode="L"),
    "png-palette": _save("PNG", mode="P"),
    "png-trailing": _save("PNG") + b"trailing",
    "webp": _save("WEBP"),
    "webp-lossless": _save("WEBP", lossless=True),
    "webp-trailing": _save("WEBP") + b"\0",
    "bmp": _save("BMP"),
    "bmp-odd-width": _save("BMP", size=(61, 5)),
    "bmp-1-bit": _save("BMP", mode="1", size=(61, 5)),
    "bmp-palette": _save("BMP", mode="P"),
    "tiff": _save("TIFF"),
    "ppm": _save("PPM"),
}


@pytest.mark.parametrize("data", WHOLE.values(), ids=WHOLE.keys())
def test_whole_pictures_raise_no_alarm(data: bytes) -> None:
    assert problem(data) is None


CHECKED = [name for name in WHOLE if name.startswith(("jpeg", "png", "webp", "bmp")) and "trailing" not in name]


@pytest.mark.parametrize("name", [name for name in CHECKED if name != "jpeg-mpo"])
def test_cut_off_pictures_are_noticed(name: str) -> None:
    data = WHOLE[name]
    for share in (0.02, 0.1, 0.3, 0.5, 0.8, 0.95, 0.99):
        cut = problem(data[: max(20, int(len(data) * share))])
        assert cut is not None, share
        assert cut.startswith("the image is truncated"), share


@pytest.mark.parametrize("name", ["jpeg", "jpeg-progressive", "jpeg-thumbnail", "png", "webp", "bmp-odd-width"])
def test_the_last_bytes_matter(name: str) -> None:
    data = WHOLE[name]
    # The last row of a BMP may lack its padding: 61 pixels of 3 bytes are padded by one.
    at_least = 2 if name.startswith("bmp") else 1
    assert problem(data[:-at_least]) is not None


def test_every_cut_of_a_jpeg_is_noticed() -> None:
    data = _save("JPEG", size=(32, 24), exif=_thumbnail())
    unnoticed = [n for n in range(3, len(data)) if problem(data[:n]) is None]
    assert unnoticed == []


def test_every_cut_of_a_progressive_jpeg_is_noticed() -> None:
    data = _save("JPEG", size=(32, 24), progressive=True)
    assert len(re.findall(rb"\xff\xda", data)) > 1
    assert [n for n in range(3, len(data)) if problem(data[:n]) is None] == []


def test_an_mpo_cut_in_its_second_picture_still_holds_the_first() -> None:
    data = WHOLE["jpeg-mpo"]
    assert problem(data[:-50]) is None


def test_a_zero_filled_tail_is_noticed() -> None:
    data = WHOLE["jpeg"]
    half = len(data) // 2
    assert problem(data[:half] + bytes(len(data) - half)) is not None


def test_jpeg_without_a_scan() -> None:
    assert problem(b"\xff\xd8\xff\xe0\x00\x04ab\xff\xd9") == "the JPEG ends before its first scan"


def test_png_with_a_flipped_bit_in_its_pixels() -> None:
    data = bytearray(WHOLE["png"])
    data[len(data) // 2] ^= 1
    assert "checksum of its 'IDAT' chunk" in str(problem(bytes(data)))


def test_png_with_a_flipped_bit_in_a_comment_is_still_a_picture() -> None:
    chunk = b"tEXtkey\0value"
    crc = zlib.crc32(chunk) ^ 1
    comment = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", crc)
    data = WHOLE["png"]
    after_header = 8 + 25
    assert problem(data[:after_header] + comment + data[after_header:]) is None


def test_bmp_with_the_wrong_size_in_its_header_is_whole_as_long_as_its_rows_are() -> None:
    data = bytearray(WHOLE["bmp"])
    data[2:6] = bytes(4)
    assert problem(bytes(data)) is None
    assert problem(bytes(data[:-100])) is not None


OTHERS = {
    "nothing": (b"", "empty (0 bytes)"),
    "text": (b"hello, world", "starts with b'hello, w'"),
    "zeros": (bytes(500), "not a JPEG"),
    "html": (b"\n<!DOCTYPE html><html>404</html>", "HTML page"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\n", "Git LFS pointer"),
    "pdf": (b"%PDF-1.7", "not a JPEG"),
    "riff-not-webp": (b"RIFF\x10\0\0\0WAVEfmt ", "not a JPEG"),
    "bmp-header-only": (b"BM\0\0\0\0", "truncated"),
    "bmp-short-header": (b"BM" + bytes(26), "truncated"),
    "png-signature-only": (b"\x89PNG\r\n\x1a\n", "truncated"),
    "jpeg-soi-only": (b"\xff\xd8\xff", "truncated"),
    "webp-signature-only": (b"RIFF\xff\xff\0\0WEBP", "truncated"),
}


@pytest.mark.parametrize(("data", "words"), OTHERS.values(), ids=OTHERS.keys())
def test_what_is_no_picture_is_named(data: bytes, words: str) -> None:
    assert words in str(problem(data))

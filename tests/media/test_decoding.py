from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edge.errors import DataError
from edge.media.pictures import decode

Encoder = Callable[..., bytes]


def _array(height: int = 24, width: int = 32, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (height, width, channels), np.uint8)


def _pil(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize("ending", [".png", ".bmp", ".tiff", ".ppm"])
def test_lossless_formats_come_out_as_they_went_in(ending: str) -> None:
    pixels = _array()
    data = cv2.imencode(ending, pixels)[1].tobytes()
    np.testing.assert_array_equal(decode(data, name="x"), pixels)


@pytest.mark.parametrize("ending", [".jpg", ".webp"])
def test_lossy_formats_come_out_near(ending: str, encode: Encoder) -> None:
    data = encode(ending)
    pixels = decode(data, name="x")
    reference = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))[..., ::-1]
    assert pixels.shape == (48, 64, 3)
    assert np.abs(pixels.astype(int) - reference).mean() < 2


def test_the_result_is_contiguous_uint8_and_writable(encode: Encoder) -> None:
    pixels = decode(encode(), name="x")
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable


def test_grey_becomes_three_equal_channels() -> None:
    pixels = decode(_pil(Image.fromarray(_array()).convert("L"), "PNG"), name="x")
    assert pixels.shape == (24, 32, 3)
    assert (pixels[..., 0] == pixels[..., 1]).all()
    assert (pixels[..., 1] == pixels[..., 2]).all()


def test_transparency_is_dropped() -> None:
    rgba = np.dstack([_array(), np.full((24, 32), 7, np.uint8)])
    np.testing.assert_array_equal(decode(cv2.imencode(".png", rgba)[1].tobytes(), name="x"), rgba[..., :3])


def test_sixteen_bits_become_eight() -> None:
    deep = _array().astype(np.uint16) << 8
    np.testing.assert_array_equal(decode(cv2.imencode(".png", deep)[1].tobytes(), name="x"), _array())


def test_palette_and_one_bit_pictures_are_read() -> None:
    image = Image.fromarray(_array())
    assert decode(_pil(image.convert("P"), "PNG"), name="x").shape == (24, 32, 3)
    assert set(np.unique(decode(_pil(image.convert("1"), "PNG"), name="x"))) <= {0, 255}


def test_cmyk_jpeg_is_read() -> None:
    assert decode(_pil(Image.fromarray(_array()).convert("CMYK"), "JPEG"), name="x").shape == (24, 32, 3)


# EXIF orientation, and what turns the stored picture upright.
ORIENTATIONS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_exif_orientation_is_applied(orientation: int) -> None:
    image = Image.fromarray(cv2.resize(_array(3, 4), (64, 48), interpolation=cv2.INTER_LINEAR))
    exif = Image.Exif()
    exif[0x0112] = orientation
    plain = decode(_pil(image, "JPEG", quality=95), name="x")
    turned = decode(_pil(image, "JPEG", quality=95, exif=exif), name="x")
    np.testing.assert_array_equal(turned, ORIENTATIONS[orientation](plain))
    as_stored = decode(_pil(image, "JPEG", quality=95, exif=exif), name="x", exif=False)
    np.testing.assert_array_equal(as_stored, plain)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9, 0.97])
@pytest.mark.parametrize("ending", [".jpg", ".png", ".webp", ".bmp", ".tiff", ".ppm"])
def test_a_truncated_picture_is_refused_and_named(ending: str, share: float, encode: Encoder) -> None:
    data = encode(ending, seed=2)
    with pytest.raises(DataError) as caught:
        decode(data[: int(len(data) * share)], name=f"folder/cut{ending}")
    assert caught.value.where == f"folder/cut{ending}"


@pytest.mark.parametrize("data", [b"", b"no image at all", bytes(200), b"\xff\xd8\xff\xd9"], ids=repr)
def test_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(DataError, match=r"bad\.jpg"):
        decode(data, name="bad.jpg")


def test_a_whole_file_that_the_decoder_refuses_is_an_error() -> None:
    header = b"BM" + (54 + 12).to_bytes(4, "little") + bytes(4) + (54).to_bytes(4, "little")
    info = (40).to_bytes(4, "little") + (2).to_bytes(4, "little") * 2 + b"\1\0\x11\0" + bytes(24)
    with pytest.raises(DataError, match="damaged, or its format"):
        decode(header + info + bytes(64), name="17-bits.bmp")


def test_a_picture_too_large_for_the_decoder_is_an_error() -> None:
    data = b"P6\n100000 100000\n255\n" + bytes(100)
    with pytest.raises(DataError):
        decode(data, name="huge.ppm")


@settings(max_examples=60)
@given(st.data())
def test_any_damage_gives_pixels_or_a_data_error(data: st.DataObject) -> None:
    ending = data.draw(st.sampled_from([".jpg", ".png", ".webp", ".bmp", ".ppm"]))
    encoded = bytearray(cv2.imencode(ending, _array(8, 8))[1].tobytes())
    for _ in range(data.draw(st.integers(1, 4))):
        # Not the size fields of the header: a huge picture of zeros is a picture, and slow.
        at = data.draw(st.integers(len(encoded) // 2, len(encoded) - 1))
        encoded[at] = data.draw(st.integers(0, 255))
    try:
        pixels = decode(bytes(encoded), name="x")
    except DataError:
        return
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] == 3


_DECODE = """
import sys
from edge.errors import DataError
from edge.media import decode
try:
    decode(sys.stdin.buffer.read(), name="x")
except DataError:
    print("refused")
"""


def _python(code: str, data: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
    inherited = {name: value for name, value in os.environ.items() if name != "OPENCV_LOG_LEVEL"}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, input=data, capture_output=True, check=True, env={**inherited, **environment})


def test_opencv_keeps_its_log_to_itself_unless_asked(encode: Encoder) -> None:
    level = "import cv2\nprint(cv2.getLogLevel() if hasattr(cv2, 'getLogLevel') else cv2.utils.logging.getLogLevel())"
    cut = encode(".tiff")[:-40]
    quiet, asked = _python(_DECODE + level, cut), _python(_DECODE + level, cut, OPENCV_LOG_LEVEL="WARNING")
    assert (quiet.stdout, quiet.stderr) == (b"refused\n0\n", b"")
    assert asked.stdout == b"refused\n3\n"


def test_naming_pictures_needs_no_dependency() -> None:
    code = "import sys, edge.media; print({'cv2', 'numpy', 'google_crc32c', 'google.protobuf'} & set(sys.modules))"
    assert _python(code).stdout == b"set()\n"

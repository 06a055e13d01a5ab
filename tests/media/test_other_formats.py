"""Pictures that are no JPEG or PNG: what OpenCV or Pillow read is read, what neither does is named; none is dropped."""

from __future__ import annotations

import io
import struct
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from edge.errors import DataError
from edge.media.picture_sources import open_pictures
from edge.media.pictures import decode, encoded_size

PIXELS = np.kron(np.array([[10, 200], [120, 60]], np.uint8), np.ones((24, 32), np.uint8))
COLOUR = np.dstack([PIXELS, 255 - PIXELS, PIXELS // 2])


def saved(kind: str, **options: Any) -> bytes:
    pytest.importorskip("pillow_heif").register_heif_opener()
    file = io.BytesIO()
    Image.fromarray(COLOUR).save(file, format=kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("kind", "tolerance"), [("HEIF", 8), ("AVIF", 8), ("JPEG2000", 4), ("GIF", 40), ("WEBP", 12), ("TIFF", 0)]
)
def test_it_is_read_and_its_size_is_in_its_header(kind: str, tolerance: int) -> None:
    data = saved(kind)
    # HEIC is coded in whole blocks, and cut afterwards.
    assert encoded_size(data) == ((64, 64) if kind == "HEIF" else (64, 48))
    pixels = decode(data, name="x")
    assert (pixels.shape, pixels.dtype) == ((48, 64, 3), np.uint8)
    # Away from the edges, which every codec blurs.
    difference = np.abs(pixels[:, :, ::-1].astype(int) - COLOUR)[4:20, 4:28]
    assert difference.max() <= tolerance


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp"])
def test_sizes_of_the_usual_formats(suffix: str) -> None:
    assert encoded_size(cv2.imencode(suffix, COLOUR)[1].tobytes()) == (64, 48)


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"RIFF1234WEBP", b"II*\0\xff\xff\xff\xff", b"GIF8"]
)
def test_a_header_that_is_cut_off_has_no_size(data: bytes) -> None:
    assert encoded_size(data) is None


def test_a_picture_beyond_the_limit_is_refused_before_it_is_decoded() -> None:
    header = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 40_000, 40_000)
    small = cv2.imencode(".png", COLOUR)[1].tobytes()
    assert encoded_size(header) == (40_000, 40_000)
    with pytest.raises(DataError, match=r"64×48 pixels, more than the limit of 0\.001 megapixels") as caught:
        decode(small, name="x.png", max_megapixels=0.001)
    assert "preprocess.max_megapixels" in str(caught.value.hint)


def test_without_pillow_the_format_and_the_extra_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved("HEIF")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(DataError, match="the image is HEIC, which this OpenCV does not read") as caught:
        decode(data, name="x.heic")
    assert "heif" in str(caught.value.hint)


@pytest.mark.parametrize("kind", ["HEIF", "AVIF", "GIF", "JPEG2000"])
def test_a_damaged_one_is_named(kind: str) -> None:
    data = saved(kind)
    with pytest.raises(DataError):
        decode(data[: len(data) // 3], name="x")


def test_all_of_them_are_listed(tmp_path: Path) -> None:
    names = ["a.avif", "b.GIF", "c.heic", "d.jfif", "e.jpe", "f.jp2", "g.jxl", "h.heif"]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("no image")
    assert [picture.name for picture in open_pictures(tmp_path)] == names


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("https://host/a.jpg", "curl -LO 'https://host/a.jpg'; --images a.jpg"),
        ("https://host/clip.mp4", "--video clip.mp4"),
        ("rtsp://me:secret@host/live", "--camera rtsp://***@host/live"),
        ("/dev/video0", "--camera /dev/video0"),
        ("0", "--camera 0"),
    ],
)
def test_what_is_another_option_names_it(source: str, hint: str) -> None:
    with pytest.raises(DataError) as caught:
        open_pictures(Path(source))
    assert hint in str(caught.value.hint)
    assert "secret" not in str(caught.value)


def test_a_video_names_its_option(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"x")
    with pytest.raises(DataError, match="this is a video") as caught:
        open_pictures(tmp_path / "clip.mp4")
    assert "--video" in str(caught.value.hint)


def test_a_url_of_a_video_file() -> None:
    from edge.media.opencv_capture import VideoStream

    with pytest.raises(DataError, match="there is no such video") as caught:
        VideoStream(Path("https://host/clip.mp4"))
    assert caught.value.hint == "use --camera for the URL of a stream"

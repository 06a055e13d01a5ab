"""Preprocessing against Pillow, against its own definition written out slowly, and at its edges."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edge.config import profiles, roi_box
from edge.config.profiles import InputConfig, PreprocessConfig
from edge.errors import DataError
from edge.model import preprocessing
from edge.model.preprocessing import Box, Preprocessor, Region, digest, placed, region

Picture = np.ndarray
SIZES = [
    (720, 1280), (1080, 1920), (480, 640), (640, 480), (333, 500), (501, 377), (256, 256), (224, 224), (225, 223),
    (257, 255), (449, 447), (511, 513), (1000, 260), (1801, 2403), (64, 2000), (100, 80), (37, 53), (2, 2), (1, 300),
    (300, 1), (1, 1),
]  # fmt: skip
FITS = ("crop", "letterbox", "squash")
KINDS = ("nearest", "bilinear", "bicubic")

name_of = {"ids": lambda value: "x".join(map(str, value)) if isinstance(value, tuple) else None}


def pillow(picture: Picture, height: int, width: int, kind: str) -> Picture:
    """The whole picture by Pillow, antialiased, along x first as all versions before 13 do; BGR in and out."""
    kernel = {"nearest": Image.Resampling.NEAREST, "bilinear": Image.Resampling.BILINEAR,
              "bicubic": Image.Resampling.BICUBIC}[kind]  # fmt: skip
    image = Image.fromarray(np.ascontiguousarray(picture[:, :, ::-1]))
    return np.asarray(image.resize((width, image.height), kernel).resize((width, height), kernel))[:, :, ::-1]


def torchvision(picture: Picture, resize: int, crop: int, kind: str) -> Picture:
    """``Resize(resize)`` and ``CenterCrop(crop)`` of torchvision 0.26, on Pillow pictures; BGR in and out."""
    height, width = picture.shape[:2]
    shorter, longer = min(height, width), max(height, width)
    long = int(resize * longer / shorter)
    high, wide = (resize, long) if height <= width else (long, resize)
    resized = pillow(picture, high, wide, kind)
    top, left = round((high - crop) / 2.0), round((wide - crop) / 2.0)
    return resized[top : top + crop, left : left + crop]


def differences(a: Picture, b: Picture) -> tuple[int, float]:
    """Largest and mean difference of two uint8 pictures."""
    steps = np.abs(a.astype(np.int16) - b)
    return int(steps.max()), float(steps.mean())


# against Pillow


@pytest.mark.parametrize("kind", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", SIZES, **name_of)
def test_parity_with_torchvision(picture: Callable[..., Picture], size: tuple[int, int], kind: Any) -> None:
    source = picture(size, seed=sum(size))
    found = Preprocessor(PreprocessConfig(interpolation=kind), InputConfig()).pixels(source)
    largest, mean = differences(found, torchvision(source, 256, 224, kind))
    assert largest <= 2
    assert mean <= 0.05


@pytest.mark.parametrize("kind", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", SIZES, **name_of)
def test_parity_with_pillow(picture: Callable[..., Picture], size: tuple[int, int], kind: Any) -> None:
    source = picture(size, seed=sum(size))
    found = Preprocessor(PreprocessConfig(fit="squash", interpolation=kind), InputConfig()).pixels(source)
    largest, mean = differences(found, pillow(source, 224, 224, kind))
    assert largest <= 2
    assert mean <= 0.05


@pytest.mark.parametrize("kind", ["bilinear", "bicubic"])
def test_parity_with_torchvision_on_photographs(shared_data: Path, kind: Any) -> None:
    preprocess, found = Preprocessor(PreprocessConfig(interpolation=kind), InputConfig()), []
    for path in sorted((shared_data / "eval").glob("*.jpg")):
        source = cv2.imread(str(path))
        found.append(differences(preprocess.pixels(source), torchvision(source, 256, 224, kind)))
    assert len(found) == 300
    assert max(largest for largest, _ in found) <= 2
    assert np.mean([mean for _, mean in found]) <= 0.01


@given(
    st.integers(1, 80), st.integers(1, 80), st.integers(1, 40), st.integers(1, 40), st.sampled_from(KINDS[1:]),
    st.integers(0, 1000),
)  # fmt: skip
def test_any_size_is_that_of_pillow(rows: int, columns: int, height: int, width: int, kind: Any, seed: int) -> None:
    """Noise of full contrast, where a weight that is off by a little shows."""
    source = (np.random.default_rng(seed).integers(0, 2, (rows, columns, 3)) * 255).astype(np.uint8)
    spec, target = PreprocessConfig(fit="squash", interpolation=kind), InputConfig(height=height, width=width)
    assert differences(Preprocessor(spec, target).pixels(source), pillow(source, height, width, kind))[0] <= 2


def written_out(picture: Picture, spec: PreprocessConfig, target: InputConfig) -> Picture:
    """Steps 1 and 2 in whole numbers: sums along x, rounded, then along y, rounded."""
    down, across = preprocessing.tables(*picture.shape[:2], spec, target)
    lines = picture.astype(np.int64).transpose(1, 0, 2)
    for table in (across, down):
        taken = lines[table.first[:, None] + np.arange(table.weights.shape[1])]
        sums = (taken * table.weights[:, :, None, None]).sum(axis=1)
        lines = np.clip((sums + preprocessing.WEIGHT_ONE // 2) // preprocessing.WEIGHT_ONE, 0, 255).transpose(1, 0, 2)
    return lines.transpose(1, 0, 2).astype(np.uint8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [*SIZES, (64, 2000), (2500, 30)], **name_of)
def test_pixels_are_the_whole_number_sums_of_the_tables(
    picture: Callable[..., Picture], size: tuple[int, int], kind: Any
) -> None:
    source, target = picture(size, seed=sum(size)), InputConfig(height=61, width=75)
    spec = PreprocessConfig(fit="squash", interpolation=kind)
    assert np.array_equal(Preprocessor(spec, target).pixels(source), written_out(source, spec, target))


def test_one_preprocessor_for_images_of_many_sizes(picture: Callable[..., Picture]) -> None:
    """They share memory: nothing of a larger image before is left in the result of a smaller one."""
    spec, target = PreprocessConfig(fit="squash", interpolation="bicubic"), InputConfig(height=40, width=33)
    process = Preprocessor(spec, target)
    for size in ((300, 200), (17, 20), (40, 33), (41, 33), (40, 90), (300, 200), (2, 700), (17, 20)):
        source = picture(size, seed=sum(size))
        assert np.array_equal(process.pixels(source), written_out(source, spec, target))


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_that_has_its_size_is_not_multiplied(picture: Callable[..., Picture], kind: Any) -> None:
    spec = PreprocessConfig(resize=256, interpolation=kind)
    for table in preprocessing.tables(256, 256, spec, InputConfig()):
        assert table.weights.shape == (224, 1)
        assert table.is_copy
    source = picture((256, 256))
    found = Preprocessor(spec, InputConfig()).pixels(source)
    assert np.array_equal(found, source[16:240, 16:240])
    assert not np.shares_memory(found, source)


def test_tables_have_no_columns_of_zeros() -> None:
    """A row begins with its first weight unless it ends at the far edge of the image."""
    for kind, length, count, size in (
        ("bilinear", 630.0, 224, 720),
        ("bicubic", 196.0, 224, 224),
        ("bilinear", 7.0, 50, 7),
    ):
        table = preprocessing.axis_table(0.0, length, count=count, size=size, interpolation=kind)
        used = table.weights != 0
        assert used[:, 0].any()
        assert used[:, -1].any()
        assert (used.sum(axis=1).max() >= table.weights.shape[1] - 1).all()


def test_weights_are_whole_and_sum_to_one() -> None:
    for kind, start, length, count, size in (("bilinear", 3.7, 91.3, 31, 97), ("bicubic", 0.0, 5.0, 40, 5)):
        table = preprocessing.axis_table(start, length, count=count, size=size, interpolation=kind)
        assert (table.weights.sum(axis=1) == preprocessing.WEIGHT_ONE).all()
        assert (np.diff(table.first) >= 0).all()
        assert 0 <= table.start < table.stop <= size


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 30), st.integers(1, 30))
def test_nearest_takes_the_pixel_under_the_centre(rows: int, columns: int, height: int, width: int) -> None:
    source = np.arange(rows * columns * 3, dtype=np.uint32).astype(np.uint8).reshape(rows, columns, 3)
    spec, target = PreprocessConfig(fit="squash", interpolation="nearest"), InputConfig(height=height, width=width)
    row = [int((Fraction(i) + Fraction(1, 2)) * rows / height) for i in range(height)]
    column = [int((Fraction(i) + Fraction(1, 2)) * columns / width) for i in range(width)]
    assert np.array_equal(Preprocessor(spec, target).pixels(source), source[np.ix_(row, column)])


@pytest.mark.parametrize("size", [(100, 80), (64, 48), (63, 65), (5, 3), (333, 222)], **name_of)
def test_nearest_is_that_of_pillow(picture: Callable[..., Picture], size: tuple[int, int]) -> None:
    """For sizes where no centre lies exactly between two pixels."""
    source = picture(size)
    found = Preprocessor(
        PreprocessConfig(fit="squash", interpolation="nearest"), InputConfig(height=64, width=48)
    ).pixels(source)
    assert np.array_equal(found, pillow(source, 64, 48, "nearest"))


def test_no_pixel_is_skipped_when_a_picture_shrinks() -> None:
    """Plain bilinear interpolation of a 10-fold reduction reads two pixels of each hundred: fine lines vanish."""
    source = np.zeros((640, 640, 3), np.uint8)
    source[::10] = 255
    found = Preprocessor(PreprocessConfig(fit="squash"), InputConfig(height=64, width=64)).pixels(source)
    assert found[1:-1].min() >= 24
    assert found[1:-1].max() <= 27


# geometry


@pytest.mark.parametrize(
    ("size", "resize", "target", "box"),
    [
        ((256, 256), 256, (224, 224), (16, 16, 224, 224)),
        ((720, 1280), 256, (224, 224), (45, 326.3297, 630, 630.1538)),
        ((1280, 720), 256, (224, 224), (326.3297, 45, 630.1538, 630)),
        ((256, 256), 256, (256, 256), (0, 0, 256, 256)),
        ((100, 300), 256, (224, 224), (6.25, 106.25, 87.5, 87.5)),
        ((400, 400), 200, (100, 160), (100, 40, 200, 320)),
        ((1, 1), 256, (224, 224), (0.0625, 0.0625, 0.875, 0.875)),
        ((3, 3), 1000, (1, 1), (1.5, 1.5, 0.003, 0.003)),
    ],
    **name_of,
)
def test_crop_regions(size: Any, resize: int, target: Any, box: tuple[float, float, float, float]) -> None:
    found = region(*size, PreprocessConfig(resize=resize), InputConfig(height=target[0], width=target[1]))
    assert (found.top, found.left, found.height, found.width) == pytest.approx(box, abs=1e-3)


sides = st.integers(1, 5000)


@given(sides, sides, st.integers(1, 300), st.integers(1, 300), st.integers(0, 200))
def test_a_crop_lies_in_the_middle_and_has_its_size(h: int, w: int, height: int, width: int, more: int) -> None:
    spec = PreprocessConfig(resize=max(height, width) + more)
    box = region(h, w, spec, InputConfig(height=height, width=width))
    scale = min(h, w) / spec.resize
    for size, start, length, wanted in ((h, box.top, box.height, height), (w, box.left, box.width, width)):
        # The longer side is rounded down to whole pixels, and the crop lies at whole pixels of the resized picture.
        step = length / wanted
        assert scale - 1e-9 <= step <= scale * (1 + 1 / spec.resize) + 1e-9
        assert -1e-6 <= start <= start + length <= size + 1e-6
        assert abs(start - (size - length) / 2) <= step / 2 + 1e-6


@pytest.mark.parametrize(
    ("size", "target", "place"),
    [
        ((100, 200), (64, 64), (16, 0, 32, 64)),
        ((200, 100), (64, 64), (0, 16, 64, 32)),
        ((64, 64), (64, 64), (0, 0, 64, 64)),
        ((50, 50), (64, 96), (0, 16, 64, 64)),
        ((100, 99), (64, 64), (0, 0, 64, 63)),
        ((1, 1000), (64, 64), (31, 0, 1, 64)),
        ((1000, 1), (64, 64), (0, 31, 64, 1)),
        ((1, 1), (5, 3), (1, 0, 3, 3)),
    ],
    **name_of,
)
def test_letterbox_places(size: Any, target: Any, place: tuple[int, int, int, int]) -> None:
    spec = PreprocessConfig(fit="letterbox")
    assert placed(*size, spec, InputConfig(height=target[0], width=target[1])) == Box(*place)


@given(sides, sides, st.integers(1, 300), st.integers(1, 300))
def test_a_letterbox_keeps_the_shape_touches_two_sides_and_is_centred(h: int, w: int, height: int, width: int) -> None:
    place = placed(h, w, PreprocessConfig(fit="letterbox"), InputConfig(height=height, width=width))
    assert place.height == height or place.width == width
    scale = min(Fraction(height, h), Fraction(width, w))
    assert abs(place.height - h * scale) <= Fraction(1, 2) or place.height == 1
    assert abs(place.width - w * scale) <= Fraction(1, 2) or place.width == 1
    assert 2 * place.top in (height - place.height, height - place.height - 1)
    assert 2 * place.left in (width - place.width, width - place.width - 1)


@pytest.mark.parametrize("pad", [0, 114, 255])
@pytest.mark.parametrize("size", [(100, 200), (200, 100), (99, 100), (20, 20), (3, 500)], **name_of)
def test_a_letterbox_is_the_whole_picture_on_padding(picture: Callable[..., Picture], size: Any, pad: int) -> None:
    source = picture(size)
    spec, target = PreprocessConfig(fit="letterbox", pad=pad), InputConfig(height=64, width=80)
    found = Preprocessor(spec, target).pixels(source)
    place = placed(*size, spec, target)
    inside = found[place.top : place.top + place.height, place.left : place.left + place.width]
    alone = Preprocessor(PreprocessConfig(fit="squash"), InputConfig(height=place.height, width=place.width)).pixels(
        source
    )
    assert np.array_equal(inside, alone)
    outside = np.ones((64, 80), bool)
    outside[place.top : place.top + place.height, place.left : place.left + place.width] = False
    assert (found[outside] == pad).all()


def test_squash_takes_everything(picture: Callable[..., Picture]) -> None:
    assert region(37, 91, PreprocessConfig(fit="squash"), InputConfig()) == Region(0, 0, 37, 91)
    source = picture((64, 80))
    target = InputConfig(height=64, width=80)
    assert np.array_equal(Preprocessor(PreprocessConfig(fit="squash"), target).pixels(source), source)


# values


@pytest.mark.parametrize("color", ["rgb", "bgr"])
@pytest.mark.parametrize("fit", FITS)
def test_channel_order_and_normalization(color: Any, fit: Any) -> None:
    """One colour, B=10 G=20 R=30; mean and std belong to the channels in output order."""
    source = np.full((40, 40, 3), (10, 20, 30), np.uint8)
    spec = PreprocessConfig(fit=fit, resize=40, color=color, mean=(1, 2, 3), std=(2, 4, 8))
    found = Preprocessor(spec, InputConfig(height=32, width=32))(source)
    order = (30, 20, 10) if color == "rgb" else (10, 20, 30)
    for channel, (value, mean, std) in enumerate(zip(order, (1, 2, 3), (2, 4, 8), strict=True)):
        assert (found[channel] == (value - mean) / std).all()


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((127.0, 127.0, 127.0), (128.0, 128.0, 128.0)),
        ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
        ((0.0, 0.0, 0.0), (255.0, 255.0, 255.0)),
        ((0.1, -3.7, 1e4), (1e-3, 1e5, 0.3)),
    ],
    ids=["lite", "imagenet", "unit", "odd"],
)
def test_normalization_is_float32_arithmetic_to_the_bit(mean: Any, std: Any) -> None:
    source = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    spec = PreprocessConfig(fit="squash", mean=mean, std=std)
    found = Preprocessor(spec, InputConfig(height=16, width=16))(source)
    assert (found.dtype, found.shape, found.flags.c_contiguous) == (np.float32, (3, 16, 16), True)
    for channel in range(3):
        for value in range(256):
            expected = np.float32(np.float32(value) - np.float32(mean[channel])) / np.float32(std[channel])
            assert found[channel].flat[value].tobytes() == expected.tobytes()


@given(
    st.tuples(*[st.integers(0, 255)] * 3), st.sampled_from(FITS), st.sampled_from(KINDS), st.integers(1, 50),
    st.integers(1, 50), st.integers(1, 20), st.integers(1, 20),
)  # fmt: skip
def test_one_colour_stays_that_colour(
    colour: Any, fit: Any, kind: Any, h: int, w: int, height: int, width: int
) -> None:
    """Weights that do not sum to one, or a pixel read from beside the picture, would show here."""
    source = np.full((h, w, 3), colour, np.uint8)
    spec, target = (
        PreprocessConfig(fit=fit, resize=24, interpolation=kind, pad=7),
        InputConfig(height=height, width=width),
    )
    found = Preprocessor(spec, target).pixels(source)
    assert found.shape == (height, width, 3)
    place = placed(h, w, spec, target)
    assert (found[place.top : place.top + place.height, place.left : place.left + place.width] == colour).all()


# memory


ARRANGEMENTS: dict[str, Callable[[Picture], Picture]] = {
    "upside-down": lambda p: np.ascontiguousarray(p[::-1])[::-1],
    "mirrored": lambda p: np.ascontiguousarray(p[:, ::-1])[:, ::-1],
    "channels-turned": lambda p: np.ascontiguousarray(p[:, :, ::-1])[:, :, ::-1],
    "every-second": lambda p: np.repeat(np.repeat(p, 2, axis=0), 2, axis=1)[::2, ::2],
    "column-major": np.asfortranarray,
    "planes": lambda p: np.ascontiguousarray(p.transpose(2, 0, 1)).transpose(1, 2, 0),
    "read-only": lambda p: np.frombuffer(p.tobytes(), np.uint8).reshape(p.shape),
    "part-of-a-larger-one": lambda p: np.pad(p, ((3, 5), (2, 4), (0, 0)))[3:-5, 2:-4],
}


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arrange", ARRANGEMENTS)
def test_the_arrangement_in_memory_does_not_matter(
    picture: Callable[..., Picture], arrange: str, kind: Any, fit: Any
) -> None:
    source = picture((75, 113))
    arranged = ARRANGEMENTS[arrange](source)
    assert np.array_equal(arranged, source)
    process = Preprocessor(PreprocessConfig(fit=fit, resize=36, interpolation=kind), InputConfig(height=32, width=30))
    before = arranged.copy()
    assert np.array_equal(process(arranged), process(source))
    assert np.array_equal(arranged, before)


OUTS: dict[str, Callable[[], np.ndarray]] = {
    "plain": lambda: np.empty((3, 32, 30), np.float32),
    "one-of-a-batch": lambda: np.empty((4, 3, 32, 30), np.float32)[2],
    "column-major": lambda: np.empty((3, 32, 30), np.float32, order="F"),
    "every-second-column": lambda: np.empty((3, 32, 60), np.float32)[:, :, ::2],
    "every-second-row": lambda: np.empty((3, 64, 30), np.float32)[:, ::2],
    "every-second-channel": lambda: np.empty((6, 32, 30), np.float32)[::2],
    "upside-down": lambda: np.empty((3, 32, 30), np.float32)[:, ::-1],
    "nhwc": lambda: np.empty((32, 30, 3), np.float32).transpose(2, 0, 1),
    "wider-rows": lambda: np.empty((3, 32, 40), np.float32)[:, :, :30],
}


@pytest.mark.parametrize("fit", ["crop", "letterbox"])
@pytest.mark.parametrize("kind", OUTS)
def test_out_is_what_gets_the_result(picture: Callable[..., Picture], kind: str, fit: Any) -> None:
    source = picture((75, 113))
    process = Preprocessor(PreprocessConfig(fit=fit, resize=36), InputConfig(height=32, width=30))
    out = OUTS[kind]()
    out[:] = np.nan
    assert process(source, out=out) is out
    assert np.array_equal(out, process(source))


def test_out_touches_nothing_else(picture: Callable[..., Picture]) -> None:
    batch = np.full((3, 3, 32, 32), np.inf, np.float32)
    Preprocessor(PreprocessConfig(resize=36), InputConfig(height=32, width=32))(picture((50, 50)), out=batch[1])
    assert np.isinf(batch[[0, 2]]).all()
    assert np.isfinite(batch[1]).all()


@pytest.mark.parametrize(
    "out",
    [np.empty((3, 32, 32)), np.empty((3, 32, 32), np.float16), np.empty((3, 32, 31), np.float32),
     np.empty((4, 32, 32), np.float32), np.empty((1, 3, 32, 32), np.float32), np.empty((32, 32, 3), np.float32)],
    ids=["float64", "float16", "narrow", "four-channels", "batch", "nhwc"],
)  # fmt: skip
def test_an_out_that_does_not_fit_is_an_error(picture: Callable[..., Picture], out: np.ndarray) -> None:
    """Silently left as it was, it would hand the network whatever had been in memory."""
    with pytest.raises(ValueError, match=r"not float32 \(3, 32, 32\)"):
        Preprocessor(PreprocessConfig(resize=36), InputConfig(height=32, width=32))(picture((50, 50)), out=out)


def test_results_do_not_share_memory(picture: Callable[..., Picture]) -> None:
    process = Preprocessor(PreprocessConfig(fit="squash"), InputConfig(height=32, width=32))
    source = picture((32, 32))
    first = process(source)
    kept = first.copy()
    process(picture((32, 32), seed=1))
    assert np.array_equal(first, kept)
    assert not np.shares_memory(first, process(source))


def test_several_threads_may_share_one(picture: Callable[..., Picture]) -> None:
    process = Preprocessor(
        PreprocessConfig(fit="letterbox", resize=36, interpolation="bicubic"), InputConfig(height=32, width=32)
    )
    sources = [picture((40 + i, 90 - i), seed=i) for i in range(40)]
    alone = [process(source) for source in sources]
    with ThreadPoolExecutor(4) as pool:
        for expected, found in zip(alone, pool.map(process, sources), strict=True):
            assert np.array_equal(expected, found)


@pytest.mark.parametrize("size", [(1, 40_000), (40_000, 1), (40_000, 3)], **name_of)
@pytest.mark.parametrize("fit", FITS)
def test_very_long_pictures(picture: Callable[..., Picture], size: tuple[int, int], fit: Any) -> None:
    """OpenCV counts some coordinates in 16 bits."""
    source = np.full((*size, 3), 77, np.uint8)
    found = Preprocessor(PreprocessConfig(fit=fit, resize=36, pad=77), InputConfig(height=32, width=32)).pixels(source)
    assert (found == 77).all()


# the digest


CHANGES: dict[str, Any] = {
    "fit": "squash", "resize": 257, "interpolation": "bicubic", "color": "bgr", "mean": (123.675, 116.28, 103.54),
    "std": (58.395, 57.12, 57.376), "pad": 115, "exif": False, "roi": (0, 0, 0.5, 0.5),
}  # fmt: skip


@pytest.mark.parametrize("field", CHANGES)
def test_the_digest_covers_every_setting(field: str) -> None:
    changed = msgspec.structs.replace(PreprocessConfig(), **{field: CHANGES[field]})
    assert preprocessing.digest(changed, InputConfig()) != preprocessing.digest(PreprocessConfig(), InputConfig())


def test_there_is_no_setting_that_the_digest_test_forgets() -> None:
    assert {*CHANGES, "max_megapixels"} == set(PreprocessConfig.__struct_fields__)
    assert preprocessing.digest(PreprocessConfig(max_megapixels=1), InputConfig()) == preprocessing.digest(
        PreprocessConfig(), InputConfig()
    )


@pytest.mark.parametrize(
    "target", [InputConfig(height=225), InputConfig(width=225), InputConfig(height=225, width=225)]
)
def test_the_digest_covers_the_size(target: InputConfig) -> None:
    assert preprocessing.digest(PreprocessConfig(), target) != preprocessing.digest(PreprocessConfig(), InputConfig())


def test_the_digest_of_two_sizes_that_read_alike_differs() -> None:
    assert preprocessing.digest(PreprocessConfig(), InputConfig(height=2, width=24)) != preprocessing.digest(
        PreprocessConfig(), InputConfig(height=22, width=4)
    )


def test_the_digest_leaves_the_batch_out() -> None:
    """A table made with one batch size is good for every other."""
    batch = profiles.BatchRange(min=2, opt=4, max=8)
    assert preprocessing.digest(PreprocessConfig(), InputConfig(batch=batch)) == preprocessing.digest(
        PreprocessConfig(), InputConfig()
    )


def test_the_digest_is_the_one_in_the_tables_that_come_with_edge(repository: Path) -> None:
    """Who changes the definition has to make these tables again, and raise DEFINITION so that nobody else's is used."""
    settings_ = profiles.read_profile(repository / "profiles" / "host.yaml")
    manifests = sorted((repository / "calib_cache").glob("*/*.json"))
    keys = [json.loads(path.read_bytes()) for path in manifests]
    tables = [content["key"]["preprocess"] for content in keys if content.get("kind") == "calibration table"]
    assert tables
    assert set(tables) == {preprocessing.digest(settings_.preprocess, settings_.input)}


@pytest.mark.parametrize("fit", ["crop", "letterbox", "squash"])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("roi", [(10, 20, 90, 64), (0.1, 0.25, 0.9, 0.5)])
def test_a_roi_is_the_picture_and_nothing_beyond_it_counts(fit: Any, interpolation: Any, roi: Any) -> None:
    target = InputConfig(height=32, width=32)
    picture = np.random.default_rng(0).integers(0, 256, (128, 200, 3), np.uint8)
    top, left, height, width = roi_box(roi, 128, 200)
    region = picture[top : top + height, left : left + width]
    spec = PreprocessConfig(fit=fit, interpolation=interpolation, resize=36, roi=roi)
    plain = PreprocessConfig(fit=fit, interpolation=interpolation, resize=36)
    found = Preprocessor(spec, target).pixels(picture)
    assert (found == Preprocessor(plain, target).pixels(region)).all()
    beyond = picture.copy()
    beyond[:top], beyond[:, :left] = 0, 0
    beyond[top + height :], beyond[:, left + width :] = 0, 0
    assert (Preprocessor(spec, target).pixels(beyond) == found).all()


def test_a_roi_is_part_of_the_digest_and_none_changes_nothing() -> None:
    target, plain = InputConfig(), PreprocessConfig()
    assert digest(PreprocessConfig(roi=(0, 0, 0.5, 0.5)), target) != digest(plain, target)
    # Of a table that was made before there was a roi.
    assert digest(plain, target) == "3f0ac7a8f304fca6d8f2724c7089201554215ead140fd0c309375a81c1834ef8"


def test_a_roi_beyond_the_picture_is_said() -> None:
    spec = PreprocessConfig(roi=(100, 0, 200, 100))
    with pytest.raises(DataError, match=r"the roi \[100, 0, 200, 100\] reaches beyond the image of 200×128"):
        Preprocessor(spec, InputConfig())(np.zeros((128, 200, 3), np.uint8))

"""What preprocessing on the CPU costs, beside two baselines in turns: the code before definition 2, and Pillow.

    python benchmarks/preprocess.py [--repeats N]

Each figure is the CPU time of one thread, the least of several calls: the wall clock would add the other programs of a
busy machine. It is for decoded images to the normalized input of 3×224×224, with ``resize`` 256 and
``crop``. The code before definition 2 averaged whole boxes of pixels and interpolated with OpenCV: less work, and not
what networks are trained with. Pillow's time is that of its ``resize`` with ``box`` and of the conversion from and to
NumPy arrays, without normalization.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edge.config.profiles import InputConfig, PreprocessConfig
from edge.model.preprocessing import Preprocessor, region

SIZES = [(224, 224), (384, 288), (480, 640), (720, 1280), (1080, 1920), (3000, 4000)]
TARGET = InputConfig()

Pixels = NDArray[np.uint8]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=40)
    repeats = parser.parse_args().repeats
    cv2.setNumThreads(1)
    print(f"OpenCV {cv2.__version__}, NumPy {np.__version__}, one thread, CPU time in µs")
    print(f"{'image':<12}{'filter':<10}{'before':>9}{'Pillow':>9}{'edge':>9}{'edge / before':>15}")
    for height, width in SIZES:
        image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        for kind in ("bilinear", "bicubic"):
            row(image, PreprocessConfig(interpolation=kind), max(repeats // (1 + height // 1000), 3))


def row(image: Pixels, spec: PreprocessConfig, repeats: int) -> None:
    out = np.empty((3, TARGET.height, TARGET.width), np.float32)
    process, old = Preprocessor(spec, TARGET), Before(spec)
    before, pillow, edge = in_turns(
        [lambda: old(image, out), lambda: by_pillow(image, spec), lambda: process(image, out)], repeats
    )
    size = f"{image.shape[1]}×{image.shape[0]}"
    print(
        f"{size:<12}{spec.interpolation:<10}{before:>9.0f}{pillow:>9.0f}{edge:>9.0f}{edge / before:>15.2f}", flush=True
    )


def in_turns(calls: list[Callable[[], Any]], repeats: int) -> list[float]:
    """The least CPU time of each in µs."""
    least = [float("inf")] * len(calls)
    for number in range(repeats + 1):
        for index, call in enumerate(calls):
            start = time.thread_time()
            call()
            if number:
                least[index] = min(least[index], time.thread_time() - start)
    return [1e6 * seconds for seconds in least]


def by_pillow(image: Pixels, spec: PreprocessConfig) -> Pixels:
    """The same crop by Pillow."""
    part = region(image.shape[0], image.shape[1], spec, TARGET)
    kind = Image.Resampling.BILINEAR if spec.interpolation == "bilinear" else Image.Resampling.BICUBIC
    box = (part.left, part.top, part.left + part.width, part.top + part.height)
    return np.asarray(Image.fromarray(image).resize((TARGET.width, TARGET.height), kind, box=box))


class Before:
    """Definition 1: the crop in whole pixels, whole boxes averaged, then OpenCV's filter; the baseline."""

    def __init__(self, spec: PreprocessConfig) -> None:
        self._spec = spec
        values = np.arange(256, dtype=np.float32)
        self._tables = [
            (values - np.float32(mean)) / np.float32(std) for mean, std in zip(spec.mean, spec.std, strict=True)
        ]

    def __call__(self, image: Pixels, out: NDArray[np.float32]) -> None:
        """Write the normalized input."""
        for target, plane, table in zip(out, cv2.split(self._pixels(image))[::-1], self._tables, strict=True):
            cv2.LUT(plane, table, dst=target)

    def _pixels(self, image: Pixels) -> Any:  # noqa: ANN401
        shorter = min(image.shape[:2])
        high, wide = (round(shorter * side / self._spec.resize) for side in (TARGET.height, TARGET.width))
        top, left = (image.shape[0] - high) // 2, (image.shape[1] - wide) // 2
        part: Any = image[top : top + high, left : left + wide]
        down, right = max(high // TARGET.height, 1), max(wide // TARGET.width, 1)
        if down > 1 or right > 1:
            part = part[: high // down * down, : wide // right * right]
            part = cv2.resize(part, (wide // right, high // down), interpolation=cv2.INTER_AREA)
        if part.shape[:2] == (TARGET.height, TARGET.width):
            return part
        kernel = cv2.INTER_CUBIC if self._spec.interpolation == "bicubic" else cv2.INTER_LINEAR
        return cv2.resize(part, (TARGET.width, TARGET.height), interpolation=kernel)


if __name__ == "__main__":
    main()

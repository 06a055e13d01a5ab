"""The pictures of a bench: decoded, preprocessed and laid out as batches in memory before anything is timed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edge.config import Profile
from edge.errors import DataError
from edge.media import decode, open_pictures
from edge.model import Preprocessor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Batch = NDArray[np.float32]


class Samples:
    """At most ``count`` pictures of ``images``, or that many of noise with a fixed seed; read when first asked for."""

    def __init__(self, profile: Profile, images: Path | None, *, count: int) -> None:
        self._profile = profile
        self._images = images
        self._count = count
        self._ready: list[Batch] = []

    def batches(self, size: int) -> list[Batch]:
        """Batches of ``size`` pictures, float32 size×3×h×w, together as many pictures as there are, or one batch.

        Raises:
            DataError: no picture could be decoded.
        """
        ready = self._ready = self._ready or self._prepare()
        count = max(len(ready) // size, 1)
        return [np.stack([ready[(b * size + i) % len(ready)] for i in range(size)]) for b in range(count)]

    def _prepare(self) -> list[Batch]:
        preprocess = Preprocessor(self._profile.preprocess, self._profile.input)
        if self._images is None:
            shape = (self._profile.input.height, self._profile.input.width, 3)
            chance = np.random.default_rng(0)
            return [preprocess(chance.integers(0, 256, shape, np.uint8)) for _ in range(self._count)]
        found = []
        broken: DataError | None = None
        for picture in open_pictures(self._images).take(self._count):
            try:
                pixels = decode(picture.read(), name=picture.where, exif=self._profile.preprocess.exif)
                found.append(preprocess(pixels))
            except DataError as exc:  # noqa: PERF203 - `edge data check` names them; here they are in the way
                broken = exc
        if not found:
            raise DataError("no picture could be decoded", where=self._images) from broken
        return found

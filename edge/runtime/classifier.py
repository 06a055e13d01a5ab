"""From logits to labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from edge.artifacts import Guess
from edge.errors import DeviceError

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Classifier:
    """The ``topk`` classes with the largest logits, with their names and softmax shares, best first."""

    def __init__(self, names: Sequence[str], *, topk: int) -> None:
        self._names = names
        self._topk = topk

    def __call__(self, logits: NDArray[np.float32], *, where: str) -> list[Guess]:
        """Guesses for one picture's float32 logits; classes without a name are called by their number.

        Raises:
            DeviceError: the logits hold NaN or infinity.
        """
        if not np.isfinite(logits).all():
            raise DeviceError(
                f"the engine's answer holds NaN or infinity for {where}",
                hint="the engine overflows: build it with --precision fp32, and see whether the model itself does",
            )
        top = np.argsort(-logits, kind="stable")[: self._topk]
        shares = np.exp(logits - logits[top[0]])
        total = float(shares.sum())
        return [Guess(int(i), self._label(int(i)), float(shares[i]) / total) for i in top]

    def _label(self, index: int) -> str:
        return self._names[index] if index < len(self._names) else f"class {index}"

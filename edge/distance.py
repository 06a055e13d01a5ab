"""How far the answers of two networks are apart."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def sqnr_db(own: NDArray[np.float32], reference: NDArray[np.float32]) -> float | None:
    """Signal to quantization noise of the logits, 10·log10(Σ reference² / Σ (own - reference)²); None when equal."""
    signal = float(np.square(reference, dtype=np.float64).sum())
    noise = float(np.square(own.astype(np.float64) - reference).sum())
    return 10.0 * math.log10(signal / noise) if noise > 0 and signal > 0 else None


def top(logits: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Indexes of the ``count`` largest of every row, n×count, largest first; ties go to the lower index."""
    return np.argsort(-logits, axis=1, kind="stable")[:, :count]

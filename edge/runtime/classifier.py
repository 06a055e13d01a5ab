"""From the network's output to labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.artifacts import Guess
from edge.config import OutputKind
from edge.errors import DeviceError

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Probabilities sum to one within this, also after INT8 and FP16; logits do so by chance only.
_TOLERANCE = 1e-3


def output_kind(asked: OutputKind | None, info: Mapping[str, Any]) -> OutputKind | None:
    """What an engine's outputs are.

    Args:
        asked: ``output`` of the profile.
        info: of the engine's manifest; those of earlier versions say nothing.

    Returns:
        The kind, or None where each row is to be looked at (see :func:`probabilities`).
    """
    built: OutputKind = "probabilities" if info.get("output_kind", asked) == "probabilities" else "logits"
    return built if built == "probabilities" or asked == "logits" else None


def probabilities(values: NDArray[np.float32], kind: OutputKind | None) -> NDArray[np.float32]:
    """Class probabilities of outputs, float32 …×classes.

    Args:
        values: finite outputs, float32 …×classes.
        kind: logits get a softmax, probabilities stay. None decides by row: one that is nowhere negative and sums to
            one holds probabilities, so that a Softmax that nobody saw in the graph is not applied twice.
    """
    if kind == "probabilities":
        return values
    exp = np.exp(values - values.max(axis=-1, keepdims=True))
    softmax: NDArray[np.float32] = exp / exp.sum(axis=-1, keepdims=True)
    if kind == "logits":
        return softmax
    is_done = (values.min(axis=-1) >= 0) & (np.abs(values.sum(axis=-1) - 1) < _TOLERANCE)
    return np.where(is_done[..., None], values, softmax)


class Classifier:
    """The ``topk`` most probable classes of an output, with their names and probabilities, best first."""

    def __init__(self, names: Sequence[str], *, topk: int, kind: OutputKind | None = None) -> None:
        self._names = names
        self._topk = topk
        self._kind = kind

    def shares(self, output: NDArray[np.float32], *, where: str) -> NDArray[np.float32]:
        """Class probabilities of one picture's output, float32.

        Raises:
            DeviceError: The output holds NaN or infinity.
        """
        if not np.isfinite(output).all():
            raise DeviceError(
                f"the engine's answer holds NaN or infinity for {where}",
                hint="the engine overflows: build it with --precision fp32, and see whether the model itself does",
            )
        return probabilities(output, self._kind)

    def guesses(self, output: NDArray[np.float32], shares: NDArray[np.float32]) -> list[Guess]:
        """The best classes of one picture; those without a name are called by their number."""
        # Not by the shares: of large logits, most of them are 0.
        top = np.argsort(-output, kind="stable")[: self._topk]
        return [Guess(int(i), self.label(int(i)), float(shares[i])) for i in top]

    def label(self, index: int) -> str:
        """The name of a class."""
        return self._names[index] if index < len(self._names) else f"class {index}"

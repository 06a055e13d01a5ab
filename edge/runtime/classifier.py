"""Turn the network's output into a label: probabilities, the best classes, and a decision smoothed over time.

For one object in a video, a network occasionally predicts a different label. Smoothing uses the last moments of each
camera: ``exponential`` averages the probabilities of all classes with more weight on newer ones; ``majority`` chooses
the label that was the best guess most often. The record has the raw guesses next to the decision.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from edge.artifacts import FrameResult, Guess, LabelDecision
from edge.config import DecisionSettings, OutputKind
from edge.errors import DeviceError

if TYPE_CHECKING:
    from numpy.typing import NDArray


# Probabilities sum to one within this, also after INT8 and FP16; logits do so by chance only.
_TOLERANCE = 1e-3


def output_kind(asked: OutputKind | None, info: Mapping[str, Any]) -> OutputKind | None:
    """Return the kind of an engine's outputs: logits or probabilities.

    Args:
        asked: ``output`` of the profile.
        info: of the engine's manifest; those of earlier versions say nothing.

    Returns:
        The kind, or None if each row must be examined (see :func:`probabilities`).
    """
    built: OutputKind = "probabilities" if info.get("output_kind", asked) == "probabilities" else "logits"
    return built if built == "probabilities" or asked == "logits" else None


def probabilities(values: NDArray[np.float32], kind: OutputKind | None) -> NDArray[np.float32]:
    """Convert outputs to class probabilities, float32 …×classes.

    Args:
        values: finite outputs, float32 …×classes.
        kind: logits get a softmax, probabilities stay. With None, a row that is never negative and sums to
            one is taken as probabilities, so that a Softmax that was not found in the graph is not applied twice.
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
    """Finds the ``topk`` most probable classes of an output, with their names and probabilities, best first."""

    def __init__(self, names: Sequence[str], *, topk: int, kind: OutputKind | None = None) -> None:
        self._names = names
        self._topk = topk
        self._kind = kind

    def shares(self, output: NDArray[np.float32], *, where: str) -> NDArray[np.float32]:
        """Return the class probabilities of one image's output, float32.

        Raises:
            DeviceError: The output holds NaN or infinity.
        """
        if not np.isfinite(output).all():
            raise DeviceError(
                f"the engine's output contains NaN or infinity for {where}",
                hint="the engine overflows: build with --precision fp32 to check if the model itself does, too",
            )
        return probabilities(output, self._kind)

    def guesses(self, output: NDArray[np.float32], shares: NDArray[np.float32]) -> list[Guess]:
        """Return the best classes of one image; a class without a name is called by its number."""
        # Not by the shares: of large logits, most of them are 0.
        top = _largest(output, self._topk)
        return [Guess(int(i), self.label(int(i)), float(shares[i])) for i in top]

    def label(self, index: int) -> str:
        """Return the name of a class."""
        return self._names[index] if index < len(self._names) else f"class {index}"


def _largest(values: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Return the positions of the largest values, largest first, and of equal ones the first one first."""
    negated = -values
    if count >= len(negated):
        return negated.argsort(kind="stable")
    # Sorting everything takes three times as long.
    parted = negated.copy()
    parted.partition(count - 1)
    found: NDArray[np.intp] = (negated <= parted[count - 1]).nonzero()[0]
    return found[negated[found].argsort(kind="stable")[:count]]


UNKNOWN = "unknown"


class _Smoother(Protocol):
    def __call__(self, shares: NDArray[np.float32], t_s: float) -> tuple[int, float]: ...


class Decider:
    """Decides the label, for each camera separately. ``t_s`` must not decrease in the calls for one camera."""

    def __init__(self, settings: DecisionSettings, classifier: Classifier) -> None:
        self._settings = settings
        self._classifier = classifier
        self._cameras: dict[str | None, _Smoother] = {}

    @property
    def is_needed(self) -> bool:
        """True if a decision can differ from the best guess."""
        return self._settings.smoothing != "none" or self._settings.min_confidence > 0

    def __call__(self, shares: NDArray[np.float32], *, camera: str | None, t_s: float) -> LabelDecision:
        """Return the decision after one more frame.

        Args:
            shares: Softmax shares of all classes.
            t_s: capture time of the frame in seconds, on any monotonic clock.
        """
        smoother = self._cameras.get(camera)
        if smoother is None:
            kinds: dict[str, Callable[[float], _Smoother]] = {
                "none": _Newest,
                "exponential": _Exponential,
                "majority": _Majority,
            }
            smoother = self._cameras[camera] = kinds[self._settings.smoothing](self._settings.window_s)
        index, confidence = smoother(shares, t_s)
        if confidence < self._settings.min_confidence:
            return LabelDecision(index=None, label=UNKNOWN, confidence=confidence)
        return LabelDecision(index=index, label=self._classifier.label(index), confidence=confidence)


class _Newest:
    """Decides on the best guess of the newest frame."""

    def __init__(self, window_s: float) -> None:
        del window_s

    def __call__(self, shares: NDArray[np.float32], t_s: float) -> tuple[int, float]:
        del t_s
        best = int(shares.argmax())
        return best, float(shares[best])


class _Exponential:
    """Decides by the exponential moving average of the probabilities: a frame ``window_s`` old has the weight 1/e."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._mean: NDArray[np.float32] | None = None
        self._t_s = 0.0

    def __call__(self, shares: NDArray[np.float32], t_s: float) -> tuple[int, float]:
        if self._mean is None:
            self._mean = shares.astype(np.float32, copy=True)
        else:
            kept = float(np.exp(-max(t_s - self._t_s, 0.0) / self._window_s))
            # Frames of the same moment weigh the same: the newest one is never ignored.
            kept = min(kept, 0.999)
            self._mean *= np.float32(kept)
            self._mean += np.float32(1.0 - kept) * shares
        self._t_s = t_s
        best = int(self._mean.argmax())
        return best, float(self._mean[best])


class _Majority:
    """Decides on the most frequent best guess within ``window_s``; of equally frequent ones, on the newest.

    The confidence is the mean probability of that label in its frames, times its share of the frames.
    """

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._votes: deque[tuple[float, int, float]] = deque(maxlen=1024)

    def __call__(self, shares: NDArray[np.float32], t_s: float) -> tuple[int, float]:
        best = int(shares.argmax())
        self._votes.append((t_s, best, float(shares[best])))
        while self._votes[0][0] < t_s - self._window_s:
            self._votes.popleft()
        counts: dict[int, tuple[int, float]] = {}
        # From the newest on: a later one must have more votes, not as many.
        for _t_s, index, share in reversed(self._votes):
            count, total = counts.get(index, (0, 0.0))
            counts[index] = (count + 1, total + share)
        winner = max(counts, key=lambda index: counts[index][0])
        count, total = counts[winner]
        return winner, total / count * count / len(self._votes)


def seen_label(result: FrameResult) -> tuple[int | None, str, float]:
    """Return index, label and confidence of the decision, or of the best guess without a decision."""
    if result.decision is not None:
        return result.decision.index, result.decision.label, result.decision.confidence
    best = result.guesses[0] if result.guesses else None
    return (None, UNKNOWN, 0.0) if best is None else (best.index, best.label, best.confidence)

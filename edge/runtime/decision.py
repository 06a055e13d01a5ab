"""From guesses to a decision: smoothed over time, and ``unknown`` where the network is not sure enough.

A network that sees one object in a video gives another label now and then. Smoothing looks at the last moments of each
camera: ``exponential`` averages the softmax shares of all classes, the newer ones with more weight; ``majority`` takes
the label that was the best guess most often. The raw guesses stay in the record beside the decision.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import numpy as np

from edge.artifacts import LabelDecision
from edge.config import DecisionSettings
from edge.runtime.classifier import Classifier

if TYPE_CHECKING:
    from numpy.typing import NDArray

UNKNOWN = "unknown"


class _Smoother(Protocol):
    def __call__(self, shares: NDArray[np.float32], t_s: float) -> tuple[int, float]: ...


class Decider:
    """Decides what is seen, for each camera by itself. ``t_s`` of successive calls of one camera must not go back."""

    def __init__(self, settings: DecisionSettings, classifier: Classifier) -> None:
        self._settings = settings
        self._classifier = classifier
        self._cameras: dict[str | None, _Smoother] = {}

    @property
    def is_needed(self) -> bool:
        """True when a decision can be anything else than the best guess."""
        return self._settings.smoothing != "none" or self._settings.min_confidence > 0

    def __call__(self, shares: NDArray[np.float32], *, camera: str | None, t_s: float) -> LabelDecision:
        """The decision after one more frame.

        Args:
            shares: Softmax shares of all classes.
            t_s: When the frame was captured, on any clock that does not go back.
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
    """The best guess of the newest frame."""

    def __init__(self, window_s: float) -> None:
        del window_s

    def __call__(self, shares: NDArray[np.float32], t_s: float) -> tuple[int, float]:
        del t_s
        best = int(shares.argmax())
        return best, float(shares[best])


class _Exponential:
    """Exponential moving average of the shares: a frame that is ``window_s`` old weighs 1/e of the newest one."""

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
    """The label that was the best guess most often within ``window_s``; of equals, the one that was seen last.

    The confidence is the mean share of that label in the frames that voted for it, times its share of the votes.
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

"""Try the usual preprocessings of image classifiers on some pictures, to find the one that a model was trained with.

The preprocessing of a model that came without papers is one of a few. Each is tried on the same pictures, and the
answers are compared picture by picture: with labels by the log-probability of the true class, without by how much the
answers tell (see :func:`information`). A guess is given up only for one that is significantly better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec
import numpy as np

from edge.backends import Session
from edge.config import InputConfig, OutputKind, PreprocessConfig
from edge.events import Listener, Progress, ignore_events
from edge.model import Preprocessor
from edge.runtime import probabilities

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Two-sided 99 % of the normal distribution: with a dozen candidates, 95 % would find a difference too often.
_Z = 2.576
_SMALLEST = 1e-7
# The share of the shorter side that torchvision's and most of timm's networks see.
USUAL_CROP = 0.875

NORMALIZATIONS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "torchvision": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    "Inception (-1..1)": ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
    "EfficientNet-Lite": ((127.0, 127.0, 127.0), (128.0, 128.0, 128.0)),
    "0..1": ((0.0, 0.0, 0.0), (255.0, 255.0, 255.0)),
    "0..255": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "Caffe (mean, no std)": ((123.68, 116.779, 103.939), (1.0, 1.0, 1.0)),
}


class PreprocessCandidate(msgspec.Struct, frozen=True):
    """A preprocessing with a name."""

    name: str
    preprocess: PreprocessConfig


class TrialRow(msgspec.Struct, frozen=True, kw_only=True):
    """Result of a candidate: ``top1`` in percent where labels are known, ``score`` the higher the better.

    ``difference`` is this minus the best, and ``is_worse`` whether that is significant (99 %).
    """

    name: str
    preprocess: PreprocessConfig
    top1: float | None
    score: float
    difference: float
    is_worse: bool


class TrialResult(msgspec.Struct, frozen=True, kw_only=True):
    """All candidates of a trial, and which one to take: the first that is not significantly worse than the best."""

    rows: list[TrialRow]
    chosen: int
    pictures: int
    labelled: bool

    @property
    def is_decided(self) -> bool:
        """True if every other candidate is significantly worse."""
        return all(row.is_worse for at, row in enumerate(self.rows) if at != self.chosen)


def normalizations(base: PreprocessConfig) -> list[PreprocessCandidate]:
    """The usual normalizations in the color order of ``base``, which comes first."""
    found = [PreprocessCandidate(f"the guess, {base.color.upper()}", base)]
    step = -1 if base.color == "bgr" else 1
    for name, (mean, std) in NORMALIZATIONS.items():
        spec = msgspec.structs.replace(base, mean=mean[::step], std=std[::step])
        if spec == base:
            found[0] = PreprocessCandidate(f"{name}, {base.color.upper()}", base)
        else:
            found.append(PreprocessCandidate(f"{name}, {base.color.upper()}", spec))
    return found


def bgr(base: PreprocessConfig) -> list[PreprocessCandidate]:
    """``base``, and the same in BGR."""
    swapped = msgspec.structs.replace(base, color="bgr", mean=base.mean[::-1], std=base.std[::-1])
    return [PreprocessCandidate("RGB", base), PreprocessCandidate("BGR", swapped)]


def regions(base: PreprocessConfig, target: InputConfig) -> list[PreprocessCandidate]:
    """The usual ways from a picture to the input's size, ``base`` first."""
    side = max(target.height, target.width)
    usual = round(side / USUAL_CROP)
    found: list[PreprocessCandidate] = []
    for interpolation in (base.interpolation, "bicubic" if base.interpolation == "bilinear" else "bilinear"):
        for name, fit, resize in (
            (f"crop of {base.resize}", "crop", base.resize),
            (f"crop of {usual}", "crop", usual),
            (f"crop of {side}", "crop", side),
            ("squash", "squash", base.resize),
        ):
            spec = msgspec.structs.replace(base, fit=fit, resize=resize, interpolation=interpolation)
            if all(spec != other.preprocess for other in found):
                found.append(PreprocessCandidate(f"{name}, {interpolation}", spec))
    return found


class AnswerFunction(Protocol):
    """Class probabilities, float32 n×classes, of a batch float32 n×3×h×w."""

    def __call__(self, batch: NDArray[np.float32], /) -> NDArray[np.float32]:
        """Run the network."""


def answers_of(session: Session, *, kind: OutputKind, batch: int | None) -> AnswerFunction:
    """Make a function of an open engine; ``batch`` is the only size that it takes, None for any."""

    def answers(inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        size = batch or len(inputs)
        found = []
        for start in range(0, len(inputs), size):
            part = inputs[start : start + size]
            padded = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
            found.append(probabilities(session.infer(padded).logits[: len(part)], kind))
        return np.concatenate(found)

    return answers


def compare(
    candidates: Sequence[PreprocessCandidate],
    pictures: Sequence[Callable[[], NDArray[np.uint8]]],
    answers: AnswerFunction,
    target: InputConfig,
    *,
    truth: Sequence[int] | None = None,
    listen: Listener = ignore_events,
) -> TrialResult:
    """Run every candidate on the same pictures and compare.

    Args:
        candidates: the first is kept where nothing is significantly better.
        pictures: functions that decode a picture to uint8 H×W×3 BGR, each called once.
        answers: the network.
        target: the network's height and width.
        truth: class index of each picture, where known.
        listen: gets the progress.
    """
    workers = [Preprocessor(candidate.preprocess, target) for candidate in candidates]
    found = []
    for done, picture in enumerate(pictures, start=1):
        pixels = picture()
        found.append(answers(np.stack([worker(pixels) for worker in workers])))
        listen(Progress("try", done, len(pictures)))
    every = np.stack(found, axis=1)  # candidates × pictures × classes
    if truth is None:
        scores = np.stack([information(one) for one in every])
        top1: list[float | None] = [None] * len(candidates)
    else:
        picked = np.take_along_axis(every, np.asarray(truth).reshape(1, -1, 1), axis=2)[:, :, 0]
        scores = np.log(np.maximum(picked, _SMALLEST))
        top1 = [float(100 * np.mean(one.argmax(axis=1) == np.asarray(truth))) for one in every]
    best = int(scores.mean(axis=1).argmax())
    rows = []
    for candidate, score, share in zip(candidates, scores, top1, strict=True):
        difference = score - scores[best]
        error = float(difference.std(ddof=1)) / math.sqrt(len(difference)) if len(difference) > 1 else math.inf
        mean = float(difference.mean())
        rows.append(
            TrialRow(
                name=candidate.name, preprocess=candidate.preprocess, top1=share, score=float(score.mean()),
                difference=mean, is_worse=mean < -_Z * error,
            )
        )  # fmt: skip
    chosen = next(at for at, row in enumerate(rows) if not row.is_worse)
    return TrialResult(rows=rows, chosen=chosen, pictures=len(found), labelled=truth is not None)


def information(probabilities: NDArray[np.float32]) -> NDArray[np.float64]:
    """Measure how much each answer tells, in nats: its divergence from the mean of all answers.

    The mean over pictures is the mutual information of picture and class: high where single answers are sure
    (low entropy) and different pictures get different answers. Entropy alone would prefer a network that is sure of the
    same class always, as with pixel values that are far too large.
    """
    p = np.maximum(probabilities.astype(np.float64), 1e-12)
    mean = p.mean(axis=0)
    result: NDArray[np.float64] = (p * (np.log(p) - np.log(mean))).sum(axis=1)
    return result

"""Try the usual preprocessings of image classifiers on some images, to find the one that a model was trained with.

A model without documentation usually has one of a few preprocessings. Each is tried on the same images, and the outputs
are compared image by image: with labels by the log-probability of the true class, without labels by the information in
the outputs (see :func:`information`). The first candidate is replaced only by a significantly better one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec
import numpy as np

from edge.backends import Session
from edge.config import InputConfig, OutputKind, PreprocessConfig
from edge.errors import ModelError
from edge.events import Listener, Progress, ignore_events
from edge.model import Preprocessor
from edge.runtime import probabilities
from edge.stats import best_assignment

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Two-sided 99 % of the normal distribution: with a dozen candidates, 95 % would find a difference too often.
_Z = 2.576
_SMALLEST = 1e-7
# Pictures of each class that it takes to find out which output is that class.
_PER_CLASS = 4
# The share of the shorter side that most networks of torchvision and timm see.
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
    """Result of one candidate: ``top1`` in percent if labels are known, and ``score``, where higher is better.

    ``difference`` is this score minus the best one. ``is_worse`` is true if it, or the difference in top-1, is
    significant (99 %).
    """

    name: str
    preprocess: PreprocessConfig
    top1: float | None
    score: float
    difference: float
    is_worse: bool


class TrialResult(msgspec.Struct, frozen=True, kw_only=True):
    """All candidates of a trial, and which one to take: the first that is not significantly worse than the best.

    ``order`` is the output of each class of the labels, where that was asked for and the answers tell it.
    ``is_chance``: no candidate's top-1 is better than chance, so no candidate counts as worse than another.
    """

    rows: list[TrialRow]
    chosen: int
    pictures: int
    labelled: bool
    order: list[int] | None = None
    is_chance: bool = False

    @property
    def alike(self) -> list[str]:
        """Names of the other candidates that are not significantly worse."""
        return [row.name for at, row in enumerate(self.rows) if at != self.chosen and not row.is_worse]


def normalizations(base: PreprocessConfig) -> list[PreprocessCandidate]:
    """Return the usual normalizations in the color order of ``base``, which comes first."""
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
    """Return ``base``, and the same in BGR."""
    swapped = msgspec.structs.replace(base, color="bgr", mean=base.mean[::-1], std=base.std[::-1])
    return [PreprocessCandidate("RGB", base), PreprocessCandidate("BGR", swapped)]


def regions(base: PreprocessConfig, target: InputConfig) -> list[PreprocessCandidate]:
    """Return the usual ways to fit an image to the input's size, ``base`` first."""
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
    """Make an answer function from an open engine; ``batch`` is its only batch size, None for any."""

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
    is_order_known: bool = True,
    listen: Listener = ignore_events,
) -> TrialResult:
    """Run every candidate on the same images and compare the outputs.

    Args:
        candidates: the first is chosen unless another one is significantly better.
        pictures: functions that decode an image to uint8 H×W×3 BGR, each called once.
        answers: the network.
        target: the network's height and width.
        truth: class index of each image, where known.
        is_order_known: the indices of ``truth`` are the network's outputs. If not, they only say which images are of
            one class: a wrong order would make another preprocessing look best.
        listen: receives the progress.

    Raises:
        ModelError: the answers have NaN or infinity with every candidate.
    """
    workers = [Preprocessor(candidate.preprocess, target) for candidate in candidates]
    found = []
    for done, picture in enumerate(pictures, start=1):
        pixels = picture()
        found.append(answers(np.stack([worker(pixels) for worker in workers])))
        listen(Progress("try", done, len(pictures)))
    every = np.stack(found, axis=1)  # candidates × pictures × classes
    is_finite = np.isfinite(every)
    if not is_finite.all(axis=(1, 2)).any():
        raise ModelError("the network answers NaN with every preprocessing", hint="export the model again")
    every = np.where(is_finite, every, np.float32(0))
    if truth is not None and not is_order_known and not _is_order_visible(truth):
        truth = None
    hits: NDArray[np.float64] | None = None
    is_chance = False
    if truth is None:
        scores = np.stack([information(one) for one in every])
    else:
        labels = [np.asarray(truth) if is_order_known else _in_fitting_order(one, truth) for one in every]
        picked = np.stack([one[np.arange(len(one)), label] for one, label in zip(every, labels, strict=True)])
        scores = np.log(np.maximum(picked, _SMALLEST))
        hits = np.stack([one.argmax(axis=1) == label for one, label in zip(every, labels, strict=True)]).astype(float)
        is_chance = len(set(truth)) > 1 and not any(
            _is_better_than_chance(one, label) for one, label in zip(every, labels, strict=True)
        )
    best = int(scores.mean(axis=1).argmax())
    rows = []
    for at, (candidate, score) in enumerate(zip(candidates, scores, strict=True)):
        is_worse = _is_below(score - scores[best]) or (hits is not None and _is_below(hits[at] - hits[best]))
        rows.append(
            TrialRow(
                name=candidate.name, preprocess=candidate.preprocess,
                top1=None if hits is None else float(100 * hits[at].mean()), score=float(score.mean()),
                difference=float((score - scores[best]).mean()), is_worse=is_worse and not is_chance,
            )
        )  # fmt: skip
    chosen = next(at for at, row in enumerate(rows) if not row.is_worse)
    order = None if truth is None or is_order_known else _order(every[chosen], truth)
    return TrialResult(
        rows=rows, chosen=chosen, pictures=len(found), labelled=truth is not None, order=order,
        is_chance=is_chance,
    )  # fmt: skip


def _is_below(differences: NDArray[np.float64]) -> bool:
    """Tell whether paired differences are significantly below 0."""
    if len(differences) < 2:
        return False
    return bool(differences.mean() < -_Z * differences.std(ddof=1) / math.sqrt(len(differences)))


def _is_better_than_chance(answers: NDArray[np.float32], truth: NDArray[np.int64]) -> bool:
    """Compare top-1 with that of the same answers given to images at random."""
    guesses = answers.argmax(axis=1)
    shares = Counter(guesses.tolist()), Counter(truth.tolist())
    chance = sum(shares[0][label] * n for label, n in shares[1].items()) / len(truth) ** 2
    error = math.sqrt(max(chance * (1 - chance), 1e-9) / len(truth))
    return bool(np.mean(guesses == truth) >= chance + 2 * _Z * error)


def _is_order_visible(truth: Sequence[int]) -> bool:
    counts = Counter(truth)
    return len(counts) > 1 and min(counts.values()) >= _PER_CLASS


def _halves(truth: Sequence[int]) -> tuple[list[int], list[int]]:
    """Positions of the images, each class spread over both halves."""
    turn: Counter[int] = Counter()
    halves: tuple[list[int], list[int]] = ([], [])
    for at, label in enumerate(truth):
        halves[turn[label] % 2].append(at)
        turn[label] += 1
    return halves


def _fit(answers: NDArray[np.float32], truth: Sequence[int], pictures: Sequence[int]) -> dict[int, int]:
    """The output for each class of ``truth`` that makes the answers of ``pictures`` most likely."""
    seen = sorted(set(truth))
    logs = np.log(np.maximum(answers, _SMALLEST))
    score = [np.sum([logs[at] for at in pictures if truth[at] == label], axis=0).tolist() for label in seen]
    return dict(zip(seen, best_assignment(score), strict=True))


def _in_fitting_order(answers: NDArray[np.float32], truth: Sequence[int]) -> NDArray[np.int64]:
    """The true output of each image, in the order that the other half of the images fits."""
    result = np.zeros(len(truth), np.int64)
    halves = _halves(truth)
    for found_on, used_on in (halves, halves[::-1]):
        order = _fit(answers, truth, found_on)
        result[used_on] = [order[truth[at]] for at in used_on]
    return result


def _order(answers: NDArray[np.float32], truth: Sequence[int]) -> list[int] | None:
    """The output of each class; None where some class has no image, or the answers do not tell."""
    classes = answers.shape[1]
    if len(set(truth)) != classes or not _is_better_than_chance(answers, _in_fitting_order(answers, truth)):
        return None
    order = _fit(answers, truth, range(len(truth)))
    return [order[label] for label in range(classes)]


def information(probabilities: NDArray[np.float32]) -> NDArray[np.float64]:
    """Measure the information in each answer, in nats: its divergence from the mean of all answers.

    The mean over images is the mutual information of image and class. It is high if single answers are confident (low
    entropy) and different images get different answers. Entropy alone would prefer a network that always predicts the
    same class, as happens with pixel values that are far too large.
    """
    p = np.maximum(probabilities.astype(np.float64), 1e-12)
    mean = p.mean(axis=0)
    result: NDArray[np.float64] = (p * (np.log(p) - np.log(mean))).sum(axis=1)
    return result

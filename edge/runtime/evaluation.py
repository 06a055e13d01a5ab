"""The operation ``eval``: labelled pictures -> top-1, top-5, and agreement with the FP32 network, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from edge.backends import Session
from edge.errors import DataError, DeviceError
from edge.events import Listener, Progress, ignore_events
from edge.media import Picture, decode, labels
from edge.model import Preprocessor
from edge.stats import Interval, paired_difference, sqnr_db, top, wilson

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Scores(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Shares in percent, each with its 95 % interval; those that need labels are None without them.

    ``agreement`` is the share of pictures with the same top-1 as ``against``; ``top1_difference`` is paired: this minus
    the other, in points. ``logit_sqnr_db`` compares all logits: signal over difference, in decibels.
    """

    precision: str
    n: int
    top1: float | None = None
    top5: float | None = None
    top1_interval: tuple[float, float] | None = None
    top5_interval: tuple[float, float] | None = None
    against: str | None = None
    against_top1: float | None = None
    against_top5: float | None = None
    agreement: float | None = None
    agreement_interval: tuple[float, float] | None = None
    top1_difference: float | None = None
    top1_difference_interval: tuple[float, float] | None = None
    logit_sqnr_db: float | None = None
    warning: str | None = None


def logits(
    pictures: Sequence[Picture],
    session: Session,
    preprocessor: Preprocessor,
    *,
    batch: int = 1,
    stage: str = "eval",
    listen: Listener = ignore_events,
    should_stop: Callable[[], bool] = lambda: False,
) -> NDArray[np.float32] | None:
    """Logits of every picture, float32 n×classes; None when ``should_stop`` ended it early.

    ``batch`` is the smallest that the engine takes; a smaller rest is padded with its last picture.

    Raises:
        DataError: a picture cannot be read or decoded: a share of fewer pictures would be another figure.
        DeviceError: the backend failed, or gave NaN or infinity.
    """
    found = []
    for start in range(0, len(pictures), batch):
        if should_stop():
            return None
        group = [pictures[i] for i in range(start, min(start + batch, len(pictures)))]
        inputs = np.stack([preprocessor(decode(p.read_checked(), name=p.where)) for p in group])
        if len(group) < batch:
            inputs = np.concatenate([inputs, np.repeat(inputs[-1:], batch - len(group), axis=0)])
        answer = session.infer(inputs).logits[: len(group)]
        if not np.isfinite(answer).all():
            names = group[0].where if len(group) == 1 else f"{group[0].where} … {group[-1].where}"
            raise DeviceError(f"the {stage} engine's answer holds NaN or infinity for {names}")
        found.append(answer)
        listen(Progress(stage, start + len(group), len(pictures)))
    if not found:
        raise DataError("no pictures to evaluate with")
    every: NDArray[np.float32] = np.concatenate(found)
    return every


def score(
    own: NDArray[np.float32],
    truth: Sequence[int] | None,
    *,
    precision: str,
    reference: NDArray[np.float32] | None = None,
    against: str | None = None,
) -> Scores:
    """Score logits.

    Args:
        own: logits, float32 n×classes.
        truth: true class of each picture; None leaves out top-1 and top-5.
        precision: of the engine.
        reference: logits of the same pictures to compare with, float32 n×classes.
        against: what the reference is called.
    """
    n = len(own)
    scores = Scores(precision=precision, n=n)
    if reference is not None:
        same = int((own.argmax(axis=1) == reference.argmax(axis=1)).sum())
        scores = msgspec.structs.replace(
            scores,
            against=against,
            agreement=_percent(wilson(same, n))[0],
            agreement_interval=_percent(wilson(same, n))[1],
            logit_sqnr_db=sqnr_db(own, reference),
        )
    if truth is None:
        return scores
    wanted = np.asarray(truth)
    hits = _hits(own, wanted)
    scores = msgspec.structs.replace(
        scores,
        top1=_percent(wilson(int(hits[0].sum()), n))[0],
        top1_interval=_percent(wilson(int(hits[0].sum()), n))[1],
        top5=_percent(wilson(int(hits[1].sum()), n))[0],
        top5_interval=_percent(wilson(int(hits[1].sum()), n))[1],
        warning=labels.shape_of_errors(own.argmax(axis=1).tolist(), list(truth), classes=own.shape[1]),
    )
    if reference is None:
        return scores
    other = _hits(reference, wanted)
    difference = paired_difference(int((hits[0] & ~other[0]).sum()), int((other[0] & ~hits[0]).sum()), n)
    return msgspec.structs.replace(
        scores,
        against_top1=100.0 * float(other[0].mean()),
        against_top5=100.0 * float(other[1].mean()),
        top1_difference=_percent(difference)[0],
        top1_difference_interval=_percent(difference)[1],
    )


def _hits(values: NDArray[np.float32], wanted: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Per picture: is the truth the first, is it among the first five. Ties go to the lower class index."""
    best = top(values, 5)
    return best[:, 0] == wanted, (best == wanted[:, None]).any(axis=1)


def _percent(interval: Interval) -> tuple[float, tuple[float, float]]:
    return 100.0 * interval.value, (100.0 * interval.low, 100.0 * interval.high)

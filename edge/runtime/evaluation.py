"""Evaluate an engine on images: top-1, top-5, agreement and logit SQNR against the FP32 network, with intervals.

The outputs of ONNX Runtime's INT8 engine depend on its integer kernels: they quantize more tensors than TensorRT, and
they saturate on x86 processors without VNNI. On such a host the *TensorRT form* of the table is evaluated in float32
arithmetic (:mod:`edge.calibration.scoring`), and the engine's own outputs are reported if they differ by more than 1
dB.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from edge.backends import Session
from edge.calibration import MeasuredAccuracy, PictureInputs, Scorer, compare, tensorrt_form
from edge.config import Profile
from edge.errors import DataError, DeviceError
from edge.events import Listener, Progress, ignore_events
from edge.media import Picture, decode, labels
from edge.model import Preprocessor, onnx_model
from edge.quantization import Table
from edge.stats import Interval, paired_difference, sqnr_db, top, wilson

if TYPE_CHECKING:
    from numpy.typing import NDArray

# From this difference of SQNR on, in dB, the answers of the host's integer kernels are shown as well.
SHOWN_DIFFERENCE_DB = 1.0
HOST_CAUSE = (
    "ONNX Runtime's integer kernels quantize more tensors than TensorRT and, on x86 processors without VNNI, saturate"
)


class HostForm(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Results of the host's own INT8 engine if they differ from those of a device, with the reason."""

    logit_sqnr_db: float | None
    agreement: float
    top1: float | None = None
    cause: str = HOST_CAUSE


class Scores(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Shares in percent, each with its 95 % interval.

    ``agreement`` is the share of images with the same top-1 as ``against``; ``top1_difference`` is the paired
    difference from it in points. ``logit_sqnr_db`` compares all logits in decibels and is absent if they are equal.
    Top-1 and top-5 are absent without labels. ``judged`` names the source of the outputs: the engine, or the TensorRT
    form of the table; ``float_layers`` of the ``weighted_layers`` are not quantized there and are scored in FP32.
    ``host_form`` is present if the host's engine differs by more than 1 dB.
    """

    precision: str
    n: int
    judged: str = "engine"
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
    float_layers: int | None = None
    weighted_layers: int | None = None
    host_form: HostForm | None = None
    warning: str | None = None

    def measured(self) -> MeasuredAccuracy:
        """Return the figures that the limits apply to; ``against`` must be set."""
        drop = self.top1_difference_interval
        return MeasuredAccuracy(
            n=self.n,
            sqnr_db=self.logit_sqnr_db,
            agreement=self.agreement or 0.0,
            agreement_interval=self.agreement_interval,
            top1=self.top1,
            top1_interval=self.top1_interval,
            top1_drop=None if self.top1_difference is None else -self.top1_difference,
            top1_drop_interval=None if drop is None else (-drop[1], -drop[0]),
        )


def evaluate(
    profile: Profile,
    pictures: Sequence[Picture],
    *,
    precision: str,
    session: Session | None,
    table: Table | None = None,
    with_reference: bool,
    quantized: Profile | None = None,
    threads: int | None = None,
    listen: Listener = ignore_events,
    should_stop: Callable[[], bool] = lambda: False,
) -> Scores | None:
    """Evaluate an engine, the TensorRT form of a table, or both.

    Args:
        profile: Model, preprocessing, batch.
        pictures: images; either all have a label, or none.
        precision: Of the engine.
        session: The open engine; None where this machine cannot run it.
        table: if given, its TensorRT form is evaluated, and ``session`` is only compared with it.
        with_reference: Run the FP32 network, too: the user's own ONNX.
        quantized: The profile with the prepared model that ``table`` is for, where that is not the user's own.
        threads: Of the CPU.
        listen: Gets progress events.
        should_stop: checked between images.

    Returns:
        The scores; None when stopped.

    Raises:
        DataError: An image cannot be read or decoded.
        DeviceError: A network failed, or gave NaN or infinity.
        ModelError: The model cannot be used.
    """
    truth = [picture.label for picture in pictures if picture.label is not None] or None
    names = labels.load_names(Path(profile.labels)) if truth is not None else None
    preprocessor = Preprocessor(profile.preprocess, profile.input)
    own = None
    if session is not None:
        own = logits(
            pictures, session, preprocessor,
            batch=profile.input.batch.min, stage=precision, listen=listen, should_stop=should_stop,
        )  # fmt: skip
        if own is None:
            return None
    if not with_reference and table is None and own is not None:
        return score(own, truth, precision=precision, names=names)
    model = onnx_model.load(Path(profile.model), profile.outputs)
    user = onnx_model.read(model.path, profile.outputs)
    inputs = PictureInputs(pictures, preprocessor)
    scorer = Scorer(user, inputs, fixed_batch=model.fixed_batch, threads=threads, should_stop=should_stop)
    try:
        inputs.prepare(threads=threads, listen=listen, should_stop=should_stop)
        reference = scorer.logits(user, optimize=True, stage="fp32", listen=listen)
        if table is None:
            if own is None:
                return None
            return score(own, truth, precision=precision, reference=reference, against="fp32", names=names)
        form = tensorrt_form(quantized or profile, table)
        judged = scorer.logits(form.model, stage="TensorRT form", listen=listen)
    except CancelledError:
        return None
    if not np.isfinite(judged).all():
        raise DeviceError("the output of the INT8 network contains NaN or infinity", hint="edge table check")
    found = msgspec.structs.replace(
        score(judged, truth, precision=precision, reference=reference, against="fp32", names=names),
        judged="TensorRT form, float32 arithmetic",
        float_layers=form.weighted - form.quantized,
        weighted_layers=form.weighted,
    )
    return found if own is None else _with_host_form(found, own, reference, truth)


def _with_host_form(
    found: Scores, own: NDArray[np.float32], reference: NDArray[np.float32], truth: Sequence[int] | None
) -> Scores:
    host = compare(own, reference)
    equal_db = 200.0
    judged_db = equal_db if found.logit_sqnr_db is None else found.logit_sqnr_db
    if abs(host.db - judged_db) <= SHOWN_DIFFERENCE_DB:
        return found
    top1 = None if truth is None else 100.0 * float((own.argmax(axis=1) == np.asarray(truth)).mean())
    form = HostForm(logit_sqnr_db=host.sqnr_db, agreement=100.0 * host.agreement, top1=top1)
    return msgspec.structs.replace(found, host_form=form)


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
    """Compute the logits of every image, float32 n×classes; return None if ``should_stop`` ended it early.

    ``batch`` is the engine's smallest batch; a smaller last batch is padded with its last image.

    Raises:
        DataError: an image cannot be read or decoded; the result on fewer images would not be comparable.
        DeviceError: the backend failed, or gave NaN or infinity.
    """
    found = []
    for start in range(0, len(pictures), batch):
        if should_stop():
            return None
        group = [pictures[i] for i in range(start, min(start + batch, len(pictures)))]
        exif = preprocessor.spec.exif
        most = preprocessor.spec.max_megapixels
        inputs = np.stack(
            [preprocessor(decode(p.read_checked(), name=p.where, exif=exif, max_megapixels=most)) for p in group]
        )
        if len(group) < batch:
            inputs = np.concatenate([inputs, np.repeat(inputs[-1:], batch - len(group), axis=0)])
        answer = session.infer(inputs).logits[: len(group)]
        if not np.isfinite(answer).all():
            names = group[0].where if len(group) == 1 else f"{group[0].where} … {group[-1].where}"
            raise DeviceError(f"the {stage} engine's output contains NaN or infinity for {names}")
        found.append(answer)
        listen(Progress(stage, start + len(group), len(pictures)))
    if not found:
        raise DataError("no images to evaluate with")
    every: NDArray[np.float32] = np.concatenate(found)
    return every


def score(
    own: NDArray[np.float32],
    truth: Sequence[int] | None,
    *,
    precision: str,
    reference: NDArray[np.float32] | None = None,
    against: str | None = None,
    names: Sequence[str] | None = None,
) -> Scores:
    """Score ``own`` logits (n×classes).

    Args:
        own: Logits, n×classes.
        truth: True class of each image; None without labels.
        precision: What gave the logits.
        reference: Logits of another network for the same images.
        against: Name of that network.
        names: Class names, for warnings.
    """
    n = len(own)
    scores = Scores(precision=precision, n=n)
    hits = None if truth is None else _hits(own, np.asarray(truth))
    if truth is not None and hits is not None:
        top1, top5 = (_percent(wilson(int(hit.sum()), n)) for hit in hits)
        scores = msgspec.structs.replace(
            scores,
            top1=top1[0],
            top1_interval=top1[1],
            top5=top5[0],
            top5_interval=top5[1],
            warning=labels.shape_of_errors(own.argmax(axis=1).tolist(), list(truth), classes=own.shape[1], names=names),
        )
    if reference is None:
        return scores
    same = int((own.argmax(axis=1) == reference.argmax(axis=1)).sum())
    scores = msgspec.structs.replace(
        scores,
        against=against,
        agreement=_percent(wilson(same, n))[0],
        agreement_interval=_percent(wilson(same, n))[1],
        logit_sqnr_db=sqnr_db(own, reference),
    )
    if truth is None or hits is None:
        return scores
    other = _hits(reference, np.asarray(truth))
    difference = paired_difference(int((hits[0] & ~other[0]).sum()), int((other[0] & ~hits[0]).sum()), n)
    return msgspec.structs.replace(
        scores,
        against_top1=100.0 * float(other[0].mean()),
        against_top5=100.0 * float(other[1].mean()),
        top1_difference=_percent(difference)[0],
        top1_difference_interval=_percent(difference)[1],
    )


def _hits(values: NDArray[np.float32], wanted: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return for each image if the true class is the first, and if it is in the first five. Ties: lower index first."""
    best = top(values, 5)
    return best[:, 0] == wanted, (best == wanted[:, None]).any(axis=1)


def _percent(interval: Interval) -> tuple[float, tuple[float, float]]:
    return 100.0 * interval.value, (100.0 * interval.low, 100.0 * interval.high)

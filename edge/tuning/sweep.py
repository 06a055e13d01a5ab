"""The calibration sweep: algorithms × number of images × seed, scored on labelled images.

Each calibration image runs through the FP32 network once, for all algorithms, sizes and seeds
(:mod:`edge.tuning.sweep_tables`). Then each *different* table is scored once on the labelled images, in the TensorRT
form with faithful arithmetic (:mod:`edge.calibration.scoring`).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edge.calibration import PictureInputs, Scorer, TableForms
from edge.config import Profile
from edge.errors import DataError
from edge.events import Listener, Note, Progress, ignore_events
from edge.media import Picture, Pictures, labels
from edge.model import Preprocessor, onnx_model
from edge.quantization import Table
from edge.stats import top
from edge.tuning.sweep_comparison import Answers
from edge.tuning.sweep_record import Exact, Record, SweepWriter
from edge.tuning.sweep_tables import ConfigurationTables, SweepSettings, SweepTables

if TYPE_CHECKING:
    from numpy.typing import NDArray


def sweep(
    profile: Profile,
    pictures: Pictures,
    labelled: Sequence[Picture],
    settings: SweepSettings,
    *,
    cache: Path,
    output: Path | None = None,
    force: bool = False,
    listen: Listener = ignore_events,
    should_stop: Callable[[], bool] = lambda: False,
) -> Record | None:
    """Calibrate with ``pictures`` in every way that ``settings`` defines, and score each table on ``labelled``.

    Args:
        profile: Model, preprocessing and batch.
        pictures: Calibration images.
        labelled: Images to score with; none of them may be a calibration image.
        settings: the configurations to try.
        cache: Folder of calibration tables and statistics.
        output: File of the record, written after every table; its stored answers are not computed again.
        force: overwrite an ``output`` from a different sweep.
        listen: receives progress and notes.
        should_stop: checked between images.

    Returns:
        The record, marked interrupted if ``should_stop`` ended it early.

    Raises:
        DataError: an image is in both sets, has no label, or cannot be used.
        UsageError: the settings do not suit the images, or ``output`` is from a different sweep (unless ``force``).
        ArtifactError: ``output`` is not the record of a sweep.
        ModelError, DeviceError, MissingDependencyError, StoreError: from the steps.
    """
    start = time.monotonic()
    threads = settings.threads or profile.run.threads or os.cpu_count() or 1
    model = onnx_model.load(Path(profile.model), profile.outputs)
    onnx_model.check_fits(model, profile)
    truth = _truth(labelled)
    if not _hashed([*pictures, *labelled], listen=listen, should_stop=should_stop):
        return None
    _check_apart(pictures, labelled)
    digest = pictures.digest()
    writer = SweepWriter(profile, model, pictures, labelled, settings, digest=digest, output=output, force=force)
    writer.open()
    work = SweepTables(profile, model, pictures, settings, threads=threads, listen=listen, should_stop=should_stop)
    found = work.make(cache, digest)
    if found is None:
        return writer.finish(None, start)
    writer.seconds |= work.seconds
    writer.configurations = [configuration for configuration, _ in found]
    at = time.monotonic()
    inputs = PictureInputs(labelled, Preprocessor(profile.preprocess, profile.input))
    proto = onnx_model.read(model.path, model.outputs)
    scorer = Scorer(proto, inputs, fixed_batch=model.fixed_batch, threads=threads, should_stop=should_stop)
    try:
        inputs.prepare(threads=threads, listen=listen, should_stop=should_stop)
        exact = _answers(scorer.reference, scorer.reference, truth)
    except CancelledError:
        return writer.finish(None, start)
    writer.exact = Exact(pictures=[picture.name for picture in labelled], truth=truth, answers=exact)
    warning = labels.shape_of_errors(exact.predicted, truth, classes=scorer.reference.shape[1])
    writer.warnings += [warning] if warning else []
    with contextlib.suppress(CancelledError):
        _score(writer, scorer, TableForms(proto), _to_score(found), truth=truth, listen=listen)
    writer.seconds["score"] = time.monotonic() - at
    tables = {item.table for item in writer.configurations}
    writer.warnings += _float_layers(answers for table, answers in writer.answers.items() if table in tables)
    return writer.finish(truth, start)


def _score(
    writer: SweepWriter,
    scorer: Scorer,
    forms: TableForms,
    tables: Mapping[str, Table],
    *,
    truth: list[int],
    listen: Listener,
) -> None:
    """Score the tables whose answers ``writer`` does not have, and save after each."""
    left = {name: table for name, table in tables.items() if name not in writer.answers}
    if len(left) < len(tables):
        listen(Note(f"{len(tables) - len(left)} of {len(tables)} tables were scored before"))
    listen(Progress("score", 0, len(left), unit="tables"))
    for done, (name, table) in enumerate(left.items(), start=1):
        form = forms.insert(table)
        logits = scorer.logits(form.model)
        difference = logits.astype(np.float64) - scorer.reference
        writer.answers[name] = _answers(logits, difference, truth, quantized=form.quantized, weighted=form.weighted)
        writer.save()
        listen(Progress("score", done, len(left), unit="tables"))


def _answers(
    logits: NDArray[np.float32],
    energy_of: NDArray[np.floating],
    truth: Sequence[int],
    *,
    quantized: int = 0,
    weighted: int = 0,
) -> Answers:
    best = top(logits, 5)
    among = (best == np.asarray(truth)[:, None]).any(axis=1)
    return Answers(
        predicted=best[:, 0].tolist(),
        top5="".join("1" if hit else "0" for hit in among),
        energy=[float(f"{value:.6e}") for value in np.square(energy_of, dtype=np.float64).sum(axis=1)],
        quantized=quantized,
        weighted=weighted,
    )


def _truth(labelled: Sequence[Picture]) -> list[int]:
    truth = [picture.label for picture in labelled if picture.label is not None]
    if not labelled:
        raise DataError("no images to score with", hint="give --eval DIR --labels labels.csv")
    if len(truth) < len(labelled):
        missing = next(picture for picture in labelled if picture.label is None)
        raise DataError(
            f"{len(labelled) - len(truth)} of {len(labelled)} evaluation images have no label ({missing.name}, …)",
            hint="--labels labels.csv",
        )
    return truth


def _hashed(pictures: Sequence[Picture], *, listen: Listener, should_stop: Callable[[], bool]) -> bool:
    """Read every image once to compute its sha256; return False if ``should_stop`` ended it early."""
    for done, picture in enumerate(pictures):
        if should_stop():
            return False
        _ = picture.sha256
        listen(Progress("hash", done + 1, len(pictures)))
    return True


def _check_apart(pictures: Pictures, labelled: Sequence[Picture]) -> None:
    calibration = {picture.sha256: picture for picture in pictures}
    both = [(picture, calibration[picture.sha256]) for picture in labelled if picture.sha256 in calibration]
    if both:
        one, other = both[0]
        raise DataError(
            f"{len(both)} of the {len(labelled)} evaluation images are also calibration images "
            f"({one.name} is {other.name}): the scores of every table would be too good",
            hint="leave them out of one of the two sets",
        )


def _to_score(found: ConfigurationTables) -> dict[str, Table]:
    """Return the different tables by digest, those of all images first: they matter most if the sweep is stopped."""
    ordered = sorted(found, key=lambda pair: (pair[0].seed or 0, -pair[0].pictures))
    return {configuration.table: table for configuration, table in ordered}


def _float_layers(answers: Iterable[Answers]) -> list[str]:
    short = [item for item in answers if item.quantized < item.weighted]
    if not short:
        return []
    least = min(short, key=lambda item: item.quantized)
    worst = f"one runs {least.quantized} of {least.weighted} weighted layers in INT8"
    return [f"{len(short)} tables leave layers in float; {worst}"]

"""The flow itself: see :mod:`edge.tuning`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from edge.config import Profile
from edge.errors import DataError
from edge.events import Listener, Note, Progress, ignore_events
from edge.media import Picture, Pictures, labels
from edge.model import onnx_model, preprocessing
from edge.quantization import Table
from edge.tuning.scorer import Answers, Inputs, Scorer
from edge.tuning.sweep_record import Exact, Record
from edge.tuning.sweep_settings import SweepSettings
from edge.tuning.sweep_tables import Calibrations, Made
from edge.tuning.sweep_writer import SweepWriter


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
    """Calibrate with ``pictures`` in every way that ``settings`` asks for, and score each on ``labelled``.

    With ``output`` what is scored is kept there after every table, and answers that are there already are not asked for
    again. When ``should_stop`` ends it early, the record is about the tables that are through, and says so; None when
    that was before the first picture was counted.

    Raises:
        DataError: a picture is in both sets, has no label, or cannot be used.
        UsageError: the settings ask for what there is not, or ``output`` is about something else (unless ``force``).
        ArtifactError: ``output`` is not a sweep's record.
        ModelError, DeviceError, MissingDependencyError, StoreError: as the words say.
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
    book = SweepWriter(profile, model, pictures, labelled, settings, digest=digest, output=output, force=force)
    book.open()
    work = Calibrations(profile, model, pictures, settings, threads=threads, listen=listen, should_stop=should_stop)
    made = work.tables(cache, digest)
    if made is None:
        return book.finish(None, start)
    found, checks = made
    book.seconds |= work.seconds
    book.batches, book.configurations = checks, [configuration for configuration, _ in found]
    at = time.monotonic()
    inputs = Inputs(labelled, preprocessing.Preprocessor(profile.preprocess, profile.input))
    examiner = Scorer(
        onnx_model.read(model.path, model.outputs), inputs, truth,
        batch=profile.input.batch.min, threads=threads, should_stop=should_stop,
    )  # fmt: skip
    try:
        exact = examiner.reference(listen=listen)
        if exact is None:
            return book.finish(None, start)
        book.exact = Exact(pictures=[picture.name for picture in labelled], truth=truth, answers=exact)
        doubt = labels.shape_of_errors(exact.predicted, truth, classes=model.classes)
        book.warnings += [doubt] if doubt else []
        wanted = _to_score(found)
        left = {name: table for name, table in wanted.items() if name not in book.answers}
        if len(left) < len(wanted):
            listen(Note(f"{len(wanted) - len(left)} of {len(wanted)} tables were scored before"))
        for name, answers in examiner.examine(left, listen=listen):
            book.answers[name] = answers
            book.save()
    finally:
        examiner.close()
    book.seconds["score"] = time.monotonic() - at
    book.warnings += _float_layers(book.answers[name] for name in wanted if name in book.answers)
    return book.finish(truth, start)


def _truth(labelled: Sequence[Picture]) -> list[int]:
    truth = [picture.label for picture in labelled if picture.label is not None]
    if not labelled:
        raise DataError("no pictures to score with", hint="--eval DIR --labels labels.csv")
    if len(truth) < len(labelled):
        missing = next(picture for picture in labelled if picture.label is None)
        raise DataError(
            f"{len(labelled) - len(truth)} of {len(labelled)} pictures to score with have no label ({missing.name}, …)",
            hint="--labels labels.csv",
        )
    return truth


def _hashed(pictures: Sequence[Picture], *, listen: Listener, should_stop: Callable[[], bool]) -> bool:
    """Read every picture once, so that its sha256 is known; False when ``should_stop`` ended it early."""
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
            f"{len(both)} of the {len(labelled)} pictures to score with are also calibration pictures "
            f"({one.name} is {other.name}): the scores would flatter every table",
            hint="leave them out of one of the two sets",
        )


def _to_score(found: Made) -> dict[str, Table]:
    """Different tables, the whole set first: a sweep that is stopped early has answered something by then."""
    ordered = sorted(found, key=lambda pair: (pair[0].seed or 0, -pair[0].pictures))
    return {configuration.table: table for configuration, table in ordered}


def _float_layers(answers: Iterable[Answers]) -> list[str]:
    short = [item for item in answers if item.quantized < item.weighted]
    if not short:
        return []
    least = min(short, key=lambda item: item.quantized)
    worst = f"one runs {least.quantized} of {least.weighted} weighted layers in INT8"
    return [f"{len(short)} tables leave layers in float; {worst}"]

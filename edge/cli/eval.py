"""Measure top-1, top-5 and agreement with FP32.

Every share has its 95 % interval. FP32 is the model itself, run by ONNX Runtime on this machine's CPU with the same
preprocessing.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from edge.cli import options
from edge.errors import UsageError
from edge.ui.terminal import Terminal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge.media import Picture
    from edge.runtime import Scores


def command(
    *,
    images: options.Images = None,
    labels: options.Labels = None,
    label_offset: options.LabelOffset = 0,
    profile: options.ProfileName = None,
    precision: options.PrecisionName = None,
    against: Annotated[str | None, typer.Option(help="Compare with: fp32.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first N pictures.")] = None,
    cache_dir: options.CacheDir = None,
    engine_dir: options.EngineDir = None,
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Run the operation."""
    from edge.backends import OrtSession
    from edge.cli import paths, signals
    from edge.model import onnx_model, preprocessing
    from edge.runtime import evaluation

    if against not in {None, "fp32"}:
        raise UsageError(f"cannot compare with {against!r}", hint="--against fp32")
    chosen, path = paths.load_profile(profile)
    if images is None:
        raise UsageError("nothing to evaluate", hint="--images DIR --labels labels.csv")
    terminal = Terminal()
    if not as_json:
        terminal.say(f"profile {chosen.name} ({path})", style="dim")
    backend, wanted, found = paths.find_engine(
        chosen, path, precision=options.precision(precision), cache_dir=cache_dir, engine_dir=engine_dir
    )
    pictures = paths.labelled_pictures(chosen, images, labels, label_offset=label_offset)
    chosen_pictures = list(pictures.take(limit) if limit else pictures)
    truth = _truth(chosen_pictures, images, is_needed=against is None)
    preprocessor = preprocessing.Preprocessor(chosen.preprocess, chosen.input)
    batch, cpu_threads = chosen.input.batch.min, threads or chosen.run.threads
    with signals.graceful() as wish, terminal.progress() as listen, contextlib.ExitStack() as stack:
        session = backend.open(found.path, precision=wanted, threads=cpu_threads, built_for=found.manifest.key)
        stack.callback(session.close)
        own = evaluation.logits(
            chosen_pictures, session, preprocessor, batch=batch, stage=wanted, listen=listen, should_stop=wish
        )
        reference = None
        if against is not None:
            exact = OrtSession(
                onnx_model.read(Path(chosen.model), chosen.outputs).SerializeToString(),
                precision="fp32",
                threads=cpu_threads,
            )
            stack.callback(exact.close)
            reference = evaluation.logits(
                chosen_pictures, exact, preprocessor, batch=batch, stage="fp32", listen=listen, should_stop=wish
            )
    wish.grant()
    if own is None:
        return
    scores = evaluation.score(own, truth, precision=wanted, reference=reference, against=against)
    if as_json:
        terminal.data(msgspec.json.encode(scores).decode())
    else:
        _show(terminal, scores)
    if scores.warning:
        terminal.warn(scores.warning)


def _truth(pictures: Sequence[Picture], images: Path, *, is_needed: bool) -> list[int] | None:
    """True classes of all pictures; None where none has one and only the agreement is asked for.

    Raises:
        UsageError: pictures have no class.
    """
    truth = [picture.label for picture in pictures if picture.label is not None]
    if len(truth) == len(pictures):
        return truth
    missing = len(pictures) - len(truth)
    if not truth and not is_needed:
        return None
    raise UsageError(
        f"{missing} of {len(pictures)} pictures have no label", where=images,
        hint="--labels FILE.csv, or a folder per class that is called like the class; --against fp32 needs no labels",
    )  # fmt: skip


def _show(terminal: Terminal, scores: Scores) -> None:
    rows = []
    for name, value, interval, other in (
        ("top-1", scores.top1, scores.top1_interval, scores.against_top1),
        ("top-5", scores.top5, scores.top5_interval, scores.against_top5),
    ):
        if value is not None and interval is not None:
            rows.append((name, _share(value, interval), _plain(other)))
    if scores.agreement is not None and scores.agreement_interval is not None:
        rows.append(("agreement", _share(scores.agreement, scores.agreement_interval), ""))
    if scores.top1_difference is not None and scores.top1_difference_interval is not None:
        low, high = scores.top1_difference_interval
        rows.append(("top-1 difference", f"{scores.top1_difference:+.2f} points  [{low:+.2f}, {high:+.2f}]", ""))
    if scores.logit_sqnr_db is not None:
        rows.append(("logit SQNR", f"{scores.logit_sqnr_db:.1f} dB", ""))
    columns = (f"n = {scores.n}", f"{scores.precision}, 95 % interval", scores.against or "")
    keep = 3 if scores.against else 2
    terminal.table(columns[:keep], [row[:keep] for row in rows])


def _share(value: float, interval: tuple[float, float]) -> str:
    return f"{value:.2f} %  [{interval[0]:.2f}, {interval[1]:.2f}]"


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} %"

"""Write a profile for your own model.

There are no questions: the profile contains what the model and the images show and what was guessed, and the command
prints what to check. With --images the usual preprocessings are tried on 50 images; labelled ones (a folder per class,
or --labels FILE.csv) decide best. The file is profiles/NAME.yaml; an existing file stays unless --force is given.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import msgspec
import typer

from edge.cli import options
from edge.errors import DataError, ModelError, UsageError
from edge.ui.terminal import Terminal

if TYPE_CHECKING:
    from edge.config import PreprocessConfig
    from edge.events import Listener
    from edge.media import Picture
    from edge.model import ModelFacts
    from edge.tuning import AnswerFunction, TrialResult

_TRIED = 50
# Where the pictures also have to tell which output is which class.
_PER_CLASS, _MOST_TRIED = 4, 200
_TABLES = frozenset({".csv", ".tsv"})
_BACKENDS = {"host": "onnxruntime", "rtx": "tensorrt"}


class ModelNames(msgspec.Struct, frozen=True):
    """Class names and their origin; ``file`` is the file of class names, if there is one."""

    names: list[str]
    source: str
    file: Path | None = None
    is_guess: bool = False


class PreprocessGuess(msgspec.Struct, frozen=True):
    """A preprocessing, the reason for it, and whether the user should check it."""

    preprocess: PreprocessConfig
    why: str
    is_guess: bool


class Proposal(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that goes into a profile: facts of the model and results of the trials."""

    model: Path
    facts: ModelFacts
    names: ModelNames
    preprocess: PreprocessGuess
    family: str
    output_name: str | None


def command(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Name of the profile.", show_default="the model's")
    ] = None,
    *,
    model: Annotated[Path, typer.Option("--model", "-m", metavar="FILE", help="The ONNX model.", show_default=False)],
    images: options.Images = None,
    labels: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="Class names (one per line), or labels of the images (.csv, .tsv); may be repeated."
        ),
    ] = None,
    family: Annotated[
        str | None,
        typer.Option(
            metavar="FAMILY", help="host, agx-orin, orin-nx, orin-nano, thor or rtx.", show_default="this machine's"
        ),
    ] = None,
    output_name: Annotated[
        str | None, typer.Option(metavar="NAME", help="The output with the classes, if the model has several outputs.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing profile.")] = False,
    as_json: options.Json = False,
) -> None:
    """Write the profile."""
    from edge.config import OutputOptions
    from edge.model import model_facts

    if not model.is_file():
        raise ModelError("the model file does not exist", where=model, hint="--model FILE.onnx")
    facts = model_facts.look(model, OutputOptions(name=output_name))
    wanted_family = _family(family)
    target = target_of(name or model.stem, force=force)
    terminal = Terminal()
    tables = [path for path in labels or () if path.suffix.lower() in _TABLES]
    names = _names(facts, images, [path for path in labels or () if path not in tables], tables)
    first = _first_guess(facts)
    trials: list[TrialResult] = []
    if images is not None:
        pictures, truth = _pictures(images, names, tables)
        answers = _answers(facts, model, output_name)
        with terminal.progress() as listen:
            first, trials, names = _try(facts, first, answers, pictures, truth, names=names, listen=listen)
    proposal = Proposal(
        model=model, facts=facts, names=names, preprocess=first, family=wanted_family, output_name=output_name
    )
    written = _write(target, proposal)
    if as_json:
        terminal.data(_json(target, written, proposal, trials))
        return
    for trial in trials:
        _show_trial(terminal, trial)
    _show(terminal, target, proposal, has_tried=bool(trials))


def _family(name: str | None) -> str:
    from edge.config import Family
    from edge.system import identify

    if name is not None:
        if name not in get_args(Family):
            raise UsageError(f"there is no family {name!r}", hint=f"use one of {', '.join(get_args(Family))}")
        return name
    return identify().family or "host"


def target_of(name: str, *, force: bool) -> Path:
    """Return the file of the profile called ``name``.

    Raises:
        UsageError: it already exists, without ``force``; or the name is invalid.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
    else:
        if "/" in name or name in {"", ".", ".."}:
            raise UsageError(f"{name!r} is not a valid profile name", hint="use a word, or a path that ends in .yaml")
        path = Path("profiles") / f"{name}.yaml"
    if path.exists() and not force:
        raise UsageError("the profile already exists", where=path, hint="use another NAME, or --force to overwrite it")
    return path


def _names(facts: ModelFacts, images: Path | None, files: Sequence[Path], tables: Sequence[Path]) -> ModelNames:
    """Return class names from a file, the model, the class folders, or a label file; else numbers."""
    from edge.media import labels

    if len(files) > 1:
        raise UsageError(
            "several class name files", where=files[1], hint="give one --labels FILE.txt and one --labels FILE.csv"
        )
    if files:
        names = labels.load_names(files[0])
        if len(names) != facts.classes:
            raise DataError(
                f"{len(names)} class names for a model with {_classes(facts)}", where=files[0],
                hint="one name per line, in the order of the model's outputs",
            )  # fmt: skip
        return ModelNames(names, str(files[0]), files[0])
    if facts.names is not None:
        return ModelNames(facts.names, "the model's metadata")
    folders = [] if images is None or not images.is_dir() else labels.class_folders(images)
    if len(folders) == facts.classes:
        return ModelNames(folders, f"the folders in {images}, in alphabetical order", is_guess=True)
    for table in tables:
        found = sorted({row.text for row in labels.read_rows(table, needs_label=True) if row.text is not None})
        if len(found) == facts.classes and not all(labels.is_index(text) for text in found):
            return ModelNames(found, f"the labels in {table}, in alphabetical order", is_guess=True)
    usual = _imagenet_names() if facts.classes == 1000 else None
    if usual is not None:
        return ModelNames(usual, "a guess: 1000 classes are ImageNet's", is_guess=True)
    width = len(str(facts.classes - 1))
    seen = f", and {images} has {len(folders)} class folders" if folders else ""
    return ModelNames(
        [f"class {index:0{width}d}" for index in range(facts.classes)],
        f"numbers: neither the model nor --labels names its {_classes(facts)}{seen}", is_guess=True,
    )  # fmt: skip


def _first_guess(facts: ModelFacts) -> PreprocessGuess:
    """Return the preprocessing that the model shows, or else the most usual one."""
    from edge.config import PreprocessConfig

    side = max(facts.height, facts.width)
    if facts.preprocess is not None:
        try:
            given = msgspec.convert(facts.preprocess, PreprocessConfig)
        except msgspec.ValidationError:
            given = None
        if given is not None:
            return PreprocessGuess(given, "from the weights' own metadata (edge export)", is_guess=False)
    usual = PreprocessConfig(fit="crop", resize=round(side / 0.875), interpolation="bilinear")
    if facts.pixels == "0..255":
        spec = msgspec.structs.replace(usual, mean=(0.0,) * 3, std=(1.0,) * 3)
        return PreprocessGuess(spec, f"unscaled, 0 to 255: {facts.pixels_why}", is_guess=False)
    if facts.pixels == "0..1":
        resize = side if "Ultralytics" in facts.pixels_why else usual.resize
        spec = msgspec.structs.replace(usual, mean=(0.0,) * 3, std=(255.0,) * 3, resize=resize)
        return PreprocessGuess(spec, f"0 to 1: {facts.pixels_why}", is_guess=False)
    if facts.grey:
        mean, std = 0.4589 * 255, 0.2257 * 255
        spec = msgspec.structs.replace(usual, mean=(mean,) * 3, std=(std,) * 3)
        return PreprocessGuess(spec, "a guess: ImageNet's mean and std of grey images", is_guess=True)
    return PreprocessGuess(usual, "a guess: torchvision's mean and std of ImageNet, the most usual ones", is_guess=True)


def _pictures(
    images: Path, names: ModelNames, tables: Sequence[Path]
) -> tuple[list[Callable[[], Any]], list[int] | None]:
    """Functions that decode images, and their classes where known: 50 images, spread over the set.

    Where only the images can tell the order of the class names, it is as many of each class, up to 200 in all.
    """
    from edge.media import ClassNames, decode, open_pictures

    known = ClassNames(names.names, source=names.source)
    found = open_pictures(images, labels=tables[0] if tables else None, names=known)
    labels = [picture.label for picture in found]
    is_labelled = all(label is not None for label in labels)
    if names.is_guess and is_labelled:
        # The first of each class, the second of each class, and so on.
        seen: Counter[int | None] = Counter()
        turns = []
        for label in labels:
            seen[label] += 1
            turns.append(seen[label])
        ordered = sorted(range(len(found)), key=lambda at: turns[at])
        chosen = ordered[: max(_TRIED, min(_PER_CLASS * len(seen), _MOST_TRIED))]
    else:
        count = min(len(found), _TRIED)
        chosen = [index * len(found) // count for index in range(count)]

    def decoder(picture: Picture) -> Callable[[], Any]:
        return lambda: decode(picture.read(), name=picture.where)

    truth = [label for at in chosen if (label := labels[at]) is not None]
    return [decoder(found[at]) for at in chosen], truth if is_labelled else None


def _try(
    facts: ModelFacts, first: PreprocessGuess, answers: AnswerFunction, pictures: Sequence[Callable[[], Any]],
    truth: list[int] | None, *, names: ModelNames, listen: Listener,
) -> tuple[PreprocessGuess, list[TrialResult], ModelNames]:  # fmt: skip
    """Try normalizations where the model does not show its own, then crops; take what is significantly better.

    Where the order of the class names is a guess, the answers decide it.
    """
    from edge.config import InputConfig
    from edge.tuning import preprocess_trial

    target = InputConfig(height=facts.height, width=facts.width)
    chosen, trials = first, []
    rounds: list[Callable[[PreprocessConfig], list[Any]]] = [lambda base: preprocess_trial.regions(base, target)]
    if first.is_guess:
        rounds = [preprocess_trial.normalizations, *([] if facts.grey else [preprocess_trial.bgr]), *rounds]
    for candidates in rounds:
        trial = preprocess_trial.compare(
            candidates(chosen.preprocess), pictures, answers, target, truth=truth, is_order_known=not names.is_guess,
            listen=listen,
        )  # fmt: skip
        trials.append(trial)
        if trial.order is not None and truth is not None:
            truth = [trial.order[label] for label in truth]
            names = _ordered(names, trial.order)
        pictures, truth = pictures[:_TRIED], None if truth is None else truth[:_TRIED]
        if trial.chosen != 0:
            chosen = msgspec.structs.replace(chosen, preprocess=trial.rows[trial.chosen].preprocess)
    return _judged(first, chosen.preprocess, trials), trials, names


def _judged(first: PreprocessGuess, spec: PreprocessConfig, trials: Sequence[TrialResult]) -> PreprocessGuess:
    """Say what the trials show about ``spec``: the last trial is that of the crops, those before it of the rest."""
    pictures = f"{trials[0].pictures} {'labelled' if trials[0].labelled else 'unlabelled'} images"
    if trials[0].is_chance:
        why = f"{first.why}; on {pictures} no preprocessing is better than chance: class names, labels or model differ"
        return PreprocessGuess(spec, why, is_guess=True)
    alike = [name for trial in trials[:-1] for name in trial.alike] if first.is_guess else []
    if alike:
        why = first.why if spec == first.preprocess else "the best of the usual ones"
        return PreprocessGuess(spec, f"{why}; not significantly worse on {pictures}: {', '.join(alike)}", is_guess=True)
    if first.is_guess:
        return PreprocessGuess(spec, f"significantly better than the other usual ones on {pictures}", is_guess=False)
    crop = trials[-1].rows[trials[-1].chosen].name
    why = first.why if spec == first.preprocess else f"{first.why}; {crop}: significantly better on {pictures}"
    return PreprocessGuess(spec, why, is_guess=False)


def _ordered(names: ModelNames, order: Sequence[int]) -> ModelNames:
    """The names in the order of the model's outputs, where the answers tell it."""
    if list(order) == sorted(order):
        return ModelNames(names.names, f"{names.source}, which the model's answers fit")
    ordered = [""] * len(order)
    for name, output in zip(names.names, order, strict=True):
        ordered[output] = name
    where = names.source.replace(", in alphabetical order", "")
    return ModelNames(ordered, f"{where}, in the order that the model's answers fit (alphabetical order does not)")


def _answers(facts: ModelFacts, model: Path, output_name: str | None) -> AnswerFunction:
    """Return the model on this machine's CPU as a function from a batch to class probabilities."""
    from edge.backends import OrtSession
    from edge.config import OutputOptions
    from edge.model import onnx_model
    from edge.tuning import preprocess_trial

    network = onnx_model.read(model, OutputOptions(name=output_name)).SerializeToString()
    session = OrtSession(network, precision="fp32", threads=None)
    return preprocess_trial.answers_of(session, kind=facts.kind, batch=facts.batch)


def write_profile(target: Path, model: Path) -> None:
    """Write the profile of a model made by :mod:`edge.cli.export`.

    Raises:
        ModelError: the model is not a classifier.
    """
    from edge.model import model_facts

    facts = model_facts.look(model)
    names = _names(facts, None, (), ())
    proposal = Proposal(
        model=model, facts=facts, names=names, preprocess=_first_guess(facts), family=_family(None), output_name=None
    )
    _write(target, proposal)


def _imagenet_names() -> list[str] | None:
    from edge.cli import paths
    from edge.media import labels

    path = paths.resources() / "models" / "imagenet_classes.txt"
    return labels.load_names(path) if path.is_file() else None


def _write(target: Path, proposal: Proposal) -> list[Path]:
    """Write the profile, and a file of class names if there is none yet."""
    from edge.artifacts import store
    from edge.config import read_profile

    written = [target]
    labels = proposal.names.file
    if labels is None:
        labels = target.with_suffix(".labels.txt")
        store.write_bytes(labels, "".join(f"{name}\n" for name in proposal.names.names).encode())
        written.append(labels)
    store.write_bytes(target, _profile_text(target, labels, proposal).encode())
    # Read the result back: a name may have a colon, a path a tilde.
    read_profile(target)
    return written


def _profile_text(target: Path, labels: Path, proposal: Proposal) -> str:
    facts, chosen, model, family = proposal.facts, proposal.preprocess, proposal.model, proposal.family
    spec = chosen.preprocess
    batch = facts.batch
    sizes = (batch, batch, batch) if batch else (1, 1, 8)
    adapted = "".join(f"#   {change}\n" for change in facts.changes)
    output = "" if proposal.output_name is None else f"output_name: {_quoted(proposal.output_name)}\n"
    units = (
        "# mean and std are in units of 8-bit pixel values, 0 to 255; values of 0 to 1 need scale: 1/255 beside them."
    )
    return (
        f"# Written by edge init from {model.name}. `edge profile check` says whether it still fits after a change.\n"
        f"family: {family}\n"
        f"backend: {_BACKENDS.get(family, 'tensorrt')}\n"
        f"# {facts.input}; {_classes(facts)}, {facts.kind}.\n"
        f"{'# edge adapts the graph:' + chr(10) + adapted if adapted else ''}"
        f"model: {_quoted(_relative(model, target.parent))}\n"
        f"{output}"
        f"# Class names: {proposal.names.source}.\n"
        f"labels: {_quoted(_relative(labels, target.parent))}\n"
        "\n"
        f"# Size: {facts.size_source}. Batch: {f'the model takes {batch} only' if batch else 'the model takes any'}.\n"
        "input:\n"
        f"  height: {facts.height}\n"
        f"  width: {facts.width}\n"
        f"  batch: {{min: {sizes[0]}, opt: {sizes[1]}, max: {sizes[2]}}}\n"
        "\n"
        f"# Preprocessing: {chosen.why}.\n"
        f"{units}\n"
        "preprocess:\n"
        f"  fit: {spec.fit}  # crop, squash or letterbox\n"
        f"  resize: {spec.resize}  # the shorter side, before the crop\n"
        f"  interpolation: {spec.interpolation}\n"
        f"  color: {spec.color}\n"
        f"  mean: {_numbers(spec.mean)}\n"
        f"  std: {_numbers(spec.std)}\n"
        "\n"
        "precision: int8\n"
        "\n"
        "calibration:\n"
        "  algorithm: auto  # the best of all, by measure on calibration images\n"
    )


def _classes(facts: ModelFacts) -> str:
    return "1 class" if facts.classes == 1 else f"{facts.classes} classes"


def _quoted(text: str) -> str:
    """Format ``text`` as YAML: unchanged if it is a plain word, else in quotes (JSON's are valid YAML)."""
    is_plain = re.fullmatch(r"[A-Za-z0-9_./][A-Za-z0-9_./ -]*[A-Za-z0-9_./]", text) is not None
    return text if is_plain else json.dumps(text, ensure_ascii=False)


def _numbers(values: Sequence[float]) -> str:
    return f"[{', '.join(f'{value:.7g}' for value in values)}]"


def _described(spec: PreprocessConfig) -> str:
    return f"{spec.fit}, {spec.color}, mean {_numbers(spec.mean)}, std {_numbers(spec.std)}"


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()


def _show_trial(terminal: Terminal, trial: TrialResult) -> None:
    rows = []
    for at, row in enumerate(trial.rows):
        verdict = "taken" if at == trial.chosen else "worse" if row.is_worse else "not significantly worse"
        share = () if row.top1 is None else (f"{row.top1:.0f} %",)
        rows.append((row.name, *share, f"{row.score:.3f}", verdict))
    if trial.labelled:
        headings: tuple[str, ...] = (f"n = {trial.pictures}", "top-1", "log p(true)", "against the best")
    else:
        headings = (f"n = {trial.pictures}, no labels", "information (nats)", "against the best")
    terminal.table(headings, rows, right=tuple(range(1, len(headings) - 1)))


def _show(terminal: Terminal, target: Path, proposal: Proposal, *, has_tried: bool) -> None:
    facts, names, chosen = proposal.facts, proposal.names, proposal.preprocess
    terminal.data(f"{target}: written")
    batch = f"{facts.batch} only" if facts.batch else "any"
    for line in (
        f"input: {facts.width}×{facts.height}, {facts.size_source}",
        f"batch: {batch}",
        f"output: {_classes(facts)}, {facts.kind}",
        f"class names: {names.source}",
        f"preprocessing: {_described(chosen.preprocess)}: {chosen.why}",
    ):
        terminal.data(f"  {line}")
    for change in facts.changes:
        terminal.info(f"adapted: {change}")
    if names.is_guess:
        terminal.warn(f"check the class names in {target}: {names.source}")
    if chosen.is_guess:
        terminal.warn(
            f"check preprocess in {target}: {chosen.why}; copy it from your training code"
            + ("" if has_tried else ", or compare the usual ones: --images DIR with labelled images")
        )
    if facts.classes == 1:
        terminal.warn("the model has one class: without a Sigmoid at its end every image is that class")
    name = target.stem if target.parent.name == "profiles" else str(target)
    terminal.info(f"next: edge calibrate --profile {name} --images DIR && edge build --profile {name}")


def _json(target: Path, written: Sequence[Path], proposal: Proposal, trials: Sequence[TrialResult]) -> str:
    names = proposal.names
    content = {
        "profile": str(target),
        "written": [str(path) for path in written],
        "model": proposal.facts,
        "names": {"count": len(names.names), "source": names.source, "guess": names.is_guess},
        "preprocess": proposal.preprocess,
        "trials": trials,
    }
    return msgspec.json.encode(content).decode()

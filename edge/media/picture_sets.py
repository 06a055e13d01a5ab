"""Check every image of a source; extract the images of TFRecord shards to files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import msgspec

from edge.artifacts import store
from edge.errors import DataError, StoreError, UsageError
from edge.events import Listener, Note, Progress, ignore_events
from edge.media.labels import ClassNames, TrueLabels, join, load_truth, render_truth, shown
from edge.media.picture_sources import open_pictures, shards_of
from edge.media.pictures import Picture, decode


class Bad(msgspec.Struct, frozen=True):
    """One problem in an image source, and its location."""

    name: str
    problem: str


class Checked(msgspec.Struct, frozen=True):
    """Result of a check: the number of images, and every problem."""

    pictures: int
    bad: list[Bad]


def check(
    source: Path,
    *,
    labels: Path | None = None,
    names: ClassNames | None = None,
    label_offset: int = 0,
    listen: Listener = ignore_events,
) -> Checked:
    """Decode every image of ``source``; with ``labels``, report images without a class index, too.

    Raises:
        DataError: the source cannot be opened, or the labels are unusable. A bad image is a result, not an error.
        MissingDependencyError: OpenCV, or a library for TFRecord shards, is not installed.
    """
    bad: list[Bad] = []
    pictures: list[Picture] = []
    shards = shards_of(source)
    # Shards one by one: damage in one does not affect the next.
    for part in shards or [source]:
        listed, damage = list_all(part, listen=listen)
        pictures.extend(listed)
        if damage is not None and not shards:
            raise damage
        if damage is not None:
            bad.append(Bad(shown(damage.where or str(part)), f"{damage.what}; the rest of the shard was not checked"))
    bad.extend(_undecodable(pictures, listen=listen))
    if labels is not None:
        bad.extend(_unlabelled(pictures, labels, load_truth(labels, names=names, offset=label_offset)))
    return Checked(len(pictures), bad)


def list_all(
    source: Path, *, limit: int | None = None, listen: Listener = ignore_events
) -> tuple[list[Picture], DataError | None]:
    """List at most ``limit`` images of ``source``; return them and the error that ended the list early, if any."""
    listed: list[Picture] = []
    try:
        for picture in open_pictures(source):
            listed.append(picture)
            listen(Progress("list", len(listed), limit))
            if len(listed) == limit:
                break
    except DataError as exc:
        return listed, exc
    return listed, None


def _undecodable(pictures: list[Picture], *, listen: Listener) -> list[Bad]:
    bad = []
    for done, picture in enumerate(pictures, start=1):
        try:
            decode(picture.read(), name=picture.name)
        except DataError as exc:
            bad.append(Bad(picture.name, exc.what))
        listen(Progress("decode", done, len(pictures)))
    return bad


def _unlabelled(pictures: list[Picture], path: Path, truth: TrueLabels) -> list[Bad]:
    joined = join(pictures, truth, partial=True)
    known = {id(picture) for picture, _ in joined}
    return [
        Bad(picture.name, f"no class index in {shown(str(path))}") for picture in pictures if id(picture) not in known
    ]


TRUTH = "labels.csv"


class Extracted(msgspec.Struct, frozen=True):
    """Result of an extraction; ``kept`` is the number of images that already existed."""

    pictures: int
    written: int
    kept: int
    labelled: int
    lowest_class: int | None
    highest_class: int | None


def extract(
    pictures: Sequence[Picture],
    folder: Path,
    *,
    label_offset: int = 0,
    force: bool = False,
    listen: Listener = ignore_events,
) -> Extracted:
    """Write ``pictures`` to files in ``folder``, and their class indices plus ``label_offset`` to its labels.csv.

    Existing files with the same content are kept, so an interrupted extraction can be continued, and several shards can
    be extracted to one folder.

    Raises:
        DataError: an image cannot be read, the existing labels.csv is unusable, or a class index gets negative.
        UsageError: a different image or class index exists under the same name, without ``force``.
        StoreError: a file cannot be written.
    """
    before = load_truth(folder / TRUTH) if (folder / TRUTH).exists() else {}
    truth = dict(before)
    used = {TRUTH}
    written = 0
    indices: list[int] = []
    try:
        for done, picture in enumerate(pictures, start=1):
            name = _unused(picture.name, used)
            label = _shifted(picture, label_offset)
            if not force and label is not None and truth.get(name, label) != label:
                raise UsageError(
                    f"{name} has class {truth[name]} in this file, and class {label} now",
                    where=folder / TRUTH,
                    hint="use the same --label-offset as before, another folder, or --force",
                )
            written += _write(folder / name, picture.read(), force=force)
            if label is not None:
                truth[name] = label
                indices.append(label)
            listen(Progress("extract", done, len(pictures)))
    finally:
        # Also after an interruption: the extracted files are usable, and the next run continues.
        if truth != before:
            store.write_bytes(folder / TRUTH, render_truth(truth))
    lowest, highest = (min(indices), max(indices)) if indices else (None, None)
    return Extracted(len(pictures), written, len(pictures) - written, len(indices), lowest, highest)


def counts_from_one(done: Extracted) -> Note | None:
    """Return a warning if the class indices seem to start at 1.

    Among 200 images of 10 classes, class 0 is practically never missing by chance; of 1000 classes it can be, which
    is why the warning says "if".
    """
    if not done.lowest_class or not done.highest_class:
        return None
    if done.highest_class < 1000 and done.labelled < 200:
        return None
    return Note(
        f"class indices run from {done.lowest_class} to {done.highest_class}. ImageNet shards count from 1 and most "
        "networks from 0: if so here, extract again with --label-offset -1 --force",
        level="warning",
    )


def _write(path: Path, data: bytes, *, force: bool) -> bool:
    """Write ``data`` to ``path`` unless it exists; return True if it was written."""
    try:
        is_there = path.exists()
        is_same = is_there and path.stat().st_size == len(data) and path.read_bytes() == data
    except OSError as exc:
        raise StoreError(f"cannot read the existing file: {exc.strerror or exc}", where=path) from exc
    if is_same:
        return False
    if is_there and not force:
        raise UsageError(
            "another image has this name", where=path, hint="use another folder, or --force to overwrite it"
        )
    store.write_bytes(path, data)
    return True


def _unused(name: str, used: set[str]) -> str:
    """Return ``name``, with a number if it is taken; on some disks upper and lower case are the same."""
    path, number, result = PurePosixPath(name), 1, name
    while result.casefold() in used:
        number += 1
        result = str(path.with_name(f"{path.stem}-{number}{path.suffix}"))
    used.add(result.casefold())
    return result


def _shifted(picture: Picture, offset: int) -> int | None:
    if picture.label is None:
        return None
    label = picture.label + offset
    if label < 0:
        raise DataError(
            f"class index {picture.label} with --label-offset {offset} is {label}",
            where=picture.where,
            hint="class indices count from 0: leave --label-offset out",
        )
    return label

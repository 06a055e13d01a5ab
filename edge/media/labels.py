"""Read class names and true classes, and check that they belong together.

A label file is a CSV or TSV (``,``, ``;``, tab or ``|``), with or without a header. One column names the image,
another its class, by index (counting from 0) or by name. The usual column names are known, in any case; docs/labels.md
lists the forms.
"""

from __future__ import annotations

import csv
import io
import math
import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from edge.config import did_you_mean
from edge.errors import DataError
from edge.stats import best_assignment, mcnemar

# Suffixes of image files, in lower case.
SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".gif", ".jp2", ".j2k", ".avif",
    ".heic", ".heif", ".jxl",
})  # fmt: skip
# Caffe's lists: an image and its class, separated by blanks.
_SPACED = re.compile(
    rf"^(.+?(?:{'|'.join(map(re.escape, sorted(SUFFIXES)))}))[ ]+(\S.*)$", re.IGNORECASE | re.MULTILINE
)
# Column names in lower case with "_" for blanks and hyphens; the first that a header has wins.
FILE_COLUMNS = (
    "file", "path", "filename", "file_name", "filepath", "file_path", "image", "image_path", "image_file", "image_name",
    "img", "img_path", "img_name", "picture", "image_id", "img_id", "id", "name",
)  # fmt: skip
LABEL_COLUMNS = (
    "class_index", "label", "class", "target", "class_id", "label_id", "category_id", "label_index", "target_id",
    "class_name", "label_name", "category_name", "category", "classname", "label_text", "labels", "classes", "species",
    "breed", "y",
)  # fmt: skip

# With fewer answers no conclusion about the map is possible: a good network may be wrong on the first five.
_MIN_ANSWERS = 20
# Nor do answers about fewer classes say that a map is shifted: two classes confused with each other look like that.
_MIN_CLASSES = 5
_FEWEST_CLASSES = 2
# The same answer for so many pictures, where the labels say otherwise.
_CONSTANT, _NEARLY_ALL = 0.95, 0.8
# Another order of the classes: looked for with so many pictures per class, and believed at this level of significance.
_MOST_ORDERED, _PER_CLASS, _ORDER_LEVEL, _SHOWN_ORDER = 64, 4, 0.001, 10
_FEW = 3


class _Named(Protocol):
    @property
    def name(self) -> str: ...


_P = TypeVar("_P", bound=_Named)


class ClassNames:
    """The class names of a network in class order, with a lookup by name.

    A name matches exactly or, if that is unambiguous, with other case or separators (``Blue_Ball`` for ``blue ball``).
    ``source`` is the file of the names, for messages.
    """

    def __init__(self, names: Sequence[str], *, source: Path | str = "the profile's labels") -> None:
        self.names = tuple(names)
        self.source = str(source)
        self._exact: defaultdict[str, list[int]] = defaultdict(list)
        self._loose: defaultdict[str, list[int]] = defaultdict(list)
        for index, name in enumerate(self.names):
            self._exact[name].append(index)
            self._loose[_loose(name)].append(index)

    def __len__(self) -> int:
        return len(self.names)

    def matches(self, text: str) -> list[int]:
        """Return the indices of the classes called ``text``; an empty list if there is none."""
        return self._exact.get(text) or self._loose.get(_loose(text)) or []

    def index(self, text: str, *, where: str) -> int:
        """Return the index of the class called ``text``.

        Raises:
            DataError: no class has this name (with the nearest name), or several have it.
        """
        found = self.matches(text)
        if len(found) == 1:
            return found[0]
        if found:
            some = ", ".join(str(index) for index in found)
            raise DataError(
                f"several classes are called {text!r}: {some}", where=where, hint="use class indices in the label file"
            )
        raise DataError(
            f"no class is called {shown(text)!r} in {self.source}{did_you_mean(text, self.names)}",
            where=where,
            hint=f"correct it here, or the class names in {self.source}",
        )


class LabelRow(msgspec.Struct, frozen=True):
    """One line of a label file: an image and its class (``text`` is None without one)."""

    line: int
    file: str
    text: str | None


class TrueLabels(dict[str, int]):
    """Class index by image name from the label file ``path``; ``lines`` has the line of each name."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.lines: dict[str, int] = {}

    def where(self, name: str) -> str:
        """Return ``file:line`` of a name."""
        return f"{shown(str(self.path))}:{self.lines[name]}"


def load_names(path: Path) -> list[str]:
    """Read class names, one per line, beginning with class 0. Trailing blank lines are ignored, others are errors.

    Raises:
        DataError: the file is missing, empty, not text, or has an empty line between names.
    """
    names = [line.strip() for line in read_text(path).rstrip().split("\n")]
    if names == [""]:
        raise DataError("the file of class names is empty", where=path)
    if "" in names:
        raise DataError(
            "empty line between class names", where=f"{path}:{names.index('') + 1}", hint="write one name per line"
        )
    return names


def load_truth(path: Path, *, names: ClassNames | None = None, offset: int = 0) -> TrueLabels:
    """Read the class index of each image from the label file at ``path``.

    Args:
        path: a CSV or TSV; see the module's docstring.
        names: class names of the network. With them a label may be a name, and an index must be below their number.
        offset: added to every class index, but not to class names.

    Raises:
        DataError: the file is missing or no label file, a label is neither an index nor a known name, an index is out
            of range, or one image has two labels; with ``file:line``.
    """
    rows = read_rows(path, needs_label=True, names=names)
    for row in rows:
        if row.text is None:
            raise DataError(f"no class for {shown(row.file)}", where=f"{path}:{row.line}")
    if not rows:
        raise DataError("the label file has only a header", where=path)
    indices = _indices(rows, path, names=names, offset=offset)
    truth = TrueLabels(path)
    for row, index in zip(rows, indices, strict=True):
        name = _normal(row.file.replace("\\", "/"))
        truth.lines.setdefault(name, row.line)
        if truth.setdefault(name, index) != index:
            raise DataError(
                f"{name} is class {index} here and class {truth[name]} on line {truth.lines[name]}",
                where=f"{path}:{row.line}",
            )
    return truth


def _indices(rows: Sequence[LabelRow], path: Path, *, names: ClassNames | None, offset: int) -> list[int]:
    texts = [row.text or "" for row in rows]
    are_names = names is not None and all(names.matches(text) for text in set(texts))
    are_numbers = not are_names and (names is None or any(is_index(text) for text in texts))
    if names is not None and not are_numbers:
        return [names.index(text, where=f"{path}:{row.line}") for row, text in zip(rows, texts, strict=True)]
    indices = [to_label(text, where=f"{path}:{row.line}") + offset for row, text in zip(rows, texts, strict=True)]
    if names is not None:
        _check_range(rows, indices, path, names=names)
    return indices


def _check_range(rows: Sequence[LabelRow], indices: Sequence[int], path: Path, *, names: ClassNames) -> None:
    count, lowest, highest = len(names), min(indices), max(indices)
    for row, index in zip(rows, indices, strict=True):
        if 0 <= index < count:
            continue
        hint = f"class indices count from 0; {names.source} has {count} names"
        if index < 0:
            hint = f"{hint}; -1 often means that the true class is not published: leave those images out"
        elif highest == count and lowest >= 1:
            hint = "every class index is 1 too high; use --label-offset -1 (an option of this command)"
        raise DataError(
            f"class index {index} is out of range: the classes are 0 to {count - 1}", where=f"{path}:{row.line}",
            hint=hint,
        )  # fmt: skip


def join(pictures: Iterable[_P], truth: Mapping[str, int], *, partial: bool = False) -> list[tuple[_P, int]]:
    """Return each image with its true class, in the order of ``pictures``.

    An image is looked up by its name, then by the longest common end of the two paths, because a label file is often in
    another folder or has absolute paths; a name without a suffix (``image_id``) matches the image with that stem.

    Raises:
        DataError: images without a label (unless ``partial``), none with one, or a name that fits several images.
    """
    by_end: defaultdict[str, list[str]] = defaultdict(list)
    for name in truth:
        by_end[posixpath.basename(name)].append(name)
    joined: list[tuple[_P, int]] = []
    missing: list[str] = []
    used: dict[str, str] = {}
    for picture in pictures:
        name = _normal(picture.name)
        found = name if name in truth else _nearest(name, by_end, truth)
        if found is None:
            missing.append(name)
            continue
        if used.setdefault(found, name) != name:
            raise _ambiguous(found, truth)
        joined.append((picture, truth[found]))
    if missing and (not partial or not joined):
        raise DataError(f"{len(missing)} of {len(missing) + len(joined)} images have no label: {_few(missing)}")
    return joined


def _nearest(name: str, by_end: dict[str, list[str]], truth: Mapping[str, int]) -> str | None:
    last = posixpath.basename(name)
    candidates = by_end.get(last, [])
    if not candidates and posixpath.splitext(last)[1].lower() in SUFFIXES:
        last = posixpath.splitext(last)[0]
        name = posixpath.join(posixpath.dirname(name), last)
        candidates = by_end.get(last, [])
    if not candidates:
        return None
    common = {candidate: _common_end(name, candidate) for candidate in candidates}
    most = max(common.values())
    best = [candidate for candidate in candidates if common[candidate] == most]
    if len(best) > 1:
        raise _ambiguous(best[0], truth)
    return best[0]


def _common_end(first: str, second: str) -> int:
    count = 0
    for one, other in zip(reversed(first.split("/")), reversed(second.split("/")), strict=False):
        if one != other:
            break
        count += 1
    return count


def _ambiguous(name: str, truth: Mapping[str, int]) -> DataError:
    return DataError(
        f"several images are named {posixpath.basename(name)}",
        where=truth.where(name) if isinstance(truth, TrueLabels) else None,
        hint="write the path relative to the folder of the images (--images)",
    )


# Folders that are parts of a data set rather than classes.
SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})


def folder_labels(pictures: Sequence[_P], names: ClassNames, *, folder: Path) -> list[int] | None:
    """Return the true classes of images in class folders (ImageFolder, YOLO); None if the folders are not classes.

    Folders are matched to ``names`` by name, in any order. Their subfolders belong to the same class.

    Raises:
        DataError: some of the folders are classes and others not, images are outside of them, or the folder holds
            several parts of a data set.
    """
    parts = [_normal(picture.name).split("/") for picture in pictures]
    tops = {part[0] for part in parts if len(part) > 1}
    level = 0
    if tops and tops <= SPLITS and not any(names.matches(top) for top in tops):
        if len(tops) > 1:
            example = sorted(tops & {"val", "valid", "validation", "test"}) or sorted(tops)
            raise DataError(
                f"the folder contains several parts of a data set: {', '.join(sorted(tops))}",
                where=folder,
                hint=f"name one of them: --images {shown(str(folder / example[0]))}",
            )
        level = 1
    classes = [part[level] if len(part) > level + 1 else None for part in parts]
    known = {name for name in set(classes) if name is not None and names.matches(name)}
    if not known:
        return None
    outside = [picture.name for picture, name in zip(pictures, classes, strict=True) if name is None]
    if outside:
        raise DataError(
            f"{len(outside)} images are in no class folder: {_few(outside)}", where=folder,
            hint="move them into the folder of their class, or name the classes with --labels FILE",
        )  # fmt: skip
    return [names.index(name, where=shown(str(folder / name))) for name in classes if name is not None]


def shape_of_errors(
    predictions: Sequence[int], truth: Sequence[int], *, classes: int | None = None, names: Sequence[str] | None = None
) -> str | None:
    """Return one sentence on why labels and predictions do not match; None if they match.

    Looks for labels out of range, for a map shifted by one (ImageNet TFRecords and TensorFlow's networks count a
    background class as 0), for class names in another order, for a constant answer, and for accuracy at chance level.
    Fewer than 20 answers, or answers about one class, are never called wrong, except when out of range.

    Args:
        predictions: top-1 class indices.
        truth: the true ones, in the same order.
        classes: number of classes of the network; otherwise only negative labels are out of range.
        names: class names, for the sentence.

    Raises:
        ValueError: the two differ in length.
    """
    if len(predictions) != len(truth):
        raise ValueError(f"{len(predictions)} predictions for {len(truth)} labels")
    return _out_of_range(truth, classes) or _shifted_or_foreign(predictions, truth, classes, names)


def _out_of_range(truth: Sequence[int], classes: int | None) -> str | None:
    below = sum(label < 0 for label in truth)
    if below:
        return (
            f"{below} of {len(truth)} labels are negative (the lowest is {min(truth)}): class indices count from 0, "
            "and -1 often means that the true class is not published; leave those images out"
        )
    if classes is None or not truth or max(truth) < classes:
        return None
    above = sum(label >= classes for label in truth)
    highest = f"the network's last class (the highest is {max(truth)})"
    text = f"{above} of {len(truth)} labels are above {classes - 1}, {highest}"
    if max(truth) == classes and min(truth) >= 1:
        return f"{text}: they count from 1; use --label-offset -1 (an option of this command)"
    return f"{text}: they use another class map; use the one that the network was trained with"


def _shifted_or_foreign(
    predictions: Sequence[int], truth: Sequence[int], classes: int | None, names: Sequence[str] | None
) -> str | None:
    count = len(truth)
    if count < _MIN_ANSWERS:
        return None
    kinds = classes if classes is not None else max(*truth, *predictions) + 1
    hits = {by: sum(p == t + by for p, t in zip(predictions, truth, strict=True)) / count for by in (-1, 0, 1)}
    best = max((-1, 1), key=lambda by: hits[by])
    # Neighbouring classes are often similar (dog breeds), so a shift must win clearly and be good in itself.
    is_possible = min(truth) + best >= 0 and max(truth) + best < kinds and len(set(truth)) >= _MIN_CLASSES
    if is_possible and hits[best] >= 0.2 and hits[best] > 3 * hits[0] and hits[best] - hits[0] > 0.15:
        return (
            f"top-1 is {hits[0]:.1%} with these labels and {hits[best]:.1%} with every label {best:+d}: the label map "
            f"is off by one; use --label-offset {best:+d} (an option of this command)"
        )
    if len(set(truth)) < _FEWEST_CLASSES:
        return None
    answer, often = Counter(predictions).most_common(1)[0]
    if often >= _CONSTANT * count and sum(label == answer for label in truth) < _NEARLY_ALL * count:
        return (
            f"the network answers {_called(answer, names)} for {often} of {count} images: the preprocessing is not "
            "what it was trained with, or the engine is broken"
        )
    ordered = _other_order(predictions, truth, names if names is not None and len(names) == kinds else None)
    if ordered is not None:
        return ordered
    # Hits of answers that do not look at the picture, with these shares of classes.
    answered, true = Counter(predictions), Counter(truth)
    chance = sum(answered[label] * true[label] for label in true) / count**2
    usual = chance + math.sqrt(chance * (1 - chance) / count)
    has_many = kinds >= 10 and len(set(truth)) >= _MIN_CLASSES
    if hits[0] <= usual or (has_many and hits[0] < max(0.02, 1.5 / kinds)):
        return (
            f"top-1 is {hits[0]:.1%} of {count} images, no better than chance: the labels use another class map than "
            "the network's, the preprocessing is not what it was trained with, or the engine is broken"
        )
    return None


def _called(index: int, names: Sequence[str] | None) -> str:
    return repr(names[index]) if names is not None and 0 <= index < len(names) else f"class {index}"


def _other_order(predictions: Sequence[int], truth: Sequence[int], names: Sequence[str] | None) -> str | None:
    """Say so when the answers fit the labels with the classes in another order.

    The order is found on half of the images and tried on the other half, both ways: one that fits by chance fails.
    """
    seen = sorted(set(truth))
    if len(seen) > _MOST_ORDERED or len(truth) < _PER_CLASS * len(seen):
        return None
    outputs = sorted({*seen, *predictions})
    turn: Counter[int] = Counter()
    halves: tuple[list[int], list[int]] = ([], [])
    for at, label in enumerate(truth):
        halves[turn[label] % 2].append(at)
        turn[label] += 1

    def order_of(pictures: Sequence[int]) -> dict[int, int]:
        pairs = Counter((truth[at], predictions[at]) for at in pictures)
        columns = best_assignment([[float(pairs[label, output]) for output in outputs] for label in seen])
        return {label: outputs[column] for label, column in zip(seen, columns, strict=True)}

    fits = [False] * len(truth)
    for found_on, tried_on in (halves, halves[::-1]):
        order = order_of(found_on)
        for at in tried_on:
            fits[at] = predictions[at] == order[truth[at]]
    as_given = [prediction == label for prediction, label in zip(predictions, truth, strict=True)]
    better = sum(new and not old for new, old in zip(fits, as_given, strict=True))
    worse = sum(old and not new for new, old in zip(fits, as_given, strict=True))
    if better <= worse or mcnemar(better, worse) > _ORDER_LEVEL:
        return None
    order = order_of(range(len(truth)))
    shown = ""
    if names is not None and sorted(order.values()) == list(range(len(names))):
        called = {output: names[label] for label, output in order.items()}
        some = [called[output] for output in range(len(names))]
        shown = f" (it fits {', '.join(some[:_SHOWN_ORDER])}{', …' if len(some) > _SHOWN_ORDER else ''})"
    return (
        f"top-1 is {sum(as_given) / len(truth):.1%} with these class names and {sum(fits) / len(truth):.1%} with the "
        f"classes in another order{shown}: write the names in the order of the model's outputs; edge init --images DIR "
        "finds it"
    )


def class_folders(folder: Path) -> list[str]:
    """List the subfolders of ``folder`` that contain images, sorted as by ImageFolder."""
    inner = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    splits = [path for path in inner if path.name.lower() in SPLITS]
    if inner and len(splits) == len(inner):
        return class_folders(splits[0])
    return [path.name for path in inner if any(one.suffix.lower() in SUFFIXES for one in path.rglob("*"))]


def render_truth(labels: dict[str, int]) -> bytes:
    """Render a label file for :func:`load_truth`, ordered by image name."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((FILE_COLUMNS[0], LABEL_COLUMNS[0]))
    writer.writerows(sorted(labels.items()))
    return text.getvalue().encode()


def read_rows(path: Path, *, needs_label: bool, names: ClassNames | None = None) -> list[LabelRow]:
    """Read the rows of a label file; see the module's docstring for its forms.

    If several columns could be the class, the first one whose cells are all in ``names`` is used.

    Raises:
        DataError: the file is missing, not text, not a CSV, or has no column of images.
    """
    text = read_text(path)
    first_line = text.lstrip("\n").partition("\n")[0]
    delimiter = max(",;\t|", key=first_line.count)
    if delimiter not in first_line and _SPACED.match(first_line):
        text, delimiter = _SPACED.sub(r"\1\t\2", text), "\t"
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    cells: list[tuple[int, list[str]]] = []
    try:
        for row in reader:
            stripped = [cell.strip() for cell in row]
            if any(stripped):
                cells.append((reader.line_num, stripped))
    except csv.Error as exc:
        raise DataError(f"not a CSV: {exc}", where=f"{path}:{reader.line_num}") from exc
    header = [_column_name(cell) for cell in cells[0][1]] if cells else []
    file_at = next((header.index(name) for name in FILE_COLUMNS if name in header), None)
    candidates = [header.index(name) for name in LABEL_COLUMNS if name in header]
    if file_at is not None:
        candidates = [at for at in candidates if at != file_at]
        body = cells[1:]
    else:
        # No header: the image column is the one whose first cell looks like an image file.
        first = cells[0][1] if cells else []
        file_at = next((at for at, cell in enumerate(first) if _is_picture_name(cell)), None)
        candidates = [at for at in range(len(first)) if at != file_at]
        body = cells
    one_hot = [] if names is None or candidates else [at for at, cell in enumerate(header) if names.matches(cell)]
    if file_at is not None and len(one_hot) > 1:
        return [_one_hot_row(row, file_at, one_hot, header, where=f"{path}:{line}", line=line) for line, row in body]
    if file_at is None or (needs_label and not candidates):
        wanted = "a column of images (file, path, filename, image, …)"
        if needs_label:
            wanted += " and one of classes (class_index, label, class, class_name, …)"
        raise DataError(
            f"the first line must name {wanted}; it is {shown(first_line)!r}", where=f"{path}:1",
            hint="docs/labels.md describes the formats of label files",
        )  # fmt: skip
    label_at = _label_column([row for _, row in body], candidates, names)
    return [_row(row, file_at, label_at, where=f"{path}:{line}", line=line) for line, row in body]


def _label_column(body: Sequence[Sequence[str]], candidates: Sequence[int], names: ClassNames | None) -> int | None:
    if names is not None:
        for at in candidates:
            texts = {row[at] for row in body if at < len(row)}
            if texts and not all(is_index(text) for text in texts) and all(names.matches(text) for text in texts):
                return at
    return candidates[0] if candidates else None


def read_text(path: Path) -> str:
    r"""Read hand-written text: UTF-8 with or without a byte-order mark, or UTF-16 with one; any line ends.

    Line ends come out as ``\n``. Bytes that are not UTF-8 are kept as lone surrogates, as Python does for file names:
    a list can name any file.

    Raises:
        DataError: the file cannot be read, or contains zero bytes (it is not text).
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as exc:
        raise DataError("there is no such file", where=path) from exc
    except OSError as exc:
        raise DataError(f"cannot read: {exc.strerror or exc}", where=path) from exc
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        try:
            text = data.decode("utf-16")
        except UnicodeDecodeError as exc:
            raise DataError(
                "damaged UTF-16 text", where=path, hint="save it as UTF-8 (PowerShell: Out-File -Encoding utf8)"
            ) from exc
    else:
        text = data.decode("utf-8-sig", "surrogateescape")
    if "\0" in text:
        raise DataError("not a text file: it contains zero bytes", where=path, hint="a text file is saved as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def to_label(text: str, *, where: str) -> int:
    """Read a class index.

    Raises:
        DataError: ``text`` is not an integer.
    """
    if not is_index(text):
        raise DataError(
            f"the class index must be an integer, got {shown(text)!r}", where=where,
            hint="class names are read with a profile: --profile NAME",
        )  # fmt: skip
    return int(text.partition(".")[0])


def shown(text: str) -> str:
    r"""Write bytes of ``text`` that are not UTF-8 (lone surrogates) as ``\xNN``, which is safe to print and encode."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _row(cells: Sequence[str], file_at: int, label_at: int | None, *, where: str, line: int) -> LabelRow:
    file = cells[file_at] if file_at < len(cells) else ""
    if not file:
        raise DataError("no file name", where=where)
    text = cells[label_at] if label_at is not None and label_at < len(cells) else ""
    return LabelRow(line, file, text or None)


def _one_hot_row(
    cells: Sequence[str], file_at: int, columns: Sequence[int], header: Sequence[str], *, where: str, line: int
) -> LabelRow:
    """Read a row with a column for each class, 1 for that of the image and 0 for the others."""
    values = [cells[at].removesuffix(".0") if at < len(cells) else "" for at in columns]
    if sorted(values) != ["0"] * (len(values) - 1) + ["1"]:
        raise DataError("one of the class columns must be 1, the others 0", where=where)
    return _row([cells[file_at], header[columns[values.index("1")]]], 0, 1, where=where, line=line)


def is_index(text: str) -> bool:
    """Return True if ``text`` is a class index; pandas writes ``3.0`` in a column with gaps."""
    return re.fullmatch(r"[+-]?[0-9]{1,9}(\.0+)?", text) is not None


def _is_picture_name(text: str) -> bool:
    return posixpath.splitext(text.replace("\\", "/"))[1].lower() in SUFFIXES


def _column_name(text: str) -> str:
    return re.sub(r"[\s-]+", "_", text.strip().lower())


def _loose(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _normal(name: str) -> str:
    return posixpath.normpath(shown(name))


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _FEW} more" if len(names) > _FEW else ""
    return ", ".join(names[:_FEW]) + more

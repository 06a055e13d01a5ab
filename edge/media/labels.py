"""Class names, true classes, and whether the two belong together.

A truth file is a CSV with a header: one column names the file (``file``, ``path``, ``filename`` or ``image``), one
holds the class index (``class_index``, ``label`` or ``class``), both in any case; ``,``, ``;`` or tab between them.
"""

from __future__ import annotations

import csv
import io
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from edge.errors import DataError

FILE_COLUMNS = ("file", "path", "filename", "image")
LABEL_COLUMNS = ("class_index", "label", "class")

# Fewer answers than this say nothing about the map: a good network is wrong on the first five at times.
_MIN_ANSWERS = 20
# Nor do answers about fewer classes: two classes confused with each other look like a shift.
_MIN_CLASSES = 5
_FEW = 3


class _Named(Protocol):
    @property
    def name(self) -> str: ...


_P = TypeVar("_P", bound=_Named)


class LabelRow(msgspec.Struct, frozen=True):
    """One line of a truth file; ``label`` is None where the cell is empty or the column is missing."""

    line: int
    file: str
    label: int | None


def load_names(path: Path) -> list[str]:
    """Class names, one per line; the first is class 0. Empty lines at the end do not count, others are an error.

    Raises:
        DataError: the file is missing, empty, not UTF-8 text, or has an empty line between names.
    """
    names = [line.strip() for line in read_text(path).rstrip().split("\n")]
    if names == [""]:
        raise DataError("the file of class names is empty", where=path)
    if "" in names:
        raise DataError(
            "empty line between class names", where=f"{path}:{names.index('') + 1}", hint="one name per line, no gaps"
        )
    return names


def load_truth(path: Path) -> dict[str, int]:
    """Class index by file name, as the CSV at ``path`` has it.

    Raises:
        DataError: the file is missing, has other columns, a label that is not an integer, or one file with two labels.
    """
    truth: dict[str, int] = {}
    for row in read_rows(path, needs_label=True):
        if row.label is None:
            raise DataError(f"no class index for {shown(row.file)}", where=f"{path}:{row.line}")
        name = _normal(row.file.replace("\\", "/"))
        if truth.setdefault(name, row.label) != row.label:
            raise DataError(
                f"{name} is class {row.label} here and class {truth[name]} above", where=f"{path}:{row.line}"
            )
    if not truth:
        raise DataError("the CSV has a header and nothing else", where=path)
    return truth


def join(pictures: Iterable[_P], truth: Mapping[str, int], *, partial: bool = False) -> list[tuple[_P, int]]:
    """Each picture with its true class, in the order of ``pictures``.

    A picture is looked up by its name and then by the last part of it, since a truth file often lies elsewhere.

    Raises:
        DataError: pictures without a label (unless ``partial``), none with one, or a last part that fits several.
    """
    known = {_normal(name): label for name, label in truth.items()}
    by_last: dict[str, int] = {}
    uses = Counter(posixpath.basename(name) for name in known)
    for name, label in known.items():
        by_last[posixpath.basename(name)] = label
    joined: list[tuple[_P, int]] = []
    missing: list[str] = []
    taken: dict[str, str] = {}
    for picture in pictures:
        name = _normal(picture.name)
        last = posixpath.basename(name)
        if name in known:
            joined.append((picture, known[name]))
        elif last not in by_last:
            missing.append(name)
        elif uses[last] > 1 or taken.setdefault(last, name) != name:
            raise DataError(
                f"{last} does not say which picture it is: the name is there more than once",
                hint="write paths relative to the folder of the pictures into the CSV",
            )
        else:
            joined.append((picture, by_last[last]))
    if missing and (not partial or not joined):
        raise DataError(f"{len(missing)} of {len(missing) + len(joined)} pictures have no label: {_few(missing)}")
    return joined


def shape_of_errors(predictions: Sequence[int], truth: Sequence[int], *, classes: int | None = None) -> str | None:
    """One sentence when the labels look as if they belonged to another map than the network's; None when they do not.

    ``predictions`` are top-1 class indices, ``truth`` the true ones, in the same order; ``classes`` is how many the
    network has (otherwise only negative labels are out of range). Looks for labels out of range, for a map shifted by
    one (ImageNet TFRecords and TensorFlow's networks count a background class as 0), and for accuracy near chance.
    Fewer than 20 answers, or answers about fewer than 5 classes, are never called wrong, except when out of range.

    Raises:
        ValueError: the two differ in length.
    """
    if len(predictions) != len(truth):
        raise ValueError(f"{len(predictions)} predictions for {len(truth)} labels")
    return _out_of_range(truth, classes) or _shifted_or_foreign(predictions, truth, classes)


def _out_of_range(truth: Sequence[int], classes: int | None) -> str | None:
    below = sum(label < 0 for label in truth)
    if below:
        return (
            f"{below} of {len(truth)} labels are negative (the lowest is {min(truth)}): class indices count from 0, "
            "and -1 often means that the true class is not published; leave those pictures out"
        )
    if classes is None or not truth or max(truth) < classes:
        return None
    above = sum(label >= classes for label in truth)
    highest = f"the network's last class (the highest is {max(truth)})"
    text = f"{above} of {len(truth)} labels are above {classes - 1}, {highest}"
    if max(truth) == classes and min(truth) >= 1:
        return f"{text}: they seem to count from 1; make them again with --label-offset -1"
    return f"{text}: they are of another label map; use the one that the network was trained with"


def _shifted_or_foreign(predictions: Sequence[int], truth: Sequence[int], classes: int | None) -> str | None:
    count = len(truth)
    if count < _MIN_ANSWERS:
        return None
    kinds = classes if classes is not None else max(*truth, *predictions) + 1
    hits = {by: sum(p == t + by for p, t in zip(predictions, truth, strict=True)) / count for by in (-1, 0, 1)}
    best = max((-1, 1), key=lambda by: hits[by])
    # Neighbours in a map are often alike (dog breeds), so a shift must win clearly, and be good in itself.
    is_possible = min(truth) + best >= 0 and max(truth) + best < kinds and len(set(truth)) >= _MIN_CLASSES
    if is_possible and hits[best] >= 0.2 and hits[best] > 3 * hits[0] and hits[best] - hits[0] > 0.15:
        return (
            f"top-1 is {hits[0]:.1%} with these labels and {hits[best]:.1%} with every label {best:+d}: the label map "
            f"is off by one; make the labels again with --label-offset {best:+d}"
        )
    if kinds >= 10 and len(set(truth)) >= _MIN_CLASSES and hits[0] < max(0.02, 1.5 / kinds):
        return (
            f"top-1 is {hits[0]:.1%} of {count} pictures, no better than chance: the labels are of another map than "
            "the network's, the preprocessing is not what it was trained with, or the engine is broken"
        )
    return None


def render_truth(truth: Mapping[str, int]) -> bytes:
    """A truth file as :func:`load_truth` reads it, by file name."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((FILE_COLUMNS[0], LABEL_COLUMNS[0]))
    writer.writerows(sorted(truth.items()))
    return text.getvalue().encode()


def read_rows(path: Path, *, needs_label: bool) -> Iterator[LabelRow]:
    """Rows of a CSV that names pictures; see the module's docstring for its columns.

    Raises:
        DataError: missing, not text, no such columns, or a class index that is not an integer (with its line).
    """
    text = read_text(path)
    header_line = text.partition("\n")[0]
    delimiter = max(",;\t", key=header_line.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = [cell.strip().lower() for cell in next(reader, [])]
        file_at, label_at = _column(header, FILE_COLUMNS), _column(header, LABEL_COLUMNS)
        if file_at is None or (needs_label and label_at is None):
            wanted = "/".join(FILE_COLUMNS) + (f" and {'/'.join(LABEL_COLUMNS)}" if needs_label else "")
            raise DataError(
                f"the first line must name the columns {wanted}; it is {shown(header_line)!r}", where=f"{path}:1"
            )
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield _row(cells, file_at, label_at, where=f"{path}:{reader.line_num}", line=reader.line_num)
    except csv.Error as exc:
        raise DataError(f"not a CSV: {exc}", where=f"{path}:{reader.line_num}") from exc


def read_text(path: Path) -> str:
    r"""Text of a list: UTF-8 with or without a byte-order mark, any line ends (they come out as ``\n``).

    Bytes that are not UTF-8 are kept as lone surrogates, as Python does for file names: a list can name any file.

    Raises:
        DataError: it cannot be read, is UTF-16, or holds zero bytes (it is not text).
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as exc:
        raise DataError("there is no such file", where=path) from exc
    except OSError as exc:
        raise DataError(f"cannot read: {exc.strerror or exc}", where=path) from exc
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(
            "this is UTF-16 text", where=path, hint="save it as UTF-8 (PowerShell: Out-File -Encoding utf8)"
        )
    if b"\0" in data:
        raise DataError("this is not text: it holds zero bytes", where=path)
    return data.decode("utf-8-sig", "surrogateescape").replace("\r\n", "\n").replace("\r", "\n")


def to_label(text: str, *, where: str) -> int:
    """A class index from text.

    Raises:
        DataError: it is not an integer.
    """
    if re.fullmatch(r"[+-]?[0-9]{1,9}", text) is None:
        raise DataError(f"the class index must be an integer, got {shown(text)!r}", where=where)
    return int(text)


def shown(text: str) -> str:
    r"""``text`` with bytes that are not UTF-8 (lone surrogates) written as ``\xNN``: safe to print and to encode."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _row(cells: list[str], file_at: int, label_at: int | None, *, where: str, line: int) -> LabelRow:
    file = cells[file_at].strip() if file_at < len(cells) else ""
    if not file:
        raise DataError("no file name", where=where)
    text = cells[label_at].strip() if label_at is not None and label_at < len(cells) else ""
    return LabelRow(line, file, to_label(text, where=where) if text else None)


def _column(header: list[str], names: Sequence[str]) -> int | None:
    return next((header.index(name) for name in names if name in header), None)


def _normal(name: str) -> str:
    return posixpath.normpath(shown(name))


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _FEW} more" if len(names) > _FEW else ""
    return ", ".join(names[:_FEW]) + more

"""List files: one path per line, relative to the list's folder, and optionally a tab and a class index."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

import msgspec

from edge.errors import DataError
from edge.media import labels
from edge.media.labels import shown
from edge.media.pictures import FileOrigin, Picture

# `path<tab>label`, `path label`, and `path: label` as in some published lists.
_WITH_LABEL = re.compile(r"(?P<path>\S.*?):?\s+(?P<label>[+-]?[0-9]+)")


class Rendered(msgspec.Struct, frozen=True):
    """A list file: its bytes, and the numbers of lines, of labels, and of images outside the list's folder."""

    data: bytes
    pictures: int
    labelled: int
    outside: int


def read_list(path: Path) -> list[Picture]:
    """Read a list file in its order, ignoring blank lines and lines that start with ``#``.

    Raises:
        DataError: files are missing, a label is not an integer, or the list is empty.
    """
    listing = _Listing(path)
    for number, line in enumerate(labels.read_text(path).split("\n"), start=1):
        text = line.strip()
        if text and not text.startswith("#"):
            listing.add(number, text)
    return listing.done()


def read_csv(path: Path, names: labels.ClassNames | None = None) -> list[Picture]:
    """Read the images of a CSV in its order; columns as in :mod:`edge.media.labels`.

    The class may be missing. A class name is ignored unless ``names`` maps it to a class.

    Raises:
        DataError: files or columns are missing, a label is unknown, or the CSV is empty.
    """
    listing = _Listing(path)
    rows = labels.read_rows(path, needs_label=False, names=names)
    has_indices = any(row.text is not None and labels.is_index(row.text) for row in rows)
    for row in rows:
        where = f"{shown(str(path))}:{row.line}"
        listing.add_file(row.line, row.file, _label(row.text, names, where=where, has_indices=has_indices))
    return listing.done()


def _label(text: str | None, names: labels.ClassNames | None, *, where: str, has_indices: bool) -> int | None:
    """Return the class index of a row; without ``names``, a class name is ignored unless other rows have indices."""
    if text is None:
        return None
    if names is not None and (names.matches(text) or not labels.is_index(text)):
        return names.index(text, where=where)
    return labels.to_label(text, where=where) if has_indices else None


def render_list(pictures: Iterable[Picture], *, folder: Path) -> Rendered:
    """Render a list file for ``folder``, with relative paths where possible.

    Raises:
        DataError: an image is inside a shard, or its name cannot be written on one line.
    """
    lines = []
    labelled = outside = 0
    for picture in pictures:
        if not isinstance(picture.origin, FileOrigin):
            raise DataError(
                "a list can only name files, but this image is inside a shard",
                where=picture.where,
                hint="edge data extract SHARD -o FOLDER, then list that folder",
            )
        name = _relative(Path(picture.origin.path), folder)
        outside += name.startswith(("../", "/"))
        labelled += picture.label is not None
        lines.append(_line(name, picture.label))
    data = "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")
    return Rendered(data, len(lines), labelled, outside)


def natural(picture: Picture) -> tuple[tuple[int, int, str], ...]:
    """Return a sort key that puts ``image_2`` before ``image_10``."""
    parts = re.split(r"([0-9]+)", picture.name)
    return tuple((0, int(part), part) if part[0] in "0123456789" else (1, 0, part.casefold()) for part in parts if part)


def picture_at(folder: Path, name: str, label: int | None) -> Picture:
    """Make the image ``folder/name`` with the name ``name``."""
    path = folder / name
    if Path(name).is_absolute() and path.is_relative_to(folder.absolute()):
        # The most portable form of an absolute path.
        name = str(path.relative_to(folder.absolute()))
    return Picture(shown(Path(os.path.normpath(name)).as_posix()), label, FileOrigin(str(path)))


class _Listing:
    """Images named by a list, and the lines whose files are missing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pictures: list[Picture] = []
        self.missing: list[tuple[int, str]] = []

    def add(self, line: int, text: str) -> None:
        """Add a line of a list: a path, or a path and a label."""
        where = f"{shown(str(self.path))}:{line}"
        match = _WITH_LABEL.fullmatch(text)
        if match and (self._find(match["path"]) or not self._find(text)):
            self.add_file(line, match["path"], labels.to_label(match["label"], where=where))
        elif "\t" in text and not self._find(text):
            name, _, label = text.rpartition("\t")
            self.add_file(line, name.strip(), labels.to_label(label.strip(), where=where))
        else:
            self.add_file(line, text, None)

    def add_file(self, line: int, name: str, label: int | None) -> None:
        """Add a file name, relative to the folder of the list."""
        found = self._find(name)
        if found is None:
            self.missing.append((line, name))
        else:
            self.pictures.append(picture_at(self.path.parent, found, label))

    def done(self) -> list[Picture]:
        """Return all images, or raise a DataError that names missing files."""
        total = len(self.missing) + len(self.pictures)
        if self.missing:
            line, name = self.missing[0]
            raise DataError(
                f"{len(self.missing)} of {total} files are missing; the first is {shown(name)}",
                where=f"{shown(str(self.path))}:{line}",
                hint=f"paths are relative to the folder of the list, {shown(str(self.path.parent))}",
            )
        if not total:
            raise DataError("the list names no images: every line is blank or a comment", where=self.path)
        return self.pictures

    def _find(self, name: str) -> str | None:
        """Return ``name`` or its local form: lists made on Windows have backslashes."""
        plain = name.replace("\\", "/")
        # A name without a suffix is an id, as in Kaggle's tables.
        guesses = [] if "." in plain else [plain + suffix for suffix in (".jpg", ".png", ".jpeg")]
        candidates = (name, plain, *guesses)
        # os.path, not Path: an impossible name (too long) is treated as missing.
        return next((name for name in candidates if os.path.isfile(self.path.parent / name)), None)  # noqa: PTH113


def _relative(path: Path, folder: Path) -> str:
    """Return ``path`` relative to ``folder``, with ``/``."""
    name = os.path.relpath(path, folder)
    try:
        if (folder / name).samefile(path):
            return Path(name).as_posix()
    except OSError:
        pass
    # From a linked folder, ``..`` leads to the parent of the target: use real paths.
    return Path(os.path.relpath(path.parent.resolve() / path.name, folder.resolve())).as_posix()


def _line(name: str, label: int | None) -> str:
    if "\n" in name or "\r" in name or name != name.rstrip():
        raise DataError("a list cannot contain this name: it has a line break or ends in a blank", where=shown(name))
    if name.startswith("#") or name != name.lstrip():
        name = f"./{name}"
    return name if label is None else f"{name}\t{label}"

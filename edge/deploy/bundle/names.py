"""Which file names a bundle may hold: those that mean the same file on every machine, and nothing outside of it."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from edge.errors import ArtifactError

MAX_FILES = 10_000
# A ustar header has 155 bytes for folders and 100 for the rest.
_MAX_TAIL = 100
_MAX_HEAD = 155
# Where what every bundle holds is in it: its profile, and the tables, as in a cache folder.
PROFILE = "profile.yaml"
TABLES = "tables"
RESERVED = frozenset({"bundle.json", "bundle.json.sig"})


def check_names(names: Iterable[str], *, where: str) -> None:
    """Check every name for itself, and that no two of them can be one file or folder on some file system.

    Raises:
        ArtifactError: naming the first that is wrong, and why.
    """
    known: dict[str, str] = {}
    files: set[str] = set()
    for name in names:
        problem = name_problem(name)
        if problem is not None:
            raise ArtifactError(f"file name {name[:200]!a}: {problem}", where=where)
        files.add(name)
        parts = name.split("/")
        for count in range(1, len(parts) + 1):
            path = "/".join(parts[:count])
            other = known.setdefault(_folded(path), path)
            if other != path:
                raise ArtifactError(
                    f"{other!r} and {path!r} are the same name where case or accents do not count", where=where
                )
    for name in sorted(files):
        parts = name.split("/")
        if any("/".join(parts[:count]) in files for count in range(1, len(parts))):
            raise ArtifactError(f"{name!r} is in a file, not in a folder", where=where)


def name_problem(name: str) -> str | None:
    """The reason why a bundle may not hold a file called ``name``; None when it may."""
    parts = name.split("/")
    problems = (
        (name.startswith("/"), "an absolute path"),
        (".." in parts, "it leads out of the bundle"),
        ("" in parts or "." in parts, "an empty part, or '.'"),
        ("\\" in name, "a backslash"),
        # Controls and line ends forge what a terminal shows; surrogates are bytes that are not UTF-8.
        (not name.isprintable(), "a character that cannot be printed"),
        (any(part.startswith("-") for part in parts), "a part that starts with '-' could be taken for an option"),
        (any(part != part.strip() or part.endswith(".") for part in parts), "a blank or a dot at the end of a part"),
        (_folded(parts[0]) in RESERVED, "that is the manifest's or the signature's own name"),
    )
    found = next((words for wrong, words in problems if wrong), None)
    return found or (None if split_for_header(name.encode()) is not None else "too long")


def printable_name(text: str) -> str:
    """At most 300 characters of a stranger's ``text``, without what a terminal obeys: escapes, line ends."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text[:300])


def split_for_header(name: bytes) -> tuple[bytes, bytes] | None:
    """``name`` as the two fields of a ustar header, (prefix, name); None where it does not fit."""
    if len(name) <= _MAX_TAIL:
        return b"", name
    cut = name.find(b"/", len(name) - _MAX_TAIL - 1)
    if cut <= 0 or cut > _MAX_HEAD:
        return None
    return name[:cut], name[cut + 1 :]


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())

"""The manifest ``bundle.json``: the sha256 and size of every file, and the manifest's own sha256.

A manifest has exactly one valid form (sorted keys, indented by two blanks, a line end at the end), and only that form
is read: duplicate keys, or anything that JSON parsers may interpret differently, are refused.
The id of a bundle is the sha256 of these bytes, so it stands for every byte of every file.

File names in it are portable, and never refer to anything outside of the bundle.
"""

from __future__ import annotations

import hmac
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from edge.artifacts import FileEntry, store
from edge.errors import ArtifactError

MAX_FILES = 10_000
# A ustar header has 155 bytes for folders and 100 for the rest.
_MAX_TAIL = 100
_MAX_HEAD = 155
# Paths in every bundle: its profile, and its tables, as in a cache folder.
PROFILE = "profile.yaml"
TABLES = "tables"
RESERVED = frozenset({"bundle.json", "bundle.json.sig"})
FORMAT = 1
MANIFEST = "bundle.json"
SIGNATURE = "bundle.json.sig"
MAX_MANIFEST_BYTES = 16 << 20
MAX_WORD = 200
# Maximum of the size field of a ustar header: 11 octal digits.
MAX_FILE_BYTES = 8**11 - 1
_SHA256 = re.compile(r"[0-9a-f]{64}")
_HINT = "get the bundle again, or make it again with edge bundle create"


class BundleManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The content of ``bundle.json``.

    ``jetpack`` lists the supported releases ("6.2" includes all of its updates), and None means any; ``profile`` is the
    name of its profile; ``created_with`` is the version of edge. ``self_sha256`` covers all other fields.
    """

    format: int
    name: str
    family: str
    jetpack: list[str] | None
    profile: str
    created_with: str
    files: dict[str, FileEntry]
    info: dict[str, Any]
    self_sha256: str = ""

    @property
    def total_bytes(self) -> int:
        """Size of all files together, without the manifest."""
        return sum(entry.size for entry in self.files.values())


def encode_manifest(manifest: BundleManifest) -> bytes:
    """Encode a manifest with its own digest filled in; there is one way to write it."""
    content = msgspec.to_builtins(manifest)
    content["self_sha256"] = _seal(content)
    return _write(content)


def decode_manifest(data: bytes, *, where: str) -> BundleManifest:
    """Decode a manifest, and check its digest, its form, and every name and size in it.

    Raises:
        ArtifactError: it is not a manifest of this format, was changed, or names a file that is not allowed in a
        bundle.
    """
    try:
        content = json.loads(data.decode())
        rewritten = _write(content)
    except (ValueError, RecursionError) as exc:  # also: not UTF-8, NaN, a number of a million digits
        raise ArtifactError(
            f"not the manifest of a bundle: {printable_name(str(exc))}", where=where, hint=_HINT
        ) from exc
    if not isinstance(content, dict) or not isinstance(content.get("files"), dict):
        raise ArtifactError("not the manifest of a bundle", where=where, hint=_HINT)
    found = content.get("format")
    if found != FORMAT or isinstance(found, bool):
        raise ArtifactError(
            f"bundle format {printable_name(repr(found))}; this edge reads format {FORMAT}",
            where=where,
            hint="use the version of edge that made it",
        )
    if rewritten != data:
        raise ArtifactError("the manifest is not in the form that edge writes", where=where, hint=_HINT)
    seal = content.get("self_sha256")
    if not isinstance(seal, str) or not hmac.compare_digest(seal.encode(), _seal(content).encode()):
        raise ArtifactError("the manifest was changed after it was written", where=where, hint=_HINT)
    try:
        manifest = msgspec.convert(content, BundleManifest)
    except msgspec.ValidationError as exc:
        raise ArtifactError(
            f"not the manifest of a bundle: {printable_name(str(exc))}", where=where, hint=_HINT
        ) from exc
    words = (manifest.name, manifest.family, manifest.profile, manifest.created_with, *(manifest.jetpack or []))
    wrong = next((word for word in words if not word.isprintable() or not 0 < len(word) <= MAX_WORD), None)
    if wrong is not None:
        raise ArtifactError(f"{wrong[:MAX_WORD]!a} is no name", where=where, hint=_HINT)
    check_entries(manifest.files, where=where)
    return manifest


def check_entries(files: Mapping[str, FileEntry], *, where: str) -> None:
    """Check every name, size and digest in a manifest.

    Raises:
        ArtifactError: an entry is invalid; the message names the first.
    """
    if len(files) > MAX_FILES:
        raise ArtifactError(f"{len(files)} files are too many; a bundle has at most {MAX_FILES}", where=where)
    check_names(files, where=where)
    for name, entry in files.items():
        if not 0 <= entry.size <= MAX_FILE_BYTES:
            raise ArtifactError(f"{name}: invalid size of {entry.size} bytes", where=where, hint="at most 8 GiB a file")
        if not _SHA256.fullmatch(entry.sha256):
            raise ArtifactError(f"{name}: {entry.sha256[:80]!r} is not a sha256", where=where)


def _write(content: object) -> bytes:
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()


def _seal(content: dict[str, Any]) -> str:
    return store.canonical_digest({name: value for name, value in content.items() if name != "self_sha256"})


def check_names(names: Iterable[str], *, where: str) -> None:
    """Check every name, and that no two names can be the same file or folder on any file system.

    Raises:
        ArtifactError: an entry is invalid; the message names the first, and why.
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
                    f"{other!r} and {path!r} are the same name on a file system that ignores case or accents",
                    where=where,
                )
    for name in sorted(files):
        parts = name.split("/")
        if any("/".join(parts[:count]) in files for count in range(1, len(parts))):
            raise ArtifactError(f"{name!r} has a file as its parent folder", where=where)


def name_problem(name: str) -> str | None:
    """Return the reason why a bundle must not contain a file called ``name``; None if it may."""
    parts = name.split("/")
    problems = (
        (name.startswith("/"), "an absolute path"),
        (".." in parts, "it leads out of the bundle"),
        ("" in parts or "." in parts, "an empty part, or '.'"),
        ("\\" in name, "a backslash"),
        # Control characters and line ends could forge terminal output; surrogates are bytes that are not UTF-8.
        (not name.isprintable(), "a character that cannot be printed"),
        (any(part.startswith("-") for part in parts), "a part that starts with '-' could be taken for an option"),
        (any(part != part.strip() or part.endswith(".") for part in parts), "a blank or a dot at the end of a part"),
        (_folded(parts[0]) in RESERVED, "that is the manifest's or the signature's own name"),
    )
    found = next((words for wrong, words in problems if wrong), None)
    return found or (None if split_for_header(name.encode()) is not None else "too long")


def printable_name(text: str) -> str:
    """Return at most 300 characters of untrusted ``text`` without terminal control characters and line ends."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text[:300])


def split_for_header(name: bytes) -> tuple[bytes, bytes] | None:
    """Split ``name`` into the two fields of a ustar header, (prefix, name); return None if it does not fit."""
    if len(name) <= _MAX_TAIL:
        return b"", name
    cut = name.find(b"/", len(name) - _MAX_TAIL - 1)
    if cut <= 0 or cut > _MAX_HEAD:
        return None
    return name[:cut], name[cut + 1 :]


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())

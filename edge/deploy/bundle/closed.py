"""Nothing that a bundle names is outside it: what runs is what was verified and signed.

The profile in a bundle is resolved when it is made, so it extends nothing, and its paths are files of the bundle. A
bundle from somebody else may say anything, so this is checked whenever one is opened (:func:`check_profile`), and for
the weight files that its ONNX models name before it is shipped, unpacked or run (:func:`check_models`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol

from edge.artifacts import FileEntry
from edge.config import parse_plain_yaml
from edge.deploy.bundle.manifest import PROFILE, name_problem
from edge.errors import ArtifactError
from edge.model import external_locations

if TYPE_CHECKING:
    from edge.deploy.bundle.reader import Bundle

MAX_PROFILE_BYTES = 1 << 20
# Keys of a profile whose value is a file, wherever they are in it.
_FILE_KEYS = frozenset({"model", "labels", "images", "file", "path", "folder", "table"})
# Elements and properties of a GStreamer pipeline that read or write files of the device.
_PIPELINE_FILES = re.compile(r"\b\w*file(?:src|sink)\b|\blocation\s*=|file:|-(?:file|path)\s*=", re.IGNORECASE)
_CLOSED_HINT = "make it again with edge bundle create, from a profile that names its own files"
_LOCATION = b"location"


class ProfileSource(Protocol):
    """An open bundle, or one that is about to be written."""

    @property
    def where(self) -> str:
        """Its path, for messages."""

    @property
    def files(self) -> dict[str, FileEntry]:
        """Digest and size of every file, by name."""

    def read(self, name: str) -> bytes:
        """The content of one file."""


def check_profile(bundle: ProfileSource) -> None:
    """Refuse a bundle whose profile names anything outside it.

    Raises:
        ArtifactError: naming the key.
    """
    if PROFILE not in bundle.files:
        return
    where = f"{bundle.where}: {PROFILE}"
    if bundle.files[PROFILE].size > MAX_PROFILE_BYTES:
        raise ArtifactError(f"a profile of more than {MAX_PROFILE_BYTES} bytes", where=where)
    tree = parse_plain_yaml(bundle.read(PROFILE), where=where)
    if "extends" in tree:
        raise ArtifactError("extends: a bundle's profile extends nothing", where=where, hint=_CLOSED_HINT)
    for key, value in _texts(tree, ()):
        problem = _problem(key, value, bundle)
        if problem is not None:
            raise ArtifactError(f"{'.'.join(key)}: {value[:100]!a} {problem}", where=where, hint=_CLOSED_HINT)


def check_models(bundle: Bundle) -> None:
    """Refuse a bundle with an ONNX model that names a weight file outside it; reads every model.

    Raises:
        ArtifactError: naming the file.
        MissingDependencyError: a model has weight files, and onnx is not installed.
    """
    for name in sorted(bundle.files):
        if not name.endswith(".onnx") or not _mentions_files(bundle, name):
            continue
        folder = PurePosixPath(name).parent
        for location in sorted(external_locations(bundle.read(name), where=f"{bundle.path}: {name}")):
            target = (folder / location).as_posix()
            if name_problem(location) is not None or target not in bundle.files:
                raise ArtifactError(
                    f"{name}: its weight file {location[:100]!a} is not in the bundle",
                    where=bundle.path,
                    hint=_CLOSED_HINT,
                )


def _problem(key: tuple[str, ...], value: str, bundle: ProfileSource) -> str | None:
    """The reason why a value of the profile is not allowed in a bundle; None when it is."""
    if key[-1] in _FILE_KEYS and (name_problem(value) is not None or value not in bundle.files):
        return "is not a file of the bundle"
    if key[-1] == "pipeline" and _PIPELINE_FILES.search(value):
        return "reads or writes files of the device"
    if key[0] == "notify" and value.startswith(("exec:", "@")):
        return "is a command or a file of the device: give it there, with --notify"
    return None


def _texts(value: Any, key: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:  # noqa: ANN401 - plain YAML
    """Every text in the profile, with the keys that lead to it."""
    if isinstance(value, str) and key:
        yield key, value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _texts(item, (*key, str(name)))
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item, key)


def _mentions_files(bundle: Bundle, name: str) -> bool:
    # The field's name is in the protobuf as plain text, so most models need no parsing.
    tail = b""
    with bundle.open(name) as file:
        while piece := file.read(1 << 22):
            if _LOCATION in tail + piece:
                return True
            tail = piece[-len(_LOCATION) :]
    return False

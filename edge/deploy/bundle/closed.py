"""Check that a bundle names nothing outside of itself, so that only verified and signed files are used.

The profile in a bundle is resolved, so it extends nothing, and its paths are files of the bundle. An untrusted bundle
may contain anything, so the profile is checked whenever a bundle is opened (:func:`check_profile`), and the weight
files of its ONNX models before it is shipped, unpacked or run (:func:`check_models`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol

from edge.artifacts import FileEntry
from edge.config import PROFILE_PATH_WORDS, PROFILE_PATHS, parse_plain_yaml
from edge.deploy.bundle.manifest import PROFILE, name_problem
from edge.errors import ArtifactError, ModelError
from edge.model import external_locations

if TYPE_CHECKING:
    from edge.deploy.bundle.reader import Bundle

# PyYAML reads some 30 kB a second of the worst text.
MAX_PROFILE_BYTES = 1 << 17
# Keys whose value is a file, wherever they are in the profile, beside those that edge.config knows.
_FILE_KEYS = frozenset({"model", "labels", "images", "file", "path", "folder", "table"})
# Files that the device reads for itself, or writes: none of a bundle's.
_DEVICE_KEYS = frozenset({("web", "token_file"), ("telemetry", "log")})
# Elements of a GStreamer pipeline that read no files and write none. A list of those that do would never be complete.
_ELEMENTS = re.compile(
    "v4l2src|nvarguscamerasrc|nvv4l2camerasrc|videotestsrc|rtspsrc|souphttpsrc|udpsrc|tcpclientsrc|uridecodebin|"
    "decodebin|queue|tee|capsfilter|identity|videoconvert|videoscale|videorate|videocrop|videoflip|videobalance|"
    "deinterlace|bayer2rgb|nvvidconv|nvvideoconvert|nvjpegdec|jpegdec|jpegparse|nvv4l2decoder|avdec_h264|avdec_h265|"
    "avdec_mjpeg|h264parse|h265parse|rtph264depay|rtph265depay|rtpjpegdepay|rtpjitterbuffer|multipartdemux|appsink"
)
_CAPS = re.compile(r"(?:video|image|application)/[\w.+-]+(?:\([\w:]+\))?,?(?:[\w-]+=[\w.,:/()=-]*)?")
_PROPERTY = re.compile(r"(?P<name>[\w-]+)=(?P<value>(?:[\w.,:;/@%?&=+()~-]|\{device\})*)")
_PAD = re.compile(r"\w+\.\w*")
_NETWORK_ADDRESS = re.compile(r"\{device\}|(?:rtspu?|rtspt|rtsps|https?|udp|tcp)://", re.IGNORECASE)
_CLOSED_HINT = "make it again with edge bundle create, from a profile with its own files"
_LOCATION = b"location"


class ProfileSource(Protocol):
    """An open bundle, or one that is being made."""

    @property
    def where(self) -> str:
        """Path to show in messages."""

    @property
    def files(self) -> dict[str, FileEntry]:
        """Digest and size of every file, by name."""

    def read(self, name: str) -> bytes:
        """Return the content of one file."""


def check_profile(bundle: ProfileSource) -> None:
    """Refuse a bundle whose profile names anything outside of it.

    Raises:
        ArtifactError: a key names something outside; the message names the key.
    """
    if PROFILE not in bundle.files:
        return
    where = f"{bundle.where}: {PROFILE}"
    if bundle.files[PROFILE].size > MAX_PROFILE_BYTES:
        raise ArtifactError(f"the profile has more than {MAX_PROFILE_BYTES} bytes", where=where)
    tree = parse_plain_yaml(bundle.read(PROFILE), where=where)
    if "extends" in tree:
        raise ArtifactError("extends: not allowed in the profile of a bundle", where=where, hint=_CLOSED_HINT)
    for key, value in _texts(tree, ()):
        problem = _problem(key, value, bundle)
        if problem is not None:
            raise ArtifactError(f"{'.'.join(key)}: {value[:100]!a} {problem}", where=where, hint=_CLOSED_HINT)


def check_models(bundle: Bundle) -> None:
    """Refuse a bundle with an ONNX model that names a weight file outside of it; reads every model.

    Raises:
        ArtifactError: a weight file is outside; the message names it.
        MissingDependencyError: a model has weight files, and onnx is not installed.
    """
    for name in sorted(bundle.files):
        if not _mentions_files(bundle, name):
            continue
        folder = PurePosixPath(name).parent
        try:
            locations = external_locations(bundle.read(name), where=f"{bundle.path}: {name}")
        except ModelError:
            # A profile may name any file as its model, so every file is looked at, and most are none.
            if name.endswith(".onnx"):
                raise
            continue
        for location in sorted(locations):
            target = (folder / location).as_posix()
            if name_problem(location) is not None or target not in bundle.files:
                raise ArtifactError(
                    f"{name}: its weight file {location[:100]!a} is not in the bundle",
                    where=bundle.path,
                    hint=_CLOSED_HINT,
                )


def _problem(key: tuple[str, ...], value: str, bundle: ProfileSource) -> str | None:
    """Return the reason why a value of the profile is not allowed in a bundle, or None."""
    if key in _DEVICE_KEYS or (key == ("telemetry", "source") and value.startswith("replay")):
        return "is a file of the device, which a bundle must not name"
    is_path = key[-1] in _FILE_KEYS or (key in PROFILE_PATHS and value not in PROFILE_PATH_WORDS)
    if is_path and (name_problem(value) is not None or value not in bundle.files):
        return "is not a file of the bundle"
    if key[-1] == "pipeline" and (part := _foreign_part(value)) is not None:
        return f"may read or write files of the device: {part[:60]!a} (docs/bundles.md lists what a pipeline may have)"
    if key[0] == "notify" and value.startswith(("exec:", "@")):
        return "is a command or a file of the device; set it on the device with --notify"
    if key[0] == "cameras" and value.startswith("@"):
        return "is a file of the device; set it on the device with --camera NAME=@FILE"
    return None


def _foreign_part(pipeline: str) -> str | None:
    """Return the first part of a GStreamer pipeline that may access files, or None."""
    for part in re.split(r"[\s!]+", pipeline.strip()):
        if _ELEMENTS.fullmatch(part) or _CAPS.fullmatch(part) or _PAD.fullmatch(part):
            continue
        found = _PROPERTY.fullmatch(part)
        if found is None or re.search(r"(?:file(?:name)?|path|dir(?:ectory)?)$", found["name"], re.IGNORECASE):
            return part
        if found["name"] in {"location", "uri"} and not _NETWORK_ADDRESS.match(found["value"]):
            return part
    return None


def _texts(value: Any, key: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:  # noqa: ANN401 - plain YAML
    """Yield every text in the profile with its keys."""
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
        while piece := file.read(1 << 20):
            if _LOCATION in piece or _LOCATION in tail + piece[: len(_LOCATION)]:
                return True
            tail = piece[-len(_LOCATION) :]
    return False

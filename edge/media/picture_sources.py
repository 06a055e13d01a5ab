"""Open a user's source (folder, image, list, CSV, TFRecord shards) as :class:`~edge.media.Pictures`."""

from __future__ import annotations

import contextlib
import glob
import os
import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from edge.artifacts import masked_url
from edge.errors import DataError
from edge.media import tfrecord
from edge.media.image_lists import picture_at, read_csv, read_list
from edge.media.labels import SUFFIXES, ClassNames, folder_labels, join, load_truth, shown
from edge.media.pictures import Picture, Pictures

_VIDEOS = frozenset({".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mjpg", ".mpg", ".ts"})
_LISTS = frozenset({".txt", ".list"})
_TABLES = frozenset({".csv", ".tsv"})
_LOOKED_FOR = f"images ({', '.join(sorted(s[1:] for s in SUFFIXES))}) or TFRecord shards"


def open_pictures(
    source: Path, *, labels: Path | None = None, names: ClassNames | None = None, label_offset: int = 0
) -> Pictures:
    """List the images of ``source`` in a fixed order.

    ======================  ========================================================================================
    a folder                every image below it, by name; hidden files and other kinds of files do not count.
                            Linked folders are entered, each once. A folder of TFRecord shards is read as such
    an image               that one
    a list (.txt, .list)    one path per line, relative to the list's folder, in the order of the list; blank lines
                            and lines from ``#`` do not count; a label may follow after a tab or a space
    a CSV or TSV            columns as in :mod:`edge.media.labels`, relative to its folder; the label may be missing
    TFRecord shards         a shard, or a pattern (``train-*``): every record, in the order of the shards
    ======================  ========================================================================================

    Args:
        source: one of the sources in the table.
        labels: a label file (see :func:`edge.media.labels.load_truth`); its classes replace those of the source.
        names: class names of the network. With them a label may be a name, in a folder per class each image has its
            folder's class, and indices must be in range.
        label_offset: added to every class index of ``labels`` and of the source.

    Raises:
        DataError: the source does not exist, is empty, names missing files, or images have no label in
            ``labels``. A damaged shard is noticed where its records are listed.
    """
    source = _home(source)
    with _reading(source):
        pictures = _open(source, names)
    if labels is not None:
        joined = join(pictures, load_truth(labels, names=names, offset=label_offset))
        return Pictures(source, [picture.labelled(label) for picture, label in joined])
    if names is not None and source.is_dir() and not _shards_in(source):
        classes = folder_labels(list(pictures), names, folder=source)
        if classes is not None:
            return Pictures(source, [p.labelled(c) for p, c in zip(pictures, classes, strict=True)])
    if label_offset or names is not None:
        return Pictures(source, _in_range(pictures, names, label_offset))
    return pictures


def _in_range(pictures: Pictures, names: ClassNames | None, offset: int) -> Iterator[Picture]:
    for picture in pictures:
        if picture.label is None:
            yield picture
            continue
        label = picture.label + offset
        if names is not None and not 0 <= label < len(names):
            one_more = label == len(names) and offset == 0
            raise DataError(
                f"class index {label} is out of range: {names.source} has {len(names)} names, 0 to {len(names) - 1}",
                where=picture.where,
                hint="class indices of ImageNet shards count from 1: --label-offset -1" if one_more else None,
            )
        yield picture.labelled(label)


def shards_of(source: Path) -> list[Path]:
    """Return the TFRecord shards of ``source`` (a shard, folder or pattern) by name; an empty list if it has none.

    Raises:
        DataError: a folder holds both shards and images, or cannot be read.
    """
    source = _home(source)
    with _reading(source):
        if source.is_dir():
            return _shards_in(source)
        found = [source] if source.exists() else _matches(source)
        return found if found and all(tfrecord.is_shard(path) for path in found) else []


def _shards_in(folder: Path) -> list[Path]:
    shards = sorted(path for path in folder.iterdir() if tfrecord.is_shard(path) and path.is_file())
    picture = next(_walk(folder), None) if shards else None
    if picture is not None:
        raise DataError(
            f"the folder contains both images ({shown(picture)}, …) and TFRecord shards ({shards[0].name}, …)",
            where=folder,
            hint="choose one: a pattern such as 'folder/train-*', or a folder of images alone",
        )
    return shards


@contextlib.contextmanager
def _reading(source: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise DataError(f"cannot read: {exc.strerror or exc}", where=shown(str(source))) from exc


def _home(path: Path) -> Path:
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path.expanduser raises where there is no such user


def _open(source: Path, names: ClassNames | None) -> Pictures:
    if source.is_dir():
        return _open_folder(source)
    suffix = source.suffix.lower()
    if source.exists() and suffix in SUFFIXES:
        return Pictures(source, [picture_at(source.parent, source.name, None)])
    if source.exists() and suffix in _LISTS:
        return Pictures(source, read_list(source))
    if source.exists() and suffix in _TABLES:
        return Pictures(source, read_csv(source, names))
    shards = shards_of(source)
    if shards:
        return tfrecord.open_shards(source, shards)
    if source.exists():
        if suffix in _VIDEOS:
            what, hint = "this is a video, not a set of images", f"--video {shown(str(source))}"
        else:
            what = "edge does not know this kind of file"
            hint = "use a folder, image, list (.txt), .csv, .tsv, or TFRecord shards (.tfrecord, name-00000-of-01024)"
        raise DataError(what, where=source, hint=hint)
    # In a URL given as a path, the two slashes have become one.
    if re.match(r"(rtsp|rtsps|https?|rtmp|tcp|udp):/", str(source)):
        raise _no_url(str(source).replace(":/", "://", 1), path=source)
    if source.name.isdecimal() or str(source).startswith("/dev/video"):
        raise DataError("this is a camera, not a set of images", where=source, hint=f"--camera {source}")
    pictures = [path for path in _matches(source) if path.suffix.lower() in SUFFIXES]
    if not pictures:
        raise DataError(
            "this file or folder does not exist", where=source, hint=f"name a folder, list or pattern of {_LOOKED_FOR}"
        )
    base = Path(os.path.commonpath([path.parent for path in pictures]))
    return Pictures(source, [picture_at(base, path.relative_to(base).as_posix(), None) for path in pictures])


def _no_url(url: str, *, path: Path) -> DataError:
    """The error for a URL, with the option that takes it."""
    url = masked_url(url)
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        return DataError("an image is not read from a URL", where=url, hint=f"curl -LO '{url}'; --images {path.name}")
    if suffix in _VIDEOS and not url.startswith(("rtsp", "rtmp")):
        return DataError(
            "this is the URL of a video, not a set of images", where=url,
            hint=f"curl -LO '{url}'; --video {path.name}; a live stream: --camera {url}",
        )  # fmt: skip
    return DataError("this is a URL, not a set of images", where=url, hint=f"--camera {url}")


def _matches(pattern: Path) -> list[Path]:
    return [Path(name) for name in sorted(glob.glob(str(pattern)))]  # noqa: PTH207 - Path.glob takes no absolute ones


def _open_folder(folder: Path) -> Pictures:
    shards = _shards_in(folder)
    if shards:
        return tfrecord.open_shards(folder, shards)
    names = sorted(_walk(folder))
    if not names:
        raise DataError(f"no images: looked for {_LOOKED_FOR} in it and below it", where=folder)
    return Pictures(folder, [picture_at(folder, name, None) for name in names])


def _walk(root: Path) -> Iterator[str]:
    """Yield the paths of images in and below ``root``, relative to it and in any order.

    Each folder is entered once, even if several links lead to it, and under its own name rather than a link's.
    """
    seen: set[tuple[int, int]] = set()
    folders, links = [root], deque[Path]()
    while folders or links:
        folder = folders.pop() if folders else links.popleft()
        try:
            state = folder.stat()
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as exc:
            raise DataError(f"cannot read the folder: {exc.strerror or exc}", where=shown(str(folder))) from exc
        if (state.st_dev, state.st_ino) in seen:
            continue
        seen.add((state.st_dev, state.st_ino))
        for entry in entries:
            path = Path(entry.path)
            if entry.name.startswith("."):
                continue
            if os.path.isdir(path):  # noqa: PTH112 - links that go round in a circle are no folders, and no errors
                (links if entry.is_symlink() else folders).append(path)
            elif path.suffix.lower() in SUFFIXES and (entry.is_symlink() or entry.is_file()):
                # A broken link is listed: an error on reading is better than a silently shorter set.
                yield path.relative_to(root).as_posix()

"""Look at every picture of a source and say which ones are bad."""

from __future__ import annotations

from pathlib import Path

import msgspec

from edge import labels as truths
from edge.errors import DataError
from edge.events import Listener, Progress, silence
from edge.frames.decoding import decode
from edge.frames.pictures import Picture
from edge.frames.sources import open_pictures, shards_of
from edge.labels import shown


class Bad(msgspec.Struct, frozen=True):
    """One thing that is wrong with a source: where, and what."""

    name: str
    problem: str


class Checked(msgspec.Struct, frozen=True):
    """What a check found: how many pictures were listed, and everything that is wrong with them."""

    pictures: int
    bad: list[Bad]


def check(source: Path, *, labels: Path | None = None, listen: Listener = silence) -> Checked:
    """Decode every picture of ``source``; with ``labels``, a picture without a class index there is bad too.

    Raises:
        DataError: the source cannot be opened, or the labels are unusable. A bad picture is no error, but a result.
        GuestError: OpenCV, or what TFRecord shards need, is not installed.
    """
    bad: list[Bad] = []
    pictures: list[Picture] = []
    shards = shards_of(source)
    # Shards one by one: damage in one says nothing about the next.
    for part in shards or [source]:
        listed, damage = list_all(part, listen=listen)
        pictures.extend(listed)
        if damage is not None and not shards:
            raise damage
        if damage is not None:
            bad.append(Bad(shown(damage.where or str(part)), f"{damage.what}; the rest of the shard was not looked at"))
    bad.extend(_undecodable(pictures, listen=listen))
    if labels is not None:
        bad.extend(_unlabelled(pictures, labels))
    return Checked(len(pictures), bad)


def list_all(
    source: Path, *, limit: int | None = None, listen: Listener = silence
) -> tuple[list[Picture], DataError | None]:
    """Pictures of ``source``, at most ``limit``; and what ended the listing before its end, if something did."""
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


def _unlabelled(pictures: list[Picture], path: Path) -> list[Bad]:
    joined = truths.join(pictures, truths.load_truth(path), partial=True)
    known = {id(picture) for picture, _ in joined}
    return [
        Bad(picture.name, f"no class index in {shown(str(path))}") for picture in pictures if id(picture) not in known
    ]

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edge.errors import DataError
from edge.events import Event, Progress
from edge.media.picture_sets import check, list_all

Encoder = Callable[..., bytes]
ShardWriter = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path, encode: Encoder) -> Path:
    (tmp_path / "set").mkdir()
    for n in range(4):
        (tmp_path / "set" / f"{n}.jpg").write_bytes(encode(".jpg", seed=n))
    return tmp_path / "set"


def test_a_good_folder(folder: Path) -> None:
    heard: list[Event] = []
    found = check(folder, listen=heard.append)
    assert (found.pictures, found.bad) == (4, [])
    assert heard[-1] == Progress("decode", 4, 4)


def test_every_bad_picture_is_named_with_what_is_wrong(folder: Path, encode: Encoder) -> None:
    (folder / "cut.jpg").write_bytes(encode(".jpg")[:300])
    (folder / "empty.png").write_bytes(b"")
    (folder / "page.jpg").write_bytes(b"<!doctype html>")
    (folder / "link.jpg").symlink_to("nowhere.jpg")
    found = check(folder)
    assert found.pictures == 8
    problems = {bad.name: bad.problem for bad in found.bad}
    assert list(problems) == ["cut.jpg", "empty.png", "link.jpg", "page.jpg"]
    assert "truncated" in problems["cut.jpg"]
    assert "0 bytes" in problems["empty.png"]
    assert "No such file" in problems["link.jpg"]
    assert "HTML" in problems["page.jpg"]


def test_pictures_without_a_label_are_bad_where_labels_are_given(folder: Path, tmp_path: Path) -> None:
    truth = tmp_path / "labels.csv"
    truth.write_text("file,class_index\n0.jpg,1\n2.jpg,1\n")
    found = check(folder, labels=truth)
    assert [bad.name for bad in found.bad] == ["1.jpg", "3.jpg"]
    assert all("no class index" in bad.problem for bad in found.bad)


def test_damage_in_one_shard_does_not_hide_the_next(tmp_path: Path, encode: Encoder, write_shard: ShardWriter) -> None:
    pictures = [encode(".jpg", seed=n, size=(8, 8)) for n in range(3)]
    first = write_shard(tmp_path / "t-00000-of-00002", [(p, 1, b"a%d.jpg" % n) for n, p in enumerate(pictures)])
    first.write_bytes(first.read_bytes()[:-9])
    write_shard(tmp_path / "t-00001-of-00002", [(pictures[0], 1, b"b.jpg"), (b"\xff\xd8\xff", 1, b"c.jpg")])
    found = check(tmp_path)
    assert found.pictures == 4
    assert [bad.name.rpartition("/")[2].partition(" at")[0] for bad in found.bad] == [
        "t-00000-of-00002: record 2",
        "c.jpg",
    ]
    assert "the rest of the shard was not checked" in found.bad[0].problem


def test_a_source_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="this file or folder does not exist"):
        check(tmp_path / "nothing")


def test_listing_stops_at_the_limit_and_says_what_stopped_it(tmp_path: Path, write_shard: ShardWriter) -> None:
    shard = write_shard(tmp_path / "a.tfrecord", [(b"x%d" % n, n, None) for n in range(4)])
    shard.write_bytes(shard.read_bytes()[:-1])
    listed, damage = list_all(shard, limit=2)
    assert (len(listed), damage) == (2, None)
    listed, damage = list_all(shard)
    assert len(listed) == 3
    assert "record 3" in str(damage)

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from edge.errors import DataError, UsageError
from edge.events import Event, Progress
from edge.media.picture_sources import open_pictures
from edge.media.pictures import FileOrigin, Picture, Pictures


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for n in range(7):
        (tmp_path / f"{n}.jpg").write_bytes(b"image %d" % n)
    return tmp_path


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_set_counts_iterates_and_indexes(folder: Path) -> None:
    pictures = open_pictures(folder)
    assert pictures.source == folder
    assert len(pictures) == 7
    assert [p.name for p in pictures] == [f"{n}.jpg" for n in range(7)]
    assert pictures[0].name == "0.jpg"
    assert pictures[-1].name == "6.jpg"
    assert list(pictures) == list(pictures)
    for index in (7, -8):
        with pytest.raises(IndexError):
            pictures[index]


def test_take(folder: Path) -> None:
    pictures = open_pictures(folder)
    assert [p.name for p in pictures.take(2)] == ["0.jpg", "1.jpg"]
    assert len(pictures.take(100)) == 7
    assert pictures.take(3).source == folder


@pytest.mark.parametrize("count", [0, -1])
def test_taking_nothing_is_refused(count: int, folder: Path) -> None:
    with pytest.raises(UsageError, match="minimum is 1"):
        open_pictures(folder).take(count)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 10])
def test_shards_hold_each_picture_once(count: int, folder: Path) -> None:
    pictures = open_pictures(folder)
    shards = [pictures.shard(index, count) for index in range(count)]
    assert sorted(p.name for shard in shards for p in shard) == [p.name for p in pictures]
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize(("index", "count"), [(-1, 2), (2, 2), (0, 0)])
def test_a_shard_that_there_is_not(index: int, count: int, folder: Path) -> None:
    with pytest.raises(UsageError, match="there is no shard"):
        open_pictures(folder).shard(index, count)


def test_a_picture_is_frozen(folder: Path) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        open_pictures(folder)[0].name = "other"  # type: ignore[misc]


def test_sha256_is_of_the_bytes_and_read_once(folder: Path) -> None:
    picture = open_pictures(folder)[3]
    assert picture.sha256 == _sha(b"image 3")
    (folder / "3.jpg").unlink()
    assert picture.sha256 == _sha(b"image 3")


def test_the_digest_is_of_the_sorted_hashes(folder: Path) -> None:
    hashes = sorted(_sha(b"image %d" % n) for n in range(7))
    expected = _sha(json.dumps(hashes, separators=(",", ":")).encode())
    assert open_pictures(folder).digest() == expected


def test_the_digest_does_not_depend_on_names_order_or_labels(folder: Path) -> None:
    other = folder / ".other"
    other.mkdir()
    for n in range(7):
        (other / f"x{9 - n}.png").write_bytes(b"image %d" % n)
    (folder / "list.txt").write_text("".join(f"{n}.jpg\t{n}\n" for n in (3, 1, 0, 2, 6, 5, 4)))
    digests = {open_pictures(source).digest() for source in (folder, other, folder / "list.txt")}
    assert len(digests) == 1


def test_the_digest_depends_on_content_and_on_how_often(folder: Path) -> None:
    (folder / "twice.txt").write_text("".join(f"{n}.jpg\n" for n in (0, 1, 2, 3, 4, 5, 6, 6)))
    whole = open_pictures(folder)
    before = whole.digest()
    assert open_pictures(folder / "twice.txt").digest() != before
    assert whole.take(6).digest() != before
    (folder / "0.jpg").write_bytes(b"other")
    assert open_pictures(folder).digest() != before


def test_the_digest_tells_how_far_it_is(folder: Path) -> None:
    heard: list[Event] = []
    open_pictures(folder).digest(heard.append)
    assert heard == [Progress("hash", n, 7) for n in range(1, 8)]


def test_a_picture_that_changes_under_us_is_noticed(folder: Path) -> None:
    pictures = open_pictures(folder)
    pictures.digest()
    (folder / "2.jpg").write_bytes(b"PICTURE 2")
    assert pictures[1].read_checked() == b"image 1"
    with pytest.raises(DataError, match=r"2\.jpg: the image changed since it was first read"):
        pictures[2].read_checked()
    assert pictures[2].read() == b"PICTURE 2"


def test_the_first_checked_read_is_what_the_next_is_compared_with(folder: Path) -> None:
    picture = open_pictures(folder)[0]
    assert picture.read_checked() == b"image 0"
    (folder / "0.jpg").write_bytes(b"other")
    with pytest.raises(DataError, match="changed"):
        picture.read_checked()


def test_sets_made_from_a_set_share_what_was_hashed(folder: Path) -> None:
    pictures = open_pictures(folder)
    taken, shard, relabelled = pictures.take(1), pictures.shard(0, 2), pictures[0].labelled(5)
    assert relabelled.label == 5
    pictures.digest()
    (folder / "0.jpg").write_bytes(b"other")
    for picture in (taken[0], shard[0], relabelled):
        with pytest.raises(DataError, match="changed"):
            picture.read_checked()


def test_a_pickled_set_keeps_its_pictures_and_their_hashes(folder: Path) -> None:
    pictures = open_pictures(folder)
    pictures.digest()
    copy = pickle.loads(pickle.dumps(pictures))
    assert list(copy) == list(pictures)
    assert copy.source == folder
    (folder / "0.jpg").write_bytes(b"other")
    with pytest.raises(DataError, match="changed"):
        copy[0].read_checked()


def test_worker_processes_read_their_shards(folder: Path) -> None:
    pictures = open_pictures(folder)
    # A bound method of a set is all that a fresh process needs: it imports edge, not this test.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(pictures.shard(n, 2).digest) for n in range(2)]
        found = [job.result() for job in jobs]
    assert found == [pictures.shard(n, 2).digest() for n in range(2)]


def _listed_while_asked(count: int, log: list[int]) -> Iterator[Picture]:
    for n in range(count):
        log.append(n)
        yield Picture(f"{n}.jpg", n, FileOrigin(f"/nowhere/{n}.jpg"))


def test_listing_goes_no_further_than_somebody_looks() -> None:
    log: list[int] = []
    pictures = Pictures(Path("x"), _listed_while_asked(100, log))
    assert len(pictures.take(3)) == 3
    assert pictures[1].name == "1.jpg"
    assert log == [0, 1, 2]
    assert next(iter(pictures)).name == "0.jpg"
    assert log == [0, 1, 2]
    assert len(pictures) == 100
    assert len(pickle.loads(pickle.dumps(Pictures(Path("x"), _listed_while_asked(5, []))))) == 5


def test_two_walks_through_a_set_do_not_disturb_each_other() -> None:
    pictures = Pictures(Path("x"), _listed_while_asked(5, []))
    pairs = [(a.label, b.label) for a, b in zip(pictures, pictures, strict=True)]
    assert pairs == [(n, n) for n in range(5)]


def test_threads_share_one_listing() -> None:
    log: list[int] = []
    pictures = Pictures(Path("x"), _listed_while_asked(2000, log))
    counts: list[int] = []
    threads = [threading.Thread(target=lambda: counts.append(sum(1 for _ in pictures))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [2000] * 4
    assert log == list(range(2000))


def _failing() -> Iterator[Picture]:
    yield from _listed_while_asked(2, [])
    raise DataError("damaged", where="shard")


def test_damage_found_while_listing_is_not_forgotten_on_the_second_look() -> None:
    pictures = Pictures(Path("x"), _failing())
    assert len(pictures.take(2)) == 2
    for _ in range(2):
        with pytest.raises(DataError, match="damaged"):
            len(pictures)
        with pytest.raises(DataError, match="damaged"):
            list(pictures)
    assert pictures[1].name == "1.jpg"

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edge.errors import DataError, StoreError, UsageError
from edge.events import Event, Progress
from edge.media import labels
from edge.media.picture_sets import Extracted, counts_from_one, extract
from edge.media.picture_sources import open_pictures
from edge.media.pictures import FileOrigin, Picture

ShardWriter = Callable[..., Path]
JPEG = b"\xff\xd8\xff"


@pytest.fixture
def pictures(tmp_path: Path, write_shard: ShardWriter) -> list[Picture]:
    records = [(JPEG + bytes([n]), n + 1, b"n%d.JPEG" % n) for n in range(4)]
    return list(open_pictures(write_shard(tmp_path / "a.tfrecord", records)))


def _files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_pictures_come_out_byte_for_byte_with_their_labels(pictures: list[Picture], tmp_path: Path) -> None:
    heard: list[Event] = []
    done = extract(pictures, tmp_path / "out", listen=heard.append)
    assert done == Extracted(pictures=4, written=4, kept=0, labelled=4, lowest_class=1, highest_class=4)
    files = _files(tmp_path / "out")
    assert files.pop("labels.csv") == b"file,class_index\nn0.JPEG,1\nn1.JPEG,2\nn2.JPEG,3\nn3.JPEG,4\n"
    assert files == {f"n{n}.JPEG": JPEG + bytes([n]) for n in range(4)}
    assert heard == [Progress("extract", n, 4) for n in (1, 2, 3, 4)]


def test_what_was_extracted_is_a_source_with_the_same_digest(pictures: list[Picture], tmp_path: Path) -> None:
    extract(pictures, tmp_path / "out")
    again = open_pictures(tmp_path / "out", labels=tmp_path / "out" / "labels.csv")
    assert again.digest() == open_pictures(tmp_path / "a.tfrecord").digest()
    assert [p.label for p in again] == [1, 2, 3, 4]


def test_a_second_run_writes_nothing(pictures: list[Picture], tmp_path: Path) -> None:
    extract(pictures, tmp_path / "out")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()}
    done = extract(pictures, tmp_path / "out")
    assert (done.written, done.kept) == (0, 4)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()} == before


def test_an_interrupted_run_keeps_its_labels_and_goes_on(pictures: list[Picture], tmp_path: Path) -> None:
    def stop(event: Event) -> None:
        if event == Progress("extract", 2, 4):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(pictures, tmp_path / "out", listen=stop)
    assert labels.load_truth(tmp_path / "out" / "labels.csv") == {"n0.JPEG": 1, "n1.JPEG": 2}
    done = extract(pictures, tmp_path / "out")
    assert (done.written, done.kept) == (2, 2)
    assert len(labels.load_truth(tmp_path / "out" / "labels.csv")) == 4


def test_a_second_shard_is_added(pictures: list[Picture], tmp_path: Path, write_shard: ShardWriter) -> None:
    extract(pictures, tmp_path / "out")
    more = open_pictures(write_shard(tmp_path / "b.tfrecord", [(JPEG + b"b", 9, b"other.JPEG")]))
    extract(list(more), tmp_path / "out")
    truth = labels.load_truth(tmp_path / "out" / "labels.csv")
    assert (len(truth), truth["other.JPEG"], truth["n0.JPEG"]) == (5, 9, 1)


def test_the_offset_is_added(pictures: list[Picture], tmp_path: Path) -> None:
    done = extract(pictures, tmp_path / "out", label_offset=-1)
    assert (done.lowest_class, done.highest_class) == (0, 3)
    assert labels.load_truth(tmp_path / "out" / "labels.csv")["n3.JPEG"] == 3


def test_an_offset_that_makes_a_label_negative(pictures: list[Picture], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="class index 1 with --label-offset -2 is -1"):
        extract(pictures, tmp_path / "out", label_offset=-2)
    assert not (tmp_path / "out").exists()


def test_another_offset_is_refused_and_force_takes_it(pictures: list[Picture], tmp_path: Path) -> None:
    extract(pictures, tmp_path / "out")
    with pytest.raises(UsageError, match=r"n0\.JPEG has class 1 in this file, and class 0 now"):
        extract(pictures, tmp_path / "out", label_offset=-1)
    assert labels.load_truth(tmp_path / "out" / "labels.csv")["n0.JPEG"] == 1
    extract(pictures, tmp_path / "out", label_offset=-1, force=True)
    assert labels.load_truth(tmp_path / "out" / "labels.csv")["n0.JPEG"] == 0


def test_another_picture_of_that_name_is_refused_and_force_replaces_it(pictures: list[Picture], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "n2.JPEG").write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"n2\.JPEG: another image has this name"):
        extract(pictures, tmp_path / "out")
    assert (tmp_path / "out" / "n2.JPEG").read_bytes() == b"mine"
    assert set(labels.load_truth(tmp_path / "out" / "labels.csv")) == {"n0.JPEG", "n1.JPEG"}
    extract(pictures, tmp_path / "out", force=True)
    assert (tmp_path / "out" / "n2.JPEG").read_bytes() == JPEG + b"\x02"


def test_records_of_one_name_get_numbers(tmp_path: Path, write_shard: ShardWriter) -> None:
    names = [b"a.JPEG", b"a.JPEG", b"A.jpeg", b"d/a.JPEG", b"a-2.JPEG"]
    shard = write_shard(tmp_path / "a.tfrecord", [(JPEG + bytes([n]), n, name) for n, name in enumerate(names)])
    for _ in range(2):
        extract(list(open_pictures(shard)), tmp_path / "out")
    assert labels.load_truth(tmp_path / "out" / "labels.csv") == {
        "a.JPEG": 0, "a-2.JPEG": 1, "A-3.jpeg": 2, "d/a.JPEG": 3, "a-2-2.JPEG": 4,
    }  # fmt: skip


@pytest.mark.parametrize("name", [b"../../../evil.jpg", b"/evil.jpg", b"..\\evil.jpg", b"labels.csv", b".", b"a\0/b"])
def test_no_name_leads_out_of_the_folder_or_over_the_labels(
    name: bytes, tmp_path: Path, write_shard: ShardWriter
) -> None:
    (tmp_path / "in").mkdir()
    shard = write_shard(tmp_path / "in" / "a.tfrecord", [(JPEG, 1, name)])
    extract(list(open_pictures(shard)), tmp_path / "deep" / "out")
    outside = [p for p in tmp_path.rglob("*") if p.is_file() and tmp_path / "deep" / "out" not in p.parents]
    assert outside == [shard]
    assert len(open_pictures(tmp_path / "deep" / "out")) == 1
    assert list(labels.load_truth(tmp_path / "deep" / "out" / "labels.csv").values()) == [1]


def test_pictures_without_labels_make_no_labels_file(tmp_path: Path, write_shard: ShardWriter) -> None:
    shard = write_shard(tmp_path / "a.tfrecord", [(JPEG, None, b"a.JPEG")])
    done = extract(list(open_pictures(shard)), tmp_path / "out")
    assert (done.labelled, done.lowest_class, done.highest_class) == (0, None, None)
    assert list(_files(tmp_path / "out")) == ["a.JPEG"]


def test_a_labels_file_that_is_damaged_stops_before_anything_is_written(
    pictures: list[Picture], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "labels.csv").write_text("file,class_index\nx.jpg,many\n")
    with pytest.raises(DataError, match=r"labels\.csv:2"):
        extract(pictures, tmp_path / "out")
    assert list(_files(tmp_path / "out")) == ["labels.csv"]


def test_a_folder_in_the_place_of_a_picture(pictures: list[Picture], tmp_path: Path) -> None:
    (tmp_path / "out" / "n1.JPEG").mkdir(parents=True)
    with pytest.raises((StoreError, UsageError), match=r"n1\.JPEG"):
        extract(pictures, tmp_path / "out")


def test_a_file_in_the_place_of_the_folder(pictures: list[Picture], tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    with pytest.raises(StoreError):
        extract(pictures, tmp_path / "out")


def test_a_picture_that_cannot_be_read(tmp_path: Path) -> None:
    gone = Picture("x.jpg", 3, FileOrigin(str(tmp_path / "gone.jpg")))
    with pytest.raises(DataError, match="cannot read the image"):
        extract([gone], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _done(lowest: int | None, highest: int | None, labelled: int) -> Extracted:
    return Extracted(labelled, labelled, 0, labelled, lowest, highest)


FROM_ONE = {
    "imagenet": (_done(1, 1000, 1251), True),
    "few-but-1000": (_done(3, 1000, 20), True),
    "no-class-0-of-many": (_done(1, 10, 500), True),
    "from-zero": (_done(0, 999, 1251), False),
    "few": (_done(1, 9, 12), False),
    "none": (_done(None, None, 0), False),
}


@pytest.mark.parametrize(("done", "expected"), FROM_ONE.values(), ids=FROM_ONE.keys())
def test_labels_that_seem_to_count_from_one(done: Extracted, expected: bool) -> None:
    note = counts_from_one(done)
    assert (note is not None) is expected
    if note is not None:
        assert note.level == "warning"
        assert "--label-offset -1" in note.text

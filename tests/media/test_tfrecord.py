from __future__ import annotations

import gzip
import pickle
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.errors import DEPENDENCIES, DataError
from edge.media.picture_sources import open_pictures, shards_of
from edge.media.tfrecord import Example, is_shard, portable_name

Encoder = Callable[..., bytes]
ShardWriter = Callable[..., Path]
JPEG = b"\xff\xd8\xff fake"


@pytest.fixture
def shard(tmp_path: Path, write_shard: ShardWriter) -> Path:
    """Five records; nothing in listing and reading looks into the pictures."""
    records = [(JPEG + bytes([n]) * n, n + 1, b"n0%d.JPEG" % n) for n in range(5)]
    return write_shard(tmp_path / "train-00000-of-00002", records)


def test_a_shard_gives_names_labels_and_the_original_bytes(shard: Path) -> None:
    pictures = open_pictures(shard)
    assert [(p.name, p.label) for p in pictures] == [(f"n0{n}.JPEG", n + 1) for n in range(5)]
    assert [p.read() for p in pictures] == [JPEG + bytes([n]) * n for n in range(5)]
    assert [p.read_checked() for p in pictures] == [p.read() for p in pictures]


def test_a_real_picture_comes_out_byte_for_byte(tmp_path: Path, write_shard: ShardWriter, encode: Encoder) -> None:
    data = encode(".jpg", seed=4)
    (picture,) = open_pictures(write_shard(tmp_path / "a.tfrecord", [(data, 3, b"a.JPEG")]))
    assert picture.read() == data


@pytest.mark.parametrize("source", [".", "train-*", "train-0000?-of-00002"], ids=["folder", "pattern", "pattern-2"])
def test_shards_come_in_the_order_of_their_names(source: str, shard: Path, write_shard: ShardWriter) -> None:
    write_shard(shard.with_name("train-00001-of-00002"), [(JPEG, 9, b"last.JPEG")])
    (shard.parent / "notes.md").write_text("x")
    pictures = open_pictures(shard.parent / source)
    assert [p.name for p in pictures] == [*(f"n0{n}.JPEG" for n in range(5)), "last.JPEG"]
    assert len(shards_of(shard.parent / source)) == 2


SHARD_NAMES = {
    "train-00000-of-01024": True,
    "validation-00127-of-00128": True,
    "imagenet2012-train.tfrecord-00000-of-01024": True,
    "a.tfrecord": True,
    "a.TFRecords": True,
    "train-0-of-1": False,
    "train-00000-of-01024.part": False,
    "a.jpg": False,
}


@pytest.mark.parametrize(("name", "expected"), SHARD_NAMES.items(), ids=SHARD_NAMES.keys())
def test_names_of_shards(name: str, expected: bool) -> None:
    assert is_shard(Path(name)) is expected


def test_features_as_tensorflow_datasets_names_them(tmp_path: Path, wire: SimpleNamespace) -> None:
    label = wire.field(3, wire.field(1, b"\x07"))
    features = {
        b"image": wire.field(1, wire.field(1, JPEG)),
        b"label": label,
        b"file_name": wire.field(1, wire.field(1, b"x.JPEG")),
        b"ratio": wire.field(2, wire.field(1, b"\0\0\x80\x3f")),
    }
    record = wire.field(1, b"".join(wire.field(1, wire.field(1, k) + wire.field(2, v)) for k, v in features.items()))
    path = tmp_path / "a.tfrecord"
    path.write_bytes(wire.frame(record))
    (picture,) = open_pictures(path)
    assert (picture.name, picture.label, picture.read()) == ("x.JPEG", 7, JPEG)


def test_a_record_without_label_and_name(tmp_path: Path, write_shard: ShardWriter) -> None:
    png = b"\x89PNG rest"
    path = write_shard(tmp_path / "val-00000-of-00001", [(JPEG, None, None), (png, 0, b""), (b"??", -1, b"../..")])
    assert [(p.name, p.label) for p in open_pictures(path)] == [
        ("val-00000-of-00001-000000.jpg", None),
        ("val-00000-of-00001-000001.png", 0),
        ("val-00000-of-00001-000002.jpg", -1),
    ]


NAMES = {
    "n01440764_1.JPEG": "n01440764_1.JPEG",
    "n01440764/a b.JPEG": "n01440764/a b.JPEG",
    "../../etc/passwd": "etc/passwd.jpg",
    "/etc/shadow.jpg": "etc/shadow.jpg",
    "C:\\Windows\\x.jpg": "C_/Windows/x.jpg",
    "a/../b.jpg": "a/b.jpg",
    "a//.//b.jpg": "a/b.jpg",
    ".hidden/.b.jpg": "_hidden/_b.jpg",
    "line\nend\0.jpg": "line_end_.jpg",
    "no-ending": "no-ending.jpg",
    "picture.txt": "picture.txt.jpg",
    "caf\\xe9.jpg": "caf/xe9.jpg",
    " . /..": "shard-000007.jpg",
    "labels.csv": "labels.csv.jpg",
}


@pytest.mark.parametrize(("filename", "expected"), NAMES.items(), ids=map(repr, NAMES))
def test_names_never_lead_out_of_a_folder(filename: str, expected: str) -> None:
    assert portable_name(Example(JPEG, None, filename), "shard", 7) == expected


@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_any_name_becomes_a_plain_relative_one(filename: str) -> None:
    name = portable_name(Example(JPEG, None, filename), "shard", 0)
    parts = name.split("/")
    assert all(part and not part.startswith(".") and part == part.strip() for part in parts)
    assert name.isprintable()
    assert "\\" not in name


def test_taking_a_few_reads_only_those(shard: Path) -> None:
    data = bytearray(shard.read_bytes())
    data[-3] ^= 1
    shard.write_bytes(bytes(data))
    assert len(open_pictures(shard).take(4)) == 4
    with pytest.raises(DataError, match="record 4"):
        len(open_pictures(shard))


def test_one_record_at_a_time_is_in_memory(tmp_path: Path, wire: SimpleNamespace) -> None:
    # Framing a megabyte bit by bit is slow: one record, written many times.
    record = wire.frame(wire.example(JPEG + bytes(100_000), 1, None))
    path = tmp_path / "a.tfrecord"
    with path.open("wb") as file:
        for _ in range(200):
            file.write(record)
    open_pictures(path)
    tracemalloc.start()
    try:
        assert len(open_pictures(path)) == 200
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert path.stat().st_size > 20_000_000
    assert peak < 2_000_000


def test_pickled_pictures_read_their_record(shard: Path) -> None:
    pictures = pickle.loads(pickle.dumps(open_pictures(shard).shard(1, 2)))
    assert [p.read() for p in pictures] == [JPEG + bytes([n]) * n for n in (1, 3)]


def test_the_digest_is_that_of_the_same_pictures_in_files(shard: Path, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    for n in range(5):
        (tmp_path / "files" / f"{n}.jpg").write_bytes(JPEG + bytes([n]) * n)
    assert open_pictures(shard).digest() == open_pictures(tmp_path / "files").digest()


def test_labels_from_a_csv_replace_those_of_the_records(shard: Path, tmp_path: Path) -> None:
    truth = tmp_path / "labels.csv"
    truth.write_text("file,label\n" + "".join(f"n0{n}.JPEG,{n * 10}\n" for n in range(5)))
    assert [p.label for p in open_pictures(shard, labels=truth)] == [0, 10, 20, 30, 40]


def test_every_cut_is_right_records_or_an_error_that_names_the_place(shard: Path, wire: SimpleNamespace) -> None:
    data = shard.read_bytes()
    ends = [0]
    for n in range(5):
        ends.append(ends[-1] + len(wire.frame(wire.example(JPEG + bytes([n]) * n, n + 1, b"n0%d.JPEG" % n))))
    assert ends[-1] == len(data)
    near = {end + step for end in ends for step in (-1, 0, 1, 8, 12, 13)}
    for cut in sorted({*near, *range(1, len(data), 7)} & set(range(1, len(data)))):
        shard.write_bytes(data[:cut])
        if cut in ends:
            assert len(open_pictures(shard)) == ends.index(cut)
            continue
        record = sum(end <= cut for end in ends) - 1
        with pytest.raises(DataError, match=rf"00002: record {record} at byte {ends[record]}: the shard is truncated"):
            len(open_pictures(shard))


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_gives_the_right_records_or_an_error(data: st.DataObject, shard: Path) -> None:
    original = shard.read_bytes()
    damaged = bytearray(original)
    action = data.draw(st.sampled_from(["flip", "cut", "insert", "drop", "zero"]))
    at = data.draw(st.integers(0, len(original) - 1))
    if action == "flip":
        damaged[at] ^= 1 << data.draw(st.integers(0, 7))
    elif action == "cut":
        del damaged[at:]
    elif action == "insert":
        damaged[at:at] = data.draw(st.binary(min_size=1, max_size=20))
    elif action == "drop":
        del damaged[at : at + data.draw(st.integers(1, 20))]
    else:
        damaged[at : at + 30] = bytes(len(damaged[at : at + 30]))
    path = shard.with_name("damaged.tfrecord")
    path.write_bytes(bytes(damaged))
    expected = [(f"n0{n}.JPEG", n + 1, JPEG + bytes([n]) * n) for n in range(5)]
    try:
        found = [(p.name, p.label, p.read()) for p in open_pictures(path)]
    except DataError:
        return
    # A cut between two records, or whole records dropped at the end, cannot be told from a shorter shard.
    assert found == expected[: len(found)]


def test_damage_after_listing_is_found_on_reading(shard: Path) -> None:
    pictures = open_pictures(shard)
    assert len(pictures) == 5
    data = bytearray(shard.read_bytes())
    data[30] ^= 4
    shard.write_bytes(bytes(data))
    with pytest.raises(DataError, match="record 0 at byte 0: the record is damaged"):
        pictures[0].read()
    assert pictures[1].read()
    shard.write_bytes(bytes(data[:40]))
    with pytest.raises(DataError, match=r"record 4 .* was truncated after"):
        pictures[4].read()
    shard.unlink()
    with pytest.raises(DataError, match="cannot read the shard: No such file"):
        pictures[1].read()


BAD_SHARDS: dict[str, tuple[Callable[[SimpleNamespace], bytes], str]] = {
    "empty": (lambda w: b"", "but none has a record"),
    "text": (lambda w: b"not a record file at all", "record 0 at byte 0: damaged, or not a TFRecord file"),
    "tiny": (lambda w: b"abc", "truncated: 9 bytes are missing in a header"),
    "gzip": (lambda w: gzip.compress(w.frame(b"x")), "the shard is compressed"),
    "not-an-example": (lambda w: w.frame(b"\xff\xff\xff"), "record 0 at byte 0: the record is not a tf.train.Example"),
    "no-picture": (
        lambda w: w.frame(w.example(None, 1, b"a", height=b"1")),
        "no image: looked for image/encoded or image, found height, image/class/label, image/filename",
    ),
    "empty-picture": (lambda w: w.frame(w.example(b"", 1, b"a.JPEG")), "the record has no image"),
    "empty-example": (lambda w: w.frame(b""), "found nothing"),
    "second-record-bad": (
        lambda w: w.frame(w.example(JPEG, 1, b"a")) + w.frame(b"\xff"),
        r"record 1 at byte \d+: the record is not",
    ),
    "endless-length": (lambda w: (d := (1 << 62).to_bytes(8, "little")) + w.masked(d), "damaged, or not a TFRecord"),
}


@pytest.mark.parametrize(("make", "words"), BAD_SHARDS.values(), ids=BAD_SHARDS.keys())
def test_a_bad_shard(
    make: Callable[[SimpleNamespace], bytes], words: str, tmp_path: Path, wire: SimpleNamespace
) -> None:
    path = tmp_path / "bad.tfrecord"
    path.write_bytes(make(wire))
    with pytest.raises(DataError, match=words):
        len(open_pictures(path))


def test_an_empty_shard_among_others_is_no_error(shard: Path) -> None:
    shard.with_name("train-00001-of-00002").write_bytes(b"")
    assert len(open_pictures(shard.parent)) == 5


def test_the_checksum_is_the_published_one(wire: SimpleNamespace) -> None:
    # RFC 3720, appendix B.4: CRC-32C of 32 zero bytes is 0x8A9136AA; masked as TensorFlow does it.
    crc = 0x8A9136AA
    expected = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    assert wire.masked(bytes(32)) == expected.to_bytes(4, "little")


@pytest.mark.parametrize("dependency", ["google_crc32c", "google.protobuf.descriptor_pb2"])
def test_a_missing_dependency_says_how_to_install_it(dependency: str, shard: Path) -> None:
    code = (
        f"import sys; sys.modules[{dependency!r}] = None\n"
        "from pathlib import Path\nfrom edge.errors import MissingDependencyError\n"
        "from edge.media.picture_sources import open_pictures\n"
        "try:\n    open_pictures(Path(sys.argv[1]))\nexcept MissingDependencyError as exc:\n    print(exc)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(shard)], capture_output=True, text=True, check=True)
    assert "TFRecord shards cannot be read" in done.stdout
    assert DEPENDENCIES["google"] in done.stdout

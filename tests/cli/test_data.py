"""`edge data`: run in this process through the application that `edge` makes, and as a process for exit codes."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import google_crc32c
import numpy as np
import pytest

from edge.cli.app import make_app
from edge.errors import DataError, EdgeError, QualityError, UsageError
from edge.media.picture_sources import open_pictures


def _jpeg(seed: int, ending: str = ".jpg") -> bytes:
    return cv2.imencode(ending, np.random.default_rng(seed).integers(0, 256, (16, 20, 3), np.uint8))[1].tobytes()


def _field(number: int, data: bytes) -> bytes:
    size, length = b"", len(data)
    while length > 0x7F:
        size, length = size + bytes([length & 0x7F | 0x80]), length >> 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + data


def _record(encoded: bytes, label: int, filename: bytes) -> bytes:
    features = {
        b"image/encoded": _field(1, _field(1, encoded)),
        b"image/class/label": _field(3, _field(1, bytes([label & 0x7F | 0x80, label >> 7]))),
        b"image/filename": _field(1, _field(1, filename)),
    }
    data = _field(1, b"".join(_field(1, _field(1, name) + _field(2, value)) for name, value in features.items()))
    length = struct.pack("<Q", len(data))
    return length + _masked(length) + data + _masked(data)


def _masked(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "set").mkdir()
    for n in (1, 2, 10):
        (tmp_path / "set" / f"image_{n}.jpg").write_bytes(_jpeg(n))
    return tmp_path / "set"


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "train-00000-of-01024"
    path.write_bytes(b"".join(_record(_jpeg(n), label, b"n%d.JPEG" % n) for n, label in enumerate((1, 500, 1000))))
    return path


class Runner:
    """Runs ``edge data …`` here; keeps what it wrote."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys
        self.err = ""

    def __call__(self, *arguments: object) -> str:
        words = ["data", *map(str, arguments)]
        try:
            make_app(words)(words, standalone_mode=False)
        finally:
            out, self.err = self.capsys.readouterr()
        return out

    def json(self, *arguments: object) -> Any:
        return json.loads(self(*arguments, "--json"))


@pytest.fixture
def data(capsys: pytest.CaptureFixture[str]) -> Runner:
    return Runner(capsys)


def test_list_writes_relative_names_and_says_how_many(data: Runner, folder: Path) -> None:
    place = folder.parent / "list.txt"
    assert data("list", folder, "-o", place) == f"{place}: 3 images, 0 of them with a class index\n"
    assert place.read_text() == "set/image_1.jpg\nset/image_10.jpg\nset/image_2.jpg\n"
    assert data.err == ""


def test_list_in_natural_order(data: Runner, folder: Path) -> None:
    data("list", folder, "-o", folder / "list.txt", "--natural")
    assert (folder / "list.txt").read_text() == "image_1.jpg\nimage_2.jpg\nimage_10.jpg\n"


def test_list_with_labels_travels_with_its_folder(data: Runner, folder: Path, tmp_path: Path) -> None:
    truth = tmp_path / "labels.csv"
    truth.write_text("file,class_index\nimage_1.jpg,7\nimage_2.jpg,8\nimage_10.jpg,9\n")
    result = data.json("list", folder, "-o", folder / "list.txt", "--labels", truth)
    assert result == {"list": str(folder / "list.txt"), "pictures": 3, "labelled": 3, "outside": 0}
    moved = folder.rename(tmp_path / "elsewhere")
    assert [(p.name, p.label) for p in open_pictures(moved / "list.txt")] == [
        ("image_1.jpg", 7), ("image_10.jpg", 9), ("image_2.jpg", 8),
    ]  # fmt: skip


def test_list_of_a_list(data: Runner, folder: Path, tmp_path: Path) -> None:
    (folder / "one.txt").write_text("image_2.jpg 4\n")
    data("list", folder / "one.txt", "-o", tmp_path / "two.txt")
    assert (tmp_path / "two.txt").read_text() == "set/image_2.jpg\t4\n"


def test_list_warns_about_pictures_outside(data: Runner, folder: Path, tmp_path: Path) -> None:
    assert data.json("list", folder, "-o", tmp_path / "lists" / "list.txt")["outside"] == 3
    assert "3 images are outside the folder of the list" in data.err


def test_list_does_not_overwrite_unless_forced(data: Runner, folder: Path) -> None:
    place = folder / "list.txt"
    place.write_text("mine")
    with pytest.raises(UsageError, match="the list already exists"):
        data("list", folder, "-o", place)
    assert place.read_text() == "mine"
    data("list", folder, "-o", place, "--force")
    assert place.read_text() != "mine"


def test_list_of_nothing_leaves_the_old_list(data: Runner, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("mine")
    with pytest.raises(DataError, match="no images"):
        data("list", tmp_path, "-o", tmp_path / "list.txt", "--force")
    assert (tmp_path / "list.txt").read_text() == "mine"


def test_list_of_a_shard_says_to_extract_it(data: Runner, shard: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="edge data extract"):
        data("list", shard, "-o", tmp_path / "list.txt")


def test_extract_writes_the_original_bytes(data: Runner, shard: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert data("extract", shard, "-o", out) == f"{out}: 3 images, 3 of them with a class index in labels.csv\n"
    assert [(out / f"n{n}.JPEG").read_bytes() for n in range(3)] == [_jpeg(n) for n in range(3)]
    assert (out / "labels.csv").read_text() == "file,class_index\nn0.JPEG,1\nn1.JPEG,500\nn2.JPEG,1000\n"
    assert "--label-offset -1" in data.err
    # Who has given an offset is not told to give one, though class 0 is still not among these few.
    data("extract", shard, "-o", tmp_path / "shifted", "--label-offset", 5)
    assert "--label-offset" not in data.err


def test_extract_with_offset_and_limit(data: Runner, shard: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert data.json("extract", shard, "-o", out, "--label-offset", -1, "--limit", 2) == {
        "folder": str(out),
        "label_offset": -1,
        "pictures": 2,
        "written": 2,
        "kept": 0,
        "labelled": 2,
        "lowest_class": 0,
        "highest_class": 499,
    }
    assert (out / "labels.csv").read_text() == "file,class_index\nn0.JPEG,0\nn1.JPEG,499\n"
    assert "--label-offset" not in data.err


def test_extract_again_says_what_was_there(data: Runner, shard: Path, tmp_path: Path) -> None:
    data("extract", shard, "-o", tmp_path / "out", "--limit", 1)
    assert "3 images (1 of them existed already)" in data("extract", shard, "-o", tmp_path / "out")


def test_extract_of_a_folder_of_shards(data: Runner, shard: Path, tmp_path: Path) -> None:
    shard.rename(shard.with_name("train-00001-of-01024")).with_name(shard.name).write_bytes(
        _record(_jpeg(9), 3, b"first.JPEG")
    )
    assert data.json("extract", shard.parent, "-o", tmp_path / "out")["pictures"] == 4


def test_extract_of_a_damaged_shard_says_how_much_is_good(data: Runner, shard: Path, tmp_path: Path) -> None:
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(DataError, match="--limit 2"):
        data("extract", shard, "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert data.json("extract", shard, "-o", tmp_path / "out", "--limit", 2)["written"] == 2


@pytest.mark.parametrize("name", ["set", "set/image_1.jpg", "nothing"])
def test_extract_of_something_else(name: str, data: Runner, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="this is not a TFRecord shard"):
        data("extract", tmp_path / name, "-o", tmp_path / "out")


def test_check_of_good_pictures(data: Runner, folder: Path) -> None:
    assert data("check", folder) == f"{folder}: 3 images, all good\n"
    assert data.json("check", folder) == {"source": str(folder), "pictures": 3, "bad": []}


def test_check_names_what_is_bad(data: Runner, folder: Path) -> None:
    (folder / "cut.jpg").write_bytes(_jpeg(1)[:-20])
    (folder / "text.png").write_bytes(b"no image")
    with pytest.raises(QualityError, match="2 problems in 5 images"):
        data("check", folder)


def test_check_prints_its_findings_as_a_table_and_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "cut.jpg").write_bytes(_jpeg(1)[:-20])
    for more in ([], ["--json"]):
        words = ["data", "check", str(folder), *more]
        with pytest.raises(QualityError):
            make_app(words)(words, standalone_mode=False)
        out = capsys.readouterr().out
        assert "cut.jpg" in out
        assert "truncated" in out
    assert [item["name"] for item in json.loads(out)["bad"]] == ["cut.jpg"]


def test_check_with_labels(data: Runner, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("file,class_index\nimage_1.jpg,7\nimage_2.jpg,8\n")
    with pytest.raises(QualityError, match="1 problem in 3 images"):
        data("check", folder, "--labels", tmp_path / "labels.csv")


def test_check_of_a_shard(data: Runner, shard: Path) -> None:
    assert data.json("check", shard)["pictures"] == 3
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(QualityError, match="1 problem in 2 images"):
        data("check", shard)


def test_names_that_are_not_utf8(data: Runner, folder: Path, shard: Path) -> None:
    odd = folder.with_name(os.fsdecode(b"caf\xe9"))
    try:
        folder.rename(odd)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (odd / os.fsdecode(b"\xff.jpg")).write_bytes(_jpeg(3))
    assert data("check", odd).endswith("caf\\xe9: 4 images, all good\n")
    assert data.json("check", odd)["source"].endswith("caf\\xe9")
    assert data.json("list", odd, "-o", odd / "list.txt")["pictures"] == 4
    assert data.json("check", odd / "list.txt")["pictures"] == 4
    assert data.json("extract", shard, "-o", odd / "out")["written"] == 3
    broken = odd / "b.tfrecord"
    broken.write_bytes(b"\x1f\x8b")
    with pytest.raises(QualityError, match="1 problem in 0 images"):
        data("check", broken, "--json")


def _edge(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edge", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_exit_codes_and_streams(folder: Path, tmp_path: Path) -> None:
    good = _edge("data", "check", folder)
    assert (good.returncode, good.stdout) == (0, f"{folder}: 3 images, all good\n")
    (folder / "cut.jpg").write_bytes(_jpeg(1)[:-20])
    bad = _edge("data", "check", folder, "--json")
    assert (bad.returncode, json.loads(bad.stdout)["pictures"]) == (QualityError.exit_code, 4)
    assert "error: " in bad.stderr
    missing = _edge("data", "check", tmp_path / "nothing")
    assert (missing.returncode, missing.stdout) == (DataError.exit_code, "")
    assert "Traceback" not in missing.stderr + bad.stderr
    usage = _edge("data", "list", folder)
    assert usage.returncode == 2
    assert "--output" in usage.stderr


def test_help_names_the_three_commands_without_a_dependency() -> None:
    code = (
        "import sys\nfrom edge.cli.app import make_app\n"
        "try:\n    make_app(['data', '--help'])(['data', '--help'])\nexcept SystemExit:\n    pass\n"
        "print({'cv2', 'numpy', 'google_crc32c', 'rich.console'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("set()")
    for name in ("list", "extract", "check"):
        assert name in done.stdout


@pytest.mark.parametrize("source", ["\udcff", "~nobody-here/x", "[", "x" * 300])
def test_every_odd_source_is_an_error_of_ours(source: str, data: Runner, tmp_path: Path) -> None:
    for words in (["list", source, "-o", tmp_path / "l.txt"], ["check", source], ["extract", source, "-o", tmp_path]):
        with pytest.raises(EdgeError):
            data(*words)

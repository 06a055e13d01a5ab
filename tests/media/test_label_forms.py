"""The sixteen forms of label files that people have, each with the pictures that it is for."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.errors import DataError
from edge.media.labels import ClassNames, load_names
from edge.media.picture_sources import open_pictures

NAMES = ClassNames(["blue ball", "green cube", "red cone"], source="classes.txt")
PICTURES = ("blue ball/000.jpg", "blue ball/001.jpg", "green cube/000.jpg", "red cone/000.jpg")
EXPECTED = [0, 0, 1, 2]
LABELS = ("blue ball", "blue ball", "green cube", "red cone")


def _table(header: str | None, rows: list[str], end: str = "\n") -> str:
    return end.join(([header] if header else []) + rows) + end


def _rows(labels: tuple[str, ...] | list[int] | list[str], *, separator: str = ",", before: str = "") -> list[str]:
    return [f"{before}{name}{separator}{label}" for name, label in zip(PICTURES, labels, strict=True)]


GOOD: dict[str, str | bytes] = {
    "file-class_index": _table("file,class_index", _rows(EXPECTED)),
    "names": _table("path,label", _rows(LABELS)),
    "names-crlf": _table("path,label", _rows(LABELS), end="\r\n"),
    "image-target": _table("image,target", _rows(EXPECTED)),
    "absolute": _table("path,label", _rows(EXPECTED, before="/data/val/")),
    "prefix": _table("path,label", _rows(EXPECTED, before="val/")),
    "backslashes": _table("path,label", [row.replace("/", "\\") for row in _rows(EXPECTED)]),
    "no-header": _table(None, _rows(LABELS)),
    "no-header-indices": _table(None, _rows(EXPECTED)),
    "tab": _table("filename\tclass", _rows(LABELS, separator="\t")),
    "semicolon-bom": b"\xef\xbb\xbf" + _table("file;class_index", _rows(EXPECTED, separator=";")).encode(),
    "capitals": _table("Image_ID,Class_Name", _rows(tuple(label.upper() for label in LABELS))),
    "utf-16": _table("path,label", _rows(EXPECTED)).encode("utf-16"),
    "extra-columns": _table(
        "id,split,file_name,category_id,category",
        [f"{i},val,{name},{EXPECTED[i]},{LABELS[i]}" for i, name in enumerate(PICTURES)],
    ),
    "permuted-indices-beside-names": _table(
        "file_name,category_id,category",
        [f"{name},{2 - EXPECTED[i]},{LABELS[i]}" for i, name in enumerate(PICTURES)],
    ),
    "underscores": _table("path,label", _rows(tuple(label.replace(" ", "_") for label in LABELS))),
    "kaggle-ids": _table("id,breed", [f"{name.removesuffix('.jpg')},{LABELS[i]}" for i, name in enumerate(PICTURES)]),
    "whole-floats": _table("path,label", _rows([f"{index}.0" for index in EXPECTED])),
    "caffe-list": _table(None, _rows(EXPECTED, separator=" ")),
    "names-after-blanks": _table(None, _rows(LABELS, separator="  ")),
    "one-column-per-class": _table(
        "image,green cube,blue_ball,red cone",
        [
            f"{name},{label == 1:d},{label == 0:d}.0,{label == 2:d}"
            for name, label in zip(PICTURES, EXPECTED, strict=True)
        ],
    ),
    "quoted": _table('"Path","Label"', [f'"{name}","{LABELS[i]}"' for i, name in enumerate(PICTURES)]),
}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name in PICTURES:
        path = tmp_path / "val" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path / "val"


def _write(folder: Path, content: str | bytes) -> Path:
    path = folder / "labels.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("content", GOOD.values(), ids=GOOD.keys())
def test_label_files_as_people_have_them(content: str | bytes, pictures: Path, tmp_path: Path) -> None:
    found = open_pictures(pictures, labels=_write(tmp_path, content), names=NAMES)
    assert [picture.label for picture in found] == EXPECTED


def test_indices_from_one_have_a_cure_that_works(pictures: Path, tmp_path: Path) -> None:
    path = _write(tmp_path, _table("path,label", _rows([1, 1, 2, 3])))
    with pytest.raises(DataError, match=r"labels\.csv:5: class index 3 is out of range") as caught:
        open_pictures(pictures, labels=path, names=NAMES)
    assert "--label-offset -1" in str(caught.value.hint)
    found = open_pictures(pictures, labels=path, names=NAMES, label_offset=-1)
    assert [picture.label for picture in found] == EXPECTED


BAD: dict[str, tuple[str, str]] = {
    "out-of-range": (_table("path,label", _rows([0, 0, 1, 7])), r"labels\.csv:5: class index 7 .*0 to 2"),
    "negative": (_table("path,label", _rows([0, -1, 1, 2])), r"labels\.csv:3: class index -1"),
    "unknown-name": (
        _table("path,label", _rows(("blue bal", *LABELS[1:]))), r"labels\.csv:2: no class .*did you mean 'blue ball'"
    ),
    "last-parts-alone": (
        _table("path,label", [f"{name.split('/')[1]},0" for name in PICTURES[2:3]]),
        r"labels\.csv:2: several images are named 000\.jpg",
    ),
    "blank-name": (_table("path,label", [*_rows(EXPECTED)[:3], "red cone/000.jpg,"]), r"labels\.csv:5: no class"),
    "two-classes": (
        _table("path,label", [*_rows(EXPECTED), "blue ball/000.jpg,2"]),
        r"labels\.csv:6: blue ball/000\.jpg is class 2 here and class 0 on line 2",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("content", "words"), BAD.values(), ids=BAD.keys())
def test_bad_label_files_say_where(content: str, words: str, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words):
        open_pictures(pictures, labels=_write(tmp_path, content), names=NAMES)


def test_a_name_that_two_classes_have_is_refused(pictures: Path, tmp_path: Path) -> None:
    twice = ClassNames(["blue ball", "crane", "crane"])
    with pytest.raises(DataError, match=r"labels\.csv:2: several classes are called 'crane': 1, 2"):
        open_pictures(pictures, labels=_write(tmp_path, "path,label\nblue ball/000.jpg,crane\n"), names=twice)


def test_a_folder_per_class_whatever_the_order_of_the_names(pictures: Path) -> None:
    assert [p.label for p in open_pictures(pictures, names=NAMES)] == EXPECTED
    permuted = ClassNames(["red cone", "blue ball", "green cube"])
    assert [p.label for p in open_pictures(pictures, names=permuted)] == [1, 1, 2, 0]
    assert [p.label for p in open_pictures(pictures)] == [None] * 4


def test_one_part_of_a_data_set_is_entered_and_several_are_refused(pictures: Path, tmp_path: Path) -> None:
    assert [p.label for p in open_pictures(tmp_path, names=NAMES)] == EXPECTED
    (tmp_path / "train" / "red cone").mkdir(parents=True)
    (tmp_path / "train" / "red cone" / "1.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match="several parts of a data set: train, val") as caught:
        open_pictures(tmp_path, names=NAMES)
    assert str(caught.value.hint) == f"name one of them: --images {tmp_path / 'val'}"


def test_class_folders_with_an_empty_one_nested_ones_and_pictures_outside(pictures: Path) -> None:
    (pictures / "green cube" / "dark").mkdir()
    (pictures / "green cube" / "dark" / "1.jpg").write_bytes(b"x")
    (pictures / "nothing").mkdir()
    assert [p.label for p in open_pictures(pictures, names=NAMES)] == [0, 0, 1, 1, 2]
    (pictures / "stray.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match=r"1 images are in no class folder: stray\.jpg"):
        open_pictures(pictures, names=NAMES)


def test_a_folder_that_is_no_class_is_named_with_the_nearest(pictures: Path) -> None:
    (pictures / "red cone").rename(pictures / "red con")
    with pytest.raises(DataError, match=r"red con: no class is called 'red con' .*did you mean 'red cone'"):
        open_pictures(pictures, names=NAMES)


def test_a_csv_as_the_source_takes_names_ids_and_tabs(pictures: Path) -> None:
    content = "id\tbreed\n" + "".join(f"{n.removesuffix('.jpg')}\t{b}\n" for n, b in zip(PICTURES, LABELS, strict=True))
    (pictures / "all.tsv").write_text(content)
    assert [p.label for p in open_pictures(pictures / "all.tsv", names=NAMES)] == EXPECTED
    assert [p.label for p in open_pictures(pictures / "all.tsv")] == [None] * 4


def test_class_names_in_utf_16(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_bytes("blue ball\nréd cone\n".encode("utf-16"))
    assert load_names(tmp_path / "classes.txt") == ["blue ball", "réd cone"]


def test_a_picture_of_two_classes_or_none_is_refused(pictures: Path, tmp_path: Path) -> None:
    for cells in ("1,1,0", "0,0,0", "0,0", "0.5,0.5,0", "x,0,1"):
        path = _write(tmp_path, f"image,blue ball,green cube,red cone\n{PICTURES[0]},1,0,0\n{PICTURES[1]},{cells}\n")
        with pytest.raises(DataError, match=r"labels\.csv:3: one of the class columns must be 1, the others 0"):
            open_pictures(pictures, labels=path, names=NAMES)

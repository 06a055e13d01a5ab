from __future__ import annotations

import os
from pathlib import Path

import pytest

from edge.errors import DataError
from edge.media.image_lists import natural, render_list
from edge.media.picture_sources import open_pictures
from edge.media.pictures import Picture


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ["a.jpg", "b.jpg", "sub/c d.jpg", "#1.jpg", "odd 12", "a.jpg 5"]:
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path / "pictures"


def _open(folder: Path, text: str | bytes, *, name: str = "list.txt") -> list[tuple[str, int | None]]:
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return [(picture.name, picture.label) for picture in open_pictures(folder / name)]


LISTS = {
    "plain": ("b.jpg\na.jpg\n", [("b.jpg", None), ("a.jpg", None)]),
    "no-line-end": ("a.jpg", [("a.jpg", None)]),
    "blank-lines-and-comments": ("# mine\n\n  \na.jpg\n  # more\nb.jpg\n\n", [("a.jpg", None), ("b.jpg", None)]),
    "crlf": ("a.jpg\r\nb.jpg 4\r\n", [("a.jpg", None), ("b.jpg", 4)]),
    "old-mac": ("a.jpg\rb.jpg\r", [("a.jpg", None), ("b.jpg", None)]),
    "byte-order-mark": (b"\xef\xbb\xbfa.jpg\n", [("a.jpg", None)]),
    "label-after-blank": ("a.jpg 12\n", [("a.jpg", 12)]),
    "label-after-tab": ("sub/c d.jpg\t12\n", [("sub/c d.jpg", 12)]),
    "label-after-tab-and-blanks": ("a.jpg \t 12\n", [("a.jpg", 12)]),
    "label-after-colon": ("a.jpg: 12\n", [("a.jpg", 12)]),
    "blank-in-name": ("sub/c d.jpg\n", [("sub/c d.jpg", None)]),
    "blank-in-name-and-label": ("sub/c d.jpg 12\n", [("sub/c d.jpg", 12)]),
    "negative-label": ("a.jpg -1\n", [("a.jpg", -1)]),
    "number-at-the-end-of-a-name": ("odd 12\n", [("odd 12", None)]),
    "label-wins-where-both-are-files": ("a.jpg 5\n", [("a.jpg", 5)]),
    "twice": ("a.jpg\na.jpg\n", [("a.jpg", None), ("a.jpg", None)]),
    "dot-slash": ("./a.jpg\n./#1.jpg\nsub/../b.jpg\n", [("a.jpg", None), ("#1.jpg", None), ("b.jpg", None)]),
    "backslashes": ("sub\\c d.jpg 3\n", [("sub/c d.jpg", 3)]),
}


@pytest.mark.parametrize(("text", "expected"), LISTS.values(), ids=LISTS.keys())
def test_a_list(text: str | bytes, expected: list[tuple[str, int | None]], folder: Path) -> None:
    assert _open(folder, text) == expected


def test_a_list_with_the_other_ending(folder: Path) -> None:
    assert _open(folder, "a.jpg\n", name="calibration.LIST") == [("a.jpg", None)]


def test_paths_are_relative_to_the_list_not_to_the_working_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    (tmp_path / "list.txt").write_text("pictures/a.jpg\n")
    (picture,) = open_pictures(tmp_path / "list.txt")
    assert picture.read() == b"a.jpg"


def test_absolute_paths_are_named_from_the_list_where_they_can_be(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other.jpg").write_bytes(b"x")
    assert _open(folder, f"{folder}/sub/c d.jpg\n{tmp_path}/other.jpg\n../other.jpg\n") == [
        ("sub/c d.jpg", None),
        (f"{tmp_path}/other.jpg", None),
        ("../other.jpg", None),
    ]


def test_missing_files_are_counted_and_the_first_is_named(folder: Path) -> None:
    with pytest.raises(DataError, match=r"2 of 4 files are missing; the first is x\.jpg") as caught:
        _open(folder, "a.jpg\n# comment\nx.jpg\nb.jpg 3\nsub/y.jpg 4\n")
    assert caught.value.where == f"{folder}/list.txt:3"
    assert str(folder) in str(caught.value.hint)


BAD_LISTS = {
    "empty": (b"", "names no images"),
    "comments-only": (b"# nothing\n\n", "names no images"),
    "folder": (b"sub\n", "1 of 1 files are missing"),
    "word-for-a-label": (b"a.jpg\tdog\n", r":1: the class index must be an integer, got 'dog'"),
    "fraction-for-a-label": (b"a.jpg\n\nb.jpg\t1.5\n", r":3: the class index must be an integer, got '1.5'"),
    "endless-label": (b"a.jpg 99999999999999999999\n", "must be an integer"),
    "utf-16": (b"\xff\xfex", "damaged UTF-16"),
    "binary": (b"\x7fELF\0\0\0", "not a text"),
    "name-too-long": (b"x" * 5000 + b"\n", "1 of 1 files are missing"),
    "not-utf8-and-not-there": (b"caf\xe9.jpg\n", r"the first is caf\\xe9\.jpg"),
}


@pytest.mark.parametrize(("text", "words"), BAD_LISTS.values(), ids=BAD_LISTS.keys())
def test_a_bad_list(text: bytes, words: str, folder: Path) -> None:
    with pytest.raises(DataError, match=words):
        _open(folder, text)


CSVS = {
    "plain": ("file,class_index\na.jpg,3\nb.jpg,4\n", [("a.jpg", 3), ("b.jpg", 4)]),
    "other-names": ("Image , LABEL\na.jpg, 3\n", [("a.jpg", 3)]),
    "other-order-and-columns": ("split,class,filename\nval,9,sub/c d.jpg\n", [("sub/c d.jpg", 9)]),
    "no-labels": ("path\na.jpg\nb.jpg\n", [("a.jpg", None), ("b.jpg", None)]),
    "empty-label": ("path,label\na.jpg,\nb.jpg,2\n", [("a.jpg", None), ("b.jpg", 2)]),
    "semicolons": ("file;label\na.jpg;1\n", [("a.jpg", 1)]),
    "tabs": ("file\tlabel\na.jpg\t1\n", [("a.jpg", 1)]),
    "quotes-crlf-bom": (b'\xef\xbb\xbffile,label\r\n"sub/c d.jpg",1\r\n\r\n', [("sub/c d.jpg", 1)]),
    "class-index-before-class": ("file,class,class_index\na.jpg,7,8\n", [("a.jpg", 8)]),
}


@pytest.mark.parametrize(("text", "expected"), CSVS.values(), ids=CSVS.keys())
def test_a_csv(text: str | bytes, expected: list[tuple[str, int | None]], folder: Path) -> None:
    assert _open(folder, text, name="set.csv") == expected


BAD_CSVS = {
    "empty": (b"", r"set\.csv:1: the first line must name a column"),
    "no-header": (
        b"file of x,3\nb.jpg,4\n",
        "the first line must name a column of images .* it is 'file of x,3'",
    ),
    "header-only": (b"file,label\n", "names no images"),
    "bad-label": (b"file,label\na.jpg,3\nb.jpg,cat\n", r"set\.csv:3: the class index must be an integer, got 'cat'"),
    "no-file": (b"file,label\n,3\n", r"set\.csv:2: no file name"),
    "missing-file": (b"file,label\na.jpg,1\nx.jpg,3\n", r"set\.csv:3: 1 of 2 files are missing"),
    "open-quote": (b'file,label\n"a.jpg,3\n', "not a CSV"),
    "huge-field": (b"file,label\n" + b"x" * 200_000 + b",3\n", "not a CSV"),
}


@pytest.mark.parametrize(("text", "words"), BAD_CSVS.values(), ids=BAD_CSVS.keys())
def test_a_bad_csv(text: bytes, words: str, folder: Path) -> None:
    with pytest.raises(DataError, match=words):
        _open(folder, text, name="set.csv")


def _round_trip(source: Path, place: Path) -> list[Picture]:
    place.write_bytes(render_list(open_pictures(source), folder=place.parent).data)
    return list(open_pictures(place))


def test_a_rendered_list_reads_back(folder: Path, tmp_path: Path) -> None:
    (folder / "tab\there.jpg").write_bytes(b"t")
    (folder / " blank.jpg").write_bytes(b"b")
    before = list(open_pictures(folder))
    for place in (tmp_path / "list.txt", folder / "list.txt", folder / "sub" / "list.txt"):
        assert [p.sha256 for p in _round_trip(folder, place)] == [p.sha256 for p in before]


def test_a_rendered_list_keeps_names_that_are_not_utf8(tmp_path: Path) -> None:
    try:
        (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (picture,) = _round_trip(tmp_path, tmp_path / "list.txt")
    assert picture.read() == b"x"


def test_a_rendered_list_is_relative_and_counts(folder: Path, tmp_path: Path) -> None:
    _open(folder, "a.jpg 3\nsub/c d.jpg\n")
    rendered = render_list(open_pictures(folder / "list.txt"), folder=tmp_path)
    assert rendered.data == b"pictures/a.jpg\t3\npictures/sub/c d.jpg\n"
    assert (rendered.pictures, rendered.labelled, rendered.outside) == (2, 1, 0)


def test_a_rendered_list_says_what_lies_outside(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    rendered = render_list(open_pictures(folder / "a.jpg"), folder=tmp_path / "lists")
    assert rendered.data == b"../pictures/a.jpg\n"
    assert rendered.outside == 1


def test_a_rendered_list_in_a_linked_folder_leads_back(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "near").symlink_to("far/away")
    (picture,) = _round_trip(folder / "a.jpg", tmp_path / "near" / "list.txt")
    assert picture.read() == b"a.jpg"


def test_a_name_with_a_line_end_cannot_be_listed(tmp_path: Path) -> None:
    (tmp_path / "two\nlines.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match="cannot contain this name"):
        render_list(open_pictures(tmp_path), folder=tmp_path)


def test_natural_order(tmp_path: Path) -> None:
    right = ["7.jpg", "a10b2.jpg", "a10b10.jpg", "a².jpg", "image_1.jpg", "image_2.jpg", "Image_3.jpg", "image_10.jpg"]
    for name in right:
        (tmp_path / name).write_bytes(b"x")
    assert [picture.name for picture in sorted(open_pictures(tmp_path), key=natural)] == right

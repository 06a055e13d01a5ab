from __future__ import annotations

import random
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import DataError
from edge.media import labels


class Named(NamedTuple):
    name: str


def _write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "file.csv"


NAMES = {
    "plain": (b"tench\ngoldfish\n", ["tench", "goldfish"]),
    "no-line-end": (b"tench\ngoldfish", ["tench", "goldfish"]),
    "crlf-bom-blank-tail": (b"\xef\xbb\xbftench \r\n gold fish\r\n\r\n\n", ["tench", "gold fish"]),
    "other-scripts": ("犬\ncafé\n".encode(), ["犬", "café"]),
}


@pytest.mark.parametrize(("content", "expected"), NAMES.values(), ids=NAMES.keys())
def test_class_names(content: bytes, expected: list[str], file: Path) -> None:
    assert labels.load_names(_write(file, content)) == expected


BAD_NAMES = {
    "empty": (b"", "is empty"),
    "blank": (b" \n\n", "is empty"),
    "gap": (b"tench\n\ngoldfish\n", r"file\.csv:2: empty line between class names"),
    "gap-at-the-start": (b"\ntench\n", r"file\.csv:1: empty line"),
    "binary": (b"tench\0", "not a text"),
    "utf-16": (b"\xff\xfex", "damaged UTF-16"),
}


@pytest.mark.parametrize(("content", "words"), BAD_NAMES.values(), ids=BAD_NAMES.keys())
def test_bad_class_names(content: bytes, words: str, file: Path) -> None:
    with pytest.raises(DataError, match=words):
        labels.load_names(_write(file, content))


def test_files_that_are_not_there(tmp_path: Path) -> None:
    for load in (labels.load_names, labels.load_truth):
        with pytest.raises(DataError, match="there is no such file"):
            load(tmp_path / "nothing")
        with pytest.raises(DataError, match="cannot read: Is a directory"):
            load(tmp_path)


TRUTHS = {
    "plain": ("file,class_index\na.jpg,3\nb/c.jpg,0\n", {"a.jpg": 3, "b/c.jpg": 0}),
    "same-twice": ("file,label\na.jpg,3\na.jpg,3\n", {"a.jpg": 3}),
    "backslashes-and-dots": ("file,label\nb\\c.jpg,3\n./d.jpg,4\n", {"b/c.jpg": 3, "d.jpg": 4}),
    "upper-case-header": ("FILE,CLASS\na.jpg,3\n", {"a.jpg": 3}),
    "blank-lines": ("file,label\n\na.jpg,3\n,\n", {"a.jpg": 3}),
    "comma-in-name": ('file,label\n"a,b.jpg",3\n', {"a,b.jpg": 3}),
    "not-utf8": (b"file,label\ncaf\xe9.jpg,3\n", {r"caf\xe9.jpg": 3}),
}


@pytest.mark.parametrize(("content", "expected"), TRUTHS.values(), ids=TRUTHS.keys())
def test_truth(content: str | bytes, expected: dict[str, int], file: Path) -> None:
    assert labels.load_truth(_write(file, content)) == expected


BAD_TRUTHS = {
    "empty": ("", r"file\.csv:1: the first line must name a column of images"),
    "no-label-column": ("file,kind\na.jpg,3\n", "class_index, label, class, .*; it is 'file,kind'"),
    "header-only": ("file,label\n", "has only a header"),
    "two-labels": (
        "file,label\na.jpg,3\nb.jpg,1\na.jpg,4\n",
        r"file\.csv:4: a\.jpg is class 4 here and class 3 on",
    ),
    "two-labels-other-spelling": ("file,label\na.jpg,3\n./a.jpg,4\n", r"file\.csv:3: a\.jpg is class 4"),
    "word": ("file,label\na.jpg,3\nb.jpg,tench\n", r"file\.csv:3: the class index must be an integer, got 'tench'"),
    "fraction": ("file,label\na.jpg,3.5\n", r"file\.csv:2: .* got '3\.5'"),
    "underscore": ("file,label\na.jpg,1_0\n", r"got '1_0'"),
    "other-digits": ("file,label\na.jpg,٣\n", "must be an integer"),
    "empty-label": ("file,label\na.jpg,\n", r"file\.csv:2: no class for a\.jpg"),
    "short-row": ("label,x,file\n3\n", r"file\.csv:2: no file name"),
    "line-after-a-quoted-line-end": ('file,label\n"a\nb.jpg",3\nc.jpg,x\n', r"file\.csv:4"),
}


@pytest.mark.parametrize(("content", "words"), BAD_TRUTHS.values(), ids=BAD_TRUTHS.keys())
def test_bad_truth(content: str, words: str, file: Path) -> None:
    with pytest.raises(DataError, match=words):
        labels.load_truth(_write(file, content))


_SAFE = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z"), exclude_characters="\\/."), min_size=1)


@given(truth=st.dictionaries(_SAFE, st.integers(0, 10**6), min_size=1, max_size=8))
def test_truth_reads_back(truth: dict[str, int], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "round.csv"
    path.write_bytes(labels.render_truth(truth))
    assert labels.load_truth(path) == truth


@given(st.binary(max_size=200))
def test_any_bytes_are_a_truth_or_a_data_error(content: bytes) -> None:
    import tempfile

    with tempfile.NamedTemporaryFile() as file:
        for head in (b"", b"file,label\n"):
            Path(file.name).write_bytes(head + content)
            try:
                truth = labels.load_truth(Path(file.name))
            except DataError:
                continue
            assert truth


def test_join_keeps_the_order_of_the_pictures() -> None:
    pictures = [Named("b.jpg"), Named("a.jpg")]
    assert labels.join(pictures, {"a.jpg": 1, "b.jpg": 2, "c.jpg": 3}) == [(pictures[0], 2), (pictures[1], 1)]


def test_join_goes_by_the_last_part_where_folders_differ() -> None:
    assert labels.join([Named("val/a.jpg")], {"a.jpg": 1}) == [(Named("val/a.jpg"), 1)]
    assert labels.join([Named("a.jpg")], {"images/val/a.jpg": 1}) == [(Named("a.jpg"), 1)]
    assert labels.join([Named("x/a.jpg")], {"./x/a.jpg": 1, "y/a.jpg": 2}) == [(Named("x/a.jpg"), 1)]


AMBIGUOUS = {
    "two-pictures-one-row": ([Named("x/a.jpg"), Named("y/a.jpg")], {"a.jpg": 1}),
    "one-picture-two-rows": ([Named("a.jpg")], {"x/a.jpg": 1, "y/a.jpg": 2}),
}


@pytest.mark.parametrize(("pictures", "truth"), AMBIGUOUS.values(), ids=AMBIGUOUS.keys())
@pytest.mark.parametrize("partial", [False, True])
def test_join_refuses_to_guess(pictures: list[Named], truth: dict[str, int], partial: bool) -> None:
    with pytest.raises(DataError, match=r"several images are named a\.jpg"):
        labels.join(pictures, truth, partial=partial)


def test_join_takes_the_same_picture_twice() -> None:
    assert len(labels.join([Named("x/a.jpg"), Named("x/a.jpg")], {"a.jpg": 1})) == 2


def test_join_names_the_first_pictures_without_a_label() -> None:
    pictures = [Named(f"{n}.jpg") for n in range(6)]
    with pytest.raises(DataError, match=r"5 of 6 images have no label: 0\.jpg, 2\.jpg, 3\.jpg and 2 more"):
        labels.join(pictures, {"1.jpg": 4})
    assert labels.join(pictures, {"1.jpg": 4}, partial=True) == [(pictures[1], 4)]


def test_join_where_nothing_fits_is_an_error_even_when_partial() -> None:
    with pytest.raises(DataError, match=r"1 of 1 images have no label: a\.jpg"):
        labels.join([Named("a.jpg")], {"b.jpg": 1}, partial=True)


def _guesses(truth: list[int], *, accuracy: float, classes: int, seed: int = 1) -> list[int]:
    rng = random.Random(seed)
    return [t if rng.random() < accuracy else rng.randrange(classes) for t in truth]


def _truth(count: int, classes: int, seed: int = 2) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(classes) for _ in range(count)]


@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("accuracy", [0.3, 0.7, 1.0])
def test_a_map_that_fits_is_silent(accuracy: float, classes: int) -> None:
    truth = _truth(300, classes)
    assert labels.shape_of_errors(_guesses(truth, accuracy=accuracy, classes=classes), truth, classes=classes) is None


@pytest.mark.parametrize("by", [-1, 1])
@pytest.mark.parametrize("accuracy", [0.4, 0.75])
def test_a_map_that_is_off_by_one(by: int, accuracy: float) -> None:
    right = [label % 900 + 50 for label in _truth(200, 1000)]
    predictions = _guesses(right, accuracy=accuracy, classes=1000)
    sentence = labels.shape_of_errors(predictions, [label - by for label in right], classes=1000)
    assert sentence is not None
    assert "off by one" in sentence
    assert f"--label-offset {by:+d}" in sentence


def test_imagenet_records_that_count_from_one() -> None:
    truth = [*_truth(100, 999), 999]
    predictions = _guesses(truth, accuracy=0.75, classes=1000)
    sentence = labels.shape_of_errors(predictions, [label + 1 for label in truth], classes=1000)
    assert sentence is not None
    assert "1 of 101 labels are above 999" in sentence
    assert "--label-offset -1" in sentence


def test_labels_of_another_map_by_range() -> None:
    sentence = labels.shape_of_errors([0, 1, 2], [0, 21000, 5000], classes=1000)
    assert sentence is not None
    assert "2 of 3 labels are above 999" in sentence
    assert "another class map" in sentence


def test_labels_that_are_not_published() -> None:
    sentence = labels.shape_of_errors([0, 1, 2], [-1, -1, 2])
    assert sentence is not None
    assert "2 of 3 labels are negative" in sentence


def test_labels_in_another_order() -> None:
    truth = _truth(200, 1000)
    order = list(range(1000))
    random.Random(3).shuffle(order)
    predictions = [order[label] for label in _guesses(truth, accuracy=0.75, classes=1000)]
    sentence = labels.shape_of_errors(predictions, truth, classes=1000)
    assert sentence is not None
    assert "no better than chance" in sentence
    assert labels.shape_of_errors(predictions, truth) == sentence


@pytest.mark.parametrize("classes", [2, 3, 5, 12])
def test_class_names_in_another_order(classes: int) -> None:
    truth = _truth(60 * classes // 2, classes)
    order = [*range(1, classes), 0]
    predictions = [order[label] for label in _guesses(truth, accuracy=0.8, classes=classes)]
    names = [f"name {index}" for index in range(classes)]
    sentence = labels.shape_of_errors(predictions, truth, classes=classes, names=names)
    assert sentence is not None
    if classes < 5:
        assert f"in another order (it fits name {classes - 1}, name 0" in sentence
    else:
        assert "off by one" in sentence or "in another order" in sentence


@pytest.mark.parametrize("classes", [2, 5, 1000])
def test_answers_at_chance_level_and_constant_answers(classes: int) -> None:
    truth = [index % classes for index in range(100)]
    chance = [(index // classes) % classes for index in range(100)] if classes < 10 else [900] * 50 + [901] * 50
    sentence = labels.shape_of_errors(chance, truth, classes=classes)
    assert "no better than chance" in (sentence or "")
    sentence = labels.shape_of_errors([1] * 100, truth, classes=classes, names=[f"n{i}" for i in range(classes)])
    assert "the network answers 'n1' for 100 of 100 images" in (sentence or "")


def test_a_weak_network_is_not_called_wrong() -> None:
    truth = _truth(200, 5)
    assert labels.shape_of_errors(_guesses(truth, accuracy=0.2, classes=5), truth, classes=5) is None


QUIET = {
    "nothing": ([], []),
    "few-and-all-wrong": ([5] * 10, [1, 2, 3, 4, 6, 7, 8, 9, 10, 11]),
    "one-class-all-wrong": ([5] * 100, [400] * 100),
}


@pytest.mark.parametrize(("predictions", "truth"), QUIET.values(), ids=QUIET.keys())
def test_too_little_to_say_anything(predictions: list[int], truth: list[int]) -> None:
    assert labels.shape_of_errors(predictions, truth, classes=1000) is None


def test_lists_of_two_lengths_are_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="1 predictions for 2 labels"):
        labels.shape_of_errors([1], [1, 2])

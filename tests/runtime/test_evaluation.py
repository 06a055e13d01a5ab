"""The operation ``eval``: shares, intervals and differences of logits whose scores are known by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.backends.interface import Inference
from edge.config.profiles import InputConfig, PreprocessConfig
from edge.errors import DataError, DeviceError
from edge.events import Event, Progress
from edge.media.picture_sources import open_pictures
from edge.media.pictures import Picture
from edge.model.preprocessing import Preprocessor
from edge.runtime import evaluation

CLASSES = 50
Logits = Any


def ranked(ranks: list[int], truth: list[int]) -> Logits:
    """Logits in which picture i has its true class at rank ``ranks[i]``, 0 being the first."""
    rows = np.zeros((len(ranks), CLASSES), np.float32)
    for row, rank, label in zip(rows, ranks, truth, strict=True):
        others = [index for index in range(CLASSES) if index != label]
        order = [*others[:rank], label, *others[rank:]]
        row[order] = np.linspace(4.0, -4.0, CLASSES)
    return rows


def truth_of(count: int) -> list[int]:
    """True classes from 7 on: the classes of wrong answers, from 0 on, are never among them."""
    return [7 + index % 40 for index in range(count)]


def score(own: Logits, truth: list[int], **options: Any) -> evaluation.Scores:
    return evaluation.score(own, truth, precision="int8", **options)


def test_top1_and_top5_are_counted_by_rank() -> None:
    truth = truth_of(10)
    scores = score(ranked([0, 0, 0, 0, 0, 0, 1, 4, 5, 40], truth), truth)
    assert (scores.n, scores.top1, scores.top5) == (10, 60.0, 80.0)
    assert scores.precision == "int8"
    assert (scores.against, scores.agreement, scores.top1_difference, scores.logit_sqnr_db) == (None,) * 4


def test_intervals_are_wilsons_and_contain_the_share() -> None:
    """Wilson's interval for 6 of 10 is 31.27 to 83.18 %, for 10 of 10 it is 72.25 to 100 %."""
    truth = truth_of(10)
    scores = score(ranked([0] * 6 + [1] * 4, truth), truth)
    assert scores.top1_interval == pytest.approx((31.27, 83.18), abs=0.005)
    assert scores.top5_interval == pytest.approx((72.25, 100.0), abs=0.005)


@pytest.mark.parametrize("hits", [0, 1, 50, 99, 100])
def test_intervals_hold_at_the_ends(hits: int) -> None:
    truth = truth_of(100)
    scores = score(ranked([0] * hits + [9] * (100 - hits), truth), truth)
    low, high = scores.top1_interval
    assert 0.0 <= low <= scores.top1 <= high <= 100.0
    assert scores.top1 == hits
    assert (low == 0.0, high == 100.0) == (hits == 0, hits == 100)


def test_more_pictures_make_the_interval_smaller() -> None:
    widths = []
    for count in (10, 100, 1000):
        truth = truth_of(count)
        low, high = score(ranked([0, 9] * (count // 2), truth), truth).top1_interval
        widths.append(high - low)
    assert widths == sorted(widths, reverse=True)


def test_agreement_is_about_the_answers_not_about_the_truth() -> None:
    """Both wrong in the same way agree; both wrong in different ways do not."""
    truth = truth_of(4)
    own, other = ranked([0, 0, 1, 1], truth), ranked([0, 1, 1, 1], truth)
    # The fourth: another wrong answer.
    own[3, [0, 1]] = own[3, [1, 0]]
    own[3, 1] += 9.0
    scores = score(own, truth, reference=other, against="fp32")
    assert (scores.against, scores.agreement) == ("fp32", 50.0)
    assert scores.agreement_interval is not None
    assert scores.agreement_interval[0] < 50.0 < scores.agreement_interval[1]


def test_the_difference_is_paired() -> None:
    """Of 100 pictures 3 are right here alone and 7 there alone: -4 points, whatever both get right."""
    ours = [0] * 3 + [9] * 7 + [0] * 80 + [9] * 10
    theirs = [9] * 3 + [0] * 7 + [0] * 80 + [9] * 10
    truth = truth_of(100)
    scores = score(ranked(ours, truth), truth, reference=ranked(theirs, truth), against="fp32")
    assert (scores.top1, scores.against_top1) == (83.0, 87.0)
    assert scores.top1_difference == pytest.approx(-4.0)
    assert scores.top1_difference_interval is not None
    low, high = scores.top1_difference_interval
    # Agresti and Min, by hand: ((3.5 - 7.5) ± 1.95996·√(11 - 16/102)) / 102.
    assert (low, high) == pytest.approx((-10.249, 2.406), abs=0.005)
    assert low < scores.top1_difference < high


def test_the_same_logits_agree_in_everything() -> None:
    truth = truth_of(30)
    own = ranked([0, 1, 9] * 10, truth)
    scores = score(own, truth, reference=own.copy(), against="fp32")
    assert (scores.agreement, scores.top1_difference, scores.logit_sqnr_db) == (100.0, 0.0, None)
    assert scores.agreement_interval is not None
    assert scores.agreement_interval[1] == 100.0
    assert scores.against_top5 == scores.top5


@pytest.mark.parametrize("ratio", [0.1, 0.01])
def test_sqnr_is_in_decibels(ratio: float) -> None:
    truth = truth_of(8)
    reference = ranked([0] * 8, truth)
    scores = score(reference * np.float32(1.0 + ratio), truth, reference=reference, against="fp32")
    assert scores.logit_sqnr_db == pytest.approx(-20.0 * math.log10(ratio), abs=0.01)


def test_ties_go_to_the_lower_class() -> None:
    flat = np.zeros((2, CLASSES), np.float32)
    scores = score(flat, [0, 4])
    assert (scores.top1, scores.top5) == (50.0, 100.0)


def test_fewer_than_five_classes() -> None:
    own = np.array([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0]], np.float32)
    scores = score(own, [0, 2])
    assert (scores.top1, scores.top5) == (50.0, 100.0)


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_label_map_that_is_off_by_one_is_said(shift: int) -> None:
    truth = truth_of(80)
    scores = score(ranked([0] * 72 + [9] * 8, truth), [label + shift for label in truth])
    assert scores.warning is not None
    assert "off by one" in scores.warning
    assert f"{-shift:+d}" in scores.warning
    assert scores.top1 < 10.0


def test_a_label_map_of_something_else_is_said() -> None:
    truth = truth_of(80)
    scores = score(ranked([0] * 80, truth), [(label * 17 + 5) % CLASSES for label in truth])
    assert scores.warning is not None
    assert "no better than chance" in scores.warning


def test_labels_beyond_the_networks_classes_are_said() -> None:
    truth = truth_of(30)
    scores = score(ranked([0] * 30, truth), [label + CLASSES for label in truth])
    assert scores.warning is not None
    assert "30 of 30 labels are above 49" in scores.warning


def test_a_good_map_is_not_doubted() -> None:
    truth = truth_of(80)
    assert score(ranked([0] * 60 + [3] * 20, truth), truth).warning is None


class Told:
    """A session whose logits are the mean of the picture, and where it is in its batch does not matter."""

    precision = "fp32"

    def __init__(self, *, answer: float | None = None) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self._answer = answer

    def infer(self, batch: Any) -> Inference:
        self.shapes.append(batch.shape)
        means = batch.reshape(len(batch), -1).mean(axis=1) if self._answer is None else [self._answer] * len(batch)
        return Inference(logits=np.repeat(np.asarray(means, np.float32)[:, None], 3, axis=1), infer_ms=1.0)

    def close(self) -> None:
        pass


@pytest.fixture
def seven(tmp_path: Path, pictures: Callable[..., list[Path]]) -> list[Picture]:
    pictures(tmp_path / "p", 7)
    return list(open_pictures(tmp_path / "p"))


def logits(chosen: list[Picture], session: Told, **options: Any) -> Logits:
    return evaluation.logits(
        chosen, session, Preprocessor(PreprocessConfig(resize=36), InputConfig(height=32, width=32)), **options
    )


def test_every_picture_has_its_row_whatever_the_batch(seven: list[Picture]) -> None:
    one, three = Told(), Told()
    rows = logits(seven, one)
    assert rows.shape == (7, 3)
    assert len(np.unique(rows[:, 0])) == 7
    assert np.array_equal(logits(seven, three, batch=3), rows)
    # The rest of one is padded to what the engine takes.
    assert three.shapes == [(3, 3, 32, 32)] * 3
    assert one.shapes == [(1, 3, 32, 32)] * 7


def test_progress_is_told_under_the_name_of_the_stage(seven: list[Picture]) -> None:
    heard: list[Event] = []
    logits(seven, Told(), batch=4, stage="int8", listen=heard.append)
    assert heard == [Progress("int8", 4, 7), Progress("int8", 7, 7)]


def test_a_wish_to_stop_gives_no_figures(seven: list[Picture]) -> None:
    session = Told()
    assert logits(seven, session, should_stop=lambda: len(session.shapes) >= 3) is None
    assert len(session.shapes) == 3


@pytest.mark.parametrize("content", [b"", b"no image\n"], ids=["empty", "text"])
def test_a_broken_picture_is_an_error(content: bytes, seven: list[Picture], tmp_path: Path) -> None:
    (tmp_path / "p" / "004.jpg").write_bytes(content)
    with pytest.raises(DataError) as caught:
        logits(seven, Told())
    assert caught.value.where == str(tmp_path / "p" / "004.jpg")


def test_no_pictures_are_an_error() -> None:
    with pytest.raises(DataError, match="no images to evaluate with"):
        logits([], Told())


@pytest.mark.parametrize("answer", [math.nan, math.inf])
@pytest.mark.parametrize("batch", [1, 3])
def test_an_engine_that_overflows_has_no_scores(answer: float, batch: int, seven: list[Picture]) -> None:
    with pytest.raises(DeviceError, match=r"the int8 engine's output contains NaN or infinity for .*000\.jpg"):
        logits(seven, Told(answer=answer), batch=batch, stage="int8")

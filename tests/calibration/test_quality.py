"""The table of limits: each limit from both sides."""

from __future__ import annotations

from typing import Any

import pytest

from edge.calibration import quality
from edge.calibration.quality import MeasuredAccuracy
from edge.config.profiles import QualityConfig
from edge.errors import QualityError


def measured(sqnr_db: float | None = 30.0, agreement: float = 100.0, n: int = 60, **more: Any) -> MeasuredAccuracy:
    return MeasuredAccuracy(n=n, sqnr_db=sqnr_db, agreement=agreement, **more)


@pytest.mark.parametrize(
    ("found", "level"),
    [
        (measured(), "good"),
        (measured(sqnr_db=None), "good"),
        (measured(10.0, 90.0), "good"),
        (measured(9.99), "weak"),
        (measured(agreement=89.9), "weak"),
        (measured(agreement=89.9, n=49), "good"),
        (measured(6.0), "weak"),
        (measured(5.99), "collapse"),
        (measured(5.99, n=1), "collapse"),
        (measured(-3.0), "collapse"),
        (measured(agreement=80.0), "weak"),
        (measured(agreement=79.9), "collapse"),
        (measured(agreement=0.0, n=49), "good"),
        (measured(agreement=79.9, n=50), "collapse"),
    ],
)
def test_levels(found: MeasuredAccuracy, level: str) -> None:
    verdict = quality.judge(found)
    assert verdict.level == level
    assert bool(verdict.reasons) == (level != "good")


def test_collapse_is_an_error_with_figures_layers_and_the_command() -> None:
    bad = measured(3.04, 12.5, agreement_interval=(5.5, 23.0))
    with pytest.raises(QualityError) as caught:
        quality.check(bad, QualityConfig(), hint="edge tune", layers=lambda: ["a", "b"])
    assert caught.value.what == (
        "INT8 accuracy has collapsed: logit SQNR is 3.0 dB (limit 6 dB); agreement with FP32 is 12.5 % [5.5, 23.0] "
        "on 60 images (limit 80 %); layers with the largest loss: a, b"
    )
    assert caught.value.hint == "edge tune; or set quality: {collapse: allow} in the profile to accept it"
    [note] = quality.check(bad, QualityConfig(collapse="allow"), hint="edge tune")
    assert note.startswith("INT8 accuracy has collapsed")


def test_weak_is_a_note() -> None:
    [note] = quality.check(measured(8.0), QualityConfig(), hint="edge tune", layers=lambda: ["a"])
    assert note == (
        "INT8 accuracy is weak: logit SQNR is 8.0 dB (limit 10 dB); layers with the largest loss: a; "
        "to improve it: edge tune"
    )
    assert quality.check(measured(), QualityConfig(), hint="edge tune") == []


@pytest.mark.parametrize(
    ("limits", "found", "words"),
    [
        ({"min_sqnr": 15.0}, measured(14.96), "logit SQNR is 14.96 dB, below the limit of 15 dB"),
        ({"min_agreement": 98.0}, measured(agreement=97.0), "agreement with FP32 is 97.0 %, below the limit of 98 %"),
        ({"min_top1": 85.0}, measured(top1=84.0), "top-1 is 84.0 %, below the limit of 85 %"),
        ({"max_drop": 0.5}, measured(top1_drop=0.6), "top-1 is 0.6 points below FP32's, more than the limit of 0.5"),
    ],
)
def test_limits_of_the_user(limits: dict[str, float], found: MeasuredAccuracy, words: str) -> None:
    with pytest.raises(QualityError, match=words.replace(".", r"\.").replace("%", "%")):
        quality.check(found, QualityConfig(**limits), hint="edge tune")
    kept = measured(99.0, 100.0, top1=100.0, top1_drop=-1.0)
    assert quality.check(kept, QualityConfig(**limits), hint="edge tune") == []

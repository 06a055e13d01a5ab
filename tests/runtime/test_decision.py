from __future__ import annotations

import itertools

import numpy as np
import pytest

from edge.artifacts.run_record import LabelDecision
from edge.config.run_sections import DecisionSettings
from edge.runtime.classifier import UNKNOWN, Classifier, Decider

CLASSIFIER = Classifier(["cat", "dog", "newt"], topk=3)


def shares(*values: float) -> np.ndarray:
    return np.asarray(values, np.float32)


def decider(**settings: object) -> Decider:
    return Decider(DecisionSettings(**settings), CLASSIFIER)  # type: ignore[arg-type]


CAT, DOG = shares(0.7, 0.2, 0.1), shares(0.1, 0.8, 0.1)


def test_without_smoothing_the_decision_is_the_best_guess() -> None:
    assert not decider().is_needed
    assert decider()(DOG, camera=None, t_s=0.0) == LabelDecision(1, "dog", pytest.approx(0.8))


@pytest.mark.parametrize("smoothing", ["exponential", "majority"])
def test_one_frame_does_not_change_a_label_that_was_seen_for_a_while(smoothing: str) -> None:
    decide = decider(smoothing=smoothing, window_s=1.0)
    assert decide.is_needed
    for number in range(30):
        decide(CAT, camera=None, t_s=number / 30)
    assert decide(DOG, camera=None, t_s=1.0).label == "cat"
    labels = [decide(DOG, camera=None, t_s=1.0 + number / 30).label for number in range(1, 60)]
    assert labels[-1] == "dog"
    # It changes once.
    assert sum(a != b for a, b in itertools.pairwise(labels)) == 1


def test_the_weight_of_a_frame_does_not_depend_on_the_rate() -> None:
    found = []
    for rate in (10, 100):
        decide = decider(smoothing="exponential", window_s=0.5)
        decide(CAT, camera=None, t_s=0.0)
        for number in range(1, rate + 1):
            last = decide(DOG, camera=None, t_s=number / rate)
        found.append(last.confidence)
    assert found[0] == pytest.approx(found[1], rel=1e-3)
    # After two windows, the first frame weighs exp(-2).
    assert found[0] == pytest.approx(0.8 - 0.6 * np.exp(-2), rel=1e-3)


def test_each_camera_is_smoothed_by_itself() -> None:
    decide = decider(smoothing="majority", window_s=10.0)
    for number in range(10):
        decide(CAT, camera="front", t_s=float(number))
    assert decide(DOG, camera="gate", t_s=10.0).label == "dog"
    assert decide(DOG, camera="front", t_s=10.0).label == "cat"


def test_a_majority_of_equals_is_the_one_seen_last_and_its_confidence_falls() -> None:
    decide = decider(smoothing="majority", window_s=10.0)
    assert decide(CAT, camera=None, t_s=0.0).confidence == pytest.approx(0.7)
    assert decide(DOG, camera=None, t_s=1.0) == LabelDecision(1, "dog", pytest.approx(0.4))
    # The window moves on.
    assert decide(DOG, camera=None, t_s=10.5).confidence == pytest.approx(0.8)


def test_below_the_least_confidence_it_is_unknown() -> None:
    decide = decider(min_confidence=0.75)
    assert decide(CAT, camera=None, t_s=0.0) == LabelDecision(None, UNKNOWN, pytest.approx(0.7))
    assert decide(DOG, camera=None, t_s=0.0).label == "dog"


def test_frames_of_one_moment_and_a_clock_that_goes_back_are_borne() -> None:
    decide = decider(smoothing="exponential", window_s=0.5)
    for _ in range(500):
        last = decide(DOG, camera=None, t_s=5.0)
    decide(CAT, camera=None, t_s=4.0)
    assert last.label == "dog"

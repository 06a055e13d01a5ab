"""Confidences: one softmax, whether the network has its own or not."""

from __future__ import annotations

import numpy as np
import pytest

from edge.runtime.classifier import Classifier, output_kind, probabilities

LOGITS = np.asarray([[4.0, 1.0, -2.0], [0.5, 0.25, 0.25]], np.float32)
SOFTMAX = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)


def test_logits_get_one_softmax() -> None:
    np.testing.assert_allclose(probabilities(LOGITS, "logits"), SOFTMAX, rtol=1e-5)


def test_rows_that_sum_to_one_are_not_normalized_again() -> None:
    np.testing.assert_array_equal(probabilities(SOFTMAX, None), SOFTMAX)
    np.testing.assert_allclose(probabilities(LOGITS[:1], None), SOFTMAX[:1], rtol=1e-5)
    np.testing.assert_allclose(probabilities(LOGITS, None)[1], LOGITS[1])


def test_probabilities_that_do_not_sum_to_one_stay() -> None:
    sigmoid = np.asarray([0.9, 0.8, 0.01], np.float32)
    classifier = Classifier(["a", "b", "c"], topk=2, kind="probabilities")
    guesses = classifier.guesses(sigmoid, classifier.shares(sigmoid, where="x.jpg"))
    assert [(guess.label, guess.confidence) for guess in guesses] == [
        ("a", pytest.approx(0.9)), ("b", pytest.approx(0.8)),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "info", "kind"),
    [
        (None, {}, None),
        (None, {"output_kind": "logits"}, None),
        (None, {"output_kind": "probabilities"}, "probabilities"),
        ("probabilities", {}, "probabilities"),
        ("probabilities", {"output_kind": "logits"}, None),
        ("logits", {"output_kind": "logits"}, "logits"),
    ],
)
def test_the_manifest_says_what_was_built_and_the_profile_what_is_meant(
    asked: str | None, info: dict[str, str], kind: str | None
) -> None:
    assert output_kind(asked, info) == kind  # type: ignore[arg-type]


@pytest.mark.parametrize("topk", [1, 2, 5, 9, 10, 11, 50])
def test_guesses_are_the_largest_outputs_and_of_equal_ones_the_first(topk: int) -> None:
    chance = np.random.default_rng(topk)
    for output in (
        chance.standard_normal(10).astype(np.float32),
        chance.integers(0, 3, 10).astype(np.float32),
        np.zeros(10, np.float32),
        np.array([0.0, -0.0, 0.0, 3e38, -3e38, 3e38, 1e-45, -1e-45, 5, 5], np.float32),
    ):
        found = Classifier([], topk=topk).guesses(output, output)
        assert [guess.index for guess in found] == sorted(range(10), key=lambda index: -output[index])[:topk]

from __future__ import annotations

import itertools
import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.stats import best_assignment, fewest_visible, holm, mcnemar

COUNTS = st.integers(0, 400)
P_VALUES = st.lists(st.floats(0.0, 1.0), max_size=30)


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (3, 3, 1.0),
        (5, 0, 0.0625),
        (6, 0, 0.03125),
        (10, 3, 0.09228515625),
        (1, 9, 22 / 1024),
    ],
)
def test_mcnemar_by_hand(only_a: int, only_b: int, p: float) -> None:
    assert mcnemar(only_a, only_b) == pytest.approx(p, rel=1e-15)


@pytest.mark.parametrize("n", [1, 2, 5, 8, 11])
def test_mcnemar_is_the_share_of_coin_tosses_at_least_as_lopsided(n: int) -> None:
    tosses = [abs(2 * sum(coins) - n) for coins in itertools.product((0, 1), repeat=n)]
    for only_a in range(n + 1):
        lopsided = abs(2 * only_a - n)
        share = sum(toss >= lopsided for toss in tosses) / len(tosses)
        assert mcnemar(only_a, n - only_a) == pytest.approx(share, rel=1e-12)


@given(COUNTS, COUNTS)
def test_mcnemar_is_symmetric_and_a_probability(only_a: int, only_b: int) -> None:
    p = mcnemar(only_a, only_b)
    assert 0.0 < p <= 1.0
    assert p == mcnemar(only_b, only_a)


def test_mcnemar_takes_as_many_pictures_as_imagenet_has() -> None:
    p = mcnemar(25_400, 24_600)
    normal = math.erfc(abs(800 - 1) / math.sqrt(50_000) / math.sqrt(2))
    assert p == pytest.approx(normal, rel=1e-2)


@pytest.mark.parametrize(
    ("p_values", "corrected"),
    [
        ([], []),
        ([0.03], [0.03]),
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        ([0.5, 0.6, 0.9], [1.0, 1.0, 1.0]),
        ([0.02, 0.02], [0.04, 0.04]),
    ],
)
def test_holm_by_hand(p_values: list[float], corrected: list[float]) -> None:
    assert holm(p_values) == pytest.approx(corrected)


@given(P_VALUES)
def test_holm_keeps_the_order_and_never_makes_smaller(p_values: list[float]) -> None:
    corrected = holm(p_values)
    assert all(new >= old for new, old in zip(corrected, p_values, strict=True))
    assert all(new <= 1.0 for new in corrected)
    pairs = sorted(zip(p_values, corrected, strict=True))
    assert [new for _, new in pairs] == sorted(new for _, new in pairs)
    # Never stricter than Bonferroni.
    assert all(new <= min(old * len(p_values), 1.0) + 1e-15 for old, new in pairs)


@pytest.mark.parametrize("comparisons", [1, 2, 10, 59, 1000])
def test_the_fewest_visible_pictures_are_just_enough(comparisons: int) -> None:
    k = fewest_visible(comparisons)
    assert mcnemar(k, 0) <= 0.05 / comparisons < mcnemar(k - 1, 0)


@given(st.integers(1, 4), st.integers(0, 2), st.randoms(use_true_random=False))
def test_the_best_assignment_is_that_of_trying_all(rows: int, more: int, rng: Random) -> None:
    score = [[rng.uniform(-5, 5) for _ in range(rows + more)] for _ in range(rows)]
    best = max(
        sum(line[column] for line, column in zip(score, columns, strict=True))
        for columns in itertools.permutations(range(rows + more), rows)
    )
    found = best_assignment(score)
    assert len(set(found)) == rows
    assert sum(line[column] for line, column in zip(score, found, strict=True)) == pytest.approx(best)

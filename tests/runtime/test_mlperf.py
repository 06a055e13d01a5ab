"""MLPerf's early stopping against published counts, against the sum written out, and against chance itself."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.runtime.benchmark import SCENARIOS, binomial_at_most, bound, fewest_queries, most_over


@pytest.mark.parametrize(
    ("percentile", "fewest"),
    # mlcommons/inference_policies, inference_rules.adoc: 64 queries for the 90th percentile, 662 for the 99th.
    [(0.9, 64), (0.99, 662)],
)
def test_the_fewest_queries_are_those_of_the_rules(percentile: float, fewest: int) -> None:
    assert fewest_queries(percentile) == fewest


def test_without_any_over_the_count_is_loadgens() -> None:
    """find_min_passing(t=0, p=0.99) is 459 in LoadGen: ceil(ln 0.01 / ln 0.99)."""
    assert binomial_at_most(0, 459, 0.01) <= 0.01 < binomial_at_most(0, 458, 0.01)
    assert math.ceil(math.log(0.01) / math.log(0.99)) == 459


@pytest.mark.parametrize(
    ("queries", "percentile", "over"),
    # The table of the rules, appendix on early stopping: with t queries over, h_min + t queries are needed.
    [(63, 0.9, 0), (64, 0.9, 1), (80, 0.9, 1), (661, 0.99, 0), (662, 0.99, 1)],
)
def test_how_many_may_be_over(queries: int, percentile: float, over: int) -> None:
    assert most_over(queries, percentile) == over


@given(st.integers(2, 300).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n // 10))))
def test_the_sum_is_exact(counts: tuple[int, int]) -> None:
    n, k = counts
    p = Fraction(1, 10)
    exact = sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1))
    assert binomial_at_most(k, n, 0.1) == pytest.approx(float(exact), rel=1e-9)


@pytest.mark.parametrize("n", [24_576, 270_336, 2_000_000])
@pytest.mark.parametrize("percentile", [0.9, 0.99])
def test_large_counts_are_near_the_normal_approximation(n: int, percentile: float) -> None:
    mean = n * (1 - percentile)
    expected = mean - 2.326 * math.sqrt(mean * percentile)
    assert most_over(n, percentile) == pytest.approx(expected, abs=3 + 0.001 * expected)


@given(st.integers(2, 5000), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_it_is_the_largest_number_that_is_allowed(n: int, percentile: float) -> None:
    over = most_over(n, percentile)
    assert over == 0 or binomial_at_most(over, n, 1 - percentile) <= 0.01
    assert binomial_at_most(over + 1, n, 1 - percentile) > 0.01


def test_the_estimate_is_above_the_truth_in_99_of_100_runs() -> None:
    chance = random.Random(1)
    truth = -math.log(0.1)  # the 90th percentile of an exponential distribution with mean 1
    wrong = 0
    for _ in range(2000):
        found = bound(sorted(chance.expovariate(1.0) for _ in range(200)), 0.9)
        assert found.estimate_ms is not None
        wrong += found.estimate_ms < truth
    # At most 1 %, less because counts are whole numbers; 3.5 standard deviations of chance above it.
    assert wrong <= 2000 * 0.01 + 3.5 * math.sqrt(20)


def test_the_estimate_is_loadgens_order_statistic() -> None:
    """sorted[n - t]: with 64 queries the slowest one, with one more allowed over the second slowest."""
    assert bound([float(i) for i in range(64)], 0.9).estimate_ms == 63.0
    two = next(n for n in range(64, 200) if most_over(n, 0.9) == 2)
    found = bound([float(i) for i in range(two)], 0.9)
    assert (found.over, found.estimate_ms) == (2, float(two - 2))


@pytest.mark.parametrize("n", [0, 1, 63])
def test_too_few_queries_give_no_estimate(n: int) -> None:
    found = bound([1.0] * n, 0.9)
    assert (found.estimate_ms, found.over, found.fewest) == (None, 0, 64)


def test_the_scenarios_are_those_of_the_rules() -> None:
    facts = {
        name: (rules.percentile, rules.samples_per_query, rules.min_duration_s, rules.min_samples)
        for name, rules in SCENARIOS.items()
    }
    assert facts == {
        "single-stream": (0.9, 1, 600.0, 64),
        "multi-stream": (0.99, 8, 600.0, 8 * 662),
        "offline": (None, None, 600.0, 24_576),
    }

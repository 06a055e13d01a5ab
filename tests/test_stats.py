"""Percentiles, spread and intervals, against definitions written out slowly and against published figures."""

from __future__ import annotations

import math
import statistics
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.stats import (
    Interval,
    Summary,
    fewest_visible,
    holm,
    mcnemar,
    paired_difference,
    percentile,
    summarize,
    wilson,
)

times = st.lists(st.floats(0.0, 1e6), min_size=1, max_size=300)
SHARES = ["0.5", "0.90", "0.95", "0.99"]


# percentiles


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([15, 20, 35, 40, 50], 0.05, 15),  # the example of Wikipedia's "nearest-rank method"
        ([15, 20, 35, 40, 50], 0.3, 20),
        ([15, 20, 35, 40, 50], 0.4, 20),
        ([15, 20, 35, 40, 50], 0.5, 35),
        ([15, 20, 35, 40, 50], 1.0, 50),
        ([7.0], 0.01, 7.0),
        ([1, 2], 0.5, 1),
        ([1, 2], 0.51, 2),
    ],
)
def test_nearest_rank(values: list[float], share: float, expected: float) -> None:
    assert percentile(values, share) == expected


@pytest.mark.parametrize("share", SHARES)
def test_rounding_never_moves_the_rank(share: str) -> None:
    """0.95 is not representable: the rank must be that of 95/100 for every number of samples."""
    for n in range(1, 4001):
        assert percentile(range(1, n + 1), float(share)) == math.ceil(Fraction(share) * n)


@given(times, st.sampled_from(SHARES))
def test_a_percentile_is_the_smallest_value_with_that_share_at_or_below_it(values: list[float], share: str) -> None:
    ordered = sorted(values)
    found = percentile(ordered, float(share))
    assert found in values
    assert Fraction(sum(v <= found for v in values), len(values)) >= Fraction(share)
    below = [v for v in values if v < found]
    assert Fraction(len(below), len(values)) < Fraction(share)


# summaries


def test_nothing_measured_is_no_summary() -> None:
    assert summarize([]) is None


def test_one_value() -> None:
    assert summarize([3.5]) == Summary(
        n=1,
        mean_ms=3.5,
        stdev_ms=None,
        min_ms=3.5,
        p50_ms=3.5,
        p90_ms=None,
        p95_ms=None,
        p99_ms=None,
        p999_ms=None,
        max_ms=3.5,
    )


@pytest.mark.parametrize(
    ("n", "known"),
    [(9, []), (10, ["p90"]), (19, ["p90"]), (20, ["p90", "p95"]), (99, ["p90", "p95"]), (100, ["p90", "p95", "p99"])],
)
def test_a_tail_is_given_only_where_there_are_samples_for_it(n: int, known: list[str]) -> None:
    summary = summarize([float(i) for i in range(n)])
    assert summary is not None
    assert [name for name in ("p90", "p95", "p99") if getattr(summary, f"{name}_ms") is not None] == known


@given(times)
def test_a_summary_agrees_with_the_standard_library(values: list[float]) -> None:
    summary = summarize(values)
    assert summary is not None
    assert (summary.n, summary.min_ms, summary.max_ms) == (len(values), min(values), max(values))
    assert summary.mean_ms == pytest.approx(statistics.fmean(values))
    if len(values) > 1:
        assert summary.stdev_ms == pytest.approx(statistics.stdev(values), rel=1e-9, abs=1e-6)
    ordered = [summary.min_ms, summary.p50_ms, summary.p90_ms, summary.p95_ms, summary.p99_ms, summary.max_ms]
    present = [value for value in ordered if value is not None]
    assert present == sorted(present)


@given(times)
def test_a_summary_does_not_depend_on_the_order_and_leaves_its_input_alone(values: list[float]) -> None:
    before = list(values)
    assert summarize(values) == summarize(values[::-1])
    assert values == before


def test_a_summary_says_its_method() -> None:
    summary = summarize([1.0])
    assert summary is not None
    assert summary.method == "nearest-rank"


def test_a_spread_that_is_small_against_the_mean_survives() -> None:
    """The textbook formula with the sum of squares would give 0 or a negative variance here."""
    summary = summarize([1e9 + i % 2 for i in range(1000)])
    assert summary is not None
    assert summary.stdev_ms == pytest.approx(0.5002501876563868, rel=1e-9)


# shares


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17 (1998), table I, method 3: Wilson's score without continuity correction.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_figures(hits: int, n: int, low: float, high: float) -> None:
    found = wilson(hits, n)
    assert found.value == hits / n
    assert found.low == pytest.approx(low, abs=5e-5)
    assert found.high == pytest.approx(high, abs=5e-5)


@given(st.integers(1, 100_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_its_estimate_and_stays_a_share(counts: tuple[int, int]) -> None:
    hits, n = counts
    found = wilson(hits, n)
    assert 0.0 <= found.low <= found.value <= found.high <= 1.0
    mirrored = wilson(n - hits, n)
    assert found.low == pytest.approx(1.0 - mirrored.high, abs=1e-12)
    assert found.high - found.low > 0.0
    # It is the set of shares from which hits is within 1.96 standard errors.
    for end in (found.low, found.high):
        if 0.0 < end < 1.0:
            assert abs(hits / n - end) == pytest.approx(1.959963984540054 * math.sqrt(end * (1 - end) / n), rel=1e-6)


@pytest.mark.parametrize("n", [1, 2, 500, 10**6])
def test_wilson_at_the_ends_is_exact(n: int) -> None:
    assert wilson(0, n).low == 0.0
    assert wilson(n, n).high == 1.0
    assert wilson(0, n).high > 0.0
    assert wilson(n, n).low < 1.0


# paired shares


def test_paired_difference_is_the_wald_interval_of_the_corrected_table() -> None:
    """Agresti and Min (2005), from the four cells with 0.5 added to each."""
    both, only_a, only_b, neither = 794.5, 86.5, 150.5, 570.5
    n = both + only_a + only_b + neither
    difference = (only_a - only_b) / n
    spread = math.sqrt((only_a + only_b) / n - difference**2) / math.sqrt(n)
    found = paired_difference(86, 150, 1600)
    assert found.value == (86 - 150) / 1600
    assert found.low == pytest.approx(difference - 1.959963984540054 * spread, abs=1e-12)
    assert found.high == pytest.approx(difference + 1.959963984540054 * spread, abs=1e-12)


cells = st.integers(1, 5000).flatmap(
    lambda n: st.integers(0, n).flatmap(lambda a: st.tuples(st.just(a), st.integers(0, n - a), st.just(n)))
)


@given(cells)
def test_paired_difference_holds_its_estimate_and_has_two_sides(counts: tuple[int, int, int]) -> None:
    only_a, only_b, n = counts
    found = paired_difference(only_a, only_b, n)
    mirrored = paired_difference(only_b, only_a, n)
    assert -1.0 <= found.low <= found.value <= found.high <= 1.0
    assert (mirrored.value, mirrored.low, mirrored.high) == pytest.approx((-found.value, -found.high, -found.low))


def test_no_difference_seen_is_not_no_difference() -> None:
    found = paired_difference(0, 0, 100)
    assert found.value == 0.0
    assert found.low < -0.01 < 0.01 < found.high


def test_intervals_are_frozen() -> None:
    with pytest.raises(AttributeError):
        Interval(0.5, 0.4, 0.6).value = 1.0  # type: ignore[misc]


# comparisons


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [
        (0, 0, 1.0),
        (5, 5, 1.0),
        (1, 0, 1.0),
        (6, 0, 2 / 64),
        (10, 2, 2 * (1 + 12 + 66) / 4096),
        (2, 10, 2 * (1 + 12 + 66) / 4096),
        (5000, 0, 0.0),
    ],
)
def test_mcnemar(only_a: int, only_b: int, p: float) -> None:
    assert mcnemar(only_a, only_b) == pytest.approx(p, abs=1e-300)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_tail_of_a_fair_coin(only_a: int, only_b: int) -> None:
    n, least = only_a + only_b, min(only_a, only_b)
    tail = sum(Fraction(math.comb(n, k), 2**n) for k in range(n + 1) if k <= least or k >= n - least)
    assert mcnemar(only_a, only_b) == pytest.approx(float(min(tail, 1) if least * 2 < n else 1), rel=1e-12)
    assert 0.0 <= mcnemar(only_a, only_b) <= 1.0


def test_holm_gives_the_corrected_values_in_their_own_order() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.04]) == [0.04]


@given(st.lists(st.floats(0.0, 1.0), max_size=20))
def test_holm_corrects_upwards_and_keeps_the_order(p_values: list[float]) -> None:
    corrected = holm(p_values)
    assert len(corrected) == len(p_values)
    assert all(p <= c <= 1.0 for p, c in zip(p_values, corrected, strict=True))
    ranked = sorted(range(len(p_values)), key=lambda i: p_values[i])
    assert [corrected[i] for i in ranked] == sorted(corrected)
    if p_values:
        assert min(corrected) == pytest.approx(min(1.0, len(p_values) * min(p_values)))


@pytest.mark.parametrize("comparisons", [1, 2, 5, 20, 1000])
def test_fewest_visible_is_the_first_count_that_is_enough(comparisons: int) -> None:
    fewest = fewest_visible(comparisons)
    assert comparisons * mcnemar(fewest, 0) <= 0.05
    assert comparisons * mcnemar(fewest - 1, 0) > 0.05

"""Bounded-memory quantiles against exact ones."""

from __future__ import annotations

import itertools
import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.stats import Bin, QuantileSketch, percentile, summarize

SHARES = (0.001, 0.5, 0.9, 0.95, 0.99, 0.999, 1.0)
# From below a nanosecond to eleven days, spread over the scales as durations are, with zeros and ties.
durations = st.one_of(st.just(0.0), st.just(3.0), st.floats(1e-7, 1e9), st.floats(-6, 9).map(lambda power: 10.0**power))
samples = st.lists(durations, min_size=1, max_size=200)


def filled(values: list[float]) -> QuantileSketch:
    sketch = QuantileSketch()
    for value in values:
        sketch.add(value)
    return sketch


@given(samples, st.sampled_from(SHARES))
def test_every_quantile_is_within_one_percent_of_the_exact_one(values: list[float], share: float) -> None:
    exact = percentile(sorted(values), share)
    # Below a nanosecond there is nothing to be relative to.
    assert filled(values).quantile(share) == pytest.approx(exact, rel=0.01, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", ["lognormvariate", "expovariate", "uniform", "two modes"])
def test_quantiles_of_a_long_run(shape: str, seed: int) -> None:
    chance = random.Random(seed)
    draw = {
        "lognormvariate": lambda: chance.lognormvariate(1.5, 0.6),
        "expovariate": lambda: chance.expovariate(0.1),
        "uniform": lambda: chance.uniform(4.9, 5.1),
        "two modes": lambda: chance.gauss(5, 0.1) if chance.random() < 0.97 else chance.gauss(40, 2),
    }[shape]
    values = [abs(draw()) for _ in range(20_000)]
    sketch, ordered = filled(values), sorted(values)
    for share in SHARES:
        assert sketch.quantile(share) == pytest.approx(percentile(ordered, share), rel=0.01)
    found, exact = sketch.summary(), summarize(values)
    assert found is not None
    assert exact is not None
    assert (found.n, found.min_ms, found.max_ms) == (exact.n, exact.min_ms, exact.max_ms)
    assert found.mean_ms == pytest.approx(exact.mean_ms, rel=1e-9)
    assert found.stdev_ms == pytest.approx(exact.stdev_ms, rel=1e-6)
    assert found.method == "sketch, relative error <= 1 %"


@given(samples, samples)
def test_merging_is_the_same_as_adding_everything(left: list[float], right: list[float]) -> None:
    merged, whole = filled(left), filled(left + right)
    merged.merge(filled(right))
    assert merged.bins(most=10_000) == whole.bins(most=10_000)
    assert (merged.n, merged.min_ms, merged.max_ms) == (whole.n, whole.min_ms, whole.max_ms)
    found, expected = merged.summary(), whole.summary()
    assert found is not None
    assert expected is not None
    assert found.mean_ms == pytest.approx(expected.mean_ms, rel=1e-9)
    assert found.stdev_ms == pytest.approx(expected.stdev_ms, rel=1e-6, abs=1e-9)


def test_merging_with_nothing_changes_nothing() -> None:
    sketch = filled([1.0, 2.0])
    sketch.merge(QuantileSketch())
    assert sketch.n == 2
    empty = QuantileSketch()
    empty.merge(sketch)
    assert empty.summary() == sketch.summary()


@pytest.mark.parametrize("n", [1, 2, 9, 10, 99, 100, 999, 1000])
def test_a_tail_is_given_for_the_same_n_as_by_the_exact_summary(n: int) -> None:
    values = [float(i + 1) for i in range(n)]
    found, exact = filled(values).summary(), summarize(values)
    for name in ("p90_ms", "p95_ms", "p99_ms", "p999_ms"):
        assert (getattr(found, name) is None) == (getattr(exact, name) is None)


def test_nothing_counted_is_no_summary() -> None:
    assert QuantileSketch().summary() is None
    assert QuantileSketch().bins() == []
    with pytest.raises(ValueError, match="empty"):
        QuantileSketch().quantile(0.5)


@pytest.mark.parametrize("value", [-1e-9, math.nan, math.inf, -math.inf])
def test_what_is_no_duration_is_refused_and_not_counted(value: float) -> None:
    sketch = filled([1.0])
    with pytest.raises(ValueError, match="invalid duration"):
        sketch.add(value)
    assert sketch.n == 1


def test_memory_is_bounded_whatever_comes() -> None:
    sketch = filled([10.0 ** (power / 1000) for power in range(-300_000, 300_000, 7)])
    assert len(sketch.bins(most=10**9)) < 2100
    assert sketch.quantile(1.0) == pytest.approx(10**299.995, rel=0.01)


@given(samples, st.integers(1, 150))
def test_bins_hold_every_value_once_below_their_upper_ends(values: list[float], most: int) -> None:
    bins = filled(values).bins(most=most)
    assert 1 <= len(bins) <= most
    assert sum(b.count for b in bins) == len(values)
    seen = 0
    for b in bins:
        seen += b.count
        assert seen == sum(v <= b.upper_ms * (1 + 1e-12) for v in values)
    ratios = [b.upper_ms / a.upper_ms for a, b in itertools.pairwise(bins)]
    assert ratios == pytest.approx([ratios[0]] * len(ratios)) if ratios else True


def test_one_value_is_one_bin() -> None:
    bins = filled([5.0, 5.0]).bins()
    assert bins == [Bin(bins[0].upper_ms, 2)]
    assert 5.0 <= bins[0].upper_ms < 5.1


def test_the_mean_of_many_equal_values_does_not_drift() -> None:
    sketch = filled([0.1] * 100_000)
    summary = sketch.summary()
    assert summary is not None
    assert summary.mean_ms == pytest.approx(0.1, rel=1e-12)
    assert summary.stdev_ms == pytest.approx(0.0, abs=1e-9)
    assert statistics.fmean([sketch.quantile(s) for s in SHARES]) == pytest.approx(0.1, rel=1e-12)

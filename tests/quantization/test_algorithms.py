"""Ranges from statistics: the search against a slow one written from its description, and histograms made for it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.calibration.histograms import Counter
from edge.errors import ArtifactError, ProfileError
from edge.quantization import algorithms
from edge.quantization.algorithms import LEVELS, REGISTRY, SEARCH_BINS, TableName, find, ranges
from edge.quantization.statistics import BINS, Statistics, TensorStatistics

BY_HISTOGRAM = [name for name, item in REGISTRY.items() if item.needs == "histogram"]
KL = ["entropy2", "entropy"]


def of_values(values: np.ndarray) -> TensorStatistics:
    counter = Counter(["x"], with_histogram=True)
    counter.add([np.asarray(values, np.float32)], pictures=1, what="")
    return counter.statistics.tensors["x"]


def of_counts(counts: np.ndarray, *, exponent: int = 0) -> TensorStatistics:
    """A tensor of positive values with this histogram of |x| over (0, 2^exponent): at most BINS bins."""
    both = np.zeros(2 * BINS, np.int64)
    both[BINS : BINS + len(counts)] = counts
    width = 2.0**exponent / BINS
    used = np.flatnonzero(counts)
    high = (used[-1] + 0.999) * width if used.size else 0.0
    return TensorStatistics(0.0, high, int(np.sum(counts)), exponent, both)


def range_of(name: str, tensor: TensorStatistics, **parameters: float) -> float:
    chosen, complete = find(name, parameters)
    return chosen.rule(tensor, complete)


@functools.cache
def gaussian(n: int = 200_000, *, outliers: tuple[float, ...] = (), seed: int = 0) -> np.ndarray:
    values = np.concatenate([np.random.default_rng(seed).normal(size=n), outliers]).astype(np.float32)
    values.flags.writeable = False
    return values


# the registry


def test_the_algorithms_that_profiles_of_the_first_version_name() -> None:
    assert set(REGISTRY) >= {"entropy2", "minmax", "entropy", "percentile", "legacy", "mse"}


@pytest.mark.parametrize("name", REGISTRY)
def test_every_algorithm_is_described(name: str) -> None:
    item = REGISTRY[name]
    assert item.name == name
    assert item.summary.endswith((".", ")."))
    assert item.table_name in get_args(TableName)
    for bounds in item.parameters.values():
        assert bounds.low <= bounds.default <= bounds.high


def test_the_defaults_are_filled_in() -> None:
    assert find("entropy2", {})[1] == {"margin": REGISTRY["entropy2"].parameters["margin"].default}
    assert find("entropy2", {"margin": 0})[1] == {"margin": 0.0}
    assert find("minmax", {})[1] == {}
    assert find("legacy", {"cutoff": 0.5})[1] == {"quantile": 0.99999, "cutoff": 0.5}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("entropie2", "calibration.algorithm: there is no algorithm 'entropie2' (did you mean 'entropy2'?)"),
        ("min-max", "calibration.algorithm: there is no algorithm 'min-max' (did you mean 'minmax'?)"),
        (
            "ada",
            f"calibration.algorithm: there is no algorithm 'ada'; there are {', '.join(sorted(('auto', *REGISTRY)))}",
        ),
        ("", f"calibration.algorithm: there is no algorithm ''; there are {', '.join(sorted(('auto', *REGISTRY)))}"),
    ],
)
def test_an_algorithm_that_is_not_there(name: str, said: str) -> None:
    with pytest.raises(ProfileError) as caught:
        find(name, {})
    assert caught.value.what == said


@pytest.mark.parametrize(
    ("name", "parameters", "said"),
    [
        ("minmax", {"margin": 1}, "calibration.parameters.margin: minmax has no such parameter (it has: none)"),
        ("entropy2", {"flat": 1}, "calibration.parameters.flat: entropy2 has no such parameter (it has: margin)"),
        ("legacy", {"p": 1}, "calibration.parameters.p: legacy has no such parameter (it has: quantile, cutoff)"),
        ("entropy2", {"margin": 1.5}, "calibration.parameters.margin: must be 0 to 1, got 1.5"),
        ("entropy2", {"margin": math.nan}, "calibration.parameters.margin: must be 0 to 1, got nan"),
        ("percentile", {"percentile": 0}, "calibration.parameters.percentile: must be 1 to 100, got 0"),
        ("percentile", {"percentile": 101}, "calibration.parameters.percentile: must be 1 to 100, got 101"),
        ("legacy", {"quantile": math.inf}, "calibration.parameters.quantile: must be 0.01 to 1, got inf"),
    ],
)
def test_a_parameter_that_cannot_be(name: str, parameters: dict[str, float], said: str) -> None:
    with pytest.raises(ProfileError) as caught:
        find(name, parameters)
    assert caught.value.what == said


def test_ranges_are_in_network_order_and_leave_the_statistics_alone() -> None:
    tensors = {name: of_values(gaussian(1000, seed=seed)) for seed, name in enumerate("cab")}
    statistics = Statistics(tensors, 1)
    before = statistics.to_bytes()
    for name in REGISTRY:
        assert list(ranges(statistics, *find(name, {}))) == ["c", "a", "b"]
    assert statistics.to_bytes() == before


@pytest.mark.parametrize("name", BY_HISTOGRAM)
def test_a_histogram_that_is_needed_and_not_there(name: str) -> None:
    with pytest.raises(ArtifactError, match="ranges only"):
        range_of(name, TensorStatistics(0.0, 1.0, 5, 1, None))


# what holds for every one of them


CASES: dict[str, Callable[[], TensorStatistics]] = {
    "gaussian": lambda: of_values(gaussian(20_000)),
    "outlier": lambda: of_values(gaussian(20_000, outliers=(40.0,))),
    "relu": lambda: of_values(np.maximum(gaussian(20_000), 0)),
    "relu6": lambda: of_values(np.clip(gaussian(20_000) * 5, 0, 6)),
    "uniform": lambda: of_values(np.random.default_rng(0).uniform(-3, 3, 20_000)),
    "bimodal": lambda: of_values(np.concatenate([gaussian(5000) * 0.1, gaussian(50) * 0.1 + 9])),
    "spikes": lambda: of_counts(np.random.default_rng(1).poisson(0.05, 1500) * 1000),
    "few": lambda: of_values(np.float32([1, 2, 3])),
    "one": lambda: of_values(np.float32([-0.7])),
    "constant": lambda: of_values(np.full(1000, 2.5)),
    "two-values": lambda: of_values(np.float32([0.001] * 1000 + [100.0])),
    "huge": lambda: of_values(gaussian(1000) * 1e37),
    "tiny": lambda: of_values(gaussian(1000) * 1e-35),
    "denormal": lambda: of_values(gaussian(1000) * 1e-42),
}


@pytest.mark.parametrize("name", REGISTRY)
def test_a_range_lies_between_zero_and_the_largest_value(name: str) -> None:
    for case, make in CASES.items():
        tensor = make()
        found = range_of(name, tensor)
        assert 0.0 < found <= tensor.absmax, case
        assert math.isfinite(found), case


@pytest.mark.parametrize("name", REGISTRY)
def test_a_tensor_that_is_always_zero_has_range_zero(name: str) -> None:
    both_zeros = np.float32([0.0, -0.0])
    for tensor in (of_values(np.zeros(50)), of_values(both_zeros), TensorStatistics.empty(with_histogram=True)):
        assert range_of(name, tensor) == 0.0


@pytest.mark.parametrize("name", REGISTRY)
def test_a_constant_keeps_its_value(name: str) -> None:
    """To within the bin that it is in, and never less: a constant that is clipped is simply wrong."""
    for value in (1.0, -2.5, 255.0, 1e-30, 0.999):
        tensor = of_values(np.full(5000, value))
        width = tensor.histogram().coarsened(SEARCH_BINS).width
        assert tensor.absmax - width <= range_of(name, tensor) <= tensor.absmax, value


@pytest.mark.parametrize("name", REGISTRY)
def test_twice_the_values_twice_the_range(name: str) -> None:
    """Exactly: doubling moves no value to another bin."""
    for case, power in (("gaussian", -1), ("outlier", 60), ("relu6", -40), ("spikes", 5), ("bimodal", 1)):
        tensor = CASES[case]()
        assert tensor.counts is not None
        scale = 2.0**power
        scaled = TensorStatistics(
            tensor.low * scale, tensor.high * scale, tensor.count, tensor.exponent + power, tensor.counts.copy()
        )
        assert range_of(name, scaled) == range_of(name, tensor) * scale, case


@pytest.mark.parametrize("name", REGISTRY)
def test_the_sign_does_not_matter(name: str) -> None:
    for case in ("gaussian", "outlier", "relu6", "bimodal"):
        tensor = CASES[case]()
        assert tensor.counts is not None
        turned = tensor.counts[::-1].copy()
        mirrored = TensorStatistics(-tensor.high, -tensor.low, tensor.count, tensor.exponent, turned)
        assert range_of(name, mirrored) == range_of(name, tensor), case


@pytest.mark.parametrize("name", REGISTRY)
def test_the_same_pictures_several_times_give_the_same_range(name: str) -> None:
    for case, times in (("gaussian", 2), ("outlier", 64), ("relu6", 2), ("bimodal", 64), ("spikes", 64)):
        tensor = CASES[case]()
        assert tensor.counts is not None
        more = TensorStatistics(tensor.low, tensor.high, tensor.count * times, tensor.exponent, tensor.counts * times)
        assert range_of(name, more) == pytest.approx(range_of(name, tensor), rel=1e-12), case


@pytest.mark.parametrize("name", REGISTRY)
def test_a_wider_exponent_than_needed_changes_nothing(name: str) -> None:
    """A clipped tensor keeps the bins of its source; 2048 bins of them are still as fine as ever."""
    tensor = CASES["gaussian"]()
    wide = CASES["gaussian"]()
    wide.grow(wide.exponent + 1)
    assert range_of(name, wide) == pytest.approx(range_of(name, tensor), rel=0.02)


# minmax


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=50))
def test_minmax_is_exactly_the_largest_magnitude(values: list[float]) -> None:
    assert range_of("minmax", of_values(np.array(values, np.float32))) == max(abs(v) for v in values)


# the search


def slow_divergences(counts: list[int], first: int = LEVELS) -> list[float]:
    """KL divergence for every B from ``first`` on: the description of entropy2, step by step, bins times bins."""
    found = []
    total = sum(counts)
    for last in range(first, len(counts)):
        # All outliers go into B.
        reference = counts[: last + 1]
        reference[last] += sum(counts[last + 1 :])
        # 127 coarse bins between 0 and the midpoint of B; the last fine bin belongs to the last coarse bin.
        coarse: list[list[int]] = [[] for _ in range(LEVELS)]
        for fine in range(last + 1):
            at = (2 * fine + 1) * LEVELS // (2 * last + 1)
            coarse[min(at, LEVELS - 1)].append(fine)
        # The coarse histogram counts no outliers; each coarse bin is shared by its occupied fine bins.
        candidate = [0.0] * (last + 1)
        for members in coarse:
            occupied = [fine for fine in members if counts[fine]]
            content = sum(counts[fine] for fine in occupied)
            for fine in occupied:
                candidate[fine] = content / len(occupied)
        inside = sum(counts[: last + 1])
        divergence = 0.0
        for p, q in zip(reference, candidate, strict=True):
            if p and not q:
                divergence = math.inf
            elif p:
                divergence += p / total * math.log((p / total) / (q / inside))
        found.append(divergence)
    return found


def fast_divergences(counts: np.ndarray, first: int = LEVELS) -> np.ndarray:
    return algorithms._divergences(counts.astype(np.float64), np.arange(first, len(counts)))


def spiky(seed: int, bins: int, rate: float) -> np.ndarray:
    """Many empty bins, some large ones: what the activations of a small network look like."""
    rng = np.random.default_rng(seed)
    return rng.poisson(rate, bins) * rng.integers(1, 500, bins)


HISTOGRAMS = {
    "uniform": np.full(150, 7),
    "gaussian": np.random.default_rng(0).poisson(1000 * np.exp(-(np.linspace(0, 5, 260) ** 2))),
    "spiky": spiky(1, 180, 0.3),
    "sparse": spiky(2, 200, 0.03),
    "one-bin": np.eye(1, 180, 179, dtype=np.int64)[0] * 5,
    "two-bins": np.eye(1, 180, 0, dtype=np.int64)[0] * 100 + np.eye(1, 180, 179, dtype=np.int64)[0],
    "just-enough": np.arange(1, 129),
    "where-borders-meet": np.random.default_rng(3).integers(0, 9, 2 * 127 + 64),
    "rising": np.arange(1, 170) ** 2,
    "large-counts": np.random.default_rng(4).integers(0, 2**40, 150),
}


@pytest.mark.parametrize(
    ("case", "first"),
    [*((name, LEVELS) for name in HISTOGRAMS), *((n, 8) for n in ("just-enough", "sparse", "two-bins"))],
)
def test_the_search_agrees_with_the_slow_one(case: str, first: int) -> None:
    counts = HISTOGRAMS[case].astype(np.int64)
    fast = fast_divergences(counts, first)
    slow = np.array(slow_divergences([int(c) for c in counts], first))
    assert fast.shape == slow.shape == (len(counts) - first,)
    assert np.array_equal(np.isinf(fast), np.isinf(slow))
    finite = np.isfinite(slow)
    assert np.abs(fast[finite] - slow[finite]).max() <= 1e-11


@given(st.integers(0, 2**32 - 1), st.integers(LEVELS + 1, 180), st.floats(0.02, 3.0))
@settings(max_examples=15)
def test_the_search_agrees_with_the_slow_one_on_any_histogram(seed: int, bins: int, rate: float) -> None:
    counts = spiky(seed, bins, rate)
    counts[-1] += 1
    fast = fast_divergences(counts)
    slow = np.array(slow_divergences([int(c) for c in counts]))
    assert np.array_equal(np.isinf(fast), np.isinf(slow))
    finite = np.isfinite(slow)
    assert np.abs(fast[finite] - slow[finite]).max() <= 1e-11


@given(st.integers(0, 2**32 - 1), st.integers(LEVELS + 1, 600), st.floats(0.01, 5.0))
def test_a_divergence_is_never_negative(seed: int, bins: int, rate: float) -> None:
    counts = spiky(seed, bins, rate)
    counts[-1] += 1
    assert fast_divergences(counts, 8).min() >= -1e-9


# entropy: what it keeps and what it cuts


@pytest.mark.parametrize("name", KL)
def test_a_uniform_tensor_keeps_nearly_all(name: str) -> None:
    tensor = of_values(np.random.default_rng(0).uniform(-5, 5, 300_000))
    assert range_of(name, tensor) >= 0.99 * tensor.absmax


@pytest.mark.parametrize("name", KL)
@pytest.mark.parametrize("kind", ["normal", "positive", "relu"])
@pytest.mark.parametrize("far", [15.0, 64.0, 300.0, 3000.0])
def test_a_rare_far_outlier_is_cut_off(name: str, far: float, kind: str) -> None:
    """200 000 values from a normal distribution and three far ones: keeping those would waste most of the levels.

    Far ones may leave the bulk with 128 bins of the search, or with a handful of those that were counted.
    """
    values = gaussian(outliers=(far, -far, far * 0.9))
    values = {"normal": values, "positive": np.abs(values), "relu": np.maximum(values, 0)}[kind]
    assert 2.0 < range_of(name, of_values(values)) < 8.0


@pytest.mark.parametrize("name", KL)
def test_an_outlier_that_leaves_the_bulk_no_bins_is_kept(name: str) -> None:
    """The limit of what was counted: all others are in the first of 8192 bins, and nothing is known of their shape."""
    tensor = of_values(gaussian(outliers=(2.0**17, -(2.0**17))))
    assert range_of(name, tensor) == 2.0**17


@pytest.mark.parametrize("name", KL)
@pytest.mark.parametrize("factor", [3.0, 17.0, 40.0, 200.0])
def test_one_in_a_hundred_is_no_outlier(name: str, factor: float) -> None:
    """What a hundredth of the values reach is kept, however far it lies from the others."""
    rng = np.random.default_rng(2)
    values = np.concatenate([rng.normal(0, 1, 99_000), rng.uniform(0.5, 1.0, 1000) * 4 * factor])
    assert range_of(name, of_values(values)) > 2 * factor


@pytest.mark.parametrize("name", KL)
def test_many_values_far_out_are_kept(name: str) -> None:
    values = np.concatenate([gaussian(10_000), np.random.default_rng(1).uniform(20, 30, 10_000)])
    assert range_of(name, of_values(values)) > 28.0


@pytest.mark.parametrize("name", KL)
def test_as_few_bins_as_levels_are_kept_whole(name: str) -> None:
    counts = np.zeros(LEVELS, np.int64)
    counts[[0, 3, 126]] = (1000, 5, 1)
    tensor = of_counts(counts)
    assert range_of(name, tensor) == tensor.absmax


def test_the_first_bin_counts_for_nothing_in_entropy2() -> None:
    """However many zeros a Relu gives, they must not decide where the rest is cut."""
    values = np.abs(gaussian(outliers=(60.0,)))
    values = values[values > 0.1]
    few, many = of_values(values), of_values(np.concatenate([values, np.zeros(10 * len(values))]))
    assert range_of("entropy2", few) == range_of("entropy2", many)


def test_a_tensor_with_nothing_but_its_first_bin_keeps_its_range() -> None:
    counts = np.zeros(BINS, np.int64)
    counts[0] = 10
    tensor = of_counts(counts)
    assert range_of("entropy2", tensor) == tensor.absmax


@pytest.mark.parametrize("name", KL)
@pytest.mark.parametrize("case", ["gaussian", "outlier", "relu6", "spikes", "bimodal"])
def test_a_larger_margin_never_cuts_off_more(name: str, case: str) -> None:
    tensor = CASES[case]()
    found = [range_of(name, tensor, margin=margin) for margin in (0.0, 0.1, 0.25, 0.5, 0.9, 1.0)]
    assert found == sorted(found)


@pytest.mark.parametrize("name", KL)
def test_one_percent_of_the_power_of_few_values_may_be_cut_off(name: str) -> None:
    """Of 2001 normal values, one at 6 has less than that beyond 4, and one at 10 more."""
    assert range_of(name, of_values(gaussian(2000, outliers=(6.0,))), margin=0.0) < 4.0
    tensor = of_values(gaussian(2000, outliers=(10.0,)))
    assert range_of(name, tensor, margin=0.0) == tensor.absmax


@pytest.mark.parametrize("name", KL)
def test_a_margin_of_1_cuts_nothing_off(name: str) -> None:
    tensor = of_values(gaussian(outliers=(12.0,)))
    assert range_of(name, tensor, margin=0.0) < 0.6 * tensor.absmax
    assert range_of(name, tensor, margin=1.0) == tensor.absmax


@pytest.mark.parametrize("name", KL)
def test_without_a_margin_the_range_is_that_of_the_least_divergence(name: str) -> None:
    tensor = of_counts(HISTOGRAMS["gaussian"])
    histogram = tensor.histogram()
    counts = histogram.counts[: histogram.used_bins].tolist()
    counts[0] = counts[1] if name == "entropy" else 0
    divergence = slow_divergences(counts)
    best = max(i for i, d in enumerate(divergence) if d <= min(divergence) + 1e-13) + LEVELS
    centre_or_edge = 1.0 if name == "entropy" else 0.5
    assert range_of(name, tensor, margin=0.0) == pytest.approx(
        min((best + centre_or_edge) / BINS, tensor.absmax), rel=1e-12
    )


# percentile and legacy


@pytest.mark.parametrize("case", ["gaussian", "relu", "uniform", "bimodal", "few"])
def test_a_percentile_is_that_of_the_magnitudes_to_within_a_bin(case: str) -> None:
    values = {
        "gaussian": gaussian(20_000), "relu": np.maximum(gaussian(20_000), 0),
        "uniform": np.random.default_rng(0).uniform(-3, 3, 20_000).astype(np.float32),
        "bimodal": np.concatenate([gaussian(5000) * np.float32(0.1), gaussian(50) * np.float32(0.1) + 9]),
        "few": np.float32([1, 2, 3]),
    }[case]  # fmt: skip
    tensor = of_values(values)
    ordered = np.sort(np.abs(values.astype(np.float32))).astype(np.float64)
    for share in (50.0, 90.0, 99.0, 99.9, 99.99, 100.0):
        exact = ordered[max(math.ceil(len(ordered) * share / 100 - 1e-6), 1) - 1]
        assert exact <= range_of("percentile", tensor, percentile=share) <= exact + tensor.histogram().width, share


def test_the_hundredth_percentile_is_the_largest_value() -> None:
    tensor = of_values(gaussian(1000, outliers=(77.7,)))
    assert range_of("percentile", tensor, percentile=100.0) == tensor.absmax


def test_legacy_takes_the_smaller_of_quantile_and_cutoff() -> None:
    tensor = of_values(gaussian(10_000, outliers=(100.0,)))
    quantile = range_of("percentile", tensor, percentile=99.0)
    assert range_of("legacy", tensor, quantile=0.99, cutoff=1.0) == quantile
    assert range_of("legacy", tensor, quantile=1.0, cutoff=0.5) == 50.0
    assert range_of("legacy", tensor, quantile=0.99, cutoff=0.01) == 1.0


# mse


def error_of(values: np.ndarray, limit: float) -> float:
    step = limit / LEVELS
    return float(np.square(np.clip(np.rint(values / step), -LEVELS, LEVELS) * step - values).mean())


@pytest.mark.parametrize("values", [gaussian(), gaussian(outliers=(40.0,) * 5), np.maximum(gaussian(), 0)],
                         ids=["gaussian", "outliers", "relu"])  # fmt: skip
def test_mse_is_as_good_as_the_best_of_many_ranges(values: np.ndarray) -> None:
    """Measured on the values themselves, not on their histogram."""
    values = values.astype(np.float64)
    found = error_of(values, range_of("mse", of_values(values)))
    best = min(error_of(values, limit) for limit in np.linspace(0.05, 1.0, 200) * np.abs(values).max())
    assert found <= best * 1.05


def test_mse_cuts_off_less_than_nothing_for_a_uniform_tensor() -> None:
    tensor = of_values(np.random.default_rng(0).uniform(-5, 5, 100_000))
    assert range_of("mse", tensor) >= 0.98 * tensor.absmax


@pytest.mark.parametrize("name", ["entropy", "entropy2"])
@pytest.mark.parametrize("values", [100, 300, 1000, 3000])
def test_entropy_keeps_the_range_of_few_values_with_a_long_tail(name: str, values: int) -> None:
    """One picture, or a pooled tensor of some: gaps in the histogram are no reason to cut most of the range off."""
    for seed in range(5):
        x = np.exp(2.0 * np.random.default_rng(seed).normal(size=values)).astype(np.float32)
        bound = range_of(name, of_values(x))
        step = bound / 127
        noise = np.square(np.clip(np.rint(x / step), -127, 127) * step - x).sum()
        assert 10 * np.log10(np.square(x).sum() / noise) > 18

"""Weights on their INT8 levels: the sum of every filter stays, no weight goes far, and the scale is the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpies

from edge.quantization import rounding

FILTERS = numpies.arrays(
    np.float32, st.tuples(st.integers(1, 4), st.integers(1, 40)), elements=st.floats(-3, 3, width=32)
)


def steps_of(filters: np.ndarray) -> np.ndarray:
    steps = np.abs(filters).max(axis=1, keepdims=True) / 127
    return np.where(steps < np.finfo(np.float32).tiny, 1, steps)


@given(FILTERS)
def test_sums_are_kept_and_no_weight_moves_a_whole_level(filters: np.ndarray) -> None:
    steps = steps_of(filters)
    errors = (rounding.balanced(filters).astype(np.float64) - filters) / steps
    assert np.all(np.abs(errors) < 1.001)
    assert np.all(np.abs(errors.sum(axis=1)) <= 0.501)


@given(FILTERS)
def test_who_quantizes_them_finds_the_same_levels(filters: np.ndarray) -> None:
    better = rounding.balanced(filters)
    steps = steps_of(better)
    levels = better / steps
    assert np.abs(levels).max() < 127.5
    assert np.allclose(levels, np.rint(levels), atol=1e-3)
    assert np.allclose(np.abs(better).max(axis=1), np.abs(filters).max(axis=1), rtol=1e-6, atol=1e-37)
    assert np.allclose(rounding.balanced(better), better, rtol=1e-6)


def test_what_is_constructed() -> None:
    # In levels: 127, 0.4, 0.4, 0.4. To the nearest the sum loses 1.2; so the first of the three goes up.
    found = rounding.balanced(np.array([[127, 0.4, 0.4, 0.4]], np.float32))
    assert found.tolist() == [[127, 1, 0, 0]]
    assert rounding.balanced(np.array([[-127, -0.4, -0.3, -0.45]], np.float32)).tolist() == [[-127, 0, 0, -1]]


def test_the_sum_of_a_real_filter_loses_a_hundred_times_less() -> None:
    filters = np.random.default_rng(1).normal(0.1, 1, (32, 576)).astype(np.float32)
    steps = steps_of(filters)
    nearest = np.rint(filters / steps) * steps
    lost = np.abs((rounding.balanced(filters) - filters.astype(np.float64)).sum(axis=1)).mean()
    assert lost < np.abs((nearest - filters).sum(axis=1)).mean() / 10


def test_zeros_and_denormals_are_left_in_peace() -> None:
    assert rounding.balanced(np.zeros((2, 3), np.float32)).tolist() == [[0, 0, 0], [0, 0, 0]]
    assert np.isfinite(rounding.balanced(np.full((1, 3), 1e-44, np.float32))).all()
    assert rounding.scales_of(np.array([[1e-44, 0.0], [1e-37, 0.0], [127.0, 0.0]], np.float32), 0).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("shape", "axis"), [((4, 3, 3, 3), 0), ((5, 7), 0), ((7, 5), 1), ((2, 7, 5), 2), ((3, 4, 2, 2), 1)]
)
def test_weights_of_any_shape_keep_the_sum_of_each_channel(shape: tuple[int, ...], axis: int) -> None:
    before = np.random.default_rng(0).normal(0.2, 1, shape).astype(np.float32)
    after = rounding.on_levels(before, axis, balance=True)
    others = tuple(i for i in range(len(shape)) if i != axis)
    steps = rounding.scales_of(before, axis)
    assert steps.shape == (shape[axis],)
    assert not np.array_equal(before, after)
    assert np.all(np.abs((after - before).sum(axis=others)) <= steps * 0.51)
    by_channel = np.moveaxis(after, axis, -1) / steps
    np.testing.assert_allclose(by_channel, np.rint(by_channel), atol=1e-3)


def test_weights_without_a_channel_axis_have_one_scale() -> None:
    before = np.random.default_rng(0).normal(0.2, 1, (4, 2, 2, 2)).astype(np.float32)
    assert rounding.scales_of(before, None).shape == ()
    levels = rounding.on_levels(before, None, balance=True) / rounding.scales_of(before, None)
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-3)

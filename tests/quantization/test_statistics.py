"""Statistics against a histogram that is counted in float64, value by value; and the laws that sharding relies on."""

from __future__ import annotations

import copy
import io
import math
import random
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from edge.calibration.histograms import Counter
from edge.errors import ArtifactError
from edge.quantization.statistics import BINS, FORMAT, MIN_EXPONENT, Statistics, TensorStatistics, exponent_of

Values = np.ndarray

TINY = float(np.finfo(np.float32).smallest_subnormal)
HUGE = float(np.finfo(np.float32).max)
SPECIAL = [
    0.0, -0.0, TINY, -TINY, float(np.finfo(np.float32).tiny), 2.0**-100, 2.0**-101, -(2.0**-100), HUGE, -HUGE, 1.0,
    -1.0, float(np.nextafter(np.float32(1), np.float32(0))), 6.0, 2.0, 2.0 - 2.0**-12, 2.0**-13, 255.0, 2.0**127,
]  # fmt: skip

anything = st.floats(width=32, allow_nan=False, allow_infinity=False) | st.sampled_from(SPECIAL)
moderate = st.floats(-100, 100, width=32) | st.sampled_from([0.0, -0.0, 6.0, 1.0, TINY])
arrays = st.lists(
    nps.arrays(np.float32, st.integers(0, 40), elements=anything)
    | nps.arrays(np.float32, st.integers(1, 40), elements=moderate),
    min_size=1,
    max_size=6,
)


def counted(*batches: Values, with_histogram: bool = True) -> TensorStatistics:
    """Statistics of one tensor over ``batches``, as calibration makes them."""
    counter = Counter(["x"], with_histogram=with_histogram)
    for batch in batches:
        counter.add([batch], pictures=1, what="picture")
    return counter.statistics.tensors["x"]


def reference(values: Values, exponent: int) -> np.ndarray:
    """Bins of ``values`` over ±2^exponent, in float64 and without any trick."""
    counts = np.zeros(2 * BINS, np.int64)
    width = math.ldexp(1.0, exponent) / BINS
    for value in values.astype(np.float64):
        step = math.floor(abs(value) / width)
        assert step < BINS
        counts[BINS - 1 - step if math.copysign(1.0, value) < 0 else BINS + step] += 1
    return counts


def same(a: TensorStatistics, b: TensorStatistics) -> bool:
    """Equal to the bit, NaN-free."""
    if (a.counts is None) != (b.counts is None):
        return False
    return (a.low, a.high, a.count, a.exponent) == (b.low, b.high, b.count, b.exponent) and (
        a.counts is None or b.counts is None or np.array_equal(a.counts, b.counts)
    )


def bits(tensor: TensorStatistics) -> tuple[bytes, int, int, bytes | None]:
    """What would be saved, to the bit: 0.0 and -0.0 are not the same here."""
    counts = None if tensor.counts is None else tensor.counts.tobytes()
    return struct.pack("dd", tensor.low, tensor.high), tensor.count, tensor.exponent, counts


# counting


@given(arrays)
def test_the_histogram_is_the_one_counted_by_hand(batches: list[Values]) -> None:
    everything = np.concatenate(batches)
    found = counted(*batches)
    assert found.count == everything.size
    assert found.counts is not None
    assert int(found.counts.sum()) == everything.size
    if everything.size:
        assert (found.low, found.high) == (everything.min(), everything.max())
        assert found.absmax == np.abs(everything.astype(np.float64)).max()
        assert found.exponent == exponent_of(found.absmax)
    assert np.array_equal(found.counts, reference(everything, found.exponent))


@given(arrays, st.randoms(use_true_random=False))
def test_any_split_in_any_order_gives_the_same_bits(batches: list[Values], chooser: random.Random) -> None:
    """Single values, shuffled, over several counters that are merged in another order."""
    expected = counted(*batches)
    values = list(np.concatenate(batches))
    chooser.shuffle(values)
    parts = [TensorStatistics.empty(with_histogram=True)]
    while values:
        size = chooser.randint(1, len(values))
        parts.append(counted(np.array(values[:size], np.float32)))
        values = values[size:]
    chooser.shuffle(parts)
    total = TensorStatistics.empty(with_histogram=True)
    for part in parts:
        total.merge(part)
    assert bits(total) == bits(expected)


@given(arrays)
def test_ranges_alone_are_those_of_the_histogram(batches: list[Values]) -> None:
    full, short = counted(*batches), counted(*batches, with_histogram=False)
    assert short.counts is None
    assert (full.low, full.high, full.count, full.exponent) == (short.low, short.high, short.count, short.exponent)


@pytest.mark.parametrize("shape", [(4,), (1, 4), (2, 2), (4, 1, 1)])
def test_the_shape_does_not_matter(shape: tuple[int, ...]) -> None:
    values = np.array([1, -2, 3, 0.5], np.float32)
    assert same(counted(values.reshape(shape)), counted(values))


@pytest.mark.parametrize(
    "arrange",
    [lambda v: v[::2], lambda v: v[::-1], lambda v: np.asfortranarray(v.reshape(8, -1)), lambda v: v.reshape(8, -1).T,
     lambda v: np.broadcast_to(v[:3], (5, 3))],
    ids=["every-second", "backwards", "column-major", "transposed", "broadcast"],
)  # fmt: skip
def test_the_arrangement_in_memory_does_not_matter(arrange: Callable[[Values], Values]) -> None:
    values = np.random.default_rng(0).normal(size=64).astype(np.float32)
    assert same(counted(arrange(values)), counted(np.array(arrange(values)).ravel()))


def test_float16_is_counted_as_the_float32_that_it_is() -> None:
    values = np.random.default_rng(0).normal(size=64).astype(np.float16)
    assert same(counted(values), counted(values.astype(np.float32)))


def test_counting_leaves_the_values_alone() -> None:
    values = np.random.default_rng(0).normal(size=64).astype(np.float32)
    before = values.copy()
    counted(values)
    assert np.array_equal(values, before)


def test_large_arrays_count_every_value() -> None:
    values = np.random.default_rng(0).normal(size=300_001).astype(np.float32)
    found = counted(values)
    assert found.counts is not None
    edges = (np.arange(2 * BINS + 1) - BINS) * (2.0**found.exponent / BINS)
    below = np.histogram(values[values < 0].astype(np.float64), edges)[0]
    above = np.histogram(values[values >= 0].astype(np.float64), edges)[0]
    # np.histogram's bins are closed on the left; for values below zero ours are closed on the right.
    assert np.abs(np.cumsum(found.counts) - np.cumsum(below + above)).max() <= np.isin(values, edges).sum()


# exponents


@pytest.mark.parametrize(
    ("absmax", "exponent"),
    [(0.0, MIN_EXPONENT), (TINY, MIN_EXPONENT), (2.0**-101, MIN_EXPONENT), (2.0**-100, -99), (0.5, 0),
     (math.nextafter(0.5, 0), -1), (0.9999999, 0), (1.0, 1), (1.5, 1), (math.nextafter(2.0, 0), 1), (2.0, 2),
     (255.0, 8), (256.0, 9), (HUGE, 128)],
)  # fmt: skip
def test_exponent_of(absmax: float, exponent: int) -> None:
    assert exponent_of(absmax) == exponent
    assert absmax < 2.0**exponent
    assert exponent == MIN_EXPONENT or absmax >= 2.0 ** (exponent - 1)


@given(st.lists(moderate, min_size=1, max_size=30), st.integers(0, 40))
def test_growing_moves_no_value_out_of_its_place(values: list[float], more: int) -> None:
    """After growing, the histogram is the one that counting at that width would have given."""
    array = np.array(values, np.float32)
    found = counted(array)
    found.grow(found.exponent + more)
    assert found.counts is not None
    assert np.array_equal(found.counts, reference(array, found.exponent))


def test_growing_to_less_does_nothing() -> None:
    found = counted(np.array([1, 100], np.float32))
    before = copy.deepcopy(found)
    found.grow(found.exponent - 3)
    assert same(found, before)


# merging


three = st.tuples(*[st.lists(anything, max_size=20).map(lambda v: np.array(v, np.float32))] * 3)


@given(three)
def test_merging_is_commutative_associative_and_has_a_neutral_element(parts: tuple[Values, Values, Values]) -> None:
    a, b, c = (counted(part) for part in parts)

    def merged(*tensors: TensorStatistics) -> TensorStatistics:
        total = copy.deepcopy(tensors[0])
        for tensor in tensors[1:]:
            total.merge(copy.deepcopy(tensor))
        return total

    assert bits(merged(a, b)) == bits(merged(b, a))
    assert bits(merged(merged(a, b), c)) == bits(merged(a, merged(b, c)))
    nothing = TensorStatistics.empty(with_histogram=True)
    assert bits(merged(a, nothing)) == bits(merged(nothing, a)) == bits(a)


@given(three)
def test_merging_leaves_the_other_alone(parts: tuple[Values, Values, Values]) -> None:
    a, b, _ = (counted(part) for part in parts)
    before = copy.deepcopy(b)
    a.merge(b)
    assert same(b, before)
    kept = copy.deepcopy(a)
    b.merge(counted(np.array([3e30], np.float32)))
    assert same(a, kept)


def test_statistics_merge_tensor_by_tensor_and_add_pictures() -> None:
    one = Statistics({"a": counted(np.float32([1])), "b": counted(np.float32([2]))}, 3)
    two = Statistics({"b": counted(np.float32([-5])), "a": counted(np.float32([0.5]))}, 4)
    one.merge(two)
    assert (one.pictures, list(one.tensors)) == (7, ["a", "b"])
    assert (one.tensors["b"].low, one.tensors["b"].high) == (-5, 2)


# folding and coarsening


def test_the_folded_histogram_is_that_of_the_magnitude() -> None:
    values = np.random.default_rng(1).normal(size=5000).astype(np.float32)
    folded, magnitude = counted(values).histogram(), counted(np.abs(values)).histogram()
    assert np.array_equal(folded.counts, magnitude.counts)
    assert (folded.width, folded.absmax) == (magnitude.width, magnitude.absmax)
    assert folded.width == 2.0 ** exponent_of(folded.absmax) / BINS


def test_ranges_alone_give_no_histogram() -> None:
    with pytest.raises(ArtifactError, match="ranges only"):
        counted(np.float32([1]), with_histogram=False).histogram()


@given(arrays, st.sampled_from([1, 2, 127, 128, 2048, 4096, BINS]))
def test_coarsening_keeps_everything_and_fits(batches: list[Values], most: int) -> None:
    fine = counted(*batches).histogram()
    coarse = fine.coarsened(most)
    assert coarse.used_bins <= most
    assert coarse.counts.sum() == fine.counts.sum()
    assert coarse.absmax == fine.absmax
    factor = int(coarse.width / fine.width)
    assert coarse.width == fine.width * factor
    assert np.array_equal(coarse.counts, fine.counts.reshape(-1, factor).sum(axis=1))
    # And no more than needed.
    assert factor == 1 or fine.coarsened(BINS).used_bins * 2 / factor > most


@pytest.mark.parametrize(("occupied", "used"), [([], 0), ([0], 1), ([5], 6), ([0, BINS - 1], BINS)])
def test_used_bins(occupied: list[int], used: int) -> None:
    tensor = counted(np.array([(bin_ + 0.5) / BINS for bin_ in occupied], np.float32))
    tensor.grow(0)
    assert tensor.histogram().used_bins == used


def test_nothing_seen() -> None:
    nothing = TensorStatistics.empty(with_histogram=True)
    assert (nothing.absmax, nothing.count) == (0.0, 0)
    assert nothing.histogram().used_bins == 0


# clipping


bounds = st.sampled_from([0.0, 6.0, -1.0, 1.0, -3.5, 0.1, 20.0, -20.0, 1e-30, 1e30, -1e30, math.inf, -math.inf]) | (
    st.floats(-50, 50, width=32)
)


@given(st.lists(moderate | anything, min_size=1, max_size=40), bounds, bounds)
def test_clipping_statistics_is_counting_the_clipped_tensor(values: list[float], low: float, high: float) -> None:
    """This is what makes the output of a Relu or Clip free of charge."""
    # Which zero comes out of max(-0.0, 0.0) is nobody's business.
    array = np.array(values, np.float32) + np.float32(0.0)
    low, high = float(np.float32(low)) + 0.0, float(np.float32(high)) + 0.0
    if low == math.inf or high == -math.inf:
        return
    found = counted(array).clipped(low, high)
    direct = counted(np.minimum(np.maximum(array, np.float32(low)), np.float32(high)) + np.float32(0.0))
    assert (found.low, found.high, found.count, found.absmax) == (direct.low, direct.high, direct.count, direct.absmax)
    assert found.exponent >= direct.exponent
    direct.grow(found.exponent)
    assert found.counts is not None
    assert np.array_equal(found.counts, direct.counts)


def test_negative_zeros_go_where_zeros_go_once_folded() -> None:
    array = np.array([-0.0, 0.0, -3, 5], np.float32)
    folded = counted(array).clipped(0.0, 6.0).histogram()
    assert folded.counts[0] == 3


def test_clipping_leaves_the_source_alone() -> None:
    source = counted(np.float32([-1, 2, 300]))
    before = copy.deepcopy(source)
    source.clipped(0.0, 6.0).merge(counted(np.float32([1])))
    source.clipped(1e6, 2e6)
    assert same(source, before)


def test_clipping_ranges_alone() -> None:
    found = counted(np.float32([-1, 2, 300]), with_histogram=False).clipped(0.0, 6.0)
    assert (found.low, found.high, found.counts) == (0.0, 6.0, None)


def test_clipping_nothing_gives_nothing() -> None:
    assert TensorStatistics.empty(with_histogram=True).clipped(0.0, 6.0).absmax == 0.0


# the file


def saved(*, with_histogram: bool = True) -> tuple[Statistics, bytes]:
    rng = np.random.default_rng(3)
    counter = Counter(["input", "a/b:0", "ünï"], with_histogram=with_histogram)
    counter.add([rng.normal(size=n).astype(np.float32) for n in (100, 7, 0)], pictures=2, what="")
    return counter.statistics, counter.statistics.to_bytes()


@pytest.mark.parametrize("with_histogram", [True, False], ids=["histogram", "ranges"])
def test_the_file_comes_back(with_histogram: bool) -> None:
    before, data = saved(with_histogram=with_histogram)
    back = Statistics.from_bytes(data, where=Path("s.npz"))
    assert (back.pictures, list(back.tensors)) == (2, ["input", "a/b:0", "ünï"])
    for name, tensor in before.tensors.items():
        assert same(tensor, back.tensors[name])
    assert back.to_bytes() == data


@given(arrays)
@settings(max_examples=30)
def test_any_statistics_come_back(batches: list[Values]) -> None:
    tensor = counted(*batches)
    back = Statistics.from_bytes(Statistics({"0": tensor}, 1).to_bytes(), where=Path("x")).tensors["0"]
    assert same(tensor, back)


def test_what_comes_back_can_be_merged() -> None:
    _, data = saved()
    one, two = (Statistics.from_bytes(data, where=Path("x")) for _ in range(2))
    one.merge(two)
    assert one.pictures == 4
    assert one.tensors["input"].count == 200


def test_the_same_statistics_give_the_same_bytes() -> None:
    assert saved()[1] == saved()[1]


def refused(data: bytes) -> ArtifactError:
    with pytest.raises(ArtifactError) as caught:
        Statistics.from_bytes(data, where=Path("a/s.npz"))
    assert caught.value.where == "a/s.npz"
    return caught.value


def test_a_file_cut_off_anywhere_is_refused() -> None:
    data = saved()[1]
    for size in range(0, len(data), 7):
        assert refused(data[:size]).hint == "calibrate again with --force"


@pytest.mark.parametrize("data", [b"", b"x", b"\0" * 100, b"PK\x05\x06" + b"\0" * 18, b"\x93NUMPY\x01\x00", b"{}"])
def test_what_is_no_statistics_file_is_refused(data: bytes) -> None:
    assert refused(data).what.startswith("not a statistics file: ")


def test_flipped_bits_are_refused_or_change_nothing() -> None:
    """A zip file has bytes that mean nothing (dates, versions); the sha256 next to the file covers those too. One kind
    of damage can hide the histograms from zipfile: then there are none, and asking for one is an error."""
    before, data = saved()
    chosen = random.Random(8)
    refusals = 0
    for _ in range(1500):
        flipped = bytearray(data)
        flipped[chosen.randrange(len(data))] ^= 1 << chosen.randrange(8)
        try:
            back = Statistics.from_bytes(bytes(flipped), where=Path("x"))
        except ArtifactError:
            refusals += 1
            continue
        assert list(back.tensors) == list(before.tensors)
        for name, tensor in back.tensors.items():
            assert tensor.counts is None or same(tensor, before.tensors[name])
    assert refusals > 1000


def rewritten(**changes: object) -> bytes:
    """The saved file with some of its arrays replaced; None leaves one out."""
    with np.load(io.BytesIO(saved()[1])) as file:
        content = {name: file[name] for name in file.files}
    for name, value in changes.items():
        if value is None:
            del content[name]
        else:
            content[name] = value(content[name]) if callable(value) else np.asarray(value)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **content)
    return buffer.getvalue()


def names(*values: str) -> np.ndarray:
    import json

    return np.frombuffer(json.dumps(values).encode(), np.uint8)


@pytest.mark.parametrize(
    "changes",
    [
        *({name: None} for name in ("format", "pictures", "names", "ranges", "sizes")),
        {"names": names("a", "b")},
        {"names": names("a", "b", "c", "d")},
        {"names": names("a", "a", "c")},
        {"names": np.frombuffer(b"[1, 2, 3]", np.uint8)},
        {"names": np.frombuffer(b"not json", np.uint8)},
        {"ranges": lambda a: a[:2]},
        {"ranges": lambda a: a.ravel()},
        {"sizes": lambda a: a[:, :1]},
        {"counts": lambda a: a[:2]},
        {"counts": lambda a: a[:, :100]},
        {"counts": lambda a: a + np.eye(*a.shape, dtype=a.dtype)},
        {"counts": lambda a: a * -1},
        {"sizes": lambda a: a + 1},
        {"pictures": [1, 2]},
        {"format": "one"},
        {"names": np.array([{"a": 1}], object)},
    ],
    ids="-".join,
)
def test_a_file_that_contradicts_itself_is_refused(changes: dict[str, object]) -> None:
    assert refused(rewritten(**changes)).what.startswith("not a statistics file: ")


@pytest.mark.parametrize("number", [0, FORMAT + 1, 99])
def test_another_format_is_refused_with_what_this_edge_reads(number: int) -> None:
    assert refused(rewritten(format=number)).what == f"statistics format {number}; this edge reads format {FORMAT}"


def test_a_rewritten_file_is_fine_in_itself() -> None:
    """The check of the checks above: without a change, rewriting gives a good file."""
    assert Statistics.from_bytes(rewritten(), where=Path("x")).to_bytes() == saved()[1]

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.artifacts.store import sha256_bytes
from edge.calibration import collection
from edge.config.profiles import Profile
from edge.errors import DataError, UsageError
from edge.model import onnx_model
from edge.quantization.statistics import Statistics
from edge.tuning import sweep_tables
from edge.tuning.sweep_tables import Subset

DIGESTS = [sha256_bytes(bytes([i])) for i in range(30)]


def members(drawn: sweep_tables.SubsetPlan, subset: Subset) -> list[int]:
    wanted = set(drawn.segments[subset])
    return sorted(i for unit, segments in drawn.units for i in unit if wanted & set(segments))


def task_of(chosen: Profile, needs: str) -> collection.StatisticsJob:
    model = onnx_model.load(Path(chosen.model))
    plan = collection.plan(onnx_model.read(model.path).graph, model.activations)
    return collection.StatisticsJob(
        str(model.path), model.sha256, chosen.preprocess, chosen.input, tuple(plan.watched), needs, 1
    )  # fmt: skip


def identical(a: Statistics, b: Statistics) -> bool:
    def content(statistics: Statistics) -> list[object]:
        return [
            (name, x.low, x.high, x.count, x.exponent, None if x.counts is None else x.counts.tolist())
            for name, x in statistics.tensors.items()
        ]

    return a.pictures == b.pictures and content(a) == content(b)


@pytest.mark.parametrize("seed", [1, 2, 77])
def test_an_order_is_a_permutation_that_does_not_depend_on_the_listing(seed: int) -> None:
    order = sweep_tables.order(DIGESTS, seed)
    assert sorted(order) == list(range(30))
    backwards = sweep_tables.order(DIGESTS[::-1], seed)
    assert [DIGESTS[i] for i in order] == [DIGESTS[::-1][i] for i in backwards]


def test_seeds_give_different_orders_the_same_for_ever() -> None:
    assert len({tuple(sweep_tables.order(DIGESTS, seed)) for seed in range(1, 20)}) == 19
    # Taken down once: a later edge must draw the same pictures.
    assert sweep_tables.order(DIGESTS, 1)[:6] == [19, 10, 9, 15, 5, 29]


def test_pictures_that_come_later_do_not_change_the_order_of_the_others() -> None:
    before = [DIGESTS[:20][i] for i in sweep_tables.order(DIGESTS[:20], 3)]
    after = [DIGESTS[i] for i in sweep_tables.order(DIGESTS, 3)]
    assert [digest for digest in after if digest in before] == before


def test_equal_pictures_do_not_stand_side_by_side() -> None:
    order = sweep_tables.order([*DIGESTS, *DIGESTS], 1)
    places = {digest: [] for digest in DIGESTS}
    for place, index in enumerate(order):
        places[DIGESTS[index % 30]].append(place)
    assert sum(abs(a - b) == 1 for a, b in places.values()) < 6


@given(
    total=st.integers(1, 40),
    seeds=st.integers(1, 4),
    data=st.data(),
)
def test_a_draw_holds_every_subset_and_counts_no_picture_twice(total: int, seeds: int, data: st.DataObject) -> None:
    digests = [sha256_bytes(i.to_bytes(2, "big")) for i in range(total)]
    sizes = data.draw(st.lists(st.integers(1, total), min_size=1, max_size=4))
    drawn = sweep_tables.draw(digests, sizes=sizes, seeds=seeds)
    counted = [i for unit, _segments in drawn.units for i in unit]
    assert len(counted) == len(set(counted)) == drawn.counted
    wanted = {Subset(size, seed) for size in sizes for seed in range(1, seeds + 1) if size < total}
    wanted |= {Subset(total, None)} if total in sizes else set()
    assert set(drawn.subsets) == wanted
    for subset in drawn.subsets:
        expected = sweep_tables.order(digests, subset.seed or 1)[: subset.pictures]
        assert members(drawn, subset) == sorted(expected)


def test_units_are_small_enough_to_share_out() -> None:
    digests = [sha256_bytes(i.to_bytes(2, "big")) for i in range(400)]
    drawn = sweep_tables.draw(digests, sizes=[400], seeds=1)
    assert max(len(unit) for unit, _ in drawn.units) <= 16


@pytest.mark.parametrize(
    ("sizes", "seeds", "what"),
    [
        ([10], 0, "0 seeds"),
        ([10], -1, "-1 seeds"),
        ([], 1, "at least 1"),
        ([0, 10], 1, "at least 1"),
        ([10, 31], 1, "31 images are requested, but there are only 30"),
    ],
)
def test_what_cannot_be_drawn(sizes: list[int], seeds: int, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        sweep_tables.draw(DIGESTS, sizes=sizes, seeds=seeds)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("needs", ["ranges", "histogram"])
def test_a_subset_has_the_statistics_of_its_pictures_to_the_last_bit(
    bench: Callable[..., object], threads: int, needs: str
) -> None:
    chosen, pictures, _labelled, _cache = bench(10)
    task = task_of(chosen, needs)
    listed = list(pictures)
    drawn = sweep_tables.draw([picture.sha256 for picture in listed], sizes=[2, 5, 10], seeds=3)
    heard = []
    counted = sweep_tables.count(task, listed, drawn, threads=threads, listen=heard.append)
    assert counted is not None
    seen = []
    for subset, statistics in counted:
        alone = collection.count(task, [listed[i] for i in members(drawn, subset)])
        assert alone is not None
        assert identical(statistics, alone)
        seen.append(subset)
    assert sorted(seen, key=lambda s: (s.pictures, s.seed or 0)) == drawn.subsets
    assert (heard[-1].stage, heard[-1].done, heard[-1].total) == ("count", 10, 10)


def test_a_wish_to_stop_ends_the_counting(bench: Callable[..., object]) -> None:
    chosen, pictures, _labelled, _cache = bench(6)
    task = task_of(chosen, "ranges")
    drawn = sweep_tables.draw([picture.sha256 for picture in pictures], sizes=[6], seeds=1)
    assert sweep_tables.count(task, list(pictures), drawn, threads=2, should_stop=lambda: True) is None


def test_a_broken_picture_is_an_error_and_not_a_smaller_subset(bench: Callable[..., object]) -> None:
    chosen, pictures, _labelled, _cache = bench(6)
    listed = list(pictures)
    broken = Path(listed[3].where)
    with broken.open("r+b") as file:
        file.truncate(60)
    task = task_of(chosen, "ranges")
    drawn = sweep_tables.draw([picture.sha256 for picture in listed], sizes=[3, 6], seeds=2)
    with pytest.raises(DataError, match=r"003\.jpg"):
        sweep_tables.count(task, listed, drawn, threads=2)

from __future__ import annotations

import numpy as np
import pytest

from edge.stats import mcnemar, paired_difference, wilson
from edge.tuning import sweep_comparison
from edge.tuning.sweep_comparison import Answers, Configuration

N = 200
RNG = np.random.default_rng(7)
TRUTH = RNG.integers(0, 10, N).tolist()
SIGNAL = RNG.uniform(50.0, 150.0, N)


def answers(*, wrong: int, noise_db: float, seed: int = 0, top5_wrong: int = 0) -> Answers:
    """Answers with the first ``wrong`` pictures wrong, and noise of about so many dB below the signal."""
    predicted = [(label + 1) % 10 if i < wrong else label for i, label in enumerate(TRUTH)]
    spread = np.random.default_rng(seed).uniform(0.8, 1.2, N)
    return Answers(
        predicted=predicted,
        top5="".join("0" if i < top5_wrong else "1" for i in range(N)),
        energy=(SIGNAL * 10 ** (-noise_db / 10) * spread).tolist(),
        quantized=4,
        weighted=4,
    )


EXACT = Answers(
    predicted=[(label + 1) % 10 if i < 20 else label for i, label in enumerate(TRUTH)],
    top5="1" * N,
    energy=SIGNAL.tolist(),
)


def configuration(algorithm: str, table: str, *, pictures: int = 100, seed: int | None = None) -> Configuration:
    return Configuration(algorithm=algorithm, pictures=pictures, seed=seed, table=table)


def find(known: list[Configuration], said: dict[str, Answers]) -> sweep_comparison.Findings:
    return sweep_comparison.findings(known, EXACT, said, TRUTH)


def test_one_row_by_hand() -> None:
    found = find([configuration("a", "t")], {"t": answers(wrong=26, noise_db=20.0, top5_wrong=3)})
    (row,) = found.rows
    assert row.mark == "best"
    assert row.top1.value == 87.0
    assert row.top1.low == pytest.approx(100 * wilson(174, N).low)
    assert row.top5.value == 98.5
    # Pictures 20 to 25 are wrong here and right in FP32; the others are as FP32 has them.
    assert row.agreement.value == 97.0
    against = row.against_fp32
    assert against.top1.value == -3.0
    assert against.top1.low == pytest.approx(100 * paired_difference(0, 6, N).low)
    assert against.top1_p == against.top1_p_holm == mcnemar(0, 6) == 0.03125
    assert against.top5.value == -1.5
    assert row.sqnr_db.value == pytest.approx(10 * np.log10(SIGNAL.sum() / sum(answers(wrong=0, noise_db=20.0).energy)))
    assert row.sqnr_db.low < row.sqnr_db.value < row.sqnr_db.high
    assert row.against_best is None
    assert (found.fp32_top1.value, found.fp32_top5.value, found.n) == (90.0, 100.0, N)
    assert found.visible_points == 3.0


def test_rows_are_ordered_and_marked() -> None:
    said = {
        "best": answers(wrong=20, noise_db=20.0),
        "close": answers(wrong=20, noise_db=20.0, seed=1),
        "noisy": answers(wrong=21, noise_db=18.0),
        "bad": answers(wrong=80, noise_db=3.0),
    }
    known = [configuration(name, name) for name in ("bad", "noisy", "close", "best")]
    known.append(configuration("copy", "best", pictures=50))
    found = find(known, said)
    sqnr = [row.sqnr_db.value for row in found.rows]
    assert sqnr == sorted(sqnr, reverse=True)
    marks = {row.configuration.algorithm: row.mark for row in found.rows}
    # Of two equal tables, the one from fewer pictures is first.
    top = {"copy": "best", "best": "same"} if found.rows[0].configuration.table == "best" else {"close": "best"}
    assert top.items() <= marks.items()
    assert marks["noisy"] == "top-1 alike"
    assert marks["bad"] == "different"
    bad = next(row for row in found.rows if row.configuration.algorithm == "bad")
    assert bad.against_best is not None
    assert bad.against_best.sqnr_db is not None
    assert bad.against_best.sqnr_db.high < -15.0
    assert bad.against_best.top1.value == -30.0
    assert bad.against_best.agreement is not None
    assert bad.against_best.agreement.value == -30.0
    assert bad.against_best.top1_p_holm == pytest.approx(3 * mcnemar(0, 60))


def test_a_paired_interval_is_narrower_than_two_unpaired_ones() -> None:
    """The same pictures are noisy for both: that is what pairing is for."""
    heavy = SIGNAL * np.random.default_rng(3).pareto(1.5, N)
    a = answers(wrong=20, noise_db=20.0)
    said = {
        "a": Answers(predicted=a.predicted, top5=a.top5, energy=(heavy * 0.010).tolist()),
        "b": Answers(predicted=a.predicted, top5=a.top5, energy=(heavy * 0.011).tolist()),
    }
    found = find([configuration("a", "a"), configuration("b", "b")], said)
    second = found.rows[1]
    assert second.against_best is not None
    assert second.against_best.sqnr_db is not None
    difference = second.against_best.sqnr_db
    assert difference.value == pytest.approx(10 * np.log10(0.010 / 0.011))
    assert difference.high - difference.low < 1e-9
    assert second.sqnr_db.high - second.sqnr_db.low > 0.5
    assert second.mark == "top-1 alike"


def test_the_bootstrap_has_the_width_that_theory_gives() -> None:
    """Independent noise: the standard error of 10·log10 of a mean is 10/ln 10 · s / (m √n)."""
    found = find([configuration("a", "t")], {"t": answers(wrong=20, noise_db=20.0, seed=5)})
    noise = np.array(answers(wrong=20, noise_db=20.0, seed=5).energy)
    ratio = noise.sum() / SIGNAL.sum()
    error = 10 / np.log(10) * (noise - ratio * SIGNAL).std() / noise.mean() / np.sqrt(N)
    row = found.rows[0]
    assert row.sqnr_db.high - row.sqnr_db.low == pytest.approx(2 * 1.96 * error, rel=0.05)


def test_groups_hold_the_seeds_together() -> None:
    said = {f"s{seed}": answers(wrong=20 + seed, noise_db=20.0 - 0.5 * seed, seed=seed) for seed in (1, 2, 3)}
    said["all"] = answers(wrong=20, noise_db=21.0)
    known = [configuration("a", f"s{seed}", pictures=50, seed=seed) for seed in (1, 2, 3)]
    known.append(configuration("a", "all", pictures=400))
    few, most = find(known, said).groups
    assert (few.pictures, few.seeds, most.pictures, most.seeds) == (50, 3, 400, 1)
    assert (few.top1.lowest, few.top1.mean.value, few.top1.highest) == pytest.approx((88.5, 89.0, 89.5))
    assert few.sqnr_db.lowest < few.sqnr_db.mean.value < few.sqnr_db.highest
    noise = np.mean([sum(said[f"s{seed}"].energy) for seed in (1, 2, 3)])
    assert few.sqnr_db.mean.value == pytest.approx(10 * np.log10(SIGNAL.sum() / noise))
    assert few.sqnr_gain_db is not None
    assert few.sqnr_gain_db.value == pytest.approx(few.sqnr_db.mean.value - most.sqnr_db.mean.value)
    assert few.sqnr_gain_db.high < 0
    assert few.top1_against_fp32.value == pytest.approx(-1.0)
    assert most.sqnr_gain_db is None
    assert most.sqnr_behind_db is None
    assert few.sqnr_behind_db == few.sqnr_gain_db


def test_pairs_compare_algorithms_with_the_most_pictures() -> None:
    said = {
        "a": answers(wrong=20, noise_db=20.0),
        "b": answers(wrong=40, noise_db=15.0),
        "few": answers(wrong=0, noise_db=30.0),
    }
    known = [configuration("b", "b"), configuration("a", "a"), configuration("a", "few", pictures=50, seed=1)]
    (pair,) = find(known, said).pairs
    assert (pair.a, pair.b, pair.pictures) == ("a", "b", 100)
    assert pair.against.top1.value == 10.0
    assert pair.against.top1_p_holm == mcnemar(20, 0)
    assert pair.against.sqnr_db is not None
    assert pair.against.sqnr_db.value == pytest.approx(5.0, abs=0.2)


def test_many_comparisons_are_corrected() -> None:
    """One picture more or less each: what is visible in one comparison is not in twenty."""
    said = {f"t{i:02}": answers(wrong=26, noise_db=20.0 - 0.001 * i, seed=i) for i in range(20)}
    rows = find([configuration(name, name) for name in said], said).rows
    assert {row.against_fp32.top1_p for row in rows} == {0.03125}
    assert {row.against_fp32.top1_p_holm for row in rows} == {20 * 0.03125}


def test_equal_tables_are_compared_once() -> None:
    said = {"t": answers(wrong=20, noise_db=20.0), "u": answers(wrong=30, noise_db=10.0)}
    known = [configuration(name, "t") for name in ("a", "b", "c")]
    found = find([*known, configuration("d", "u")], said)
    assert [row.mark for row in found.rows] == ["best", "same", "same", "different"]
    assert found.rows[-1].against_best is not None
    assert found.rows[-1].against_best.top1_p_holm == found.rows[-1].against_best.top1_p


def test_what_was_not_scored_is_left_out() -> None:
    found = find([configuration("a", "t"), configuration("b", "missing")], {"t": answers(wrong=20, noise_db=20.0)})
    assert [row.configuration.algorithm for row in found.rows] == ["a"]
    assert [group.algorithm for group in found.groups] == ["a"]
    assert found.pairs == []


def test_int8_that_equals_fp32_is_no_infinity() -> None:
    same = Answers(predicted=EXACT.predicted, top5=EXACT.top5, energy=[0.0] * N, quantized=4, weighted=4)
    row = find([configuration("a", "t")], {"t": same}).rows[0]
    assert row.sqnr_db.value == pytest.approx(200.0)
    assert row.agreement.value == 100.0


def test_the_same_answers_give_the_same_findings() -> None:
    said = {"t": answers(wrong=20, noise_db=20.0), "u": answers(wrong=30, noise_db=10.0)}
    known = [configuration("a", "t"), configuration("b", "u")]
    assert find(known, said) == find(known, dict(reversed(said.items())))
    ordered = [row.configuration for row in find(known, said).rows]
    assert [row.configuration for row in find(known[::-1], said).rows] == ordered

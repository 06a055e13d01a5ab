"""Compute the findings of a sweep: each configuration with intervals, compared with FP32 and with the others.

All comparisons are paired: two networks on the same images.

========================  ============================================================================================
shares                    Wilson's score interval
differences of shares     Agresti and Min's interval; p value of McNemar's exact test
SQNR, and its             bootstrap over images (percentiles of 10 000 resamples, the same ones for all);
differences               p value: twice the share of resamples on the other side of 0
several seeds together    SQNR: of their mean noise; shares: means of the seeds' values and of the ends of their
                          intervals (a mean of dependent values spreads no wider than one of them)
many comparisons          p values corrected by Holm's method
========================  ============================================================================================
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np

from edge.stats import Interval, fewest_visible, holm, mcnemar, paired_difference, wilson

if TYPE_CHECKING:
    from numpy.typing import NDArray

RESAMPLES = 10_000
_BLOCK = 500
_SEED = 20_231_117
# The noise of equal logits is 0; 200 dB represents it, far above any float arithmetic.
_LEAST_NOISE = 1e-20
LEVEL = 0.05

Mark = Literal["best", "same", "top-1 alike", "different"]


class Answers(msgspec.Struct, frozen=True, kw_only=True):
    """Answers of one network to the labelled images, in their order.

    ``predicted`` is the top-1 class; ``top5`` has ``1`` where the true class is among the first five, else ``0``.
    ``energy`` is the sum of squares of an image's logits; for INT8 that of their difference from FP32's, to seven
    digits. ``quantized`` of ``weighted`` layers with weights are in INT8 form (FP32: 0 of 0).
    """

    predicted: list[int]
    top5: str
    energy: list[float]
    quantized: int = 0
    weighted: int = 0


class Configuration(msgspec.Struct, frozen=True, kw_only=True):
    """One way to calibrate, and its table: ``table`` is the digest of the table's scales.

    ``seed`` is None for all images. ``batch`` differs from 1 only in records of edge 0.1, which compared batches.
    """

    algorithm: str
    pictures: int
    seed: int | None
    table: str
    batch: int = 1


class Against(msgspec.Struct, frozen=True, kw_only=True):
    """This configuration minus another one: shares in points, SQNR in dB, each with its 95 % interval.

    Values ``p`` are uncorrected, ``_holm`` corrected for the number of comparisons. ``sqnr_db`` and ``agreement`` are
    absent
    against FP32, which they themselves compare with.
    """

    top1: Interval
    top1_p: float
    top1_p_holm: float
    top5: Interval
    top5_p: float
    agreement: Interval | None = None
    sqnr_db: Interval | None = None
    sqnr_p_holm: float | None = None


class ConfigurationRow(msgspec.Struct, frozen=True, kw_only=True):
    """One configuration: shares in percent, SQNR of the logits in dB, each with its 95 % interval.

    ``mark``: ``best`` has the highest SQNR; ``same`` is not significantly different from it in SQNR; ``top-1 alike``
    is, but not in top-1; ``different`` is in both. Equal tables are the same.
    """

    configuration: Configuration
    top1: Interval
    top5: Interval
    agreement: Interval
    sqnr_db: Interval
    against_fp32: Against
    against_best: Against | None
    mark: Mark


class Spread(msgspec.Struct, frozen=True):
    """Mean over all seeds with its 95 % interval over images, and the lowest and highest seed."""

    mean: Interval
    lowest: float
    highest: float


class ConfigurationGroup(msgspec.Struct, frozen=True, kw_only=True):
    """All seeds of one algorithm with one number of images.

    ``sqnr_gain_db`` is the SQNR minus that of the same algorithm with the most images, ``sqnr_behind_db`` minus that
    of the best group; each absent for that one itself. ``top1_against_fp32`` is in points.
    """

    algorithm: str
    pictures: int
    seeds: int
    top1: Spread
    agreement: Spread
    sqnr_db: Spread
    sqnr_gain_db: Interval | None
    sqnr_behind_db: Interval | None
    top1_against_fp32: Interval


class ConfigurationPair(msgspec.Struct, frozen=True):
    """Two algorithms with the same images: ``a`` minus ``b``."""

    a: str
    b: str
    pictures: int
    against: Against


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a sweep; ``rows`` are sorted by SQNR, highest first.

    ``visible_points`` is the smallest significant difference of top-1 with this number of images in one comparison, in
    points, if all changes have one direction; ``visible_points_holm`` is the same with all comparisons against the
    best.
    """

    n: int
    resamples: int
    fp32_top1: Interval
    fp32_top5: Interval
    rows: list[ConfigurationRow]
    groups: list[ConfigurationGroup]
    pairs: list[ConfigurationPair]
    visible_points: float
    visible_points_holm: float


def findings(
    configurations: Sequence[Configuration], exact: Answers, answers: Mapping[str, Answers], truth: Sequence[int]
) -> Findings:
    """Compute the findings about the configurations whose table is in ``answers``; at least one must be."""
    known = [item for item in configurations if item.table in answers]
    sheet = _ResampledScores(exact, {item.table: answers[item.table] for item in known}, np.asarray(truth))
    # Of equal configurations the cheaper comes first.
    known.sort(key=lambda item: (-sheet.sqnr(item.table), item.pictures, item.seed or 0))
    rows = _rows(known, sheet)
    others = max(len(sheet.tables) - 1, 1)
    return Findings(
        n=sheet.n,
        resamples=RESAMPLES,
        fp32_top1=_percent(wilson(int(sheet.exact_hit.sum()), sheet.n)),
        fp32_top5=_percent(wilson(int(sheet.exact_hit5.sum()), sheet.n)),
        rows=rows,
        groups=_groups(configurations, known, sheet),
        pairs=_pairs(configurations, known, sheet),
        visible_points=100.0 * fewest_visible() / sheet.n,
        visible_points_holm=100.0 * fewest_visible(others) / sheet.n,
    )


class _ResampledScores:
    """Correctness, agreement with FP32 and noise per table and image, and resampled sums of the noise."""

    def __init__(self, exact: Answers, answers: Mapping[str, Answers], truth: NDArray[np.int64]) -> None:
        self.tables = list(answers)
        self.n = truth.size
        predicted = np.array(exact.predicted)
        self.exact_hit = predicted == truth
        self.exact_hit5 = _bits(exact.top5)
        self.hit = {name: np.array(item.predicted) == truth for name, item in answers.items()}
        self.hit5 = {name: _bits(item.top5) for name, item in answers.items()}
        self.same = {name: np.array(item.predicted) == predicted for name, item in answers.items()}
        signal = np.array(exact.energy)
        noise = {name: np.array(item.energy) for name, item in answers.items()}
        self._signal = float(signal.sum())
        self._noise = {name: float(values.sum()) for name, values in noise.items()}
        sums = _resampled_sums(np.stack([signal, *noise.values()], axis=1))
        self._signals = sums[:, 0]
        self._noises = dict(zip(self.tables, sums[:, 1:].T, strict=True))

    def sqnr(self, *tables: str) -> float:
        """Return the SQNR in dB of the mean noise of some tables."""
        return float(_decibels(self._signal, float(np.mean([self._noise[name] for name in tables]))))

    def sqnrs(self, *tables: str) -> NDArray[np.float64]:
        """Return the SQNR of the tables in every resample."""
        return _decibels(self._signals, np.mean([self._noises[name] for name in tables], axis=0))

    def sqnr_interval(self, *tables: str) -> Interval:
        return _interval(self.sqnr(*tables), self.sqnrs(*tables))

    def sqnr_difference(self, a: Sequence[str], b: Sequence[str]) -> tuple[Interval, float]:
        """Return the SQNR of ``a`` minus that of ``b``, in dB, and its p value."""
        resampled = self.sqnrs(*a) - self.sqnrs(*b)
        sides = min(int((resampled <= 0).sum()), int((resampled >= 0).sum()))
        return _interval(self.sqnr(*a) - self.sqnr(*b), resampled), min(2.0 * (1 + sides) / (1 + resampled.size), 1.0)

    def top1(self, table: str) -> Interval:
        """Share in percent."""
        return _percent(wilson(int(self.hit[table].sum()), self.n))

    def agreement(self, table: str) -> Interval:
        """Return the share in percent with the same top-1 as FP32."""
        return _percent(wilson(int(self.same[table].sum()), self.n))

    def against(self, a: str, b: str | None) -> Against:
        """Compare ``a`` with ``b``, or with FP32 for None; p values are not corrected yet."""
        hit, hit5 = (self.exact_hit, self.exact_hit5) if b is None else (self.hit[b], self.hit5[b])
        top1, top1_p = self._paired(self.hit[a], hit)
        top5, top5_p = self._paired(self.hit5[a], hit5)
        found = Against(top1=top1, top1_p=top1_p, top1_p_holm=top1_p, top5=top5, top5_p=top5_p)
        if b is None:
            return found
        difference, p = self.sqnr_difference([a], [b])
        return msgspec.structs.replace(
            found, agreement=self._paired(self.same[a], self.same[b])[0], sqnr_db=difference, sqnr_p_holm=p
        )

    def _paired(self, a: NDArray[np.bool_], b: NDArray[np.bool_]) -> tuple[Interval, float]:
        only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
        return _percent(paired_difference(only_a, only_b, self.n)), mcnemar(only_a, only_b)


def _rows(known: Sequence[Configuration], sheet: _ResampledScores) -> list[ConfigurationRow]:
    best = known[0].table
    others = [name for name in dict.fromkeys(item.table for item in known) if name != best]
    against_best = dict(zip(others, _corrected([sheet.against(name, best) for name in others]), strict=True))
    every = [best, *others]
    against_fp32 = dict(zip(every, _corrected([sheet.against(name, None) for name in every]), strict=True))
    rows = []
    for index, item in enumerate(known):
        against = against_best.get(item.table)
        rows.append(
            ConfigurationRow(
                configuration=item,
                top1=sheet.top1(item.table),
                top5=_percent(wilson(int(sheet.hit5[item.table].sum()), sheet.n)),
                agreement=sheet.agreement(item.table),
                sqnr_db=sheet.sqnr_interval(item.table),
                against_fp32=against_fp32[item.table],
                against_best=against,
                mark="best" if index == 0 else _mark(against),
            )
        )
    return rows


def _mark(against: Against | None) -> Mark:
    if against is None or (against.sqnr_p_holm is not None and against.sqnr_p_holm >= LEVEL):
        return "same"
    return "top-1 alike" if against.top1_p_holm >= LEVEL else "different"


def _corrected(comparisons: list[Against]) -> list[Against]:
    """Apply Holm's correction over all comparisons; each measure is a family of its own."""
    top1 = holm([item.top1_p for item in comparisons])
    sqnr = holm([item.sqnr_p_holm if item.sqnr_p_holm is not None else 1.0 for item in comparisons])
    return [
        msgspec.structs.replace(
            item, top1_p_holm=top1[i], sqnr_p_holm=None if item.sqnr_p_holm is None else sqnr[i]
        )
        for i, item in enumerate(comparisons)
    ]  # fmt: skip


def _groups(
    configurations: Sequence[Configuration], known: Sequence[Configuration], sheet: _ResampledScores
) -> list[ConfigurationGroup]:
    """Group by algorithm in the requested order, then by number of images."""
    members: dict[tuple[str, int], list[str]] = {}
    for item in known:
        members.setdefault((item.algorithm, item.pictures), []).append(item.table)
    best = max(members.values(), key=lambda tables: sheet.sqnr(*tables))
    groups = []
    for name in dict.fromkeys(item.algorithm for item in configurations):
        sizes = sorted(pictures for algorithm, pictures in members if algorithm == name)
        for pictures in sizes:
            tables, most = members[name, pictures], members[name, sizes[-1]]
            each = [sheet.sqnr(table) for table in tables]
            groups.append(
                ConfigurationGroup(
                    algorithm=name,
                    pictures=pictures,
                    seeds=len(tables),
                    top1=_together([sheet.top1(table) for table in tables]),
                    agreement=_together([sheet.agreement(table) for table in tables]),
                    sqnr_db=Spread(sheet.sqnr_interval(*tables), min(each), max(each)),
                    sqnr_gain_db=None if tables is most else sheet.sqnr_difference(tables, most)[0],
                    sqnr_behind_db=None if tables is best else sheet.sqnr_difference(tables, best)[0],
                    top1_against_fp32=_together([sheet.against(table, None).top1 for table in tables]).mean,
                )
            )
    return groups


def _together(seeds: Sequence[Interval]) -> Spread:
    values = [item.value for item in seeds]
    low, high = float(np.mean([item.low for item in seeds])), float(np.mean([item.high for item in seeds]))
    return Spread(Interval(float(np.mean(values)), low, high), min(values), max(values))


def _pairs(
    configurations: Sequence[Configuration], known: Sequence[Configuration], sheet: _ResampledScores
) -> list[ConfigurationPair]:
    """Compare every two algorithms with the largest number of images that all have; the first of several seeds."""
    most = max(item.pictures for item in configurations)
    chosen: dict[str, Configuration] = {}
    for item in sorted(known, key=lambda item: item.seed or 0):
        if item.pictures == most:
            chosen.setdefault(item.algorithm, item)
    ordered = sorted(chosen.values(), key=lambda item: -sheet.sqnr(item.table))
    two = list(itertools.combinations(ordered, 2))
    against = _corrected([sheet.against(a.table, b.table) for a, b in two])
    return [ConfigurationPair(a.algorithm, b.algorithm, most, item) for (a, b), item in zip(two, against, strict=True)]


def _resampled_sums(columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return column sums of ``columns``, n×k, over RESAMPLES draws of n images with replacement: RESAMPLES×k."""
    n = len(columns)
    rng = np.random.default_rng(_SEED)
    shares = np.full(n, 1.0 / n)
    blocks = [
        rng.multinomial(n, shares, size=min(_BLOCK, RESAMPLES - start)).astype(np.float64) @ columns
        for start in range(0, RESAMPLES, _BLOCK)
    ]
    every: NDArray[np.float64] = np.concatenate(blocks)
    return every


def _decibels(signal: float | NDArray[np.float64], noise: float | NDArray[np.float64]) -> NDArray[np.float64]:
    # A resample may contain only images whose logits are zero.
    signal = np.maximum(signal, np.finfo(np.float64).tiny)
    decibels: NDArray[np.float64] = 10.0 * np.log10(signal / np.maximum(noise, _LEAST_NOISE * signal))
    return decibels


def _interval(value: float, resampled: NDArray[np.float64]) -> Interval:
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Interval(value, float(low), float(high))


def _bits(text: str) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = np.frombuffer(text.encode(), np.uint8) == ord("1")
    return found


def _percent(share: Interval) -> Interval:
    return Interval(100.0 * share.value, 100.0 * share.low, 100.0 * share.high)

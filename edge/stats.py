"""Percentiles, spread and intervals, as pure functions on plain numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

# Two-sided 95 % quantile of the standard normal distribution.
_Z95 = 1.959963984540054


class Interval(msgspec.Struct, frozen=True):
    """A point estimate with its 95 % interval; all three in the same unit."""

    value: float
    low: float
    high: float


class Summary(msgspec.Struct, frozen=True):
    """Distribution of one measured quantity, in milliseconds.

    Percentiles are nearest-rank (the smallest value with at least that share at or below it), so each of them is a
    value that was measured. ``None`` means that ``n`` is too small to say: at least 1 / (1 - p) samples are asked for.
    """

    n: int
    mean_ms: float
    stdev_ms: float | None
    min_ms: float
    p50_ms: float
    p90_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    max_ms: float
    method: str = "nearest-rank"


def percentile(ordered: Sequence[float], share: float) -> float:
    """Nearest-rank percentile of an ascending, non-empty sequence; ``share`` in (0, 1]."""
    return ordered[max(math.ceil(share * len(ordered)), 1) - 1]


def summarize(values_ms: Sequence[float]) -> Summary | None:
    """Summary of ``values_ms`` (milliseconds), or None when nothing was measured."""
    if not values_ms:
        return None
    ordered = sorted(values_ms)
    n = len(ordered)
    mean = math.fsum(ordered) / n
    stdev = math.sqrt(math.fsum((v - mean) ** 2 for v in ordered) / (n - 1)) if n > 1 else None

    def tail(share: float) -> float | None:
        return percentile(ordered, share) if n * (1.0 - share) >= 1.0 - 1e-9 else None

    return Summary(
        n=n,
        mean_ms=mean,
        stdev_ms=stdev,
        min_ms=ordered[0],
        p50_ms=percentile(ordered, 0.5),
        p90_ms=tail(0.90),
        p95_ms=tail(0.95),
        p99_ms=tail(0.99),
        max_ms=ordered[-1],
    )


def wilson(hits: int, n: int) -> Interval:
    """Share ``hits / n`` with its 95 % Wilson score interval (Wilson 1927), as fractions of one; ``n`` > 0."""
    share = hits / n
    z2 = _Z95 * _Z95
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # At 0 and n hits one end is exactly 0 or 1; rounding must not push it past the estimate.
    return Interval(share, min(max(centre - half, 0.0), share), max(min(centre + half, 1.0), share))


def paired_difference(only_a: int, only_b: int, n: int) -> Interval:
    """Difference of two paired shares, (a - b) / n, with its 95 % interval; ``n`` > 0.

    ``only_a`` counts the pictures that only a got right, ``only_b`` those that only b got right. Wald interval with the
    Agresti-Min correction (2005: add 0.5 to each of the four cells), which holds for the small counts met here.
    """
    value = (only_a - only_b) / n
    a, b, total = only_a + 0.5, only_b + 0.5, n + 2.0
    centre = (a - b) / total
    half = _Z95 * math.sqrt(a + b - (a - b) ** 2 / total) / total
    return Interval(value, max(centre - half, -1.0), min(centre + half, 1.0))


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided p value of McNemar's exact test (1947): are a and b right equally often?

    ``only_a`` counts the pictures that only a got right, ``only_b`` those that only b got right; the others say
    nothing. Under equality each of them is a fair coin. The sum is exact; 1 when there is no such picture.
    """
    n = only_a + only_b
    tail = ways = 1
    for k in range(min(only_a, only_b)):
        ways = ways * (n - k) // (k + 1)
        tail += ways
    return min(tail / (1 << n) * 2.0, 1.0)


def holm(p_values: Sequence[float]) -> list[float]:
    """``p_values`` corrected for their number (Holm 1979), in the same order.

    To call those below 0.05 different is wrong in at most 5 % of all such families, whatever ties them together.
    """
    ordered = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(ordered):
        largest = max(largest, min((len(p_values) - rank) * p_values[index], 1.0))
        corrected[index] = largest
    return corrected


def fewest_visible(comparisons: int = 1, *, level: float = 0.05) -> int:
    """How many pictures, all gained and none lost, McNemar's exact test needs to call a difference one.

    With ``comparisons`` made at once, corrected as by Bonferroni: Holm's first step.
    """
    return math.ceil(math.log2(2 * comparisons / level))

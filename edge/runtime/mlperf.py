"""The scenarios of MLPerf Inference for edge devices, and its early stopping: what a run may claim about a percentile.

Scenarios, durations and counts: mlcommons/inference_policies, inference_rules.adoc, "Scenarios". Early stopping:
"Appendix Early Stopping Criterion" there, and loadgen/early_stopping.cc with results.cc of mlcommons/inference, which
fix the confidence at 0.99 and the tolerance at 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import msgspec

CONFIDENCE = 0.99


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """One scenario. ``percentile`` is the share whose latency is the result; None where the rate is the result.

    A query has ``samples_per_query`` pictures and is issued when the one before it is done; offline all are there from
    the start.
    """

    name: str
    percentile: float | None
    samples_per_query: int | None
    min_duration_s: float
    min_samples: int
    words: str


class Bound(msgspec.Struct, frozen=True, kw_only=True):
    """The claim that early stopping allows to claim: with 99 % confidence the percentile is at most ``estimate_ms``.

    None when there are fewer than ``fewest`` queries. ``over`` of them, the slowest, may be at it or above.
    """

    percentile: float
    queries: int
    fewest: int
    over: int
    estimate_ms: float | None


@cache
def fewest_queries(percentile: float) -> int:
    """The smallest number of queries about which early stopping says anything: one of them may be over."""
    n = 2
    while not _allows(1, n, percentile):
        n += 1
    return n


def most_over(queries: int, percentile: float) -> int:
    """Return how many queries may exceed a latency while the percentile still meets it with 99 % confidence; or 0.

    If the true share over it were ``1 - percentile``, seeing this few would have a chance of 1 % or less.
    """
    low, high = 0, math.ceil(queries * (1.0 - percentile)) + 1
    while low < high - 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _allows(middle, queries, percentile) else (low, middle)
    return low


def bound(ordered_ms: Sequence[float], percentile: float) -> Bound:
    """The early-stopping estimate from all latencies in ascending order, as LoadGen reports it."""
    n, fewest = len(ordered_ms), fewest_queries(percentile)
    over = most_over(n, percentile) if n >= fewest else 0
    return Bound(
        percentile=percentile,
        queries=n,
        fewest=fewest,
        over=over,
        estimate_ms=ordered_ms[n - over] if over else None,
    )


def _allows(over: int, queries: int, percentile: float) -> bool:
    return binomial_at_most(over, queries, 1.0 - percentile) <= 1.0 - CONFIDENCE


def binomial_at_most(k: int, n: int, p: float) -> float:
    """P(X <= k) for X ~ Binomial(n, p), 0 < p < 1, as the sum of its terms; ``k`` at or below the mean.

    LoadGen writes the same as a regularized incomplete beta function, I_{1-p}(n - k, k + 1).
    """
    log_term = (
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * math.log(p) + (n - k) * math.log1p(-p)
    )
    # From the largest term down: below the mean each one is smaller than the one before.
    term = total = math.exp(log_term)
    odds = (1.0 - p) / p
    for i in range(k, 0, -1):
        term *= i / (n - i + 1) * odds
        total += term
        if term < total * 1e-17:
            break
    return total


_P90, _P99 = 0.9, 0.99
SCENARIOS: dict[str, Rules] = {
    "single-stream": Rules(
        name="single-stream", percentile=_P90, samples_per_query=1, min_duration_s=600.0,
        min_samples=fewest_queries(_P90), words="one picture at a time; the result is the 90th percentile of latency",
    ),
    "multi-stream": Rules(
        name="multi-stream", percentile=_P99, samples_per_query=8, min_duration_s=600.0,
        min_samples=8 * fewest_queries(_P99), words="eight pictures at a time; the result is the 99th percentile",
    ),
    "offline": Rules(
        name="offline", percentile=None, samples_per_query=None, min_duration_s=600.0, min_samples=24_576,
        words="all pictures are there at once; the result is the rate",
    ),
}  # fmt: skip

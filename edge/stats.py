"""Statistics: latency percentiles, proportions with intervals and tests, and the SQNR between two networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def sqnr_db(own: NDArray[np.float32], reference: NDArray[np.float32]) -> float | None:
    """Return the signal to quantization noise ratio in dB, 10·log10(Σ reference² / Σ (own - reference)²).

    Args:
        own: logits of the quantized network, any shape.
        reference: logits of the reference network, same shape.

    Returns:
        None when both are equal.
    """
    import numpy as np

    signal = float(np.square(reference, dtype=np.float64).sum())
    noise = float(np.square(own.astype(np.float64) - reference).sum())
    return 10.0 * math.log10(signal / noise) if noise > 0 and signal > 0 else None


def top(logits: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Return the indexes of the ``count`` largest values of every row, n×count, largest first; ties by lower index."""
    import numpy as np

    return np.argsort(-logits, axis=1, kind="stable")[:, :count]


# Two-sided 95 % quantile of the standard normal distribution.
_Z95 = 1.959963984540054


class Interval(msgspec.Struct, frozen=True):
    """A point estimate with its 95 % interval, all in the same unit."""

    value: float
    low: float
    high: float


class Summary(msgspec.Struct, frozen=True):
    """Distribution of a measured duration, in milliseconds.

    Percentiles are nearest-rank: the smallest value with at least that share of the samples at or below it. They are
    exact, or within 1 % when they come from a :class:`QuantileSketch`; ``method`` says which. A percentile is ``None``
    if
    ``n`` < 1 / (1 - p). Mean, standard deviation, minimum and maximum are exact.
    """

    n: int
    mean_ms: float
    stdev_ms: float | None
    min_ms: float
    p50_ms: float
    p90_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    p999_ms: float | None
    max_ms: float
    method: str = "nearest-rank"


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the nearest-rank percentile of an ascending, non-empty sequence; ``share`` in (0, 1]."""
    return ordered[max(math.ceil(share * len(ordered)), 1) - 1]


def summarize(values_ms: Sequence[float]) -> Summary | None:
    """Summarize durations in milliseconds; return None for an empty sequence."""
    if not values_ms:
        return None
    ordered = sorted(values_ms)
    n = len(ordered)
    mean = math.fsum(ordered) / n
    stdev = math.sqrt(math.fsum((v - mean) ** 2 for v in ordered) / (n - 1)) if n > 1 else None
    return _summary(
        n, mean, stdev, (ordered[0], ordered[-1]), lambda share: percentile(ordered, share), method="nearest-rank"
    )


def _summary(
    n: int,
    mean: float,
    stdev: float | None,
    ends: tuple[float, float],
    at: Callable[[float], float],
    *,
    method: str,
) -> Summary:
    def tail(share: float) -> float | None:
        return at(share) if n * (1.0 - share) >= 1.0 - 1e-9 else None

    return Summary(
        n=n,
        mean_ms=mean,
        stdev_ms=stdev,
        min_ms=ends[0],
        p50_ms=at(0.5),
        p90_ms=tail(0.90),
        p95_ms=tail(0.95),
        p99_ms=tail(0.99),
        p999_ms=tail(0.999),
        max_ms=ends[1],
        method=method,
    )


class Bin(msgspec.Struct, frozen=True):
    """One bar of a histogram: the number of values above the previous bar's ``upper_ms`` and at most ``upper_ms``."""

    upper_ms: float
    count: int


# Neighbouring boundaries differ by this factor, so the middle of a bin is within 0.9 % of every value in it.
_GROWTH = 1.018
_LOG_GROWTH = math.log(_GROWTH)
# The bins reach from a nanosecond, below any clock's resolution, to 115 days: 2079 bins, which bounds the memory.
_FINEST_MS, _COARSEST_MS = 1e-6, 1e10
_FIRST, _LAST = (math.ceil(math.log(edge_ms) / _LOG_GROWTH) for edge_ms in (_FINEST_MS, _COARSEST_MS))


class QuantileSketch:
    """Quantiles of any number of durations in bounded memory, within 1 % of the exact nearest-rank value.

    Uses the logarithmic bins of DDSketch (Masson, Rim and Lee, VLDB 2019) over a range wide enough for durations, so
    bins are never collapsed and merging is exact addition. Count, mean, variance (Welford 1962; Chan, Golub and LeVeque
    1979), minimum and maximum are stored with the bins. Not thread-safe.

    This is own code because the maintained libraries cost more than they save here: `datasketches` needs NumPy, which
    this layer does not import; `hdrhistogram` needs pbr and setuptools at run time; `ddsketch` needs six, is slower,
    and
    hides its bins."""

    method = "sketch, relative error <= 1 %"

    def __init__(self) -> None:
        self.n = 0
        self.min_ms = math.inf
        self.max_ms = -math.inf
        self.mean_ms = 0.0
        self._squares = 0.0
        self._bins: dict[int, int] = {}

    def add(self, value_ms: float) -> None:
        """Add one duration in milliseconds.

        Raises:
            ValueError: ``value_ms`` is negative, infinite or NaN.
        """
        if not 0.0 <= value_ms < math.inf:
            raise ValueError(f"invalid duration: {value_ms} ms")
        self.n += 1
        self.min_ms = min(self.min_ms, value_ms)
        self.max_ms = max(self.max_ms, value_ms)
        step = value_ms - self.mean_ms
        self.mean_ms += step / self.n
        self._squares += step * (value_ms - self.mean_ms)
        # 0 and everything below a nanosecond share the first bin.
        index = _FIRST if value_ms <= _FINEST_MS else math.ceil(math.log(value_ms) / _LOG_GROWTH)
        index = min(index, _LAST)
        self._bins[index] = self._bins.get(index, 0) + 1

    def merge(self, other: QuantileSketch) -> None:
        """Add all values of ``other`` to this sketch."""
        if not other.n:
            return
        n = self.n + other.n
        step = other.mean_ms - self.mean_ms
        self._squares += other._squares + step * step * self.n * other.n / n
        self.mean_ms += step * other.n / n
        self.n = n
        self.min_ms, self.max_ms = min(self.min_ms, other.min_ms), max(self.max_ms, other.max_ms)
        for index, count in other._bins.items():
            self._bins[index] = self._bins.get(index, 0) + count

    def quantile(self, share: float) -> float:
        """Return the nearest-rank percentile, within 1 %; ``share`` in (0, 1].

        Raises:
            ValueError: the sketch is empty.
        """
        if not self.n:
            raise ValueError("the sketch is empty")
        rank = max(math.ceil(share * self.n), 1)
        # The minimum and maximum are known exactly.
        if rank in {1, self.n}:
            return self.min_ms if rank == 1 else self.max_ms
        seen = 0
        for index in sorted(self._bins):
            seen += self._bins[index]
            if seen >= rank:
                break
        # The point with the same relative distance to both boundaries. The first bin stands for values near 0.
        middle = 0.0 if index == _FIRST else 2.0 * _GROWTH**index / (_GROWTH + 1.0)
        return min(max(middle, self.min_ms), self.max_ms)

    @property
    def sum_ms(self) -> float:
        """Return the sum of all added values."""
        return self.mean_ms * self.n

    def cumulative(self, bounds_ms: Sequence[float]) -> list[int]:
        """Count the values at or below each of the ascending ``bounds_ms``; a bound is exact to within 1.8 %."""
        counts, seen = [], 0
        ordered = iter(sorted(self._bins.items()))
        index, count = next(ordered, (_LAST + 1, 0))
        for bound_ms in bounds_ms:
            last = math.floor(math.log(bound_ms) / _LOG_GROWTH + 0.5)
            while index <= last:
                seen += count
                index, count = next(ordered, (_LAST + 1, 0))
            counts.append(seen)
        return counts

    def bins(self, *, most: int = 100) -> list[Bin]:
        """Return a log-scale histogram of at most ``most`` bars, lowest first, empty bars included."""
        if not self._bins:
            return []
        low, high = min(self._bins), max(self._bins)
        width = -(-(high - low + 1) // most)
        counts = [0] * -(-(high - low + 1) // width)
        for index, count in self._bins.items():
            counts[(index - low) // width] += count
        return [Bin(_GROWTH ** (low + (i + 1) * width - 1), count) for i, count in enumerate(counts)]

    def summary(self) -> Summary | None:
        """Summarize all added values; return None if there are none."""
        if not self.n:
            return None
        stdev = math.sqrt(self._squares / (self.n - 1)) if self.n > 1 else None
        return _summary(self.n, self.mean_ms, stdev, (self.min_ms, self.max_ms), self.quantile, method=self.method)


def wilson(hits: int, n: int) -> Interval:
    """Return the share ``hits / n`` with its 95 % Wilson score interval (Wilson 1927), as fractions; ``n`` > 0."""
    share = hits / n
    z2 = _Z95 * _Z95
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # At 0 and n hits one end is exactly 0 or 1; rounding must not push it past the estimate.
    return Interval(share, min(max(centre - half, 0.0), share), max(min(centre + half, 1.0), share))


def paired_difference(only_a: int, only_b: int, n: int) -> Interval:
    """Return the difference of two paired shares, (a - b) / n, with its 95 % interval; ``n`` > 0.

    ``only_a`` is the number of images that only a got right, ``only_b`` that of b. Wald interval with the Agresti-Min
    correction (2005: add 0.5 to each of the four cells), which is valid for small counts.
    """
    value = (only_a - only_b) / n
    a, b, total = only_a + 0.5, only_b + 0.5, n + 2.0
    centre = (a - b) / total
    half = _Z95 * math.sqrt(a + b - (a - b) ** 2 / total) / total
    return Interval(value, max(centre - half, -1.0), min(centre + half, 1.0))


def mcnemar(only_a: int, only_b: int) -> float:
    """Return the two-sided p value of McNemar's exact test (1947) that a and b are right equally often.

    ``only_a`` is the number of images that only a got right, ``only_b`` that of b; the other images carry no
    information.
    Under the null hypothesis each of these images is a fair coin flip. The p value is exact; 1 without any such image.
    """
    n = only_a + only_b
    tail = ways = 1
    for k in range(min(only_a, only_b)):
        ways = ways * (n - k) // (k + 1)
        tail += ways
    return min(tail / (1 << n) * 2.0, 1.0)


def best_assignment(score: Sequence[Sequence[float]]) -> list[int]:
    """Give each row a column of its own so that the sum of the scores is highest.

    The Hungarian method with potentials, in rows² × columns steps [Kuhn 1955; Munkres 1957].

    Args:
        score: rows × columns, not more rows than columns.

    Returns:
        The column of each row.
    """
    rows, columns = len(score), len(score[0]) if score else 0
    row_price, column_price = [0.0] * (rows + 1), [0.0] * (columns + 1)
    row_of, before = [0] * (columns + 1), [0] * (columns + 1)  # from 1; column 0 holds the row that is being placed
    for row in range(1, rows + 1):
        row_of[0], column = row, 0
        least, is_used = [math.inf] * (columns + 1), [False] * (columns + 1)
        while row_of[column]:
            is_used[column] = True
            at, step, following = row_of[column], math.inf, 0
            for other in range(1, columns + 1):
                if not is_used[other]:
                    reduced = -score[at - 1][other - 1] - row_price[at] - column_price[other]
                    if reduced < least[other]:
                        least[other], before[other] = reduced, column
                    if least[other] < step:
                        step, following = least[other], other
            for other in range(columns + 1):
                if is_used[other]:
                    row_price[row_of[other]] += step
                    column_price[other] -= step
                else:
                    least[other] -= step
            column = following
        while column:
            row_of[column] = row_of[before[column]]
            column = before[column]
    found = {row: column for column, row in enumerate(row_of) if column and row}
    return [found[row] - 1 for row in range(1, rows + 1)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct ``p_values`` for multiple comparisons (Holm 1979); the order stays.

    Calling those below 0.05 significant is wrong in at most 5 % of all families, also when the tests are dependent.
    """
    ordered = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(ordered):
        largest = max(largest, min((len(p_values) - rank) * p_values[index], 1.0))
        corrected[index] = largest
    return corrected


def fewest_visible(comparisons: int = 1, *, level: float = 0.05) -> int:
    """Return how many images must be gained, with none lost, for McNemar's exact test to be significant.

    ``comparisons`` tests at once are corrected as by Bonferroni, which is Holm's first step.
    """
    return math.ceil(math.log2(2 * comparisons / level))


def energy_text(value_mj: float, error_mj: float | None) -> tuple[str, str]:
    """Format an energy and its error bound in the unit that reads best; return text and unit.

    The value has as many decimal places as the error's two first digits ask for, three digits without one.
    """
    factor, unit = next(
        ((factor, unit) for factor, unit in ((1e-3, "J"), (1.0, "mJ"), (1e3, "µJ")) if abs(value_mj) * factor >= 1.0),
        (1e3, "µJ"),
    )
    value = value_mj * factor
    if error_mj is None or error_mj <= 0:
        places = max(2 - math.floor(math.log10(abs(value))), 0) if value else 0
        return f"{value:.{places}f}", unit
    error = error_mj * factor
    places = max(1 - math.floor(math.log10(error)), 0)
    return f"{value:.{places}f} ± {error:.{places}f}", unit

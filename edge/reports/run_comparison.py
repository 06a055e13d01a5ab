"""Compare runs: each difference has an interval, and only runs with the same setup share an axis.

The times of consecutive images depend on each other (clocks, caches, heat), so single times must not be resampled. The
moving block bootstrap (Künsch 1989) draws blocks of consecutive elements instead, of length ceil(n^(1/3)). The elements
are the images if the record has all of them, otherwise the bins of its time series. Such an interval covers another
part of the same run. It does not cover changes from one run to the next: for those, make several runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from edge.artifacts import RunRecord
from edge.reports.loaded_runs import LoadedRun, run_facts
from edge.stats import Interval, wilson

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

_RESAMPLES = 2000
_FEWEST_RESULTS = 30
_FEWEST_TICKS = 10
# Facts that name the file or the time, and so always differ.
_INCIDENTAL = frozenset({"record", "started", "measured", "warm-up"})


class MetricDifference(msgspec.Struct, frozen=True, kw_only=True):
    """The difference ``b`` minus ``a`` in ``unit`` and the ratio b / a; ``differs``: the interval excludes 0.

    ``how`` is the method of the interval; ``refusal`` is the reason if there is none.
    """

    measure: str
    unit: str
    a: float
    b: float
    difference: Interval | None
    ratio: Interval | None
    differs: bool | None
    how: str
    refusal: str | None = None


class Labels(msgspec.Struct, frozen=True, kw_only=True):
    """Agreement of labels: the share of the ``n`` images in both runs with the same label, with its interval."""

    n: int
    same: int
    share: Interval


class RunPair(msgspec.Struct, frozen=True, kw_only=True):
    """Run ``b`` compared with run ``a``, by their letters. ``unlike`` lists other differences."""

    a: str
    b: str
    unlike: list[str]
    differences: list[MetricDifference]
    labels: Labels | None


class ComparableRuns(msgspec.Struct, frozen=True, kw_only=True):
    """Runs that share an axis. ``mixed`` lists their differences if sharing was forced."""

    letters: list[str]
    axis: dict[str, str]
    mixed: list[str]


class RunComparison(msgspec.Struct, frozen=True, kw_only=True):
    """All runs: the groups, the reasons for separate groups, and the differences within each group."""

    groups: list[ComparableRuns]
    apart: list[str]
    pairs: list[RunPair]
    unlike: list[str]


def compare(runs: Sequence[LoadedRun], *, across: bool = False) -> RunComparison:
    """Compare every run with the first of its group; ``across`` forces all runs into one group."""
    grouped: list[list[LoadedRun]] = []
    for run in runs:
        home = next((group for group in grouped if across or group[0].axis == run.axis), None)
        if home is None:
            grouped.append([run])
        else:
            home.append(run)
    every = [run_facts(run) for run in runs]
    return RunComparison(
        groups=[
            ComparableRuns(letters=[run.letter for run in group], axis=group[0].axis, mixed=_mixed(group))
            for group in grouped
        ],
        apart=[
            f"{later[0].letter} and {earlier[0].letter} have no common axis: {', '.join(_unlike(earlier[0], later[0]))}"
            for number, later in enumerate(grouped)
            for earlier in grouped[:number]
        ],
        pairs=[_pair(group[0], run) for group in grouped for run in group[1:]],
        unlike=[name for name in every[0] if len({found[name] for found in every}) > 1 and name not in _INCIDENTAL],
    )


def _mixed(group: Sequence[LoadedRun]) -> list[str]:
    return [name for name in group[0].axis if len({run.axis[name] for run in group}) > 1]


def _unlike(a: LoadedRun, b: LoadedRun) -> list[str]:
    return [f"{name} {b.axis[name]} against {a.axis[name]}" for name in a.axis if a.axis[name] != b.axis[name]]


def _pair(a: LoadedRun, b: LoadedRun) -> RunPair:
    ours, theirs = run_facts(a), run_facts(b)
    differences = [
        found
        for found in (
            _duration("latency, median", "total", a.record, b.record),
            _duration("inference, median", "infer", a.record, b.record),
            _duration("age, median", "age", a.record, b.record),
            _rate(a.record, b.record),
            _energy(a, b),
        )
        if found is not None
    ]
    return RunPair(
        a=a.letter,
        b=b.letter,
        unlike=[name for name in ours if ours[name] != theirs[name] and name not in _INCIDENTAL],
        differences=differences,
        labels=_labels(a.record, b.record),
    )


def _duration(measure: str, stage: str, a: RunRecord, b: RunRecord) -> MetricDifference | None:
    if stage not in a.latency or stage not in b.latency:
        return None
    if stage == "age" and a.source.get("live") != b.source.get("live"):
        # Measured from the capture for a camera, and from the due time for a file: two different quantities.
        return None
    first, second = a.latency[stage].p50_ms, b.latency[stage].p50_ms
    parts = [_times(record, stage, seed) for seed, record in enumerate((a, b))]
    if parts[0] is None or parts[1] is None:
        why = f"fewer than {_FEWEST_RESULTS} images and fewer than {_FEWEST_TICKS} bins of the time series"
        return _without(measure, "ms", first, second, why)
    return _with(measure, "ms", (first, second), parts[0], parts[1])


def _times(record: RunRecord, stage: str, seed: int) -> Array | None:
    """Return draws of the median of one stage; None if the record has too few values."""
    if record.results_kept == "all" and len(record.results) >= _FEWEST_RESULTS:
        values = [getattr(result.stages, f"{stage}_ms") for result in record.results]
        if any(value is None for value in values):
            return None
        array = np.array(values, float)
        medians: Array = np.median(array[_blocks(len(array), seed)], axis=1)
        return medians
    if stage not in {"total", "age"}:
        return None
    kept = [(t.frames, getattr(t, f"{stage}_p50_ms")) for t in record.timeline if t.frames]
    kept = [item for item in kept if item[1] is not None]
    if len(kept) < _FEWEST_TICKS:
        return None
    frames, middle = (np.array(column, float) for column in zip(*kept, strict=True))
    # The mean of the bins' medians is not the run's median, but has the same spread, and only the spread is used.
    index = _blocks(len(middle), seed)
    means: Array = (middle[index] * frames[index]).sum(axis=1) / frames[index].sum(axis=1)
    centre = float((middle * frames).sum() / frames.sum())
    return means * (record.latency[stage].p50_ms / centre) if centre > 0 else means


def _rate(a: RunRecord, b: RunRecord) -> MetricDifference | None:
    if a.rate_per_s is None or b.rate_per_s is None:
        return None
    if a.source.get("live") or b.source.get("live"):
        # The camera sets the rate, not the engine.
        return _without("rate", "1/s", a.rate_per_s, b.rate_per_s, "a live source sets the rate, not the engine")
    parts = [_counts(record, seed) for seed, record in enumerate((a, b))]
    if parts[0] is None or parts[1] is None:
        why = f"fewer than {_FEWEST_RESULTS} images and fewer than {_FEWEST_TICKS} bins of the time series"
        return _without("rate", "1/s", a.rate_per_s, b.rate_per_s, why)
    return _with("rate", "1/s", (a.rate_per_s, b.rate_per_s), parts[0], parts[1])


def _counts(record: RunRecord, seed: int) -> Array | None:
    """Return draws of the rate; None if the record has too few values."""
    if len(record.timeline) >= _FEWEST_TICKS:
        ends = np.array([tick.t_s for tick in record.timeline], float)
        frames = np.array([tick.frames for tick in record.timeline], float)
        lengths = np.diff(ends, prepend=0.0)
    elif record.results_kept == "all" and len(record.results) >= _FEWEST_RESULTS:
        lengths = np.diff(np.sort([result.t_s for result in record.results]))
        frames = np.ones_like(lengths)
    else:
        return None
    index = _blocks(len(frames), seed)
    seconds = lengths[index].sum(axis=1)
    usable = seconds > 0
    drawn: Array = frames[index].sum(axis=1)[usable] / seconds[usable]
    return drawn if len(drawn) else None


def _energy(a: LoadedRun, b: LoadedRun) -> MetricDifference | None:
    one, two = a.power, b.power
    if one is None or two is None or one.gross_mj is None or two.gross_mj is None:
        return None
    measure = f"energy per image, {two.scope}"
    if (one.scope, one.source) != (two.scope, two.source):
        why = f"{two.scope} by {two.source} against {one.scope} by {one.source}: not the same quantity"
        return _without("energy per image", "mJ", one.gross_mj, two.gross_mj, why)
    if one.gross_error_mj is None or two.gross_error_mj is None:
        return _without(measure, "mJ", one.gross_mj, two.gross_mj, "the record has no error bound")
    half = one.gross_error_mj + two.gross_error_mj
    value = two.gross_mj - one.gross_mj
    low, high = max(one.gross_mj - one.gross_error_mj, 0.0), one.gross_mj + one.gross_error_mj
    ratio = (
        Interval(
            two.gross_mj / one.gross_mj,
            max(two.gross_mj - two.gross_error_mj, 0.0) / high,
            (two.gross_mj + two.gross_error_mj) / low,
        )
        if low > 0
        else None
    )
    return MetricDifference(
        measure=measure, unit="mJ", a=one.gross_mj, b=two.gross_mj, ratio=ratio,
        difference=Interval(value, value - half, value + half), differs=abs(value) > half,
        how="bound of the sampling error of both, not of the sensor's accuracy",
    )  # fmt: skip


def _with(measure: str, unit: str, values: tuple[float, float], first: Array, second: Array) -> MetricDifference:
    a, b = values
    n = min(len(first), len(second))
    first, second = first[:n], second[:n]
    low, high = (float(value) for value in np.percentile(second - first, [2.5, 97.5]))
    ratio = None
    if a > 0 and float(np.min(first)) > 0:
        lowest, highest = (float(value) for value in np.percentile(second / first, [2.5, 97.5]))
        ratio = Interval(b / a, min(lowest, b / a), max(highest, b / a))
    return MetricDifference(
        measure=measure, unit=unit, a=a, b=b, difference=Interval(b - a, min(low, b - a), max(high, b - a)),
        ratio=ratio, differs=not low <= 0.0 <= high, how=f"95 %, moving block bootstrap, {n} resamples",
    )  # fmt: skip


def _without(measure: str, unit: str, a: float, b: float, why: str) -> MetricDifference:
    return MetricDifference(
        measure=measure, unit=unit, a=a, b=b, difference=None, ratio=None, differs=None, how="none", refusal=why
    )


def _blocks(n: int, seed: int) -> NDArray[np.int64]:
    """Return indices, resamples × n: blocks of consecutive elements, n in all. Deterministic for a seed."""
    length = math.ceil(n ** (1 / 3))
    starts = np.random.default_rng((seed, n)).integers(0, n - length + 1, (_RESAMPLES, -(-n // length)))
    index: Any = (starts[:, :, None] + np.arange(length)).reshape(_RESAMPLES, -1)[:, :n]
    return index  # type: ignore[no-any-return]


def _labels(a: RunRecord, b: RunRecord) -> Labels | None:
    """Return the agreement of labels, for records with all results and unique names (camera frames have none)."""
    if a.results_kept != "all" or b.results_kept != "all" or a.source.get("live") or b.source.get("live"):
        return None
    ours, theirs = (
        {result.name: result.guesses[0].index for result in record.results if result.guesses} for record in (a, b)
    )
    if len(ours) != len(a.results) or len(theirs) != len(b.results):
        return None
    common = ours.keys() & theirs.keys()
    if not common:
        return None
    same = sum(ours[name] == theirs[name] for name in common)
    return Labels(n=len(common), same=same, share=wilson(same, len(common)))

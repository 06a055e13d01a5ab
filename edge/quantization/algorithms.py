"""Compute ranges from statistics: one function per algorithm, in a registry.

A range is the largest |x| that INT8 represents; the table stores range / 127. To add an algorithm, write a function
``(TensorStatistics, Parameters) -> float`` and decorate it with :func:`algorithm`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge.config import did_you_mean
from edge.errors import ProfileError, UsageError
from edge.quantization.statistics import Histogram, Statistics, TensorStatistics

Parameters = Mapping[str, float]
Rule = Callable[[TensorStatistics, Parameters], float]
TableName = Literal["entropy2", "minmax", "entropy", "legacy"]

# INT8 has 127 positive levels; NVIDIA's search uses as many coarse bins.
LEVELS = 127
# NVIDIA starts at 1024 bins and doubles them as the range grows: between 1024 and 2048 are in use.
SEARCH_BINS = 2048
# Values beyond the bulk may be outliers; and no range is cut to fewer bins than this, where its end would be
# unreliable.
BULK, LEAST_BIN = 0.999, 8
# Of fewer values nobody can tell an outlier from the tail: entropy may cut off this share of the power, 20 dB.
_ENOUGH, _CLIPPED_POWER = 10_000, 0.01


class Parameter(msgspec.Struct, frozen=True):
    """A parameter of an algorithm: its default and its allowed interval."""

    default: float
    low: float
    high: float


class Algorithm(msgspec.Struct, frozen=True):
    """A named algorithm that computes ranges from statistics.

    ``parameters`` are the allowed ones; ``table_name`` is the calibrator's name for the
    table's header, because TensorRT refuses a header of another calibrator.
    """

    name: str
    rule: Rule
    needs: Literal["ranges", "histogram"]
    parameters: dict[str, Parameter]
    table_name: TableName
    summary: str


REGISTRY: dict[str, Algorithm] = {}
# The name that stands for the best algorithm on the calibration images.
AUTO = "auto"


def algorithm(
    name: str,
    *,
    needs: Literal["ranges", "histogram"] = "histogram",
    parameters: Mapping[str, Parameter] | None = None,
    table_name: TableName = "entropy2",
) -> Callable[[Rule], Rule]:
    """Register the decorated rule under ``name``."""

    def register(rule: Rule) -> Rule:
        summary = (rule.__doc__ or "").strip().split("\n", 1)[0]
        REGISTRY[name] = Algorithm(name, rule, needs, dict(parameters or {}), table_name, summary)
        return rule

    return register


def complete(name: str, parameters: Parameters) -> dict[str, float]:
    """Return all parameters of the algorithm called ``name`` with their defaults; none for ``auto``.

    Raises:
        ProfileError: the algorithm or a parameter is unknown.
    """
    if name != AUTO:
        return find(name, parameters)[1]
    if parameters:
        raise ProfileError(
            f"calibration.parameters: auto has none, got {', '.join(parameters)}",
            hint="name the algorithm that they belong to: calibration.algorithm",
        )
    return {}


def find(name: str, parameters: Parameters) -> tuple[Algorithm, dict[str, float]]:
    """Return the algorithm called ``name`` and its complete parameters.

    Raises:
        ProfileError: the algorithm or a parameter is unknown.
    """
    found = REGISTRY.get(name)
    if found is None:
        known = sorted([*REGISTRY, AUTO])
        suggestion = did_you_mean(name, known) or f"; there are {', '.join(known)}"
        raise ProfileError(f"calibration.algorithm: there is no algorithm {name!r}{suggestion}")
    for key in parameters:
        if key not in found.parameters:
            allowed = ", ".join(found.parameters) or "none"
            raise ProfileError(f"calibration.parameters.{key}: {name} has no such parameter (it has: {allowed})")
        bounds = found.parameters[key]
        if not bounds.low <= parameters[key] <= bounds.high:
            raise ProfileError(
                f"calibration.parameters.{key}: must be {bounds.low:g} to {bounds.high:g}, got {parameters[key]:g}"
            )
    return found, {key: float(parameters.get(key, bounds.default)) for key, bounds in found.parameters.items()}


def read(word: str) -> tuple[str, dict[str, float]]:
    """Parse ``NAME``, ``NAME:VALUE`` or ``NAME:KEY=VALUE:KEY=VALUE`` into the name and the given parameters.

    ``VALUE`` alone is for an algorithm with one parameter.

    Raises:
        UsageError: the algorithm or a parameter is unknown, or a value is not a number.
    """
    name, *given = word.strip().split(":")
    known = REGISTRY.get(name)
    parameters: dict[str, float] = {}
    for text in given:
        key, _, value = text.rpartition("=")
        if not key and known is not None and len(known.parameters) == 1:
            key = next(iter(known.parameters))
        if not key:
            raise UsageError(f"{word!r}: {text!r} needs the name of its parameter", hint=f"{name}:KEY=VALUE")
        try:
            parameters[key] = float(value)
        except ValueError as exc:
            raise UsageError(f"{word!r}: {value!r} is not a number", hint="percentile:99.99") from exc
    try:
        complete(name, parameters)
    except ProfileError as exc:
        what = exc.what.removeprefix("calibration.").removeprefix("algorithm: ")
        raise UsageError(what, where="--algorithm") from exc
    return name, parameters


def ranges(statistics: Statistics, chosen: Algorithm, parameters: Parameters) -> dict[str, float]:
    """Return the range of every tensor, in network order; 0 for a tensor that is always zero."""
    return {name: chosen.rule(tensor, parameters) for name, tensor in statistics.tensors.items()}


@algorithm("minmax", needs="ranges", table_name="minmax")
def minmax(tensor: TensorStatistics, _parameters: Parameters) -> float:
    """Return the largest |x| seen (TensorRT's IInt8MinMaxCalibrator)."""
    return tensor.absmax


@algorithm("percentile", parameters={"percentile": Parameter(99.99, 1.0, 100.0)})
def percentile(tensor: TensorStatistics, parameters: Parameters) -> float:
    """Return the ``percentile`` of |x|, zeros included, as the upper edge of its bin.

    Source: pytorch-quantization's and onnxruntime's histogram calibrators; 0 < percentile <= 100.
    """
    return _quantile(tensor.histogram(), parameters["percentile"] / 100.0)


@algorithm("legacy", parameters={"quantile": Parameter(0.99999, 0.01, 1.0), "cutoff": Parameter(1.0, 0.01, 1.0)})
def legacy(tensor: TensorStatistics, parameters: Parameters) -> float:
    """Return a quantile of |x|, limited to a share of the largest (TensorRT's IInt8LegacyCalibrator).

    Source: NvInfer.h, getQuantile and getRegressionCutoff; the defaults are those of NVIDIA's MLPerf 3D-UNet.
    TensorRT's own regression between the two is not published, so it is left out here. Both parameters are shares, 0 to
    1.
    """
    histogram = tensor.histogram()
    return min(_quantile(histogram, parameters["quantile"]), parameters["cutoff"] * histogram.absmax)


@algorithm("mse")
def mse(tensor: TensorStatistics, _parameters: Parameters) -> float:
    """Minimize the mean squared error between a value and its INT8 form, rounding and clipping together.

    Source: pytorch-quantization's ``mse`` method. A bin counts at its centre; candidates are bin edges from 1/16 of
    the occupied range upwards, at most 256 of them.
    """
    histogram = tensor.histogram().coarsened(SEARCH_BINS)
    used = histogram.used_bins
    if used <= LEVELS:
        return histogram.absmax
    counts = histogram.counts[:used].astype(np.float64)
    centres = (np.arange(used) + 0.5) * histogram.width
    candidates = np.unique(np.linspace(used / 16, used, 256).round()) * histogram.width
    steps = candidates[:, None] / LEVELS
    rounded = np.minimum(np.rint(centres / steps), LEVELS) * steps
    errors = (np.square(rounded - centres) * counts).sum(axis=1)
    return min(float(candidates[int(np.argmin(errors))]), histogram.absmax)


@algorithm("entropy", parameters={"margin": Parameter(0.25, 0.0, 1.0)})
def entropy(tensor: TensorStatistics, parameters: Parameters) -> float:
    """Minimize the KL divergence as the first entropy calibrator: every bin is used, the range is a bin's upper edge.

    Source: Migacz, GTC 2017, s7310, with pytorch-quantization's rule that the first bin counts as much as the second
    (otherwise the zeros behind every Relu dominate). TensorRT's own IInt8EntropyCalibrator works on the network
    after fusion; here it is the network of the model file. ``margin`` as for entropy2.
    """
    histogram = tensor.histogram()

    def counted(part: Histogram) -> NDArray[np.float64]:
        counts = part.counts[: part.used_bins].astype(np.float64)
        # A sum, because there may be no second bin.
        counts[:1] = counts[1:2].sum()
        return counts

    best = _cut(histogram, counted, margin=parameters["margin"])
    return histogram.absmax if best is None else min((best.bin + 1) * best.width, histogram.absmax)


@algorithm("entropy2", parameters={"margin": Parameter(0.25, 0.0, 1.0)})
def entropy2(tensor: TensorStatistics, parameters: Parameters) -> float:
    """Minimize the lost information: the KL divergence, as NVIDIA describes IInt8EntropyCalibrator2.

    Source: NVIDIA, MLPerf inference results v1.1 and v3.0, ``closed/NVIDIA/documentation/calibration.md``: for each
    bin B, all outliers go into B; the truncated histogram is coarsened to 127 bins between 0 and the midpoint of B,
    its last bin into the last coarse bin; the range is the centre of the B with the least divergence. The first bin is
    left out. For details missing in that text we follow Migacz (GTC 2017, s7310): the coarse histogram excludes
    outliers,
    and empty bins get no share of their coarse bin.

    Ours: ``margin``. The divergence of a spiky histogram is flat and jagged, and its plain minimum clips for almost no
    gain. A truncation is used only if its divergence is lower by this share than that of no truncation; 0 always uses
    the minimum. On EfficientNet-Lite0 this gains 4 dB of logit SQNR.
    """
    histogram = tensor.histogram()

    def counted(part: Histogram) -> NDArray[np.float64]:
        counts = part.counts[: part.used_bins].astype(np.float64)
        counts[:1] = 0.0
        return counts

    best = _cut(histogram, counted, margin=parameters["margin"])
    return histogram.absmax if best is None else min((best.bin + 0.5) * best.width, histogram.absmax)


class _Cut(msgspec.Struct, frozen=True):
    """The position where a histogram is truncated: at ``bin``, in bins of ``width``."""

    bin: int
    width: float


def _cut(histogram: Histogram, counted: Callable[[Histogram], NDArray[np.float64]], *, margin: float) -> _Cut | None:
    """Return the truncation with the least divergence, the largest of equals; None if none is useful.

    Ours: of few values (a pooled tensor of one image, say) the histogram has gaps, and its divergence alone would cut
    off most of the range. There a truncation must leave 99 % of the power.

    Far outliers leave the bulk, 99.9 % of the values, fewer bins than INT8 has levels, where no loss is visible. In
    that case the original bins are searched, down to a quarter of the width, and from the end of the bulk on.
    """
    part = histogram.coarsened(SEARCH_BINS)
    while True:
        counts = counted(part)
        # With no more bins than levels there is nothing to gain.
        if counts.size <= LEVELS or counts.sum() == 0.0:
            return None
        bulk = int(np.searchsorted(np.cumsum(counts), BULK * counts.sum()))
        if bulk >= LEVELS or part.width == histogram.width:
            break
        part = histogram.coarsened(2 * counts.size)
    first = min(max(bulk, LEAST_BIN), LEVELS)
    bins = np.append(np.arange(first, min(counts.size - 1, SEARCH_BINS)), counts.size - 1)
    if counts.sum() < _ENOUGH:
        bins = bins[_clips_little(part.counts[: counts.size].astype(np.float64), bins)]
    divergence = _divergences(counts, bins)
    least = float(np.min(divergence))
    if least > float(divergence[-1]) * (1.0 - margin):
        return None
    return _Cut(int(bins[np.flatnonzero(divergence == least)[-1]]), part.width)


def _clips_little(counts: NDArray[np.float64], bins: NDArray[np.intp]) -> NDArray[np.bool_]:
    """True for each of ``bins`` at which truncation cuts off at most 1 % of the power."""
    centres = np.arange(counts.size) + 0.5
    # Beyond each bin: number, sum and sum of squares of the values.
    number, total, squares = (
        float(moment.sum()) - np.cumsum(moment)[bins] for moment in (counts, counts * centres, counts * centres**2)
    )
    ends = bins + 0.5
    clipped = squares - 2.0 * ends * total + ends**2 * number
    result: NDArray[np.bool_] = clipped <= _CLIPPED_POWER * float((counts * centres**2).sum())
    return result


def _quantile(histogram: Histogram, share: float) -> float:
    """Return the upper edge of the bin with the ``share`` quantile of |x|, at most the largest |x|."""
    running = np.cumsum(histogram.counts)
    if not running[-1]:
        return 0.0
    # 0.999 · 20 000 is a little more than 19 980 in floating point, which would be the next value.
    index = int(np.searchsorted(running, share * running[-1] * (1.0 - 2.0**-40)))
    return min((index + 1) * histogram.width, histogram.absmax)


def _divergences(counts: NDArray[np.float64], bins: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return the KL divergence in nats for truncation at each of ``bins``, ascending; infinite for an invalid bin.

    All sums over fine bins come from prefix sums, so the cost is bins × levels instead of bins².
    """
    total = float(counts.sum())
    # Prefix sums; entry i covers bins 0 .. i-1.
    mass = np.concatenate(([0.0], np.cumsum(counts)))
    filled = np.concatenate(([0.0], np.cumsum(counts > 0)))
    self_information = np.concatenate(([0.0], np.cumsum(_xlogx(counts))))

    # With fewer bins than levels, each bin has its own coarse bin.
    few, last = bins[bins < LEVELS], bins[bins >= LEVELS]
    alone = np.where(counts[few] > 0.0, counts[few], 1.0)
    edges = _edges(max(int(bins[-1]), SEARCH_BINS))[last - LEVELS]
    coarse = np.diff(mass[edges], axis=1)
    share = np.diff(filled[edges], axis=1)
    level = np.where(coarse > 0.0, coarse / np.maximum(share, 1.0), 1.0)

    inside = mass[bins + 1]
    outliers = total - inside
    # sum of p·log p - p·log q over the fine bins, with q = level / inside, p = counts / total, and p(B) + outliers.
    reference = self_information[bins] + _xlogx(counts[bins] + outliers)
    candidate = np.concatenate((self_information[few + 1], (coarse * np.log(level)).sum(axis=1)))
    candidate += outliers * np.log(np.concatenate((alone, level[:, -1])))
    divergence = (reference - candidate) / total - np.log(total) + np.log(np.maximum(inside, 1.0))
    return np.where((outliers > 0.0) & (counts[bins] == 0.0), np.inf, divergence)


@functools.lru_cache(maxsize=4)
def _edges(most: int) -> NDArray[np.intp]:
    """Return the first fine bin of each coarse one, and the end of the last, for B from LEVELS to ``most``.

    Bin i, centre i + 0.5, belongs to coarse bin floor((i + 0.5) / (B + 0.5) · LEVELS); B itself to the last one.
    """
    last = np.arange(LEVELS, most + 1)[:, None]
    edges = np.ceil(np.arange(LEVELS) * (last + 0.5) / LEVELS - 0.5).astype(np.intp)
    return np.concatenate((edges, last + 1), axis=1)


def _xlogx(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(values > 0.0, values * np.log(np.where(values > 0.0, values, 1.0)), 0.0)

"""Render a report as one HTML file without scripts or network access, for screens, phones and paper."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from edge.artifacts import RunRecord, Tick
from edge.errors import DataError
from edge.reports import html
from edge.reports.html import GRID, SOFT, colour
from edge.reports.loaded_runs import LoadedRun, number, run_facts
from edge.reports.run_comparison import ComparableRuns, MetricDifference, RunComparison
from edge.stats import Bin, Interval, energy_text

STAGES = ("decode", "preprocess", "host_to_device", "infer", "device_to_host", "postprocess")
_WIDE, _NARROW = 7.4, 4.6
_THROTTLE = 6


class Curve(msgspec.Struct, frozen=True):
    """The latencies of one run: ``bins`` as in the record, beginning at ``low_ms``."""

    index: int
    letter: str
    low_ms: float
    bins: list[Bin]
    p50_ms: float
    p99_ms: float | None


def shape(curve: Curve, *, title: str) -> str:
    """Plot one run's latencies as a histogram, with median and p99."""
    with html.style(title):
        figure, [axes] = html.figure(_NARROW, 2.5)
        edges, shares = _steps(curve)
        axes.stairs([share * 100 for share in shares], edges, fill=True, color=colour(curve.index), alpha=0.55)
        for value, name in ((curve.p50_ms, "p50"), (curve.p99_ms, "p99")):
            if value is not None:
                axes.axvline(value, color=SOFT, linewidth=1.0, linestyle=(0, (3, 2)))
                axes.annotate(
                    name, (value, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 2), textcoords="offset points",
                    va="bottom", ha="center", fontsize=8, color=SOFT,
                )  # fmt: skip
        _log_ms(axes, edges[0], edges[-1])
        axes.set_ylabel("share, %")
        axes.set_ylim(bottom=0.0)
        axes.grid(axis="y", color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        return html.svg(figure, title)


def shares(curves: Sequence[Curve], *, title: str) -> str:
    """Plot several runs on one axis: the share of images that was at least as fast."""
    with html.style(title):
        figure, [axes] = html.figure(_NARROW, 2.6)
        lows, highs = [], []
        for curve in curves:
            edges, parts = _steps(curve)
            sums, total = [0.0], 0.0
            for part in parts:
                total += part
                sums.append(total * 100)
            axes.plot(edges, sums, color=colour(curve.index), linewidth=1.8, zorder=3)
            axes.annotate(
                curve.letter, (curve.p50_ms, 50), xytext=(4, -3), textcoords="offset points", fontsize=9,
                color=colour(curve.index), fontweight="bold",
            )  # fmt: skip
            lows.append(edges[0])
            highs.append(edges[-1])
        _log_ms(axes, min(lows), max(highs))
        axes.set_ylim(0, 100)
        axes.set_ylabel("as fast or faster, %")
        axes.grid(axis="both", color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        return html.svg(figure, title)


def stage_chart(means: Sequence[tuple[str, dict[str, float]]], *, title: str, unit: str) -> str:
    """Plot the mean time of each stage as one stacked bar per run."""
    with html.style(title):
        figure, [axes] = html.figure(_NARROW, 0.75 + 0.34 * len(means))
        for row, (_letter, each) in enumerate(means):
            left = 0.0
            for number, stage in enumerate(STAGES):
                if stage in each:
                    axes.barh(row, each[stage], left=left, height=0.62, color=colour(number))
                    left += each[stage]
        axes.set_yticks(range(len(means)), [letter for letter, _each in means])
        axes.set_ylim(len(means) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(f"mean ms per {unit}")
        axes.set_xlim(left=0.0)
        axes.grid(axis="x", color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        return html.svg(figure, title)


def time_line(record: RunRecord, *, index: int, limit_ms: float | None, title: str) -> str:
    """Plot latency and drops over time, with gaps in grey and throttling on top; ``limit_ms`` is the axis maximum."""
    points = _points(record)
    ticks = record.timeline
    with_drops = any(tick.dropped for tick in ticks)
    with html.style(title):
        figure, rows = html.figure(_WIDE, 3.3 if with_drops else 2.5, rows=2 if with_drops else 1)
        axes = rows[0]
        if points:
            axes.plot(*zip(*points, strict=True), ".", color=colour(index), markersize=3.5, alpha=0.8)
        else:
            kept = [tick for tick in ticks if tick.total_p50_ms is not None]
            times = [tick.t_s for tick in kept]
            middle, top = [tick.total_p50_ms for tick in kept], [tick.total_max_ms for tick in kept]
            axes.fill_between(times, middle, top, color=colour(index), alpha=0.22, linewidth=0)
            axes.plot(times, middle, color=colour(index), linewidth=1.5)
        axes.set_ylabel("ms")
        axes.set_ylim(0, limit_ms)
        if with_drops:
            starts = [0.0, *(tick.t_s for tick in ticks)]
            rows[1].stairs([tick.dropped for tick in ticks], starts, fill=True, color=SOFT, alpha=0.5)
            rows[1].set_ylabel("dropped")
            rows[1].set_ylim(bottom=0)
        _over_time(rows, record)
        return html.svg(figure, title)


def power_and_heat(record: RunRecord, *, limits: tuple[float, float] | None, title: str) -> str | None:
    """Plot power and temperatures over time; return None without either. ``limits`` are watts."""
    ticks = record.timeline
    watts = [(tick.t_s, tick.power_mw / 1e3) for tick in ticks if tick.power_mw is not None]
    sensors = list(dict.fromkeys(name for tick in ticks for name in tick.temps_c))
    kinds = [kind for kind, there in (("power", len(watts) > 1), ("heat", bool(sensors))) if there]
    if not kinds or len(ticks) < 2:
        return None
    with html.style(title):
        figure, rows = html.figure(_WIDE, 0.6 + 1.5 * len(kinds), rows=len(kinds))
        for kind, axes in zip(kinds, rows, strict=True):
            if kind == "power":
                axes.plot(*zip(*watts, strict=True), color=colour(3), linewidth=1.4)
                axes.set_ylabel("W")
                axes.set_ylim(*(limits or (0, None)))
            else:
                for number, sensor in enumerate(sensors[: html.COLOURS]):
                    values = [(tick.t_s, tick.temps_c[sensor]) for tick in ticks if sensor in tick.temps_c]
                    axes.plot(*zip(*values, strict=True), color=colour(number), linewidth=1.3)
                axes.set_ylabel("°C")
        _over_time(rows, record)
        return html.svg(figure, title)


def heat_sensors(record: RunRecord) -> list[tuple[int, str]]:
    """Return the sensors of :func:`power_and_heat` with their colours, for the legend."""
    names = list(dict.fromkeys(name for tick in record.timeline for name in tick.temps_c))
    return list(enumerate(names[: html.COLOURS]))


def _points(record: RunRecord) -> list[tuple[float, float]]:
    """Return the points to plot: every image of a short run, the bins of a long one."""
    if record.results_kept != "all":
        return []
    return [(result.t_s, result.stages.total_ms) for result in record.results]


def _over_time(rows: Sequence[Any], record: RunRecord) -> None:
    """Set up the common x axis; mark gaps, and at the top the times of throttling."""
    end = max(record.measured_s, record.timeline[-1].t_s if record.timeline else 0.0, 1e-3)
    for axes in rows:
        axes.set_xlim(0, end)
        axes.grid(axis="y", color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        for gap in record.gaps:
            axes.axvspan(max(gap.start_s, 0.0), gap.end_s if gap.end_s is not None else end, color=SOFT, alpha=0.2,
                         linewidth=0)  # fmt: skip
        for start, stop in throttled(record.timeline):
            axes.plot([start, stop], [1.0, 1.0], transform=axes.get_xaxis_transform(), color=colour(_THROTTLE),
                      linewidth=5, solid_capstyle="butt", clip_on=False)  # fmt: skip
    rows[-1].set_xlabel("s")


def throttled(ticks: Sequence[Tick]) -> list[tuple[float, float]]:
    """Return the time ranges in which a component was throttled."""
    spans: list[tuple[float, float]] = []
    before = 0.0
    for tick in ticks:
        if tick.throttling:
            start = spans.pop()[0] if spans and spans[-1][1] == before else before
            spans.append((start, tick.t_s))
        before = tick.t_s
    return spans


def _steps(curve: Curve) -> tuple[list[float], list[float]]:
    """Return the bars' boundaries (one more than bars, ascending, above 0) and each bar's share of all."""
    total = sum(item.count for item in curve.bins) or 1
    first = curve.bins[0].upper_ms
    low = curve.low_ms if 0 < curve.low_ms < first else first / 1.018
    return [low, *(item.upper_ms for item in curve.bins)], [item.count / total for item in curve.bins]


def _log_ms(axes: Any, low: float, high: float) -> None:  # noqa: ANN401 - matplotlib axes
    """Make a logarithmic axis of milliseconds with plain numbers at 1, 2 and 5."""
    low, high = max(low, 1e-6), max(high, 2e-6)
    axes.set_xscale("log")
    axes.set_xlim(low / 1.05, high * 1.05)
    ticks = _round_ticks(low / 1.05, high * 1.05)
    axes.set_xticks(ticks, [f"{tick:.6g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("ms")


def _round_ticks(low: float, high: float) -> list[float]:
    """Return round numbers between ``low`` and ``high``: 1, 2, 5 per decade, or linear for a short range."""
    if high / low > 6:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        steps = (1, 2, 5) if high / low < 300 else (1,)
        ticks = [step * 10.0**power for power in decades for step in steps]
    else:
        size = 10.0 ** math.floor(math.log10((high - low) / 3))
        size *= max(step for step in (1, 2, 5) if step * size <= (high - low) / 3)
        ticks = [size * number for number in range(math.ceil(low / size), math.floor(high / size) + 1)]
    return [tick for tick in ticks if low <= tick <= high]


# How a run warns of replayed power (edge.cli.options).
_REPLAYED = "power and temperatures are replayed from "
_TEMPLATE = Path(__file__).parent / "templates" / "report.html"
STAGE_NAMES = {
    "decode": "decode",
    "preprocess": "preprocess",
    "host_to_device": "host to device",
    "infer": "infer",
    "device_to_host": "device to host",
    "postprocess": "postprocess",
    "total": "total",
    "age": "age",
}
_MANY = {"image": "images", "query": "queries"}
# Definition of a latency, by unit.
_SPANS = {
    "image": "From the start of decoding an image to its label, without waits between stages.",
    "query": "From the issue of a query to its last answer; its images were decoded and preprocessed before.",
}


class Section(msgspec.Struct, frozen=True):
    """The plots of runs that share an axis: one latency plot for all, and a time series for each."""

    group: ComparableRuns
    runs: list[LoadedRun]
    many: str
    span: str
    distribution: str | None
    stages: str | None
    times: list[tuple[LoadedRun, str]]
    power: list[tuple[LoadedRun, str, list[tuple[int, str]]]]


def render(runs: Sequence[LoadedRun], comparison: RunComparison) -> str:
    """Render the page about ``runs``.

    Raises:
        DataError: no run has an image.
        MissingDependencyError: jinja2 or matplotlib is missing.
    """
    if not any(run.record.pictures for run in runs):
        raise DataError("no run has a labelled image: there is nothing to show")
    by_letter = {run.letter: run for run in runs}
    every = [run_facts(run) for run in runs]
    return html.render(
        _TEMPLATE,
        filters={
            "ms": ms,
            "signed": signed,
            "difference": difference,
            "ratio": ratio,
            "count": count,
            "energy": lambda value_mj, error_mj=None: " ".join(energy_text(value_mj, error_mj)),
        },
        title=_title(runs),
        runs=runs,
        comparison=comparison,
        sections=[_section(group, [by_letter[letter] for letter in group.letters]) for group in comparison.groups],
        facts=[
            (name, [found[name] for found in every], name in comparison.unlike and len(runs) > 1) for name in every[0]
        ],
        stage_names=STAGE_NAMES,
        stage_colours=[(i, STAGE_NAMES[s]) for i, s in enumerate(STAGES) if any(s in r.record.latency for r in runs)],
        cards=[(run, _card(run)) for run in runs],
        methods=sorted({summary.method for run in runs for summary in run.record.latency.values()}),
        replays=_replays(runs),
        # A note at the top of the page says that power is replayed.
        warnings={run.letter: [line for line in run.record.warnings if not line.startswith(_REPLAYED)] for run in runs},
        throttles={run.letter: _throttles(run.record) for run in runs},
    )


def _replays(runs: Sequence[LoadedRun]) -> list[tuple[str, str]]:
    """Return each replayed recording with the letters of its runs."""
    found: dict[str, list[str]] = {}
    for run in runs:
        if run.record.replayed:
            found.setdefault(run.record.replayed, []).append(run.letter)
    return [(source, ", ".join(letters)) for source, letters in found.items()]


def _title(runs: Sequence[LoadedRun]) -> str:
    subject = runs[0].record.subject
    if len(runs) == 1:
        return f"{Path(subject.model).stem}, {subject.precision}, on {runs[0].device}"
    models = dict.fromkeys(Path(run.record.subject.model).stem for run in runs)
    return f"{len(runs)} runs of {', '.join(models)}"


def _section(group: ComparableRuns, runs: list[LoadedRun]) -> Section:
    curves = [curve for run in runs for curve in [_curve(run)] if curve is not None]
    names = ", ".join(run.letter for run in runs)
    units = dict.fromkeys(run.unit for run in runs)
    unit, many = " or ".join(units), " and ".join(_MANY[each] for each in units)
    distribution = None
    if len(curves) == 1:
        distribution = shape(curves[0], title=f"{curves[0].letter}: latency per {unit} in milliseconds")
    elif curves:
        title = f"{names}: share of {many} within a latency in milliseconds"
        distribution = shares(curves, title=title)
    means = [
        (run.letter, {stage: run.record.latency[stage].mean_ms for stage in STAGES if stage in run.record.latency})
        for run in runs
    ]
    means = [(letter, each) for letter, each in means if each]
    return Section(
        group=group,
        runs=runs,
        many=many,
        span=" ".join(_SPANS[each] for each in units),
        distribution=distribution,
        stages=stage_chart(means, title=f"{names}: mean time of each stage", unit=unit) if means else None,
        times=_times(runs),
        power=_powers(runs),
    )


def _times(runs: Sequence[LoadedRun]) -> list[tuple[LoadedRun, str]]:
    tops = [
        value
        for run in runs
        for value in [tick.total_max_ms for tick in run.record.timeline]
        + [result.stages.total_ms for result in run.record.results]
        if value is not None
    ]
    top = max(tops, default=0.0) * 1.05 or None
    return [
        (
            run,
            time_line(
                run.record, index=run.index, limit_ms=top, title=f"{run.letter}: latency over the time of the run"
            ),
        )
        for run in runs
        if run.record.timeline or run.record.results
    ]


def _powers(runs: Sequence[LoadedRun]) -> list[tuple[LoadedRun, str, list[tuple[int, str]]]]:
    """Plot power and temperatures; runs with the same power scope get the same axis of watts."""
    tops: dict[str | None, float] = {}
    for run in runs:
        values = [tick.power_mw / 1e3 for tick in run.record.timeline if tick.power_mw is not None]
        tops[run.scope] = max(tops.get(run.scope, 0.0), *values, 0.0)
    drawn = []
    for run in runs:
        top = tops[run.scope]
        plot = power_and_heat(
            run.record, limits=(0.0, top * 1.08) if top > 0 else None, title=f"{run.letter}: power and temperatures"
        )
        if plot is not None:
            drawn.append((run, plot, heat_sensors(run.record)))
    return drawn


def _curve(run: LoadedRun) -> Curve | None:
    summary, bins = run.record.latency.get("total"), run.record.histogram.get("total")
    if summary is None or not bins or not any(item.count for item in bins):
        return None
    return Curve(run.index, run.letter, summary.min_ms, bins, summary.p50_ms, summary.p99_ms)


def _card(run: LoadedRun) -> list[tuple[str, str, str]]:
    """Return the headline figures of a run: value, unit, and a note."""
    record = run.record
    cards = []
    if record.rate_per_s is not None:
        live = ", limited by the camera" if record.source.get("live") else ""
        cards.append((f"{record.rate_per_s:.1f}", "images/s", f"{count(record.pictures)} images{live}"))
    if record.bench is not None:
        cards += _bench_card(record.bench)
    total = record.latency.get("total")
    if total is not None:
        tail = f"p99 {ms(total.p99_ms)} ms" if total.p99_ms is not None else f"max {ms(total.max_ms)} ms"
        of = f" queries of {count(run.query)}" if run.query else ""
        cards.append((ms(total.p50_ms), "ms median", f"{tail}, n = {count(total.n)}{of}"))
    age = record.latency.get("age")
    if age is not None and record.source.get("live"):
        cards.append((ms(age.p50_ms), "ms old", "from capture to label, median"))
    power = run.power
    if power is not None:
        if power.gross_mj is not None:
            energy, unit = energy_text(power.gross_mj, power.gross_error_mj)
            net = "" if power.net_mj is None else f", net {' '.join(energy_text(power.net_mj, None))}"
            cards.append((energy, f"{unit} per image", f"{run.scope}{net}"))
        cards.append((f"{power.mean_w:.2f}", "W mean", f"{count(power.samples)} samples"))
    temps = record.conditions.get("temps_c")
    if isinstance(temps, dict):
        highs = [(number(span, "high"), name) for name, span in temps.items() if isinstance(span, dict)]
        known = [(value, name) for value, name in highs if value is not None]
        if known:
            value, name = max(known)
            cards.append((f"{value:.0f}", "°C max", str(name)))
    return cards


def _bench_card(bench: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return the result of a latency scenario; a throughput scenario already has a figure."""
    share, measured, most = (number(bench, name) for name in ("percentile", "percentile_ms", "estimate_ms"))
    if share is None or measured is None:
        return []
    claim = f"at most {ms(most)} ms with 99 % confidence" if most is not None else "too few queries for a claim"
    return [(ms(measured), f"ms, {share * 100:g}th percentile", claim)]


def _throttles(record: RunRecord) -> dict[str, Any]:
    """Return the throttled components, their durations, and the number of events."""
    conditions = record.conditions
    events = conditions.get("throttles")
    seconds = sum(stop - start for start, stop in throttled(record.timeline))
    names = list(dict.fromkeys(name for tick in record.timeline for name in tick.throttling))
    counted = {name: n for name, n in events.items() if n} if isinstance(events, dict) else {}
    return {"names": names, "seconds": seconds, "events": counted}


def ms(value: float | None) -> str:
    """Format milliseconds with three significant digits."""
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def count(value: int) -> str:
    """Format a number in groups of three digits."""
    return f"{value:,}".replace(",", "\u202f")


def signed(value: float) -> str:
    """Format a difference with its sign and three significant digits."""
    return f"{value:+.3g}".replace("-", "−") if abs(value) < 1e4 else f"{value:+.0f}".replace("-", "−")


def difference(item: MetricDifference) -> str:
    """Format a difference with its interval."""
    found = item.difference
    return "–" if found is None else f"{signed(found.value)} [{signed(found.low)}, {signed(found.high)}]"


def ratio(item: MetricDifference) -> str:
    """Format a ratio with its interval."""
    found: Interval | None = item.ratio
    return "–" if found is None else f"{found.value:.3g} [{found.low:.3g}, {found.high:.3g}]"

"""A report as one HTML file: no script, no network, light and dark, for a phone and for paper."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from edge.artifacts import RunRecord
from edge.errors import DataError
from edge.reports import html, run_charts
from edge.reports.loaded_runs import LoadedRun, number, run_facts
from edge.reports.run_charts import STAGES, Curve
from edge.reports.run_comparison import ComparableRuns, MetricDifference, RunComparison
from edge.stats import Interval

# How a run warns of replayed power (edge.cli.power_options).
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
_MANY = {"picture": "pictures", "query": "queries"}
# What a latency is the latency of.
_SPANS = {
    "picture": "From the start of decoding a picture to its label, waiting between stages left out.",
    "query": "From the issue of a query to its last answer; its pictures were decoded and preprocessed before.",
}


class Section(msgspec.Struct, frozen=True):
    """The plots of the runs that share an axis: one plot of latencies for all, and a time line for each."""

    group: ComparableRuns
    runs: list[LoadedRun]
    many: str
    span: str
    distribution: str | None
    stages: str | None
    times: list[tuple[LoadedRun, str]]
    power: list[tuple[LoadedRun, str, list[tuple[int, str]]]]


def render(runs: Sequence[LoadedRun], comparison: RunComparison) -> str:
    """The page about ``runs``.

    Raises:
        DataError: not one of them has a picture.
        MissingDependencyError: jinja2 or matplotlib is missing.
    """
    if not any(run.record.pictures for run in runs):
        raise DataError("no run has a labelled picture: there is nothing to show")
    by_letter = {run.letter: run for run in runs}
    every = [run_facts(run) for run in runs]
    return html.render(
        _TEMPLATE,
        filters={"ms": ms, "signed": signed, "difference": difference, "ratio": ratio, "count": count},
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
        # That power is replayed is said once, above.
        warnings={run.letter: [line for line in run.record.warnings if not line.startswith(_REPLAYED)] for run in runs},
        throttles={run.letter: _throttles(run.record) for run in runs},
    )


def _replays(runs: Sequence[LoadedRun]) -> list[tuple[str, str]]:
    """Each recording that runs were made from, and the letters of those runs."""
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
        distribution = run_charts.shape(
            curves[0], title=f"{curves[0].letter}: how long a {unit} takes, in milliseconds"
        )
    elif curves:
        title = f"{names}: share of {many} that took at most so many milliseconds"
        distribution = run_charts.shares(curves, title=title)
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
        stages=run_charts.stages(means, title=f"{names}: mean time of each stage", unit=unit) if means else None,
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
            run_charts.time_line(
                run.record, index=run.index, limit_ms=top, title=f"{run.letter}: latency over the time of the run"
            ),
        )
        for run in runs
        if run.record.timeline or run.record.results
    ]


def _powers(runs: Sequence[LoadedRun]) -> list[tuple[LoadedRun, str, list[tuple[int, str]]]]:
    """Runs whose power has the same scope have the same axis of watts."""
    tops: dict[str | None, float] = {}
    for run in runs:
        values = [tick.power_mw / 1e3 for tick in run.record.timeline if tick.power_mw is not None]
        tops[run.scope] = max(tops.get(run.scope, 0.0), *values, 0.0)
    drawn = []
    for run in runs:
        top = tops[run.scope]
        plot = run_charts.power_and_heat(
            run.record, limits=(0.0, top * 1.08) if top > 0 else None, title=f"{run.letter}: power and temperatures"
        )
        if plot is not None:
            drawn.append((run, plot, run_charts.heat_sensors(run.record)))
    return drawn


def _curve(run: LoadedRun) -> Curve | None:
    summary, bins = run.record.latency.get("total"), run.record.histogram.get("total")
    if summary is None or not bins or not any(item.count for item in bins):
        return None
    return Curve(run.index, run.letter, summary.min_ms, bins, summary.p50_ms, summary.p99_ms)


def _card(run: LoadedRun) -> list[tuple[str, str, str]]:
    """The figures of a run: value, unit, and what has to be said with them."""
    record = run.record
    cards = []
    if record.rate_per_s is not None:
        live = ", as the camera gives them" if record.source.get("live") else ""
        cards.append((f"{record.rate_per_s:.1f}", "pictures/s", f"{count(record.pictures)} pictures{live}"))
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
            cards.append((energy, f"{unit} per picture", f"{run.scope}{net}"))
        cards.append((f"{power.mean_w:.2f}", "W mean", f"{count(power.samples)} samples"))
    temps = record.conditions.get("temps_c")
    if isinstance(temps, dict):
        highs = [(number(span, "high"), name) for name, span in temps.items() if isinstance(span, dict)]
        known = [(value, name) for value, name in highs if value is not None]
        if known:
            value, name = max(known)
            cards.append((f"{value:.0f}", "°C at most", str(name)))
    return cards


def energy_text(value_mj: float, error_mj: float | None) -> tuple[str, str]:
    """An energy and its error bound as text, in the unit that reads best; and that unit.

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


def _bench_card(bench: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The result of a scenario that is a percentile; one that is a rate has a card already."""
    share, measured, most = (number(bench, name) for name in ("percentile", "percentile_ms", "estimate_ms"))
    if share is None or measured is None:
        return []
    claim = f"at most {ms(most)} ms with 99 % confidence" if most is not None else "too few queries for a claim"
    return [(ms(measured), f"ms, {share * 100:g}th percentile", claim)]


def _throttles(record: RunRecord) -> dict[str, Any]:
    """The was slowed down, how long, and how many events there were."""
    conditions = record.conditions
    events = conditions.get("throttles")
    seconds = sum(stop - start for start, stop in run_charts.throttled(record.timeline))
    names = list(dict.fromkeys(name for tick in record.timeline for name in tick.throttling))
    counted = {name: n for name, n in events.items() if n} if isinstance(events, dict) else {}
    return {"names": names, "seconds": seconds, "events": counted}


def ms(value: float | None) -> str:
    """Format milliseconds with three significant digits."""
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def count(value: int) -> str:
    """A number of things, in groups of three digits."""
    return f"{value:,}".replace(",", "\u202f")


def signed(value: float) -> str:
    """A difference with its sign; three digits that count."""
    return f"{value:+.3g}".replace("-", "−") if abs(value) < 1e4 else f"{value:+.0f}".replace("-", "−")


def difference(item: MetricDifference) -> str:
    """A difference with its interval."""
    found = item.difference
    return "–" if found is None else f"{signed(found.value)} [{signed(found.low)}, {signed(found.high)}]"


def ratio(item: MetricDifference) -> str:
    """A ratio with its interval."""
    found: Interval | None = item.ratio
    return "–" if found is None else f"{found.value:.3g} [{found.low:.3g}, {found.high:.3g}]"

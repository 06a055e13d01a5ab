"""Load run records for a report: check them, assign the letters A, B, C …, and format their free-form parts as text.

A record is an untrusted file: its claims are shown, never relied on. An impossible number (not finite, negative, a
time series that runs backwards) refuses the record.
"""

from __future__ import annotations

import math
import string
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from edge.artifacts import RunRecord, run_record
from edge.errors import ArtifactError, UsageError

# Equals the number of colours in the style sheet.
MOST_RUNS = 8
# The size of a record is bounded; one with the maximum number of results, gaps and bins has about 1 MB.
_MOST_BYTES = 64 << 20
_MOST_NUMBER = 1e15
_MOST_OF_EACH = 100_000


class Power(msgspec.Struct, frozen=True, kw_only=True):
    """Energy for the page; values per image in millijoules, each with the half width of its error bound."""

    scope: str
    source: str
    samples: int
    mean_w: float
    joules: float
    gross_mj: float | None
    gross_error_mj: float | None
    net_mj: float | None
    idle_w: float | None
    interval_ms: float | None


class LoadedRun(msgspec.Struct, frozen=True, kw_only=True):
    """One record on the page. ``letter`` replaces its name where space is short."""

    letter: str
    index: int
    name: str
    record: RunRecord
    device: str
    backend: str
    power_mode: str
    power: Power | None

    @property
    def axis(self) -> dict[str, str]:
        """Properties that must agree before two runs may share an axis."""
        return {
            "device": self.device, "backend": self.backend, "power mode": self.power_mode,
            "measurement": self.measurement,
        }  # fmt: skip

    @property
    def measurement(self) -> str:
        """The measured path: ``run`` from image to label, or a scenario of ``edge bench`` (the engine only)."""
        bench = self.record.bench
        return "run" if bench is None else f"bench, {_word(bench.get('scenario'))}"

    @property
    def unit(self) -> str:
        """The item whose latency is measured: a ``image``, or a ``query`` of a scenario."""
        return "image" if self.record.bench is None else "query"

    @property
    def query(self) -> int:
        """Number of images in a query of a scenario; 0 for a run without queries."""
        queries = self.record.latency.get("total")
        return 0 if self.record.bench is None or queries is None else round(self.record.pictures / (queries.n or 1))

    @property
    def not_by_the_rules(self) -> str | None:
        """The reason why a scenario does not follow MLPerf's rules; None if it does."""
        bench = self.record.bench
        if bench is None or bench.get("by_the_rules") is True:
            return None
        why_not = bench.get("why_not")
        return "; ".join(_word(reason) for reason in why_not) if isinstance(why_not, list) else "no reason given"

    @property
    def scope(self) -> str | None:
        """Scope and source of the power; None if it was not measured."""
        return None if self.power is None else f"{self.power.scope} by {self.power.source}"


def load_runs(paths: Sequence[Path]) -> list[LoadedRun]:
    """Read records for one report.

    Raises:
        UsageError: there is no record, or there are more than a page has colours for.
        ArtifactError: a record is missing, malformed, of another format, too large, or has impossible numbers.
    """
    if not paths:
        raise UsageError("no records given", hint="run edge run --record run.json, then edge report run.json")
    if len(paths) > MOST_RUNS:
        raise UsageError(
            f"{len(paths)} records are too many: a page shows at most {MOST_RUNS}",
            hint="make several pages, or use --json",
        )
    return [_run(index, path) for index, path in enumerate(paths)]


def run_facts(run: LoadedRun) -> dict[str, str]:
    """Return the facts of a run (engine, device, settings) as names and values in reading order."""
    record, subject = run.record, run.record.subject
    source = record.source
    size = f", {source['width']}×{source['height']}" if source.get("width") and source.get("height") else ""
    layers = subject.layers
    int8 = f", {_word(layers.get('weighted_int8'))} of {_word(layers.get('weighted'))} weighted layers in INT8"
    found = {
        "record": run.name,
        "started": record.started_utc,
        "profile": f"{subject.profile} {_short(subject.profile_digest)}",
        "model": f"{Path(subject.model).name} {_short(subject.model_sha256)}",
        "engine": _short(subject.engine_sha256),
        "precision": subject.precision + (int8 if "weighted" in layers else ""),
        "calibration table": _short(subject.table_sha256 or ""),
        "preprocessing": _short(subject.preprocess_digest),
        "backend": run.backend,
        "device": run.device,
        "power mode": run.power_mode,
        "power": run.scope or "not measured",
        "source": f"{_word(source.get('kind'))} {_word(source.get('opened_as'), subject.source)}{size}",
        "measurement": run.measurement,
        "MLPerf's rules": _rules(run),
        "live": {True: "yes, newest frame first", False: "no, every image"}.get(bool(source.get("live")), ""),
        "warm-up": _warmup(record),
        "measured": f"{record.measured_s:.1f} s",
        "ended": record.status + (f": {record.failure}" if record.failure else ""),
        "replayed": record.replayed or "no",
        "edge": record.edge_version,
    }
    return {name: value or "–" for name, value in found.items()}


def _rules(run: LoadedRun) -> str:
    """Return a sentence about a scenario's compliance with MLPerf's rules."""
    if run.record.bench is None:
        return "–"
    return "followed" if run.not_by_the_rules is None else f"NOT followed: {run.not_by_the_rules}"


def number(content: Mapping[str, Any], name: str) -> float | None:
    """Return a finite number from a free-form part of the record; None if it is anything else."""
    value = content.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _run(index: int, path: Path) -> LoadedRun:
    try:
        size = path.stat().st_size
    except OSError as exc:
        raise ArtifactError(f"cannot read the record: {exc.strerror}", where=path) from exc
    if size > _MOST_BYTES:
        raise ArtifactError(
            f"the file has {size / (1 << 20):.0f} MiB; a run record has at most {_MOST_BYTES >> 20} MiB", where=path,
            hint="give the file of --record, not a recording of frames (.jsonl)",
        )  # fmt: skip
    record = run_record.load(path)
    problem = next(_problems(record), None)
    if problem is not None:
        raise ArtifactError(
            f"the record is inconsistent: {problem}", where=path, hint="it may have been edited; repeat the run"
        )
    return LoadedRun(
        letter=string.ascii_uppercase[index],
        index=index,
        name=path.name,
        record=record,
        device=_device(record.subject.device),
        backend=", ".join(f"{name} {_word(value)}" for name, value in record.subject.backend.items()) or "unknown",
        power_mode=_power_mode(record.subject.device),
        power=_power(record),
    )


def _problems(record: RunRecord) -> Iterator[str]:
    yield from _problems_of_latency(record)
    times = [tick.t_s for tick in record.timeline]
    if any(not 0 <= t <= _MOST_NUMBER for t in times) or times != sorted(times) or len(times) > _MOST_OF_EACH:
        yield "its time series runs backwards"
    for tick in record.timeline:
        loose = [*tick.temps_c.values(), tick.power_mw, tick.total_p50_ms, tick.total_max_ms, tick.age_p50_ms]
        yield from (f"{v} at {tick.t_s} s" for v in loose if v is not None and not abs(v) <= _MOST_NUMBER)
        if tick.frames < 0 or tick.dropped < 0:
            yield f"a count is below 0 at {tick.t_s} s"
    for gap in record.gaps:
        if not 0 <= abs(gap.start_s) <= _MOST_NUMBER or (gap.end_s is not None and not gap.end_s >= gap.start_s):
            yield f"a gap from {gap.start_s} to {gap.end_s} s"
    if not 0 <= record.measured_s <= _MOST_NUMBER or not 0 <= record.pictures <= _MOST_NUMBER:
        yield f"{record.pictures} images in {record.measured_s} s"
    for result in record.results:
        if not 0 <= result.stages.total_ms <= _MOST_NUMBER or not abs(result.t_s) <= _MOST_NUMBER:
            yield f"{result.stages.total_ms} ms for image {result.seq}"


def _problems_of_latency(record: RunRecord) -> Iterator[str]:
    for stage, summary in record.latency.items():
        values = [v for v in msgspec.structs.astuple(summary) if isinstance(v, int | float)]
        yield from (f"{stage} is {value}" for value in values if not 0 <= value <= _MOST_NUMBER)
    for stage, bins in record.histogram.items():
        edges = [item.upper_ms for item in bins]
        if any(not 0 <= edge <= _MOST_NUMBER for edge in edges) or edges != sorted(edges):
            yield f"the histogram of {stage} is out of order"
        if any(item.count < 0 for item in bins) or len(bins) > _MOST_OF_EACH:
            yield f"the histogram of {stage} has counts below 0, or {len(bins)} bars"


def _device(device: Mapping[str, Any]) -> str:
    name = device.get("product") or device.get("model") or device.get("cpu") or device.get("machine") or "unknown"
    words = [_word(name)]
    if device.get("module"):
        words.append(_word(device["module"]))
    if device.get("jetpack") or device.get("l4t"):
        jetpack, l4t = device.get("jetpack"), device.get("l4t")
        words.append(f"JetPack {_word(jetpack)}" if jetpack else f"L4T {_word(l4t)}")
    if not device.get("is_jetson") and device.get("cores"):
        words.append(f"{_word(device['cores'])} cores")
    return ", ".join(words)


def _power_mode(device: Mapping[str, Any]) -> str:
    mode = _word(device.get("power_mode"), "none" if not device.get("is_jetson") else "unknown")
    return f"{mode}, clocks locked" if device.get("clocks_locked") is True else mode


def _power(record: RunRecord) -> Power | None:
    content = record.power
    if content is None:
        return None
    joules, mean_mw = number(content, "joules"), number(content, "mean_mw")
    if joules is None or mean_mw is None:
        return None
    n, error, net = record.pictures, number(content, "error_joules"), number(content, "net_joules")
    idle, interval = number(content, "idle_mw"), number(content, "interval_s")
    return Power(
        scope=_word(content.get("scope"), "unknown scope"),
        source=_word(content.get("source"), "unknown source"),
        samples=int(number(content, "samples") or 0),
        mean_w=mean_mw / 1e3,
        joules=joules,
        gross_mj=joules / n * 1e3 if n else None,
        gross_error_mj=error / n * 1e3 if n and error is not None else None,
        net_mj=net / n * 1e3 if n and net is not None else None,
        idle_w=None if idle is None else idle / 1e3,
        interval_ms=None if interval is None else interval * 1e3,
    )


def _warmup(record: RunRecord) -> str:
    warm = record.warmup
    if not warm.n or warm.first_ms is None or warm.last_ms is None:
        return "none"
    return f"{warm.n} inferences, {warm.first_ms:.1f} ms the first, {warm.last_ms:.1f} ms the last"


def _short(digest: str) -> str:
    return digest[:12]


def _word(value: object, otherwise: str = "?") -> str:
    return otherwise if value is None else str(value)

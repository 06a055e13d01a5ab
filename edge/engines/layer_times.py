"""Measure the time per layer and store it as JSON for the engine report, the comparison and ``edge tune``.

The profiler of the backend times the layers in separate runs. A profiler inside the engine takes time itself, so
the sum over the layers is not the time of an inference, which is measured as well. Files of ``trtexec
--exportProfile`` are read, too.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import msgspec

from edge.artifacts import store
from edge.backends import Backend, LayerSamples, LayerTimer
from edge.calibration import FoundArtifact
from edge.errors import ArtifactError, DeviceError, StoreError
from edge.model import Layer, Node
from edge.stats import percentile

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    from numpy.typing import NDArray

    from edge.engines.engine_report import EngineReport

FORMAT = 1
KIND = "layer times"
SUFFIX = ".times.json"
_REPORT = "edge engine show ENGINE --times FILE --json > report.json; or an ENGINE after edge bench --layers"
_HINT = "edge bench --layers; or trtexec --loadEngine=ENGINE --exportProfile=times.json --separateProfileRun"


class TimedLayer(msgspec.Struct, frozen=True, kw_only=True):
    """Time of one layer in milliseconds; ``layer`` is None if the engine does not list it.

    ``p10_ms`` and ``p90_ms`` are percentiles over the runs, if known.
    """

    name: str
    ms: float
    share: float
    layer: Layer | None
    p10_ms: float | None = None
    p90_ms: float | None = None


class LayerTimes(msgspec.Struct, frozen=True, kw_only=True):
    """``total_ms`` is the sum over ``layers``, slowest first. ``by_role`` has the sum in milliseconds per layer role.

    ``statistic`` is the aggregate of a layer's time over the ``runs`` of the profiler: median or mean. ``whole_ms`` is
    the median time of an inference without the profiler, if measured.
    """

    source: str
    statistic: str
    runs: int | None
    total_ms: float
    layers: list[TimedLayer]
    by_role: dict[str, float]
    whole_ms: float | None = None
    profiler: str = "trtexec"


class LayerTimeEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One layer in a file of layer times, in milliseconds over all runs."""

    name: str
    median_ms: float
    p10_ms: float
    p90_ms: float


class LayerTimesFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file of layer times (``.times.json``). ``engine_sha256`` is the digest of the engine that was measured."""

    format: int
    kind: str
    engine_sha256: str
    profiler: str
    batch: int
    runs: int
    whole_ms: float
    layers: list[LayerTimeEntry]


class _ReportedLayer(msgspec.Struct, frozen=True):
    nodes: list[str] = []


class _ReportedTime(msgspec.Struct, frozen=True):
    ms: float
    layer: _ReportedLayer | None = None


class _ReportedTimes(msgspec.Struct, frozen=True):
    layers: list[_ReportedTime]


class _ReportedNode(msgspec.Struct, frozen=True):
    name: str
    weighted: bool


class _ReportedInspection(msgspec.Struct, frozen=True):
    nodes: list[_ReportedNode]


class _Report(msgspec.Struct, frozen=True):
    """The part of an engine report in JSON that is read here."""

    inspection: _ReportedInspection
    times: _ReportedTimes | None = None


def read_node_times(path: Path) -> dict[str, float]:
    """Return the milliseconds of each weighted ONNX node, from an engine's layer times or a report with times.

    A layer that several weighted nodes were fused into is shared out to them in equal parts.

    Args:
        path: an engine or its manifest with a file of ``edge bench --layers`` beside it, that file itself, or what
            ``edge engine show ENGINE --times FILE --json`` printed.

    Raises:
        ArtifactError: none of these, or one without times.
        StoreError: it cannot be read.
    """
    try:
        # Not an engine itself: its content is not needed, and may be hundreds of megabytes.
        content = path.read_bytes() if path.suffix == ".json" else b""
        path.stat()
    except OSError as exc:
        raise StoreError(f"cannot read: {exc.strerror or exc}", where=path) from exc
    # A report has the manifest in it.
    is_manifest = b'"self_sha256"' in content and b'"inspection"' not in content
    is_report = path.suffix == ".json" and not path.name.endswith(SUFFIX) and not is_manifest
    weighted, layers = _of_report(content, path) if is_report else _of_engine(path)
    spent: dict[str, float] = {}
    for ms, nodes in layers:
        shared = weighted.intersection(nodes)
        for name in shared:
            spent[name] = spent.get(name, 0.0) + ms / len(shared)
    return spent


# The names of the weighted nodes, and of each layer the milliseconds and the names of its nodes.
_NodeTimes: TypeAlias = tuple[set[str], list[tuple[float, list[str]]]]


def _of_report(content: bytes, path: Path) -> _NodeTimes:
    try:
        report = msgspec.json.decode(content, type=_Report)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ArtifactError(f"not an engine report in JSON: {exc}", where=path, hint=_REPORT) from exc
    if report.times is None:
        raise ArtifactError("this engine report has no times", where=path, hint=_REPORT)
    return _weighted(report.inspection.nodes), [
        (item.ms, item.layer.nodes if item.layer is not None else []) for item in report.times.layers
    ]


def _of_engine(path: Path) -> _NodeTimes:
    """Read the layer times in ``path``, or next to the engine ``path``."""
    from edge.engines import engine_report

    engine = path.with_name(path.name.removesuffix(SUFFIX) + ".json") if path.name.endswith(SUFFIX) else path
    card = engine_report.load(engine)
    file = beside(card.path) if path == engine else path
    if not file.is_file():
        raise ArtifactError("there are no layer times next to this engine", where=path, hint="edge bench --layers")
    nodes = card.inspection.nodes if card.inspection is not None else []
    return _weighted(nodes), [
        (item.ms, item.layer.nodes if item.layer is not None else []) for item in read(file, card).layers
    ]


def _weighted(nodes: Iterable[_ReportedNode | Node]) -> set[str]:
    return {node.name for node in nodes if node.weighted}


class _Entry(msgspec.Struct, frozen=True):
    name: str | None = None
    count: int | None = None
    medianMs: float | None = None  # noqa: N815 - trtexec's names
    averageMs: float | None = None  # noqa: N815


def measure(
    backend: Backend,
    found: FoundArtifact,
    batch: NDArray[np.float32],
    *,
    precision: str,
    runs: int,
    warmup: int,
    threads: int | None = None,
) -> LayerTimesFile:
    """Time the layers of an engine on ``batch``, float32 N×3×H×W: the median and the spread of each over ``runs``.

    Raises:
        DeviceError: the backend has no profiler, or fails.
    """
    if not hasattr(backend, "time_layers"):
        what = f"the backend {backend.name} has no profiler for layers"
        raise DeviceError(what, hint="backend: tensorrt or onnxruntime in the profile")
    timer = cast("LayerTimer", backend)
    samples = timer.time_layers(
        found.path, batch, precision=precision, runs=runs, warmup=warmup, threads=threads, built_for=found.manifest.key
    )
    return _summarized(samples, sha256=found.sha256, batch=len(batch), runs=runs)


def save(path: Path, content: LayerTimesFile) -> None:
    """Write a file of layer times.

    Raises:
        StoreError: it cannot be written.
    """
    store.write_bytes(path, msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n")


def beside(manifest: Path) -> Path:
    """Return the path of the layer times of the engine with that manifest."""
    return manifest.with_name(manifest.stem + SUFFIX)


def read(path: Path, card: EngineReport) -> LayerTimes:
    """Read the times of the layers of ``card`` from a file of edge or trtexec.

    Raises:
        ArtifactError: the file is not such a profile, or of another engine.
        StoreError: it cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as exc:
        raise StoreError(f"cannot read: {exc.strerror or exc}", where=path) from exc
    if content.lstrip()[:1] == b"{":
        return _of_edge(content, path, card)
    return _of_trtexec(content, path, card)


def of(found: LayerTimesFile, card: EngineReport, *, source: str) -> LayerTimes:
    """Match the layer times of a file with the layers of ``card``.

    Raises:
        ArtifactError: no name matches a layer of the engine.
    """
    medians = {entry.name: entry.median_ms for entry in found.layers}
    spread = {entry.name: (entry.p10_ms, entry.p90_ms) for entry in found.layers}
    times = _collected(medians, Path(source), card, statistic="median", runs=found.runs)
    layers = [
        msgspec.structs.replace(item, p10_ms=spread[item.name][0], p90_ms=spread[item.name][1]) for item in times.layers
    ]
    return msgspec.structs.replace(times, layers=layers, whole_ms=found.whole_ms, profiler=found.profiler)


def find(card: EngineReport) -> LayerTimes | None:
    """Return the layer times next to an engine; None if there are none, or if they belong to an earlier build."""
    path = beside(card.path)
    if card.manifest is None or not path.is_file():
        return None
    try:
        return read(path, card)
    except (ArtifactError, StoreError):
        return None


def _summarized(samples: LayerSamples, *, sha256: str, batch: int, runs: int) -> LayerTimesFile:
    entries = []
    for name, values in samples.layers.items():
        ordered = sorted(values)
        p10, median, p90 = (percentile(ordered, share) for share in (0.1, 0.5, 0.9))
        entries.append(LayerTimeEntry(name=name, median_ms=median, p10_ms=p10, p90_ms=p90))
    return LayerTimesFile(
        format=FORMAT, kind=KIND, engine_sha256=sha256, profiler=samples.profiler, batch=batch, runs=runs,
        whole_ms=percentile(sorted(samples.whole_ms), 0.5), layers=entries,
    )  # fmt: skip


def _of_edge(content: bytes, path: Path, card: EngineReport) -> LayerTimes:
    try:
        head: dict[str, Any] = msgspec.json.decode(content)
        if head.get("kind") != KIND:
            raise ArtifactError(f"not a file of layer times: its kind is {head.get('kind')!r}", where=path, hint=_HINT)
        if head.get("format") != FORMAT:
            what = f"layer times of format {head.get('format')!r}; this edge reads {FORMAT}"
            raise ArtifactError(what, where=path, hint="run edge bench --layers with this version of edge")
        found = msgspec.convert(head, LayerTimesFile)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as exc:
        raise ArtifactError(f"not a file of layer times: {exc}", where=path, hint=_HINT) from exc
    for entry in found.layers:
        _check(entry.name, entry.median_ms, path)
    if card.engine is not None and card.engine.sha256 != found.engine_sha256:
        raise ArtifactError("the layer times are those of another build of this engine", where=path, hint=_HINT)
    return of(found, card, source=path.name)


def _of_trtexec(content: bytes, path: Path, card: EngineReport) -> LayerTimes:
    try:
        entries = msgspec.json.decode(content, type=list[_Entry])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ArtifactError(f"not a profile that trtexec exported: {exc}", where=path, hint=_HINT) from exc
    named = [entry for entry in entries if entry.name is not None]
    has_median = bool(named) and all(entry.medianMs is not None for entry in named)
    spent: dict[str, float] = {}
    for entry in named:
        name, ms = entry.name or "", entry.medianMs if has_median else entry.averageMs
        spent[name] = spent.get(name, 0.0) + _check(name, ms, path)
    runs = next((entry.count for entry in entries if entry.count is not None), None)
    return _collected(spent, path, card, statistic="median" if has_median else "mean", runs=runs)


def _check(name: str, ms: float | None, path: Path) -> float:
    if ms is None or not math.isfinite(ms) or ms < 0:
        raise ArtifactError(f"no time for layer {name!r}", where=path, hint=_HINT)
    return ms


def _collected(
    spent: dict[str, float], path: Path, card: EngineReport, *, statistic: str, runs: int | None
) -> LayerTimes:
    """Match names with layers, and add up the times.

    Raises:
        ArtifactError: no name matches a layer of the engine.
    """
    listed = {layer.name: layer for layer in card.inspection.layers} if card.inspection else {}
    if not listed.keys() & spent.keys():
        what = "layer timings do not match this engine: no common layer name"
        raise ArtifactError(what, where=path, hint=_HINT)
    total = math.fsum(spent.values())
    return LayerTimes(
        source=path.name,
        statistic=statistic,
        runs=runs,
        total_ms=total,
        layers=[
            TimedLayer(name=name, ms=ms, share=ms / total if total else 0.0, layer=listed.get(name))
            for name, ms in sorted(spent.items(), key=lambda item: -item[1])
        ],
        by_role=_by_role(spent, listed),
    )


def _by_role(spent: dict[str, float], listed: dict[str, Layer]) -> dict[str, float]:
    roles: dict[str, float] = {}
    for name, ms in spent.items():
        role = listed[name].role if name in listed else "not listed"
        roles[role] = roles.get(role, 0.0) + ms
    return dict(sorted(roles.items(), key=lambda item: -item[1]))

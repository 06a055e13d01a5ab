"""Time per layer, from a file that ``trtexec --exportProfile`` wrote: where an engine's time goes.

edge measures a whole inference and no layer: a profiler inside of the engine changes what it measures. trtexec does it
in a run of its own (``--separateProfileRun``), and the sum of its layers is not the time of an inference.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edge.errors import ArtifactError, StoreError
from edge.model import Layer

if TYPE_CHECKING:
    from edge.engines.engine_report import EngineReport

_HINT = "trtexec --loadEngine=ENGINE --exportProfile=times.json --separateProfileRun"


class TimedLayer(msgspec.Struct, frozen=True, kw_only=True):
    """One layer's time; ``layer`` is None for one that the engine does not list."""

    name: str
    ms: float
    share: float
    layer: Layer | None


class LayerTimes(msgspec.Struct, frozen=True, kw_only=True):
    """``total_ms`` is the sum over ``layers``, slowest first. ``by_role`` adds up milliseconds per role of a layer.

    ``statistic`` is what a layer's time is over the ``runs`` of the profiler: median or mean.
    """

    source: str
    statistic: str
    runs: int | None
    total_ms: float
    layers: list[TimedLayer]
    by_role: dict[str, float]


class _Entry(msgspec.Struct, frozen=True):
    name: str | None = None
    count: int | None = None
    medianMs: float | None = None  # noqa: N815 - trtexec's names
    averageMs: float | None = None  # noqa: N815


def read(path: Path, card: EngineReport) -> LayerTimes:
    """Times of the layers of ``card``.

    Raises:
        ArtifactError: not such a file, or of another engine.
        StoreError: it cannot be read.
    """
    try:
        entries = msgspec.json.decode(path.read_bytes(), type=list[_Entry])
    except OSError as exc:
        raise StoreError(f"cannot read: {exc.strerror or exc}", where=path) from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ArtifactError(f"not a profile that trtexec exported: {exc}", where=path, hint=_HINT) from exc
    named = [entry for entry in entries if entry.name is not None]
    has_median = bool(named) and all(entry.medianMs is not None for entry in named)
    spent: dict[str, float] = {}
    for entry in named:
        ms = entry.medianMs if has_median else entry.averageMs
        if entry.name is None or ms is None or not math.isfinite(ms) or ms < 0:
            raise ArtifactError(f"no time of {entry.name!r}", where=path, hint=_HINT)
        spent[entry.name] = spent.get(entry.name, 0.0) + ms
    listed = {layer.name: layer for layer in card.inspection.layers} if card.inspection else {}
    if not listed.keys() & spent.keys():
        raise ArtifactError("these are not times of this engine: no layer has the same name", where=path, hint=_HINT)
    total = math.fsum(spent.values())
    roles: dict[str, float] = {}
    for name, ms in spent.items():
        role = listed[name].role if name in listed else "not listed"
        roles[role] = roles.get(role, 0.0) + ms
    return LayerTimes(
        source=path.name,
        statistic="median" if has_median else "mean",
        runs=next((entry.count for entry in entries if entry.count is not None), None),
        total_ms=total,
        layers=[
            TimedLayer(name=name, ms=ms, share=ms / total if total else 0.0, layer=listed.get(name))
            for name, ms in sorted(spent.items(), key=lambda item: -item[1])
        ],
        by_role=dict(sorted(roles.items(), key=lambda item: -item[1])),
    )

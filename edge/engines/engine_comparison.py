"""Compare two engines: inputs of the build, nodes with another precision, and nodes fused in only one of them.

Layers of two engines cannot be matched by name: FP32 and INT8, or two versions of TensorRT, split the network
differently. The ONNX nodes are the same, so each node is looked up in both engines.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec

from edge.artifacts import KeyDifference, store
from edge.backends.tensorrt import rtx_plan
from edge.engines import layer_times

if TYPE_CHECKING:
    from edge.engines.engine_report import EngineReport

# Nodes inserted by a quantizer: only one of the engines has them, by design.
_MARKERS = frozenset({"QuantizeLinear", "DequantizeLinear"})


class NodeChange(msgspec.Struct, frozen=True, kw_only=True):
    """A node that runs in another precision or kind of layer; None if no layer names it."""

    node: str
    kind: str
    weighted: bool
    precision: tuple[str | None, str | None]
    layer_kind: tuple[str | None, str | None]


class EnginePair(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of both engines, and its unit."""

    name: str
    unit: str
    a: float | int | None
    b: float | int | None


class EngineComparison(msgspec.Struct, frozen=True, kw_only=True):
    """The differences of two engines. ``weighted`` and ``others`` count nodes by precision change: ``fp32 -> int8``.

    ``only_a`` and ``only_b`` are sets of nodes that only one of the engines runs as one layer.
    """

    a: str
    b: str
    built_from: list[KeyDifference]
    figures: list[EnginePair]
    changes: list[NodeChange]
    weighted: dict[str, int]
    others: dict[str, int]
    same: int
    only_a: list[list[str]]
    only_b: list[list[str]]
    notes: list[str]

    @property
    def is_equal(self) -> bool:
        """True if only names, times and sizes differ."""
        return not (self.built_from or self.changes or self.only_a or self.only_b)


def compare(a: EngineReport, b: EngineReport) -> EngineComparison:
    """Compare engine ``b`` with engine ``a``."""
    place_a, place_b = _places(a), _places(b)
    kinds = _kinds(a) | _kinds(b)
    common = [name for name in place_a if name in place_b]
    changes = []
    same = 0
    for name in common:
        (precision_a, kind_a, _), (precision_b, kind_b, _) = place_a[name], place_b[name]
        if (precision_a, kind_a) == (precision_b, kind_b):
            same += 1
            continue
        kind, weighted = kinds.get(name, ("?", False))
        changes.append(
            NodeChange(
                node=name, kind=kind, weighted=weighted, precision=(precision_a, precision_b),
                layer_kind=(kind_a, kind_b),
            )
        )  # fmt: skip
    only_a, only_b = _groups(a, set(common)), _groups(b, set(common))
    moved = [change for change in changes if change.precision[0] != change.precision[1]]
    return EngineComparison(
        a=str(a.path),
        b=str(b.path),
        built_from=_built_from(a, b),
        figures=_figures(a, b),
        changes=changes,
        weighted=_by_precision(change for change in moved if change.weighted),
        others=_by_precision(change for change in moved if not change.weighted),
        same=same,
        only_a=[[name for name in common if name in group] for group in only_a if group not in only_b],
        only_b=[[name for name in common if name in group] for group in only_b if group not in only_a],
        notes=_notes(a, b, common),
    )


def _places(card: EngineReport) -> dict[str, tuple[str | None, str, str]]:
    """Return precision, kind and name of each node's layer."""
    found: dict[str, tuple[str | None, str, str]] = {}
    kinds = _kinds(card)
    for layer in card.inspection.layers if card.inspection else []:
        for name in layer.nodes:
            is_marker = kinds.get(name, ("", False))[0] in _MARKERS
            # A copy may name the node it serves; the layer that computes the node takes precedence.
            if not is_marker and (name not in found or layer.role == "weighted"):
                found[name] = (layer.precision, layer.kind, layer.name)
    return found


def _kinds(card: EngineReport) -> dict[str, tuple[str, bool]]:
    nodes = card.inspection.nodes if card.inspection else []
    return {node.name: (node.kind, node.weighted) for node in nodes}


def _groups(card: EngineReport, common: set[str]) -> list[frozenset[str]]:
    """Return the sets of two or more common nodes that run as one layer, in network order."""
    listed = card.inspection.layers if card.inspection else []
    groups = (frozenset(common.intersection(layer.nodes)) for layer in listed if layer.role != "free")
    return list(dict.fromkeys(group for group in groups if len(group) > 1))


def _built_from(a: EngineReport, b: EngineReport) -> list[KeyDifference]:
    if a.manifest is None or b.manifest is None:
        return []
    return store.differences(a.manifest.key, b.manifest.key)


def _figures(a: EngineReport, b: EngineReport) -> list[EnginePair]:
    rows: list[tuple[str, str, Any]] = [
        ("engine file", "bytes", lambda card: card.engine.size if card.engine else None),
        ("build", "s", lambda card: _number(card, "build_seconds")),
        ("peak memory of the build", "MiB", lambda card: _number(card, "peak_memory_mib")),
        ("weights", "bytes", lambda card: card.counts.weights_bytes if card.counts else None),
        ("layers", "", lambda card: card.counts.layers if card.counts else None),
        ("fused layers", "", lambda card: card.counts.fused if card.counts else None),
        ("sum of layer times", "ms", _layer_ms),
        ("time in weighted layers", "ms", lambda card: _layer_ms(card, "weighted")),
        ("time in reformats", "ms", lambda card: _layer_ms(card, "reformat")),
        ("generated kernels", "", _generated),
        ("between layers", "bytes", lambda card: card.inspection.activation_bytes() if card.inspection else None),
        ("reformat layers", "", lambda card: card.counts.reformats if card.counts else None),
        ("weighted layers in INT8", "", lambda card: card.layers.weighted_int8 if card.layers else None),
        ("weighted layers in FP16", "", lambda card: card.layers.weighted_fp16 if card.layers else None),
    ]
    return [EnginePair(name=name, unit=unit, a=get(a), b=get(b)) for name, unit, get in rows]


def _layer_ms(card: EngineReport, role: str | None = None) -> float | None:
    """Milliseconds in layers of a role, or in all: from the layer times next to the engine, where there are some."""
    times = layer_times.find(card)
    if times is None:
        return None
    return times.total_ms if role is None else times.by_role.get(role)


def _generated(card: EngineReport) -> int | None:
    """Kernels that the compiler has generated: only plans of TensorRT for RTX name them."""
    return (rtx_plan.generated_kernels(card.inspection) or None) if card.inspection else None


def _number(card: EngineReport, name: str) -> float | None:
    value = card.manifest.info.get(name) if card.manifest else None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _by_precision(changes: Any) -> dict[str, int]:  # noqa: ANN401 - an iterable of NodeChange
    counted = Counter(f"{change.precision[0] or '?'} -> {change.precision[1] or '?'}" for change in changes)
    return dict(counted.most_common())


def _notes(a: EngineReport, b: EngineReport, common: list[str]) -> list[str]:
    notes = [
        f"{card.title}: {'its layers are unknown' if card.inspection is None else card.inspection.absent}"
        for card in (a, b)
        if card.inspection is None or card.inspection.absent
    ]
    if not notes and not common:
        notes.append("the engines have no ONNX node in common: they are from different models")
    return notes

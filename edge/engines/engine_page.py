"""The report card of an engine, and two engines next to each other, as pages of one file: no script, no network."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from edge.engines import inventory
from edge.engines.engine_comparison import EngineComparison
from edge.engines.engine_report import EngineReport
from edge.engines.layer_times import LayerTimes
from edge.model import Layer, LayerTensor
from edge.reports import html

_TEMPLATES = Path(__file__).parent / "templates"
_PRECISIONS = ("int8", "fp16", "bf16", "fp32")
_LEGEND = {
    **{name: name.upper() for name in _PRECISIONS},
    "unknown": "other, or not said",
    "reformat": "reformat",
    "free": "view, takes no time",
    "opaque": "hidden in one piece",
}
# Operators and kinds that get a bar of their own.
_BARS = 10
# Layers that are named where the time goes.
_SLOWEST = 15
# What of a manifest's info has a place of its own on the page.
_PLACED = frozenset({"layers", "warnings", "device", "builds", "counts", "input", "output", "why", "flags"})

# TensorRT's phrases for its formats, and the names that its API has for them (NvInfer.h, TensorFormat).
_LAYOUTS = {
    "thirty-two wide channel vectorized row major": "CHW32",
    "sixteen wide channel vectorized row major": "CHW16",
    "four wide channel vectorized row major": "CHW4",
    "two wide channel vectorized row major": "CHW2",
    "channel major fp16 format where channel % 8": "HWC8",
    "channel major fp32 format": "HWC",
    "row major": "linear",
}


class TimeBar(msgspec.Struct, frozen=True):
    """One line of a list with bars: its share is of the longest, 0 to 100."""

    name: str
    count: int
    share: float


def render(card: EngineReport, times: LayerTimes | None = None) -> str:
    """The page about ``card``, and where its time goes if that is known.

    Raises:
        MissingDependencyError: jinja2 is missing.
    """
    info = card.manifest.info if card.manifest else {}
    return html.render(
        _TEMPLATES / "card.html",
        filters={"size": size, "tensor": tensor, "words": words, "colour": _colour, "short": short},
        card=card,
        info=info,
        rest={name: value for name, value in info.items() if name not in _PLACED},
        device=_known(info.get("device")),
        builds=[item for item in info.get("builds") or [] if isinstance(item, dict)],
        runtime=inventory.runtime(card.manifest.key) if card.manifest else None,
        inspected=card.inspection.layers if card.inspection else [],
        ports=card.inspection.ports if card.inspection else [],
        before=_bars(card.operators),
        after=_bars(card.kinds),
        shares=_shares(card),
        legend=_legend(card),
        times=times,
        slowest=times.layers[:_SLOWEST] if times else [],
        changes=_changes(card),
    )


def render_difference(a: EngineReport, b: EngineReport, found: EngineComparison) -> str:
    """The page about two engines.

    Raises:
        MissingDependencyError: jinja2 is missing.
    """
    legend = dict(_legend(a)) | dict(_legend(b))
    return html.render(
        _TEMPLATES / "difference.html",
        filters={"colour": _colour, "short": short},
        a=a,
        b=b,
        found=found,
        runtime_a=inventory.runtime(a.manifest.key) if a.manifest else "layers of a file",
        runtime_b=inventory.runtime(b.manifest.key) if b.manifest else "layers of a file",
        legend=[(colour, words) for colour, words in _LEGEND.items() if colour in legend],
        figures=figures(found),
    )


def figures(found: EngineComparison) -> list[tuple[str, str, str, str]]:
    """Name, both values in words, and their ratio, of every figure that one of the two has."""
    rows = []
    for pair in found.figures:
        if pair.a is not None or pair.b is not None:
            ratio = f"{pair.b / pair.a:.2f}" if pair.a and pair.b is not None else ""
            rows.append((pair.name, _figure(pair.a, pair.unit), _figure(pair.b, pair.unit), ratio))
    return rows


def size(count: float | None) -> str:
    """Bytes in words."""
    if count is None:
        return "unknown"
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def tensor(item: LayerTensor) -> str:
    """A tensor's precision, layout and shape in a line."""
    shape = None if item.shape is None else "×".join(map(str, item.shape))
    layout = item.layout
    if layout is not None:
        layout = next((word for phrase, word in _LAYOUTS.items() if layout.lower().startswith(phrase)), layout)
    return ", ".join(word for word in (item.precision, layout, shape) if word)


def _figure(value: float | None, unit: str) -> str:
    if value is None:
        return "unknown"
    return size(value) if unit == "bytes" else f"{value:,.5g} {unit}".strip()


def _bars(counts: dict[str, int]) -> list[TimeBar]:
    most = max(counts.values(), default=1)
    shown = [TimeBar(name, count, 100 * count / most) for name, count in list(counts.items())[:_BARS]]
    rest = sum(list(counts.values())[_BARS:])
    return [*shown, *([TimeBar(f"{len(counts) - _BARS} more", rest, 100 * min(rest / most, 1))] if rest else [])]


def _shares(card: EngineReport) -> list[tuple[str, int, float]]:
    """Precision, number of weighted layers, and their share in percent."""
    counted: dict[str, int] = {}
    if card.layers is not None:
        has = card.layers
        rest = has.weighted - has.weighted_int8 - has.weighted_fp16 - has.weighted_unknown
        counted = {"int8": has.weighted_int8, "fp16": has.weighted_fp16, "fp32": rest, "?": has.weighted_unknown}
    elif card.counts is not None:
        counted = dict(card.counts.weighted)
    total = sum(counted.values())
    return [(name, count, 100 * count / total) for name, count in counted.items() if count]


def _changes(card: EngineReport) -> list[tuple[str, str, str, int, bool]]:
    """From, to, kind of layer, how many, and whether they compute nothing."""
    counted = Counter((item.before, item.after, item.kind, item.reformat) for item in card.changes)
    return [(before, after, kind, count, moves) for (before, after, kind, moves), count in counted.most_common()]


def _colour(layer: Layer) -> str:
    if layer.role in {"reformat", "opaque", "free"}:
        return layer.role
    return layer.precision if layer.precision in _PRECISIONS else "unknown"


def _legend(card: EngineReport) -> list[tuple[str, str]]:
    """The colours that occur among the layers, and what they mean."""
    used = {_colour(layer) for layer in card.inspection.layers} if card.inspection else set()
    return [(colour, words) for colour, words in _LEGEND.items() if colour in used]


def _known(value: Any) -> dict[str, Any]:  # noqa: ANN401
    return {name: item for name, item in value.items() if item is not None} if isinstance(value, dict) else {}


def short(value: object) -> str:
    """A value of a key; a digest is cut."""
    text = "–" if value is None else str(value)
    return f"{text[:12]}…" if len(text) == 64 and all(sign in "0123456789abcdef" for sign in text) else text


def words(value: object) -> str:
    """A value of a manifest's info in words."""
    if isinstance(value, dict):
        return ", ".join(f"{name}: {words(item)}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(words(item) for item in value) or "–"
    return short(value)

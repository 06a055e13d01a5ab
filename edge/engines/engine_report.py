"""The report on one engine: what was requested, what was built, and the differences.

An engine is given by its own file, its manifest, or its list of layers. A file from ``trtexec --exportLayerInfo`` is
read as well; then only the layers are known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edge.artifacts import Manifest, store
from edge.backends import Layers
from edge.backends.tensorrt import layer_report, rtx_plan
from edge.calibration import cache_keys
from edge.engines import inventory
from edge.errors import ArtifactError, StoreError
from edge.model import RAW_SUFFIX, SUFFIX, Counts, Inspection, Layer, LayerTensor, PrecisionResult, decode_inspection
from edge.reports import html

if TYPE_CHECKING:
    from edge.engines.engine_comparison import EngineComparison
    from edge.engines.layer_times import LayerTimes

_TEMPLATES = Path(__file__).parent / "templates"
_PRECISIONS = ("int8", "fp16", "bf16", "fp32")
_LEGEND = {
    **{name: name.upper() for name in _PRECISIONS},
    "unknown": "other, or unknown",
    "reformat": "reformat",
    "free": "view, no computation",
    "opaque": "hidden in one opaque layer",
}
# Operators and kinds with a bar of their own.
_BARS = 10
# Layers shown in the list of the slowest.
_SLOWEST = 15
# Manifest fields with a place of their own on the page.
_PLACED = frozenset({"layers", "warnings", "device", "builds", "counts", "input", "output", "why", "flags"})

# TensorRT's descriptions of its formats, and their names in its API (NvInfer.h, TensorFormat).
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
    """One bar of a chart; the share is relative to the longest bar, 0 to 100."""

    name: str
    count: int
    share: float


def render(card: EngineReport, times: LayerTimes | None = None) -> str:
    """Render the page about ``card``, with the times of its layers if known.

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
        changes=_changed_layers(card),
    )


def render_difference(a: EngineReport, b: EngineReport, found: EngineComparison) -> str:
    """Render the page that compares two engines.

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
    """Return name, both values and their ratio for every figure of at least one engine."""
    rows = []
    for pair in found.figures:
        if pair.a is not None or pair.b is not None:
            ratio = f"{pair.b / pair.a:.2f}" if pair.a and pair.b is not None else ""
            rows.append((pair.name, _figure(pair.a, pair.unit), _figure(pair.b, pair.unit), ratio))
    return rows


def size(count: float | None) -> str:
    """Format a number of bytes."""
    if count is None:
        return "unknown"
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def tensor(item: LayerTensor) -> str:
    """Format a tensor's precision, layout and shape."""
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
    """Return each precision with its number of weighted layers and their share in percent."""
    counted: dict[str, int] = {}
    if card.layers is not None:
        has = card.layers
        rest = has.weighted - has.weighted_int8 - has.weighted_fp16 - has.weighted_unknown
        counted = {"int8": has.weighted_int8, "fp16": has.weighted_fp16, "fp32": rest, "?": has.weighted_unknown}
    elif card.counts is not None:
        counted = dict(card.counts.weighted)
    total = sum(counted.values())
    return [(name, count, 100 * count / total) for name, count in counted.items() if count]


def _changed_layers(card: EngineReport) -> list[tuple[str, str, str, int, bool]]:
    """Return the layers that change precision: from, to, kind, number, and if they only convert."""
    counted = Counter((item.before, item.after, item.kind, item.reformat) for item in card.changes)
    return [(before, after, kind, count, moves) for (before, after, kind, moves), count in counted.most_common()]


def _colour(layer: Layer) -> str:
    if layer.role in {"reformat", "opaque", "free"}:
        return layer.role
    return layer.precision if layer.precision in _PRECISIONS else "unknown"


def _legend(card: EngineReport) -> list[tuple[str, str]]:
    """Return the colours that occur among the layers, with their meaning."""
    used = {_colour(layer) for layer in card.inspection.layers} if card.inspection else set()
    return [(colour, words) for colour, words in _LEGEND.items() if colour in used]


def _known(value: Any) -> dict[str, Any]:  # noqa: ANN401
    return {name: item for name, item in value.items() if item is not None} if isinstance(value, dict) else {}


def short(value: object) -> str:
    """Format a value of a key; a digest is shortened."""
    text = "–" if value is None else str(value)
    return f"{text[:12]}…" if len(text) == 64 and all(sign in "0123456789abcdef" for sign in text) else text


def words(value: object) -> str:
    """Format a value of a manifest's info."""
    if isinstance(value, dict):
        return ", ".join(f"{name}: {words(item)}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(words(item) for item in value) or "–"
    return short(value)


# Signed and unsigned integers are one precision here: the data is the same, shifted.
_SAME = {"uint8": "int8"}
_FLOATS = frozenset({"fp32", "fp16", "bf16"})
_LARGEST_JSON = 256 << 20


class PrecisionChange(msgspec.Struct, frozen=True, kw_only=True):
    """A layer whose output precision differs from its input precision."""

    layer: str
    kind: str
    before: str
    after: str
    reformat: bool


class Island(msgspec.Struct, frozen=True, kw_only=True):
    """Layers of one kind that run in float in an INT8 engine, and the number of reformats around them."""

    kind: str
    precision: str
    layers: int
    reformats: int


class EngineReport(msgspec.Struct, frozen=True, kw_only=True):
    """All information about one engine.

    ``short`` are weighted layers that are not in the precision asked for; ``in_float`` those that the recipe keeps in
    float, with the precision that they run in. ``chains`` are runs of two and more reformats
    with nothing between them. ``operators`` counts the ONNX nodes before optimization by operator, ``kinds`` the layers
    after it. ``unseen`` are nodes that no layer names: folded away, or hidden.
    """

    title: str
    path: Path
    asked: str | None
    manifest: Manifest | None
    layers: Layers | None
    inspection: Inspection | None
    counts: Counts | None
    short: list[Layer]
    in_float: list[PrecisionResult]
    changes: list[PrecisionChange]
    islands: list[Island]
    chains: list[list[str]]
    operators: dict[str, int]
    kinds: dict[str, int]
    unseen: list[str]
    notes: list[str]

    @property
    def engine(self) -> store.FileEntry | None:
        """The entry of the engine file."""
        return None if self.manifest is None else next(iter(self.manifest.files.values()))


def load(path: Path) -> EngineReport:
    """Load the report of the engine at ``path`` and verify every file.

    Raises:
        ArtifactError: the engine does not exist, has no manifest, is corrupt, or is another kind of file.
    """
    whole = _whole_name(path)
    manifest_path = cache_keys.manifest_path(whole)
    if not whole.is_file() and not manifest_path.is_file():
        raise ArtifactError("there is no such engine", where=path, hint="edge engine list")
    if whole.suffix == ".json" and not _is_manifest(whole):
        return _foreign(whole)
    if not manifest_path.is_file() and rtx_plan.is_plan(_head(whole)):
        return _card(
            title=whole.stem, path=whole, asked=None, manifest=None, layers=None,
            looked=rtx_plan.read(_read_plan(whole)),
            notes=["an engine without a manifest: edge did not build it; what is shown is the listing in the plan"],
        )  # fmt: skip
    if not manifest_path.is_file():
        raise ArtifactError(
            "the engine has no manifest: edge did not build it",
            where=path,
            hint="edge build; or trtexec --loadEngine=… --profilingVerbosity=detailed --exportLayerInfo=layers.json, "
            "then edge engine show layers.json",
        )
    manifest = store.load(manifest_path, kind=cache_keys.ENGINE)
    if whole.suffix != ".json" and whole.name not in manifest.files:
        raise ArtifactError(f"the manifest next to it belongs to {', '.join(manifest.files)}", where=path)
    return of(manifest, manifest_path)


def of(manifest: Manifest, manifest_path: Path) -> EngineReport:
    """Make the report of an engine whose manifest is already read."""
    notes = [str(text) for text in _list(manifest.info.get("warnings"))]
    looked: Inspection | None = None
    name = next((name for name in manifest.files if name.endswith(SUFFIX)), None)
    if name is None:
        notes.append("the layers are not stored: an earlier edge built this engine (edge build --force stores them)")
    else:
        try:
            where = manifest_path.parent / name
            looked = decode_inspection(_read(where), where=where)
        except ArtifactError as exc:
            notes.append(exc.what)
    looked = _plan_instead(manifest, manifest_path, looked)
    try:
        counted = msgspec.convert(manifest.info.get("layers"), Layers | None)
    except msgspec.ValidationError:
        counted = None
        notes.append("the layer counts in the manifest have an unknown format")
    asked = manifest.key.get("precision")
    return _card(
        title=manifest_path.stem, path=manifest_path, asked=None if asked is None else str(asked),
        manifest=manifest, layers=counted, looked=looked, notes=notes,
    )  # fmt: skip


def _plan_instead(manifest: Manifest, manifest_path: Path, looked: Inspection | None) -> Inspection | None:
    """The listing in a plan of TensorRT for RTX, where the engine was built without one to look into."""
    plan = manifest_path.parent / next(iter(manifest.files))
    if (looked is not None and looked.absent is None) or not rtx_plan.is_plan(_head(plan)):
        return looked
    found = rtx_plan.read(_read_plan(plan), nodes=looked.nodes if looked is not None else ())
    return looked if found.absent and looked is not None else found


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(16)
    except OSError:
        return b""


def _read_plan(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise StoreError(f"cannot read: {exc.strerror or exc}", where=path) from exc


def _whole_name(path: Path) -> Path:
    """Return the engine's own name if one of the files next to it was given."""
    for ending in (SUFFIX, RAW_SUFFIX):
        if path.name.endswith(ending):
            manifest = path.with_name(path.name.removesuffix(ending) + ".json")
            return manifest if manifest.is_file() else path
    return path


def _is_manifest(path: Path) -> bool:
    try:
        content = msgspec.json.decode(_read(path), type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ArtifactError(f"neither an engine's manifest nor a list of layers: {exc}", where=path) from exc
    return "self_sha256" in content


def _foreign(path: Path) -> EngineReport:
    """Make the report of a file that has only layers: edge's own, or an engine inspector's."""
    data = _read(path)
    looked = layer_report.read(data.decode(errors="replace"), source="a file of TensorRT's engine inspector")
    if looked is None:
        try:
            looked = decode_inspection(data, where=path)
        except ArtifactError as exc:
            raise ArtifactError(
                "neither an engine's manifest nor a detailed list of layers",
                where=path,
                hint="edge engine show ENGINE; or a file of trtexec --profilingVerbosity=detailed --exportLayerInfo",
            ) from exc
    return _card(
        title=path.name, path=path, asked=None, manifest=None, layers=None, looked=looked,
        notes=["only the layers are known: this file has no manifest"],
    )  # fmt: skip


def _card(
    *,
    title: str,
    path: Path,
    asked: str | None,
    manifest: Manifest | None,
    layers: Layers | None,
    looked: Inspection | None,
    notes: list[str],
) -> EngineReport:
    listed = looked.layers if looked is not None else []
    nodes = looked.nodes if looked is not None else []
    seen = {name for layer in listed for name in layer.nodes}
    results = looked.results() if looked is not None else []
    in_float = [item for item in results if item.asked != "int8"]
    if looked is not None:
        # The build's own warning has more details about a failed inspection.
        is_reported = any("look into it" in note for note in notes)
        notes += [*looked.notes, *([looked.absent] if looked.absent and not is_reported else [])]
    return EngineReport(
        title=title,
        path=path,
        asked=asked,
        manifest=manifest,
        layers=layers,
        inspection=looked,
        counts=looked.counts() if looked is not None and not looked.absent else None,
        short=_short(listed, asked, {item.node for item in in_float}),
        in_float=in_float,
        changes=_changes(listed),
        islands=_islands(listed, asked),
        chains=_chains(listed),
        operators=dict(Counter(node.kind for node in nodes).most_common()),
        kinds=dict(Counter(layer.kind for layer in listed).most_common()),
        unseen=[node.name for node in nodes if node.name not in seen] if listed else [],
        notes=list(dict.fromkeys(notes)),
    )


def _short(listed: list[Layer], asked: str | None, in_float: Collection[str]) -> list[Layer]:
    enough = {"int8": {"int8"}, "fp16": {"fp16", "int8", "bf16"}}.get(asked or "")
    if enough is None:
        return []
    return [
        layer
        for layer in listed
        if layer.role == "weighted"
        and layer.precision not in enough
        and not {layer.name, *layer.nodes}.intersection(in_float)
    ]


def _changes(listed: list[Layer]) -> list[PrecisionChange]:
    found = []
    for layer in listed:
        before = next((_plain(tensor.precision) for tensor in layer.inputs), None)
        after = next((_plain(tensor.precision) for tensor in layer.outputs), None)
        if before and after and before != after and layer.role != "free":
            is_reformat = layer.role == "reformat"
            found.append(
                PrecisionChange(layer=layer.name, kind=layer.kind, before=before, after=after, reformat=is_reformat)
            )
    return found


def _islands(listed: list[Layer], asked: str | None) -> list[Island]:
    if asked != "int8":
        return []
    makers = {tensor.name: layer for layer in listed for tensor in layer.outputs}
    users: dict[str, list[Layer]] = {}
    for layer in listed:
        for tensor in layer.inputs:
            users.setdefault(tensor.name, []).append(layer)
    found: dict[tuple[str, str], tuple[int, set[str]]] = {}
    for layer in listed:
        if layer.role != "other" or layer.precision not in _FLOATS:
            continue
        around = [makers[tensor.name] for tensor in layer.inputs if tensor.name in makers]
        around += [user for tensor in layer.outputs for user in users.get(tensor.name, [])]
        count, reformats = found.get((layer.kind, layer.precision), (0, set()))
        reformats |= {item.name for item in around if item.role == "reformat"}
        found[layer.kind, layer.precision] = (count + 1, reformats)
    return [
        Island(kind=kind, precision=precision, layers=count, reformats=len(reformats))
        for (kind, precision), (count, reformats) in found.items()
    ]


def _chains(listed: list[Layer]) -> list[list[str]]:
    """Return sequences of reformats that read each other's output."""
    moving = {tensor.name: layer for layer in listed if layer.role == "reformat" for tensor in layer.inputs}
    inner = {
        moving[tensor.name].name
        for layer in listed
        if layer.role == "reformat"
        for tensor in layer.outputs
        if tensor.name in moving
    }
    found = []
    for layer in listed:
        if layer.role != "reformat" or layer.name in inner:
            continue
        chain = [layer]
        while (behind := next((moving[t.name] for t in chain[-1].outputs if t.name in moving), None)) is not None:
            if behind in chain:
                break
            chain.append(behind)
        if len(chain) > 1:
            found.append([item.name for item in chain])
    return found


def _plain(precision: str | None) -> str | None:
    return None if precision is None else _SAME.get(precision, precision)


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise ArtifactError("the file is too large for a list of layers", where=path)
        return path.read_bytes()
    except OSError as exc:
        raise StoreError(f"cannot read: {exc.strerror or exc}", where=path) from exc


def _list(value: Any) -> list[Any]:  # noqa: ANN401
    return value if isinstance(value, list) else []

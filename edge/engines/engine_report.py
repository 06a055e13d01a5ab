"""The report card of one engine: what was asked for, what was built, and where the two part.

An engine is named by its own file, by its manifest, or by the layers next to it. A file that ``trtexec
--exportLayerInfo`` wrote is read as well: then nothing but the layers is known.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from edge.artifacts import Manifest, store
from edge.backends import Layers
from edge.backends.tensorrt import layer_report
from edge.calibration import cache_keys
from edge.errors import ArtifactError, StoreError
from edge.model import RAW_SUFFIX, SUFFIX, Counts, Inspection, Layer, decode_inspection

# Integers of either sign are one precision here: the data is the same, shifted.
_SAME = {"uint8": "int8"}
_FLOATS = frozenset({"fp32", "fp16", "bf16"})
_LARGEST_JSON = 256 << 20


class PrecisionChange(msgspec.Struct, frozen=True, kw_only=True):
    """A layer behind which data has another precision than before it."""

    layer: str
    kind: str
    before: str
    after: str
    reformat: bool


class Island(msgspec.Struct, frozen=True, kw_only=True):
    """Layers of one kind that run in float in an INT8 engine, and how many reformats stand around them."""

    kind: str
    precision: str
    layers: int
    reformats: int


class EngineReport(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is known of one engine.

    ``short`` are weighted layers that are not in the precision asked for. ``chains`` are runs of two and more reformats
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
    changes: list[PrecisionChange]
    islands: list[Island]
    chains: list[list[str]]
    operators: dict[str, int]
    kinds: dict[str, int]
    unseen: list[str]
    notes: list[str]

    @property
    def engine(self) -> store.FileEntry | None:
        """The engine's own file."""
        return None if self.manifest is None else next(iter(self.manifest.files.values()))


def load(path: Path) -> EngineReport:
    """The card of the engine at ``path``, every file verified.

    Raises:
        ArtifactError: there is no such engine, it has no manifest, it is corrupt, or the file is something else.
    """
    whole = _whole_name(path)
    manifest_path = cache_keys.manifest_path(whole)
    if not whole.is_file() and not manifest_path.is_file():
        raise ArtifactError("there is no such engine", where=path, hint="edge engine list")
    if whole.suffix == ".json" and not _is_manifest(whole):
        return _foreign(whole)
    if not manifest_path.is_file():
        raise ArtifactError(
            "an engine without a manifest: edge did not build it, and knows nothing of it",
            where=path,
            hint="edge build; or trtexec --loadEngine=… --profilingVerbosity=detailed --exportLayerInfo=layers.json, "
            "then edge engine show layers.json",
        )
    manifest = store.load(manifest_path, kind=cache_keys.ENGINE)
    if whole.suffix != ".json" and whole.name not in manifest.files:
        raise ArtifactError(f"the manifest next to it is that of {', '.join(manifest.files)}", where=path)
    return of(manifest, manifest_path)


def of(manifest: Manifest, manifest_path: Path) -> EngineReport:
    """The card of an engine whose manifest was read already."""
    notes = [str(text) for text in _list(manifest.info.get("warnings"))]
    looked: Inspection | None = None
    name = next((name for name in manifest.files if name.endswith(SUFFIX)), None)
    if name is None:
        notes.append("the layers were not kept: an earlier edge built this engine (edge build --force keeps them)")
    else:
        try:
            where = manifest_path.parent / name
            looked = decode_inspection(_read(where), where=where)
        except ArtifactError as exc:
            notes.append(exc.what)
    try:
        counted = msgspec.convert(manifest.info.get("layers"), Layers | None)
    except msgspec.ValidationError:
        counted = None
        notes.append("the manifest counts layers in a way that this edge does not know")
    asked = manifest.key.get("precision")
    return _card(
        title=manifest_path.stem, path=manifest_path, asked=None if asked is None else str(asked),
        manifest=manifest, layers=counted, looked=looked, notes=notes,
    )  # fmt: skip


def _whole_name(path: Path) -> Path:
    """The engine's own name, where one of the files next to it was named."""
    for ending in (SUFFIX, RAW_SUFFIX):
        if path.name.endswith(ending):
            manifest = path.with_name(path.name.removesuffix(ending) + ".json")
            return manifest if manifest.is_file() else path
    return path


def _is_manifest(path: Path) -> bool:
    try:
        content = msgspec.json.decode(_read(path), type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ArtifactError(f"not the manifest of an engine, nor a list of its layers: {exc}", where=path) from exc
    return "self_sha256" in content


def _foreign(path: Path) -> EngineReport:
    """The card of a file with layers and no more: our own, or an engine inspector's."""
    data = _read(path)
    looked = layer_report.read(data.decode(errors="replace"), source="a file of TensorRT's engine inspector")
    if looked is None:
        try:
            looked = decode_inspection(data, where=path)
        except ArtifactError as exc:
            raise ArtifactError(
                "not the manifest of an engine, nor a list of its layers with their details",
                where=path,
                hint="edge engine show ENGINE; or a file of trtexec --profilingVerbosity=detailed --exportLayerInfo",
            ) from exc
    return _card(
        title=path.name, path=path, asked=None, manifest=None, layers=None, looked=looked,
        notes=["only the layers are known: no manifest of edge belongs to this file"],
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
    if looked is not None:
        # The build's own warning says more about why nobody could look into it.
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
        short=_short(listed, asked),
        changes=_changes(listed),
        islands=_islands(listed, asked),
        chains=_chains(listed),
        operators=dict(Counter(node.kind for node in nodes).most_common()),
        kinds=dict(Counter(layer.kind for layer in listed).most_common()),
        unseen=[node.name for node in nodes if node.name not in seen] if listed else [],
        notes=list(dict.fromkeys(notes)),
    )


def _short(listed: list[Layer], asked: str | None) -> list[Layer]:
    enough = {"int8": {"int8"}, "fp16": {"fp16", "int8", "bf16"}}.get(asked or "")
    if enough is None:
        return []
    return [layer for layer in listed if layer.role == "weighted" and layer.precision not in enough]


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
    """Runs of reformats, each taking what the one before it made."""
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
            raise ArtifactError("far too large for a list of layers", where=path)
        return path.read_bytes()
    except OSError as exc:
        raise StoreError(f"cannot read: {exc.strerror or exc}", where=path) from exc


def _list(value: Any) -> list[Any]:  # noqa: ANN401
    return value if isinstance(value, list) else []

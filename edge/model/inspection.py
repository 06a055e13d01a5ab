"""The layers of an engine, in words that no backend owns: the network before, the layers after.

A backend fills it in from its own inspector; it is kept as JSON next to the engine, under the engine's manifest.
Unknown is None, never a guess: an inspector that does not say a precision leaves it open.
"""

from __future__ import annotations

import ast
import json
import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from edge.config import OutputKind, OutputOptions
from edge.errors import ArtifactError, ModelError, require
from edge.model import onnx_model
from edge.model.adaption import AdaptedModel, adapt

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto


# Where a picture's pixel values are normalized, and what the network takes: 0..255, 0..1, or values of a mean and std.
PixelRange = Literal["0..255", "0..1", "unknown"]

# Width of a normalized pixel range: 1 for 0..1, 2 for -1..1, 4.4 with ImageNet's std. Outside of this it is no such.
_NARROWEST, _WIDEST = 0.5, 10.0
# Keys of ONNX metadata that hold class names: of Ultralytics ("names"), timm ("label_names") and what else was seen.
_NAME_KEYS = ("names", "label_names", "class_names", "labels", "classes", "categories")
# How edge export writes the preprocessing of a model's weights into the model.
PREPROCESS_KEY = "edge.preprocess"
USUAL_SIZE = 224


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Facts that a model file shows.

    Attributes:
        input: name, type and shape of the input as the file has them.
        height, width: of the input in pixels; ``size_source`` says where they are from.
        batch: the only batch size, or None for a dynamic one.
        classes: number of classes.
        kind: what the output's numbers are.
        changes: how edge adapts the model (see :mod:`edge.model.adapt`).
        pixels: what the input takes, as far as the graph shows it; ``pixels_why`` says what was seen.
        names: class names in the file's metadata, None where there are none.
        preprocess: keys of a profile's ``preprocess`` section in the metadata, as edge export writes them.
        producer: the program that wrote the file.
    """

    input: str
    height: int
    width: int
    size_source: str
    batch: int | None
    classes: int
    kind: OutputKind
    changes: tuple[str, ...]
    pixels: PixelRange
    pixels_why: str
    grey: bool
    names: list[str] | None
    preprocess: dict[str, object] | None
    producer: str


def look(path: Path, options: OutputOptions = OutputOptions()) -> ModelFacts:  # noqa: B008
    """Read a model and say what it shows.

    Raises:
        ModelError: not ONNX, or no classifier.
    """
    raw = onnx_model.read_original(path)
    adapted = adapt(raw, options, where=str(path))
    metadata = {item.key: item.value for item in raw.metadata_props}
    graph = adapted.proto.graph
    taken = next(v for v in graph.input if v.name not in {item.name for item in graph.initializer})
    dims = [d.dim_value if d.HasField("dim_value") else None for d in taken.type.tensor_type.shape.dim]
    classes = graph.output[0].type.tensor_type.shape.dim
    count = classes[1].dim_value if len(classes) == 2 else 0
    if count < 1:
        raise ModelError("the number of classes cannot be read from the model", where=path, hint="export it with fixed "
                         "classes, or simplify it (onnxsim)")  # fmt: skip
    height, width, why = _size(dims[2], dims[3], metadata)
    pixels, pixels_why = _pixels(adapted, metadata)
    return ModelFacts(
        input=onnx_model.describe_input(raw),
        height=height,
        width=width,
        size_source=why,
        batch=dims[0],
        classes=count,
        kind=adapted.kind,
        changes=adapted.changes,
        pixels=pixels,
        pixels_why=pixels_why,
        grey=adapted.grey,
        names=_names(metadata, count),
        preprocess=_preprocess(metadata),
        producer=" ".join(filter(None, (raw.producer_name, raw.producer_version))),
    )


def _size(height: int | None, width: int | None, metadata: dict[str, str]) -> tuple[int, int, str]:
    if height and width:
        return height, width, "the model's input"
    try:
        size = ast.literal_eval(metadata.get("imgsz", ""))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        size = None
    if isinstance(size, int) and size > 0:
        return height or size, width or size, "the model's metadata (imgsz)"
    if isinstance(size, list | tuple) and len(size) == 2 and all(isinstance(one, int) and one > 0 for one in size):
        return height or size[0], width or size[1], "the model's metadata (imgsz)"
    return height or USUAL_SIZE, width or USUAL_SIZE, f"a guess: the model takes any size, {USUAL_SIZE} is usual"


def _names(metadata: dict[str, str], count: int) -> list[str] | None:
    """Class names in the metadata: a Python or JSON list, a mapping of indices to names, or lines."""
    for key in _NAME_KEYS:
        names = _parsed_names(metadata.get(key, ""))
        if names is not None and len(names) == count and all(names):
            return names
    return None


def _parsed_names(text: str) -> list[str] | None:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = text.replace(",", "\n").splitlines() if text else None
    if isinstance(value, dict):
        try:
            by_index = {int(key): str(name) for key, name in value.items()}
        except (TypeError, ValueError):
            return None
        value = (
            [by_index[index] for index in sorted(by_index)] if sorted(by_index) == list(range(len(by_index))) else None
        )
    if not isinstance(value, list | tuple):
        return None
    return [" ".join(str(name).split()) for name in value]


def _preprocess(metadata: dict[str, str]) -> dict[str, object] | None:
    try:
        value = json.loads(metadata.get(PREPROCESS_KEY, "null"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _pixels(adapted: AdaptedModel, metadata: dict[str, str]) -> tuple[PixelRange, str]:
    if adapted.raw_pixels:
        return "0..255", "the input is uint8"
    factor, seen = _affine(adapted.proto)
    if seen:
        if _NARROWEST <= factor * 255 <= _WIDEST:
            return "0..255", f"the graph normalizes its input itself ({seen})"
        if _NARROWEST <= factor <= _WIDEST:
            return "0..1", f"the graph normalizes its input itself ({seen})"
    if "ultralytics" in metadata.get("author", "").lower() or "Ultralytics" in metadata.get("description", ""):
        return "0..1", "Ultralytics trains on 0..1"
    return "unknown", "nothing in the graph normalizes the input"


def _affine(proto: ModelProto) -> tuple[float, str]:
    """The factor that the first nodes multiply the input by, and what they are; an empty text where there are none."""
    graph = proto.graph
    users: dict[str, list[int]] = {}
    for at, node in enumerate(graph.node):
        for name in node.input:
            users.setdefault(name, []).append(at)
    constant = {item.name for item in graph.initializer}
    tensor = next(value.name for value in graph.input if value.name not in constant)
    factor, seen = 1.0, []
    while len(users.get(tensor, [])) == 1:
        node = graph.node[users[tensor][0]]
        if node.op_type in {"Sub", "Add", "Mul", "Div"}:
            values = _constant(graph, node.input[1] if node.input[0] == tensor else node.input[0])
            if values is None or (node.op_type in {"Sub", "Div"} and node.input[0] != tensor):
                break
            mean = sum(abs(value) for value in values) / max(len(values), 1)
            factor *= mean if node.op_type == "Mul" else 1 / mean if node.op_type == "Div" and mean else 1
        elif node.op_type == "BatchNormalization":
            scale, variance = (_constant(graph, node.input[at]) for at in (1, 4))
            if not scale or not variance:
                break
            factor *= sum(abs(s) / (v + 1e-5) ** 0.5 for s, v in zip(scale, variance, strict=True)) / len(scale)
        elif node.op_type not in {"Cast", "Identity", "Transpose"}:
            break
        if node.op_type not in {"Cast", "Identity", "Transpose"}:
            seen.append(node.op_type)
        tensor = node.output[0]
    return factor, ", ".join(seen)


def _constant(graph: GraphProto, name: str) -> list[float] | None:
    """Values of a small constant; None where it is none."""
    helper = require("onnx").numpy_helper
    for item in graph.initializer:
        if item.name == name:
            return [float(value) for value in helper.to_array(item).ravel()[:4096]]
    for node in graph.node:
        if node.op_type == "Constant" and node.output[0] == name:
            for attribute in node.attribute:
                if attribute.name == "value":
                    return [float(value) for value in helper.to_array(attribute.t).ravel()[:4096]]
                if attribute.name == "value_float":
                    return [attribute.f]
    return None


FORMAT = 1
# ONNX operators that multiply by weights.
WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# What the file is called next to `<name>.plan` or `<name>.onnx`.
SUFFIX = ".layers.json"
# What the backend's own inspector said, for other tools and for questions that nobody thought of.
RAW_SUFFIX = ".inspector.json"
# weighted   convolution or matrix product with weights
# reformat   changes layout or data type of a tensor, computes nothing
# opaque     several layers in one, which nobody can look into (TensorRT's ForeignNode, a DLA's share)
# free       takes no time: a view of the same memory
# other      the rest
Role = Literal["weighted", "reformat", "opaque", "free", "other"]


# Bits of an element by precision.
BITS = {
    "fp32": 32, "int32": 32, "fp16": 16, "bf16": 16, "int8": 8, "uint8": 8, "fp8": 8, "int64": 64, "int4": 4, "fp4": 4,
    "bool": 8,
}  # fmt: skip


class LayerTensor(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A tensor at a layer. ``precision`` is int8, fp16, fp32, … ; ``layout`` is in the backend's own words."""

    name: str
    precision: str | None = None
    layout: str | None = None
    shape: tuple[int | str, ...] | None = None


class Port(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An input or output of the engine."""

    name: str
    mode: Literal["input", "output"]
    precision: str | None = None
    shape: tuple[int | str, ...] | None = None


class Node(msgspec.Struct, frozen=True):
    """A node of the ONNX graph, before anything was optimized.

    ``asked`` is the precision that the recipe asks for, where it does: int8, or fp16 or fp32 for a layer kept in float.
    """

    name: str
    kind: str
    weighted: bool
    asked: str | None = None


class PrecisionResult(msgspec.Struct, frozen=True, kw_only=True):
    """A weighted node: the precision that was asked for, and the one that its layer runs in (None where unknown)."""

    node: str
    kind: str
    asked: str
    runs_in: str | None

    @property
    def is_met(self) -> bool | None:
        """True where it runs as asked; another float precision does for a layer kept in float. None where unknown."""
        if self.runs_in is None:
            return None
        return (self.runs_in in {"int8", "uint8"}) == (self.asked == "int8")


class Layer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A layer of the engine.

    ``precision`` is the one that it computes in. ``nodes`` are the ONNX nodes that were fused into it.
    ``weights_bytes`` is what its weights and biases take. ``why`` says why a weighted layer is not in the precision
    that was asked for.
    """

    name: str
    kind: str
    role: Role
    precision: str | None = None
    inputs: list[LayerTensor] = []
    outputs: list[LayerTensor] = []
    nodes: list[str] = []
    weights_bytes: int | None = None
    tactic: str | None = None
    why: str | None = None


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """``weighted`` maps a precision to its number of weighted layers; unknown precisions are under ``?``.

    ``weights_bytes`` is None where no layer says what its weights take.
    """

    layers: int
    weighted: dict[str, int]
    reformats: int
    opaque: int
    fused: int
    weights_bytes: int | None


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """``source`` says who looked. ``nodes`` are before optimization, ``layers`` after it.

    ``absent`` says why there are no layers, where there are none.
    """

    format: int
    source: str
    nodes: list[Node]
    layers: list[Layer]
    ports: list[Port]
    notes: list[str] = []
    absent: str | None = None

    def results(self) -> list[PrecisionResult]:
        """Asked and actual precision of each weighted node for which one was asked."""
        made: dict[str, str | None] = {}
        for layer in self.layers:
            if layer.role == "weighted":
                made.update(dict.fromkeys(layer.nodes, layer.precision))
                made.setdefault(layer.name, layer.precision)
        return [
            PrecisionResult(node=node.name, kind=node.kind, asked=node.asked, runs_in=made.get(node.name))
            for node in self.nodes
            if node.weighted and node.asked is not None
        ]

    def activation_bytes(self) -> int | None:
        """Bytes of all tensors between layers, for a batch of one; None where shapes or types are not known."""
        found = {tensor.name: tensor for layer in self.layers for tensor in layer.outputs if tensor.shape}
        sizes = [
            math.prod(size for size in tensor.shape or () if isinstance(size, int) and size > 0)
            * BITS.get(tensor.precision or "", 0)
            // 8
            for tensor in found.values()
        ]
        return sum(sizes) or None

    def counts(self) -> Counts:
        """The layers, counted."""
        weighted = Counter(layer.precision or "?" for layer in self.layers if layer.role == "weighted")
        sizes = [layer.weights_bytes for layer in self.layers if layer.weights_bytes is not None]
        return Counts(
            layers=len(self.layers),
            weighted=dict(sorted(weighted.items())),
            reformats=sum(layer.role == "reformat" for layer in self.layers),
            opaque=sum(layer.role == "opaque" for layer in self.layers),
            fused=sum(len(layer.nodes) > 1 for layer in self.layers),
            weights_bytes=sum(sizes) if sizes else None,
        )


def nodes(proto: Any) -> list[Node]:  # noqa: ANN401 - an onnx.ModelProto; onnx itself is not needed to read it
    """The nodes of an ONNX graph that depend on its input; those that only prepare constants are left out."""
    graph = proto.graph
    # Weights may come through Q/DQ: whatever follows from constants alone is constant.
    constant = {item.name for item in graph.initializer}
    found = []
    for node in graph.node:
        if all(name in constant for name in node.input if name):
            constant.update(node.output)
            continue
        weighted = node.op_type in WEIGHTED and len(node.input) > 1 and node.input[1] in constant
        found.append(Node(node.name or next(iter(node.output), ""), node.op_type, weighted))
    return found


def encode_inspection(inspection: Inspection) -> bytes:
    """The file's content: one JSON object, indented."""
    return msgspec.json.format(msgspec.json.encode(inspection), indent=1) + b"\n"


def decode_inspection(data: bytes, *, where: Path) -> Inspection:
    """Read what :func:`encode` wrote.

    Raises:
        ArtifactError: not JSON, of another format, or not an inspection.
    """
    try:
        reported = msgspec.json.decode(data, type=_Head)
        if reported.format != FORMAT:
            raise ArtifactError(
                f"layers in format {reported.format}; this edge reads {FORMAT}", where=where, hint=_AGAIN
            )
        return msgspec.json.decode(data, type=Inspection)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ArtifactError(f"not the layers of an engine: {exc}", where=where, hint=_AGAIN) from exc


class _Head(msgspec.Struct, frozen=True):
    format: int


_AGAIN = "edge build --force"

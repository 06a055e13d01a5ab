"""Facts that an ONNX file shows of itself, for ``edge init``: input size, classes, their names, pixel range."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from edge.config import OutputKind, OutputOptions
from edge.errors import ModelError, require
from edge.model import onnx_model
from edge.model.adaption import AdaptedModel, adapt

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto


# Where the pixel values are normalized, and the range of the network's input: 0..255, 0..1, or by a mean and std.
PixelRange = Literal["0..255", "0..1", "unknown"]

# Width of a normalized pixel range: 1 for 0..1, 2 for -1..1, 4.4 with ImageNet's std. Outside of this it is no such.
_NARROWEST, _WIDEST = 0.5, 10.0
# Keys of ONNX metadata with class names: of Ultralytics ("names"), timm ("label_names") and others.
_NAME_KEYS = ("names", "label_names", "class_names", "labels", "classes", "categories")
# How edge export writes the preprocessing of a model's weights into the model.
PREPROCESS_KEY = "edge.preprocess"
USUAL_SIZE = 224


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Facts found in a model file.

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
    """Read a model and return the facts that it contains.

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
    """Parse the class names in the metadata: a Python or JSON list, a mapping of indices to names, or lines."""
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
    """Return the factor by which the first nodes scale the input, and their names; empty if there are none."""
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
    """Return the values of a small constant; None for any other tensor."""
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

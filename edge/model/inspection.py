"""Describe a model file, and the layers of an engine in backend-independent terms: ONNX nodes and engine layers.

A backend fills in the description from its own inspector; it is stored as JSON next to the engine, under the engine's
manifest. Unknown is None, never a guess: if the inspector does not report a precision, it is left open.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import msgspec

from edge.errors import ArtifactError

FORMAT = 1
# ONNX operators that multiply by weights.
WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# Name suffix of the file next to `<name>.plan` or `<name>.onnx`.
SUFFIX = ".layers.json"
# Raw output of the backend's own inspector, for other tools.
RAW_SUFFIX = ".inspector.json"
# weighted   convolution or matrix product with weights
# reformat   changes layout or data type of a tensor, computes nothing
# opaque     several layers in one, which cannot be inspected (TensorRT's ForeignNode, a DLA's share)
# free       no computation: a view of the same memory
# other      the rest
Role = Literal["weighted", "reformat", "opaque", "free", "other"]


# Bits of an element by precision.
BITS = {
    "fp32": 32, "int32": 32, "fp16": 16, "bf16": 16, "int8": 8, "uint8": 8, "fp8": 8, "int64": 64, "int4": 4, "fp4": 4,
    "bool": 8,
}  # fmt: skip


class LayerTensor(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A tensor of a layer. ``precision`` is int8, fp16, fp32, … ; ``layout`` is the backend's own term."""

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
    """A node of the ONNX graph before optimization.

    ``asked`` is the precision that the recipe requests, if any: int8, or fp16 or fp32 for a layer kept in float.
    """

    name: str
    kind: str
    weighted: bool
    asked: str | None = None


class PrecisionResult(msgspec.Struct, frozen=True, kw_only=True):
    """A weighted node: the requested precision, and the one in which its layer runs (None if unknown)."""

    node: str
    kind: str
    asked: str
    runs_in: str | None

    @property
    def is_met(self) -> bool | None:
        """True if it runs as requested; for a layer kept in float any float precision does. None if unknown."""
        if self.runs_in is None:
            return None
        return (self.runs_in in {"int8", "uint8"}) == (self.asked == "int8")


class Layer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A layer of the engine.

    ``precision`` is that of its computation. ``nodes`` are the ONNX nodes that were fused into it. ``weights_bytes`` is
    the size of its weights and biases. ``why`` is the reason if a weighted layer does not have the requested precision.
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
    """Counts of layers. ``weighted`` maps a precision to its number of weighted layers; ``?`` stands for unknown.

    ``weights_bytes`` is None if no layer reports the size of its weights.
    """

    layers: int
    weighted: dict[str, int]
    reformats: int
    opaque: int
    fused: int
    weights_bytes: int | None


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """Nodes before optimization and layers after it; ``source`` names the inspector.

    ``absent`` gives the reason if there are no layers.
    """

    format: int
    source: str
    nodes: list[Node]
    layers: list[Layer]
    ports: list[Port]
    notes: list[str] = []
    absent: str | None = None

    def results(self) -> list[PrecisionResult]:
        """Requested and actual precision of each weighted node with a request."""
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
        """Counts of the layers."""
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
    """Return the nodes of an ONNX graph that depend on its input, without those that only prepare constants."""
    graph = proto.graph
    # Weights may pass through Q/DQ: anything computed from constants alone is constant.
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
    """Encode the inspection as one indented JSON object."""
    return msgspec.json.format(msgspec.json.encode(inspection), indent=1) + b"\n"


def decode_inspection(data: bytes, *, where: Path) -> Inspection:
    """Decode the output of :func:`encode_inspection`.

    Raises:
        ArtifactError: the data is not JSON, has another format, or is not an inspection.
    """
    try:
        reported = msgspec.json.decode(data, type=_Head)
        if reported.format != FORMAT:
            raise ArtifactError(
                f"layers in format {reported.format}; this edge reads format {FORMAT}", where=where, hint=_AGAIN
            )
        return msgspec.json.decode(data, type=Inspection)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ArtifactError(f"not a list of an engine's layers: {exc}", where=where, hint=_AGAIN) from exc


class _Head(msgspec.Struct, frozen=True):
    format: int


_AGAIN = "edge build --force"

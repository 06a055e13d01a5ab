"""The layers of an engine, from TensorRT's engine inspector (JSON, DETAILED), and how many of them run in INT8.

Fields are found by name, never by version. Fields that are not known are named in the notes, and kept in the raw file.
Known forms, which the description names:

======== ============================================================================================================
8.2-8.6  seen (a real ResNet-50): ``Format/Datatype`` is one phrase, ``Weights``/``ConvWeights`` have type and count,
         ``Bindings`` are names, ``Metadata`` has the ONNX nodes between 0x1e
10       by files of others: Myelin's kernels are layers of their own (``kgen``, ``gemm``, ``correlation``: a
         convolution) without weights, their ``Format/Datatype`` is a word or "N/A due to dynamic shapes", nodes are
         between 0x1f or follow each other
11       by NVIDIA's migration page: a format and a data type apart, ``I/O Tensors`` are objects
======== ============================================================================================================
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

from edge.backends.interface import Layers
from edge.config import Precision
from edge.model import Inspection, Layer, LayerTensor, Node, Port, Role, inspection

_WEIGHTED = re.compile(r"Conv|Correlation|Gemm|MatMul|MatrixMultiply|Fully ?Connected", re.IGNORECASE)
# Fields of public examples, read here or not: a ResNet-50 of 8.6, NVIDIA's documentation, pytorch/pytorch#66683. A
# layer that is fused with its pooling has them with "Conv" and "Pooling" in front.
_KNOWN = frozenset(
    {
        "Name", "LayerType", "ParameterType", "ParameterSubType", "Inputs", "Outputs", "Metadata", "Origin",
        "Precision", "TacticName", "TacticValue", "StreamId", "EventId", "Kernel", "PaddingMode", "PrePadding",
        "PostPadding", "Stride", "Dilation", "OutMaps", "Groups", "Weights", "Bias", "AllowSparse",
        "HasSparseWeights", "HasDynamicFilter", "HasDynamicBias", "HasResidual", "XAsActInputIdx",
        "ConvXAsActInputIdx", "BiasAsActInputIdx", "ResAsActInputIdx", "Activation", "HasBias", "HasReLU", "Type",
        "PoolingType", "WindowSize", "BlendFactor", "AverageCountExcludesPadding", "Axes", "HasLog", "NbInputArgs",
        "InputArgs", "NbOutputVars", "OutputVars", "NbParams", "Params", "NbLiterals", "Literals", "NbOperations",
        "Operations",
    }
)  # fmt: skip
_MOST_FIELDS = 8
_HIDING = frozenset({"Myelin", "DLA"})
# A Myelin kernel whose name shows that it only moves data: __myl_Move_myl3_0, __myl_CastTran_...
_MOVING = re.compile(r"^__my(?:l|e)_(?:Move|Cast|Tran|Resh)+(?:_|$)")
_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=\[ONNX Layer: |[\x1e\x1f]|\s*$)", re.DOTALL)
# Order matters: "bfloat16" holds "float16", "uint8" holds "int8".
_PRECISIONS = tuple(
    (re.compile(pattern, re.IGNORECASE), word)
    for pattern, word in (
        (r"uint8", "uint8"),
        (r"int8|\bi8\b", "int8"),
        (r"bf16|bfloat", "bf16"),
        (r"fp8|float8|e4m3|e5m2", "fp8"),
        (r"fp4|float4|e2m1", "fp4"),
        (r"int4", "int4"),
        (r"fp16|half|float16", "fp16"),
        (r"int64", "int64"),
        (r"int32", "int32"),
        (r"bool", "bool"),
        (r"fp32|float", "fp32"),
    )
)


def read(
    text: str,
    *,
    source: str,
    nodes: Sequence[Node] = (),
    unscaled: Collection[str] = (),
) -> Inspection | None:
    """Describe an engine from the inspector's JSON; return None if it is not JSON or only lists layer names.

    Args:
        text: the output of get_engine_information or ``trtexec --exportLayerInfo``.
        source: the inspector: product and version.
        nodes: the nodes of the ONNX graph.
        unscaled: tensors to be quantized that have no scale.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    listed = content.get("Layers") if isinstance(content, dict) else None
    if not isinstance(listed, list) or not all(isinstance(item, dict) for item in listed):
        return None
    reader = _Reader(nodes, listed)
    layers = [reader.layer(item, unscaled) for item in listed]
    return Inspection(
        format=inspection.FORMAT,
        source=f"{source}, in {_form(content, listed)}",
        nodes=list(nodes),
        layers=layers,
        ports=list(_ports(content, layers)),
        notes=_unknown_fields(listed),
    )


def _form(content: dict[str, Any], listed: list[dict[str, Any]]) -> str:
    """Name the form of a list of layers by its fields and words."""
    tensors = [
        tensor
        for item in listed
        for side in ("Inputs", "Outputs")
        for tensor in (item[side] if isinstance(item.get(side), list) else [])
        if isinstance(tensor, dict)
    ]
    if "I/O Tensors" in content or any(name.lower() == "datatype" for tensor in tensors for name in tensor):
        return "the form of TensorRT 11"
    words = [str(tensor["Format/Datatype"]) for tensor in tensors if "Format/Datatype" in tensor]
    kinds = {str(item.get("LayerType")) for item in listed}
    if kinds & {"kgen", "gemm", "correlation"} or any(" " not in word or word.startswith("N/A") for word in words):
        return "the form of TensorRT 10"
    return "the form of TensorRT 8" if words else "a form that this edge does not know"


def _unknown_fields(listed: list[dict[str, Any]]) -> list[str]:
    """Return a note on the fields of layers that are not known here, with the number of layers that have them."""
    found = Counter(
        name for item in listed for name in item if name.removeprefix("Conv").removeprefix("Pooling") not in _KNOWN
    )
    if not found:
        return []
    some = ", ".join(f"{name} ({count})" for name, count in found.most_common(_MOST_FIELDS))
    more = f" and {len(found) - _MOST_FIELDS} more" if len(found) > _MOST_FIELDS else ""
    return [f"the list of layers has fields that this edge does not know: {some}{more}; they are in the raw list"]


def absent(why: str, *, source: str, nodes: Sequence[Node]) -> Inspection:
    """Describe an engine that could not be inspected here: the ONNX nodes, and the reason."""
    return Inspection(format=inspection.FORMAT, source=source, nodes=list(nodes), layers=[], ports=[], absent=why)


class _Reader:
    """Reads layer by layer, with information that needs all of them."""

    def __init__(self, nodes: Sequence[Node], listed: list[dict[str, Any]]) -> None:
        self._known = {node.name for node in nodes}
        self._weighted = {node.name for node in nodes if node.weighted}
        # Layers named after what they compute: others may name the same node for moving its data.
        self._claimed = {name for item in listed if _computes_weighted(item) for name in self._nodes(item)}

    def layer(self, item: dict[str, Any], unscaled: Collection[str]) -> Layer:
        fused = self._nodes(item)
        role = self._role(item, fused)
        inputs, outputs = _tensors(item.get("Inputs")), _tensors(item.get("Outputs"))
        precision = None if role in {"reformat", "opaque"} else _precision(item, inputs)
        lost = [tensor.name for tensor in (*inputs, *outputs) if tensor.name in unscaled]
        is_short = role == "weighted" and precision != "int8" and lost
        return Layer(
            name=str(item.get("Name") or ""),
            kind=_kind(item),
            role=role,
            precision=precision,
            inputs=inputs,
            outputs=outputs,
            nodes=fused,
            weights_bytes=_weights_bytes(item),
            tactic=_tactic(item),
            why=f"no scale for {lost[0]}" if is_short else None,
        )

    def _role(self, item: dict[str, Any], fused: list[str]) -> Role:
        name, kind = str(item.get("Name", "")), str(item.get("LayerType", ""))
        if "ForeignNode" in name or kind in _HIDING:
            return "opaque"
        if kind == "NoOp":
            return "free"
        is_reformat = "Reformat" in f"{kind} {item.get('ParameterType', '')}" or item.get("Origin") == "REFORMAT"
        if is_reformat or _MOVING.match(name):
            return "reformat"
        if _computes_weighted(item):
            return "weighted"
        mine = self._weighted.intersection(fused)
        return "weighted" if mine - self._claimed else "other"

    def _nodes(self, item: dict[str, Any]) -> list[str]:
        found = _NODE.findall(str(item.get("Metadata") or ""))
        if not found:
            # The name of a fused layer is made of the names of its nodes: "/conv/Conv + PWN(/relu/Relu)".
            words = re.split(r" \+ | \|\| |, ", str(item.get("Name", "")))
            bare = [re.sub(r"^(?:PWN\()+|\)+$", "", word).strip() for word in words]
            found = [word for word in bare if word in self._known]
        return list(dict.fromkeys(found))


def _computes_weighted(item: dict[str, Any]) -> bool:
    # Copies and reshapes have the name of the layer they serve, so only the kind is relevant.
    kinds = f"{item.get('ParameterType', '')} {item.get('LayerType', '')}"
    return bool(_WEIGHTED.search(kinds)) and "Reformat" not in kinds


def _kind(item: dict[str, Any]) -> str:
    return str(item.get("ParameterType") or item.get("LayerType") or "unknown")


def _tactic(item: dict[str, Any]) -> str | None:
    reported = item.get("TacticName") or item.get("TacticValue")
    return str(reported) if reported and reported != "0x0000000000000000" else None


def _precision(item: dict[str, Any], inputs: list[LayerTensor]) -> str | None:
    """Return the precision in which a layer computes: that of its weights, else its own, else its first input's."""
    weights = next((value for key, value in item.items() if key.endswith("Weights") and isinstance(value, dict)), {})
    for reported in (weights.get("Type"), item.get("Precision")):
        word = _word(reported)
        if word is not None:
            return word
    return inputs[0].precision if inputs else None


def _weights_bytes(item: dict[str, Any]) -> int | None:
    sizes = []
    for key, value in item.items():
        if key.endswith(("Weights", "Bias")) and isinstance(value, dict):
            bits, count = inspection.BITS.get(_word(value.get("Type")) or ""), value.get("Count")
            if bits is not None and isinstance(count, int) and count > 0:
                sizes.append(count * bits // 8)
    return sum(sizes) if sizes else None


def _tensors(listed: Any) -> list[LayerTensor]:  # noqa: ANN401
    found = listed if isinstance(listed, list) else []
    return [_tensor(item) for item in found if isinstance(item, dict)]


def _tensor(item: dict[str, Any]) -> LayerTensor:
    reported = {name.lower().replace(" ", ""): str(value) for name, value in item.items()}
    datatype = next((value for name, value in reported.items() if name.endswith("datatype")), "")
    # In the old form one phrase has both, if it has more than one word.
    layout = reported.get("format") or (datatype if " " in datatype else None)
    return LayerTensor(
        name=str(item.get("Name") or ""),
        precision=_word(datatype) or _word(layout),
        layout=layout,
        shape=_shape(item.get("Dimensions")),
    )


def _ports(content: dict[str, Any], layers: list[Layer]) -> Iterator[Port]:
    made = {tensor.name: tensor for layer in layers for tensor in layer.outputs}
    used = {tensor.name: tensor for layer in layers for tensor in layer.inputs}
    for key in ("I/O Tensors", "Bindings"):
        listed = content.get(key)
        for item in listed if isinstance(listed, list) else []:
            if isinstance(item, dict):
                tensor = _tensor(item)
                is_input = str(item.get("IOMode", "")).lower() == "input"
            else:
                tensor = made.get(str(item)) or used.get(str(item)) or LayerTensor(name=str(item))
                is_input = str(item) not in made
            yield Port(
                name=tensor.name, mode="input" if is_input else "output", precision=tensor.precision,
                shape=tensor.shape,
            )  # fmt: skip


def _word(reported: object) -> str | None:
    """Return a data type as one word, from any of TensorRT's names for it."""
    text = str(reported or "")
    return next((word for pattern, word in _PRECISIONS if pattern.search(text)), None)


def _shape(reported: object) -> tuple[int | str, ...] | None:
    if not isinstance(reported, list):
        return None
    return tuple(size if isinstance(size, int) else str(size) for size in reported)


class LayerCount(NamedTuple):
    """``layers`` by precision; ``hidden`` of them are in fused layers, so that their precision is not known."""

    layers: Layers
    hidden: int


def count_layers(described: Inspection, precision: Precision, *, weighted: int, on_dla: int) -> LayerCount:
    """Count the INT8 and FP16 layers of an engine by its inspector.

    Layers that the engine hides (fused by TensorRT's second compiler) are not claimed to be INT8 or FP16, except those
    on a DLA, which runs one precision only.

    Args:
        described: the layers that the inspector lists.
        precision: the precision that was asked for.
        weighted: number of layers with weights in the network before the build.
        on_dla: how many of them the DLA runs.
    """
    counts = described.counts()
    unknown, listed = counts.weighted.get("?", 0), sum(counts.weighted.values())
    missing = max(weighted - listed, 0) if counts.opaque else 0
    on_dla = min(missing, on_dla)
    layers = Layers(
        weighted=listed + missing,
        weighted_int8=counts.weighted.get("int8", 0) + (on_dla if precision == "int8" else 0),
        weighted_fp16=counts.weighted.get("fp16", 0) + (on_dla if precision == "fp16" else 0),
        weighted_unknown=unknown + missing - on_dla,
        by_type=dict(sorted(Counter(layer.kind for layer in described.layers).items())),
    )
    return LayerCount(layers, missing - on_dla)

"""What precision the layers of an engine run in, from TensorRT's engine inspector (JSON, DETAILED).

Written for the inspector of 8.6 (a real ResNet-50 was read), and for 10 and 11 by NVIDIA's description of what changed:
one ``Format/Datatype`` became a format and a data type of its own. Fields are looked for by name, never by version.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import msgspec

from edge.backends.base import Layers

_WEIGHTED = re.compile(r"Conv|Gemm|MatMul|MatrixMultiply|FullyConnected|Fully ?Connected", re.IGNORECASE)
_INT8 = re.compile(r"int8|\bi8\b", re.IGNORECASE)
_HIDING = frozenset({"Myelin", "DLA"})
_HALF = re.compile(r"fp16|half|float16", re.IGNORECASE)


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """Layers of an engine: see :class:`edge.backends.base.Layers`; ``weighted_fp16`` and ``opaque`` besides.

    ``opaque`` layers are fused by TensorRT's second compiler (Myelin) or go to the DLA in one piece, as a ForeignNode:
    nobody says what runs inside.
    """

    weighted: int
    weighted_int8: int
    weighted_fp16: int
    opaque: int
    by_type: dict[str, int]

    @property
    def layers(self) -> Layers:
        """The part that every backend has."""
        return Layers(weighted=self.weighted, weighted_int8=self.weighted_int8, by_type=self.by_type)


def count(inspection: str) -> Counts | None:
    """Counts from the inspector's JSON; None where it is not JSON or lists layers by name only."""
    try:
        content = json.loads(inspection)
    except ValueError:
        return None
    listed = content.get("Layers") if isinstance(content, dict) else None
    if not isinstance(listed, list) or not all(isinstance(layer, dict) for layer in listed):
        return None
    weighted = int8 = half = opaque = 0
    kinds: Counter[str] = Counter()
    for layer in listed:
        kind = str(layer.get("ParameterType") or layer.get("LayerType") or "unknown")
        kinds[kind] += 1
        if "ForeignNode" in str(layer.get("Name", "")) or str(layer.get("LayerType", "")) in _HIDING:
            opaque += 1
        if not _is_weighted(layer):
            continue
        weighted += 1
        runs_in = _precision(layer)
        int8 += runs_in == "int8"
        half += runs_in == "fp16"
    return Counts(
        weighted=weighted, weighted_int8=int8, weighted_fp16=half, opaque=opaque, by_type=dict(sorted(kinds.items()))
    )


def _is_weighted(layer: dict[str, Any]) -> bool:
    # Copies and reshapes carry the name of the layer they serve, so only the kind counts.
    kinds = f"{layer.get('ParameterType', '')} {layer.get('LayerType', '')}"
    return bool(_WEIGHTED.search(kinds)) and "Reformat" not in kinds


def _precision(layer: dict[str, Any]) -> str:
    """Precision of a weighted layer: that of its weights, else that of its first input."""
    weights = layer.get("Weights") or layer.get("ConvWeights")
    said = str(weights.get("Type", "")) if isinstance(weights, dict) else ""
    if not said:
        said = next((_datatype(item) for item in layer.get("Inputs") or [] if isinstance(item, dict)), "")
    if _INT8.search(said):
        return "int8"
    return "fp16" if _HALF.search(said) else "fp32"


def _datatype(tensor: dict[str, Any]) -> str:
    for name, value in tensor.items():
        if "datatype" in name.lower().replace(" ", ""):
            return str(value)
    return ""

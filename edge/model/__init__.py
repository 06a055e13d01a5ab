"""The ONNX classifier: loading, checks, fingerprint, preprocessing, and descriptions of its layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge import lazy_exports

if TYPE_CHECKING:
    from edge.model.adaption import AdaptedModel, adapt
    from edge.model.folding import MIN_OPSET, fold, has_qdq, opset_of
    from edge.model.graph import WEIGHTED, GraphIndex, WeightedLayer, attributes, remove_unused, weighted_layers
    from edge.model.inspection import (
        RAW_SUFFIX,
        SUFFIX,
        Counts,
        Inspection,
        Layer,
        LayerTensor,
        Node,
        Port,
        PrecisionResult,
        Role,
        decode_inspection,
    )
    from edge.model.model_facts import ModelFacts
    from edge.model.onnx_model import Model, external_locations
    from edge.model.preprocessing import AxisTable, Box, Preprocessor, placed, tables, use_one_thread
    from edge.model.torch_export import ExportedModel
else:
    __getattr__ = lazy_exports(
        __name__,
        {
            "adaption": ["AdaptedModel", "adapt"],
            "folding": ["MIN_OPSET", "fold", "has_qdq", "opset_of"],
            "graph": ["GraphIndex", "WEIGHTED", "WeightedLayer", "attributes", "remove_unused", "weighted_layers"],
            "inspection": [
                "Counts",
                "Inspection",
                "Layer",
                "LayerTensor",
                "Node",
                "Port",
                "PrecisionResult",
                "RAW_SUFFIX",
                "Role",
                "SUFFIX",
                "decode_inspection",
            ],
            "model_facts": ["ModelFacts"],
            "onnx_model": ["Model", "external_locations"],
            "preprocessing": ["AxisTable", "Box", "Preprocessor", "placed", "tables", "use_one_thread"],
            "torch_export": ["ExportedModel"],
        },
    )

__all__ = [
    "MIN_OPSET",
    "RAW_SUFFIX",
    "SUFFIX",
    "WEIGHTED",
    "AdaptedModel",
    "AxisTable",
    "Box",
    "Counts",
    "ExportedModel",
    "GraphIndex",
    "Inspection",
    "Layer",
    "LayerTensor",
    "Model",
    "ModelFacts",
    "Node",
    "Port",
    "PrecisionResult",
    "Preprocessor",
    "Role",
    "WeightedLayer",
    "adapt",
    "attributes",
    "decode_inspection",
    "external_locations",
    "fold",
    "has_qdq",
    "inspection",
    "model_facts",
    "onnx_model",
    "opset_of",
    "placed",
    "preprocessing",
    "remove_unused",
    "tables",
    "torch_export",
    "use_one_thread",
    "weighted_layers",
]

"""The ONNX classifier: loading, checks, fingerprint; preprocessing; descriptions of its layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge import lazy_exports

if TYPE_CHECKING:
    from edge.model.adaption import AdaptedModel, adapt
    from edge.model.inspection import (
        RAW_SUFFIX,
        SUFFIX,
        Counts,
        Inspection,
        Layer,
        LayerTensor,
        Node,
        Port,
        Role,
        decode_inspection,
    )
    from edge.model.onnx_model import Model
    from edge.model.preprocessing import Box, Preprocessor, placed, region, use_one_thread
else:
    __getattr__ = lazy_exports(
        __name__,
        {
            "adaption": ["AdaptedModel", "adapt"],
            "inspection": [
                "Counts",
                "Inspection",
                "Layer",
                "LayerTensor",
                "Node",
                "Port",
                "RAW_SUFFIX",
                "Role",
                "SUFFIX",
                "decode_inspection",
            ],
            "onnx_model": ["Model"],
            "preprocessing": ["Box", "Preprocessor", "placed", "region", "use_one_thread"],
        },
    )

__all__ = [
    "RAW_SUFFIX",
    "SUFFIX",
    "AdaptedModel",
    "Box",
    "Counts",
    "Inspection",
    "Layer",
    "LayerTensor",
    "Model",
    "Node",
    "Port",
    "Preprocessor",
    "Role",
    "adapt",
    "decode_inspection",
    "inspection",
    "onnx_model",
    "placed",
    "preprocessing",
    "region",
    "use_one_thread",
]

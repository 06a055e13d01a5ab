"""Quantization as pure data: statistics, algorithms, calibration tables and formats, Q/DQ insertion, rounding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge import lazy_exports

# Raised when the same model and table give another Q/DQ network: engines of before are built again. Here, because a run
# compares it and needs nothing else of the modules that make the network.
DEFINITION: int = 3

if TYPE_CHECKING:
    from edge.quantization.algorithms import Algorithm
    from edge.quantization.calibration_table import LEVELS, AlgorithmName, Table, TrtVersion
    from edge.quantization.migration import migrated_name, migration_candidates, migration_of
    from edge.quantization.prepare import apply, table_ranges
    from edge.quantization.qdq import QdqResult, insert
    from edge.quantization.recipe import (
        Attention,
        BiasCorrection,
        FloatLayer,
        Migration,
        Recipe,
        Residual,
        Shift,
        Step,
        Vector,
        decode_recipe,
        encode_recipe,
        float_layers_of,
        float_only_tensors,
        match_layers,
    )
    from edge.quantization.rounding import bias_correction, on_levels
    from edge.quantization.shift import ShiftMode, shift_candidates, shift_of
    from edge.quantization.statistics import BINS, FORMAT, MAX_EXPONENT, Statistics, TensorStatistics, exponent_of
    from edge.quantization.table_check import Route, TableComparison, TableFinding
else:
    __getattr__ = lazy_exports(
        __name__,
        {
            "algorithms": ["Algorithm"],
            "calibration_table": ["AlgorithmName", "LEVELS", "Table", "TrtVersion"],
            "migration": ["migrated_name", "migration_candidates", "migration_of"],
            "prepare": ["apply", "table_ranges"],
            "qdq": ["QdqResult", "insert"],
            "recipe": [
                "Attention",
                "BiasCorrection",
                "FloatLayer",
                "Migration",
                "Recipe",
                "Residual",
                "Shift",
                "Step",
                "Vector",
                "decode_recipe",
                "encode_recipe",
                "float_layers_of",
                "float_only_tensors",
                "match_layers",
            ],
            "rounding": ["bias_correction", "on_levels"],
            "shift": ["ShiftMode", "shift_candidates", "shift_of"],
            "statistics": ["BINS", "FORMAT", "MAX_EXPONENT", "Statistics", "TensorStatistics", "exponent_of"],
            "table_check": ["Route", "TableComparison", "TableFinding"],
        },
    )

__all__ = [
    "BINS",
    "DEFINITION",
    "FORMAT",
    "LEVELS",
    "MAX_EXPONENT",
    "Algorithm",
    "AlgorithmName",
    "Attention",
    "BiasCorrection",
    "FloatLayer",
    "Migration",
    "QdqResult",
    "Recipe",
    "Residual",
    "Route",
    "Shift",
    "ShiftMode",
    "Statistics",
    "Step",
    "Table",
    "TableComparison",
    "TableFinding",
    "TensorStatistics",
    "TrtVersion",
    "Vector",
    "algorithms",
    "apply",
    "bias_correction",
    "calibration_table",
    "decode_recipe",
    "encode_recipe",
    "exponent_of",
    "float_layers_of",
    "float_only_tensors",
    "insert",
    "match_layers",
    "migrated_name",
    "migration_candidates",
    "migration_of",
    "on_levels",
    "qdq",
    "shift_candidates",
    "shift_of",
    "table_check",
    "table_formats",
    "table_ranges",
]

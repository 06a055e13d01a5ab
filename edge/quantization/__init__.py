"""Quantization as pure data: statistics, algorithms, calibration tables and their formats, Q/DQ insertion, rounding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge import lazy_exports

if TYPE_CHECKING:
    from edge.quantization.algorithms import Algorithm
    from edge.quantization.calibration_table import LEVELS, AlgorithmName, Table, TrtVersion
    from edge.quantization.qdq import DEFINITION, QdqResult
    from edge.quantization.statistics import BINS, FORMAT, MAX_EXPONENT, Statistics, TensorStatistics, exponent_of
    from edge.quantization.table_check import Route, TableComparison, TableFinding
else:
    __getattr__ = lazy_exports(
        __name__,
        {
            "algorithms": ["Algorithm"],
            "calibration_table": ["AlgorithmName", "LEVELS", "Table", "TrtVersion"],
            "qdq": ["DEFINITION", "QdqResult"],
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
    "QdqResult",
    "Route",
    "Statistics",
    "Table",
    "TableComparison",
    "TableFinding",
    "TensorStatistics",
    "TrtVersion",
    "algorithms",
    "calibration_table",
    "exponent_of",
    "qdq",
    "table_check",
    "table_formats",
]

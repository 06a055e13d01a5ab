"""Calibration from images to a table: statistics collection, checkpoints, worker processes, Dask, scoring."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge import lazy_exports

if TYPE_CHECKING:
    from edge.calibration.cache_keys import FoundArtifact
    from edge.calibration.collection import Executor
    from edge.calibration.preparation import HEADER_VERSION, PreparationSettings, Prepared, finish, prepare
    from edge.calibration.quality import MeasuredAccuracy, QualityVerdict
    from edge.calibration.scoring import (
        LayerNoise,
        PictureInputs,
        Score,
        Scorer,
        TableForms,
        compare,
        inputs_of,
        measure_accuracy,
        predicted_sqnr,
        rank_layers,
        spread,
        tensorrt_form,
        worst_layers,
    )
    from edge.calibration.worker_processes import Processes
    from edge.calibration.workflow import CalibrationOutcome, preparation_settings, save_quantization
else:
    __getattr__ = lazy_exports(
        __name__,
        {
            "cache_keys": ["FoundArtifact"],
            "collection": ["Executor"],
            "preparation": ["HEADER_VERSION", "PreparationSettings", "Prepared", "finish", "prepare"],
            "quality": ["MeasuredAccuracy", "QualityVerdict"],
            "scoring": [
                "LayerNoise",
                "PictureInputs",
                "Score",
                "Scorer",
                "TableForms",
                "compare",
                "inputs_of",
                "measure_accuracy",
                "predicted_sqnr",
                "rank_layers",
                "spread",
                "tensorrt_form",
                "worst_layers",
            ],
            "worker_processes": ["Processes"],
            "workflow": ["CalibrationOutcome", "preparation_settings", "save_quantization"],
        },
    )

__all__ = [
    "HEADER_VERSION",
    "CalibrationOutcome",
    "Executor",
    "FoundArtifact",
    "LayerNoise",
    "MeasuredAccuracy",
    "PictureInputs",
    "PreparationSettings",
    "Prepared",
    "Processes",
    "QualityVerdict",
    "Score",
    "Scorer",
    "TableForms",
    "cache_keys",
    "collection",
    "compare",
    "dask_workers",
    "finish",
    "histograms",
    "inputs_of",
    "measure_accuracy",
    "predicted_sqnr",
    "preparation_settings",
    "prepare",
    "quality",
    "rank_layers",
    "save_quantization",
    "scoring",
    "spread",
    "tensorrt_form",
    "workflow",
    "worst_layers",
]

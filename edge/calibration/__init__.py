"""Pictures to statistics to a calibration table: collection, checkpoints, worker processes, Dask."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge import lazy_exports

if TYPE_CHECKING:
    from edge.calibration.cache_keys import FoundArtifact
    from edge.calibration.collection import Executor
    from edge.calibration.scoring import PictureInputs, Score, Scorer, TableForms
    from edge.calibration.worker_processes import Processes
    from edge.calibration.workflow import HEADER_VERSION, CalibrationOutcome
else:
    __getattr__ = lazy_exports(
        __name__,
        {
            "cache_keys": ["FoundArtifact"],
            "collection": ["Executor"],
            "scoring": ["PictureInputs", "Score", "Scorer", "TableForms"],
            "worker_processes": ["Processes"],
            "workflow": ["CalibrationOutcome", "HEADER_VERSION"],
        },
    )

__all__ = [
    "HEADER_VERSION",
    "CalibrationOutcome",
    "Executor",
    "FoundArtifact",
    "PictureInputs",
    "Processes",
    "Score",
    "Scorer",
    "TableForms",
    "cache_keys",
    "collection",
    "counting",
    "dask_workers",
    "scoring",
    "watch_plan",
    "workflow",
]

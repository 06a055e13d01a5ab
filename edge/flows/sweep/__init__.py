"""The flow ``sweep``: calibration algorithms × batch × number of pictures × seed, scored on labelled pictures.

What it costs: each calibration picture runs through the FP32 network once, however many algorithms, sizes and seeds
there are (:mod:`edge.flows.sweep.subsets`); then each *different* table answers the labelled pictures once, in INT8.
The batch is no factor of its own: edge counts picture by picture. Whether it would matter is measured, not assumed: the
smallest subset is counted again with each batch, and where a table comes out different it is scored as well.
"""

from __future__ import annotations

from edge.flows.sweep.flow import sweep
from edge.flows.sweep.settings import Candidate, Settings, candidates, sizes

__all__ = ["Candidate", "Settings", "candidates", "sizes", "sweep"]

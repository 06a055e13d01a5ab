"""The verb ``run``: frames -> preprocess -> infer -> labels, with the time of every stage and the power."""

from __future__ import annotations

from edge.loop.flow import Hear, Heard, Keep, Settings, Show, run
from edge.loop.pipeline import Width

__all__ = ["Hear", "Heard", "Keep", "Settings", "Show", "Width", "run"]

"""The verb ``run``: frames -> preprocess -> infer -> labels, with the time of every stage and the power."""

from __future__ import annotations

from edge.loop.sequence import Hear, Heard, Keep, Settings, Show, run

__all__ = ["Hear", "Heard", "Keep", "Settings", "Show", "run"]

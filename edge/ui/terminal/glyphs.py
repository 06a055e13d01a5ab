"""Bars and sparklines out of block characters, or out of ASCII where the terminal's encoding has no blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence

_BLOCKS = "▁▂▃▄▅▆▇█"
_EIGHTHS = "▏▎▍▌▋▊▉"


class Glyphs:
    """Characters for drawing; ``encoding`` is that of the stream."""

    def __init__(self, encoding: str) -> None:
        self.is_fine = "utf" in encoding.lower()
        self.dot, self.dash, self.degree = ("·", "–", "°C") if self.is_fine else ("|", "-", "C")

    def bar(self, share: float, width: int) -> tuple[str, str]:
        """The filled and the empty part of a bar, together ``width`` characters; ``share`` from 0 to 1."""
        share = min(max(share, 0.0), 1.0) if math.isfinite(share) else 0.0
        if not self.is_fine:
            filled = round(share * width)
            return "#" * filled, "." * (width - filled)
        eighths = round(share * width * 8)
        full, rest = divmod(eighths, 8)
        drawn = "█" * full + (_EIGHTHS[rest - 1] if rest else "")
        return drawn, "·" * (width - len(drawn))

    def sparkline(self, values: Sequence[float | None], width: int) -> str:
        """The newest ``width`` values, scaled from 0 to the largest; a hole where there is none."""
        shown = list(values)[-width:] if width > 0 else []
        top = max((value for value in shown if value is not None and math.isfinite(value)), default=0.0)
        if top <= 0:
            return ""
        steps = _BLOCKS if self.is_fine else "_.-=+*#"
        return "".join(_step(value, top, steps) for value in shown)


def _step(value: float | None, top: float, steps: str) -> str:
    if value is None or not math.isfinite(value):
        return " "
    return steps[min(int(max(value, 0.0) / top * len(steps)), len(steps) - 1)]

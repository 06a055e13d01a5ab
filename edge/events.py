"""Progress events: a long operation takes ``listen`` and calls it with these; only :mod:`edge.ui.terminal` draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec


class Progress(msgspec.Struct, frozen=True):
    """``done`` of ``total`` units of ``stage``; ``total`` is None when it is not known."""

    stage: str
    done: int
    total: int | None = None
    unit: str = "pictures"


class Note(msgspec.Struct, frozen=True):
    """One sentence for the user. A warning is also kept in the record or manifest by who raises it."""

    text: str
    level: Literal["info", "warning"] = "info"


Event = Progress | Note
Listener = Callable[[Event], None]


def ignore_events(_event: Event) -> None:
    """Listener that receives nothing: the default of every operation."""

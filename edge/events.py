"""Progress events. A long operation calls its ``listen`` argument with them; only :mod:`edge.ui.terminal` draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec


class Progress(msgspec.Struct, frozen=True):
    """Progress of one ``stage``: ``done`` of ``total`` units; ``total`` is None if it is not known."""

    stage: str
    done: int
    total: int | None = None
    unit: str = "images"


class Note(msgspec.Struct, frozen=True):
    """One sentence for the user. The caller that raises a warning also stores it in the record or manifest."""

    text: str
    level: Literal["info", "warning"] = "info"


Event = Progress | Note
Listener = Callable[[Event], None]


def ignore_events(_event: Event) -> None:
    """Ignore the event. This is the default listener of every operation."""

"""Show work on many devices: one row per active device, and the number of finished devices by result.

Without a terminal, one line is printed when a device is done.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from edge.events import Event, Note, Progress
from edge.ui.terminal.terminal import Glyphs, Style, Terminal

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

STYLES: dict[str, Style] = {
    "ok": "green", "unchanged": "dim", "would ship": "cyan",
    "rolled back": "yellow", "failed": "red", "stopped": "yellow",
}  # fmt: skip
_REFRESH_HZ = 8
_BAR = 24
_PLAIN_INTERVAL_S = 5.0


class FleetView:
    """Shows the progress on ``total`` devices. Its methods may be called from any thread."""

    def __init__(self, terminal: Terminal, *, total: int, unit: str = "devices") -> None:
        self._terminal = terminal
        self._total = total
        self._unit = unit
        self._guard = threading.Lock()
        self._running: dict[str, tuple[Progress | None, float]] = {}
        self._counts: dict[str, int] = {}
        self._reported: dict[str, float] = {}

    def showing(self) -> AbstractContextManager[None]:
        """Draw until the block ends; the view disappears then."""
        return self._terminal.drawing(self.drawn, refresh_hz=_REFRESH_HZ)

    def begun(self, name: str) -> None:
        """Record that work on a device has begun."""
        with self._guard:
            self._running[name] = (None, time.monotonic())

    def ended(self, name: str, *, work: str, line: str) -> None:
        """Record that work on a device has ended; ``line`` is the result."""
        with self._guard:
            self._running.pop(name, None)
            self._counts[work] = self._counts.get(work, 0) + 1
            done = sum(self._counts.values())
        if self._total > 1:
            self._info(f"[{done}/{self._total}] {name}: {line}", style=STYLES.get(work, ""))

    def listener(self, name: str) -> Callable[[Event], None]:
        """Return the listener for one device's events."""

        def listen(event: Event) -> None:
            if isinstance(event, Note):
                self._info(event.text, style="yellow" if event.level == "warning" else "dim")
                return
            with self._guard:
                begun = self._running.get(name, (None, time.monotonic()))[1]
                self._running[name] = (event, begun)
            self._notify(name, event)

        return listen

    def drawn(self) -> RenderableType:
        """Return the view in the terminal's current size."""
        from rich.table import Table

        width, height = self._terminal.err.size
        with self._guard:
            running, counts = dict(self._running), dict(self._counts)
        glyphs = Glyphs(self._terminal.err.encoding)
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True, max_width=max(12, width // 3), overflow="ellipsis")
        table.add_column(no_wrap=True, width=_BAR)
        table.add_column(no_wrap=True, overflow="ellipsis")
        room = max(1, height - 3)
        for name, (event, begun) in list(running.items())[:room]:
            table.add_row(name, *_row(event, time.monotonic() - begun, glyphs))
        if len(running) > room:
            table.add_row(f"and {len(running) - room} more", "", "")
        if self._total > 1:
            done = sum(counts.values())
            words = ", ".join(f"{count} {work}" for work, count in counts.items())
            table.add_row(f"{done} of {self._total} {self._unit}", _bar(done, self._total, glyphs), words, style="bold")
        return table

    def _info(self, text: str, *, style: Style) -> None:
        with self._guard:
            self._terminal.info(text, style=style)

    def _notify(self, name: str, event: Progress) -> None:
        """Print a progress line now and then if there is no live view."""
        if self._terminal.is_live:
            return
        now = time.monotonic()
        if now - self._reported.setdefault(name, now) >= _PLAIN_INTERVAL_S:
            self._reported[name] = now
            self._info(f"{name}: {_words(event)}", style="")


def _row(event: Progress | None, seconds: float, glyphs: Glyphs) -> tuple[Text | str, str]:
    if event is None:
        return "", f"connecting  {seconds:.0f} s"
    bar = "" if event.total is None else _bar(event.done, event.total, glyphs)
    return bar, f"{_words(event)}  {seconds:.0f} s"


def _words(event: Progress) -> str:
    if event.total is None:
        return event.unit
    return f"{event.done / 1024:.1f} of {event.total / 1024:.1f} MiB"


def _bar(done: int, total: int, glyphs: Glyphs) -> Text:
    from rich.text import Text

    filled, empty = glyphs.bar(done / total if total else 1.0, _BAR)
    return Text.assemble((filled, "cyan"), (empty, "dim"))

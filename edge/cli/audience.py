"""Who follows a run while it goes: the terminal or the JSON lines, and the supervisor."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec

from edge.heartbeat import Heartbeat, Notifier, watchdog_s
from edge.pulse import Pulse
from edge.record import Gap, Result, Skip
from edge.ui.live import LiveView

if TYPE_CHECKING:
    from edge.frames.stream import Stream
    from edge.telemetry.sampler import Sampler
    from edge.ui import Terminal

Heard = Result | Skip | Gap


@contextmanager
def gather(
    terminal: Terminal, stream: Stream, sampler: Sampler | None, *, headline: str, power: str, as_json: bool
) -> Iterator[Callable[[Heard], None]]:
    """Who follows this run, until the block ends; give what the loop says to what this yields."""
    pulse = Pulse(
        total=stream.opened.total,
        dropped=lambda: stream.dropped,
        reading=lambda: sampler.latest if sampler is not None else None,
    )
    with contextlib.ExitStack() as stack:
        view = LiveView(terminal, pulse, headline=headline, power=power)
        listeners: list[Callable[[Heard], None]] = [pulse.hear, _printer(terminal) if as_json else view.hear]
        notifier = Notifier.from_environment()
        if notifier is not None:
            beat = Heartbeat(notifier, watchdog_s=watchdog_s(), state=lambda: pulse.now().line)
            listeners.append(stack.enter_context(beat).hear)
        # On one and the same terminal, the panel and the JSON lines would run through each other.
        if not (as_json and terminal.out.is_terminal):
            stack.enter_context(view.showing())

        def hear(heard: Heard) -> None:
            for listen in listeners:
                listen(heard)

        yield hear


def _printer(terminal: Terminal) -> Callable[[Heard], None]:
    """A listener that prints each picture as one JSON object."""

    def hear(heard: Heard) -> None:
        content = msgspec.to_builtins(heard)
        if isinstance(heard, Skip | Gap):
            content = {"skipped" if isinstance(heard, Skip) else "gap": content}
        terminal.data(msgspec.json.encode(content).decode())

    return hear

"""Who follows a run while it goes: the terminal or the JSON lines, the supervisor, browsers and Prometheus."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec

from edge.artifacts import FrameResult, Gap, RunRecord, Skip, Subject
from edge.cli import http_options
from edge.runtime import Heartbeat, Notifier, watchdog_s
from edge.ui.terminal import LiveView

if TYPE_CHECKING:
    from edge.runtime import RunStatistics
    from edge.telemetry import Sampler
    from edge.ui.terminal import Terminal
    from edge.ui.web import RunView

Heard = FrameResult | Skip | Gap


class RunObservers:
    """Everybody who follows a run. Call it with what the loop says; ``show`` is None where nobody can see pictures."""

    def __init__(self, listeners: Sequence[Callable[[Heard], None]], view: RunView | None) -> None:
        self._listeners = listeners
        self.show = None if view is None else view.show

    def __call__(self, heard: Heard) -> None:
        """Pass one event of the loop on to all."""
        for listen in self._listeners:
            listen(heard)


class ObservedRun(msgspec.Struct, frozen=True, kw_only=True):
    """What is followed: ``headline`` says what runs, ``power`` how it is measured, or why it is not.

    ``kept`` gets the record when the run is over, however it ended.
    """

    subject: Subject
    headline: str
    power: str
    kept: list[RunRecord]


@contextmanager
def gather(
    terminal: Terminal, statistics: RunStatistics, sampler: Sampler | None, run: ObservedRun, *,
    seen: http_options.ListeningPorts, as_json: bool,
) -> Iterator[RunObservers]:  # fmt: skip
    """Who follows this run, until the block ends; give what the loop says to what this yields."""
    with contextlib.ExitStack() as stack:
        panel = LiveView(terminal, statistics, headline=run.headline, power=run.power)
        listeners: list[Callable[[Heard], None]] = [_printer(terminal) if as_json else panel.on_event]
        notifier = Notifier.from_environment()
        if notifier is not None:
            beat = Heartbeat(notifier, watchdog_s=watchdog_s(), state=lambda: statistics.snapshot().status_line)
            listeners.append(stack.enter_context(beat).on_event)
        view = http_options.serve(
            seen, stack, statistics, run.subject, sampler=sampler, headline=run.headline, power=run.power
        )
        # On one and the same terminal, the panel and the JSON lines would run through each other.
        if not (as_json and terminal.out.is_terminal):
            stack.enter_context(panel.showing())
        try:
            yield RunObservers(listeners, view)
        finally:
            # A browser that still looks is told the end, for which this waits a second or two at most.
            if view is not None and run.kept:
                view.end(run.kept[-1])


def _printer(terminal: Terminal) -> Callable[[Heard], None]:
    """A listener that prints each picture as one JSON object."""

    def hear(heard: Heard) -> None:
        content = msgspec.to_builtins(heard)
        if isinstance(heard, Skip | Gap):
            content = {"skipped" if isinstance(heard, Skip) else "gap": content}
        terminal.data(msgspec.json.encode(content).decode())

    return hear

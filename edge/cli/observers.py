"""The observers of a run: terminal or JSON lines, supervisor, browsers, Prometheus, and notifications."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edge.artifacts import FrameResult, Gap, RunRecord, Secret, Skip, Subject, hides, masked_url, read_address
from edge.cli import run_options
from edge.errors import UsageError
from edge.runtime import Event, Observers
from edge.ui.terminal import LiveView

if TYPE_CHECKING:
    from edge.config import Profile
    from edge.runtime import Notifications, ResultFiles, RunStatistics
    from edge.telemetry import Sampler
    from edge.ui.terminal import Terminal


class ObservedRun(msgspec.Struct, frozen=True, kw_only=True):
    """A run to observe: ``headline`` names the engine, ``power`` the power source or why there is none.

    ``kept`` is called with the record at the end of the run, however it ended.
    """

    subject: Subject
    headline: str
    power: str
    kept: list[RunRecord]
    notifications: Notifications | None = None
    files: ResultFiles | None = None


@contextmanager
def gather(
    terminal: Terminal, statistics: RunStatistics, sampler: Sampler | None, run: ObservedRun, *,
    seen: run_options.ListeningPorts, as_json: bool,
) -> Iterator[Observers]:  # fmt: skip
    """Set up the observers of this run for the block."""
    with contextlib.ExitStack() as stack:
        files = None if run.files is None else stack.enter_context(run.files)
        panel = LiveView(terminal, statistics, headline=run.headline, power=run.power)
        listeners: list[Callable[[Event], None]] = [_printer(terminal) if as_json else panel.on_event]
        if os.environ.get("NOTIFY_SOCKET"):
            from edge.runtime import Heartbeat, Notifier, watchdog_s

            notifier = Notifier.from_environment()
            heartbeat = Heartbeat(notifier, watchdog_s=watchdog_s(), state=lambda: statistics.snapshot().status_line)
            listeners.append(stack.enter_context(heartbeat).on_event)
        if run.notifications is not None:
            listeners.append(run.notifications.on_event)
        if files is not None and files.csv is not None:
            listeners.append(files.csv.on_event)
        view = run_options.serve_run(
            seen, stack, statistics, run.subject, sampler=sampler, headline=run.headline, power=run.power
        )
        # On one and the same terminal, the panel and the JSON lines would run through each other.
        if not (as_json and terminal.out.is_terminal):
            stack.enter_context(panel.showing())
        try:
            yield Observers(
                on_event=lambda event: _to_all(listeners, event),
                on_frame=_shown(
                    [*([view.show] if view else []), *([files.video.show] if files and files.video else [])]
                ),
                # Messages that are still being sent belong into the record.
                on_end=(lambda: None) if run.notifications is None else run.notifications.close,
                on_record=run.kept.append,
            )
        finally:
            # Tell a connected browser the end, which takes a second or two at most.
            if view is not None and run.kept:
                view.end(run.kept[-1])


def _to_all(listeners: Sequence[Callable[[Event], None]], event: Event) -> None:
    for listen in listeners:
        listen(event)


def _shown(viewers: Sequence[Callable[[Any, FrameResult], None]]) -> Callable[[Any, FrameResult], None] | None:
    """Return one callback for the labelled frames; None without viewers, so that no frame is stored."""

    def show(pixels: Any, result: FrameResult) -> None:  # noqa: ANN401 - NumPy is not for this layer
        for look in viewers:
            look(pixels, result)

    return show if viewers else None


def open_notifications(
    targets: Sequence[str], profile: Profile, path: Path, *, names: Sequence[str], warn: Callable[[str], None]
) -> Notifications | None:
    """Open the notifications of this run: for the rules of the profile, and for the ``targets`` of ``--notify``.

    The targets get the reports of rules without an address or, without such rules, each change of the label.

    Raises:
        UsageError: A target or a rule is wrong, or a command of a shipped bundle is not allowed on this device.
    """
    from edge.config import NotifyRule

    typed = [read_address(Secret.url(text), what="target", warn=warn) for text in targets]
    for text in targets:
        if hides(text):
            warn(
                f"other users can see the password of --notify {masked_url(text)} on a command line; use --notify @FILE"
            )
    rules: list[tuple[NotifyRule, list[Secret]]] = []
    for rule in profile.notify:
        own = [read_address(address, what="target", warn=warn) for address in rule.to]
        for address in own:
            _check_allowed(address, path)
        rules.append((rule, own or typed))
    if typed and all(rule.to for rule in profile.notify):
        rules.append((NotifyRule(), typed))
    rules = [(rule, addresses) for rule, addresses in rules if addresses]
    if not rules:
        return None
    from edge.runtime import Notifications

    about = {"profile": profile.name, "model": Path(profile.model).name}
    return Notifications(rules, names=names, about=about)


def _check_allowed(address: Secret, profile: Path) -> None:
    """Refuse a command from a shipped bundle unless it is in this device's own list.

    Raises:
        UsageError: the command is not in the list.
    """
    from edge.cli import paths

    text = address.reveal()
    if text.partition(":")[0].lower() != "exec" or not paths.is_shipped(profile):
        return
    allowed = paths.device_home() / "allowed-commands"
    try:
        lines = {line.strip() for line in allowed.read_text(errors="replace").splitlines()}
    except OSError:
        lines = set()
    if text.partition(":")[2].strip() not in lines:
        raise UsageError(
            f"{text}: this device does not allow this command of a shipped bundle", where=profile,
            hint=f"add the command as one line to {allowed}",
        )  # fmt: skip


def _printer(terminal: Terminal) -> Callable[[Event], None]:
    """Return a callback that prints each event as one JSON object."""

    def print_event(event: Event) -> None:
        content = msgspec.to_builtins(event)
        if isinstance(event, Skip | Gap):
            content = {"skipped" if isinstance(event, Skip) else "gap": content}
        terminal.data(msgspec.json.encode(content).decode())

    return print_event

"""The addresses of ``--web`` and ``--metrics``: opened before the run starts, so that a port in use is said at once."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from edge.artifacts import Subject
    from edge.runtime import RunStatistics
    from edge.telemetry import Sampler
    from edge.ui.terminal import Terminal
    from edge.ui.web import Access, Address, Metrics, RunView

Web = Annotated[str | None, typer.Option("--web", metavar="HOST:PORT", help="Show the run in a browser.")]
MetricsAt = Annotated[str | None, typer.Option("--metrics", metavar="HOST:PORT", help="Serve /metrics to Prometheus.")]


class HttpOptions:
    """What was asked for on the command line."""

    def __init__(self, web: str | None = None, metrics: str | None = None, token_file: str | None = None) -> None:
        self.web = web
        self.metrics = metrics
        self.token_file = token_file


@dataclasses.dataclass(frozen=True)
class ListeningPort:
    """One open address, and what is behind it."""

    address: Address
    listening: socket.socket
    has_page: bool
    has_metrics: bool


class ListeningPorts:
    """All open addresses, and who may come in."""

    def __init__(self, each: list[ListeningPort], access: Access | None) -> None:
        self.each = each
        self.access = access

    @property
    def has_page(self) -> bool:
        """True if anybody can look at pictures."""
        return any(door.has_page for door in self.each)


def open_ports(wishes: HttpOptions, stack: contextlib.ExitStack, terminal: Terminal) -> ListeningPorts:
    """Listen on what was asked for until ``stack`` unwinds, and say where; a generated token is said here, once.

    Raises:
        UsageError: an address is none.
        DeviceError: a port is in use.
        MissingDependencyError: starlette, uvicorn or prometheus_client is missing.
        ArtifactError: the file of the token cannot be read.
    """
    asked = [("--web", wishes.web), ("--metrics", wishes.metrics)]
    if wishes.web is None and wishes.metrics is None:
        return ListeningPorts([], None)
    # The optional dependencies are met here, before anything is opened.
    from edge.ui.web import Access, Address, app, check, listen, new_token, parse_address, read_token, server  # noqa: F401

    if wishes.metrics is not None:
        check()
    places: dict[Address, list[str]] = {}
    for option, text in asked:
        if text is not None:
            places.setdefault(parse_address(text, option=option), []).append(option)
    token = read_token(Path(wishes.token_file)) if wishes.token_file is not None else None
    is_new = token is None and not all(place.is_loopback for place in places)
    if is_new:
        token = new_token()
    each = []
    for place, options in places.items():
        listening = listen(place, option=options[0])
        stack.callback(listening.close)
        # Port 0 is any that is free: say which one it became.
        opened = Address(place.host, listening.getsockname()[1])
        each.append(ListeningPort(opened, listening, has_page="--web" in options, has_metrics="--metrics" in options))
    for door in each:
        _say(terminal, door, token if is_new else None)
    return ListeningPorts(each, Access(token))


def _say(terminal: Terminal, door: ListeningPort, token: str | None) -> None:
    if door.has_page:
        terminal.say(f"web: {door.address.url}" + (f"#token={token}" if token else ""))
    if door.has_metrics:
        terminal.say(f"metrics: {door.address.url}metrics" + (f" (bearer token {token})" if token else ""))


def serve(
    doors: ListeningPorts, stack: contextlib.ExitStack, statistics: RunStatistics, subject: Subject, *,
    sampler: Sampler | None, headline: str, power: str,
) -> RunView | None:  # fmt: skip
    """Serve the run at the open addresses until ``stack`` unwinds; returns the view that shows its frames, if any."""
    if not doors.each or doors.access is None:
        return None
    from edge.ui.web import RunView, Server, application

    view = RunView(statistics, subject, headline=headline, power=power) if doors.has_page else None
    metrics = _metrics(statistics, subject, sampler) if any(door.has_metrics for door in doors.each) else None
    for door in doors.each:
        app = application(
            doors.access,
            view=view if door.has_page else None,
            metrics=metrics if door.has_metrics else None,
            cookie=f"edge_{door.address.port}",
        )
        stack.enter_context(Server(app, door.listening))
    return view


def _metrics(statistics: RunStatistics, subject: Subject, sampler: Sampler | None) -> Metrics:
    import time

    from edge.telemetry import Window
    from edge.ui.web import Metrics

    if sampler is None:
        return Metrics(statistics, subject)
    started_s = time.monotonic()

    def joules() -> float | None:
        return sampler.energy(Window(started_s, time.monotonic())).joules

    source = sampler.source
    # A replay is called so wherever its figures go.
    name = f"replay of {source.name}" if getattr(source, "replayed", None) else source.name
    return Metrics(statistics, subject, power=(source.scope, name), joules=joules)

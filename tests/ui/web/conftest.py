"""A run that is told by the test, and its server."""

from __future__ import annotations

import http.client
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

from edge.artifacts import Secret
from edge.artifacts.run_record import FrameResult
from edge.runtime.run_statistics import RunStatistics
from edge.telemetry.sources import Reading
from edge.ui.web.address import Access, Address, listen
from edge.ui.web.app import Server, application
from edge.ui.web.metrics import Metrics
from edge.ui.web.view import RunView
from tests.support.run_records import made

TOKEN = "a token of this test".replace(" ", "-")


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.t_s = 50.0

    def __call__(self) -> float:
        return self.t_s


class Answer(NamedTuple):
    """What a server answered."""

    status: int
    headers: dict[str, str]
    body: bytes


class Running:
    """One run with a page, and how to ask for it."""

    def __init__(self, view: RunView, metrics: Metrics, statistics: RunStatistics, clock: Clock) -> None:
        self.view = view
        self.metrics = metrics
        self.statistics = statistics
        self.clock = clock
        self.port = 0

    def hear(self, *heard: Any) -> None:
        for item in heard:
            self.statistics.record(item)

    def label(self, seq: int = 0, *, pixels: np.ndarray | None = None) -> FrameResult:
        """One labelled frame, with its picture."""
        result = made(30).results[seq]
        self.hear(result)
        self.view.show(np.full((48, 64, 3), seq * 8, np.uint8) if pixels is None else pixels, result)
        return result

    def ask(
        self, path: str, *, method: str = "GET", body: str | None = None, host: str | None = None, **headers: str
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if host is not None:
            named["host"] = host
        try:
            connection.request(method, path, body, named)
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()


@pytest.fixture
def running() -> Iterator[Callable[..., Running]]:
    """``running(token=None)``: a run with a page and metrics on a free port of loopback."""
    servers: list[Server] = []

    def make(
        *, token: str | None = None, has_page: bool = True, cameras: tuple[str, ...] = (), notify: tuple[Any, ...] = ()
    ) -> Running:
        clock = Clock()
        reading = Reading(
            t_s=0.0, power_mw=7000.0, temps_c={"tj": 51.5}, loads_percent={"gpu": 80.0}, clocks_mhz={"gpu": 625.0},
            throttles={"oc3_event_cnt": 4}, throttling=("cpu-throttle-alert",),
        )  # fmt: skip
        statistics = RunStatistics(
            dropped=lambda: 3, cameras={name: lambda: 1 for name in cameras}, reading=lambda: reading,
            notify=lambda: notify, clock=clock,
        )  # fmt: skip
        subject = made(1).subject
        view = RunView(statistics, subject, headline="orin · net · int8", power="module_input, by hwmon", clock=clock)
        metrics = Metrics(
            statistics, subject, power=("module_input", "hwmon"), joules=lambda: 12.5, started=lambda: 1e9
        )
        it = Running(view, metrics, statistics, clock)
        listening = listen(Address("127.0.0.1", 0), option="--web")
        it.port = listening.getsockname()[1]
        app = application(
            Access(None if token is None else Secret(token)),
            view=view if has_page else None,
            metrics=metrics,
            cookie=f"edge_{it.port}",
        )
        servers.append(Server(app, listening).__enter__())
        return it

    yield make
    for server in servers:
        server.__exit__(None, None, None)

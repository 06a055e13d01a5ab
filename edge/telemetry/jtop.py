"""Read the power of a Jetson from jetson-stats' service (jtop). Used only when selected by name.

jetson-stats is AGPL-3.0: edge does not depend on it and does not install it. Only this module imports it, and only
for ``--power jtop``. Its advantage over hwmon: its service runs as root.

Its totals and averages are not used. On boards without an input sensor ``power['tot']`` is the sum of all rails, which
includes VDDQ_VDD2_1V8AO of an AGX Orin twice; ``avg`` is an exponential average that starts with the first client. The
rails are instantaneous values and use the same board table as every other source. Facts: jetson-stats 4.3 to 7.2. Not
tried with its service: the tests use a double.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

from edge.errors import MissingDependencyError, require
from edge.telemetry.board import Board, Total, is_connected, is_temperature, total_of
from edge.telemetry.sources import Clock, Reading, Scope, Unavailable

# The first client's interval applies to all clients; shorter ones cost the service much CPU.
_INTERVAL_S = 0.5
_FIRST_TIMEOUT_S = 5.0
_STALE_S = 5.0


class Jtop:
    """The newest sample of jtop's service; use :meth:`open`."""

    name = "jtop"

    def __init__(self, client: Any, root: Path, *, clock: Clock) -> None:  # noqa: ANN401
        self._client = client
        self._clock = clock
        self._board = Board(root, clock=clock)
        self._latest: Reading | None = None
        self._total: Total | None = None
        self._problem = ""
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._keep_reading, name="jtop", daemon=True)

    @classmethod
    def open(
        cls,
        root: Path = Path("/"),
        *,
        clock: Clock = time.monotonic,
        library: Any = None,  # noqa: ANN401
        first_timeout_s: float = _FIRST_TIMEOUT_S,
    ) -> Jtop | Unavailable:
        """Connect to the service, or return the reason why it is unusable. ``library`` replaces the module ``jtop``."""
        try:
            module = library or require("jtop")
        except MissingDependencyError as exc:
            return Unavailable(cls.name, exc.what, exc.hint)
        client = module.jtop(interval=_INTERVAL_S)
        try:
            client.start()
        except (module.JtopException, OSError, EOFError) as exc:
            # Its messages contain the next step: install the service, log in again, update.
            return Unavailable(cls.name, " ".join(str(exc).split()) or type(exc).__name__)
        source = cls(client, root, clock=clock)
        source._reader.start()
        reason = source._wait_for_rails(first_timeout_s)
        if reason is None:
            return source
        source.close()
        return Unavailable(cls.name, reason)

    @property
    def scope(self) -> Scope:
        """Scope of the power figure."""
        if self._total is None:  # open() returns no source without one
            raise RuntimeError("no rails")
        return self._total.scope

    def read(self) -> Reading:
        """Return the newest sample: possibly the same one again, and without power if it is old."""
        with self._news:
            latest, problem = self._latest, self._problem
        now = self._clock()
        if latest is not None and now - latest.t_s <= _STALE_S:
            return latest
        return Reading(t_s=now, warnings=(f"jtop sends no samples{f': {problem}' if problem else ''}",))

    def close(self) -> None:
        """Disconnect; further calls do nothing."""
        client, self._client = self._client, None
        if client is not None:
            client.close()
            self._reader.join(timeout=2 * _STALE_S)

    def _wait_for_rails(self, timeout_s: float) -> str | None:
        with self._news:
            self._news.wait_for(lambda: self._latest is not None or bool(self._problem), timeout_s)
            if self._latest is None:
                return self._problem or f"it sent no sample in {timeout_s:g} s"
            if self._total is None:
                names = ", ".join(self._latest.rails_mw)
                return f"its rails are not in the table of known boards: {names}" if names else "it has no power rails"
        return None

    def _keep_reading(self) -> None:
        client = self._client
        try:
            # Blocks until the next sample; False if the service has not answered for three intervals.
            while client is not None and client.ok():
                self._publish(client)
                client = self._client
            self._end("its service does not answer")
        except Exception as exc:  # noqa: BLE001 - whatever comes out of a lost connection and its pickles
            self._end(str(exc) or type(exc).__name__)

    def _end(self, problem: str) -> None:
        with self._news:
            self._problem = problem
            self._news.notify_all()

    def _publish(self, client: Any) -> None:  # noqa: ANN401
        power = client.power
        rails = {
            str(name): float(rail["power"])
            for name, rail in (power.get("rail") or {}).items()
            if is_connected(str(name)) and rail.get("online", True) and "power" in rail
        }
        temps = {
            str(zone).lower(): float(values["temp"])
            for zone, values in client.temperature.items()
            if values.get("online", True) and is_temperature(float(values["temp"]))
        }
        state = self._board.read()
        with self._news:
            if self._total is None:
                self._total = total_of(rails)
            self._latest = Reading(
                t_s=self._clock(),
                power_mw=None if self._total is None else self._total.power_mw(rails),
                rails_mw=rails,
                temps_c={**state.temps_c, **temps},
                loads_percent=state.loads_percent,
                clocks_mhz=state.clocks_mhz,
                throttles=state.throttles,
                throttling=state.throttling,
                power_mode=state.power_mode,
                clocks_locked=state.clocks_locked,
                warnings=() if self._total is None else self._total.caveats(rails),
                absent=state.absent,
            )
            self._news.notify_all()

"""A telemetry log: every reading as one JSON line, to be replayed or looked at."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import final

import msgspec

from edge.artifacts import store
from edge.errors import StoreError
from edge.telemetry.source import Reading, TelemetrySource
from edge.telemetry.telemetry_replay import FORMAT, TelemetryLogHeader

# Written and synced about once a second: an SD card does not bear ten syncs a second for weeks.
_FLUSH_S = 1.0


@final
class Log:
    """Keeps the readings of ``source`` in ``path``; at most ``files`` files of ``limit`` bytes, the newest in ``path``.

    A disk that refuses ends the log and not the run: ``problem`` then says why.
    """

    def __init__(self, path: Path, source: TelemetrySource, *, limit: int = 64 << 20, files: int = 4) -> None:
        self.problem: str | None = None
        self._name, self._scope = source.name, source.scope
        self._lines = store.Lines(path, head=self._head, limit=limit, files=files)
        self._waiting: list[bytes] = []
        self._since_s: float | None = None

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._flush()
        self._lines.close()

    def keep(self, reading: Reading) -> None:
        """Keep one reading; on disk within about a second."""
        self._waiting.append(msgspec.json.encode(reading) + b"\n")
        if self._since_s is None:
            self._since_s = reading.t_s
        if reading.t_s - self._since_s >= _FLUSH_S:
            self._flush()
            self._since_s = reading.t_s

    def _flush(self) -> None:
        if self._waiting and self.problem is None:
            try:
                self._lines.append(b"".join(self._waiting))
            except StoreError as exc:
                self.problem = str(exc)
        self._waiting.clear()

    def _head(self) -> bytes:
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        header = TelemetryLogHeader(edge_telemetry=FORMAT, source=self._name, scope=self._scope, started_utc=now)
        return msgspec.json.encode(header) + b"\n"

"""Replay recorded telemetry through the same interface as a live source, and write telemetry logs.

Three formats are read: a telemetry log (JSON lines, ``telemetry.log`` in the profile), a run record (its time series),
and a log of tegrastats. Replayed readings are marked as such everywhere. They are for tests, demonstrations and the
inspection of a recording, and are never a measurement."""

from __future__ import annotations

import bisect
import itertools
import re
import time
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import final

import msgspec

from edge.artifacts import run_record, store
from edge.errors import ArtifactError, StoreError, UsageError
from edge.telemetry.board import total_of
from edge.telemetry.sources import Clock, Reading, Scope, TelemetrySource
from edge.telemetry.tegrastats import parse

FORMAT = 1
# tegrastats' default interval; its lines have whole seconds at best.
_TEGRASTATS_INTERVAL_S = 1.0
_STAMP = re.compile(r"(\d\d)-(\d\d)-(\d{4}) (\d\d):(\d\d):(\d\d) ", re.ASCII)
_SPEC = re.compile(r"replay(?:@(\d{1,6}(?:\.\d{1,6})?))?:(.+)", re.DOTALL | re.ASCII)


class TelemetryLogHeader(msgspec.Struct, frozen=True, kw_only=True):
    """First line of a telemetry log."""

    edge_telemetry: int
    source: str
    scope: Scope
    started_utc: str


class Recording(msgspec.Struct, frozen=True):
    """Readings with ascending times that begin at 0, and the file they come from."""

    source: str
    scope: Scope
    readings: tuple[Reading, ...]


class Replay:
    """Replays ``recording`` at ``speed`` times the recorded pace, beginning with the first read.

    Times are moved onto ``clock``. Powers stay as recorded, so at another speed the energy differs. After the last
    reading there is no power, and a warning reports the end.
    """

    def __init__(self, recording: Recording, *, path: Path, speed: float = 1.0, clock: Clock = time.monotonic) -> None:
        self.name = recording.source
        self.scope: Scope = recording.scope
        self.replayed = str(path)
        self._readings = recording.readings
        self._times = [reading.t_s / speed for reading in self._readings]
        self._clock = clock
        self._start_s: float | None = None
        step = self._times[-1] / (len(self._times) - 1) if len(self._times) > 1 else 1.0
        self._end_s = self._times[-1] + 2 * step

    def read(self) -> Reading:
        """Return the recorded reading for the current time."""
        now = self._clock()
        if self._start_s is None:
            self._start_s = now
        elapsed = now - self._start_s
        if elapsed > self._end_s:
            return Reading(t_s=now, warnings=("the recording has ended",))
        at = max(bisect.bisect_right(self._times, elapsed) - 1, 0)
        return msgspec.structs.replace(self._readings[at], t_s=self._start_s + self._times[at])

    def close(self) -> None:
        """Do nothing: no file stays open."""


def parse_spec(spec: str) -> tuple[Path, float]:
    """Parse ``replay:FILE`` or ``replay@10:FILE`` into file and speed.

    Raises:
        UsageError: the speed is not a number above 0.
    """
    match = _SPEC.fullmatch(spec)
    if match is None or not 0 < float(match[1] or 1) < 1e6:
        raise UsageError(
            f"{spec!r} does not name a recording", hint="write replay:FILE, or replay@10:FILE for ten times the speed"
        )
    return Path(match[2]), float(match[1] or 1)


def load(path: Path) -> Recording:
    """Read a telemetry log, a run record or a log of tegrastats.

    Raises:
        ArtifactError: the file is missing, has another format, or has no power readings.
    """
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise ArtifactError(f"cannot read the recording: {exc.strerror}", where=path) from exc
    head = data.lstrip()[:1]
    if head != b"{":
        return _from_tegrastats(data, path)
    first = data.split(b"\n", 1)[0]
    return _from_log(data, path) if b'"edge_telemetry"' in first else _from_record(path)


def _from_log(data: bytes, path: Path) -> Recording:
    lines = data.split(b"\n")
    try:
        header = msgspec.json.decode(lines[0], type=TelemetryLogHeader)
        if header.edge_telemetry != FORMAT:
            raise ArtifactError(
                f"telemetry log of format {header.edge_telemetry}; this edge reads format {FORMAT}", where=path
            )
        # A killed process leaves a truncated line, and only at the end.
        whole = [line for line in lines[1:-1] if line.strip()]
        readings = [msgspec.json.decode(line, type=Reading) for line in whole]
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise ArtifactError(f"not a telemetry log: {exc}", where=path) from exc
    return _recording(header.source, header.scope, readings, path)


def _from_record(path: Path) -> Recording:
    record = run_record.load(path)
    if record.power is None:
        raise ArtifactError(f"this run measured no power: {record.power_unavailable}", where=path)
    readings = [
        Reading(
            t_s=tick.t_s,
            power_mw=tick.power_mw,
            temps_c=tick.temps_c,
            loads_percent=tick.loads_percent,
            clocks_mhz=tick.clocks_mhz,
            throttling=tick.throttling,
        )
        for tick in record.timeline
    ]
    try:
        scope = msgspec.convert(record.power["scope"], Scope)
        return _recording(str(record.power["source"]), scope, readings, path)
    except (KeyError, msgspec.ValidationError) as exc:
        raise ArtifactError(f"the run's power has no usable scope: {exc}", where=path) from exc


def _from_tegrastats(data: bytes, path: Path) -> Recording:
    lines = data.decode(errors="replace").split("\n")
    # The last line may have been truncated when the log ended.
    lines = lines[:-1] if len(lines) > 1 else lines
    parsed = [(line, reading) for line in lines if (reading := parse(line)) is not None]
    if not parsed:
        raise ArtifactError("neither a telemetry log, nor a run record, nor a log of tegrastats", where=path)
    total = next((t for _, reading in parsed if (t := total_of(reading.rails_mw)) is not None), None)
    if total is None:
        raise ArtifactError(
            "this log of tegrastats has no power rails of a known board", where=path, hint="record it as root"
        )
    times = _line_times([_stamp(line) for line, _ in parsed])
    readings = [
        msgspec.structs.replace(reading, t_s=t_s, power_mw=total.power_mw(reading.rails_mw))
        for t_s, (_, reading) in zip(times, parsed, strict=True)
    ]
    return _recording("tegrastats", total.scope, readings, path)


def _stamp(line: str) -> float | None:
    """Return a line's local time in seconds; None without a time stamp, or for an impossible one."""
    match = _STAMP.match(line)
    if match is None:
        return None
    month, day, year, hour, minute, second = (int(word) for word in match.groups())
    try:
        return datetime(year, month, day, hour, minute, second, tzinfo=timezone.utc).timestamp()
    except ValueError:
        return None


def _line_times(stamps: list[float | None]) -> list[float]:
    """Return the times of a log's lines: spread evenly over its whole-second stamps, or one second apart.

    A clock change in between (NTP, daylight saving, a day without a battery) shows as a step back or as a step of more
    than a minute; all lines are then one second apart.
    """
    known = [stamp for stamp in stamps if stamp is not None]
    steps = [b - a for a, b in itertools.pairwise(known)]
    interval = _TEGRASTATS_INTERVAL_S
    if len(known) == len(stamps) > 1 and all(0 <= step <= 60 for step in steps) and known[-1] > known[0]:
        interval = (known[-1] - known[0]) / (len(known) - 1)
    return [i * interval for i in range(len(stamps))]


def _recording(source: str, scope: Scope, readings: list[Reading], path: Path) -> Recording:
    ordered: list[Reading] = []
    for reading in readings:
        # A time that is not later is a repeated reading, or a clock that jumped back.
        if not ordered or reading.t_s > ordered[-1].t_s:
            ordered.append(reading)
    if not any(reading.power_mw is not None for reading in ordered):
        raise ArtifactError("no reading in this file has a power value", where=path)
    start = ordered[0].t_s
    moved = tuple(msgspec.structs.replace(reading, t_s=reading.t_s - start) for reading in ordered)
    return Recording(source, scope, moved)


# Written and synced about once a second: ten syncs a second for weeks would wear out an SD card.
_FLUSH_S = 1.0


@final
class Log:
    """Writes the readings of ``source`` to ``path``: up to ``files`` files of ``limit`` bytes, the newest in ``path``.

    A write error ends the log and not the run; ``problem`` then gives the reason.
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
        """Write one reading; it is on disk within about a second."""
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

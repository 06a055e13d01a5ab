"""Read power and state from tegrastats: a parser for the lines of L4T 28 to 39, and a source that runs the program.

The format has no specification. The grammar was derived from lines of Nano, TX1, TX2, Xavier, Orin and Thor, JetPack 4
to 7.2: rails are ``NAME now/mean``, with or without ``mW``; from JetPack 7.2 on a third value, the peak, follows. Only
the first value is used: the mean starts with the process, and on Thor it includes a zero that was never measured."""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from pathlib import Path

from edge.system import device_tree, sysfs
from edge.telemetry.board import Board, Total, is_connected, is_temperature, total_of
from edge.telemetry.sources import Clock, Reading, Scope, Unavailable

# Numbers are limited to nine digits: a truncated line must not turn into a huge value.
_RAM = re.compile(r"\bRAM \d{1,9}/\d{1,9}MB", re.ASCII)
_CPU = re.compile(r"\bCPU \[([^\]]*)\](?:@(\d{1,9}))?", re.ASCII)
_CORE = re.compile(r"(\d{1,3})%(?:@(\d{1,9}))?", re.ASCII)
_EMC = re.compile(r"\bEMC_FREQ (\d{1,3})%(?:@(\d{1,9}))?", re.ASCII)
# Early JetPack 5 has two GPU clusters with a name each, later versions an array of clocks; Thor shows clocks alone.
_GPU = re.compile(r"\bGR3D2?_FREQ (?:(\d{1,3})%)?(?:@(?:\[(\d{1,9}(?:,\d{1,9})*)\]|(\d{1,9})))?", re.ASCII)
_TEMP = re.compile(r"(?<!\S)(\w+)@(-?\d{1,9}(?:\.\d{1,9})?)C(?:/-?\d{1,9}(?:\.\d{1,9})?C)?(?=\s|$)", re.ASCII)
_ENGINE = re.compile(
    r"(?<!\S)(MSENC|NVENC\d?|NVDEC\d?|NVJPG\d?|VIC|OFA|NVDLA\d|PVA\d)(?:_FREQ)?"
    r" (?:(\d{1,3})%@(\d{1,9})|@?(\d{1,9}))(?=\s|$)",
    re.ASCII,
)
_RAIL = re.compile(
    r"(?<!\S)([A-Z][A-Z0-9_]*) (\d{1,9})(?:mW)?/\d{1,9}(?:mW)?(?:/\d{1,9}(?:mW)?)?(?=\s|$)",
    re.ASCII,
)

_MAX_LINE = 16_384
_MAX_DEATHS = 5
# A child that prints nothing for this long hangs: it is stopped and started again.
_HUNG_S = 10.0
_NO_RAILS = "its lines have no power rails"


def parse(line: str, *, t_s: float = 0.0) -> Reading | None:
    """Parse one line, with ``t_s`` as its time; return None if it is not a line of tegrastats. Never raises.

    Values missing from the line are absent. Zone names are in lower case, as JetPack 6 prints them; disabled sensors
    (-256 degrees Celsius), the constant PMIC and channels marked NC are left out.
    """
    if not _RAM.search(line):
        return None
    rails: dict[str, float] = {}
    for match in _RAIL.finditer(line):
        if is_connected(match[1]):
            rails.setdefault(match[1], float(match[2]))
    temps = {match[1].lower(): float(match[2]) for match in _TEMP.finditer(line)}
    loads, clocks = _loads_and_clocks(line)
    total = total_of(rails)
    return Reading(
        t_s=t_s,
        power_mw=None if total is None else total.power_mw(rails),
        rails_mw=rails,
        temps_c={zone: temp_c for zone, temp_c in temps.items() if zone != "pmic" and is_temperature(temp_c)},
        loads_percent=loads,
        clocks_mhz=clocks,
        warnings=() if total is None else total.caveats(rails),
    )


def _loads_and_clocks(line: str) -> tuple[dict[str, float], dict[str, float]]:
    loads: dict[str, float] = {}
    clocks: dict[str, float] = {}
    cpu = _CPU.search(line)
    if cpu is not None:
        cores = [_CORE.fullmatch(word.strip()) for word in cpu[1].split(",")]
        percents = [float(core[1]) for core in cores if core is not None]
        if percents:
            # Offline cores do no work and are not idle either: leave them out.
            loads["cpu"] = sum(percents) / len(percents)
        for number, core in enumerate(cores):
            mhz = (core[2] or cpu[2]) if core is not None else None
            if mhz is not None:
                clocks[f"cpu{number}"] = float(mhz)
    emc = _EMC.search(line)
    if emc is not None:
        loads["emc"] = float(emc[1])
        if emc[2] is not None:
            clocks["emc"] = float(emc[2])
    for gpu in _GPU.finditer(line):
        if gpu[1] is not None:
            loads["gpu"] = max(float(gpu[1]), loads.get("gpu", 0.0))
        each = (gpu[2] or gpu[3] or "").split(",")
        if each != [""]:
            clocks["gpu"] = max(clocks.get("gpu", 0.0), *(float(mhz) for mhz in each))
    for engine in _ENGINE.finditer(line):
        name = engine[1].lower()
        if engine[2] is not None:
            loads[name] = float(engine[2])
        clocks[name] = float(engine[3] or engine[4])
    return loads, clocks


class Tegrastats:
    """Runs ``tegrastats`` and stores its newest line; use :meth:`open`. :meth:`close` ends only this child.

    A reader thread stores one reading, not a queue. A child that dies is started again, with growing pauses, up to five
    times in a row; a child that hangs is stopped. Not tried on a Jetson: the tests replace it with a script.
    """

    name = "tegrastats"

    def __init__(self, root: Path, *, clock: Clock, interval_ms: int) -> None:
        self._command = _command(root, interval_ms)
        self._clock = clock
        self._stale_s = max(10 * interval_ms / 1000, 2.0)
        self._board = Board(root, clock=clock)
        self._latest: Reading | None = None
        self._total: Total | None = None
        self._problem = ""
        self._news = threading.Condition()
        self._closing = threading.Event()
        self._child: subprocess.Popen[bytes] | None = None
        self._started_s = clock()
        self._reader = threading.Thread(target=self._keep_reading, name="tegrastats", daemon=True)

    @classmethod
    def open(
        cls,
        root: Path = Path("/"),
        *,
        clock: Clock = time.monotonic,
        interval_ms: int = 100,
        first_line_timeout_s: float = 5.0,
    ) -> Tegrastats | Unavailable:
        """Start tegrastats and wait for its first line, or return the reason why its readings cannot be used."""
        binary = root / "usr/bin/tegrastats"
        if not binary.exists():
            is_tegra = "tegra" in (sysfs.read_text(device_tree(root) / "compatible") or "")
            hint = "in a container: mount /usr/bin/tegrastats of the Jetson" if is_tegra else None
            return Unavailable(cls.name, "/usr/bin/tegrastats does not exist", hint)
        source = cls(root, clock=clock, interval_ms=interval_ms)
        source._reader.start()
        reason: str | None = "interrupted"
        try:
            reason = source._wait_for_rails(first_line_timeout_s)
        finally:
            # Also when Ctrl-C arrives here: no other code knows of the child yet.
            if reason is not None:
                source.close()
        if reason is None:
            return source
        hint = "run as root: before JetPack 6 only root sees the rails" if reason == _NO_RAILS else None
        return Unavailable(cls.name, reason, hint)

    @property
    def scope(self) -> Scope:
        """Scope of the power figure."""
        if self._total is None:  # open() returns no source without one
            raise RuntimeError(_NO_RAILS)
        return self._total.scope

    def read(self) -> Reading:
        """Return the newest line's reading: possibly the same one again, and without power if it is old."""
        with self._news:
            latest, problem, child, started_s = self._latest, self._problem, self._child, self._started_s
        now = self._clock()
        since_s = started_s if latest is None else latest.t_s
        if latest is not None and now - since_s <= self._stale_s:
            return latest
        if child is not None and now - max(since_s, started_s) > _HUNG_S:
            # The reader thread sees the end of the child and starts another one.
            child.kill()
        # Always the same words: each different warning is stored once.
        silence = f"tegrastats printed nothing for more than {self._stale_s:g} s"
        return Reading(t_s=now, warnings=(f"{silence}: {problem}" if problem else silence,))

    def close(self) -> None:
        """End the child and the reader thread."""
        self._closing.set()
        with self._news:
            child = self._child
        if child is not None:
            _end(child)
        if self._reader.ident is not None:
            self._reader.join(timeout=5)

    def _wait_for_rails(self, timeout_s: float) -> str | None:
        """Wait for a line with the power of this board; return None if it came in time, else the reason."""
        with self._news:
            self._news.wait_for(lambda: self._latest is not None or not self._reader.is_alive(), timeout_s)
            if self._latest is None:
                return self._problem or f"it printed no readable line in {timeout_s:g} s"
            if self._total is None:
                names = ", ".join(self._latest.rails_mw)
                return f"its rails are not in the table of known boards: {names}" if names else _NO_RAILS
        return None

    def _keep_reading(self) -> None:
        deaths = 0
        while deaths < _MAX_DEATHS and not self._closing.wait(0.1 * 2**deaths if deaths else 0.0):
            lines = self._read_child()
            deaths = 1 if lines else deaths + 1
        with self._news:
            self._news.notify_all()

    def _read_child(self) -> int:
        """Run one child until it ends; return how many of its lines were readable."""
        child = self._start()
        if child is None or child.stdout is None:
            return 0
        good = 0
        while raw := child.stdout.readline(_MAX_LINE):
            # A truncated line, from a child that died or that prints without line ends, may lack rails or half of a
            # number.
            reading = parse(raw.decode(errors="replace"), t_s=self._clock()) if raw.endswith(b"\n") else None
            if reading is not None:
                good += 1
                self._publish(reading)
        child.stdout.close()
        code = child.wait()
        with self._news:
            self._problem = f"it ended with status {code}"
        return good

    def _start(self) -> subprocess.Popen[bytes] | None:
        with self._news:
            if self._closing.is_set():
                return None
            try:
                self._started_s = self._clock()
                self._child = subprocess.Popen(
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    env={**os.environ, "LC_ALL": "C"},
                    # Ctrl-C is for edge: the child must live until the current frame is done.
                    start_new_session=True,
                )
            except OSError as exc:
                self._problem = f"it cannot be started: {exc.strerror or exc}"
                return None
            return self._child

    def _publish(self, reading: Reading) -> None:
        state = self._board.read()
        loads = {**state.loads_percent, **reading.loads_percent}
        with self._news:
            if self._total is None:
                self._total = total_of(reading.rails_mw)
            self._latest = Reading(
                t_s=reading.t_s,
                # The first line settled the scope: a later line with fewer rails has no power.
                power_mw=None if self._total is None else self._total.power_mw(reading.rails_mw),
                rails_mw=reading.rails_mw,
                temps_c={**state.temps_c, **reading.temps_c},
                loads_percent=loads,
                # Without root some releases leave out the GPU's clock, which sysfs shows to every user.
                clocks_mhz={**state.clocks_mhz, **reading.clocks_mhz},
                throttles=state.throttles,
                throttling=state.throttling,
                power_mode=state.power_mode,
                clocks_locked=state.clocks_locked,
                warnings=reading.warnings,
                absent={k: why for k, why in state.absent.items() if k.removesuffix(" load") not in loads},
            )
            self._news.notify_all()


def _command(root: Path, interval_ms: int) -> list[str]:
    command = [str(root / "usr/bin/tegrastats"), "--interval", str(interval_ms)]
    # When they write to a pipe, C programs buffer their output by default: lines would come late and in bursts.
    stdbuf = root / "usr/bin/stdbuf"
    return [str(stdbuf), "-oL", *command] if stdbuf.exists() else command


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(timeout=2)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()

"""The wall clock may be set while a run goes (NTP, a board without a battery): nothing that is measured depends on it.

A library is loaded before the process that gives it another day at every look at the wall clock; the monotonic clock is
left as it is. So every library in the process is under test, not only ours.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge.artifacts import run_record
from tests.support.network_camera import Server

Process = Callable[..., Any]
Place = Callable[..., Path]

_SHIM = r"""
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long days(void) {
    static long looks;
    return (__sync_fetch_and_add(&looks, 1) % 7 - 3) * 86400L;
}

int clock_gettime(clockid_t id, struct timespec *now) {
    int failed = syscall(SYS_clock_gettime, id, now);
    if (!failed && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) now->tv_sec += days();
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec t;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &t);
    now->tv_sec = t.tv_sec;
    now->tv_usec = t.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *where) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    if (where) *where = t.tv_sec;
    return t.tv_sec;
}
"""
_HOUR_MS = 3.6e6


@pytest.fixture
def jumping(tmp_path: Path) -> dict[str, str]:
    """Environment of a process whose wall clock jumps by days."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    source, library = tmp_path / "jumping.c", tmp_path / "jumping.so"
    source.write_text(_SHIM)
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source)], check=True)
    environment = {"LD_PRELOAD": str(library)}
    look = "import time; seen = [time.time() for _ in range(7)]; print(max(seen) - min(seen) > 5 * 86400)"
    said = subprocess.run([sys.executable, "-c", look], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "True"
    return environment


def test_a_wall_clock_that_jumps_by_days_changes_nothing_that_is_measured(
    edge_process: Process, built: Place, server: Server, jumping: dict[str, str]
) -> None:
    folder = built(record={"flush_s": 0.5, "every_frame": True}, telemetry={"log": "../log.jsonl"})
    head = {"edge_telemetry": 1, "source": "hwmon", "scope": "module_input", "started_utc": "2026-01-01T00:00:00+00:00"}
    readings = [{"t_s": n / 10, "power_mw": 5000.0} for n in range(3000)]
    (folder / "power.jsonl").write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in [head, *readings]))
    ended = edge_process(
        "run", "--profile", "tiny", "--camera", server.url, "--duration", "5s", "--power", "replay:power.jsonl",
        "--record", "r.jsonl", env=jumping,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    kept = run_record.load(folder / "r.jsonl")
    assert kept.status == "complete"
    assert 5.0 <= kept.measured_s < 60.0
    assert kept.pictures == len(kept.results) > 5
    for result in kept.results:
        times = [value for value in msgspec.structs.astuple(result.stages) if value is not None]
        assert all(0.0 <= value < _HOUR_MS for value in times)
    for before, after in pairwise(kept.results):
        assert before.seq < after.seq
        assert before.t_s < after.t_s <= kept.measured_s
    assert [tick.t_s for tick in kept.timeline[:5]] == [1.0, 2.0, 3.0, 4.0, 5.0]
    logged = [msgspec.json.decode(line)["t_s"] for line in (folder / "log.jsonl").read_bytes().splitlines()[1:]]
    assert all(0.0 <= after - before < 3600.0 for before, after in pairwise(logged))
    if kept.power is None:
        # A machine that stood still for a second: a hole of that length, and of no days.
        hole = re.search(r"no power was read for ([\d.]+) s", kept.power_unavailable or "")
        assert hole is not None, kept.power_unavailable
        assert float(hole[1]) <= kept.measured_s
    else:
        assert kept.power["window_s"] == pytest.approx(kept.measured_s, abs=0.5)
        assert kept.power["joules"] == pytest.approx(5.0 * kept.power["window_s"], rel=1e-6)

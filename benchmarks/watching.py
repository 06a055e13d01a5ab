"""What the web page and the metrics take from the throughput of edge run.

    python benchmarks/watching.py [--seconds 90] [--eval DIR]      (after edge build; the profile host, INT8)

* ``nobody``: what each frame costs the loop while no client is connected, in microseconds: one call of each listener.
* ``page``: one long run with ``--web``. A client that asks as the page does (the state once a second, a new picture
  five times a second) comes and goes every 1.5 seconds; the pictures labelled with and without it, of neighbouring
  stretches, are compared. The client is this script, on the same cores, so its own work is in the figure.
* ``scrape``: the same with ``--metrics`` and one scrape a second.

One process and short stretches, because a shared machine changes its speed by more than is measured here from one
command to the next. Quoted: the median ratio of neighbours, with its 95 % interval by bootstrap.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from edge.runtime.run_statistics import RunStatistics  # noqa: E402
from edge.ui.web.view import RunView  # noqa: E402
from tests.support.run_records import made  # noqa: E402 - found by the line above

STRETCH_S = 1.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eval", type=Path, default=ROOT.parent / "shared/data/eval")
    parser.add_argument("--seconds", type=int, default=90)
    options = parser.parse_args()
    source = options.eval if options.eval.is_dir() else ROOT / "samples"
    pictures = sorted(source.rglob("*.jp*g"), key=lambda path: path.name)
    print(f"cores: {len(os.sched_getaffinity(0))}; pictures of {source.name}; {options.seconds} s each")
    nobody()
    with tempfile.TemporaryDirectory(prefix="edge-watching-") as name:
        listed = Path(name) / "list.txt"
        # More than can be classified in the time: --duration ends the run.
        listed.write_text("".join(f"{pictures[i % len(pictures)].resolve()}\n" for i in range(1000 * options.seconds)))
        for kind in ("page", "scrape"):
            ratios = stretches(kind, listed, options.seconds)
            low, high = interval(ratios)
            median = statistics.median(ratios)
            print(f"{kind}: {median:.3f} [{low:.3f}, {high:.3f}] of the rate without, {len(ratios)} stretches")


def nobody(n: int = 20_000) -> None:
    """Microseconds per frame of the listeners, with nobody there."""
    record = made(100)
    statistics = RunStatistics()
    view = RunView(statistics, record.subject, headline="", power="")
    pixels = np.zeros((480, 640, 3), np.uint8)
    for name, calls in (
        ("statistics", [statistics.record]), ("--web", [lambda result: view.show(pixels, result)]),
    ):  # fmt: skip
        times = []
        for _ in range(5):
            began = time.perf_counter()
            for index in range(n):
                for call in calls:
                    call(record.results[index % 100])
            times.append((time.perf_counter() - began) / n * 1e6)
        print(f"nobody, {name}: {min(times):.1f} microseconds per frame")


def stretches(kind: str, listed: Path, seconds: int) -> list[float]:
    """Ratios of the rate with the client to that without, of neighbouring stretches of one run."""
    record = listed.with_name(f"{kind}.jsonl")
    # The profile of this host, with a line per frame in one large record.
    profile = ROOT / "profiles" / f".watching-{os.getpid()}.yaml"
    profile.write_text("extends: host\nname: host\nrecord: {every_frame: true, size_mib: 1024}\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "edge", "run", "--profile", profile, "--images", listed, "--duration", f"{seconds}s",
         "--record", record,
         "--web", "127.0.0.1:0", "--metrics", "127.0.0.1:0"],
        cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    port = None
    while port is None:
        line = process.stderr.readline()
        if not line:
            sys.exit("edge run did not start: edge build --profile host")
        found = re.match(r"web: http://127\.0\.0\.1:(\d+)/", line)
        port = int(found[1]) if found else None
    spans: list[tuple[float, float, bool]] = []
    client = threading.Thread(target=come_and_go, args=(kind, port, spans), daemon=True)
    client.start()
    rest = process.stderr.read()
    profile.unlink()
    if process.wait() != 0:
        sys.exit(rest)
    client.join()
    lines = map(json.loads, record.read_text().splitlines())
    times = np.array(sorted(line["result"]["t_s"] for line in lines if "result" in line))
    rates = [(np.searchsorted(times, end) - np.searchsorted(times, start)) / (end - start) for start, end, _ in spans]
    # A stretch with the client against the mean of the two next to it, so that a slow drift falls out.
    return [
        float(rates[i] / ((rates[i - 1] + rates[i + 1]) / 2))
        for i in range(1, len(spans) - 1)
        if spans[i][2] and rates[i - 1]
    ]


def come_and_go(kind: str, port: int, spans: list[tuple[float, float, bool]]) -> None:
    """Look for a stretch, be away for one, until nobody answers; ``spans`` are on the clock of the run."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)

    def ask(path: str) -> bytes:
        connection.request("GET", path)
        return connection.getresponse().read()

    there = False
    try:
        while (start_s := json.loads(ask("/state?since=1e9"))["t_s"]) < 3.0:
            time.sleep(0.2)
        while True:
            until, tick = time.monotonic() + STRETCH_S, 0
            while (left := until - time.monotonic()) > 0:
                if not there:
                    time.sleep(left)
                    continue
                if kind == "page":
                    ask("/frame.jpg")
                if tick % 5 == 0:
                    ask("/metrics" if kind == "scrape" else f"/state?since={start_s}")
                tick += 1
                time.sleep(min(0.2, max(until - time.monotonic(), 0.0)))
            end_s = json.loads(ask("/state?since=1e9"))["t_s"]
            spans.append((start_s, end_s, there))
            start_s, there = end_s, not there
    except (OSError, http.client.HTTPException):
        connection.close()


def interval(values: list[float]) -> tuple[float, float]:
    """95 % interval of the median, by bootstrap."""
    noise = random.Random(0)
    medians = sorted(statistics.median(noise.choices(values, k=len(values))) for _ in range(2000))
    return medians[50], medians[1949]


if __name__ == "__main__":
    main()

"""How calibration scales: pictures per second of one and of two workers, as processes and as Dask workers.

    python benchmarks/calibration_scaling.py 1600 --images DIR

Counts the pictures (repeated until there are as many as asked for) with the sample model, one thread per worker, and
with everything that `edge calibrate` does meanwhile: adding up, checkpoints, progress. The rate is that of the steady
state: from when each worker has given its first two shares until the end. Rounds alternate; the medians are compared.

Every rate comes with the number of cores that other programs used meanwhile: above a few hundredths it says more about
them. ``--others`` repeats such a run, a few times.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import psutil

from edge.calibration import dask_workers, workflow
from edge.calibration.collection import Executor
from edge.calibration.worker_processes import Processes
from edge.config import profiles
from edge.events import Event, Progress
from edge.media.picture_sources import open_pictures
from edge.media.pictures import Pictures

# How often a run is repeated that others disturbed.
ATTEMPTS = 10
ROOT = Path(__file__).resolve().parents[1]
Hire = Callable[[int], AbstractContextManager[Executor]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=int, nargs="?", default=1600)
    parser.add_argument("--images", type=Path, default=ROOT.parent / "shared/data/calib")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--others", type=float, default=2.0, help="cores that others may use during a run")
    parser.add_argument("--engine", choices=("processes", "dask", "both"), default="both")
    options = parser.parse_args()
    pictures = repeated(options.images, options.pictures)
    print(f"{len(pictures)} pictures, {os.cpu_count()} cores, load {os.getloadavg()[0]:.2f} before", flush=True)
    for engine, crew in (("processes", processes), ("dask", dask)):
        if options.engine in (engine, "both"):
            compare(engine, crew, pictures, rounds=options.rounds, others=options.others)


def compare(engine: str, crew: Hire, pictures: Pictures, *, rounds: int, others: float) -> None:
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for workers, found in rates.items():
            for _attempt in range(ATTEMPTS):
                with crew(workers) as who:
                    speed, foreign, own = rate(who, pictures, workers)
                say = f"{speed:.1f} pictures/s, {own * 1e3:.1f} ms of CPU each, others {foreign:.2f} cores"
                print(f"  {engine} {workers}: {say}", flush=True)
                if foreign <= others:
                    found.append(speed)
                    break
    if not all(rates.values()):
        print(f"{engine:<12}no comparison: other programs used more than {others:g} cores each time", flush=True)
        return
    one, two = (statistics.median(found) for found in rates.values())
    runs = "/".join(str(len(found)) for found in rates.values())
    print(f"{engine:<12}1 worker {one:.1f}/s   2 workers {two:.1f}/s   ratio {two / one:.2f}   runs {runs}", flush=True)


@contextmanager
def processes(workers: int) -> Iterator[Executor]:
    yield Processes(workers)


@contextmanager
def dask(workers: int) -> Iterator[Executor]:
    import distributed

    with (
        distributed.LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as local,
        dask_workers.connect(local.scheduler_address) as crew,
    ):
        yield crew


def rate(crew: Executor, pictures: Pictures, workers: int) -> tuple[float, float, float]:
    """Pictures per second in the steady state, cores used by other programs, CPU seconds per picture."""
    chosen = profiles.read_profile(ROOT / "profiles/host.yaml")
    seen: list[tuple[float, int, float, float]] = []

    def listen(event: Event) -> None:
        if isinstance(event, Progress) and event.stage == "calibrate" and event.done:
            seen.append((time.perf_counter(), event.done, *cpu_seconds()))

    with tempfile.TemporaryDirectory(prefix="edge-benchmark-") as cache:
        workflow.calibrate(chosen, pictures, cache=Path(cache), executor=crew, listen=listen)
    seconds, done, everybody, own = (end - start for start, end in zip(seen[2 * workers - 1], seen[-1], strict=True))
    return done / seconds, (everybody - own) / seconds, own / done


def cpu_seconds() -> tuple[float, float]:
    """CPU time that the machine, and that this process with its children, have spent so far."""
    machine = psutil.cpu_times()
    me = psutil.Process()
    own = sum(sum(process.cpu_times()[:2]) for process in (me, *me.children(recursive=True)))
    return machine.user + machine.nice + machine.system + machine.irq + machine.softirq + machine.steal, own


def repeated(images: Path, count: int) -> Pictures:
    """``count`` pictures of a folder, over and over."""
    found = list(open_pictures(images))
    return Pictures(images, [found[index % len(found)] for index in range(count)])


if __name__ == "__main__":
    main()

"""What a full sweep costs next to one calibration, stage by stage.

    python benchmarks/sweep_cost.py [--images DIR] [--eval DIR with labels.csv] [--seeds 3] [--output FILE]

One calibration (entropy2 over all pictures, statistics and table), then a sweep of all algorithms, 50, 100, 200 and all
pictures, three seeds, both with all cores in this process. What must cost little more than one calibration is making
the tables: ``count`` (one pass over the pictures for all subsets) and ``tables`` (statistics to ranges). ``score`` runs
each different table's INT8 network over all labelled pictures; it is given next to that many bare INT8 forward passes.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from edge.backends.onnxruntime import OrtSession
from edge.calibration import workflow
from edge.config import profiles
from edge.media.picture_sources import open_pictures
from edge.model import onnx_model
from edge.quantization import calibration_table, qdq
from edge.tuning import sweep, sweep_tables

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = ROOT.parent / "shared/data"
    parser.add_argument("--images", type=Path, default=shared / "calib")
    parser.add_argument("--eval", type=Path, default=shared / "eval")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="keep the sweep's record here (edge sweep --from shows it)")
    options = parser.parse_args()
    chosen = profiles.read_profile(ROOT / "profiles/host.yaml")
    pictures, labelled = (
        open_pictures(options.images),
        list(open_pictures(options.eval, labels=options.eval / "labels.csv")),
    )
    with tempfile.TemporaryDirectory(prefix="edge-benchmark-") as name:
        cache = Path(name)
        start = time.perf_counter()
        outcome = workflow.calibrate(chosen, pictures, cache=cache)
        if outcome is None:
            raise SystemExit("stopped")
        one = time.perf_counter() - start
        pass_s = int8_pass_s(chosen, outcome.table, len(labelled))
        settings = sweep_tables.SweepSettings(
            candidates=sweep_tables.candidates([]), sizes=sweep_tables.sizes([], len(pictures)), seeds=options.seeds
        )
        start = time.perf_counter()
        record = sweep.sweep(
            chosen, pictures, labelled, settings, cache=cache / "sweep", output=options.output, force=True
        )
        whole = time.perf_counter() - start
    if record is None or record.findings is None:
        raise SystemExit("stopped")
    scored = len({configuration.table for configuration in record.configurations})
    print(f"one calibration, {len(pictures)} pictures: {one:.1f} s")
    print(f"sweep, {len(record.configurations)} configurations, {scored} different tables: {whole:.1f} s")
    for stage, seconds in record.seconds.items():
        print(f"  {stage:<10}{seconds:>8.1f} s  {seconds / one:>6.2f} calibrations")
    tables = sum(record.seconds.get(stage, 0.0) for stage in ("count", "tables"))
    print(f"  all tables made: {tables:.1f} s, {tables / one:.2f} calibrations")
    bare = pass_s * (scored + 1)
    print(
        f"  bare INT8 forward passes for the scores: {bare:.1f} s; scoring takes {record.seconds['score'] / bare:.2f}"
    )


def int8_pass_s(chosen: profiles.Profile, where: Path, pictures: int) -> float:
    """Seconds of one INT8 pass over as many pictures, with every core on pictures of its own: the best of three."""
    proto = onnx_model.read(Path(chosen.model))
    network = qdq.insert(proto, calibration_table.parse(where.read_bytes()), target="onnxruntime").model
    session = OrtSession(network.SerializeToString(), precision="int8", threads=1)
    size = (1, 3, chosen.input.height, chosen.input.width)
    batch = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    times = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in range(3):
            start = time.perf_counter()
            list(pool.map(session.outputs, [batch] * pictures))
            times.append(time.perf_counter() - start)
    return min(times)


if __name__ == "__main__":
    main()

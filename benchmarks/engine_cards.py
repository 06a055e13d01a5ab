"""What it costs to know what an engine is made of, and how much of the network is found again in its layers.

    python benchmarks/engine_cards.py [--model models/efficientnet_lite0.onnx]

Per precision: a build by ONNX Runtime, next to the same build without looking into the engine; the kept description;
the report card; and the share of ONNX nodes that are found in a layer of the optimized graph. Times are medians of
five.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import msgspec

from edge.backends import interface
from edge.backends.interface import BuildRequest
from edge.backends.onnxruntime import OrtSession
from edge.calibration import cache_keys
from edge.config import profiles
from edge.engines import building, engine_report, inventory
from edge.model import inspection
from edge.quantization import qdq

ROOT = Path(__file__).resolve().parents[1]
REPEATS = 5


def median_ms(work: Callable[..., Any], *arguments: object) -> float:
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work(*arguments)
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=ROOT / "models/efficientnet_lite0.onnx")
    chosen = profiles.read_profile(ROOT / "profiles/host.yaml")
    chosen = msgspec.structs.replace(chosen, model=str(parser.parse_args().model.resolve()))
    backend = interface.get("onnxruntime")
    cache = ROOT / "calib_cache"
    print(f"model {Path(chosen.model).name}, median of {REPEATS}\n")
    columns = ("", "build", "bare build", "layers file", "card", "page", "nodes found")
    print("{:<6}{:>12}{:>14}{:>14}{:>10}{:>12}{:>16}".format(*columns))
    with tempfile.TemporaryDirectory() as name:
        engines = Path(name)
        for precision in ("fp32", "int8"):
            table = cache_keys.read_table(cache_keys.find_table(chosen, cache)) if precision == "int8" else None
            request = BuildRequest(profile=chosen, model=Path(chosen.model), precision=precision, table=table)
            looked = backend.build(request).inspection
            assert looked is not None
            made = {name for layer in looked.layers for name in layer.nodes}
            found = sum(node.name in made for node in looked.nodes)
            outcome = building.build(chosen, backend, cache=cache, engines=engines, precision=precision)
            shown = engine_report.load(outcome.manifest)
            print(
                f"{precision:<6}{median_ms(backend.build, request):>9.0f} ms"
                f"{median_ms(bare, request):>11.0f} ms"
                f"{len(inspection.encode_inspection(looked)) / 1024:>10.0f} KiB"
                f"{median_ms(engine_report.load, outcome.manifest):>7.0f} ms"
                f"{median_ms(engine_report.render, shown):>9.0f} ms"
                f"{found:>9} of {len(looked.nodes)}"
            )
        look = inventory.InventoryScan(resolve=lambda _name: chosen, backend=interface.get, cache=cache)
        print(f"\nlist of two engines: {median_ms(inventory.scan, engines, look):.0f} ms with digests, ", end="")
        fast = msgspec.structs.replace(look, verify=False)
        print(f"{median_ms(inventory.scan, engines, fast):.0f} ms without")


def bare(request: BuildRequest) -> None:
    """What a build has to do at least: the Q/DQ form, and one session that shows that the engine opens."""
    from edge.model import onnx_model

    proto = onnx_model.read(request.model)
    if request.table is not None:
        proto = qdq.insert(proto, request.table, target="onnxruntime").model
    OrtSession(proto.SerializeToString(), precision=request.precision, threads=1).close()


if __name__ == "__main__":
    main()

"""Records made by hand, in the shape that a run writes."""

from __future__ import annotations

import math
import random
from typing import Any

from edge.artifacts.run_record import (
    FORMAT,
    FrameResult,
    Gap,
    Guess,
    LabelCount,
    RunRecord,
    Skip,
    Stages,
    Subject,
    Tick,
    Warmup,
)
from edge.stats import QuantileSketch, summarize

ORIN = {
    "is_jetson": True, "family": "orin-nano", "module": "p3767-0005", "product": "Orin Nano 8GB developer kit",
    "jetpack": "6.2", "power_mode": "25W", "clocks_locked": False,
}  # fmt: skip
POWER = {
    "source": "hwmon", "scope": "module_input", "samples": 600, "window_s": 60.0, "joules": 420.0, "mean_mw": 7000.0,
    "error_joules": 4.2, "interval_s": 0.1, "longest_gap_s": 0.12, "idle_mw": 4700.0, "net_joules": 138.0,
}  # fmt: skip
BACKEND = {"backend": "tensorrt", "tensorrt": "10.3.0"}


def made(n: int = 600, *, slower: float = 1.0, seed: int = 0, live: bool = True, **changes: Any) -> RunRecord:
    """A run of 60 s at ``n`` pictures, ``slower`` times as slow; ``changes`` replace fields of the record."""
    noise = random.Random(seed)
    results = []
    for index in range(n):
        wave = 1 + 0.1 * math.sin(index / 40)
        infer = 6.0 * slower * wave * noise.lognormvariate(0, 0.05)
        total = infer + 1.4
        stages = Stages(
            decode_ms=0.8, preprocess_ms=0.4, infer_ms=infer, postprocess_ms=0.2, total_ms=total,
            age_ms=total + 20 if live else total + 0.1, host_to_device_ms=0.1, device_to_host_ms=0.05,
        )  # fmt: skip
        label = ("giant_panda", "hen", "espresso")[index % 3]
        results.append(
            FrameResult(seq=index, name=f"{index:04d}.jpg", guesses=[Guess(index % 3, label, 0.9)], stages=stages,
                   t_s=60.0 * index / max(n, 1))
        )  # fmt: skip
    content: dict[str, Any] = {
        "format": FORMAT, "edge_version": "0.1.0", "started_utc": "2026-11-25T10:00:00+00:00", "status": "complete",
        "failure": None, "replayed": None, "pictures": n, "skipped": [Skip(7, "0007.jpg", "the image is empty")],
        "skipped_count": 1, "dropped": 31 if live else None,
        "subject": Subject(
            profile="orin-nano", profile_digest="a" * 64, model="models/efficientnet_lite0.onnx", model_sha256="b" * 64,
            engine_sha256="c" * 64, table_sha256="d" * 64, preprocess_digest="e" * 64, backend=BACKEND,
            precision="int8", layers={"weighted_int8": 50, "weighted": 50}, device=ORIN, source="0",
        ),
        "source": {"kind": "camera" if live else "pictures", "opened_as": "/dev/video0", "live": live, "width": 1280,
                   "height": 720, "fps": 30.0},
        "gaps": [Gap(start_s=20.0, end_s=24.5, reason="no frame for 2 s", reopened_as="/dev/video1", attempts=3)]
        if live else [],
        "warmup": Warmup(10, 55.0, 6.1), "measured_s": 60.0, "rate_per_s": n / 60.0 if n else None,
        "latency": _latency(results), "histogram": _histogram(results), "timeline": _timeline(results, slower),
        "stages_absent": {}, "power": POWER, "power_unavailable": None,
        "conditions": {"readings": 600, "temps_c": {"tj": {"low": 48.0, "mean": 52.0, "high": 57.5}},
                       "throttles": {"oc3_event_cnt": 2}, "throttling": ["cpu-throttle-alert"]},
        "top_labels": [LabelCount(i, label, n // 3) for i, label in enumerate(("giant_panda", "hen", "espresso"))],
        "warnings": ["the device was throttled during the run"], "results": results, "results_kept": "all",
    }  # fmt: skip
    return RunRecord(**(content | changes))


def _latency(results: list[FrameResult]) -> dict[str, Any]:
    found = {}
    for stage in ("decode", "preprocess", "host_to_device", "infer", "device_to_host", "postprocess", "total", "age"):
        summary = summarize([getattr(result.stages, f"{stage}_ms") for result in results])
        if summary is not None:
            found[stage] = summary
    return found


def _histogram(results: list[FrameResult]) -> dict[str, Any]:
    found = {}
    for stage in ("infer", "total", "age"):
        sketch = QuantileSketch()
        for result in results:
            sketch.add(getattr(result.stages, f"{stage}_ms"))
        found[stage] = sketch.bins()
    return found


def _timeline(results: list[FrameResult], slower: float) -> list[Tick]:
    ticks = []
    for second in range(60):
        own = sorted(r.stages.total_ms for r in results if second <= r.t_s < second + 1)
        ticks.append(
            Tick(
                t_s=second + 1.0, frames=len(own), dropped=second % 2, total_p50_ms=own[len(own) // 2] if own else None,
                total_max_ms=own[-1] if own else None, age_p50_ms=own[0] + 20 if own else None,
                age_max_ms=own[-1] + 20 if own else None, power_mw=7000.0 * slower + 300 * math.sin(second / 5),
                temps_c={"cpu": 48 + second / 10, "tj": 50 + second / 8}, loads_percent={"gpu": 70.0},
                throttling=("cpu-throttle-alert",) if 40 <= second < 46 else (),
            )
        )  # fmt: skip
    return ticks

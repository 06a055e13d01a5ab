"""What a TensorRT session adds to the GPU's own time, per inference.

    python benchmarks/runner_overhead.py

The engine is a double of TensorRT whose work is one trivial kernel, so nearly all of the wall time is the session's:
copying the batch to page-locked memory, enqueueing, events, waiting, copying the logits. From it is taken the device's
own time, which the events measure. Without a GPU the device is a double too, in host memory, and all wall time counts.
"""

from __future__ import annotations

import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from edge.backends.cuda.driver import open_device
from edge.backends.cuda.protocols import GpuDevice
from edge.backends.tensorrt import environment
from edge.backends.tensorrt.runner import TrtSession
from edge.errors import EdgeError
from tests.support.cuda.host_device import HostDevice
from tests.support.tensorrt.engine_double import addresses, tensorrt, write_engine

SIDE, CLASSES, RUNS, WARMUP = 224, 1000, 2000, 200
KERNEL = """
struct Job { const float* input; float* output; int count; };
extern "C" __global__ void edge_test_trivial(const Job job) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < job.count) job.output[i] = job.input[i];
}
"""


def main() -> None:
    try:
        name, on_gpu = open_device().name, True
    except EdgeError as exc:
        name, on_gpu = f"host memory ({exc.what})", False
    print(f"device: {name}")
    print(
        f"one 3×{SIDE}×{SIDE} float32 picture, {CLASSES} classes, {RUNS} inferences; wall time less the device's, in µs"
    )
    print(f"{'':<44}{'median':>8}{'p90':>8}{'p99':>8}")
    for graphs in (True, False):
        report("CUDA graph" if graphs else "enqueued", overheads_us(on_gpu=on_gpu, graphs=graphs))
    print("the aim is under 150")


def overheads_us(*, on_gpu: bool, graphs: bool) -> list[float]:
    """Wall time of each inference less the device's own."""
    device: Any = open_device() if on_gpu else HostDevice()
    module = tensorrt("10.3.0", device)
    module.world.launch = trivial(device) if on_gpu else lambda *_: device.put("run", lambda: None, 0.0)
    sys.modules["tensorrt"] = module
    session = opened(device, graphs=graphs)
    batch = np.random.default_rng(0).normal(size=(1, 3, SIDE, SIDE)).astype(np.float32)
    times = []
    for _ in range(WARMUP + RUNS):
        start = time.perf_counter()
        result = session.infer(batch)
        wall_ms = (time.perf_counter() - start) * 1e3
        stages = (result.host_to_device_ms, result.infer_ms, result.device_to_host_ms)
        times.append(1e3 * (wall_ms - sum(stage or 0.0 for stage in stages) * on_gpu))
    session.close()
    return times[WARMUP:]


def opened(device: GpuDevice, *, graphs: bool) -> TrtSession:
    """A session with an engine for one picture."""
    with tempfile.TemporaryDirectory(prefix="edge-benchmark-") as folder:
        path = write_engine(
            Path(folder) / "an.engine",
            inputs={"images": ["FLOAT", [1, 3, SIDE, SIDE]]},
            outputs={"logits": ["FLOAT", [1, CLASSES]]},
        )
        return TrtSession(path, environment.load(), precision="fp32", device=device, graphs=graphs)


def trivial(device: GpuDevice) -> Callable[..., None]:
    """What is in TensorRT's place: the kernel above, on the session's stream."""
    with device.active():
        module = device.kernels(KERNEL)

    def launch(context: object, _stream: int) -> None:
        at = addresses(context)
        job = struct.pack("=QQii", at["images"], at["logits"], CLASSES, 0)
        module.launch("edge_test_trivial", job, grid=(CLASSES // 128 + 1, 1, 1), threads=128, shared=0)

    return launch


def report(title: str, times: list[float]) -> None:
    ordered = sorted(times)
    tail = [ordered[int(len(ordered) * share)] for share in (0.9, 0.99)]
    print(f"{title:<44}{statistics.median(ordered):>8.1f}{tail[0]:>8.1f}{tail[1]:>8.1f}", flush=True)


if __name__ == "__main__":
    main()

"""How busy ``edge run``'s loop keeps a GPU, and what it adds to the latency of a frame.

    python benchmarks/gpu_loop.py [MILLISECONDS…]

The engine is a double of TensorRT whose work is a kernel that spins for the given time (0.64 and 0.3 ms) on one
multiprocessor. Frames of 1280×720 come from memory and are preprocessed on the GPU. The GPU's own rate is that of the
engine's kernel alone, launched without a pause. Latency is that of the loop without decoding: from the submission of a
frame to its label, less the kernel's time.
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

from edge.artifacts import Subject
from edge.backends.cuda import GpuDevice, open_device
from edge.backends.cuda.protocols import Kernels
from edge.backends.tensorrt import environment
from edge.backends.tensorrt.runner import TrtSession
from edge.config import InputConfig, PreprocessConfig
from edge.media.streams import Frame, OpenedSource
from edge.runtime import run_loop
from edge.runtime.pipeline import Width
from edge.telemetry import NoSource, Telemetry
from tests.support.tensorrt.engine_double import addresses, tensorrt, write_engine

SIDE, CLASSES, FRAMES = 224, 1000, 3000
KERNEL = """
struct Job { const float* input; float* output; int count; int microseconds; };
extern "C" __global__ void edge_test_spin(const Job job) {
  unsigned long long start, now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(start));
  do asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now)); while (now - start < job.microseconds * 1000ull);
  for (int i = threadIdx.x; i < job.count; i += blockDim.x) job.output[i] = job.input[i];
}
"""
SUBJECT = Subject(
    profile="benchmark", profile_digest="", model="", model_sha256="", engine_sha256="", table_sha256=None,
    preprocess_digest="", backend={}, precision="fp32", layers={}, device={}, source="memory",
)  # fmt: skip


class Memory:
    """Frames that are in memory, one after the other; the engine is never waiting for one of them."""

    def __init__(self, count: int) -> None:
        self.opened = OpenedSource(kind="memory", opened_as="memory", live=False, width=1280, height=720)
        self.dropped, self.notes = None, []
        chance = np.random.default_rng(0)
        self._frames = [chance.integers(0, 256, (720, 1280, 3), np.uint8) for _ in range(8)]
        self._left, self._number = count, 0

    def next(self) -> Frame | None:
        """The next frame."""
        if not self._left:
            return None
        self._left -= 1
        self._number += 1
        pixels = self._frames[self._number % len(self._frames)]
        return Frame(self._number, str(self._number), "memory", time.monotonic(), lambda: pixels)

    def close(self) -> None:
        """Give no more."""
        self._left = 0


def main() -> None:
    device = open_device()
    print(f"GPU {device.name}; {FRAMES} frames of 1280×720 from memory, preprocessed on the GPU, batch 1")
    print(f"{'engine':<12}{'alone /s':>10}{'loop /s':>10}{'share':>8}{'added µs p50':>14}{'p99':>8}")
    device.close()
    for asked in [float(text) for text in sys.argv[1:]] or [0.64, 0.3]:
        row(asked)


def row(asked_ms: float) -> None:
    device: Any = open_device()
    module = tensorrt("10.3.0", device)
    with device.active():
        kernels = device.kernels(KERNEL)
    module.world.launch = spin(kernels, round(asked_ms * 1000))
    sys.modules["tensorrt"] = module
    with tempfile.TemporaryDirectory(prefix="edge-benchmark-") as folder:
        path = write_engine(
            Path(folder) / "an.engine",
            inputs={"images": ["FLOAT", [1, 3, SIDE, SIDE]]},
            outputs={"logits": ["FLOAT", [1, CLASSES]]},
        )
        session = TrtSession(path, environment.load(), precision="fp32", device=device)
    alone_ms = alone(device, kernels, round(asked_ms * 1000))
    session.preprocess_on_gpu(PreprocessConfig(), InputConfig())
    times: list[float] = []
    settings = run_loop.RunSettings(width=Width(prepare=2))
    record = run_loop.run(
        Memory(FRAMES), sessions=[session], preprocessor=None, names=[str(i) for i in range(CLASSES)], subject=SUBJECT,
        settings=settings, telemetry=Telemetry(sampler=None, no_power=NoSource(())),
        observers=run_loop.Observers(on_event=lambda event: times.append(1e3 * (event.stages.total_ms - alone_ms))),
    )  # fmt: skip
    session.close()
    rate = FRAMES / record.measured_s
    ordered = sorted(times[200:])
    tail = ordered[int(len(ordered) * 0.99)]
    print(
        f"{asked_ms:>6.2f} ms   {1e3 / alone_ms:>10.0f}{rate:>10.0f}{rate * alone_ms / 1e3:>8.1%}"
        f"{statistics.median(ordered):>14.0f}{tail:>8.0f}",
        flush=True,
    )


def spin(kernels: Kernels, microseconds: int) -> Callable[..., None]:
    def launch(context: object, _stream: int) -> None:
        at = addresses(context)
        job = struct.pack("=QQii", at["images"], at["logits"], CLASSES, microseconds)
        kernels.launch("edge_test_spin", job, grid=(1, 1, 1), threads=128, shared=0)

    return launch


def alone(device: GpuDevice, kernels: Kernels, microseconds: int) -> float:
    """Milliseconds of the engine's kernel, of 500 without a pause."""
    with device.active():
        memory = device.memory(3 * SIDE * SIDE * 4)
        target = device.memory(CLASSES * 4)
        job = struct.pack("=QQii", memory.address, target.address, CLASSES, microseconds)
        start, end = device.event(), device.event()
        device.record(start)
        for _ in range(500):
            kernels.launch("edge_test_spin", job, grid=(1, 1, 1), threads=128, shared=0)
        device.record(end)
        device.synchronize()
        found = float(device.elapsed_ms(start, end)) / 500
        memory.free()
        target.free()
    return found


if __name__ == "__main__":
    main()

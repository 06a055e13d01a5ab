"""Preprocessing on the GPU: how near to the memory's bandwidth, and how much faster than the CPU path.

    python benchmarks/cuda_preprocess.py

A batch of 32 frames of 1280×720 to 224: the bytes that crop and scale must read and the output must write, over the
time of a launch, beside what a copy reaches on the same GPU in the same run. Eight sets of frames and outputs take
turns, so that none is found in the cache. Then one frame from host memory to the network's input, beside the CPU path:
its upload and kernel alone, and with the copy to page-locked memory that comes before.
"""

from __future__ import annotations

import functools
import statistics
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from edge.backends.cuda import kernels
from edge.backends.cuda.driver import open_device
from edge.backends.cuda.gpu_preprocessor import GpuPreprocessor
from edge.backends.cuda.kernels import FrameLayout
from edge.backends.cuda.protocols import GpuDevice
from edge.config.profiles import InputConfig, PreprocessConfig
from edge.model.preprocessing import Preprocessor

HEIGHT, WIDTH, BATCH, SETS, REPEATS = 720, 1280, 32, 8, 30
TARGET = InputConfig()
COPY = """
struct Job { const float4* from; float4* to; long long count; };
extern "C" __global__ void edge_copy(const Job job) {
  const long long step = static_cast<long long>(gridDim.x) * blockDim.x;
  for (long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x; i < job.count; i += step)
    job.to[i] = job.from[i];
}
"""


def main() -> None:
    device = open_device()
    say("GPU", f"{device.name}, compute capability {device.sm}")
    with device.active():
        ceiling = copy_rate(device)
        say("copy, read and written", f"{ceiling:.0f} GB/s")
        batches(device, ceiling)
    one_frame(device)
    device.close()


def copy_rate(device: GpuDevice) -> float:
    """GB/s of a plain copy of 1 GiB, bytes read and bytes written counted; the best of a few grids."""
    size = 1 << 30
    source, target = device.memory(size), device.memory(size)
    module = device.kernels(COPY)
    job = struct.pack("=QQq", source.address, target.address, size // 16)
    best = 0.0
    for blocks in (1024, 4096, 1 << 16):
        copy = functools.partial(module.launch, "edge_copy", job, grid=(blocks, 1, 1), threads=256, shared=0)
        best = max(best, 2 * size / launches_ms(device, copy, 10) / 1e6)
    source.free()
    target.free()
    return best


def batches(device: GpuDevice, ceiling: float) -> None:
    """A batch of camera frames, for each interpolation and both output types."""
    print(f"\n{BATCH} frames {WIDTH}×{HEIGHT} -> {TARGET.width}, whole frames in device memory")
    print(f"{'kernel':<24}{'MB':>8}{'µs':>9}{'GB/s':>8}{'of copy':>9}{'frames/s':>12}")
    for interpolation in ("bilinear", "bicubic", "nearest"):
        for half in (False, True):
            row(device, ceiling, PreprocessConfig(interpolation=interpolation), half=half)  # type: ignore[arg-type]
    row(device, ceiling, PreprocessConfig(fit="squash"), half=False, note=" squash")
    row(device, ceiling, PreprocessConfig(fit="letterbox"), half=False, note=" letterbox")


def row(device: GpuDevice, ceiling: float, spec: PreprocessConfig, *, half: bool, note: str = "") -> None:
    plan = kernels.plan(HEIGHT, WIDTH, spec, TARGET)
    took = batch_ms(device, spec, half=half)
    moved = BATCH * plan.bytes_moved(itemsize=2 if half else 4)
    rate = moved / took / 1e6
    name = f"{spec.interpolation}{' f16' if half else ' f32'}{note}"
    figures = f"{moved / 1e6:>8.1f}{took * 1e3:>9.2f}{rate:>8.0f}{rate / ceiling:>9.0%}{BATCH / took * 1e3:>12,.0f}"
    print(f"{name:<24}{figures}", flush=True)


def batch_ms(device: GpuDevice, spec: PreprocessConfig, *, half: bool) -> float:
    """Milliseconds of one launch, as one of eight that a graph puts on the stream one after the other."""
    module = device.kernels(kernels.source())
    plan = kernels.plan(HEIGHT, WIDTH, spec, TARGET)
    frame_bytes = 3 * WIDTH * HEIGHT
    host = device.pinned(max(frame_bytes, plan.table.nbytes))
    host.array[: plan.table.nbytes] = plan.table
    table = device.memory(plan.table.nbytes)
    device.upload(table.address, host.array[: plan.table.nbytes])
    device.synchronize()
    host.array[:frame_bytes] = np.random.default_rng(0).integers(0, 256, frame_bytes, np.uint8)
    memory = [device.memory(BATCH * frame_bytes + kernels.GUARD) for _ in range(SETS)]
    targets = [device.memory(BATCH * 3 * TARGET.height * TARGET.width * (2 if half else 4)) for _ in range(SETS)]
    jobs = []
    for source, target in zip(memory, targets, strict=True):
        first = source.address
        for number in range(BATCH):
            device.upload(first + number * frame_bytes, host.array[:frame_bytes])
        layout = FrameLayout(address=first, row_stride=3 * WIDTH, frame_stride=frame_bytes)
        jobs.append(kernels.job(plan, layout, spec, table=table.address, target=target.address))

    def work() -> None:
        for job in jobs:
            name = plan.kernel + ("_f16" if half else "_f32")
            module.launch(name, job, grid=plan.grid(BATCH), threads=kernels.THREADS, shared=plan.tile.shared)

    graph = device.capture(work)
    took = launches_ms(device, graph.launch, REPEATS) / SETS
    for item in (graph, host, table, *memory, *targets):
        item.free()
    return took


def launches_ms(device: GpuDevice, launch: Callable[[], None], repeats: int) -> float:
    """Median milliseconds of a launch on the device, over five rounds, warmed up."""
    start, end = device.event(), device.event()
    rounds = []
    for number in range(6):
        device.record(start)
        for _ in range(repeats):
            launch()
        device.record(end)
        device.synchronize()
        if number:
            rounds.append(device.elapsed_ms(start, end) / repeats)
    return statistics.median(rounds)


def one_frame(device: GpuDevice) -> None:
    """One frame from host memory to the network's input, waited for; beside the CPU path."""
    import cv2

    print(f"\none frame {WIDTH}×{HEIGHT} -> {TARGET.width}, bilinear, from host memory to the finished input")
    rng = np.random.default_rng(1)
    frames = [rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8) for _ in range(8)]
    spec = PreprocessConfig()
    on_cpu = Preprocessor(spec, TARGET)
    out = np.empty((3, TARGET.height, TARGET.width), np.float32)
    threads = cv2.getNumThreads()
    say("OpenCV", f"{cv2.__version__}")
    baseline = microseconds(lambda number: on_cpu(frames[number % 8], out))
    say(f"CPU, {threads} threads of OpenCV", f"{baseline:.0f} µs")
    cv2.setNumThreads(1)
    say("CPU, one thread", f"{microseconds(lambda number: on_cpu(frames[number % 8], out)):.0f} µs")
    cv2.setNumThreads(threads)
    with device.active():
        on_gpu = GpuPreprocessor(spec, TARGET, device, batch=1)
        target = device.memory(out.nbytes)

        def run(number: int, *, stage: bool) -> None:
            if stage:
                on_gpu.stage([frames[number % 8]])
            on_gpu.upload()
            on_gpu.launch(target.address)
            device.synchronize()

        for name, stage in (("GPU, with the copy to page-locked", True), ("GPU, upload and kernel", False)):
            took = microseconds(functools.partial(run, stage=stage))
            say(name, f"{took:.0f} µs, {baseline / took:.1f} times as fast as the CPU path")
        for item in (on_gpu, target):
            item.free()


def microseconds(work: Callable[[int], object]) -> float:
    """Median wall time of a call, after a warm-up."""
    times = []
    for number in range(400):
        start = time.perf_counter()
        work(number)
        times.append((time.perf_counter() - start) * 1e6)
    return statistics.median(times[100:])


def say(name: str, value: str) -> None:
    print(f"{name:<36}{value}", flush=True)


if __name__ == "__main__":
    main()

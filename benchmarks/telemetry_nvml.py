"""Whether the power that edge integrates agrees with the energy counter of the graphics card itself.

    python benchmarks/telemetry_nvml.py            # needs an NVIDIA GPU and nvidia-ml-py

NVML counts millijoules since the driver was loaded. Over the same window, while the card works and rests in turn, the
trapezoids of edge's samples should come to the same energy. Prints both, their ratio, and what a reading costs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from edge.telemetry.energy import Window
from edge.telemetry.nvml import Nvml
from edge.telemetry.sampler import Sampler
from edge.telemetry.sources import Unavailable

SECONDS = 20.0


def main() -> None:
    import pynvml

    source = Nvml.open()
    if isinstance(source, Unavailable):
        print(f"nothing to measure: {source}")
        return
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    print(f"{pynvml.nvmlDeviceGetName(handle)}, driver {pynvml.nvmlSystemGetDriverVersion()}")
    print(source.read())
    work = busy()
    for rate_hz in (10, 50):
        with Sampler(source, rate_hz=rate_hz) as sampler:
            before, start = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle), time.monotonic()
            while time.monotonic() - start < SECONDS:
                work(int((time.monotonic() - start) / 2.5) % 2 == 0)
            after, end = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle), time.monotonic()
        energy = sampler.energy(Window(start, end))
        counted = (after - before) / 1e3
        if energy.joules is None:
            print(f"{rate_hz} Hz: {energy.refusal}")
            continue
        print(
            f"{rate_hz:>3} Hz: counter {counted:.1f} J, edge {energy.joules:.1f} ± {energy.error_joules:.1f} J, ratio "
            f"{energy.joules / counted:.4f}, {energy.samples} samples over {energy.window_s:.2f} s, "
            f"mean {energy.mean_mw or 0:.0f} mW; conditions {sampler.conditions(Window(start, end)).clocks_mhz}"
        )
    started, n = time.process_time(), 200
    for _ in range(n):
        source.read()
    print(f"a reading costs {(time.process_time() - started) / n * 1e6:.0f} us of CPU")
    source.close()


def busy() -> Callable[[bool], None]:
    """A function that keeps the card busy for a moment (with PyTorch, where it is), or lets it rest."""
    try:
        import torch
    except ImportError:
        print("the card stays idle: there is no PyTorch to keep it busy")
        return lambda _on: time.sleep(0.05)
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)

    def work(on: bool) -> None:  # noqa: FBT001
        if not on:
            time.sleep(0.05)
            return
        for _ in range(20):
            torch.mm(a, a)
        torch.cuda.synchronize()

    return work


if __name__ == "__main__":
    main()

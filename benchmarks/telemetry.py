"""What telemetry costs, and how near its integral comes to the truth.

    python benchmarks/telemetry.py

1. CPU time of the sampler at 10 Hz on a made-up sysfs tree with the files of an AGX Orin (two INA3221, 9 thermal zones,
   3 CPU clusters of 12 cores, GPU, 3 over-current counters, 12 cooling devices, power mode), as share of one core.
   Files of a real sysfs take longer to read, above all those of an I2C sensor, but the wait for the bus is no CPU time.
2. The same for tegrastats as a child that prints ten lines a second, parsing included, child excluded.
3. Energy of known power curves, from samples at 10 Hz, against their integral, with the error bound that edge states.
4. Memory of the quantile sketch and of the power trace after ten million values, and what adding a value costs.
"""

from __future__ import annotations

import math
import random
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from edge.stats import QuantileSketch, percentile
from edge.telemetry.energy import Trace, Window
from edge.telemetry.hwmon import Hwmon
from edge.telemetry.sampler import Sampler
from edge.telemetry.sources import Unavailable
from edge.telemetry.tegrastats import Tegrastats

SECONDS = 20.0
RATE_HZ = 10
LINE = (
    "11-12-2025 08:09:10 RAM 4000/62801MB (lfb 10x4MB) SWAP 0/31400MB (cached 0MB) CPU [{cores}] EMC_FREQ 0%@2133"
    " GR3D_FREQ 30%@[1300,1300] NVENC off NVDEC off NVJPG off VIC off OFA off NVDLA0 off PVA0_FREQ off APE 174"
    " cpu@47.6C tboard@36.7C soc2@44.3C soc0@45.7C gpu@43.2C tj@47.6C soc1@45.1C VDD_GPU_SOC 2801mW/2801mW VDD_CPU_CV"
    " 400mW/400mW VIN_SYS_5V0 4536mW/4536mW VDDQ_VDD2_1V8AO 604mW/604mW"
).format(cores=",".join(["5%@2201"] * 12))


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="edge-benchmark-") as folder:
        root = agx_orin(Path(folder))
        sampler_cost(root)
        reading_cost(root)
        tegrastats_cost(root)
    integrals()
    quantiles()


def sampler_cost(root: Path) -> None:
    source = Hwmon.open(root)
    assert isinstance(source, Hwmon), source
    files = sum(1 for path in root.rglob("*") if path.is_file())
    wall, cpu = time.monotonic(), time.process_time()
    with Sampler(source, rate_hz=RATE_HZ) as sampler:
        time.sleep(SECONDS)
    cpu, wall = time.process_time() - cpu, time.monotonic() - wall
    reading = sampler.latest
    assert reading is not None
    print(
        f"sampler, hwmon, {RATE_HZ} Hz, {files} files, {len(sampler.readings)} readings of {len(reading.rails_mw)} "
        f"rails, {len(reading.temps_c)} zones, {len(reading.clocks_mhz)} clocks: {100 * cpu / wall:.2f} % of one core "
        "(aim: under 1)"
    )


def reading_cost(root: Path) -> None:
    now = [0.0]
    source = Hwmon.open(root, clock=lambda: now[0])
    assert isinstance(source, Hwmon), source
    costs = []
    for step in (0.0, 1.0):  # the rails alone; and everything, as twice a second
        start = time.process_time()
        for _ in range(1000):
            now[0] += step
            source.read()
        costs.append((time.process_time() - start) * 1e3)
    print(f"one reading after the other: {costs[0]:.0f} us for the rails, {costs[1]:.0f} us for everything")


def tegrastats_cost(root: Path) -> None:
    binary = root / "usr/bin/tegrastats"
    binary.parent.mkdir(parents=True)
    binary.write_text(f"#!/bin/sh\nwhile :; do echo '{LINE}'; sleep 0.1; done\n")
    binary.chmod(0o755)
    source = Tegrastats.open(root)
    assert not isinstance(source, Unavailable), source
    wall, cpu = time.monotonic(), time.process_time()
    with Sampler(source, rate_hz=RATE_HZ) as sampler:
        time.sleep(SECONDS)
    cpu, wall = time.process_time() - cpu, time.monotonic() - wall
    source.close()
    share = 100 * cpu / wall
    print(f"sampler, tegrastats, {len(sampler.readings)} lines: {share:.2f} % of one core (the child not counted)")


def integrals() -> None:
    chance = random.Random(0)
    curves = {
        "constant 7 W": (lambda _t: 7.0, lambda t: 7.0 * t),
        "ramp 3 to 15 W": (lambda t: 3 + 0.2 * t, lambda t: 3 * t + 0.1 * t * t),
        "sine 7 ± 3 W, 0.7 Hz": (
            lambda t: 7 + 3 * math.sin(2 * math.pi * 0.7 * t),
            lambda t: 7 * t + 3 / (2 * math.pi * 0.7) * (1 - math.cos(2 * math.pi * 0.7 * t)),
        ),
        "square 4 / 12 W, 1.3 s": (lambda t: 12.0 if t % 1.3 < 0.5 else 4.0, square_joules),
    }
    print(f"energy over 60 s from samples at {RATE_HZ} Hz with 10 % jitter, against the integral:")
    for name, (watts, joules) in curves.items():
        trace, t_s = Trace(), -1.0
        while t_s < 61.0:
            trace.add(t_s, 1e3 * watts(t_s))
            t_s += (1 + chance.uniform(-0.1, 0.1)) / RATE_HZ
        found = trace.energy(Window(0.0, 60.0), source="made up", scope="module_input")
        truth = joules(60.0)
        assert found.joules is not None
        assert found.error_joules is not None
        off = abs(found.joules - truth)
        print(
            f"  {name:<24} {truth:8.2f} J, found {found.joules:8.2f} ± {found.error_joules:.2f} J: off by {off:.3f} J "
            f"({100 * off / truth:.3f} %), within the bound: {off <= found.error_joules + 1e-9}"
        )


def square_joules(t_s: float) -> float:
    whole, rest = divmod(t_s, 1.3)
    return whole * (0.5 * 12 + 0.8 * 4) + min(rest, 0.5) * 12 + max(rest - 0.5, 0.0) * 4


def quantiles() -> None:
    chance = random.Random(0)
    values = [chance.lognormvariate(2, 0.7) for _ in range(100_000)]
    tracemalloc.start()
    sketch, trace = QuantileSketch(), Trace()
    for i in range(1_000_000):
        sketch.add(values[i % len(values)])
    before = tracemalloc.get_traced_memory()[0]
    for i in range(1_000_000):
        sketch.add(values[i % len(values)])
    growth = tracemalloc.get_traced_memory()[0] - before
    for i in range(1_000_000):
        trace.add(i / 10, values[i % len(values)])
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    start = time.process_time()
    for value in values:
        sketch.add(value)
    cost = (time.process_time() - start) / len(values)
    ordered = sorted(values)
    worst = max(
        abs(sketch.quantile(share) / percentile(ordered, share) - 1) for share in (0.5, 0.9, 0.95, 0.99, 0.999, 1.0)
    )
    print(
        f"sketch: {before / 1024:.0f} KiB after 1,000,000 values, {growth} bytes more after 2,000,000; "
        f"{cost * 1e9:.0f} ns per value; largest error of p50 to p99.9 and max {100 * worst:.2f} % (bound: 1 %)"
    )
    print(f"the same and a trace of 1,000,000 power samples, 28 hours at 10 Hz: {kept / 1024:.0f} KiB")


def agx_orin(root: Path) -> Path:
    """Files as on an AGX Orin, with numbers of our own."""
    files: dict[str, object] = {}
    rails = [(1, ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"]), (2, ["NC", "VDDQ_VDD2_1V8AO", "NC"])]
    for number, labels in rails:
        folder = f"sys/class/hwmon/hwmon{number}"
        files[f"{folder}/name"] = "ina3221"
        for n, label in enumerate(labels, start=1):
            files |= {f"{folder}/in{n}_label": label, f"{folder}/in{n}_input": 5000, f"{folder}/curr{n}_input": 300 * n}
            files |= {f"{folder}/curr{n}_{limit}": 9000 for limit in ("max", "crit", "max_alarm", "crit_alarm")}
    for zone, kind in enumerate(["cpu", "gpu", "cv0", "cv1", "cv2", "soc0", "soc1", "soc2", "tj"]):
        files |= {f"sys/class/thermal/thermal_zone{zone}/type": f"{kind}-thermal"}
        files |= {f"sys/class/thermal/thermal_zone{zone}/temp": 45000 + 100 * zone}
    for device in range(12):
        kind = ["cpu", "gpu", "soc012"][device % 3] + ("-throttle-alert" if device < 3 else "-hot-surface")
        files |= {f"sys/class/thermal/cooling_device{device}/type": kind}
        files |= {f"sys/class/thermal/cooling_device{device}/cur_state": 0}
    files |= {"sys/class/hwmon/hwmon5/name": "soctherm_oc"}
    files |= {f"sys/class/hwmon/hwmon5/oc{n}_event_cnt": 0 for n in (1, 2, 3)}
    gpu = "sys/class/devfreq/17000000.gpu"
    files |= {f"{gpu}/cur_freq": 1300000000, f"{gpu}/min_freq": 306000000, f"{gpu}/max_freq": 1300000000}
    files |= {f"{gpu}/device/load": 437, "proc/device-tree/compatible": "nvidia,p3701-0005\0nvidia,tegra234"}
    for policy in (0, 4, 8):
        files |= {f"sys/devices/system/cpu/cpufreq/policy{policy}/scaling_cur_freq": 2201600}
    stat = "cpu  100 0 100 800 0 0 0 0 0 0\n" + "".join(f"cpu{n} 1 2 3 4 5 6 7 8 9 0\n" for n in range(12))
    files |= {"proc/stat": stat, "var/lib/nvpmodel/status": "pmode:0000 fmode:quiet"}
    files |= {"etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\n< PM_CONFIG DEFAULT=2 >"}
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


if __name__ == "__main__":
    main()

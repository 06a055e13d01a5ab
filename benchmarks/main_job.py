"""Figures of the main job on this machine, each next to its baseline from the same run.

    python benchmarks/main_job.py --calib DIR --eval DIR --labels labels.csv

Prints accuracy against FP32, INT8 time against FP32, preprocessing against Pillow, peak memory of `edge calibrate` with
50 and with all pictures, and the time of `edge --help` and of a `build` with nothing to do.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EDGE = [sys.executable, "-m", "edge"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calib", type=Path, default=ROOT.parent / "shared/data/calib")
    parser.add_argument("--eval", type=Path, default=ROOT.parent / "shared/data/eval")
    parser.add_argument("--labels", type=Path, default=ROOT.parent / "shared/data/eval/labels.csv")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edge-benchmark-") as name:
        folder = Path(name)
        accuracy(options.eval, options.labels, folder)
        speed(options.eval, folder)
        parity(options.eval)
        memory(options.calib, folder)
        start_up(folder)


def accuracy(images: Path, labels: Path, folder: Path) -> None:
    """Top-1, top-5 and agreement of the committed table."""
    run("build", "--profile", "host", "--engine-dir", folder / "engines")
    evaluation = ("--images", images, "--labels", labels, "--against", "fp32", "--json")
    scores = json.loads(run("eval", "--profile", "host", "--engine-dir", folder / "engines", *evaluation))
    say("pictures", f"{scores['n']}")
    say("top-1 FP32 / INT8", f"{scores['against_top1']:.2f} / {scores['top1']:.2f} %")
    say("top-5 FP32 / INT8", f"{scores['against_top5']:.2f} / {scores['top5']:.2f} %")
    say("agreement with FP32", f"{scores['agreement']:.2f} % {interval(scores['agreement_interval'])}")
    say("logit SQNR", f"{scores['logit_sqnr_db']:.2f} dB")


def speed(images: Path, folder: Path) -> None:
    """INT8 against FP32, paired: the same pictures, one after the other, five rounds."""
    run("build", "--profile", "host", "--precision", "fp32", "--engine-dir", folder / "engines")
    ratios = []
    for _ in range(5):
        medians = []
        for precision in ("fp32", "int8"):
            options = ("--precision", precision, "--images", images, "--limit", "100", "--json")
            os.environ["EDGE_ENGINE_DIR"] = str(folder / "engines")
            lines = run("run", "--profile", "host", *options).splitlines()
            medians.append(json.loads(lines[-1])["summary"]["latency"]["infer"]["p50_ms"])
        ratios.append(medians[1] / medians[0])
    say("INT8 time / FP32 time", f"{statistics.median(ratios):.2f}  ({min(ratios):.2f} to {max(ratios):.2f})")


def parity(images: Path) -> None:
    """Preprocessing against Pillow's antialiased resize of the same crop, in 8-bit steps."""
    import numpy as np
    from PIL import Image

    from edge.config import profiles
    from edge.media.picture_sources import open_pictures
    from edge.media.pictures import decode
    from edge.model.preprocessing import Preprocessor, region

    chosen = profiles.read_profile(ROOT / "profiles/host.yaml")
    preprocessor = Preprocessor(chosen.preprocess, chosen.input)
    differences = []
    for picture in open_pictures(images):
        pixels = decode(picture.read(), name=picture.name)
        box = region(*pixels.shape[:2], chosen.preprocess, chosen.input)
        corners = (box.left, box.top, box.left + box.width, box.top + box.height)
        size = (chosen.input.width, chosen.input.height)
        reference = Image.fromarray(pixels).crop(corners).resize(size, Image.Resampling.BICUBIC)
        ours = preprocessor.pixels(pixels).astype(float)
        differences.append(float(np.abs(ours - np.asarray(reference, dtype=float)).mean()))
    say("preprocessing vs Pillow", f"{statistics.mean(differences):.2f}/255 mean, {max(differences):.2f}/255 worst")


def memory(images: Path, folder: Path) -> None:
    """Peak resident memory of `edge calibrate`."""
    count = len([path for path in images.iterdir() if path.suffix == ".jpg"])
    peaks = {}
    for limit in (50, count):
        command = ("calibrate", "--profile", "host", "--images", images, "--limit", limit, "--force")
        peaks[limit] = peak_mib(*command, "--cache-dir", folder / f"cache{limit}")
    growth = peaks[count] / peaks[50] - 1
    say(f"calibrate, 50 / {count} pictures", f"{peaks[50]:.0f} / {peaks[count]:.0f} MiB peak ({growth:+.1%})")


def start_up(folder: Path) -> None:
    """Whole processes; the baseline is a Python that does nothing."""
    bare = median_s([sys.executable, "-c", "pass"])
    say("python -c pass", f"{bare:.3f} s")
    say("edge --help", f"{median_s([*EDGE, '--help']):.3f} s")
    say(
        "edge build, no work",
        f"{median_s([*EDGE, 'build', '-p', 'host', '--engine-dir', str(folder / 'engines')]):.3f} s",
    )


def run(*arguments: object) -> str:
    """Standard output of an edge command."""
    command = [*EDGE, *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout


def peak_mib(*arguments: object) -> float:
    """Peak resident memory of an edge command in MiB."""
    process = subprocess.Popen([*EDGE, *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"edge {arguments[0]} failed")
    return usage.ru_maxrss / 1024


def median_s(command: Sequence[str], rounds: int = 7) -> float:
    """Median wall time of a command."""
    return statistics.median(
        timed(lambda: subprocess.run(command, check=True, capture_output=True)) for _ in range(rounds)
    )


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def interval(bounds: Sequence[float]) -> str:
    return f"[{bounds[0]:.2f}, {bounds[1]:.2f}]"


def say(name: str, value: str) -> None:
    print(f"{name:<32}{value}", flush=True)


if __name__ == "__main__":
    main()

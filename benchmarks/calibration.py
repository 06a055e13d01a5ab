"""Calibration beside its peers: time, memory and quality, in one run on the same pictures.

    python benchmarks/calibration.py [--calib DIR] [--eval DIR] [--peers ort,modelopt]

The baseline is a bare FP32 forward pass of onnxruntime over the same pictures with the same number of threads. Every
calibrator runs in a process of its own, from its start to its table or Q/DQ model; peak memory is that process's. Each
result is then quantized and scored in the same way by its own quantizer: agreement of top-1 with FP32, and logit SQNR.
onnxruntime's histogram calibrators keep every activation, so they get CalibStridedMinMax=20. Model Optimizer is used
where it is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "models/efficientnet_lite0.onnx"
OURS = ("entropy2", "minmax", "percentile", "mse", "entropy", "legacy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calib", type=Path, default=ROOT.parent / "shared/data/calib")
    parser.add_argument("--eval", type=Path, default=ROOT.parent / "shared/data/eval")
    parser.add_argument("--peers", default="ort,modelopt", help="comma list of ort, modelopt; empty for none")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker[0], Path(options.worker[1]), options.calib)
        return
    with tempfile.TemporaryDirectory(prefix="edge-benchmark-") as name:
        compare(Path(name), options)


def compare(folder: Path, options: argparse.Namespace) -> None:
    """Run every calibrator, score what it made, and print one line for each."""
    jobs = [f"edge:{algorithm}" for algorithm in OURS]
    if "ort" in options.peers:
        jobs += ["ort:MinMax", "ort:Entropy", "ort:Percentile"]
    if "modelopt" in options.peers and importlib.util.find_spec("modelopt"):
        jobs += ["modelopt:entropy", "modelopt:max"]
    bare = bare_forward_s(options.calib)
    reference = scores_of(MODEL, options.eval)
    print(f"bare FP32 forward pass, 2 threads, batch 8: {bare:.2f} s", flush=True)
    print(f"{'calibrator':<20}{'s':>8}{'x bare':>8}{'peak MB':>9}{'SQNR dB':>9}{'agree %':>9}")
    for job in jobs:
        output = folder / f"{job.replace(':', '-')}.onnx"
        command = [sys.executable, __file__, "--worker", job, str(output), "--calib", str(options.calib)]
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        status = process.wait()
        total = time.perf_counter() - start
        if status:
            print(f"{job:<20}  failed (status {status})")
            continue
        # What a worker did only to be scored is not calibration.
        spent = json.loads(output.with_suffix(".json").read_text())
        seconds = total - spent["not_calibration_s"]
        values = scores_of(output, options.eval)
        agreement = 100 * float((values.argmax(1) == reference.argmax(1)).mean())
        noise = float(np.square(values - reference).sum())
        sqnr = 10 * np.log10(float(np.square(reference).sum()) / noise)
        peak = spent["peak_kib"] * 1024 / 1e6
        print(f"{job:<20}{seconds:>8.2f}{seconds / bare:>8.2f}{peak:>9.0f}{sqnr:>9.2f}{agreement:>9.2f}", flush=True)


def work(job: str, output: Path, calib: Path) -> None:
    """One calibration, from the pictures to a Q/DQ model at ``output``."""
    kind, method = job.split(":")
    spent, peak = {"edge": edge_job, "ort": ort_job, "modelopt": modelopt_job}[kind](method, output, calib)
    output.with_suffix(".json").write_text(json.dumps({"not_calibration_s": spent, "peak_kib": peak}))


def edge_job(method: str, output: Path, calib: Path) -> tuple[float, int]:
    import msgspec

    from edge import calibrate, model, profile
    from edge.calibration import qdq, table
    from edge.frames import open_pictures

    chosen = profile.load(ROOT / "profiles/host.yaml")
    settings = msgspec.structs.replace(chosen.calibration, algorithm=method)
    chosen = msgspec.structs.replace(chosen, calibration=settings)
    outcome = calibrate.calibrate(chosen, open_pictures(calib), cache=output.parent / output.stem, threads=2)
    if outcome is None:
        raise SystemExit("stopped")
    start, peak = time.perf_counter(), peak_kib()
    content = table.parse(outcome.table.read_bytes())
    output.write_bytes(qdq.insert(model.read(MODEL), content, target="onnxruntime").model.SerializeToString())
    return time.perf_counter() - start, peak


def ort_job(method: str, output: Path, calib: Path) -> tuple[float, int]:
    import onnxruntime
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.pictures = inputs(calib)

        def get_next(self) -> dict[str, np.ndarray] | None:
            picture = next(self.pictures, None)
            return None if picture is None else {"input": picture}

        def __len__(self) -> int:
            return len(list(calib.glob("*.jpg")))

        def set_range(self, start_index: int, end_index: int) -> None:
            paths = sorted(calib.glob("*.jpg"))[start_index:end_index]
            self.pictures = (load(path) for path in paths)

    del onnxruntime
    quantize_static(
        str(MODEL), str(output), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QInt8, weight_type=QuantType.QInt8,
        calibrate_method=getattr(CalibrationMethod, method),
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "CalibStridedMinMax": 20},
    )  # fmt: skip
    return 0.0, peak_kib()


def modelopt_job(method: str, output: Path, calib: Path) -> tuple[float, int]:
    import shutil

    from modelopt.onnx.quantization import quantize

    copy = output.with_name(f"copy-{output.name}")  # it overwrites its input file
    shutil.copy(MODEL, copy)
    data = np.concatenate(list(inputs(calib)))
    quantize(
        str(copy), quantize_mode="int8", calibration_data={"input": data}, calibration_method=method,
        output_path=str(output), calibration_eps=["cpu"], high_precision_dtype="fp32",
    )  # fmt: skip
    return 0.0, peak_kib()


def peak_kib() -> int:
    """Peak resident memory of this process in KiB. Unlike ru_maxrss, it does not begin with the parent's."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def inputs(folder: Path) -> Iterator[np.ndarray]:
    """The pictures of a folder, preprocessed, as 1×3×224×224 each."""
    for path in sorted(folder.glob("*.jpg")):
        yield load(path)


def load(path: Path) -> np.ndarray:
    return _preprocess()(path)


def _preprocess() -> Callable[[Path], np.ndarray]:
    from edge import profile
    from edge.frames import decode
    from edge.preprocess import Preprocessor

    if not _KEPT:
        chosen = profile.load(ROOT / "profiles/host.yaml")
        _KEPT.append(Preprocessor(chosen.preprocess, chosen.input))
    return lambda path: _KEPT[0](decode(path.read_bytes(), name=path.name))[None]


_KEPT: list[Callable[[np.ndarray], np.ndarray]] = []


def bare_forward_s(calib: Path) -> float:
    """The best of three passes over the preprocessed pictures, in seconds."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(str(MODEL), options)
    data = np.concatenate(list(inputs(calib)))
    session.run(None, {"input": data[:8]})
    times = []
    for _ in range(3):
        start = time.perf_counter()
        for index in range(0, len(data), 8):
            session.run(None, {"input": data[index : index + 8]})
        times.append(time.perf_counter() - start)
    return min(times)


def scores_of(model: Path, pictures: Path) -> np.ndarray:
    """Logits of a model over a folder, by onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(model), options)
    return np.concatenate([session.run(None, {session.get_inputs()[0].name: x})[0] for x in inputs(pictures)])


if __name__ == "__main__":
    main()

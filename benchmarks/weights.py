"""What the rounding of weights costs, with all activations in float.

    python benchmarks/weights.py [--model FILE] [--images DIR,DIR]

Weights of every layer go to their per-channel symmetric INT8 levels: to the nearest one, as onnxruntime's and NVIDIA's
quantizers do it, or so that the sum of each filter stays (:mod:`edge.quantization.rounding`). Prints the SQNR of the
logits against FP32 and the agreement of top-1, for each folder of pictures.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from edge.quantization import qdq, rounding

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "models/efficientnet_lite0.onnx")
    shared = ROOT.parent / "shared/data"
    parser.add_argument("--images", default=f"{shared / 'calib'},{shared / 'eval'}")
    options = parser.parse_args()
    calibration = load_calibration()
    model = onnx.load(str(options.model))
    variants = {"nearest": rounded(model, balance=False), "balanced": rounded(model, balance=True)}
    print(f"{'pictures':<12}{'rounding':<12}{'SQNR dB':>9}{'agree %':>9}")
    for folder in map(Path, options.images.split(",")):
        reference = calibration.scores_of(options.model, folder)
        for name, changed in variants.items():
            values = calibration.scores_of(changed.SerializeToString(), folder)
            noise = float(np.square(values - reference).sum())
            sqnr = 10 * np.log10(float(np.square(reference).sum()) / noise)
            agreement = 100 * float((values.argmax(1) == reference.argmax(1)).mean())
            print(f"{folder.name:<12}{name:<12}{sqnr:>9.2f}{agreement:>9.2f}", flush=True)


def rounded(model: onnx.ModelProto, *, balance: bool) -> onnx.ModelProto:
    """A copy of ``model`` whose weights are on INT8 levels."""
    copy = qdq.named_copy(model)
    constant = {item.name: item for item in copy.graph.initializer}
    nodes = [node for node in copy.graph.node if node.op_type in qdq.WEIGHTED and node.input[1] in constant]
    if balance:
        rounding.balance(copy, nodes)
        return copy
    for node in nodes:
        item = constant[node.input[1]]
        axis = rounding.channel_axis(node)
        if axis is None:
            continue
        rows = np.moveaxis(numpy_helper.to_array(item), axis, 0)
        step = np.abs(rows).max(axis=tuple(range(1, rows.ndim)), keepdims=True) / np.float32(127)
        step[step == 0] = 1
        nearest = np.moveaxis(np.rint(rows / step) * step, 0, axis)
        item.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(nearest), item.name))
    return copy


def load_calibration() -> Any:  # noqa: ANN401 - a module
    """The benchmark next to this one, which knows how to score."""
    spec = importlib.util.spec_from_file_location("calibration", Path(__file__).with_name("calibration.py"))
    if spec is None or spec.loader is None:
        raise SystemExit("calibration.py is missing")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()

"""INT8 on 40 architectures with random weights: every one calibrates, builds with all layers accounted for, evaluates.

    python benchmarks/architectures.py export --nets DIR                    (needs torch, torchvision, timm, onnxscript)
    python benchmarks/architectures.py check --nets DIR --pictures DIR -o architectures.json  (needs edge and the peers)

``export`` makes the networks of ``NETWORKS`` with both exporters of PyTorch, opsets 11 to 20, a fixed or a free batch.
Their weights are random; the statistics of BatchNormalization have settled on noise. ``check`` runs ``edge calibrate``,
``edge build`` and ``edge eval`` from a profile, and compares the logit SQNR of the TensorRT form with onnxruntime's
quantize_static (MinMax) and NVIDIA Model Optimizer (max). It continues where it was stopped. What random weights cannot
say is agreement: all pictures may have nearly the same logits.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
CALIBRATION, JUDGING = 16, 16


class Network(msgspec.Struct, frozen=True):
    """A network to export: library:name, side of its input in pixels, exporter, opset, batch."""

    name: str
    side: int
    exporter: str
    opset: int
    is_dynamic: bool

    @property
    def stem(self) -> str:
        """Name of its file."""
        return self.name.replace(":", "_")


# Both exporters take turns; the opset and the batch cycle on, so that each meets many kinds.
_NAMES = (
    ("tv:resnet18", 96), ("tv:mobilenet_v2", 96), ("tv:mobilenet_v3_small", 96), ("tv:densenet121", 64),
    ("tv:shufflenet_v2_x0_5", 96), ("tv:squeezenet1_1", 96), ("tv:regnet_y_400mf", 96), ("tv:googlenet", 96),
    ("tv:inception_v3", 107), ("tv:vgg11_bn", 64), ("tv:efficientnet_b0", 96), ("tv:alexnet", 96),
    ("tv:convnext_tiny", 64), ("tv:swin_t", 64), ("tv:swin_v2_t", 64),
    ("timm:swin_tiny_patch4_window7_224", 224), ("timm:maxvit_rmlp_pico_rw_256", 128), ("timm:levit_128s", 128),
    ("timm:mobilevit_xxs", 128), ("timm:mobilevitv2_050", 128), ("timm:xcit_nano_12_p16_224", 96),
    ("timm:convnext_atto", 96), ("timm:convnextv2_atto", 96), ("timm:edgenext_xx_small", 96), ("timm:fastvit_t8", 128),
    ("timm:mobileone_s0", 96), ("timm:repvgg_a0", 96), ("timm:ghostnet_100", 96), ("timm:deit_tiny_patch16_224", 96),
    ("timm:efficientformer_l1", 224), ("timm:poolformer_s12", 64), ("timm:pvt_v2_b0", 96), ("timm:gmlp_ti16_224", 96),
    ("timm:hrnet_w18_small", 96), ("timm:ese_vovnet19b_dw", 96), ("timm:mobilenetv4_conv_small", 96),
    ("timm:efficientvit_b0", 96), ("timm:repvit_m0_9", 96), ("timm:res2net50_26w_4s", 64),
    ("timm:coat_lite_tiny", 96),
)  # fmt: skip
NETWORKS = [
    Network(name, side, ("dynamo", "script")[index % 2], (18, 19, 20)[index // 2 % 3] if index % 2 == 0
            else (11, 12, 13, 14, 15, 16, 17)[index // 2 % 7], index // 3 % 2 == 0)
    for index, (name, side) in enumerate(_NAMES)
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["export", "check", "peer"])
    parser.add_argument("--nets", type=Path, required=True)
    parser.add_argument("--pictures", type=Path, help="a folder of JPEG pictures")
    parser.add_argument("--only", default="", help="parts of names, separated by commas")
    parser.add_argument("--work", type=Path, default=Path("architectures-work"))
    parser.add_argument("-o", "--output", type=Path, default=Path("architectures.json"))
    parser.add_argument("--peer", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.stage == "peer":
        sys.path.insert(0, str(ROOT / "benchmarks"))
        import accuracy

        accuracy.peer(*given.peer)
        return
    words = [word for word in given.only.split(",") if word]
    chosen = [item for item in NETWORKS if not words or any(word in item.name for word in words)]
    if given.stage == "export":
        given.nets.mkdir(parents=True, exist_ok=True)
        for network in chosen:
            if not (given.nets / f"{network.stem}.onnx").exists():
                export(network, given.nets)
        return
    check(chosen, given.nets, given.pictures, given.work, given.output)


def export(network: Network, folder: Path) -> None:
    """Write ``<stem>.onnx`` and ``<stem>.json``, which says how it was exported in fact."""
    import torch

    torch.manual_seed(0)
    library, name = network.name.split(":")
    if library == "tv":
        import torchvision

        more = {"aux_logits": False, "init_weights": True} if name in {"googlenet", "inception_v3"} else {}
        model = torchvision.models.get_model(name, weights=None, **more)
    else:
        import timm

        try:  # transformers are made for one input size
            model = timm.create_model(name, pretrained=False, img_size=network.side)
        except TypeError:
            model = timm.create_model(name, pretrained=False)
    model.train()
    # Settled: a moving average over noise in the input's own size.
    for module in model.modules():
        if "BatchNorm" in type(module).__name__:
            module.momentum = 0.5
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    with torch.no_grad():
        for _ in range(6):
            model(torch.randn(4, 3, network.side, network.side))
    model.eval()
    attempts = [(network.exporter, network.opset)]
    attempts += [("script", 17), ("script", 14), ("dynamo", 18)]
    failures = []
    for exporter, opset in attempts:
        path = folder / f"{network.stem}.onnx"
        try:
            _export(model, network, exporter, opset, path)
        except Exception as exc:  # noqa: BLE001 - exporters raise anything
            failures.append(f"{exporter} {opset}: {str(exc).splitlines()[0][:120] if str(exc) else type(exc).__name__}")
            path.unlink(missing_ok=True)
            continue
        facts = {"exporter": exporter, "opset": opset, "is_dynamic": network.is_dynamic, "failed": failures}
        path.with_suffix(".json").write_text(json.dumps(facts))
        print(network.name, facts, flush=True)
        return
    print(network.name, "NOT EXPORTED", failures, flush=True)


def _export(model: Any, network: Network, exporter: str, opset: int, path: Path) -> None:  # noqa: ANN401
    import torch

    picture = torch.randn(2 if network.is_dynamic else 1, 3, network.side, network.side)
    if exporter == "script":
        axes = {"input": {0: "batch"}, "output": {0: "batch"}} if network.is_dynamic else None
        torch.onnx.export(
            model, (picture,), str(path), opset_version=opset, dynamo=False,
            input_names=["input"], output_names=["output"], dynamic_axes=axes,
        )  # fmt: skip
        return
    shapes = ({0: torch.export.Dim("batch", min=1, max=64)},) if network.is_dynamic else None
    torch.onnx.export(
        model, (picture,), str(path), opset_version=opset, dynamo=True, external_data=False,
        input_names=["input"], output_names=["output"], dynamic_shapes=shapes,
    )  # fmt: skip


def check(chosen: list[Network], nets: Path, pictures: Path, work: Path, output: Path) -> None:
    """Check all networks, and print the table."""
    rows: dict[str, dict[str, Any]] = json.loads(output.read_text()) if output.exists() else {}
    found = sorted(pictures.glob("*.jpg"))
    calib, judge = work.absolute() / "calib", work.absolute() / "judge"
    for folder, part in ((calib, found[:CALIBRATION]), (judge, found[CALIBRATION : CALIBRATION + JUDGING])):
        folder.mkdir(parents=True, exist_ok=True)
        for path in part:
            shutil.copy(path, folder)
    for network in chosen:
        model = nets.absolute() / f"{network.stem}.onnx"
        if rows.get(network.name, {}).get("ok") or not model.exists():
            continue
        start = time.monotonic()
        row = json.loads(model.with_suffix(".json").read_text())
        folder = work.absolute() / network.stem
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            row |= by_edge(network, model, folder, calib, judge)
            row |= by_peers(model, folder, calib, judge)
        except subprocess.CalledProcessError as exc:
            row |= {"ok": False, "error": (exc.stderr or exc.stdout or str(exc))[-600:]}
        row["seconds"] = round(time.monotonic() - start, 1)
        rows[network.name] = row
        print(network.name, json.dumps(row), flush=True)
        output.write_text(json.dumps(rows, indent=1))
    print(table(rows))


def profile_text(network: Network, model: Path) -> str:
    """The profile: what `edge init` would write, without labels."""
    return (
        f"name: {network.stem}\nfamily: host\nbackend: onnxruntime\nmodel: {model}\n"
        f"labels: {ROOT / 'models' / 'imagenet_classes.txt'}\n"
        f"input:\n  height: {network.side}\n  width: {network.side}\n"
        "preprocess:\n  fit: crop\n  mean: [123.675, 116.28, 103.53]\n  std: [58.395, 57.12, 57.375]\n"
        "quality: {collapse: allow}\n"
    )


def by_edge(network: Network, model: Path, folder: Path, calib: Path, judge: Path) -> dict[str, Any]:
    """Run calibrate, build and eval; their figures."""
    profile = folder / "profile.yaml"
    profile.write_text(profile_text(network, model))
    common = ["--profile", str(profile), "--cache-dir", str(folder / "cache"), "--json"]
    _edge("calibrate", "--images", str(calib), "--threads", str(os.cpu_count()), *common, cwd=folder)
    engines = ["--engine-dir", str(folder / "engines")]
    built = json.loads(_edge("build", *common, *engines, cwd=folder))
    scored = json.loads(_edge("eval", "--images", str(judge), *common, *engines, cwd=folder))
    layers = built["layers"]
    compared = scored.get("tensorrt_form") or scored
    return {
        "ok": layers["weighted"] == layers["weighted_int8"],
        "int8": layers["weighted_int8"],
        "weighted": layers["weighted"],
        "edge_host": scored.get("logit_sqnr_db"),
        "eval": {key: value for key, value in compared.items() if isinstance(value, (int, float, str))},
    }


def _edge(*arguments: str, cwd: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "edge", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=cwd, env=environment).stdout


def by_peers(model: Path, folder: Path, calib: Path, judge: Path) -> dict[str, Any]:
    """Logit SQNR in dB of edge's TensorRT form, onnxruntime's and Model Optimizer's, on the judging pictures."""
    import onnxruntime as ort

    from edge.calibration import cache_keys
    from edge.calibration.scoring import tensorrt_form
    from edge.config.profiles import read_profile
    from edge.media import decode
    from edge.model.preprocessing import Preprocessor
    from edge.stats import sqnr_db

    profile = read_profile(folder / "profile.yaml")
    preprocessor = Preprocessor(profile.preprocess, profile.input)

    def inputs(pictures: Path) -> Any:  # noqa: ANN401
        paths = sorted(pictures.glob("*.jpg"))
        return np.stack([preprocessor(decode(path.read_bytes(), name=path.name)) for path in paths])

    def logits(source: Path, pixels: Any) -> Any:  # noqa: ANN401
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
        session = ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return np.concatenate([session.run(None, {name: picture[None]})[0] for picture in pixels])

    table = cache_keys.find_table(profile, folder / "cache")
    form = folder / "edge.onnx"
    form.write_bytes(
        tensorrt_form(
            cache_keys.quantized_profile(profile, table), cache_keys.read_table(table)
        ).model.SerializeToString()
    )
    np.savez(folder / "calib.npz", inputs(calib))
    judging = inputs(judge)
    reference = logits(model, judging)
    found: dict[str, Any] = {"edge": round(float(sqnr_db(logits(form, judging), reference) or 200.0), 2)}
    for method in ("ort MinMax", "modelopt max"):
        target = folder / f"{method.replace(' ', '-')}.onnx"
        command = [sys.executable, __file__, "peer", "--nets", ".", "--peer", method, str(model)]
        try:
            subprocess.run(
                [*command, str(folder / "calib.npz"), str(target)],
                check=True,
                capture_output=True,
                text=True,
                cwd=folder,
            )
            found[method] = round(float(sqnr_db(logits(target, judging), reference) or 200.0), 2)
        except Exception as exc:  # noqa: BLE001 - a peer that fails is no failure of ours
            found[method] = None
            found[f"{method} error"] = (getattr(exc, "stderr", None) or str(exc))[-200:]
    for path in (*folder.glob("*.onnx"), folder / "calib.npz"):
        path.unlink()
    shutil.rmtree(folder / "engines", ignore_errors=True)
    return found


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The results as a Markdown table."""
    lines = ["| network | exporter, opset, batch | INT8 | edge | ORT MinMax | Model Optimizer max | edge - best |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for name, row in rows.items():
        made = f"{row['exporter']}, {row['opset']}, {'free' if row['is_dynamic'] else 'fixed'}"
        if "edge" not in row:
            lines.append(f"| {name} | {made} | failed: {row.get('error', '')[:80]} | | | | |")
            continue
        peers = [row.get(peer) for peer in ("ort MinMax", "modelopt max")]
        best = max((value for value in peers if value is not None), default=None)
        cells = ["failed" if value is None else f"{value:.1f}" for value in (row["edge"], *peers)]
        ahead = "" if best is None else f"{row['edge'] - best:+.1f}"
        lines.append(f"| {name} | {made} | {row['int8']} of {row['weighted']} | {' | '.join(cells)} | {ahead} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()

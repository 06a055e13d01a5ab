"""Networks with the shapes of well-known ones and random weights, as exporters write them: BatchNorm folded away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save_model


class _Graph:
    def __init__(self, seed: int) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.random = np.random.default_rng(seed)

    def node(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        output = f"{name}_output_0"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=name, **attributes))
        return output

    def weight(self, name: str, shape: tuple[int, ...], spread: float) -> str:
        array = self.random.standard_normal(shape, np.float32) * np.float32(spread)
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def conv(self, source: str, name: str, out: int, into: int, *, size: int, stride: int = 1, group: int = 1) -> str:
        kernel = (out, into // group, size, size)
        inputs = [
            source,
            self.weight(f"{name}.weight", kernel, (2.0 / np.prod(kernel[1:])) ** 0.5),
            self.weight(f"{name}.bias", (out,), 0.1),
        ]
        return self.node(
            "Conv", inputs, f"/{name}/Conv", strides=[stride] * 2, pads=[size // 2] * 4, group=group,
            kernel_shape=[size] * 2,
        )  # fmt: skip

    def finish(self, path: Path, last: str, channels: int, *, side: int) -> Path:
        pooled = self.node("GlobalAveragePool", [last], "/avgpool/GlobalAveragePool")
        flat = self.node("Flatten", [pooled], "/Flatten")
        weight = self.weight("fc.weight", (1000, channels), 0.02)
        bias = self.weight("fc.bias", (1000,), 0.1)
        self.nodes.append(helper.make_node("Gemm", [flat, weight, bias], ["logits"], name="/fc/Gemm", transB=1))
        graph = helper.make_graph(
            self.nodes,
            path.stem,
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, side, side])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 1000])],
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        save_model(model, path)
        return path


def resnet50(path: Path, *, side: int = 224) -> Path:
    """ResNet-50 (25.5 million weights): bottleneck blocks, residual adds, MaxPool."""
    graph = _Graph(seed=1)
    last = graph.node("Relu", [graph.conv("input", "conv1", 64, 3, size=7, stride=2)], "/relu/Relu")
    last = graph.node("MaxPool", [last], "/maxpool/MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    channels = 64
    for stage, (width, blocks) in enumerate([(64, 3), (128, 4), (256, 6), (512, 3)], start=1):
        for block in range(blocks):
            name = f"layer{stage}/layer{stage}.{block}"
            stride = 2 if block == 0 and stage > 1 else 1
            skip = last
            if block == 0:
                skip = graph.conv(last, f"{name}/downsample", 4 * width, channels, size=1, stride=stride)
            last = graph.node("Relu", [graph.conv(last, f"{name}/conv1", width, channels, size=1)], f"/{name}/relu")
            last = graph.conv(last, f"{name}/conv2", width, width, size=3, stride=stride)
            last = graph.node("Relu", [last], f"/{name}/relu_1")
            last = graph.conv(last, f"{name}/conv3", 4 * width, width, size=1)
            last = graph.node("Add", [last, skip], f"/{name}/Add")
            last = graph.node("Relu", [last], f"/{name}/relu_2")
            channels = 4 * width
    return graph.finish(path, last, channels, side=side)


def mobilenet_v2(path: Path, *, side: int = 224) -> Path:
    """MobileNetV2's blocks: expansion, depthwise convolution, linear projection, ReLU6 as Clip."""
    graph = _Graph(seed=2)
    graph.weights += [numpy_helper.from_array(np.float32(value), name) for value, name in ((0, "zero"), (6, "six"))]

    def six(source: str, name: str) -> str:
        return graph.node("Clip", [source, "zero", "six"], f"/{name}/Clip")

    last = six(graph.conv("input", "first", 32, 3, size=3, stride=2), "first")
    channels = 32
    for stage, (expand, out, blocks, stride) in enumerate(
        [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    ):
        for block in range(blocks):
            name, skip, hidden = f"block{stage}.{block}", last, channels * expand
            step = stride if block == 0 else 1
            if expand > 1:
                last = six(graph.conv(last, f"{name}/expand", hidden, channels, size=1), f"{name}/expand")
            last = graph.conv(last, f"{name}/depthwise", hidden, hidden, size=3, stride=step, group=hidden)
            last = graph.conv(six(last, f"{name}/depthwise"), f"{name}/project", out, hidden, size=1)
            if step == 1 and channels == out:
                last = graph.node("Add", [last, skip], f"/{name}/Add")
            channels = out
    last = six(graph.conv(last, "last", 1280, channels, size=1), "last")
    return graph.finish(path, last, 1280, side=side)

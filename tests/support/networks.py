"""Small networks of every shape, made from a seed: what real classifiers consist of, in a few kilobytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIZE = 16


class Builder:
    """An ONNX graph that grows node by node; each method returns the name of the tensor it made."""

    def __init__(self, seed: int, *, batch: int | str = "N", opset: int = 17) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.batch, self.opset = batch, opset

    def constant(self, values: Any, name: str | None = None) -> str:
        name = name or f"k{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def node(self, kind: str, *inputs: str, name: str | None = None, output: str | None = None, **given: Any) -> str:
        output = output or f"t{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(kind, list(inputs), [output], name=name or f"{kind}_{len(self.nodes)}", **given)
        )
        return output

    def weights(self, *shape: int) -> str:
        fan = int(np.prod(shape[1:])) or 1
        return self.constant((self.rng.normal(size=shape) / np.sqrt(fan)).astype(np.float32))

    def conv(self, x: str, inside: int, outside: int, k: int = 3, *, bias: bool = True, **given: Any) -> str:
        group = given.get("group", 1)
        w = self.weights(outside, inside // group, k, k)
        inputs = [x, w]
        if bias:
            inputs.append(self.constant(self.rng.normal(size=outside).astype(np.float32) * 0.2))
        return self.node("Conv", *inputs, **given)

    def relu6(self, x: str) -> str:
        return self.node("Clip", x, self.constant(np.float32(0)), self.constant(np.float32(6)))

    def silu(self, x: str) -> str:
        return self.node("Mul", x, self.node("Sigmoid", x))

    def gelu(self, x: str) -> str:
        inner = self.node("Erf", self.node("Div", x, self.constant(np.float32(np.sqrt(2)))))
        half = self.node("Mul", x, self.node("Add", inner, self.constant(np.float32(1))))
        return self.node("Mul", half, self.constant(np.float32(0.5)))

    def linear(self, x: str, inside: int, outside: int) -> str:
        w = self.constant((self.rng.normal(size=(inside, outside)) / np.sqrt(inside)).astype(np.float32))
        b = self.constant(self.rng.normal(size=outside).astype(np.float32) * 0.1)
        return self.node("Add", self.node("MatMul", x, w), b)

    def reshape(self, x: str, shape: Sequence[int]) -> str:
        return self.node("Reshape", x, self.constant(np.array(shape, np.int64)))

    def norm(self, x: str, width: int) -> str:
        gamma = self.constant((1 + self.rng.normal(size=width) * 0.5).astype(np.float32))
        return self.node("LayerNormalization", x, gamma, self.constant(np.zeros(width, np.float32)), axis=-1)

    def squeeze_excite(self, x: str, width: int) -> str:
        squeezed = self.node("GlobalAveragePool", x)
        gate = self.node("Relu", self.conv(squeezed, width, width // 2, 1))
        return self.node("Mul", x, self.node("HardSigmoid", self.conv(gate, width // 2, width, 1)))

    def shuffle(self, x: str, width: int, groups: int, side: int) -> str:
        x = self.reshape(x, (-1, groups, width // groups, side, side))
        return self.reshape(self.node("Transpose", x, perm=[0, 2, 1, 3, 4]), (-1, width, side, side))

    def windows(self, x: str, width: int, side: int, window: int) -> str:
        """Attention within windows; the first axis of what is inside counts pictures × windows."""
        n = side // window
        x = self.reshape(x, (-1, width, n, window, n, window))
        x = self.reshape(self.node("Transpose", x, perm=[0, 2, 4, 3, 5, 1]), (-1, window * window, width))
        y = self.norm(x, width)
        q, k, v = (self.linear(y, width, width) for _ in range(3))
        scores = self.node("Softmax", self.node("MatMul", q, self.node("Transpose", k, perm=[0, 2, 1])), axis=-1)
        x = self.node("Add", x, self.linear(self.node("MatMul", scores, v), width, width))
        x = self.node(
            "Add", x, self.linear(self.gelu(self.linear(self.norm(x, width), width, 2 * width)), 2 * width, width)
        )
        x = self.reshape(x, (-1, n, n, window, window, width))
        return self.reshape(self.node("Transpose", x, perm=[0, 5, 1, 3, 2, 4]), (-1, width, side, side))

    def merge_tokens(self, x: str, width: int, side: int) -> str:
        """2×2 neighbours become one token of twice the width."""
        x = self.reshape(x, (-1, width, side // 2, 2, side // 2, 2))
        x = self.node("Transpose", x, perm=[0, 2, 4, 3, 5, 1])
        x = self.linear(self.reshape(x, (-1, side * side // 4, 4 * width)), 4 * width, 2 * width)
        return self.reshape(self.node("Transpose", x, perm=[0, 2, 1]), (-1, 2 * width, side // 2, side // 2))

    def model(self, x: str, width: int, classes: int = 5) -> Any:
        pooled = self.node("Flatten", self.node("GlobalAveragePool", x))
        w = self.weights(classes, width)
        self.node("Gemm", pooled, w, self.constant(np.zeros(classes, np.float32)), transB=1, output="logits")
        graph = helper.make_graph(
            self.nodes, "net",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, [self.batch, 3, SIZE, SIZE])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [self.batch, classes])],
            self.constants,
        )  # fmt: skip
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=9)
        onnx.checker.check_model(made, full_check=True)
        return made


KINDS = ("mobile", "windows", "merge", "excite", "shuffle", "dilated", "branches", "residual", "transposed")


def network(kind: str, *, seed: int = 0, batch: int | str = "N") -> Any:
    """A network of one kind, as an onnx.ModelProto: float32 N×3×16×16 in, N×5 logits out."""
    b = Builder(seed, batch=batch)
    x = b.relu6(b.conv("input", 3, 8, 3, strides=[2, 2], pads=[1, 1, 1, 1]))
    if kind == "mobile":
        y = b.relu6(b.conv(x, 8, 16, 1))
        y = b.relu6(b.conv(y, 16, 16, 3, group=16, pads=[1, 1, 1, 1]))
        x = b.node("Add", x, b.conv(y, 16, 8, 1))
    elif kind == "windows":
        x = b.windows(x, 8, 8, 4)
    elif kind == "merge":
        return b.model(b.merge_tokens(x, 8, 8), 16)
    elif kind == "excite":
        x = b.squeeze_excite(b.node("HardSwish", b.conv(x, 8, 8, 3, pads=[1, 1, 1, 1])), 8)
        x = b.conv(b.silu(b.conv(x, 8, 8, 1)), 8, 8, 1)
    elif kind == "shuffle":
        x = b.node("Relu", b.conv(b.shuffle(b.node("Relu", b.conv(x, 8, 8, 1, group=2)), 8, 2, 8), 8, 8, 1, group=2))
    elif kind == "dilated":
        x = b.node("Relu", b.conv(x, 8, 8, 3, dilations=[2, 2], pads=[2, 2, 2, 2]))
        x = b.node("Relu", b.conv(x, 8, 8, 3, group=4, dilations=[2, 1], pads=[2, 1, 2, 1], bias=False))
    elif kind == "branches":
        one = b.node("Relu", b.conv(x, 8, 4, 1))
        two = b.node("Relu", b.conv(b.node("Relu", b.conv(x, 8, 4, 1)), 4, 8, 3, pads=[1, 1, 1, 1]))
        three = b.node("MaxPool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        x = b.conv(b.node("Concat", one, two, three, axis=1), 20, 8, 1)
    elif kind == "residual":
        y = b.node("Relu", b.conv(x, 8, 8, 3, pads=[1, 1, 1, 1]))
        x = b.node("Relu", b.node("Add", b.conv(y, 8, 8, 3, pads=[1, 1, 1, 1]), b.conv(x, 8, 8, 1)))
        x = b.node("Relu", b.node("Add", x, b.conv(x, 8, 8, 3, pads=[1, 1, 1, 1])))
    elif kind == "transposed":
        w = b.weights(8, 8, 2, 2)
        x = b.node("Relu", b.node("ConvTranspose", x, w, strides=[2, 2]))
        x = b.node("Relu", b.conv(x, 8, 8, 3, strides=[2, 2], auto_pad="SAME_UPPER"))
    return b.model(x, 8)

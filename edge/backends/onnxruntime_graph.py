"""The optimized graph of onnxruntime, described: which kernels run, in which precision, made of what.

The optimized graph gives its nodes and tensors other names. What a node computes is found again by the names that
onnxruntime keeps, whole or with an ending, and everything in the source graph between it and the nodes in front of it
is what was fused.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any

from edge.errors import require
from edge.model import Inspection, Layer, LayerTensor, Port, Role, inspection

# Operators with weights as they are called after optimization.
FLOAT_WEIGHTED = frozenset({"Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"})
INT8_WEIGHTED = frozenset(
    {"QLinearConv", "QGemm", "QLinearMatMul", "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat"}
)
_REFORMATS = frozenset({"QuantizeLinear", "DequantizeLinear", "Cast"})
_VIEWS = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze", "Identity"})
# What onnxruntime appends to the name of a node or tensor that it replaces.
_ENDING = re.compile(r"(_nchwc|_token_\d+|_transformed|_output_quantized)+$")


def inspect(source: Any, optimized: Any, *, unscaled: Collection[str] = ()) -> Inspection:  # noqa: ANN401
    """Describe an optimized graph.

    Args:
        source: the onnx.ModelProto that was given to onnxruntime.
        optimized: the one that it wrote back.
        unscaled: tensors that INT8 was wanted for and that the table has no usable scale for.
    """
    before = _Source(source)
    after = _Optimized(optimized, before)
    layers = [after.layer(node, unscaled) for node in optimized.graph.node]
    constant = {item.name for item in source.graph.initializer}
    given = [Port(name=v.name, mode="input", precision=_precision_of(v), shape=_shape_of(v))
             for v in source.graph.input if v.name not in constant]  # fmt: skip
    made = [Port(name=v.name, mode="output", precision=_precision_of(v), shape=_shape_of(v))
            for v in source.graph.output]  # fmt: skip
    return Inspection(
        format=inspection.FORMAT,
        source=f"optimized graph of onnxruntime {require('onnxruntime').__version__}",
        nodes=inspection.nodes(source),
        layers=layers,
        ports=given + made,
    )


class _Source:
    """The graph before: who makes which tensor, and its shape."""

    def __init__(self, proto: Any) -> None:  # noqa: ANN401
        onnx = require("onnx")
        graph = proto.graph
        self.by_name = {node.name: node for node in graph.node if node.name}
        self.producer = {name: node for node in graph.node for name in node.output}
        self.consumers: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)
        try:
            inferred = onnx.shape_inference.infer_shapes(proto).graph
        except (ValueError, RuntimeError, onnx.shape_inference.InferenceError):
            inferred = graph
        self.shapes = {v.name: _shape_of(v) for v in (*inferred.value_info, *graph.input, *graph.output)}
        self.given = {value.name for value in graph.input} | {item.name for item in graph.initializer}
        self._order = {node.name: index for index, node in enumerate(inspection.nodes(proto))}

    def anchor(self, node: Any) -> str | None:  # noqa: ANN401
        """The tensor of this graph that an optimized node computes, or None where its name is lost."""
        if self.is_inserted(node):
            return str(node.output[0]) if node.output[0] in self.producer else None
        name = _ENDING.sub("", node.name)
        for candidate in (*node.output, name, f"{name}_Output"):
            if candidate in self.producer:
                return self._past_sum(node, str(candidate))
        if name not in self.by_name or not self.by_name[name].output:
            return None
        output = str(self.by_name[name].output[0])
        if node.op_type in INT8_WEIGHTED or node.op_type.startswith("QLinear"):
            # It takes the quantization behind it along.
            following = [item for item in self.consumers.get(output, []) if item.op_type == "QuantizeLinear"]
            return str(following[0].output[0]) if following else output
        return output

    def is_inserted(self, node: Any) -> bool:  # noqa: ANN401
        """True if onnxruntime added a node that only moves data."""
        return node.op_type in {"Transpose", "ReorderInput", "ReorderOutput"} and node.name not in self.by_name

    def between(self, tensor: str, stops: Collection[str]) -> list[str]:
        """Names of the nodes that compute ``tensor`` from the tensors in ``stops``, in graph order."""
        found: set[str] = set()
        left = [tensor]
        while left:
            name = left.pop()
            node = self.producer.get(name)
            if node is None or (name != tensor and name in stops):
                continue
            key = node.name or node.output[0]
            if key not in found:
                found.add(key)
                left.extend(node.input)
        # Without those that only prepare constants.
        return sorted(found & self._order.keys(), key=self._order.__getitem__)

    def _past_sum(self, node: Any, tensor: str) -> str:  # noqa: ANN401
        """A blocked convolution with a fourth input has the sum behind it inside, and keeps its own name."""
        following = self.consumers.get(tensor, [])
        has_sum = node.domain.endswith("nchwc") and node.op_type == "Conv" and len(node.input) > 3
        if has_sum and len(following) == 1 and following[0].op_type == "Add":
            return str(following[0].output[0])
        return tensor


class _Optimized:
    """The graph after: precisions, layouts and sizes, as far as the operators say."""

    def __init__(self, proto: Any, source: _Source) -> None:  # noqa: ANN401
        self._source = source
        self._constants = {item.name: item for item in proto.graph.initializer}
        self._precision = {value.name: _precision_of(value) for value in (*proto.graph.input, *proto.graph.output)}
        self._precision |= {name: _words(item.data_type) for name, item in self._constants.items()}
        self._layout: dict[str, str] = {}
        self._anchors = {node.output[0]: source.anchor(node) for node in proto.graph.node if node.output}
        self._moved = {node.output[0]: node.input[0] for node in proto.graph.node if source.is_inserted(node)}
        self._stops = {name for name in self._anchors.values() if name is not None}
        for node in proto.graph.node:
            self._flow(node)

    def layer(self, node: Any, unscaled: Collection[str]) -> Layer:  # noqa: ANN401
        anchor = self._anchors.get(node.output[0]) if node.output else None
        is_inserted = self._source.is_inserted(node)
        fused = self._source.between(anchor, self._stops) if anchor and not is_inserted else []
        role = self._role(node)
        live = [name for name in node.input if name and name not in self._constants]
        sizes = [_bytes(self._constants[name]) for name in node.input if name in self._constants]
        # A tensor in another layout (reorder_token_0) stands for the one that it was made of.
        read = [self._moved.get(name, name) for name in live]
        lost = [name for name in (*read, *node.output, anchor) if name in unscaled]
        precision = None if role == "reformat" else self._computes_in(node, live)
        return Layer(
            name=node.name or node.output[0],
            kind=node.op_type,
            role=role,
            precision=precision,
            inputs=[self._tensor(name) for name in live],
            outputs=[self._tensor(name) for name in node.output if name],
            nodes=fused,
            weights_bytes=sum(sizes) if sizes and role == "weighted" else None,
            tactic=node.domain or None,
            why=f"the table has no usable scale for {lost[0]}" if lost and precision == "fp32" else None,
        )

    def _flow(self, node: Any) -> None:  # noqa: ANN401
        """Precision and layout of a node's outputs from its operator and its inputs."""
        first = self._precision.get(node.input[0]) if node.input else None
        made = first
        if node.op_type == "QuantizeLinear":
            made = self._precision.get(node.input[2]) if len(node.input) > 2 else "uint8"
        elif node.op_type in {"DequantizeLinear", "MatMulIntegerToFloat"}:
            made = "fp32"
        elif node.op_type in {"ConvInteger", "MatMulInteger"}:
            made = "int32"
        elif node.op_type == "QGemm":
            # The ninth input is the output's zero point; without it, the output is float.
            made = first if len(node.input) > 8 and node.input[8] else "fp32"
        elif node.op_type == "Cast":
            made = next((_words(item.i) for item in node.attribute if item.name == "to"), None)
        for name in node.output:
            self._precision.setdefault(name, made)
            self._layout[name] = self._laid_out(node)

    def _laid_out(self, node: Any) -> str:  # noqa: ANN401
        last = any(item.name == "channels_last" and item.i for item in node.attribute)
        if node.op_type == "Transpose":
            order = next((list(item.ints) for item in node.attribute if item.name == "perm"), [])
            return {(0, 2, 3, 1): "NHWC", (0, 3, 1, 2): "NCHW"}.get(tuple(order), "transposed")
        if node.domain.endswith("nchwc") and node.op_type != "ReorderOutput":
            return "NCHWc (channels in blocks)"
        if last:
            return "NHWC"
        before = self._layout.get(node.input[0], "NCHW") if node.input else "NCHW"
        is_mixing = node.op_type in FLOAT_WEIGHTED | INT8_WEIGHTED or node.op_type in _VIEWS | {"ReorderOutput"}
        return "NCHW" if is_mixing else before

    def _computes_in(self, node: Any, live: list[str]) -> str | None:  # noqa: ANN401
        if node.op_type in INT8_WEIGHTED or node.op_type.startswith("QLinear"):
            return "int8"
        reported = self._precision.get(live[0]) if live else None
        return "int8" if reported == "uint8" and node.op_type not in _REFORMATS else reported

    def _role(self, node: Any) -> Role:  # noqa: ANN401
        if node.op_type in FLOAT_WEIGHTED | INT8_WEIGHTED:
            return "weighted"
        if node.op_type in _REFORMATS or self._source.is_inserted(node):
            return "reformat"
        return "free" if node.op_type in _VIEWS else "other"

    def _tensor(self, name: str) -> LayerTensor:
        known = self._anchors.get(name) or name
        shape = self._source.shapes.get(known)
        flat = shape is not None and len(shape) != 4
        layout = None if flat else self._layout.get(name, "NCHW" if name in self._source.given else None)
        return LayerTensor(name=name, precision=self._precision.get(name), layout=layout, shape=shape)


def _bytes(item: Any) -> int:  # noqa: ANN401
    onnx = require("onnx")
    count = 1
    for size in item.dims:
        count *= size
    return int(count * onnx.helper.tensor_dtype_to_np_dtype(item.data_type).itemsize)


def _precision_of(value: Any) -> str | None:  # noqa: ANN401
    return _words(value.type.tensor_type.elem_type)


def _words(kind: int) -> str | None:
    """Data type of ONNX (TensorProto.DataType) in one word."""
    return {
        1: "fp32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool", 10: "fp16", 11: "fp64", 16: "bf16",
    }.get(kind)  # fmt: skip


def _shape_of(value: Any) -> tuple[int | str, ...] | None:  # noqa: ANN401
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        return None
    return tuple(_sizes(kind.shape.dim))


def _sizes(dims: Any) -> Iterator[int | str]:  # noqa: ANN401
    for dim in dims:
        yield int(dim.dim_value) if dim.HasField("dim_value") else str(dim.dim_param or "?")

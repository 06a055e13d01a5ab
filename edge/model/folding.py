"""Prepare the user's ONNX for quantization: new enough opset, weights as initializers, BatchNormalization folded.

The result computes the same function. Remaining nodes keep their names, so layers have the names of the user's ONNX.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.errors import ModelError, require
from edge.model.adaption import MIN_IR
from edge.model.graph import GraphIndex, attributes, remove_unused, rename_reads

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import ModelProto, NodeProto

# Per-channel QuantizeLinear is from opset 13.
MIN_OPSET = 13
# A constant that would grow past this by folding (such as a tiled mask) stays a node.
_MOST_BYTES = 64 << 20
_RANDOM = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}


def opset_of(model: ModelProto) -> int:
    """Return the version of the default operator set."""
    return max((item.version for item in model.opset_import if item.domain in {"", "ai.onnx"}), default=0)


def has_qdq(model: ModelProto) -> bool:
    """Return True if the model is already quantized: a QuantizeLinear has an input that is not constant."""
    fixed = {item.name for item in model.graph.initializer}
    for node in model.graph.node:
        if all(name in fixed or not name for name in node.input):
            fixed.update(node.output)
        elif node.op_type == "QuantizeLinear":
            return True
    return False


def fold(model: ModelProto) -> ModelProto:
    """Return the same network (``model`` is not changed) with opset >= 13, constant initializers and folded BN.

    Returns:
        A copy in which every node has a unique name and the weights behind Constant, Identity, Cast, Transpose,
        Reshape and DequantizeLinear are float32 initializers. A model with Q/DQ nodes keeps those. An If with a
        constant condition is replaced by its branch.

    Raises:
        ModelError: the opset is older and onnx cannot convert it.
    """
    copy = _converted(model)
    _name_nodes(copy)
    _drop_constant_inputs(copy)
    _constants_to_initializers(copy)
    _fold_constants(copy)
    while _inline_constant_ifs(copy):
        _name_nodes(copy)
        _constants_to_initializers(copy)
        _fold_constants(copy)
    _fold_batch_norms(copy)
    remove_unused(copy)
    return copy


def _converted(model: ModelProto) -> ModelProto:
    onnx = require("onnx")
    copy: ModelProto = onnx.ModelProto()
    copy.CopyFrom(model)
    opset = opset_of(copy)
    if opset >= MIN_OPSET:
        return copy
    _name_nodes(copy)
    try:
        converted: ModelProto = onnx.version_converter.convert_version(copy, MIN_OPSET)
        onnx.checker.check_model(converted)
    except Exception as exc:  # the converter is C++ and raises several kinds for "no adapter"
        first = (str(exc).strip().splitlines() or [type(exc).__name__])[0]
        raise ModelError(
            f"opset {opset}, INT8 needs {MIN_OPSET} or newer, and onnx cannot convert it: {first}",
            hint="export the model again with opset 17",
        ) from exc
    return converted


def _name_nodes(model: ModelProto) -> None:
    """Give every node a unique name."""
    given = {node.name for node in model.graph.node}
    seen: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}_{index}"
            while node.name in given:
                node.name += "_"
            given.add(node.name)
        seen.add(node.name)


def _drop_constant_inputs(model: ModelProto) -> None:
    """Remove initializers from the inputs, where old exporters list them as well."""
    constant = {item.name for item in model.graph.initializer}
    for value in [value for value in model.graph.input if value.name in constant]:
        model.graph.input.remove(value)
    model.ir_version = max(model.ir_version, MIN_IR)


def _constants_to_initializers(model: ModelProto) -> None:
    onnx = require("onnx")
    for node in [node for node in model.graph.node if node.op_type == "Constant"]:
        values = attributes(node)
        if isinstance(values.get("value"), onnx.TensorProto):
            tensor = onnx.TensorProto()
            tensor.CopyFrom(values["value"])
        elif "value_float" in values or "value_floats" in values:
            tensor = onnx.numpy_helper.from_array(
                np.asarray(values.get("value_float", values.get("value_floats")), np.float32)
            )
        elif "value_int" in values or "value_ints" in values:
            tensor = onnx.numpy_helper.from_array(
                np.asarray(values.get("value_int", values.get("value_ints")), np.int64)
            )
        else:
            continue
        tensor.name = node.output[0]
        model.graph.initializer.append(tensor)
        model.graph.node.remove(node)


def _fold_constants(model: ModelProto) -> None:
    """Replace nodes whose inputs are all constant by their outputs."""
    onnx = require("onnx")
    keeps_qdq = has_qdq(model)
    graph = model.graph
    known = {item.name: item for item in graph.initializer}
    outputs = {value.name for value in graph.output}
    domains = {item.domain: item.version for item in model.opset_import}
    folded: list[NodeProto] = []
    for node in graph.node:
        names = [name for name in node.input if name]
        if not names or not all(name in known for name in names) or outputs.intersection(node.output):
            continue
        if node.op_type in _RANDOM or any(item.HasField("g") or item.graphs for item in node.attribute):
            continue
        if keeps_qdq and node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            continue
        values = _evaluated(node, {name: known[name] for name in names}, domains)
        if values is None or sum(value.nbytes for value in values) > _MOST_BYTES:
            continue
        for name, value in zip(node.output, values, strict=False):
            if name:
                graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value, order="C"), name))
                known[name] = graph.initializer[-1]
        folded.append(node)
    for node in folded:
        graph.node.remove(node)


def _evaluated(node: NodeProto, constants: dict[str, Any], domains: dict[str, int]) -> list[NDArray[Any]] | None:
    """Return the outputs of a node with constant inputs, by onnx's reference implementation; None if unsupported."""
    onnx = require("onnx")
    arrays = {name: onnx.numpy_helper.to_array(item) for name, item in constants.items()}
    if node.op_type == "Identity":
        return [arrays[node.input[0]]]
    if node.op_type == "Transpose":
        return [np.transpose(arrays[node.input[0]], attributes(node).get("perm"))]
    try:
        from onnx.reference import ReferenceEvaluator

        inputs = [
            onnx.helper.make_tensor_value_info(name, item.data_type, list(item.dims))
            for name, item in constants.items()
        ]
        made = [onnx.ValueInfoProto(name=name) for name in node.output if name]
        graph = onnx.helper.make_graph([node], "constant", inputs, made)
        opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in domains.items()]
        with np.errstate(all="ignore"):
            results = ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=opsets)).run(None, arrays)
    except Exception:  # noqa: BLE001 - an operator that the reference does not know stays a node
        return None
    return results if all(isinstance(value, np.ndarray | np.generic) for value in results) else None


def _inline_constant_ifs(model: ModelProto) -> bool:
    """Replace each If with a constant condition by the nodes of its branch; return True if there was one.

    The script exporter of PyTorch writes such an If for a squeeze, for example.
    """
    onnx = require("onnx")
    graph = GraphIndex(model)
    nodes: list[NodeProto] = []
    is_changed = False
    for node in model.graph.node:
        if node.op_type != "If" or node.input[0] not in graph.constants:
            nodes.append(node)
            continue
        is_changed = True
        wanted = "then_branch" if graph.array(node.input[0]).reshape(-1)[0] else "else_branch"
        branch = onnx.GraphProto()
        branch.CopyFrom(next(item.g for item in node.attribute if item.name == wanted))
        made = [name for part in branch.node for name in part.output if name]
        # Names are unique within a branch only: the other branch, or another If, may use them as well.
        names = {name: graph.unique(name) for name in (*made, *(item.name for item in branch.initializer))}
        for item in branch.initializer:
            item.name = names[item.name]
            model.graph.initializer.append(item)
        for part in branch.node:
            rename_reads(part, names)
            part.output[:] = [names.get(name, name) for name in part.output]
            nodes.append(part)
        for value, output in zip(branch.output, node.output, strict=True):
            nodes.append(onnx.helper.make_node("Identity", [names.get(value.name, value.name)], [output]))
    if not is_changed:
        return False
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    return True


def _fold_batch_norms(model: ModelProto) -> None:
    """Fold BatchNormalization into the preceding Conv, ConvTranspose or Gemm.

    Source: y = (W·x + b - mean)·f + beta with f = gamma / sqrt(variance + epsilon), so W' = W·f and b' = (b - mean)·f
    + beta.
    """
    graph = GraphIndex(model)
    for norm in [node for node in model.graph.node if node.op_type == "BatchNormalization"]:
        layer = graph.producer.get(norm.input[0])
        if layer is None or len([name for name in norm.output if name]) > 1:
            continue
        if not graph.is_sole_consumer(norm, norm.input[0]) or attributes(norm).get("training_mode", 0):
            continue
        axis = _foldable_axis(layer)
        names = [*norm.input[1:5], *layer.input[1:3]]
        if axis is None or any(name and name not in graph.constants for name in names):
            continue
        gamma, beta, mean, variance = (graph.array(name).astype(np.float64) for name in norm.input[1:5])
        factor = gamma / np.sqrt(variance + attributes(norm).get("epsilon", 1e-5))
        weights = graph.array(layer.input[1])
        shape = [1] * weights.ndim
        shape[axis] = -1
        if weights.shape[axis] != factor.size:
            continue
        has_bias = len(layer.input) > 2 and bool(layer.input[2])
        bias = graph.array(layer.input[2]).astype(np.float64) if has_bias else 0.0
        scaled = (weights * factor.reshape(shape)).astype(np.float32)
        layer.input[1] = graph.add_constant(f"{layer.input[1]}_bn", scaled)
        shifted = np.broadcast_to((bias - mean) * factor + beta, factor.shape)
        name = graph.add_constant(f"{layer.name}_bias", shifted.astype(np.float32))
        if len(layer.input) > 2:
            layer.input[2] = name
        else:
            layer.input.append(name)
        layer.output[0] = norm.output[0]
        model.graph.node.remove(norm)
        graph.producer[layer.output[0]] = layer


def _foldable_axis(layer: NodeProto) -> int | None:
    """Return the axis of the output channels if BN can be folded into the weights of ``layer``."""
    given = attributes(layer)
    if layer.op_type == "Conv":
        return 0
    if layer.op_type == "ConvTranspose" and given.get("group", 1) == 1:
        return 1
    if layer.op_type == "Gemm" and math.isclose(given.get("alpha", 1.0), 1.0) and given.get("beta", 1.0) == 1.0:
        return 0 if given.get("transB", 0) else 1
    return None

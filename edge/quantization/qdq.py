"""Calibration table -> Q/DQ ONNX, by onnxruntime's QDQ quantizer with our ranges and TensorRT's placement rules.

Both targets: symmetric INT8, per-tensor activations with the table's scale to the bit, per-channel weights whose sums
are kept (:mod:`edge.quantization.rounding`), all inputs of weighted layers quantized.

``tensorrt``: int8 everywhere, zero point 0, float biases, no Q/DQ behind convolutions and matrix products; of a
residual add only the skip input is quantized (TensorRT developer guide 8.4, section 7.4.4).

``onnxruntime``: its integer kernels need a quantized output too, and one activation type throughout. So outputs get
Q/DQ (before a Relu or Clip with the scale behind it, which changes nothing: rounding and clipping commute), and
activations are uint8 with zero point 128: the same integers shifted by 128, the form that x86 VNNI multiplies fast.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np

from edge.errors import ModelError, require
from edge.quantization import rounding
from edge.quantization.calibration_table import Table
from edge.quantization.table_check import value_code

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

# Raised when the same model and table give another network: engines of before are built again.
DEFINITION = 2

Target = Literal["tensorrt", "onnxruntime"]
Scales = Mapping[str, float]

# Layers with weights: what INT8 is about, and what a quality gate counts.
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# Quantized next to them, so that no float island costs two conversions.
_ALONG = {
    "tensorrt": ("GlobalAveragePool", "AveragePool"),
    "onnxruntime": ("Add", "GlobalAveragePool", "AveragePool", "MaxPool", "Concat"),
}
_MIN_OPSET = 13  # per-channel QuantizeLinear
# What the quantizer appends to a tensor's name; it does not look whether the result is taken.
_APPENDED = ("_scale", "_zero_point", "_quantized", "_QuantizeLinear_Output", "_DequantizeLinear_Output")


class QdqResult(msgspec.Struct, frozen=True):
    """The Q/DQ model (an onnx.ModelProto), and how many weighted layers it quantizes of how many.

    ``unscaled`` names the tensors that have no usable scale and keep a weighted layer in float.
    """

    model: Any
    quantized: int
    weighted: int
    unscaled: list[str]


def insert(model: ModelProto, table: Table, *, target: Target, balance: bool = True) -> QdqResult:
    """Q/DQ form of ``model`` (which is left as it is) with the scales of ``table``.

    Without ``balance`` each weight goes to the nearest level, as other quantizers do it. A layer with a tensor that has
    no scale, or one that means nothing (zero, denormal, negative, not finite), stays float and is counted as such.

    Raises:
        ModelError: the opset is below 13, a name is one that the quantizer gives, or it cannot handle the model.
    """
    opset = next((item.version for item in model.opset_import if item.domain in {"", "ai.onnx"}), 0)
    if opset < _MIN_OPSET:
        raise ModelError(f"opset {opset}; per-channel Q/DQ needs {_MIN_OPSET} or newer", hint="export the model again")
    copy = named_copy(model)
    _check_names(copy)
    constant = {item.name for item in copy.graph.initializer}
    scales = usable_scales(copy, table, target=target)
    outputs = {value.name for value in copy.graph.output}
    weighted = {node.name for node in copy.graph.node if _has_weights(node, constant)}
    unscaled: dict[str, None] = {}
    chosen: list[NodeProto] = []
    for node in copy.graph.node:
        if node.name not in weighted and node.op_type not in _ALONG[target]:
            continue
        inputs = node.input[:1] if node.name in weighted else node.input
        needed = [name for name in inputs if name and name not in constant]
        if target == "onnxruntime":
            needed += [name for name in node.output if name not in outputs]
        lacking = [name for name in needed if name not in scales]
        if not lacking:
            chosen.append(node)
        elif node.name in weighted:
            unscaled.update(dict.fromkeys(lacking))
    done = sum(node.name in weighted for node in chosen)
    if done and balance:
        rounding.balance(copy, [node for node in chosen if node.name in weighted])
    if done:
        copy = _quantize(copy, scales, chosen, target)
    return QdqResult(copy, done, len(weighted), list(unscaled))


def usable_scales(model: ModelProto, table: Table, *, target: Target) -> dict[str, float]:
    """The scale that each tensor gets, where the table has one that means something; ``model`` is left as it is.

    Constants must be initializers: weights get their scales from their own values, whatever a foreign table says.
    """
    constant = {item.name for item in model.graph.initializer}
    usable = {name: table.scale(name) for name, pattern in table.bits.items() if value_code(pattern) is None}
    scales = {name: scale for name, scale in usable.items() if name not in constant}
    if target == "onnxruntime":
        _move_before_activations(model, scales)
    return scales


def _quantize(model: ModelProto, scales: Scales, nodes: list[NodeProto], target: Target) -> ModelProto:
    require("onnxruntime")
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    # An output of the graph needs some scale here; its Q/DQ pair is taken off again.
    scales = {**dict.fromkeys((value.name for value in model.graph.output), 1.0), **scales}
    kind, zero = (QuantType.QInt8, np.int8(0)) if target == "tensorrt" else (QuantType.QUInt8, np.uint8(128))
    overrides = {
        name: [{"quant_type": kind, "scale": np.array(scale, np.float32), "zero_point": np.array(zero)}]
        for name, scale in scales.items()
    }
    bounds = {name: np.array(scale * 127, np.float32) for name, scale in scales.items()}
    types = sorted({node.op_type for node in nodes})
    options = {
        "ActivationSymmetric": True,
        "WeightSymmetric": True,
        "TensorQuantOverrides": overrides,
        "QDQKeepRemovableActivations": True,
        # TensorRT takes float biases only (int32 DequantizeLinear is not for it).
        "QuantizeBias": target == "onnxruntime",
        "OpTypesToExcludeOutputQuantization": types if target == "tensorrt" else [],
    }
    try:
        with _quiet():
            quantizer = QDQQuantizer(
                model,
                per_channel=True,
                reduce_range=False,
                weight_qType=QuantType.QInt8,
                activation_qType=kind,
                tensors_range=TensorsData(
                    CalibrationMethod.MinMax,
                    {name: TensorData(lowest=-bound, highest=bound) for name, bound in bounds.items()},
                ),
                nodes_to_quantize=[node.name for node in nodes],
                nodes_to_exclude=[],
                op_types_to_quantize=types,
                extra_options=options,
            )
            if target == "tensorrt":
                for name in _skips(model, scales):
                    quantizer.quantize_activation_tensor(name)
            quantizer.quantize_model()
    except (ValueError, TypeError, KeyError, AssertionError, RuntimeError) as exc:
        raise ModelError(
            f"onnxruntime's quantizer cannot handle this model: {exc}",
            hint="simplify the model, or use precision: fp32",
        ) from exc
    result: ModelProto = quantizer.model.model
    _float_outputs(result)
    quantizer.model.clean_initializers()
    # The quantizer appends the new nodes at the end; onnx wants producers before consumers.
    quantizer.model.topological_sort()
    return result


def _float_outputs(model: ModelProto) -> None:
    """Take the Q/DQ pair off the graph's outputs: nobody computes with them, and rounding would cost accuracy.

    The quantizer itself can leave outputs alone by operator type only, and hidden layers of that type with them.
    """
    producers = {name: node for node in model.graph.node for name in node.output}
    for value in model.graph.output:
        back = producers[value.name]
        forth = producers.get(back.input[0]) if back.op_type == "DequantizeLinear" else None
        if forth is not None and forth.op_type == "QuantizeLinear":
            made_by = producers[forth.input[0]].output
            made_by[list(made_by).index(forth.input[0])] = value.name
            model.graph.node.remove(forth)
            model.graph.node.remove(back)


def _skips(model: ModelProto, scales: Scales) -> list[str]:
    """The skip input of each residual add: the branch that is not the convolution's own output.

    Where both branches are convolutions (a downsampling block), the one computed first; the other stays float, so that
    TensorRT can fuse its convolution with the add.
    """
    producer = {name: (index, node.op_type) for index, node in enumerate(model.graph.node) for name in node.output}
    skips = []
    for node in model.graph.node:
        if node.op_type == "Add" and all(name in scales and name in producer for name in node.input):
            others = [name for name in node.input if producer[name][1] not in WEIGHTED]
            skips.append(others[0] if others else min(node.input, key=lambda name: producer[name][0]))
    return skips


def _move_before_activations(model: ModelProto, scales: dict[str, float]) -> None:
    """Give the input of each Relu and Clip the scale of its output, so that the layer in front can run in INT8.

    The quantizer then saturates where the activation would have clipped, and Relu or Clip of a rounded value is the
    rounded value of Relu or Clip. Only where the activation is the tensor's only user.
    """
    users: dict[str, int] = {}
    for node in model.graph.node:
        for name in node.input:
            users[name] = users.get(name, 0) + 1
    for node in model.graph.node:
        if node.op_type in {"Relu", "Clip"} and node.output[0] in scales and users[node.input[0]] == 1:
            scales[node.input[0]] = scales[node.output[0]]


def _has_weights(node: NodeProto, constant: set[str]) -> bool:
    """True if this is a weighted layer with constant weights; a product of two activations is none."""
    return node.op_type in WEIGHTED and len(node.input) > 1 and node.input[1] in constant


def named_copy(model: ModelProto) -> ModelProto:
    """A copy in which every node has a name of its own, and constants are initializers.

    The quantizer chooses nodes by name, and takes for weights what is an initializer.
    """
    onnx = require("onnx")
    copy: ModelProto = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in [node for node in copy.graph.node if node.op_type == "Constant"]:
        for attribute in node.attribute:
            if attribute.name == "value":
                attribute.t.name = node.output[0]
                copy.graph.initializer.append(attribute.t)
                copy.graph.node.remove(node)
    given = {node.name for node in copy.graph.node}
    seen: set[str] = set()
    for index, node in enumerate(copy.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}_{index}"
            while node.name in given:
                node.name += "_"
        seen.add(node.name)
    return copy


def _check_names(model: ModelProto) -> None:
    graph = model.graph
    names = {item.name for item in (*graph.initializer, *graph.input)} | {n for node in graph.node for n in node.output}
    for name in names:
        for ending in _APPENDED:
            if name + ending in names:
                raise ModelError(
                    f"tensor {name + ending!r} has the name that Q/DQ nodes of {name!r} would get",
                    hint="rename it in the model",
                )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The quantizer advises on the root logger to run a preprocessing step that edge has done."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)

"""Prepare the form of a model for TensorRT's parser: unchanged, in FP16, or with Q/DQ nodes.

FP16 for strongly typed networks is made by ``onnxruntime.transformers.float16``. Reasons, against the others that were
looked at: it is kept (onnxruntime is released every few months), it is there already (onnxruntime is a dependency that
edge has on every machine, so nothing is installed for it), and what it makes is parsed and built by TensorRT for RTX in
the tests. ``onnxconverter-common``, from which it grew, lacks its fixes and would be one more package. NVIDIA's Model
Optimizer (``modelopt.onnx.autocast``) chooses per node and is the better tool where FP16 overflows, but is a stack of
its own to install; its output is an ONNX file that edge takes like any other.

The network's input and output stay float32 in all forms, so the loop feeds every engine alike.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from edge.config import OutputOptions
from edge.errors import ArtifactError, ModelError, require
from edge.model import inspection, onnx_model, remove_unused
from edge.quantization import Table, qdq

_QDQ = frozenset({"QuantizeLinear", "DequantizeLinear"})
# Operators that compute sums of squares, powers or exponentials of their input. Softmax is not one: TensorRT subtracts
# the largest value first, and fuses attention only where it is FP16.
_FP32_INSIDE = frozenset(
    {
        "LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization", "Pow", "Exp", "Log",
        "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp", "ReduceProd", "LpNormalization", "LogSoftmax",
    }
)  # fmt: skip
_MOST = 65504.0  # FP16's largest number
_LARGE_RANGE = 16376.0  # a quarter of it: activations of other images may be larger
_LEAST_SCALE = 2.0**-18  # FP16 has steps of 2^-24 there, so that a scale is off by at most 1 in 128
_OPSET = 19  # the first in which scales may be FP16


class Form(msgspec.Struct, frozen=True, kw_only=True):
    """The parser's input: ``data``, or the file itself if that is None.

    ``quantized`` is the number of weighted layers with Q/DQ; ``half`` is true if everything except INT8 is FP16.
    """

    path: Path
    data: bytes | None = None
    quantized: int = 0
    half: bool = False
    notes: list[str] = []
    outputs: OutputOptions = OutputOptions()

    @property
    def weighted(self) -> int:
        """The number of convolutions and matrix products with constant weights; this reads the file."""
        return sum(node.weighted for node in inspection.nodes(onnx_model.read(self.path, self.outputs)))

    def nodes(self) -> list[inspection.Node]:
        """The nodes of the parser's input."""
        if self.data is None:
            return inspection.nodes(onnx_model.read(self.path, self.outputs))
        return inspection.nodes(require("onnx").load_model_from_string(self.data))


def plain(path: Path, outputs: OutputOptions = OutputOptions()) -> Form:  # noqa: B008
    """Use the file unchanged unless it needs adaption: TensorRT itself reads external weights and more than 2 GB.

    Raises:
        ModelError: the model is not a classifier, or is above 2 GB after adaption.
    """
    adapted = onnx_model.read_adapted(path, outputs)
    if not adapted.changes:
        return Form(path=path, outputs=outputs)
    return Form(path=path, data=_serialized(adapted.proto, path), outputs=outputs)


def half(path: Path, outputs: OutputOptions = OutputOptions()) -> Form:  # noqa: B008
    """Convert the model to FP16 with float32 input and output; parts beyond FP16's range stay in FP32 with a note.

    Raises:
        ModelError: the model cannot be converted, contains NaN or infinity in its weights, or is above 2 GB.
        MissingDependencyError: onnxruntime is missing.
    """
    converted, notes = _in_half(onnx_model.read(path, outputs), path, {})
    return Form(path=path, data=_serialized(converted, path), half=True, notes=notes, outputs=outputs)


def quantized(
    path: Path,
    table: Table,
    outputs: OutputOptions = OutputOptions(),  # noqa: B008
    *,
    half_rest: bool = False,
) -> Form:
    """Insert Q/DQ nodes with the scales of ``table`` into the model.

    With ``half_rest`` what is not INT8 is FP16, as weakly typed TensorRT has it, and so are the scales (rounded to 11
    bits); what FP16 cannot hold stays in FP32 and is named in the notes. Without, the rest is float32 and the scales
    are the table's to the bit.

    Raises:
        ModelError: the quantizer cannot handle the model, weights contain NaN or infinity, or the result is above 2 GB.
        ArtifactError: the table has no usable scale at any weighted layer.
    """
    proto = onnx_model.read(path, outputs)
    _odd_weights(proto, path)
    result = qdq.insert(proto, table, target="tensorrt")
    if result.weighted and not result.quantized:
        # TensorRT would take it for an INT8 network without any scale, and request a calibrator.
        what = (
            f"the table has no usable scale for any of the {result.weighted} weighted layers: nothing can run in INT8"
        )
        raise ArtifactError(what, where=path, hint="edge table check")
    notes = []
    if result.unscaled:
        some = ", ".join(result.unscaled[:3])
        notes.append(f"{len(result.unscaled)} tensors have no usable scale and keep their layers in float: {some}")
    model = result.model
    if half_rest:
        ranges = {name: 127.0 * scale for name, scale in table.scales.items()}
        model, kept = _in_half(model, path, ranges)
        notes += kept
    data = _serialized(model, path)
    return Form(path=path, data=data, quantized=result.quantized, half=half_rest, notes=notes, outputs=outputs)


def nodes(path: Path, outputs: OutputOptions = OutputOptions()) -> list[tuple[str, str]]:  # noqa: B008
    """Return name and operator of every node, in graph order, which parser errors of TensorRT 8.6 give by number."""
    return [(node.name, node.op_type) for node in onnx_model.read(path, outputs).graph.node]


def _in_half(proto: Any, path: Path, ranges: dict[str, float]) -> tuple[Any, list[str]]:  # noqa: ANN401
    """Convert ``proto`` to FP16 except input, output and values beyond FP16; return notes on what stays in FP32.

    ``ranges`` are the measured ones of activations, as far as they are known.
    """
    require("onnxruntime")
    from onnxruntime.transformers import float16

    copy = _at_opset(proto)
    _raise_weight_scales(copy)
    for index, node in enumerate(copy.graph.node):
        # The converter knows nodes by name.
        node.name = node.name or f"{node.op_type}_{index}"
    blocked = _beyond_half(copy, path, ranges)
    own = {node.name for node in copy.graph.node}
    try:
        converted = float16.convert_float_to_float16(copy, keep_io_types=True, node_block_list=sorted(blocked))
    except (ValueError, TypeError, KeyError, AssertionError, AttributeError, RuntimeError) as exc:
        raise ModelError(
            f"cannot be converted to FP16: {exc}", where=path, hint="simplify the model, or use --precision fp32"
        ) from exc
    _remove_round_trips(converted, own)
    # The converter puts the casts of inputs at the end; everybody but TensorRT wants producers first.
    _sort(converted)
    remove_unused(converted)
    reasons: dict[str, list[str]] = {}
    for name, reason in sorted(blocked.items()):
        reasons.setdefault(reason, []).append(name)
    return converted, [f"in FP32 because {reason}: {', '.join(names)}" for reason, names in reasons.items()]


def _remove_round_trips(proto: Any, own: set[str]) -> None:  # noqa: ANN401
    """Connect nodes that both stay in FP32: the converter puts a cast to FP16 and one back between them.

    They would lose what FP16 cannot hold, and INT8 between DequantizeLinear and its layer. Nodes of ``own`` names stay.
    """
    casts = {
        node.output[0]: (node.input[0], next(item.i for item in node.attribute if item.name == "to"))
        for node in proto.graph.node
        if node.op_type == "Cast" and node.name not in own
    }
    single, half_type = 1, 10  # TensorProto.FLOAT, FLOAT16
    source = {
        name: casts[middle][0]
        for name, (middle, to) in casts.items()
        if to == single and middle in casts and casts[middle][1] == half_type
    }
    for node in proto.graph.node:
        for index, name in enumerate(node.input):
            if name in source:
                node.input[index] = source[name]


def _at_opset(proto: Any) -> Any:  # noqa: ANN401
    """Return a copy of ``proto``, with the opset for FP16 scales if it has Q/DQ nodes and can be converted."""
    onnx = require("onnx")
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    (version,) = [item.version for item in proto.opset_import if item.domain in ("", "ai.onnx")]
    if version >= _OPSET or not any(node.op_type in _QDQ for node in proto.graph.node):
        return copy
    try:
        return require("onnx.version_converter").convert_version(copy, _OPSET)
    except (RuntimeError, ValueError):
        # TensorRT's parser does not mind an older one.
        return copy


def _raise_weight_scales(proto: Any) -> None:  # noqa: ANN401
    """Give channels of INT8 weights that are nearly zero a scale that FP16 can represent, with matching levels."""
    np, numpy_helper = require("numpy"), require("onnx.numpy_helper")
    weights = {item.name: item for item in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type != "DequantizeLinear" or not {node.input[0], node.input[1]} <= weights.keys():
            continue
        levels, scale = (numpy_helper.to_array(weights[name]) for name in node.input[:2])
        if levels.dtype != np.int8 or float(scale.min()) >= _LEAST_SCALE:
            continue
        raised = np.maximum(scale, np.float32(_LEAST_SCALE))
        axis = next((item.i for item in node.attribute if item.name == "axis"), 1)
        factor = scale / raised
        if factor.ndim == 1:
            factor = factor.reshape([-1 if each == axis % levels.ndim else 1 for each in range(levels.ndim)])
        for name, values in ((node.input[0], np.rint(levels * factor).astype(np.int8)), (node.input[1], raised)):
            weights[name].CopyFrom(numpy_helper.from_array(values, name))


def _beyond_half(proto: Any, path: Path, ranges: dict[str, float]) -> dict[str, str]:  # noqa: ANN401
    """Return the nodes, by name, that FP16 cannot compute, with the reason.

    Raises:
        ModelError: weights that are NaN or infinite.
    """
    large, small = _odd_weights(proto, path)
    found: dict[str, str] = {}
    quantizers = {name: node for node in proto.graph.node if node.op_type in _QDQ for name in node.output}
    for node in proto.graph.node:
        if node.op_type in _FP32_INSIDE:
            found[node.name] = "its sums of squares or powers leave FP16"
        elif any(ranges.get(tensor, 0.0) > _LARGE_RANGE for tensor in (*node.input, *node.output)):
            found[node.name] = f"values of more than {_LARGE_RANGE:g} were measured"
        elif node.op_type not in _QDQ and large.intersection(node.input):
            found[node.name] = f"it has weights beyond {_MOST:g}"
    # A scale that FP16 cannot hold takes the whole layer with it: a cast between DQ and layer would undo INT8.
    for node in proto.graph.node:
        chain = _quantizers_of(node, quantizers) if node.op_type not in _QDQ else []
        if any((small | large).intersection(quantizer.input[1:2]) for quantizer in chain):
            for each in (node, *chain):
                found[each.name] = "a scale is too small or too large for FP16"
    return found


def _odd_weights(proto: Any, path: Path) -> tuple[set[str], set[str]]:  # noqa: ANN401
    """Return float weights with values beyond FP16's largest, and scales below its smallest normal number."""
    np, numpy_helper = require("numpy"), require("onnx.numpy_helper")
    scales = {name for node in proto.graph.node if node.op_type in _QDQ for name in node.input[1:2]}
    large, small = set(), set()
    for weight in proto.graph.initializer:
        if weight.data_type != 1:
            continue
        values = np.abs(numpy_helper.to_array(weight))
        if not np.isfinite(values).all():
            raise ModelError(
                f"the weights {weight.name!r} contain NaN or infinity", where=path, hint="export the model again"
            )
        if values.size and float(values.max()) > _MOST:
            large.add(weight.name)
        if values.size and weight.name in scales and float(values.min()) < _LEAST_SCALE:
            small.add(weight.name)
    return large, small


def _quantizers_of(node: Any, quantizers: dict[str, Any]) -> list[Any]:  # noqa: ANN401
    """Return the DequantizeLinear nodes before ``node``, and the QuantizeLinear nodes before these."""
    found = [quantizers[name] for name in node.input if name in quantizers]
    return found + [quantizers[each.input[0]] for each in found if each.input[0] in quantizers]


def _serialized(proto: Any, path: Path) -> bytes:  # noqa: ANN401
    from google.protobuf.message import EncodeError

    try:
        return bytes(proto.SerializeToString())
    except (ValueError, EncodeError) as exc:
        what = "FP16 and Q/DQ forms must be a single file, and ONNX allows at most 2 GB for one"
        raise ModelError(what, where=path, hint="--precision fp32 reads the file with its external weights") from exc


def _sort(proto: Any) -> None:  # noqa: ANN401
    from onnxruntime.transformers.onnx_model import OnnxModel

    OnnxModel(proto).topological_sort()

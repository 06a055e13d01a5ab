"""The form in which a model goes to TensorRT's parser: as it is, in FP16, or with Q/DQ nodes.

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
from edge.model import inspection, onnx_model
from edge.quantization import Table, qdq


class Form(msgspec.Struct, frozen=True, kw_only=True):
    """What the parser gets: ``data``, or the file itself where that is None.

    ``quantized`` is how many weighted layers have Q/DQ; ``half`` whether the weights are FP16.
    """

    path: Path
    data: bytes | None = None
    quantized: int = 0
    half: bool = False
    notes: list[str] = []
    outputs: OutputOptions = OutputOptions()

    @property
    def weighted(self) -> int:
        """How many convolutions and matrix products with constant weights the model has; reads the file."""
        return sum(node.weighted for node in inspection.nodes(onnx_model.read(self.path, self.outputs)))

    def nodes(self) -> list[inspection.Node]:
        """What the parser gets, node by node."""
        if self.data is None:
            return inspection.nodes(onnx_model.read(self.path, self.outputs))
        return inspection.nodes(require("onnx").load_model_from_string(self.data))


def plain(path: Path, outputs: OutputOptions = OutputOptions()) -> Form:  # noqa: B008
    """Take the file as it is, unless it needs adaption: TensorRT reads external weights and more than 2 GB itself.

    Raises:
        ModelError: no classifier, or an adapted one above 2 GB.
    """
    adapted = onnx_model.read_adapted(path, outputs)
    if not adapted.changes:
        return Form(path=path, outputs=outputs)
    return Form(path=path, data=_serialized(adapted.proto, path), outputs=outputs)


def half(path: Path, outputs: OutputOptions = OutputOptions()) -> Form:  # noqa: B008
    """The model in FP16, its input and output float32.

    Raises:
        ModelError: it cannot be converted, or is above 2 GB. MissingDependencyError: onnxruntime is missing.
    """
    proto = onnx_model.read(path, outputs)
    require("onnxruntime")
    from onnxruntime.transformers import float16

    copy = require("onnx").ModelProto()
    copy.CopyFrom(proto)
    try:
        converted = float16.convert_float_to_float16(copy, keep_io_types=True)
    except (ValueError, TypeError, KeyError, AssertionError, AttributeError, RuntimeError) as exc:
        raise ModelError(
            f"cannot be converted to FP16: {exc}", where=path, hint="simplify the model, or use --precision fp32"
        ) from exc
    # The converter puts the casts of inputs at the end; everybody but TensorRT wants producers first.
    _sort(converted)
    return Form(path=path, data=_serialized(converted, path), half=True, outputs=outputs)


def quantized(path: Path, table: Table, outputs: OutputOptions = OutputOptions()) -> Form:  # noqa: B008
    """The model with Q/DQ nodes that hold ``table``'s scales to the bit; the rest stays float32.

    Raises:
        ModelError: the quantizer cannot handle the model, or the result is above 2 GB.
        ArtifactError: the table has no usable scale at any weighted layer.
    """
    result = qdq.insert(onnx_model.read(path, outputs), table, target="tensorrt")
    if result.weighted and not result.quantized:
        # TensorRT would take it for an INT8 network without any scale, and ask for a calibrator.
        what = f"the table has no usable scale at any of the {result.weighted} weighted layers: nothing can run in INT8"
        raise ArtifactError(what, where=path, hint="edge table check")
    notes = []
    if result.unscaled:
        some = ", ".join(result.unscaled[:3])
        notes.append(f"{len(result.unscaled)} tensors have no usable scale and keep their layers in float: {some}")
    data = _serialized(result.model, path)
    return Form(path=path, data=data, quantized=result.quantized, notes=notes, outputs=outputs)


def nodes(path: Path, outputs: OutputOptions = OutputOptions()) -> list[tuple[str, str]]:  # noqa: B008
    """Name and operator of every node, in graph order: what a parser error of TensorRT 8.6 points at by number."""
    return [(node.name, node.op_type) for node in onnx_model.read(path, outputs).graph.node]


def _serialized(proto: Any, path: Path) -> bytes:  # noqa: ANN401
    from google.protobuf.message import EncodeError

    try:
        return bytes(proto.SerializeToString())
    except (ValueError, EncodeError) as exc:
        what = "above 2 GB in one piece, which ONNX cannot hold: FP16 and Q/DQ forms are made in one piece"
        raise ModelError(what, where=path, hint="--precision fp32 reads the file with its external weights") from exc


def _sort(proto: Any) -> None:  # noqa: ANN401
    from onnxruntime.transformers.onnx_model import OnnxModel

    OnnxModel(proto).topological_sort()

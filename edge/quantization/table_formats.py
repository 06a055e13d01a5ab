"""Convert calibration tables from and to onnxruntime's JSON and Q/DQ ONNX.

onnxruntime stores ranges, TensorRT stores scales: range = 127 · scale, exact in float64, so a table that is converted
to JSON and back has the same bits. :func:`edge.quantization.calibration_table.parse` refuses the text
``calibration.cache`` of onnxruntime with the reason. Its FlatBuffers file is not needed: its TensorRT provider reads
TensorRT's text form itself (``trt_int8_use_native_calibration_table``).

JSON and the Q/DQ files of this project contain the header of the table; for other files the caller passes the version.

Sources: ``save_tensors_data`` in onnxruntime 1.32 (quantization/calibrate.py); IQuantizeLayer in TensorRT's API for the
contents of a Q/DQ network.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edge.artifacts import sha256_bytes
from edge.errors import ArtifactError, require
from edge.events import Listener, Note, ignore_events
from edge.quantization.calibration_table import (
    AlgorithmName,
    Table,
    TableHeader,
    TrtVersion,
    Where,
    parse,
    range_bits,
    to_bits,
    to_float,
    write,
)
from edge.quantization.table_check import value_code

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

    from edge.quantization.qdq import Target


_METHODS: dict[str, AlgorithmName] = {"MinMax": "minmax", "Entropy": "entropy2", "Percentile": "entropy2"}
_METHOD_OF: dict[AlgorithmName, str] = {
    "minmax": "MinMax",
    "entropy2": "Entropy",
    "entropy": "Entropy",
    "legacy": "Percentile",
}
# Ours next to onnxruntime's keys, which its loader passes over.
_HEADER_KEY = "tensorrt_header"
# Metadata keys of a Q/DQ file made by edge: the original table, and the digest of the graph made from it.
_TABLE_KEY = "edge.calibration_table"
_GRAPH_KEY = "edge.calibration_graph"


def to_ort_json(table: Table) -> bytes:
    """Convert the table to onnxruntime's ``save_tensors_data`` format; ``quantize_static`` reads it as its cache.

    Raises:
        ArtifactError: a scale cannot be a range (NaN, infinite, negative).
    """
    data = {
        name: {"lowest": _array(-value), "highest": _array(value), "CLS": "TensorData"}
        for name, value in _ranges(table).items()
    }
    method = {"CLS": "CalibrationMethod", "value": f"CalibrationMethod.{_METHOD_OF[table.header.algorithm]}"}
    content = {
        "CLS": "TensorsData",
        "data": data,
        "calibration_method": method,
        "smooth_quant": False,
        _HEADER_KEY: table.header.text,
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False).encode()


def from_ort_json(
    data: bytes, *, version: TrtVersion | None = None, algorithm: AlgorithmName | None = None, where: Where = "table"
) -> Table:
    """Make a table from onnxruntime's ``calibration.json``: range = max(|lowest|, |highest|) of each tensor.

    Two forms are read: a mapping of tensors, with or without TensorsData around it. ``version`` and ``algorithm`` make
    the header; without them the header stored by :func:`to_ort_json` is used.

    Raises:
        ArtifactError: the file has another format, per-channel ranges or a range that is not finite, or the version is
        unknown.
    """
    try:
        content = json.loads(data, object_pairs_hook=lambda pairs: _unique(pairs, where))
    except (ValueError, RecursionError) as exc:
        raise ArtifactError(f"not JSON: {exc}", where=where) from exc
    wrapped = isinstance(content, dict) and content.get("CLS") == "TensorsData"
    tensors = content.get("data") if wrapped else content
    if not isinstance(tensors, dict) or not tensors:
        raise ArtifactError("not onnxruntime's calibration.json: it contains no tensors", where=where)
    bits = {name: range_bits(_range_of(item, name, where), name=name, where=where) for name, item in tensors.items()}
    kept = content.get(_HEADER_KEY) if wrapped else None
    method = content.get("calibration_method") if wrapped else None
    word = str(method.get("value", "")).rpartition(".")[2] if isinstance(method, dict) else ""
    header = _header(
        TableHeader.parse(kept, where=where) if isinstance(kept, str) else None,
        version=version,
        algorithm=algorithm,
        default=_METHODS.get(word, "entropy2"),
        where=where,
    )
    return _table(header, bits, where)


def to_qdq(table: Table, model: ModelProto, *, target: Target, listen: Listener = ignore_events) -> bytes:
    """Serialize ``model`` with the table's scales as Q/DQ nodes; the table itself is stored as metadata.

    ``listen`` receives the number of quantized weighted layers.

    Raises:
        ArtifactError: the table has no scales for any layer of the model.
        ModelError: the model cannot be quantized.
    """
    from edge.quantization import qdq

    result = qdq.insert(model, table, target=target)
    if not result.quantized:
        raise ArtifactError("this table has no scales for any layer of the model", hint="edge table check")
    text = f"{result.quantized} of {result.weighted} layers with weights are quantized"
    listen(Note(text, "info" if result.quantized == result.weighted else "warning"))
    made = result.model
    kept = [item for item in made.metadata_props if item.key not in {_TABLE_KEY, _GRAPH_KEY}]
    del made.metadata_props[:]
    made.metadata_props.extend(kept)
    for key, value in ((_TABLE_KEY, write(table).decode()), (_GRAPH_KEY, _graph_digest(made))):
        made.metadata_props.add(key=key, value=value)
    return bytes(made.SerializeToString())


def from_qdq(
    model: ModelProto,
    *,
    version: TrtVersion | None = None,
    algorithm: AlgorithmName | None = None,
    where: Where = "model",
) -> Table:
    """Make a table from the QuantizeLinear nodes of a Q/DQ model, by the names of the quantized tensors.

    An unchanged file of :func:`to_qdq` gives back its complete table, including entries without a node. Otherwise only
    the nodes are read: a model for onnxruntime also has the scale of a Relu or Clip at its input. Subgraphs are
    ignored.

    Raises:
        ArtifactError: there is no quantized activation, an activation is per-channel or asymmetric, a scale is not a
        constant
            above 0, a tensor has two scales, or the version is unknown.
    """
    kept = {item.key: item.value for item in model.metadata_props}
    if _TABLE_KEY in kept and kept.get(_GRAPH_KEY) == _graph_digest(model):
        table = parse(kept[_TABLE_KEY].encode(), where=f"{where} (metadata)")
        header = _header(table.header, version=version, algorithm=algorithm, default="entropy2", where=where)
        return _table(header, table.bits, where)
    network = _OnnxNetwork(model, where)
    bits: dict[str, int] = {}
    for node in network.activation_quantizers():
        name, pattern = network.tensor_of(node), network.scale_of(node)
        if bits.setdefault(name, pattern) != pattern:
            both = f"{to_float(bits[name]):g} and {to_float(pattern):g}"
            raise ArtifactError(f"{name}: quantized with two scales, {both}; a table can only store one", where=where)
    if not bits:
        raise ArtifactError("no activation has a QuantizeLinear: this is not a Q/DQ model", where=where)
    header = _header(None, version=version, algorithm=algorithm, default="entropy2", where=where)
    return _table(header, bits, where)


class _OnnxNetwork:
    """The view of a graph for :func:`from_qdq`."""

    def __init__(self, model: ModelProto, where: Where) -> None:
        self.where = where
        graph = model.graph
        self.constants: dict[str, Any] = {item.name: item for item in graph.initializer}
        self.producer: dict[str, NodeProto] = {}
        self.readers: dict[str, list[NodeProto]] = {}
        self.outputs = {item.name for item in graph.output}
        self.nodes = list(graph.node)
        # Tensors computed from constants alone: weights, also behind a Transpose or a Cast.
        self.fixed = set(self.constants)
        for node in graph.node:
            self.producer.update((name, node) for name in node.output)
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
            if all(name in self.fixed or not name for name in node.input):
                self.fixed.update(node.output)
            if node.op_type == "Constant":
                self.constants.update((node.output[0], item.t) for item in node.attribute if item.name == "value")

    def activation_quantizers(self) -> list[NodeProto]:
        """Return the QuantizeLinear nodes on tensors that are not constant."""
        return [node for node in self.nodes if node.op_type == "QuantizeLinear" and node.input[0] not in self.fixed]

    def tensor_of(self, node: NodeProto) -> str:
        """Return the name of the tensor that ``node`` quantizes, in the network without Q/DQ.

        A graph output keeps its name, so there the tensor before Q is the renamed one. After a DQ, it is the input of
        the DQ's Q.
        """
        for reader in self.readers.get(node.output[0], []):
            if reader.op_type == "DequantizeLinear" and reader.output[0] in self.outputs:
                return str(reader.output[0])
        above = self.producer.get(node.input[0])
        if above is not None and above.op_type == "DequantizeLinear":
            quantizer = self.producer.get(above.input[0])
            if quantizer is not None and quantizer.op_type == "QuantizeLinear":
                return self.tensor_of(quantizer)
        return str(node.input[0])

    def scale_of(self, node: NodeProto) -> int:
        """Return the bit pattern of the node's single symmetric scale."""
        name = node.input[0]
        scale = self._constant(node.input[1], f"the scale of {name}")
        if scale.size != 1:
            raise ArtifactError(
                f"{name}: {scale.size} scales: a table stores one per tensor", where=self.where, hint="per-tensor only"
            )
        zero_point = self._constant(node.input[2], f"the zero point of {name}") if len(node.input) > 2 else None
        if zero_point is not None:
            # uint8 around 128 is int8 around 0, shifted: how onnxruntime likes it.
            middle = {"int8": 0, "uint8": 128}.get(str(zero_point.dtype))
            if middle is None or zero_point.size != 1 or int(zero_point.reshape(())) != middle:
                what = f"{name}: {zero_point.dtype} with zero point {zero_point.reshape(-1)[:1]}"
                raise ArtifactError(f"{what}; TensorRT supports symmetric INT8 only", where=self.where)
        pattern = to_bits(float(scale.reshape(())))
        if code := value_code(pattern):
            raise ArtifactError(f"{name}: the scale is {code}", where=self.where)
        return pattern

    def _constant(self, name: str, what: str) -> Any:  # noqa: ANN401 - a NumPy array
        if name not in self.constants:
            raise ArtifactError(f"{what} is not a constant", where=self.where)
        return require("onnx").numpy_helper.to_array(self.constants[name])


def _header(
    kept: TableHeader | None,
    *,
    version: TrtVersion | None,
    algorithm: AlgorithmName | None,
    default: AlgorithmName,
    where: Where,
) -> TableHeader:
    """Return the header stored in the file, unless the caller gives version or algorithm."""
    if kept is not None and version is None and algorithm is None:
        return kept
    version = version or (kept.version if kept else None)
    if version is None:
        raise ArtifactError(
            "the file does not contain the TensorRT version", where=where, hint="add --trt, such as --trt 10.3.0"
        )
    return TableHeader.make(algorithm or (kept.algorithm if kept else default), version)


def _table(header: TableHeader, bits: dict[str, int], where: Where) -> Table:
    try:
        return Table(header, bits)
    except ArtifactError as exc:
        raise ArtifactError(exc.what, where=where, hint=exc.hint) from exc


def _ranges(table: Table) -> dict[str, float]:
    """Return the ranges of all tensors; refuse invalid scales."""
    bad = [name for name, bits in table.bits.items() if bits >> 31 or value_code(bits) in {"nan", "infinite"}]
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        what = f"NaN, infinite or negative scales cannot be converted to ranges: {', '.join(bad[:3])}{more}"
        raise ArtifactError(what, hint="edge table check")
    return {name: table.range(name) for name in table.bits}


def _array(value: float) -> dict[str, object]:
    return {"data": value, "dtype": "float32", "CLS": "numpy.array"}


def _range_of(item: object, name: str, where: Where) -> float:
    """Return the largest magnitude in a tensor's entry: a TensorData mapping, or the older ``[lowest, highest, …]``."""
    pair = [item.get("lowest"), item.get("highest")] if isinstance(item, Mapping) else item
    ends = [_number(value) for value in pair[:2]] if isinstance(pair, list) else []
    if len(ends) < 2 or None in ends:
        raise ArtifactError(f"{name}: no single lowest and highest value", where=where, hint="per-tensor ranges only")
    sizes = [abs(end) for end in ends if end is not None]
    # max() would lose a NaN.
    return math.nan if any(map(math.isnan, sizes)) else max(sizes)


def _number(value: object) -> float | None:
    """Return a number, plain or wrapped as onnxruntime's encoder wraps arrays with one element."""
    if isinstance(value, Mapping):
        value = value.get("data")
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    try:
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    except OverflowError:
        return math.inf


def _unique(pairs: list[tuple[str, Any]], where: Where) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ArtifactError(f"{twice}: duplicate key", where=where)
    return result


def _graph_digest(model: ModelProto) -> str:
    return sha256_bytes(model.graph.SerializeToString(deterministic=True))

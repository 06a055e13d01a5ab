"""Convert calibration tables from and to onnxruntime's JSON and Q/DQ ONNX.

onnxruntime stores ranges, TensorRT stores scales: range = 127 · scale, exact in float64, so a table that is converted
to JSON and back has the same bits. :func:`edge.quantization.calibration_table.parse` refuses the text
``calibration.cache`` of onnxruntime with the reason. Its FlatBuffers file is not needed: its TensorRT provider reads
TensorRT's text form itself (``trt_int8_use_native_calibration_table``).

JSON and the Q/DQ files of this project carry the header of the table; for other files the caller passes the version.

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
# Keys of the metadata in a Q/DQ file of ours: the table as it was, and the digest of the graph made from it.
_TABLE_KEY = "edge.calibration_table"
_GRAPH_KEY = "edge.calibration_graph"


def to_ort_json(table: Table) -> bytes:
    """The table as onnxruntime's ``save_tensors_data`` writes it; ``quantize_static`` takes it as its cache.

    Raises:
        ArtifactError: a scale that is no range (NaN, infinite, negative).
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
    """Table from onnxruntime's ``calibration.json``: range = max(|lowest|, |highest|) of each tensor.

    Both forms are read: a mapping of tensors, and TensorsData around it. ``version`` and ``algorithm`` make the header;
    without them it is the one that :func:`to_ort_json` kept.

    Raises:
        ArtifactError: not such a file, per-channel ranges, a range that is not finite, or no version known.
    """
    try:
        content = json.loads(data, object_pairs_hook=lambda pairs: _unique(pairs, where))
    except (ValueError, RecursionError) as exc:
        raise ArtifactError(f"not JSON: {exc}", where=where) from exc
    wrapped = isinstance(content, dict) and content.get("CLS") == "TensorsData"
    tensors = content.get("data") if wrapped else content
    if not isinstance(tensors, dict) or not tensors:
        raise ArtifactError("not onnxruntime's calibration.json: no tensors in it", where=where)
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
    """``model`` with the table's scales as Q/DQ nodes, serialized; the table itself goes along as metadata.

    ``listen`` receives how many of the layers with weights are quantized.

    Raises:
        ArtifactError: no layer of the model has its scales in the table.
        ModelError: a model that cannot be quantized.
    """
    from edge.quantization import qdq

    result = qdq.insert(model, table, target=target)
    if not result.quantized:
        raise ArtifactError("no layer of the model has its scales in this table", hint="edge table check")
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
    """Table from the QuantizeLinear nodes of a Q/DQ model, by the names of the tensors that they quantize.

    A file made by :func:`to_qdq` whose graph is untouched since gives back its whole table, also the entries that no
    node carries. Otherwise the nodes are all there is: one for onnxruntime holds a Relu's or Clip's scale at its input
    too. Subgraphs are not looked into.

    Raises:
        ArtifactError: no quantized activation, per-channel or asymmetric activations, a scale that is not a constant
            above 0, two scales for one tensor, no version known.
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
            raise ArtifactError(f"{name}: quantized with two scales, {both}; a table holds one", where=where)
    if not bits:
        raise ArtifactError("no QuantizeLinear on an activation: this is not a Q/DQ model", where=where)
    header = _header(None, version=version, algorithm=algorithm, default="entropy2", where=where)
    return _table(header, bits, where)


class _OnnxNetwork:
    """The view of a graph that :func:`from_qdq` needs."""

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
        """QuantizeLinear nodes on tensors that are not constant."""
        return [node for node in self.nodes if node.op_type == "QuantizeLinear" and node.input[0] not in self.fixed]

    def tensor_of(self, node: NodeProto) -> str:
        """Name, in the network without Q/DQ, of the tensor that ``node`` quantizes.

        A graph output keeps its name, so there the tensor in front of Q is the renamed one. Behind a DQ stands the
        tensor that its Q took.
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
        """Bit pattern of the node's one symmetric scale."""
        name = node.input[0]
        scale = self._constant(node.input[1], f"the scale of {name}")
        if scale.size != 1:
            raise ArtifactError(
                f"{name}: {scale.size} scales: a table holds one per tensor", where=self.where, hint="per-tensor only"
            )
        zero_point = self._constant(node.input[2], f"the zero point of {name}") if len(node.input) > 2 else None
        if zero_point is not None:
            # uint8 around 128 is int8 around 0, shifted: how onnxruntime likes it.
            middle = {"int8": 0, "uint8": 128}.get(str(zero_point.dtype))
            if middle is None or zero_point.size != 1 or int(zero_point.reshape(())) != middle:
                what = f"{name}: {zero_point.dtype} with zero point {zero_point.reshape(-1)[:1]}"
                raise ArtifactError(f"{what}; TensorRT takes symmetric INT8 only", where=self.where)
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
    """The header that the file kept, unless the caller says version or algorithm."""
    if kept is not None and version is None and algorithm is None:
        return kept
    version = version or (kept.version if kept else None)
    if version is None:
        raise ArtifactError(
            "the file does not say for which TensorRT the table is", where=where, hint="add --trt, such as --trt 10.3.0"
        )
    return TableHeader.make(algorithm or (kept.algorithm if kept else default), version)


def _table(header: TableHeader, bits: dict[str, int], where: Where) -> Table:
    try:
        return Table(header, bits)
    except ArtifactError as exc:
        raise ArtifactError(exc.what, where=where, hint=exc.hint) from exc


def _ranges(table: Table) -> dict[str, float]:
    """Ranges of all tensors; refuses scales that are none."""
    bad = [name for name, bits in table.bits.items() if bits >> 31 or value_code(bits) in {"nan", "infinite"}]
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        what = f"NaN, infinite or negative scales make no range: {', '.join(bad[:3])}{more}"
        raise ArtifactError(what, hint="edge table check")
    return {name: table.range(name) for name in table.bits}


def _array(value: float) -> dict[str, object]:
    return {"data": value, "dtype": "float32", "CLS": "numpy.array"}


def _range_of(item: object, name: str, where: Where) -> float:
    """Largest magnitude in one tensor's entry: a TensorData mapping, or the older ``[lowest, highest, …]``."""
    pair = [item.get("lowest"), item.get("highest")] if isinstance(item, Mapping) else item
    ends = [_number(value) for value in pair[:2]] if isinstance(pair, list) else []
    if len(ends) < 2 or None in ends:
        raise ArtifactError(f"{name}: no single lowest and highest value", where=where, hint="per-tensor ranges only")
    sizes = [abs(end) for end in ends if end is not None]
    # max() would lose a NaN.
    return math.nan if any(map(math.isnan, sizes)) else max(sizes)


def _number(value: object) -> float | None:
    """A number, plain or wrapped as onnxruntime's encoder wraps arrays with one element."""
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
        raise ArtifactError(f"{twice}: is there twice", where=where)
    return result


def _graph_digest(model: ModelProto) -> str:
    return sha256_bytes(model.graph.SerializeToString(deterministic=True))

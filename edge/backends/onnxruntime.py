"""ONNX Runtime on the CPU. Only this module runs ``onnxruntime`` sessions.

INT8 here is real integer arithmetic (QLinearConv and friends) with the scales of the calibration table. It exists to
verify the table, not to be fast: on an x86 CPU it takes 1.0 to 2.0 times as long as FP32.
"""

from __future__ import annotations

import functools
import platform
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edge.artifacts import Key, Scalar, temporary_folder
from edge.backends.interface import BuildRequest, BuiltEngine, Inference, Int8Plan, Layers, LayerSamples
from edge.config import Profile
from edge.errors import (
    DEPENDENCIES,
    DeviceError,
    MissingDependencyError,
    ModelError,
    ProfileError,
    StoreError,
    install_command,
    require,
)
from edge.events import Listener, ignore_events
from edge.model import Inspection, Layer, LayerTensor, Port, Role, inspection

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FLOAT_WEIGHTED = frozenset({"Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"})
_INTEGER = ("ConvInteger", "MatMulInteger", "MatMulIntegerToFloat")
INT8_WEIGHTED = frozenset({"QLinearConv", "QGemm", "QLinearMatMul", *_INTEGER})
_REFORMATS = frozenset({"QuantizeLinear", "DequantizeLinear", "Cast"})
_VIEWS = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze", "Identity"})
# Suffixes that onnxruntime appends to the name of a node or tensor that it replaces.
_ENDING = re.compile(r"(_nchwc|_token_\d+|_transformed|_output_quantized)+$")


def inspect(source: Any, optimized: Any, *, unscaled: Collection[str] = ()) -> Inspection:  # noqa: ANN401
    """Describe an optimized graph.

    Args:
        source: the onnx.ModelProto that was given to onnxruntime.
        optimized: the model that onnxruntime wrote.
        unscaled: tensors to be quantized for which the table has no usable scale.
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
    """The graph before optimization: the producer and shape of each tensor."""

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
        """Return the tensor of this graph that an optimized node computes, or None if its name is lost."""
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
            # The fused node includes the quantization after it.
            following = [item for item in self.consumers.get(output, []) if item.op_type == "QuantizeLinear"]
            return str(following[0].output[0]) if following else output
        return output

    def is_inserted(self, node: Any) -> bool:  # noqa: ANN401
        """Return True if onnxruntime added a node that only moves data."""
        return node.op_type in {"Transpose", "ReorderInput", "ReorderOutput"} and node.name not in self.by_name

    def between(self, tensor: str, stops: Collection[str]) -> list[str]:
        """Return the names of the nodes that compute ``tensor`` from the tensors in ``stops``, in graph order."""
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
        """Skip the sum that a blocked convolution with a fourth input includes under its own name."""
        following = self.consumers.get(tensor, [])
        has_sum = node.domain.endswith("nchwc") and node.op_type == "Conv" and len(node.input) > 3
        if has_sum and len(following) == 1 and following[0].op_type == "Add":
            return str(following[0].output[0])
        return tensor


class _Optimized:
    """The graph after optimization: precisions, layouts and sizes, as far as the operators show them."""

    def __init__(self, proto: Any, source: _Source) -> None:  # noqa: ANN401
        self._source = source
        self._constants = {item.name: item for item in proto.graph.initializer}
        self._weights = _possible_weights(proto.graph)
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
        """Determine precision and layout of a node's outputs from its operator and its inputs."""
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
            # The product of two activations, as in attention, has no weights.
            return "weighted" if self._weights.intersection(node.input) else "other"
        if node.op_type in _REFORMATS or self._source.is_inserted(node):
            return "reformat"
        return "free" if node.op_type in _VIEWS else "other"

    def _tensor(self, name: str) -> LayerTensor:
        known = self._anchors.get(name) or name
        shape = self._source.shapes.get(known)
        flat = shape is not None and len(shape) != 4
        layout = None if flat else self._layout.get(name, "NCHW" if name in self._source.given else None)
        return LayerTensor(name=name, precision=self._precision.get(name), layout=layout, shape=shape)


def _possible_weights(graph: Any) -> set[str]:  # noqa: ANN401
    """Return the constant tensors of rank 2 and more: initializers, and results of constants only."""
    fixed = {item.name for item in graph.initializer}
    found = {item.name for item in graph.initializer if len(item.dims) > 1}
    for node in graph.node:
        if node.input and fixed.issuperset(filter(None, node.input)):
            fixed.update(node.output)
            found.update(node.output if found.intersection(node.input) else ())
    return found


def _bytes(item: Any) -> int:  # noqa: ANN401
    onnx = require("onnx")
    count = 1
    for size in item.dims:
        count *= size
    return int(count * onnx.helper.tensor_dtype_to_np_dtype(item.data_type).itemsize)


def _precision_of(value: Any) -> str | None:  # noqa: ANN401
    return _words(value.type.tensor_type.elem_type)


def _words(kind: int) -> str | None:
    """Return a data type of ONNX (TensorProto.DataType) as one word."""
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


_PROVIDERS = ["CPUExecutionProvider"]
# Its messages for a model that is too new [onnxruntime/core/graph/model.cc, model_load_utils.h].
_IR_LIMIT = re.compile(r"max supported IR version: (\d+)")
_OPSET_LIMIT = re.compile(r"Opset (\d+) is under development.*is till opset (\d+)", re.DOTALL)
_OLDEST_IR = 8


class OnnxRuntime:
    """The ``onnxruntime`` backend."""

    name = "onnxruntime"

    def identity(self) -> Mapping[str, Scalar]:
        """Return the version of onnxruntime and the processor architecture, without imports."""
        try:
            version = metadata.version("onnxruntime")
        except metadata.PackageNotFoundError as exc:
            raise MissingDependencyError("onnxruntime is not installed", hint=DEPENDENCIES["onnxruntime"]) from exc
        return {"backend": self.name, "onnxruntime": version, "machine": platform.machine()}

    def int8_plan(self, profile: Profile) -> Int8Plan:
        """Return the explicit route: ONNX Runtime supports INT8 only as Q/DQ nodes."""
        if profile.int8_route == "implicit":
            raise ProfileError(
                "int8_route: implicit is not possible: ONNX Runtime has no calibrators",
                where=profile.name,
                hint="set int8_route: auto or explicit; the same table becomes Q/DQ nodes",
            )
        return Int8Plan(route="explicit", why="ONNX Runtime needs INT8 as Q/DQ nodes in the graph")

    def build(self, request: BuildRequest, *, listen: Listener = ignore_events) -> BuiltEngine:
        """Build an engine. FP32: the model itself. INT8: its Q/DQ form with the table's scales."""
        del listen
        from edge.model import has_qdq, onnx_model

        proto = onnx_model.read(request.model, request.profile.outputs)
        route: str | None = None
        info: dict[str, Any] = {}
        notes: list[str] = []
        unscaled: list[str] = []
        is_quantized = has_qdq(proto)
        if request.precision == "int8":
            proto, info, unscaled = _quantized(proto, request)
            notes = _unscaled_note(unscaled)
            route = "explicit"
        elif request.precision != "fp32":
            raise DeviceError(
                f"ONNX Runtime on a CPU cannot build {request.precision}", hint="--precision fp32 or int8"
            )
        data = bytes(proto.SerializeToString())
        looked = inspect(proto, _optimized(data), unscaled=unscaled)
        layers = _layers(looked)
        if is_quantized and (own := info.get("qdq_quantized", 0) - layers.weighted_int8) > 0:
            # Somebody else's Q/DQ nodes, placed for another runtime: rounded as they say, and computed in float.
            notes = [f"{own} layers have Q/DQ nodes of the model's own: values are rounded, the arithmetic is float"]
            layers = msgspec.structs.replace(layers, weighted_int8=info["qdq_quantized"])
        return BuiltEngine(
            data=data, suffix=".onnx", layers=layers, route=route, notes=notes, info=info, inspection=looked
        )

    def open(
        self, engine: Path, *, precision: str, threads: int | None = None, built_for: Key | None = None
    ) -> OrtSession:
        """Open an engine file, whose key has already been checked."""
        del built_for
        return OrtSession(engine.read_bytes(), precision=precision, threads=threads)

    def time_layers(
        self,
        engine: Path,
        batch: NDArray[np.float32],
        *,
        precision: str,
        runs: int,
        warmup: int,
        threads: int | None = None,
        built_for: Key | None = None,
    ) -> LayerSamples:
        """Run an engine file with onnxruntime's own profiler, which writes whole microseconds per node."""
        del precision, built_for
        model = engine.read_bytes()
        plain = OrtSession(model, precision="", threads=threads)
        whole_ms = [plain.infer(batch).infer_ms for _ in range(warmup + runs)][warmup:]
        with temporary_folder("profile") as folder:
            options = _options(threads)
            options.enable_profiling = True
            options.profile_file_prefix = str(folder / "profile")
            session = _open(model, options)
            name = session.get_inputs()[0].name
            for _ in range(warmup + runs):
                session.run(None, {name: batch})
            layers = _profiled(Path(session.end_profiling()), runs)
        if not layers:
            raise DeviceError("onnxruntime's profiler reported no node", where=engine)
        return LayerSamples(
            profiler=f"onnxruntime {require('onnxruntime').__version__}", layers=layers, whole_ms=whole_ms
        )


def _profiled(path: Path, runs: int) -> dict[str, list[float]]:
    """Milliseconds of each node in the last ``runs`` runs of a profile that onnxruntime wrote."""
    events = msgspec.json.decode(path.read_bytes(), type=list[_ProfileEvent])
    found: dict[str, list[float]] = {}
    for event in events:
        name = event.name.removesuffix("_kernel_time")
        if event.cat == "Node" and name != event.name:
            found.setdefault(name, []).append(event.dur / 1e3)
    return {name: times[-runs:] for name, times in found.items() if len(times) >= runs}


class _ProfileEvent(msgspec.Struct, frozen=True):
    """One event of onnxruntime's profile; ``dur`` is in microseconds."""

    cat: str = ""
    name: str = ""
    dur: float = 0.0


class OrtSession:
    """One onnxruntime session with one input and one or more outputs.

    ``lean`` saves memory at a small cost in speed, for networks that output all of their tensors. The graph that
    onnxruntime makes of the model goes into the file ``optimized``; not ``optimize`` is for a model that is such a one.
    """

    def __init__(
        self,
        model: bytes,
        *,
        precision: str,
        threads: int | None = None,
        lean: bool = False,
        optimized: Path | None = None,
        optimize: bool = True,
    ) -> None:
        self.precision = precision
        options = _options(threads)
        if optimized is not None:
            options.optimized_model_filepath = str(optimized)
        if not optimize:
            options.graph_optimization_level = require("onnxruntime").GraphOptimizationLevel.ORT_DISABLE_ALL
        if lean:
            _use_exact_arena(options)
        self._session: Any = _open(model, options)
        self._input = self._session.get_inputs()[0].name

    def infer(self, batch: NDArray[np.float32]) -> Inference:
        """Run a float32 N×3×H×W batch; the first output is the logits."""
        start = time.perf_counter()
        logits = self.outputs(batch)[0]
        return Inference(logits=logits, infer_ms=(time.perf_counter() - start) * 1e3)

    def outputs(self, batch: NDArray[np.float32]) -> Sequence[NDArray[np.float32]]:
        """Return all outputs for a batch. Thread-safe."""
        if self._session is None:
            raise DeviceError("the session is closed")
        try:
            return self._session.run(None, {self._input: batch})  # type: ignore[no-any-return]
        except Exception as exc:  # onnxruntime's exceptions share no base but Exception
            raise DeviceError(f"onnxruntime failed: {_first_line(exc)}") from exc

    def into(
        self, arrays: Sequence[NDArray[np.float32]]
    ) -> Callable[[NDArray[np.float32]], Sequence[NDArray[np.float32]]]:
        """Write the outputs into ``arrays``, which must have their shapes; see :meth:`outputs`. Not thread-safe."""
        session, name = self._session, self._input
        binding = session.io_binding()
        for given, array in zip(session.get_outputs(), arrays, strict=True):
            binding.bind_output(given.name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

        def run(batch: NDArray[np.float32]) -> Sequence[NDArray[np.float32]]:
            binding.bind_cpu_input(name, batch)
            try:
                session.run_with_iobinding(binding)
            except Exception as exc:  # onnxruntime's exceptions share no base but Exception
                raise DeviceError(f"onnxruntime failed: {_first_line(exc)}") from exc
            return arrays

        return run

    def close(self) -> None:
        """Close the session."""
        self._session = None


def _quantized(proto: Any, request: BuildRequest) -> tuple[Any, dict[str, Any], list[str]]:  # noqa: ANN401
    """Return the Q/DQ form, notes about it, and the tensors without a usable scale."""
    from edge.quantization import qdq

    if request.table is None:
        raise DeviceError("INT8 needs a calibration table", hint="edge calibrate")
    result = qdq.insert(proto, request.table, target="onnxruntime")
    about = {"qdq_weighted": result.weighted, "qdq_quantized": result.quantized}
    return result.model, about, list(result.unscaled)


def _unscaled_note(unscaled: Sequence[str]) -> list[str]:
    if not unscaled:
        return []
    some = ", ".join(unscaled[:3])
    return [f"{len(unscaled)} tensors have no usable scale and keep their layers in float: {some}"]


def _optimized(model: bytes) -> Any:  # noqa: ANN401
    """Optimize the model with onnxruntime: the optimized graph says which kernels run."""
    onnx = require("onnx")
    with temporary_folder("onnx") as folder:
        path = Path(folder) / "optimized.onnx"
        options = _options(threads=1)
        options.optimized_model_filepath = str(path)
        try:
            _open(model, options)
        except ModelError as exc:
            if "serialization failed" not in exc.what:
                raise
            # Its message for a file that it cannot write; the model itself has been read.
            raise StoreError(
                "cannot write the optimized graph", where=path.parent, hint="free some disk space"
            ) from exc
        return onnx.load(str(path))


def _layers(looked: Inspection) -> Layers:
    kinds = Counter(layer.kind for layer in looked.layers)
    weighted = looked.counts().weighted
    return Layers(
        weighted=sum(weighted.values()), weighted_int8=weighted.get("int8", 0), by_type=dict(sorted(kinds.items()))
    )


def _options(threads: int | None) -> Any:  # noqa: ANN401
    ort = require("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    # On AVX2 and AVX-512 without VNNI, kernels for uint8 × int8 add pairs of products in 16 bits that saturate (the
    # sample model: 0.9 dB instead of 20.8). With this, onnxruntime takes exact kernels there and nothing else changes.
    # Not together with session.qdqisint8allowed: networks with int8 activations would find no kernel.
    options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def _use_exact_arena(options: Any) -> None:  # noqa: ANN401
    """Let the session's arena grow by the requested size instead of doubling, without planning a peak in advance."""
    _register_exact_arena()
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.use_env_allocators", "1")


@functools.cache
def _register_exact_arena() -> None:
    # One arena for the process: sessions use it only if their options enable it.
    ort = require("onnxruntime")
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    same_as_requested = 1
    default = -1
    ort.create_and_register_allocator(memory, ort.OrtArenaCfg(0, same_as_requested, default, default))


def _open(model: bytes, options: Any) -> Any:  # noqa: ANN401
    ort = require("onnxruntime")
    try:
        # It quantizes the float weights of a layer between quantized ones, which the recipe keeps in float.
        off = ["WeightBiasQuantization"]
        return ort.InferenceSession(model, options, providers=_PROVIDERS, disabled_optimizers=off)
    except Exception as exc:  # onnxruntime's exceptions share no base but Exception
        lowered = _with_older_ir(model, str(exc))
        if lowered is not None:
            return _open(lowered, options)
        raise _load_error(exc) from exc


def check_readable(opset: int) -> None:
    """Check that the installed onnxruntime reads models of that opset, by loading a model with one node.

    Raises:
        ModelError: onnxruntime is too old.
    """
    helper = require("onnx").helper
    given, result = (helper.make_tensor_value_info(name, 1, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "opset", [given], [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=_OLDEST_IR)
    _open(model.SerializeToString(), _options(threads=1))


def _with_older_ir(model: bytes, words: str) -> bytes | None:
    """Return the model with the newest IR version that this onnxruntime reads; None if the version is not the problem.

    Exporters write the newest IR version that they know, but the requirements of a model follow from its opsets.
    """
    found = _IR_LIMIT.search(words)
    if found is None:
        return None
    onnx = require("onnx")
    proto = onnx.load_from_string(model)
    newest = int(found[1])
    if (
        not newest < proto.ir_version
        or onnx.helper.find_min_ir_version_for(proto.opset_import, ignore_unknown=True) > newest
    ):
        return None
    proto.ir_version = newest
    lowered: bytes = proto.SerializeToString()
    return lowered


def _load_error(exc: Exception) -> ModelError:
    version = require("onnxruntime").__version__
    hint = f"edge export --opset 18, or {install_command('onnxruntime')} --upgrade"
    opset, ir = _OPSET_LIMIT.search(str(exc)), _IR_LIMIT.search(str(exc))
    if opset is not None:
        return ModelError(
            f"opset {opset[1]}, and the installed onnxruntime {version} reads up to {opset[2]}", hint=hint
        )
    if ir is not None:
        return ModelError(
            f"its IR version is too new: the installed onnxruntime {version} reads up to {ir[1]}", hint=hint
        )
    return ModelError(f"onnxruntime cannot load the model: {_first_line(exc)}", hint="edge profile check; edge doctor")


def _first_line(exc: Exception) -> str:
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0]

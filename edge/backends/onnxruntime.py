"""ONNX Runtime on the CPU: the only module that runs ``onnxruntime`` sessions.

INT8 here is real integer arithmetic (QLinearConv and friends) with the scales of the calibration table. It exists to
prove the table, not to be fast: an x86 CPU takes 1.0 to 2.0 times as long as for FP32.
"""

from __future__ import annotations

import functools
import platform
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edge.artifacts import Key, Scalar, temporary_folder
from edge.backends import onnxruntime_graph
from edge.backends.interface import BuildRequest, BuiltEngine, Inference, Int8Plan, Layers
from edge.config import Profile
from edge.errors import DEPENDENCIES, DeviceError, MissingDependencyError, ModelError, ProfileError, StoreError, require
from edge.events import Listener, ignore_events
from edge.model import Inspection

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_PROVIDERS = ["CPUExecutionProvider"]


class OnnxRuntime:
    """The ``onnxruntime`` backend."""

    name = "onnxruntime"

    def identity(self) -> Mapping[str, Scalar]:
        """Version of onnxruntime and the processor architecture; nothing is imported for it."""
        try:
            version = metadata.version("onnxruntime")
        except metadata.PackageNotFoundError as exc:
            raise MissingDependencyError("onnxruntime is not installed", hint=DEPENDENCIES["onnxruntime"]) from exc
        return {"backend": self.name, "onnxruntime": version, "machine": platform.machine()}

    def int8_plan(self, profile: Profile) -> Int8Plan:
        """Explicit: ONNX Runtime takes INT8 as Q/DQ nodes and in no other way."""
        if profile.int8_route == "implicit":
            raise ProfileError(
                "int8_route: implicit, and ONNX Runtime has no calibrators",
                where=profile.name,
                hint="int8_route: auto or explicit; the same table becomes Q/DQ nodes",
            )
        return Int8Plan(route="explicit", why="ONNX Runtime takes INT8 as Q/DQ nodes in the graph")

    def build(self, request: BuildRequest, *, listen: Listener = ignore_events) -> BuiltEngine:
        """FP32: the model itself. INT8: its Q/DQ form with the table's scales."""
        del listen
        from edge.model import onnx_model

        proto = onnx_model.read(request.model, request.profile.outputs)
        route: str | None = None
        info: dict[str, Any] = {}
        notes: list[str] = []
        unscaled: list[str] = []
        if request.precision == "int8":
            proto, info, unscaled = _quantized(proto, request)
            notes = _unscaled_note(unscaled)
            route = "explicit"
        elif request.precision != "fp32":
            raise DeviceError(
                f"ONNX Runtime on a CPU cannot build {request.precision}", hint="--precision fp32 or int8"
            )
        data = bytes(proto.SerializeToString())
        looked = onnxruntime_graph.inspect(proto, _optimized(data), unscaled=unscaled)
        layers = _layers(looked)
        if request.table is not None and not request.table.bits and layers.weighted_int8 < info["qdq_quantized"]:
            # Somebody else's Q/DQ nodes, placed for another runtime: rounded as they say, and computed in float.
            own = info["qdq_quantized"]
            notes = [f"{own} layers have Q/DQ nodes of the model's own: values are rounded, the arithmetic is float"]
            layers = msgspec.structs.replace(layers, weighted_int8=info["qdq_quantized"])
        return BuiltEngine(
            data=data, suffix=".onnx", layers=layers, route=route, notes=notes, info=info, inspection=looked
        )

    def open(
        self, engine: Path, *, precision: str, threads: int | None = None, built_for: Key | None = None
    ) -> OrtSession:
        """Open an engine file; what it was built for has been compared already."""
        del built_for
        return OrtSession(engine.read_bytes(), precision=precision, threads=threads)


class OrtSession:
    """One onnxruntime session with one input and one or more outputs.

    ``lean`` trades a little speed for memory; for networks that give out all of their tensors. The graph that
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
        """All outputs for a batch. Several threads may call this at once."""
        if self._session is None:
            raise DeviceError("the session is closed")
        try:
            return self._session.run(None, {self._input: batch})  # type: ignore[no-any-return]
        except Exception as exc:  # onnxruntime's exceptions share no base but Exception
            raise DeviceError(f"onnxruntime failed: {_first_line(exc)}") from exc

    def into(
        self, arrays: Sequence[NDArray[np.float32]]
    ) -> Callable[[NDArray[np.float32]], Sequence[NDArray[np.float32]]]:
        """As :meth:`outputs`, into ``arrays``, for one thread; they must have the shapes of the outputs."""
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
        """Give the session back."""
        self._session = None


def _quantized(proto: Any, request: BuildRequest) -> tuple[Any, dict[str, Any], list[str]]:  # noqa: ANN401
    """The Q/DQ form, what to say about it, and the tensors without a usable scale."""
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
            # Its words for a file that it cannot write; the model itself has been read.
            raise StoreError("cannot write the optimized graph", where=path.parent, hint="is the disk full?") from exc
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
    """Let the session's arena grow by what is asked for, instead of doubling, and plan no peak in advance."""
    _register_exact_arena()
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.use_env_allocators", "1")


@functools.cache
def _register_exact_arena() -> None:
    # One arena for the process: sessions use it only where their options say so.
    ort = require("onnxruntime")
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    same_as_requested = 1
    default = -1
    ort.create_and_register_allocator(memory, ort.OrtArenaCfg(0, same_as_requested, default, default))


def _open(model: bytes, options: Any) -> Any:  # noqa: ANN401
    ort = require("onnxruntime")
    try:
        return ort.InferenceSession(model, options, providers=_PROVIDERS)
    except Exception as exc:  # onnxruntime's exceptions share no base but Exception
        raise ModelError(f"onnxruntime cannot load the model: {_first_line(exc)}", hint="edge doctor") from exc


def _first_line(exc: Exception) -> str:
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0]

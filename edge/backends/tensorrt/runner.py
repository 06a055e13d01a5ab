"""A TensorRT engine, open for inference on a CUDA device.

Buffers are allocated once, for the largest batch. The input goes through page-locked memory, which a device that shares
memory with the CPU reads in place. The work of an engine is captured in a CUDA graph at the second run of a batch size:
at the first TensorRT finishes what it has put off since the size was set. Where it cannot be captured, it is
enqueued each time, and :attr:`TrtSession.graph_note` says why. Stages are timed by CUDA events on the one stream.

None of this was run with TensorRT on a GPU. What is tried is this: the whole path against doubles of eight bindings,
with exactly their classes and signatures, in host memory (``tests/backends/tensorrt/runner``); and the CUDA side on a
GPU, with a kernel in TensorRT's place (``tests/backends/cuda``).
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edge.backends.cuda import DeviceMemory, GpuDevice, Graph, HostMemory
from edge.backends.interface import BackendMessage, Inference, LayerSamples
from edge.backends.tensorrt import engine_compatibility, log_watch
from edge.backends.tensorrt.environment import Caps, binding_module
from edge.config import InputConfig, PreprocessConfig
from edge.errors import DeviceError, EdgeError, StoreError, require

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edge.backends.cuda import GpuPreprocessor


# Data types that a network may take and give here, by TensorRT's name; and the sizes of all.
FLOATS = {"FLOAT": "float32", "HALF": "float16"}
BYTES = {"FLOAT": 4, "HALF": 2, "BF16": 2, "INT32": 4, "INT64": 8, "INT8": 1, "UINT8": 1, "BOOL": 1, "FP8": 1}


class Contract(msgspec.Struct, frozen=True, kw_only=True):
    """Inputs and outputs of an engine.

    ``shape`` and ``dtype`` are those of the one input, the batch axis left out of the shape. ``outputs`` are (name,
    TensorRT's data type); ``logits`` is the first of them that is float. ``dynamic``: the shape is set per run.
    """

    name: str
    shape: tuple[int, int, int]
    dtype: str
    min_batch: int
    max_batch: int
    dynamic: bool
    outputs: tuple[tuple[str, str], ...]
    logits: str


def contract(engine: Any) -> Contract:  # noqa: ANN401
    """Read an ICudaEngine's inputs and outputs.

    Raises:
        DeviceError: it is not a classifier with one N×3×H×W float input.
    """
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name).name == "INPUT"]
    outputs = tuple((name, engine.get_tensor_dtype(name).name) for name in names if name not in inputs)
    if len(inputs) != 1:
        raise DeviceError(f"the engine has {len(inputs)} inputs ({', '.join(inputs)}); edge runs one with one input")
    name = inputs[0]
    kind = engine.get_tensor_dtype(name).name
    least = most = tuple(int(size) for size in engine.get_tensor_shape(name))
    dynamic = any(size < 0 for size in least)
    if dynamic:
        # Height and width may be open in the network and settled by the profile that the engine was built with.
        low, _best, high = engine.get_tensor_profile_shape(name, 0)
        least, most = tuple(map(int, low)), tuple(map(int, high))
    if kind not in FLOATS or len(most) != 4 or least[1:] != most[1:]:
        sizes = (str(a) if a == b else f"{a}-{b}" for a, b in zip(least, most, strict=True))
        found = f"the engine's input {name!r} is {kind} {'×'.join(sizes)}"
        raise DeviceError(f"{found}; edge runs one that takes float N×3×H×W of one size")
    logits = next((output for output, dtype in outputs if dtype in FLOATS), None)
    if logits is None:
        raise DeviceError("the engine has no float output")
    return Contract(
        name=name,
        shape=(most[1], most[2], most[3]),
        dtype=FLOATS[kind],
        min_batch=least[0],
        max_batch=most[0],
        dynamic=dynamic,
        outputs=outputs,
        logits=logits,
    )


class FrameInference(Inference, frozen=True, kw_only=True):
    """An inference that began with frames: ``preprocess_ms`` is the kernel's time on the device."""

    preprocess_ms: float


class TrtSession:
    """An open engine, for one thread at a time. ``device`` is given back with it.

    Raises:
        ArtifactError: an engine for other GPUs (``gpus``, as the engine's key names them).
        DeviceError: no GPU, no memory, an engine of another TensorRT or GPU, or one that edge cannot run.
        MissingDependencyError: PyCUDA is not installed.

    ``host_code`` lets an engine bring its own runtime, as a version-compatible one does. ``dla_core`` is the one that
    the engine was built for, if any. ``notices`` are warnings about the engine that :meth:`messages` begins with.
    """

    def __init__(
        self,
        engine: Path,
        caps: Caps,
        *,
        precision: str,
        device: GpuDevice | None = None,
        graphs: bool = True,
        gpus: str | None = None,
        host_code: bool = False,
        dla_core: int | None = None,
        notices: Sequence[BackendMessage] = (),
    ) -> None:
        self.precision = precision
        self._caps = caps
        self._gpus = gpus
        self._host_code = host_code
        self._dla_core = dla_core
        self.graph_note: str | None = None if graphs else "CUDA graphs were not asked for"
        self._np = require("numpy")
        self._where = engine
        self._binding = binding_module(caps)
        self._log = log_watch.MessageLog()
        for message in notices:
            self._log.record(message)
        self._watch = log_watch.BuildWatch()
        self._events: list[Any] = []
        self._staging: NDArray[Any] = self._np.empty(0)
        self._results: NDArray[Any] = self._np.empty(0)
        self._input_memory: DeviceMemory | None = None
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None
        self._graph: Graph | None = None
        self._frames: GpuPreprocessor | None = None
        self._memory: list[HostMemory | DeviceMemory] = []
        self._size = 0
        self._settled = False
        self._closed = False
        plan = _read(engine)
        self._device = _gpu() if device is None else device
        try:
            with self._device.active():
                self._open(plan)
        except BaseException:
            self.close()
            raise

    def infer(self, batch: NDArray[np.float32]) -> Inference:
        """Run a float32 N×3×H×W batch. A batch below the engine's smallest is filled up; the logits are for N."""
        count, device = self._count(batch.shape), self._device
        with device.active():
            self._fit(count)
            # What fills up a batch is whatever is there: a picture's logits do not depend on its neighbours.
            self._np.copyto(self._staging[:count], batch, casting="same_kind")
            device.record(self._events[0])
            if self._input_memory is not None:
                device.upload(self._input, self._staging[: self._size])
            device.record(self._events[1])
            self._run()
            device.record(self._events[2])
            logits = self._logits(count, self._events[3])
            copied, infer, back = self._times(4)
        return Inference(
            logits=logits,
            host_to_device_ms=None if self._input_memory is None else copied,
            infer_ms=infer,
            device_to_host_ms=back,
        )

    def preprocess_on_gpu(self, spec: PreprocessConfig, target: InputConfig) -> None:
        """Get ready for :meth:`infer_frames`.

        Raises:
            DeviceError: the engine takes another size, or the kernel cannot be compiled.
        """
        from edge.backends.cuda import GpuPreprocessor

        self._check_open()
        if (3, target.height, target.width) != self.contract.shape:
            wanted = "×".join(str(size) for size in self.contract.shape)
            raise DeviceError(f"the engine takes {wanted}, the profile says 3×{target.height}×{target.width}")
        with self._device.active():
            if self._frames is not None:
                self._frames.free()
            self._frames = GpuPreprocessor(
                spec, target, self._device, batch=self.contract.max_batch, half=self.contract.dtype == "float16"
            )

    def infer_frames(self, frames: Sequence[NDArray[np.uint8]]) -> FrameInference:
        """Preprocess uint8 H×W×3 BGR frames on the device and run them.

        Raises:
            DataError: a frame is not such an array.
            DeviceError: the device failed, or ``preprocess_on_gpu`` did not come first.
        """
        count = self._count((len(frames), *self.contract.shape))
        preprocess, device = self._preprocessor(), self._device
        with device.active():
            self._fit(count)
            preprocess.stage(frames)
            device.record(self._events[0])
            preprocess.upload()
            device.record(self._events[1])
            preprocess.launch(self._input)
            device.record(self._events[2])
            self._run()
            device.record(self._events[3])
            logits = self._logits(count, self._events[4])
            copied, preprocessed, infer, back = self._times(5)
        return FrameInference(
            logits=logits,
            host_to_device_ms=copied if preprocess.copies else None,
            preprocess_ms=preprocessed,
            infer_ms=infer,
            device_to_host_ms=back,
        )

    def time_layers(self, batch: NDArray[np.float32], *, runs: int, warmup: int) -> LayerSamples:
        """Time each layer on a float32 N×3×H×W batch by TensorRT's own profiler, and whole inferences without it.

        The profiler stays attached: close the session afterwards.
        """
        whole_ms = [self.infer(batch).infer_ms for _ in range(warmup + runs)][warmup:]
        layers: dict[str, list[float]] = {}
        current: dict[str, float] = {}

        def record(name: str, ms: float) -> None:
            current[name] = current.get(name, 0.0) + ms

        profiler = log_watch.layer_profiler(self._binding, record, self._watch)
        with self._device.active():
            self._context.profiler = profiler
            for run in range(warmup + runs):
                current.clear()
                # Not by the graph: the profiler is called where TensorRT itself enqueues.
                self._enqueue()
                self._device.synchronize()
                if run >= warmup:
                    for name, ms in current.items():
                        layers.setdefault(name, []).append(ms)
        if not layers:
            raise DeviceError("TensorRT's profiler reported no layer", where=self._where)
        return LayerSamples(profiler=f"IProfiler of {self._caps.title}", layers=layers, whole_ms=whole_ms)

    def messages(self) -> tuple[BackendMessage, ...]:
        """Warnings and errors that TensorRT has logged since the session began to open, each text once."""
        return self._log.messages()

    def on_message(self, listen: Callable[[BackendMessage], None]) -> None:
        """Call ``listen`` with each message so far, and with each new text from now on, in the thread it comes in."""
        self._log.listen(listen)

    def close(self) -> None:
        """Give back everything, TensorRT's objects before the memory that they use; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        with self._device.active(), self._received():
            self._drop_graph()
            self._context = None
            self._engine = None
            self._runtime = None
            if self._frames is not None:
                self._frames.free()
            # Page-locked memory goes with the last view of it.
            self._staging = self._results = self._np.empty(0)
            for memory in self._memory:
                memory.free()
            self._memory, self._events = [], []
        self._device.close()

    # opening

    def _open(self, plan: bytes) -> None:
        engine_compatibility.check_gpu(self._gpus, sm=self._device.sm, name=self._device.name, engine=self._where)
        with self._received() as logger:
            self._runtime = engine_compatibility.start_runtime(self._binding, logger, self._watch)
            if self._runtime is None:
                raise self._failure("TensorRT cannot start")
            if self._dla_core is not None:
                # The engine does not say it itself: it would run on core 0.
                self._runtime.DLA_core = self._dla_core
            if self._host_code:
                # A version-compatible engine brings its own runtime; its bytes were verified against the manifest.
                self._runtime.engine_host_code_allowed = True
            if self._caps.plan_check:
                self._check_plan(plan)
            self._engine = self._runtime.deserialize_cuda_engine(plan)
            if self._engine is None:
                raise self._failure("TensorRT cannot load the engine", plan)
            self.contract = contract(self._engine)
            self._context = self._engine.create_execution_context()
            if self._context is None:
                raise self._failure("TensorRT gave no execution context")
            self._events = [self._device.event() for _ in range(5)]
            self._fit(self.contract.max_batch)
            self._allocate()

    def _check_plan(self, plan: bytes) -> None:
        """Ask whether the plan fits this GPU and version, by its first bytes, before it is loaded.

        Without a reason, as where CUDA does not start, loading it says more.
        """
        validity, reasons = self._runtime.get_engine_validity(plan[: max(int(self._runtime.engine_header_size), 64)])
        if validity.name == "INVALID" and reasons:
            raise self._failure(f"{self._caps.title} cannot load the engine (diagnostics {reasons})", plan)
        if validity.name == "SUBOPTIMAL":
            text = f"{self._caps.title} says that the engine is not the best for this GPU (diagnostics {reasons})"
            self._log.record(BackendMessage(severity="warning", text=text, hint="edge build, on this machine"))

    def _allocate(self) -> None:
        """Buffers for the largest batch, and their addresses, once and for all."""
        has = self.contract
        shape = (has.max_batch, *has.shape)
        nbytes = int(self._np.prod(shape)) * self._np.dtype(has.dtype).itemsize
        pinned = self._device.pinned(nbytes, mapped=self._device.integrated)
        self._memory.append(pinned)
        self._staging = pinned.array[:nbytes].view(has.dtype).reshape(shape)
        if pinned.address is None:
            self._input_memory = self._device.memory(nbytes)
            self._memory.append(self._input_memory)
            self._input = self._input_memory.address
        else:
            self._input = pinned.address
        self._bind(has.name, self._input)
        for name, kind in has.outputs:
            self._allocate_output(name, kind)

    def _allocate_output(self, name: str, kind: str) -> None:
        shape = tuple(int(size) for size in self._context.get_tensor_shape(name))
        if any(size < 0 for size in shape) or kind not in BYTES:
            raise DeviceError(f"the size of the engine's output {name!r} ({kind}) depends on the data")
        nbytes = int(self._np.prod(shape)) * BYTES[kind]
        memory = self._device.memory(nbytes)
        self._memory.append(memory)
        self._bind(name, memory.address)
        if name != self.contract.logits:
            return
        if not shape or shape[0] != self.contract.max_batch:
            raise DeviceError(f"the engine's output {name!r} has no batch axis: {'×'.join(map(str, shape))}")
        pinned = self._device.pinned(nbytes)
        self._memory.append(pinned)
        self._output = memory.address
        self._results = pinned.array[:nbytes].view(FLOATS[kind]).reshape(shape[0], -1)

    def _bind(self, name: str, address: int) -> None:
        if not self._context.set_tensor_address(name, address):
            raise self._failure(f"TensorRT refuses the memory of {name!r}")

    # running

    def _check_open(self) -> None:
        if self._closed:
            raise DeviceError("the session is closed")

    def _preprocessor(self) -> GpuPreprocessor:
        self._check_open()
        if self._frames is None:
            raise DeviceError("frames need preprocess_on_gpu first")
        return self._frames

    def _count(self, shape: tuple[int, ...]) -> int:
        self._check_open()
        if len(shape) != 4 or tuple(shape[1:]) != self.contract.shape:
            wanted = "×".join(str(size) for size in self.contract.shape)
            raise DeviceError(f"the engine takes N×{wanted}, not {'×'.join(map(str, shape))}")
        if not 1 <= shape[0] <= self.contract.max_batch:
            raise DeviceError(
                f"a batch of {shape[0]}: the engine takes 1 to {self.contract.max_batch}",
                hint="set input.batch.max in the profile and build again",
            )
        return shape[0]

    def _fit(self, count: int) -> None:
        """Set the batch size: that of the batch, or the engine's smallest."""
        size = max(count, self.contract.min_batch)
        if size == self._size:
            return
        self._drop_graph()
        self._size, self._settled = 0, False
        if self.contract.dynamic:
            with self._received():
                if not self._context.set_input_shape(self.contract.name, (size, *self.contract.shape)):
                    raise self._failure(f"TensorRT refuses a batch of {size}")
        self._size = size

    def _run(self) -> None:
        """Put the engine's work on the stream."""
        if self._graph is None and self._settled and self.graph_note is None:
            try:
                self._graph = self._device.capture(self._enqueue)
            except EdgeError as exc:
                self.graph_note = f"no CUDA graph: {exc.what}"
        if self._graph is not None:
            self._graph.launch()
        else:
            self._enqueue()
            self._settled = True

    def _enqueue(self) -> None:
        with self._received():
            if not self._context.execute_async_v3(self._device.stream):
                raise self._failure("TensorRT could not run the engine")

    def _logits(self, count: int, done: Any) -> NDArray[np.float32]:  # noqa: ANN401
        """Bring the logits of ``count`` pictures to the host, record ``done``, and wait for all of it."""
        device, results = self._device, self._results[:count]
        device.download(results, self._output)
        device.record(done)
        device.synchronize()
        return self._np.array(results, dtype="float32")  # type: ignore[no-any-return]

    def _times(self, events: int) -> list[float]:
        return [self._device.elapsed_ms(start, end) for start, end in itertools.pairwise(self._events[:events])]

    @contextlib.contextmanager
    def _received(self) -> Iterator[Any]:
        """Receive TensorRT's log inside the block; gives the logger. An exception of our callbacks is raised here."""
        self._watch = log_watch.BuildWatch(on_warning=self._log.add)
        with log_watch.watching(self._binding, self._watch) as logger:
            try:
                yield logger
            finally:
                self._watch.raise_kept()

    def _drop_graph(self) -> None:
        graph, self._graph = self._graph, None
        if graph is not None:
            graph.free()

    def _failure(self, what: str, plan: bytes | None = None) -> EdgeError:
        """An error with what TensorRT logged about it; ``plan`` where it is the plan that is refused."""
        return engine_compatibility.refusal(what, self._watch.errors, self._watch.recent, where=self._where, plan=plan)


def _read(engine: Path) -> bytes:
    try:
        return engine.read_bytes()
    except OSError as exc:
        raise StoreError(f"cannot read: {exc.strerror or exc}", where=engine) from exc


def _gpu() -> GpuDevice:
    from edge.backends.cuda import open_device

    return open_device()

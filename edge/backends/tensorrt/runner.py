"""Run a TensorRT engine on a CUDA device.

Buffers are allocated once, for the largest batch and for two batches in flight: :meth:`TrtSession.submit` fills in and
submits the next while the one before it runs, and :meth:`Submitted.wait` may be called in another thread. The input
goes through page-locked memory, which a device that shares memory with the CPU reads in place; where the GPU
preprocesses, it is in device memory. Each batch size has an execution context and a CUDA graph of its own, which is
captured at the second run: at the first TensorRT finishes what it has put off since the size was set. Where that cannot
be done, it is enqueued each time, and :attr:`TrtSession.graph_note` says why. Upload and preprocessing of a batch go to
a second stream, beside the engine's work on the batch before. Stages are timed by CUDA events.

None of this was run with TensorRT on a GPU. These parts are tested: the whole path against doubles of eight bindings,
with exactly their classes and signatures, in host memory (``tests/backends/tensorrt/runner``); and the CUDA side on a
GPU, with a kernel in TensorRT's place (``tests/backends/cuda``).
"""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.backends.cuda import DeviceMemory, GpuDevice, Graph, HostMemory
from edge.backends.interface import BackendMessage, Inference, LayerSamples
from edge.backends.tensorrt import engine_compatibility, log_watch
from edge.backends.tensorrt.engine_compatibility import BYTES, FLOATS, contract
from edge.backends.tensorrt.environment import Caps, binding_module
from edge.config import InputConfig, PreprocessConfig
from edge.errors import DeviceError, EdgeError, StoreError, require

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edge.backends.cuda import GpuPreprocessor


# Batches in flight: one runs while the next is filled in and submitted.
_SLOTS = 2
# Execution contexts of one engine that are kept, each with the memory of its layers: one per batch size.
_MOST_EXECUTIONS = 4


class _Slot:
    """Memory and events of one batch in flight: it is filled while the batch before it still runs.

    ``staging`` and ``results`` are page-locked; ``mapped`` is the device address of ``staging`` where it has one, and
    ``memory`` the network's input in device memory, where it is copied or written by a kernel.
    """

    __slots__ = ("events", "mapped", "memory", "number", "results", "staging")

    def __init__(
        self, number: int, staging: NDArray[Any], results: NDArray[Any], *, mapped: int | None, events: list[Any]
    ) -> None:
        self.number = number
        self.staging = staging
        self.results = results
        self.mapped = mapped
        self.memory: DeviceMemory | None = None
        self.events = events

    @property
    def input(self) -> int:
        """The address at which the network finds its input."""
        address = self.mapped if self.memory is None else self.memory.address
        assert address is not None  # noqa: S101 - mapped, where there is no device memory
        return address


class _Execution:
    """The execution context of one batch size, and its CUDA graph for each address of the input, once it is captured.

    Sizes do not share a context: a graph must not run after TensorRT has set its context to another size.
    """

    __slots__ = ("bound", "context", "graphs", "settled")

    def __init__(self, context: Any) -> None:  # noqa: ANN401
        self.context = context
        self.bound: int | None = None
        self.graphs: dict[int, Graph] = {}
        self.settled: set[int] = set()

    def drop_graphs(self) -> None:
        """Release the captured graphs."""
        while self.graphs:
            self.graphs.popitem()[1].free()


class Submitted:
    """A batch on the stream. :meth:`wait` may be called once, also from another thread."""

    def __init__(self, finish: Callable[[], Inference]) -> None:
        self._finish = finish

    def wait(self) -> Inference:
        """Wait until the batch is done.

        Raises:
            DeviceError: the device failed.
        """
        return self._finish()


class FrameInference(Inference, frozen=True, kw_only=True):
    """An inference that began with frames: ``preprocess_ms`` is the kernel's time on the device."""

    preprocess_ms: float


class TrtSession:
    """An open engine, for one thread at a time. It owns ``device``.

    Raises:
        ArtifactError: the engine is for other GPUs (``gpus`` in the engine's key).
        DeviceError: the GPU or memory is missing, or the engine is for another TensorRT or GPU, or unsupported.
        MissingDependencyError: PyCUDA is not installed.

    ``host_code`` allows an engine with its own runtime, such as a version-compatible one. ``dla_core`` is the one that
    the engine was built for, if any. ``notices`` are warnings about the engine that :meth:`messages` begins with.
    ``loaded`` is the runtime and the engine of an open session of the same file (:meth:`another`).
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
        loaded: tuple[Any, Any] | None = None,
    ) -> None:
        self.precision = precision
        self._caps = caps
        self._gpus = gpus
        self._host_code = host_code
        self._dla_core = dla_core
        self._graphs = graphs
        self.graph_note: str | None = None if graphs else "CUDA graphs were not requested"
        self._np = require("numpy")
        self._where = engine
        self._binding = binding_module(caps)
        self._log = log_watch.MessageLog()
        for message in notices:
            self._log.record(message)
        self._watch = log_watch.BuildWatch()
        self._slots: list[_Slot] = []
        # The last one that became free is taken first: one batch at a time needs one slot, and one graph.
        self._free: deque[_Slot] = deque()
        self._input_bytes = self._result_bytes = 0
        self._result_type = "float32"
        self._outputs: dict[str, int] = {}
        self._runtime: Any = None
        self._engine: Any = None
        self._executions: dict[int, _Execution] = {}
        self._frames: GpuPreprocessor | None = None
        self._memory: list[HostMemory | DeviceMemory] = []
        self._closed = False
        plan = _read(engine) if loaded is None else b""
        self._device = _gpu() if device is None else device
        try:
            with self._device.active():
                if loaded is None:
                    self._load(plan)
                else:
                    self._runtime, self._engine = loaded
                self._open()
        except BaseException:
            self.close()
            raise

    def another(self, *, device: GpuDevice | None = None) -> TrtSession:
        """Open a session for another thread on the same engine: it has an execution context and buffers of its own.

        The engine goes with the last session that is closed.

        Raises:
            DeviceError: there is not enough memory, or the session is closed.
        """
        self._check_open()
        return TrtSession(
            self._where, self._caps, precision=self.precision, device=device, graphs=self._graphs, gpus=self._gpus,
            loaded=(self._runtime, self._engine),
        )  # fmt: skip

    @property
    def in_flight(self) -> int:
        """The number of batches that may be submitted before the first is waited for."""
        return _SLOTS

    def infer(self, batch: NDArray[np.float32]) -> Inference:
        """Run a float32 N×3×H×W batch. A batch below the engine's smallest is padded; the logits are for N."""
        return self.submit(batch).wait()

    def submit(self, batch: NDArray[np.float32]) -> Submitted:
        """Put a float32 N×3×H×W batch on the stream; it may run before the previous batch was waited for.

        Raises:
            DeviceError: the device failed, or :attr:`in_flight` batches are not waited for yet.
        """
        count, device, slot = self._count(batch.shape), self._device, self._take_slot()
        try:
            with device.active():
                # The padding has arbitrary content: an image's logits do not depend on its neighbours.
                self._np.copyto(slot.staging[:count], batch, casting="same_kind")
                size = max(count, self.contract.min_batch)
                with device.beside():
                    device.record(slot.events[0])
                    if slot.memory is not None:
                        device.upload(slot.memory.address, slot.staging[:size])
                    device.record(slot.events[1])
                device.follow(slot.events[1])
                device.record(slot.events[2])
                self._run(size, slot.input)
                device.record(slot.events[3])
                self._fetch(slot, count, slot.events[4])
        except BaseException:
            self._free.append(slot)
            raise
        return Submitted(partial(self._finish, slot, count))

    def _finish(self, slot: _Slot, count: int) -> Inference:
        logits, (copied, _, infer, back) = self._wait(slot, count, events=5)
        return Inference(
            logits=logits,
            host_to_device_ms=None if slot.memory is None else copied,
            infer_ms=infer,
            device_to_host_ms=back,
        )

    def preprocess_on_gpu(self, spec: PreprocessConfig, target: InputConfig) -> None:
        """Prepare for :meth:`infer_frames`.

        Raises:
            DeviceError: the engine has another input size, or the kernel cannot be compiled.
        """
        from edge.backends.cuda import GpuPreprocessor

        self._check_open()
        if (3, target.height, target.width) != self.contract.shape:
            wanted = "×".join(str(size) for size in self.contract.shape)
            raise DeviceError(f"the engine needs {wanted}, but the profile says 3×{target.height}×{target.width}")
        with self._device.active():
            if self._frames is not None:
                self._frames.free()
            self._frames = GpuPreprocessor(
                spec, target, self._device, batch=self.contract.max_batch, half=self.contract.dtype == "float16",
                slots=_SLOTS,
            )  # fmt: skip
            for slot in self._slots:
                # The kernel writes the input and the network reads it several times; mapped memory is not cached.
                if slot.memory is None:
                    slot.memory = self._device.memory(self._input_bytes)
                    self._memory.append(slot.memory)

    def infer_frames(self, frames: Sequence[NDArray[np.uint8]]) -> FrameInference:
        """Preprocess uint8 H×W×3 BGR frames on the device and run them.

        Raises:
            DataError: a frame has another type or shape.
            DeviceError: the device failed, or ``preprocess_on_gpu`` was not called before.
        """
        found = self.submit_frames(frames).wait()
        assert isinstance(found, FrameInference)  # noqa: S101 - for mypy
        return found

    def submit_frames(self, frames: Sequence[NDArray[np.uint8]]) -> Submitted:
        """Put frames on the stream, like :meth:`submit` does with a batch."""
        count = self._count((len(frames), *self.contract.shape))
        preprocess, device, slot = self._preprocessor(), self._device, self._take_slot()
        try:
            with device.active():
                preprocess.stage(frames, slot=slot.number)
                with device.beside():
                    device.record(slot.events[0])
                    preprocess.upload(slot=slot.number)
                    device.record(slot.events[1])
                    preprocess.launch(slot.input, slot=slot.number)
                    device.record(slot.events[2])
                device.follow(slot.events[2])
                device.record(slot.events[3])
                self._run(max(count, self.contract.min_batch), slot.input)
                device.record(slot.events[4])
                self._fetch(slot, count, slot.events[5])
        except BaseException:
            self._free.append(slot)
            raise
        return Submitted(partial(self._finish_frames, slot, count, copies=preprocess.copies))

    def _finish_frames(self, slot: _Slot, count: int, *, copies: bool) -> FrameInference:
        logits, (copied, preprocessed, _, infer, back) = self._wait(slot, count, events=6)
        return FrameInference(
            logits=logits,
            host_to_device_ms=copied if copies else None,
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
            execution = self._execution(max(len(batch), self.contract.min_batch))
            self._bind(execution, self._slots[0].input)
            execution.context.profiler = profiler
            for run in range(warmup + runs):
                current.clear()
                # Not by the graph: the profiler is called where TensorRT itself enqueues.
                self._enqueue(execution)
                self._device.synchronize()
                if run >= warmup:
                    for name, ms in current.items():
                        layers.setdefault(name, []).append(ms)
        if not layers:
            raise DeviceError("TensorRT's profiler reported no layer", where=self._where)
        return LayerSamples(profiler=f"IProfiler of {self._caps.title}", layers=layers, whole_ms=whole_ms)

    def messages(self) -> tuple[BackendMessage, ...]:
        """Return the warnings and errors that TensorRT has logged since the session began to open, each text once."""
        return self._log.messages()

    def on_message(self, listen: Callable[[BackendMessage], None]) -> None:
        """Call ``listen`` with each message so far, and with each new text from now on, in the thread that logs it."""
        self._log.listen(listen)

    def close(self) -> None:
        """Free everything, TensorRT's objects before the memory that they use; further calls do nothing."""
        if self._closed:
            return
        self._closed = True
        with self._device.active(), self._received():
            while self._executions:
                self._executions.popitem()[1].drop_graphs()
            self._engine = None
            self._runtime = None
            if self._frames is not None:
                self._frames.free()
            # Page-locked memory is freed with its last view.
            self._slots, self._free = [], deque()
            for memory in self._memory:
                memory.free()
            self._memory = []
        self._device.close()

    # opening

    def _load(self, plan: bytes) -> None:
        """Start the runtime and load the engine."""
        engine_compatibility.check_gpu(self._gpus, sm=self._device.sm, name=self._device.name, engine=self._where)
        with self._received() as logger:
            self._runtime = engine_compatibility.start_runtime(self._binding, logger, self._watch)
            if self._runtime is None:
                raise self._failure("TensorRT cannot be started")
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

    def _open(self) -> None:
        """Make an execution context for the engine, and its buffers."""
        with self._received():
            self.contract = contract(self._engine)
            context = self._engine.create_execution_context()
            if context is None:
                raise self._failure("TensorRT returned no execution context")
            self._set_size(context, self.contract.max_batch)
            self._allocate(context)

    def _check_plan(self, plan: bytes) -> None:
        """Check from its first bytes that the plan fits this GPU and version, before it is loaded.

        Without a reason, as when CUDA cannot be initialized, loading it gives more information.
        """
        validity, reasons = self._runtime.get_engine_validity(plan[: max(int(self._runtime.engine_header_size), 64)])
        if validity.name == "INVALID" and reasons:
            raise self._failure(f"{self._caps.title} cannot load the engine (diagnostics {reasons})", plan)
        if validity.name == "SUBOPTIMAL":
            text = f"{self._caps.title} says that the engine is not the best for this GPU (diagnostics {reasons})"
            self._log.record(BackendMessage(severity="warning", text=text, hint="edge build, on this machine"))

    def _allocate(self, context: Any) -> None:  # noqa: ANN401
        """Buffers for the largest batch, for each of the batches in flight; ``context`` becomes the first execution."""
        has, device = self.contract, self._device
        shape = (has.max_batch, *has.shape)
        self._input_bytes = int(self._np.prod(shape)) * self._np.dtype(has.dtype).itemsize
        for name, kind in has.outputs:
            self._allocate_output(context, name, kind)
        for number in range(_SLOTS):
            pinned = device.pinned(self._input_bytes, mapped=device.integrated)
            results = device.pinned(self._result_bytes)
            self._memory += [pinned, results]
            staging = pinned.array[: self._input_bytes].view(has.dtype).reshape(shape)
            logits = results.array[: self._result_bytes].view(self._result_type).reshape(has.max_batch, -1)
            events = [device.event() for _ in range(6)]
            slot = _Slot(number, staging, logits, mapped=pinned.address, events=events)
            if pinned.address is None:
                slot.memory = device.memory(self._input_bytes)
                self._memory.append(slot.memory)
            self._slots.append(slot)
            self._free.append(slot)
        first = self._executions[has.max_batch] = _Execution(context)
        self._bind(first, self._slots[0].input)

    def _allocate_output(self, context: Any, name: str, kind: str) -> None:  # noqa: ANN401
        shape = tuple(int(size) for size in context.get_tensor_shape(name))
        if any(size < 0 for size in shape) or kind not in BYTES:
            raise DeviceError(f"the size of the engine's output {name!r} ({kind}) depends on the data")
        nbytes = int(self._np.prod(shape)) * BYTES[kind]
        memory = self._device.memory(nbytes)
        self._memory.append(memory)
        self._outputs[name] = memory.address
        if name != self.contract.logits:
            return
        if not shape or shape[0] != self.contract.max_batch:
            raise DeviceError(f"the engine's output {name!r} has no batch axis: {'×'.join(map(str, shape))}")
        self._result_bytes, self._result_type = nbytes, FLOATS[kind]

    def _bind(self, execution: _Execution, address: int) -> None:
        """Set the addresses of a context's tensors, the input's to ``address``."""
        if execution.bound == address:
            return
        for name, at in {self.contract.name: address, **self._outputs}.items():
            if not execution.context.set_tensor_address(name, at):
                raise self._failure(f"TensorRT rejected the buffer of {name!r}")
        execution.bound = address

    # running

    def _check_open(self) -> None:
        if self._closed:
            raise DeviceError("the session is closed")

    def _preprocessor(self) -> GpuPreprocessor:
        self._check_open()
        if self._frames is None:
            raise DeviceError("call preprocess_on_gpu before inference on frames")
        return self._frames

    def _count(self, shape: tuple[int, ...]) -> int:
        self._check_open()
        if len(shape) != 4 or tuple(shape[1:]) != self.contract.shape:
            wanted = "×".join(str(size) for size in self.contract.shape)
            raise DeviceError(f"the engine needs N×{wanted}, not {'×'.join(map(str, shape))}")
        if not 1 <= shape[0] <= self.contract.max_batch:
            raise DeviceError(
                f"a batch of {shape[0]} is not supported: the engine accepts 1 to {self.contract.max_batch}",
                hint="set input.batch.max in the profile and build again",
            )
        return shape[0]

    def _take_slot(self) -> _Slot:
        self._check_open()
        try:
            return self._free.pop()
        except IndexError:
            raise DeviceError(f"{self.in_flight} batches are in flight: wait for one first") from None

    def _set_size(self, context: Any, size: int) -> None:  # noqa: ANN401
        if self.contract.dynamic:
            with self._received():
                if not context.set_input_shape(self.contract.name, (size, *self.contract.shape)):
                    raise self._failure(f"TensorRT rejected a batch of {size}")

    def _execution(self, size: int) -> _Execution:
        """The execution context for a batch size; kept, up to a few."""
        found = self._executions.get(size)
        if found is not None:
            return found
        context = None
        if len(self._executions) < _MOST_EXECUTIONS:
            with self._received():
                context = self._engine.create_execution_context()
        if context is None and not self._executions:
            raise self._failure("TensorRT returned no execution context")
        if context is None:
            # No more of them, or no memory for one: the oldest takes its place.
            self._device.synchronize()
            replaced = self._executions.pop(next(iter(self._executions)))
            replaced.drop_graphs()
            context = replaced.context
        self._set_size(context, size)
        made = self._executions[size] = _Execution(context)
        return made

    def _run(self, size: int, address: int) -> None:
        """Enqueue the engine's work on the stream."""
        execution = self._execution(size)
        graph = execution.graphs.get(address)
        if graph is None:
            self._bind(execution, address)
            if address in execution.settled and self.graph_note is None:
                try:
                    graph = execution.graphs[address] = self._device.capture(partial(self._enqueue, execution))
                except EdgeError as exc:
                    self.graph_note = f"no CUDA graph: {exc.what}"
        if graph is not None:
            graph.launch()
        else:
            self._enqueue(execution)
            execution.settled.add(address)

    def _enqueue(self, execution: _Execution) -> None:
        with self._received():
            if not execution.context.execute_async_v3(self._device.stream):
                raise self._failure("TensorRT could not run the engine")

    def _fetch(self, slot: _Slot, count: int, done: Any) -> None:  # noqa: ANN401
        """Bring the logits of ``count`` images to the host, and record ``done``."""
        self._device.download(slot.results[:count], self._outputs[self.contract.logits])
        self._device.record(done)

    def _wait(self, slot: _Slot, count: int, *, events: int) -> tuple[NDArray[np.float32], list[float]]:
        """Wait for a slot's batch; its logits, and the milliseconds between its events. The slot is free then."""
        try:
            with self._device.active():
                self._device.wait(slot.events[events - 1])
                times = [self._device.elapsed_ms(*pair) for pair in itertools.pairwise(slot.events[:events])]
            return self._np.array(slot.results[:count], dtype="float32"), times
        finally:
            self._free.append(slot)

    @contextlib.contextmanager
    def _received(self) -> Iterator[Any]:
        """Receive TensorRT's log inside the block; yield the logger. Raise exceptions of callbacks at the end."""
        self._watch = log_watch.BuildWatch(on_warning=self._log.add)
        with log_watch.watching(self._binding, self._watch) as logger:
            try:
                yield logger
            finally:
                self._watch.raise_kept()

    def _failure(self, what: str, plan: bytes | None = None) -> EdgeError:
        """Make an error with TensorRT's log about it; ``plan`` is given if loading the plan failed."""
        return engine_compatibility.refusal(what, self._watch.errors, self._watch.recent, where=self._where, plan=plan)


def _read(engine: Path) -> bytes:
    try:
        return engine.read_bytes()
    except OSError as exc:
        raise StoreError(f"cannot read: {exc.strerror or exc}", where=engine) from exc


def _gpu() -> GpuDevice:
    from edge.backends.cuda import open_device

    return open_device()

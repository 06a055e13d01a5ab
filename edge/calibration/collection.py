"""Run the FP32 network over images to collect statistics, save them regularly, and reuse them.

Images are sorted by sha256 and divided into chunks, which an :class:`Executor` processes. The progress is saved next to
the table every few seconds, so a killed calibration continues from there with any executor (:mod:`edge.calibration`);
only the chunks in progress are processed again.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import os
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import msgspec

from edge.artifacts import store
from edge.backends import OrtSession
from edge.calibration import histograms
from edge.calibration.checkpoint import KIND, Checkpoint, chunk_size, load, save
from edge.config import InputConfig, OutputOptions, PreprocessConfig, Profile
from edge.errors import ArtifactError, require
from edge.events import Listener, Progress, ignore_events
from edge.media import Picture, Pictures, decode
from edge.model import Model, Preprocessor, onnx_model, use_one_thread
from edge.quantization import FORMAT, Statistics, TensorStatistics

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto
if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


# Outputs with exactly the values of the first input, in another shape or order.
SAME_VALUES = frozenset({"Identity", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Dropout"})
# Ops whose inputs and outputs must share one scale ("range propagated from output to inputs": NVIDIA's MLPerf
# calibration.md; DLA demands it for pooling and concatenation).
SHARED_RANGE = frozenset({"MaxPool", "Concat", *SAME_VALUES})


class Derived(msgspec.Struct, frozen=True):
    """A tensor ``name`` that is ``source`` clipped to [low, high]."""

    name: str
    source: str
    low: float = -math.inf
    high: float = math.inf


class WatchPlan(msgspec.Struct, frozen=True):
    """Statistics of ``watched`` tensors are collected; ``derived`` follow from them; ``order`` is network order."""

    watched: list[str]
    derived: list[Derived]
    order: list[str]

    def complete(self, statistics: Statistics) -> Statistics:
        """Complete the statistics of the watched tensors to all activation tensors, in network order."""
        known: dict[str, TensorStatistics] = dict(statistics.tensors)
        for rule in self.derived:
            known[rule.name] = known[rule.source].clipped(rule.low, rule.high)
        return Statistics({name: known[name] for name in self.order}, statistics.pictures)


def plan(graph: GraphProto, activations: list[str]) -> WatchPlan:
    """Split ``activations`` (network order, the input first) into watched and derived tensors."""
    constants = _constants(graph)
    wanted = set(activations)
    rules: dict[str, Derived] = {}
    for node in graph.node:
        rule = _rule(node, constants)
        if rule is not None and rule.name in wanted and rule.source in wanted:
            rules[rule.name] = rule
    return WatchPlan(
        watched=[name for name in activations if name not in rules],
        derived=[rules[name] for name in activations if name in rules],
        order=activations,
    )


def shared_ranges(graph: GraphProto, ranges: dict[str, float]) -> dict[str, float]:
    """Return ``ranges`` with one range for the inputs and outputs of each op that only moves values (last op first)."""
    result = dict(ranges)
    for node in reversed(graph.node):
        if node.op_type in SHARED_RANGE and node.output[0] in result:
            for name in node.input if node.op_type == "Concat" else node.input[:1]:
                if name in result:
                    result[name] = result[node.output[0]]
    return result


def with_outputs(model: ModelProto, names: list[str]) -> bytes:
    """Serialize the model with exactly ``names`` as its outputs, without the inputs among them."""
    onnx = require("onnx")
    produced = {name for node in model.graph.node for name in node.output}
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    # By name alone: onnxruntime knows the types, and shape inference would copy all weights once more.
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name in produced)
    return bytes(copy.SerializeToString())


def _rule(node: NodeProto, constants: dict[str, float]) -> Derived | None:
    """Return how the node's output follows from its input, or None if it must be watched."""
    if node.op_type in SAME_VALUES:
        return Derived(node.output[0], node.input[0])
    if node.op_type == "Relu":
        return Derived(node.output[0], node.input[0], low=0.0)
    if node.op_type == "Clip":
        bounds = [*node.input[1:3], "", ""][:2]
        if any(name and name not in constants for name in bounds):
            return None
        attributes = {item.name: float(item.f) for item in node.attribute}
        low = constants[bounds[0]] if bounds[0] else attributes.get("min", -math.inf)
        high = constants[bounds[1]] if bounds[1] else attributes.get("max", math.inf)
        return Derived(node.output[0], node.input[0], low=low, high=high)
    return None


def _constants(graph: GraphProto) -> dict[str, float]:
    """Return scalar floating-point constants by name, from initializers and Constant nodes."""
    onnx = require("onnx")
    kinds = onnx.TensorProto
    floats = {kinds.FLOAT, kinds.FLOAT16, kinds.BFLOAT16, kinds.DOUBLE}
    tensors: dict[str, Any] = {item.name: item for item in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            tensors.update((node.output[0], item.t) for item in node.attribute if item.name == "value")
    found = {}
    for name, tensor in tensors.items():
        if tensor.data_type in floats and math.prod(tensor.dims) == 1:
            found[name] = float(onnx.numpy_helper.to_array(tensor).reshape(()))
    return found


# Duration of one unit of work in this process: at its end, threads wait for the slowest, and a checkpoint may be
# written.
_LOT_S = 1.0
# Chunks at a time at most, however fast they are.
_MOST_CHUNKS = 32
# With the time above, a crash costs at most two seconds of work, unless saving would exceed this share of the time.
_SAVE_EVERY_S = 0.9
_SAVE_SHARE = 1 / 10

Needs = Literal["ranges", "histogram"]
Chunks = Mapping[int, Sequence[Picture]]


class CollectedStatistics(msgspec.Struct, frozen=True):
    """Statistics of the watched tensors, their file, and whether they already existed."""

    statistics: Statistics
    path: Path
    reused: bool


class StatisticsJob(msgspec.Struct, frozen=True):
    """A job of statistics collection that can be sent to another process, which opens the network once."""

    model: str
    model_sha256: str
    preprocess: PreprocessConfig
    input: InputConfig
    watched: tuple[str, ...]
    needs: Needs
    threads: int
    outputs: OutputOptions = OutputOptions()


class PartialStatistics(msgspec.Struct, frozen=True):
    """Result of an executor: the numbers of the chunks, and their statistics."""

    chunks: tuple[int, ...]
    statistics: Statistics


class Executor(Protocol):
    """The interface of executors: this process, or others. All give bit-identical statistics."""

    @property
    def threads(self) -> int:
        """Default number of threads per process."""

    def count(
        self,
        task: StatisticsJob,
        chunks: Chunks,
        *,
        advance: Callable[[int], None],
        listen: Listener,
        should_stop: Callable[[], bool],
    ) -> Generator[PartialStatistics, None, None]:
        """Process all chunks, each once, and yield their statistics; stop early if ``should_stop`` returns True.

        ``advance`` receives the number of newly processed images. Closing the generator ends the work.

        Raises:
            EdgeError: any error of :func:`count`, wherever it ran.
            DeviceError: the workers died too often, or cannot be reached.
        """
        ...


class InProcess:
    """The executor that uses only this process."""

    @property
    def threads(self) -> int:
        """All cores."""
        return os.cpu_count() or 1

    def count(
        self,
        task: StatisticsJob,
        chunks: Chunks,
        *,
        advance: Callable[[int], None],
        listen: Listener,  # noqa: ARG002 - there is nobody to report on
        should_stop: Callable[[], bool],
    ) -> Generator[PartialStatistics, None, None]:
        """Process the chunks in their order."""
        order, done, size = list(chunks), 0, 1
        while done < len(order):
            numbers = tuple(order[done : done + size])
            pictures = [picture for number in numbers for picture in chunks[number]]
            start = time.monotonic()
            statistics = count(task, pictures, advance=advance, should_stop=should_stop)
            if statistics is None:
                return
            yield PartialStatistics(numbers, statistics)
            done += len(numbers)
            per_chunk = (time.monotonic() - start) / len(numbers)
            size = min(max(int(_LOT_S / max(per_chunk, 1e-3)), 1), _MOST_CHUNKS, 2 * size)


def collect_statistics(
    profile: Profile,
    model: Model,
    plan: WatchPlan,
    pictures: Pictures,
    *,
    needs: Needs,
    cache: Path,
    key: store.Key,
    force: bool = False,
    threads: int | None = None,
    executor: Executor | None = None,
    listen: Listener = ignore_events,
    should_stop: Callable[[], bool] = lambda: False,
) -> CollectedStatistics | None:
    """Collect statistics of ``plan.watched`` over ``pictures``; return None if ``should_stop`` ended it early.

    ``executor`` processes the images, by default this process; ``threads`` is per process. ``key`` is the table's key;
    the statistics depend on its model, preprocessing and images.

    Raises:
        DataError: an image is unreadable, damaged or was changed in the meantime.
        ModelError: the network overflows on an image.
        DeviceError: an executor's workers died too often, or cannot be reached; their results so far are saved.
        StoreError: ``cache`` cannot be written.
    """
    own = {name: key[name] for name in ("model", "preprocess", "images")} | {"format": FORMAT}
    if model.fixed_batch is not None:
        # Earlier versions left out data beyond the first images' rows for such a model.
        own["values"] = "all"
    if not force:
        for kind in ("histogram", "ranges") if needs == "ranges" else ("histogram",):
            kept = {**own, "needs": kind}
            path = _path(cache, kept)
            found = load(_manifest(path), kind=KIND, key=kept, listen=listen)
            if found is not None and found[0].tensors.keys() >= set(plan.watched):
                return CollectedStatistics(found[0], path, reused=True)
    own |= {"needs": needs}
    path = _path(cache, own)
    executor = executor or InProcess()
    # Absolute, because a worker may have another working directory.
    task = StatisticsJob(
        str(model.path.absolute()), model.sha256, profile.preprocess, profile.input, tuple(plan.watched), needs,
        threads or executor.threads, model.outputs,
    )  # fmt: skip
    ordered = sorted(pictures, key=lambda picture: picture.sha256)
    empty = Statistics.empty(task.watched, with_histogram=needs == "histogram")
    size = chunk_size(model.fixed_batch)
    progress = Checkpoint(empty, ordered, manifest=_unfinished(path), key=own, size=size)
    if not force:
        progress.resume(listen)
    _complete(progress, task, executor, total=len(ordered), listen=listen, should_stop=should_stop)
    if not progress.complete:
        return None
    save(_manifest(path), path.name, progress.total, kind=KIND, key=own, info={})
    progress.forget()
    return CollectedStatistics(progress.total, path, reused=False)


def count(
    task: StatisticsJob,
    pictures: Sequence[Picture],
    *,
    advance: Callable[[int], None] = lambda _done: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Statistics | None:
    """Collect statistics of the watched tensors over ``pictures``, in any process that has the model file.

    Raises:
        ArtifactError: the model file differs from the one of the plan.
    """
    session, preprocessor, fixed = _opened(task)

    def run(batch: NDArray[np.float32]) -> Sequence[NDArray[np.float32]]:
        return [batch, *session.outputs(batch)]

    def load(index: int) -> NDArray[np.float32]:
        picture = pictures[index]
        spec = preprocessor.spec
        data = picture.read_checked()
        return preprocessor(decode(data, name=picture.where, exif=spec.exif, max_megapixels=spec.max_megapixels))

    return histograms.collect(
        [picture.where for picture in pictures],
        load,
        run,
        task.watched,
        with_histogram=task.needs == "histogram",
        # One image at a time: this does not change the result, but limits memory.
        batch=fixed or 1,
        is_fixed=fixed is not None,
        threads=task.threads,
        advance=advance,
        should_stop=should_stop,
    )


@functools.lru_cache(maxsize=2)
def _opened(task: StatisticsJob) -> tuple[OrtSession, Preprocessor, int | None]:
    path = Path(task.model)
    model = onnx_model.load(path, task.outputs)
    if model.sha256 != task.model_sha256:
        raise ArtifactError("the model differs from the one for which the calibration was planned", where=path)
    _use_one_malloc_arena()
    # Each thread gets whole images; OpenCV's own threads would only slow them down.
    use_one_thread()
    outputs = with_outputs(onnx_model.folded(path, task.outputs), list(task.watched))
    session = OrtSession(outputs, precision="fp32", threads=1, lean=True)
    return session, Preprocessor(task.preprocess, task.input), model.fixed_batch


def _use_one_malloc_arena() -> None:
    """Let all threads share one heap: glibc's heap per thread uses 40 MiB more of freed memory here, for no speed."""
    arena_max = -8  # M_ARENA_MAX in malloc.h
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(arena_max, 1)


def _complete(
    progress: Checkpoint,
    task: StatisticsJob,
    executor: Executor,
    *,
    total: int,
    listen: Listener,
    should_stop: Callable[[], bool],
) -> None:
    """Let ``executor`` process the remaining chunks; save the results however it ends."""
    seen = progress.total.pictures

    def advance(more: int) -> None:
        nonlocal seen
        seen += more
        listen(Progress("calibrate", seen, total))

    advance(0)
    due = time.monotonic() + _SAVE_EVERY_S
    try:
        parts = executor.count(task, progress.left, advance=advance, listen=listen, should_stop=should_stop)
        with contextlib.closing(parts):
            for part in parts:
                progress.add(part.chunks, part.statistics)
                if (start := time.monotonic()) >= due:
                    progress.save()
                    due = start + max(_SAVE_EVERY_S, (time.monotonic() - start) / _SAVE_SHARE)
    finally:
        if not progress.complete:
            progress.save()


def _path(cache: Path, key: store.Key) -> Path:
    return cache / f"{store.canonical_digest(dict(key))[:16]}.stats.npz"


def _manifest(path: Path) -> Path:
    return path.with_suffix(".json")


def _unfinished(path: Path) -> Path:
    """Return the manifest path of the checkpoint for the statistics at ``path``."""
    return path.with_name(path.name.replace(".stats.npz", ".partial.json"))

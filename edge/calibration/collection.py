"""Observe the FP32 network over pictures: statistics collected, saved while they grow, and reused.

Pictures are put in the order of their sha256 and cut into chunks; an :class:`Executor` counts the chunks. Every few
seconds what is done is saved next to the table, so a calibration that is killed goes on where it was, with the same
executor or with another one (:mod:`edge.calibration`); only the chunks in hand are counted again.
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
    """``name`` is ``source`` clipped to [low, high]."""

    name: str
    source: str
    low: float = -math.inf
    high: float = math.inf


class WatchPlan(msgspec.Struct, frozen=True):
    """``watched`` tensors are counted; ``derived`` follow from them, in this order; ``order`` is network order."""

    watched: list[str]
    derived: list[Derived]
    order: list[str]

    def complete(self, statistics: Statistics) -> Statistics:
        """Statistics of every activation tensor, in network order, from those of the watched ones."""
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
    """``ranges`` with one range for the inputs and outputs of each op that keeps values (last op first)."""
    result = dict(ranges)
    for node in reversed(graph.node):
        if node.op_type in SHARED_RANGE and node.output[0] in result:
            for name in node.input if node.op_type == "Concat" else node.input[:1]:
                if name in result:
                    result[name] = result[node.output[0]]
    return result


def with_outputs(model: ModelProto, names: list[str]) -> bytes:
    """The serialized model with exactly ``names`` as its outputs (inputs among them are left out)."""
    onnx = require("onnx")
    produced = {name for node in model.graph.node for name in node.output}
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    # By name alone: onnxruntime knows the types, and shape inference would copy all weights once more.
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name in produced)
    return bytes(copy.SerializeToString())


def _rule(node: NodeProto, constants: dict[str, float]) -> Derived | None:
    """The rule by which the node's output follows from its input, or None when it must be watched."""
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
    """Scalar floating-point constants by name, from initializers and Constant nodes."""
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


# How long this process counts at a time: at the end, threads wait for the slowest, and a checkpoint may be written.
_LOT_S = 1.0
# Chunks at a time at most, however fast they are.
_MOST_CHUNKS = 32
# With the time above, a crash costs at most two seconds of work, unless saving would take more than this share.
_SAVE_EVERY_S = 0.9
_SAVE_SHARE = 1 / 10

Needs = Literal["ranges", "histogram"]
Chunks = Mapping[int, Sequence[Picture]]


class CollectedStatistics(msgspec.Struct, frozen=True):
    """Statistics of the watched tensors, where they are kept, and whether they were there before."""

    statistics: Statistics
    path: Path
    reused: bool


class StatisticsJob(msgspec.Struct, frozen=True):
    """A counting job, in a form that travels to another process; the network is opened there, once."""

    model: str
    model_sha256: str
    preprocess: PreprocessConfig
    input: InputConfig
    watched: tuple[str, ...]
    needs: Needs
    threads: int
    outputs: OutputOptions = OutputOptions()


class PartialStatistics(msgspec.Struct, frozen=True):
    """Counts of an executor: the numbers of the chunks, and their statistics."""

    chunks: tuple[int, ...]
    statistics: Statistics


class Executor(Protocol):
    """The interface of executors: this process alone, or others. Each gives the same statistics, to the bit."""

    @property
    def threads(self) -> int:
        """Threads that each process counts with, where the user does not say."""

    def count(
        self,
        task: StatisticsJob,
        chunks: Chunks,
        *,
        advance: Callable[[int], None],
        listen: Listener,
        should_stop: Callable[[], bool],
    ) -> Generator[PartialStatistics, None, None]:
        """Count all chunks, each once, and give them as they come; ends early when ``should_stop`` says so.

        ``advance`` receives how many more pictures are done. Closing the generator ends the work.

        Raises:
            EdgeError: what :func:`count` raises, wherever it ran.
            DeviceError: those who count died too often, or cannot be reached.
        """
        ...


class InProcess:
    """The executor that is this process."""

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
        """Count the chunks in their order."""
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
    """Statistics of ``plan.watched`` over ``pictures``; None when ``should_stop`` ended it early.

    ``executor`` counts them, or else this process alone; ``threads`` is per process. ``key`` is the table's key; of
    it, the statistics depend on model, preprocessing and pictures.

    Raises:
        DataError: a picture is unreadable, broken or changed meanwhile.
        ModelError: the network overflows on a picture.
        DeviceError: an executor's workers died too often, or cannot be reached; what they counted is kept.
        StoreError: ``cache`` cannot be written.
    """
    own = {name: key[name] for name in ("model", "preprocess", "images")} | {"format": FORMAT}
    if model.fixed_batch is not None:
        # Until now, what such a model holds beyond its first pictures' rows was left out.
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
    # Absolute: who counts may have another working directory.
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
    """Statistics of the watched tensors over ``pictures``; runs in any process that has the model file.

    Raises:
        ArtifactError: the model file here is not the one that was planned with.
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
        # One picture at a time: the result does not depend on it, and memory does.
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
        raise ArtifactError("the model is not the one that the calibration was planned with", where=path)
    _use_one_malloc_arena()
    # Pictures go to the threads whole; OpenCV's own would only slow them down.
    use_one_thread()
    outputs = with_outputs(onnx_model.folded(path, task.outputs), list(task.watched))
    session = OrtSession(outputs, precision="fp32", threads=1, lean=True)
    return session, Preprocessor(task.preprocess, task.input), model.fixed_batch


def _use_one_malloc_arena() -> None:
    """Let all threads share one heap: glibc's heap per thread keeps 40 MiB more of freed memory here, for no speed."""
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
    """Let ``executor`` count what is left. However it ends, what came back is saved."""
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
    """Manifest of the checkpoint of the statistics at ``path``."""
    return path.with_name(path.name.replace(".stats.npz", ".partial.json"))

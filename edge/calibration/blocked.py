"""All tensors of a network as ONNX Runtime holds them, without the copies that bring them into ONNX's own layout.

On the CPUs that it knows, ONNX Runtime keeps activations in blocks of channels (N, C/b, H, W, b), pads the channels up
to whole blocks, and fuses a Clip into the convolution in front. A network that gives out every tensor loses that: each
one is reordered on its way out, and again on its way into the next layer, which takes as long as half of the network.
Whoever only counts values does not care in which order they come.

:func:`open_blocked` takes the graph as ONNX Runtime has optimized it, and lets it give out the blocks. What it computes
is the same to the bit: that is checked on one batch against ONNX Runtime's own way, which is taken wherever anything
differs or is unknown. Its operators (``com.microsoft.nchwc``) have no specification but its source:
core/optimizer/nchwc_transformer.cc.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from edge.backends import OrtSession
from edge.errors import DeviceError, require

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import ModelProto, NodeProto

Shape = tuple[int, ...]

_DOMAIN = "com.microsoft.nchwc"
BLOCKS = (16, 8, 4, 32)
# Operators that work on every value by itself, and so in any layout; other inputs are constants.
_EACH_VALUE = frozenset({"Clip", "Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid"})


def twins(model: ModelProto) -> dict[str, str]:
    """Rewrite an optimized graph to stay in blocks; the blocked tensor that stands for each plain one, by name.

    ``model`` keeps its outputs, and loses the nodes that nobody needs any more.
    """
    found: dict[str, str] = {}
    instead: dict[str, str] = {}
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        for at, name in enumerate(node.input):
            node.input[at] = instead.get(name, name)
        nodes.append(node)
        if node.domain == _DOMAIN and node.op_type == "ReorderOutput":
            found[node.output[0]] = node.input[0]
        elif node.domain == _DOMAIN and node.op_type == "ReorderInput" and node.input[0] in found:
            instead[node.output[0]] = found[node.input[0]]
        elif (same := _in_blocks(node, found)) is not None:
            nodes.append(same)
            found[node.output[0]] = same.output[0]
    kept = list(_needed(nodes, [found.get(value.name, value.name) for value in model.graph.output]))
    del model.graph.node[:]
    model.graph.node.extend(reversed(kept))
    return found


def _in_blocks(node: NodeProto, found: Mapping[str, str]) -> NodeProto | None:
    """The same node on blocked tensors, or None where it needs the plain ones."""
    onnx = require("onnx")
    if node.domain not in {"", "ai.onnx"}:
        return None
    if node.op_type in _EACH_VALUE and node.input[0] in found:
        inputs = [found[node.input[0]], *node.input[1:]]
    elif node.op_type == "Add" and all(name in found for name in node.input):
        # Both come from convolutions, in one shape: broadcasting would be seen where the results are compared.
        inputs = [found[name] for name in node.input]
    else:
        return None
    same: NodeProto = onnx.NodeProto()
    same.CopyFrom(node)
    same.name = f"{node.name}/blocked"
    del same.input[:], same.output[:]
    same.input.extend(inputs)
    same.output.append(f"{node.output[0]}/blocked")
    return same


def _needed(nodes: Sequence[NodeProto], outputs: Sequence[str]) -> Iterator[NodeProto]:
    """The nodes behind ``outputs``, the last first."""
    wanted = set(outputs)
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            yield node


class Watching(Protocol):
    """A session that gives out every tensor."""

    def outputs(self, batch: NDArray[np.float32]) -> Sequence[NDArray[np.float32]]:
        """All values of each output for a batch, picture by picture; within a picture in any order.

        Several threads may call this at once. What a call gave is overwritten by the same thread's next.
        """


class BlockedSession:
    """A network whose tensors come in blocks. Made by :func:`open_blocked`.

    ``shapes`` are those of the session's outputs, ``where`` says which of them is which of ours, and ``channels`` how
    many of its channels mean something; None for a plain tensor.
    """

    def __init__(
        self,
        session: OrtSession,
        shapes: Sequence[Shape],
        *,
        where: Sequence[int],
        channels: Sequence[int | None],
        block: int,
    ) -> None:
        self._session, self._shapes = session, shapes
        self._where, self._channels, self._block = where, channels, block
        self._own = threading.local()

    def outputs(self, batch: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """See :meth:`Watching.outputs`."""
        run = getattr(self._own, "run", None)
        if run is None:
            # ONNX Runtime's own memory would be asked for again, and be twice as much.
            run = self._own.run = self._session.into([np.empty(shape, np.float32) for shape in self._shapes])
        given = run(batch)
        return [
            _values(given[at], channels, self._block) for at, channels in zip(self._where, self._channels, strict=True)
        ]


def open_blocked(model: bytes, batch: NDArray[np.float32]) -> Watching:
    """A session of one thread that gives all outputs of ``model``; in blocks where that works, and plain elsewhere.

    ``batch`` is what the two are compared on, and the shape of all batches to come.

    Raises:
        ModelError: onnxruntime cannot load the model.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="edge-") as folder:
            file = Path(folder) / "optimized.onnx"
            # Not lean: its memory must go with it.
            expected = OrtSession(model, precision="fp32", threads=1, optimized=file).outputs(batch)
            if (blocked := _blocked(file, batch, expected)) is not None:
                return blocked
    except Exception:  # noqa: BLE001, S110 - a full disk, a graph past protobuf's limit, a form that is new
        pass
    return OrtSession(model, precision="fp32", threads=1, lean=True)


def _blocked(file: Path, batch: NDArray[np.float32], expected: Sequence[NDArray[np.float32]]) -> BlockedSession | None:
    """The network in ``file`` in blocks; None where nothing is, or where it gives another bit."""
    onnx = require("onnx")
    model = onnx.load(str(file))
    outputs = [value.name for value in model.graph.output]
    found = twins(model)
    channels = [values.shape[1] if name in found else None for name, values in zip(outputs, expected, strict=True)]
    given = list(dict.fromkeys(found.get(name, name) for name in outputs))
    if not any(channels):
        return None
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in given)
    session = OrtSession(model.SerializeToString(), precision="fp32", threads=1, lean=True, optimize=False)
    where = [given.index(found.get(name, name)) for name in outputs]
    for block in BLOCKS:
        shapes: list[Shape] = [()] * len(given)
        for at, values, real in zip(where, expected, channels, strict=True):
            shapes[at] = values.shape if real is None else _padded(values.shape, block)
        arrays = [np.empty(shape, np.float32) for shape in shapes]
        try:
            session.into(arrays)(batch)
        except DeviceError:  # other shapes than these: another block
            continue
        pairs = zip(expected, (arrays[at] for at in where), channels, strict=True)
        if all(_same(plain, own, block if real else None) for plain, own, real in pairs):
            return BlockedSession(session, shapes, where=where, channels=channels, block=block)
    return None


def _padded(shape: Shape, block: int) -> Shape:
    return (shape[0], -(-shape[1] // block) * block, *shape[2:])


def _same(plain: NDArray[np.float32], own: NDArray[np.float32], block: int | None) -> bool:
    """True if ``own`` holds the bits of ``plain``, in blocks of ``block`` channels or as it is."""
    if block is not None:
        pictures, channels, height, width = own.shape
        split = own.reshape(pictures, channels // block, height, width, block).transpose(0, 1, 4, 2, 3)
        own = split.reshape(own.shape)[:, : plain.shape[1]]
    return np.array_equal(own.view(np.uint32), plain.view(np.uint32))


def _values(array: NDArray[np.float32], channels: int | None, block: int) -> NDArray[np.float32]:
    """N×values of a tensor; ``channels`` are those that mean something, None for a plain one."""
    if channels is None or channels == array.shape[1]:
        return array.reshape(len(array), -1)
    blocks = array.reshape(len(array), array.shape[1] // block, -1, block)
    whole, rest = divmod(channels, block)
    parts = (blocks[:, :whole], blocks[:, whole, :, :rest])
    return np.concatenate([part.reshape(len(array), -1) for part in parts], axis=1)

"""A TensorRT that loads and runs engines of a few words, made of the released bindings' own classes and signatures.

An engine file is JSON: its tensors. What it computes: logits are the mean of each colour plane times a fixed matrix.
:mod:`.double` makes the module from NVIDIA's API; here is what its runtime does. What ``execute_async_v3``
puts on the stream is up to ``world.launch``.
"""

from __future__ import annotations

import ctypes
import json
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.tensorrt.double import call_override, create, make

CLASSES = 5
MATRIX = np.random.default_rng(7).normal(size=(3, CLASSES)).astype(np.float32)
_MAGIC = b"double of an engine\n"
_TYPES = {"FLOAT": np.float32, "HALF": np.float16, "INT32": np.int32}


class World:
    """``device``: where memory lies and work is put, a HostDevice unless ``launch`` is replaced.

    ``fails``: the call that fails next (deserialize, context, shape, address, execute); ``says``: what is logged as an
    error before that. ``warns``: a warning by the call that logs it. ``layers``: what a profiler is told of.
    ``alive``: TensorRT's objects.
    ``launch``: gets the context and the stream's handle.
    """

    def __init__(self, device: Any) -> None:
        self.device = device
        self.module: Any = None
        self.leaks: list[str] = []
        self.fails: str | None = None
        self.says: list[str] = []
        self.layers: list[tuple[str, float]] = [("/conv", 0.5), ("reformat", 0.125), ("/conv", 0.25)]
        self.warns: dict[str, str] = {}
        self.alive: set[str] = set()
        self.executed: list[int] = []
        self.loaded = 0
        self.launch: Callable[[Any, int], None] = self.on_host

    def failing(self, what: str, logger: Any) -> bool:
        if what in self.warns:
            call_override(logger, "log", self.module.ILogger.WARNING, self.warns[what])
        if self.fails != what:
            return False
        for text in self.says:
            call_override(logger, "log", self.module.ILogger.ERROR, text)
        return True

    def on_host(self, context: Any, stream: int) -> None:
        """Compute on the CPU what the addresses hold when the stream gets there."""
        assert stream == self.device.stream
        shape, addresses = context._d.shape, dict(context._d.addresses)
        self.device.put("run", lambda: compute(context._d.engine, shape, addresses), 4.0)


def tensorrt(version: str, device: Any) -> types.ModuleType:
    """The binding ``version``; its world is ``module.world``."""
    return make(version, BEHAVIOUR, World(device))


def write_engine(path: Path, **changes: Any) -> Path:
    """An engine for N×3×8×8 float32, batch 1 to 4; ``changes`` replace ``inputs``, ``outputs``, ``profile``.

    ``profile`` has the smallest, the best and the largest batch, or whole shapes.
    """
    content = {
        "inputs": {"images": ["FLOAT", [-1, 3, 8, 8]]},
        "outputs": {"logits": ["FLOAT", [-1, CLASSES]]},
        "profile": [1, 2, 4],
    } | changes
    path.write_text("double of an engine\n" + json.dumps(content))
    return path


def addresses(context: Any) -> dict[str, int]:
    """Where a context's tensors lie."""
    return dict(context._d.addresses)


def shape(context: Any) -> tuple[int, ...]:
    """Shape of its input."""
    return tuple(context._d.shape)


def expected(batch: np.ndarray) -> np.ndarray:
    """What the engine gives for a batch."""
    return batch.astype(np.float32).mean(axis=(2, 3)) @ MATRIX


def compute(engine: Any, shape: tuple[int, ...], addresses: dict[str, int]) -> None:
    content = engine._d.content
    ((name, (kind, _shape)),) = content["inputs"].items()
    batch = _array(addresses[name], shape, _TYPES[kind])
    for output, (dtype, form) in content["outputs"].items():
        sizes = tuple(shape[0] if size < 0 else size for size in form)
        target = _array(addresses[output], sizes, _TYPES[dtype])
        if dtype == "INT32":
            target[...] = expected(batch).argmax(axis=1).reshape(target.shape)
        else:
            target[...] = expected(batch).reshape(target.shape)


def _array(address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_uint8 * nbytes).from_address(address), dtype).reshape(shape)


class _Alive:
    """Says when a TensorRT object is gone: its owner holds the only reference."""

    def __init__(self, world: World, name: str) -> None:
        self._world, self._name = world, name
        world.alive.add(name)

    def __del__(self) -> None:
        self._world.alive.discard(self._name)
        if hasattr(self._world.device, "diary"):
            self._world.device.diary.append(f"no {self._name}")


def _runtime_init(self: Any, logger: Any) -> None:
    self._d.logger = logger
    self._d.alive = _Alive(self._d.world, "runtime")
    # As libnvinfer_lean 10.16.1 and 11.4.0 do without a usable CUDA: no exception, errors in the log.
    self._d.is_null = self._d.world.failing("runtime", logger)


def _deserialize(self: Any, *arguments: Any) -> Any:
    content, world = bytes(arguments[0]), self._d.world
    assert not self._d.is_null, "the real one ends the process with SIGSEGV"
    if world.failing("deserialize", self._d.logger) or _is_refused(self, content):
        return None
    content = json.loads(content.partition(b"\n")[2])
    world.loaded += 1
    engine = create(
        world.module, "ICudaEngine", world=world, content=content, logger=self._d.logger, alive=_Alive(world, "engine")
    )
    engine._d.properties["num_io_tensors"] = len(content["inputs"]) + len(content["outputs"])
    return engine


def _is_refused(runtime: Any, content: bytes) -> bool:
    """Refuse a plan that is not whole or not one, in the words of libnvinfer_lean 11.4.0 and RTX 1.7.1."""
    if not content:
        text = "API Usage Error (Cannot deserialize with an empty memory buffer. In deserializeCudaEngineEx)"
        text = f"IRuntime::deserializeCudaEngine: Error Code 3: {text}"
    elif len(content) < 16:
        text = "[runtime.cpp::readHeader::765] Error Code 2: (Assertion bufferSize >= minBufferSize failed. )"
    elif not content.startswith(_MAGIC):
        found = int.from_bytes(content[:4], "little")
        text = (
            "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (Serialization assertion header.magicTag == "
            "kEXPECTED_MAGIC_TAG failed.Trying to load an engine created with incompatible serialization version "
            f"({found} != {int.from_bytes(b'ftrt', 'little')}). Check that the engine was not created)"
        )
    elif not content.endswith(b"}"):
        text = (
            "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (Serialization assertion plan.header.size == "
            "blobSize failed. In parsePlan at /_src/runtime/dispatch/runtime.cpp:780)"
        )
    else:
        return False
    call_override(runtime._d.logger, "log", runtime._d.world.module.ILogger.ERROR, text)
    return True


def _validity(self: Any, content: bytes) -> tuple[Any, int]:
    """RTX alone is asked; it wants the first bytes and nothing more. At INFO it says why."""
    assert len(content) <= 64
    world = self._d.world
    kinds = world.module.EngineValidity
    text = (
        "The engine has been created with TensorRT-RTX version 1.6.0, but the current runtime is TensorRT-RTX version "
        "1.7.1. Rebuild the engine with the same version of TensorRT-RTX as the current runtime."
    )
    if not content.startswith(_MAGIC):
        text = "The engine header does not conform to the expected format for TensorRT-RTX."
    elif world.fails != "validity":
        return kinds.VALID, 0
    call_override(self._d.logger, "log", world.module.ILogger.INFO, text)
    return kinds.INVALID, 1 if content.startswith(_MAGIC) else 32


def _tensors(engine: Any) -> dict[str, Any]:
    return {**engine._d.content["inputs"], **engine._d.content["outputs"]}


def _mode(self: Any, name: str) -> Any:
    modes = self._d.world.module.TensorIOMode
    return modes.INPUT if name in self._d.content["inputs"] else modes.OUTPUT


def _profile(self: Any, name: str, index: int) -> list[tuple[int, ...]]:
    assert index == 0
    rest = self._d.content["inputs"][name][1][1:]
    return [tuple(item) if isinstance(item, list) else (item, *rest) for item in self._d.content["profile"]]


def _context(self: Any, *_: Any) -> Any:
    world = self._d.world
    if world.failing("context", self._d.logger):
        return None
    first = next(iter(self._d.content["inputs"].values()))[1]
    return create(
        world.module, "IExecutionContext", world=world, engine=self, addresses={}, logger=self._d.logger,
        shape=tuple(first) if min(first) > 0 else None, alive=_Alive(world, "context"),
    )  # fmt: skip


def _set_shape(self: Any, name: str, shape: Any) -> bool:
    if self._d.world.failing("shape", self._d.logger):
        return False
    low, _, high = _profile(self._d.engine, name, 0)
    assert min(self._d.engine._d.content["inputs"][name][1]) < 0, "a fixed shape cannot be set"
    assert all(least <= size <= most for least, size, most in zip(low, shape, high, strict=True))
    self._d.shape = tuple(shape)
    return True


def _set_address(self: Any, name: str, address: int) -> bool:
    if self._d.world.failing("address", self._d.logger):
        return False
    assert name in _tensors(self._d.engine)
    self._d.addresses[name] = address
    return True


def _context_shape(self: Any, name: str) -> tuple[int, ...]:
    shape = _tensors(self._d.engine)[name][1]
    return (self._d.shape[0] if shape[0] == -1 else shape[0], *shape[1:]) if shape else ()


def _execute(self: Any, stream: int) -> bool:
    world = self._d.world
    assert self._d.addresses.keys() == _tensors(self._d.engine).keys(), "a tensor has no address"
    if world.failing("execute", self._d.logger):
        return False
    world.executed.append(self._d.shape[0])
    profiler = self._d.properties.get("profiler")
    for name, ms in world.layers if profiler is not None else ():
        call_override(profiler, "report_layer_time", name, ms)
    world.launch(self, stream)
    return True


BEHAVIOUR: dict[str, Callable[..., Any]] = {
    "Runtime.__init__": _runtime_init,
    "Runtime.deserialize_cuda_engine": _deserialize,
    "Runtime.engine_header_size": lambda self: 64,
    "Runtime.get_engine_validity": _validity,
    "ICudaEngine.get_tensor_name": lambda self, index: list(_tensors(self))[index],
    "ICudaEngine.get_tensor_mode": _mode,
    "ICudaEngine.get_tensor_dtype": lambda self, name: getattr(self._d.world.module.DataType, _tensors(self)[name][0]),
    "ICudaEngine.get_tensor_shape": lambda self, name: tuple(_tensors(self)[name][1]),
    "ICudaEngine.get_tensor_profile_shape": _profile,
    "ICudaEngine.create_execution_context": _context,
    "IExecutionContext.set_input_shape": _set_shape,
    "IExecutionContext.set_tensor_address": _set_address,
    "IExecutionContext.get_tensor_shape": _context_shape,
    "IExecutionContext.execute_async_v3": _execute,
}

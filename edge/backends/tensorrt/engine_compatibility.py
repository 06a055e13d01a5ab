"""Check that an engine may run on this device, and explain a refusal.

Five checks, in the order in which opening an engine makes them:

1. :func:`check_key`: the key of the engine's manifest against this machine, before a byte goes to TensorRT.
2. :func:`start_runtime`: TensorRT's runtime starts here at all.
3. :func:`check_gpu`: the GPU is one of those that the engine was built for.
4. :func:`refusal`: TensorRT refuses the plan. Its log says why, in words that were read from real runtimes: lean and
   dispatch 10.16.1 and 11.4.0, and TensorRT for RTX 1.7.1 (``tests/backends/tensorrt/test_real_runtime.py``).
5. :func:`contract`: the engine is a classifier with one float image input.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from edge.artifacts import Key, Scalar
from edge.backends.interface import ENGINE_SETTINGS, BackendMessage
from edge.backends.tensorrt import log_diagnosis, log_watch
from edge.backends.tensorrt.log_watch import BuildWatch, LogLine
from edge.errors import ArtifactError, DeviceError, EdgeError

_BUILD_HERE = "edge build, on this machine"
_BUILD_AGAIN = "edge build makes it again; edge engine list verifies the existing engines"
_OTHER_TENSORRT = "an engine runs only with the TensorRT and the kind of GPU that built it: run edge build"

# A plan whose size is not the one that its header says, whose sections overlap, or that is shorter than a header.
_DAMAGED = re.compile(
    r"header\.size == blobSize|bufferSize >= minBufferSize|empty memory buffer|cursor < blobSize|e\.offset >= cursor"
    r"|In parsePlan at"
)
# The first four bytes are not those of a plan of this product; the numbers are what was found and what was expected.
_MAGIC = re.compile(r"(?:magicTag(?:Read)? == \w+ failed).*?\((\d+) != (\d+)\)", re.DOTALL)
_NOT_RTX = re.compile(r"does not conform to the expected format for TensorRT-RTX")
_OTHER_VERSION = re.compile(
    r"created with (TensorRT\S*) version (.*?),? but the current runtime is \S+ version ([\d.]*\d)", re.DOTALL
)
_FOREIGN = re.compile(r"(?i)not compatible|incompatible|platform|serialization|stdVersionRead|library version")
_MEMORY = re.compile(r"(?i)out ?of ?memory|cudaError 2\b|NvMapMemAlloc|failed to allocate|bad_alloc")
# The first bytes of plans, by product: seen in plans of TensorRT for RTX 1.7.1, and in what the lean runtime expects.
_SHORTEST = 16
_PRODUCTS = {b"ftrt": "TensorRT", b"vtrt": "TensorRT for RTX"}


# Supported data types of network inputs and outputs, by TensorRT's name, with their sizes.
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
        raise DeviceError(f"the engine has {len(inputs)} inputs ({', '.join(inputs)}); edge requires exactly one")
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
        raise DeviceError(f"{found}; edge requires a float input N×3×H×W of one size")
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


def check_key(key: Key, here: Mapping[str, Scalar], engine: Path) -> list[BackendMessage]:
    """Compare the key of an engine's manifest with this machine.

    Args:
        key: the key in the manifest; empty for an engine without one.
        here: the backend's identity on this machine.
        engine: the file, for messages.

    Returns:
        A warning for each setting that only costs speed: power mode, locked clocks.

    Raises:
        ArtifactError: the engine is for another TensorRT or device; every field that differs is named.
    """
    # Engines of earlier versions of edge lack some fields; None stands for an unreadable value.
    differing = [name for name, value in here.items() if name in key and _differ(name, key[name], value)]
    refused = [name for name in differing if name not in ENGINE_SETTINGS]
    if refused:
        fields = "; ".join(f"{name}: {key[name]} -> {here[name]}" for name in refused)
        raise ArtifactError(f"the engine was built with other inputs ({fields})", where=engine, hint=_hint(refused))
    return [_setting_changed(name, key[name], here[name]) for name in differing]


def _differ(name: str, before: Scalar, now: Scalar) -> bool:
    is_unknown = name in {"multiprocessors", *ENGINE_SETTINGS} and None in (before, now)
    return before != now and not is_unknown


def _hint(fields: Sequence[str]) -> str:
    if "multiprocessors" in fields:
        return (
            f"{_BUILD_HERE}; or switch the GPU back on: sudo nvpmodel -q shows the power mode, and a mode with more of "
            "the GPU runs this engine"
        )
    return _BUILD_HERE


def _setting_changed(name: str, before: Scalar, now: Scalar) -> BackendMessage:
    if name == "power_mode":
        text = f"the engine was built in power mode {before}, but the device is in {now}"
        hint = (
            "edge build measures the kernels in this mode; or sudo nvpmodel -m NUMBER switches back (sudo nvpmodel -q)"
        )
    else:
        was, is_now = ("locked" if value else "not locked" for value in (before, now))
        text = f"the engine was built with clocks {was}, but now they are {is_now}"
        hint = "edge build; or sudo jetson_clocks locks them, sudo jetson_clocks --restore unlocks them"
    return BackendMessage(severity="warning", text=text, hint=hint)


def check_gpu(gpus: str | None, *, sm: str, name: str, engine: Path) -> None:
    """Check that a GPU is one of those for which an engine was built.

    Args:
        gpus: ``SM86+SM89``, ``AMPERE_PLUS``, or anything else for any GPU.
        sm: compute capability of the GPU, such as ``8.7``.
        name: of the GPU, for the message.
        engine: the file, for the message.

    Raises:
        ArtifactError: it is another GPU.
    """
    listed = re.findall(r"SM(\d+)", gpus or "")
    here = sm.replace(".", "")
    fits = here in listed if listed else gpus != "AMPERE_PLUS" or float(sm) >= 8.0
    if not fits:
        raise ArtifactError(
            f"the engine was built for other GPUs (gpus: {gpus} -> SM{here}, {name})",
            where=engine,
            hint="build it again; build.compute_capabilities lists the GPUs (without it: all)",
        )


def start_runtime(binding: Any, logger: Any, watch: BuildWatch) -> Any | None:  # noqa: ANN401
    """Start TensorRT's runtime; return None on failure, with the reason in the log of ``watch``.

    libnvinfer_lean and libnvinfer_dispatch 10.16.1 and 11.4.0 do not raise without a usable CUDA: they give an object
    around a null pointer. Any use of it ends the process, and so does its deletion, so it is never deleted.
    """
    before = len(watch.errors)
    try:
        runtime = binding.Runtime(logger)
    except (TypeError, RuntimeError):
        return None
    if len(watch.errors) > before:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(runtime))
        return None
    return runtime


def refusal(
    what: str, errors: Sequence[LogLine], recent: Sequence[LogLine] = (), *, where: Path, plan: bytes | None = None
) -> EdgeError:
    """Make the error for a plan or a call that TensorRT refuses, from its log.

    Args:
        what: the failed action, such as ``TensorRT cannot load the engine``.
        errors: lines of the log at ERROR and above.
        recent: the newest lines of every severity: TensorRT for RTX logs the reason at INFO.
        where: the engine's file.
        plan: the plan's bytes if loading it failed; None after it was loaded.
    """
    lines = [line.text for line in errors]
    if any(_MEMORY.search(line) for line in lines):
        hint = "close other programs on this device, or set input.batch.max lower and build again"
        return DeviceError(f"{what}: out of GPU memory", where=where, hint=hint)
    if plan is not None and (found := _plan_refused(what, [*lines, *(line.text for line in recent)], plan, where)):
        return found
    if any(rule.fits(line) for rule in log_diagnosis.CUDA_RULES for line in lines):
        return log_diagnosis.as_error(errors, recent, where=str(where))
    if plan is not None and any(_FOREIGN.search(line) for line in lines):
        return DeviceError(f"{what}: {log_watch.one_line(lines[0])}", where=where, hint=_OTHER_TENSORRT)
    if not errors:
        return DeviceError(what, where=where, hint="edge doctor")
    return log_diagnosis.as_error(errors, recent, where=str(where))


def _plan_refused(what: str, lines: Sequence[str], plan: bytes, where: Path) -> EdgeError | None:
    """Return the error for a damaged plan, or one of another product or version; None if no log line matches."""
    if len(plan) < _SHORTEST or any(_DAMAGED.search(line) for line in lines):
        return DeviceError(f"{what}: the file is truncated or was changed", where=where, hint=_BUILD_AGAIN)
    version = next((found for line in lines if (found := _OTHER_VERSION.search(line))), None)
    if version is not None:
        # RTX 1.7.1 writes each number as the character with that code: "\x01.\x06.\x01".
        built = ".".join(str(ord(part)) if len(part) == 1 and part < " " else part for part in version[2].split("."))
        text = f"{what}: it was built with {version[1]} {built}, but {version[3]} is installed"
        return DeviceError(text, where=where, hint=_OTHER_TENSORRT)
    magic = next((found for line in lines if (found := _MAGIC.search(line))), None)
    if magic is None and not any(_NOT_RTX.search(line) for line in lines):
        return None
    product = _PRODUCTS.get(plan[:4])
    if product is None:
        return DeviceError(f"{what}: the file is not a TensorRT engine", where=where, hint=_BUILD_AGAIN)
    return DeviceError(
        f"{what}: it is an engine for {product}, not for the installed product", where=where, hint=_OTHER_TENSORRT
    )

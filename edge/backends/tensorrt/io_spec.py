"""Inputs and outputs of an engine, read from TensorRT's ICudaEngine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec

from edge.backends.cuda import GpuDevice
from edge.errors import ArtifactError, DeviceError

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


def check_gpu(gpus: str | None, device: GpuDevice, engine: Path) -> None:
    """True if ``device`` is one of those that an engine was built for: ``SM86+SM89``, AMPERE_PLUS, or whatever it is.

    Raises:
        ArtifactError: it is not.
    """
    named = re.findall(r"SM(\d+)", gpus or "")
    here = device.sm.replace(".", "")
    fits = here in named if named else gpus != "AMPERE_PLUS" or float(device.sm) >= 8.0
    if not fits:
        raise ArtifactError(
            f"the engine was built for something else (gpus: {gpus} -> SM{here}, {device.name})",
            where=engine,
            hint="build it again: build.compute_capabilities names the GPUs, none means all",
        )

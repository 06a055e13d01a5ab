"""The double of a binding that is installed, the machine behind it, and a table for a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edge.backends.tensorrt.environment import Caps, binding_module
from edge.model import onnx_model
from edge.quantization import calibration_table
from edge.quantization.calibration_table import Table, TrtVersion

NAMES = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")


def world(caps: Caps) -> Any:
    """The machine behind an installed double."""
    return binding_module(caps).world


def table_for(path: Path, *, leave_out: tuple[str, ...] = (), **changes: float) -> Table:
    """A table with a range for every tensor of the model; ``changes`` are ranges by name."""
    names = [name for name in onnx_model.load(path).activations if name not in leave_out]
    ranges = {name: 2.0 + index / 8 for index, name in enumerate(names)} | changes
    return calibration_table.from_ranges(ranges, algorithm="entropy2", trt_version=TrtVersion(8, 6, 1))

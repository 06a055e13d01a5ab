"""The counting loop of calibration, compiled by LLVM (llvmlite) when it is first used.

In Python it would read::

    for x in values:
        counts[BINS + trunc(x * scale) - (1 if x < 0 or x is -0.0 else 0)] += 1

``scale`` is a power of two, so the product is exact. NumPy takes eight times as long for it, cv2.calcHist four times;
numba gives the same loop, for one second and 80 MiB more. Calls run without Python's lock.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edge.calibration.statistics import BINS
from edge.errors import GuestError, require

Values = NDArray[np.float32]
Counts = NDArray[np.int64]

_SOURCE = f"""
define void @count(ptr noalias %values, i64 %n, float %scale, ptr noalias %counts) {{
entry:
  %empty = icmp eq i64 %n, 0
  br i1 %empty, label %done, label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %loop ]
  %at = getelementptr float, ptr %values, i64 %i
  %value = load float, ptr %at
  %bits = bitcast float %value to i32
  %sign = ashr i32 %bits, 31                       ; -1 where the sign bit is set
  %scaled = fmul float %value, %scale
  %step = fptosi float %scaled to i32              ; truncates towards zero
  %side = add i32 %step, %sign
  %bin = add i32 %side, {BINS}
  %column = zext i32 %bin to i64
  %slot = getelementptr i64, ptr %counts, i64 %column
  %old = load i64, ptr %slot
  %new = add i64 %old, 1
  store i64 %new, ptr %slot
  %next = add i64 %i, 1
  %more = icmp ult i64 %next, %n
  br i1 %more, label %loop, label %done
done:
  ret void
}}
"""


def count(values: Values, scale: float, counts: Counts) -> None:
    """Add the bins of ``values`` (contiguous, finite, |x|·scale < BINS) to ``counts`` (2·BINS).

    Raises:
        GuestError: llvmlite is not installed, or cannot compile for this processor.
        ValueError: an array of another type or layout.
    """
    fits = values.dtype == np.float32 and counts.dtype == np.int64 and counts.shape == (2 * BINS,)
    if not (fits and values.flags.c_contiguous and counts.flags.c_contiguous and counts.flags.writeable):
        raise ValueError("values must be contiguous float32, counts contiguous int64 of 2·BINS")
    _compiled()(values.ctypes.data, values.size, scale, counts.ctypes.data)


@functools.cache
def _compiled() -> Callable[[int, int, float, int], None]:
    llvm = require("llvmlite.binding")
    try:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        module = llvm.parse_assembly(_SOURCE)
        machine = llvm.Target.from_default_triple().create_target_machine(cpu=llvm.get_host_cpu_name(), opt=3)
        engine = llvm.create_mcjit_compiler(module, machine)
        engine.finalize_object()
    except RuntimeError as exc:
        raise GuestError(f"llvmlite cannot compile for this processor: {exc}", hint="pip install -U llvmlite") from exc
    # The machine code lives as long as the engine does: for the rest of the process.
    _KEPT.append(engine)
    kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p)
    return kind(engine.get_function_address("count"))


_KEPT: list[object] = []

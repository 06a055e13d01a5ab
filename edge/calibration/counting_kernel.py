"""The counting loop of calibration, compiled by LLVM (llvmlite) when it is first used.

In Python it would read::

    for x in values:
        if abs(x) >= limit:
            break
        low, high = min(low, x), max(high, x)
        counts[BINS + trunc(x * scale) - (1 if x < 0 or x is -0.0 else 0)] += 1

``scale`` is a power of two, so the product is exact. Bins are worked out for a block of values at a time, in vectors
that LLVM turns into whatever the processor has; only the additions are one after the other. NumPy takes ten times as
long, cv2.calcHist five times; numba gives the same loop, for one second and 80 MiB more. Calls run without Python's
lock.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.errors import MissingDependencyError, require
from edge.quantization import BINS

Values = NDArray[np.float32]
Counts = NDArray[np.int64]

# Values whose bins are worked out at a time: their indices stay in the first-level cache.
_BLOCK = 512
_LANES = 8


def count(values: Values, counts: Counts | None, *, exponent: int, seen: list[float]) -> int:
    """Add the bins of ``values`` (contiguous) over (-2^exponent, 2^exponent) to ``counts`` (2·BINS).

    ``seen`` is the lowest and the highest value so far, and is brought up to date; without ``counts`` that is all.
    Stops in front of the first block with a value outside the range, or with NaN; returns how many values are done.

    Raises:
        MissingDependencyError: llvmlite is not installed, or cannot compile for this processor.
        ValueError: an array of another type or layout.
    """
    if values.dtype != np.float32 or not values.flags.c_contiguous:
        raise ValueError("values must be contiguous float32")
    target = None
    if counts is not None:
        fits = counts.dtype == np.int64 and counts.shape == (2 * BINS,)
        if not (fits and counts.flags.c_contiguous and counts.flags.writeable):
            raise ValueError("counts must be contiguous int64 of 2·BINS")
        target = counts.ctypes.data
    ends = (ctypes.c_float * 2)(*seen)
    # As an integer: 2^128, the end of float32, is what infinity looks like.
    limit = (exponent + 127) << 23
    done = _compiled()(values.ctypes.data, values.size, BINS * 2.0**-exponent, limit, target, ends)
    seen[:] = ends
    return done


def prepare() -> None:
    """Compile the loop now; ahead of time, next to other work.

    Raises:
        MissingDependencyError: as :func:`count`.
    """
    _compiled()


@functools.cache
def _compiled() -> Callable[..., int]:
    llvm = require("llvmlite.binding")
    try:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        module = llvm.parse_assembly(_SOURCE)
        machine = llvm.Target.from_default_triple().create_target_machine(
            cpu=llvm.get_host_cpu_name(), features=_features(llvm), opt=3
        )
        engine = llvm.create_mcjit_compiler(module, machine)
        engine.finalize_object()
    except RuntimeError as exc:
        raise MissingDependencyError(
            f"llvmlite cannot compile for this processor: {exc}", hint="pip install -U llvmlite"
        ) from exc
    # The machine code lives as long as the engine does: for the rest of the process.
    _KEPT.append(engine)
    pointer = ctypes.c_void_p
    kind = ctypes.CFUNCTYPE(ctypes.c_int64, pointer, ctypes.c_int64, ctypes.c_float, ctypes.c_uint32, pointer, pointer)
    return kind(engine.get_function_address("count"))


_KEPT: list[object] = []


def _features(llvm: Any) -> str:  # noqa: ANN401 - the module
    """What this processor can do: a virtual machine may hide some of what its name promises."""
    with contextlib.suppress(RuntimeError):
        return str(llvm.get_host_cpu_features().flatten())
    return ""


# The loop in LLVM's assembly: block by block, then the last few values one by one.
_FLOATS, _INTS = f"<{_LANES} x float>", f"<{_LANES} x i32>"


def _everywhere(value: int) -> str:
    return "<" + ", ".join([f"i32 {value}"] * _LANES) + ">"


def _splat(name: str, value: str) -> str:
    return f"""
  %{name}.one = insertelement {_FLOATS} poison, float {value}, i32 0
  %{name} = shufflevector {_FLOATS} %{name}.one, {_FLOATS} poison, {_INTS} zeroinitializer"""


def _addition(n: int) -> str:
    """One more value in its bin; the eight of a turn are written out."""
    return f"""
  %k{n} = add i64 %k, {n}
  %from{n} = getelementptr i32, ptr %bins, i64 %k{n}
  %bin{n} = load i32, ptr %from{n}
  %column{n} = zext i32 %bin{n} to i64
  %slot{n} = getelementptr i64, ptr %counts, i64 %column{n}
  %old{n} = load i64, ptr %slot{n}
  %new{n} = add i64 %old{n}, 1
  store i64 %new{n}, ptr %slot{n}"""


_SOURCE = f"""
declare i32 @llvm.vector.reduce.umax.v{_LANES}i32({_INTS})
declare {_INTS} @llvm.umax.v{_LANES}i32({_INTS}, {_INTS})
declare float @llvm.vector.reduce.fmin.v{_LANES}f32({_FLOATS})
declare float @llvm.vector.reduce.fmax.v{_LANES}f32({_FLOATS})

define i64 @count(ptr noalias %values, i64 %n, float %scale, i32 %limit, ptr noalias %counts, ptr noalias %ends) {{
entry:
  %bins = alloca [{_BLOCK} x i32], align 64
  %high.at = getelementptr float, ptr %ends, i64 1
  %low.given = load float, ptr %ends
  %high.given = load float, ptr %high.at{_splat("low.start", "%low.given")}{_splat("high.start", "%high.given")}
{_splat("scales", "%scale")}
  %ranges.only = icmp eq ptr %counts, null
  br label %block

block:
  %i = phi i64 [ 0, %entry ], [ %i.next, %counted ]
  %low.block = phi {_FLOATS} [ %low.start, %entry ], [ %low.next, %counted ]
  %high.block = phi {_FLOATS} [ %high.start, %entry ], [ %high.next, %counted ]
  %rest = sub i64 %n, %i
  %whole = icmp ult i64 %rest, {_BLOCK}
  %most = select i1 %whole, i64 %rest, i64 {_BLOCK}
  %length = and i64 %most, -{_LANES}
  %none = icmp eq i64 %length, 0
  br i1 %none, label %blocks.done, label %vector

vector:
  %j = phi i64 [ 0, %block ], [ %j.next, %vector ]
  %low = phi {_FLOATS} [ %low.block, %block ], [ %low.next, %vector ]
  %high = phi {_FLOATS} [ %high.block, %block ], [ %high.next, %vector ]
  %most.bits = phi {_INTS} [ zeroinitializer, %block ], [ %most.next, %vector ]
  %at = add i64 %i, %j
  %from = getelementptr float, ptr %values, i64 %at
  %value = load {_FLOATS}, ptr %from, align 4
  %is.low = fcmp olt {_FLOATS} %value, %low
  %low.next = select <{_LANES} x i1> %is.low, {_FLOATS} %value, {_FLOATS} %low
  %is.high = fcmp ogt {_FLOATS} %value, %high
  %high.next = select <{_LANES} x i1> %is.high, {_FLOATS} %value, {_FLOATS} %high
  %bits = bitcast {_FLOATS} %value to {_INTS}
  %size = and {_INTS} %bits, {_everywhere(0x7FFFFFFF)}
  %most.next = call {_INTS} @llvm.umax.v{_LANES}i32({_INTS} %most.bits, {_INTS} %size)
  %sign = ashr {_INTS} %bits, {_everywhere(31)}          ; -1 where the sign bit is set
  %scaled = fmul {_FLOATS} %value, %scales
  %step = fptosi {_FLOATS} %scaled to {_INTS}            ; truncates towards zero
  %side = add {_INTS} %step, %sign
  %bin = add {_INTS} %side, {_everywhere(BINS)}
  %to = getelementptr i32, ptr %bins, i64 %j
  store {_INTS} %bin, ptr %to, align 4
  %j.next = add i64 %j, {_LANES}
  %j.more = icmp ult i64 %j.next, %length
  br i1 %j.more, label %vector, label %check

check:
  %largest = call i32 @llvm.vector.reduce.umax.v{_LANES}i32({_INTS} %most.next)
  %outside = icmp uge i32 %largest, %limit
  br i1 %outside, label %ends.up, label %inside
inside:
  br i1 %ranges.only, label %counted, label %scatter

scatter:
  %k = phi i64 [ 0, %inside ], [ %k.next, %scatter ]{"".join(_addition(n) for n in range(_LANES))}
  %k.next = add i64 %k, {_LANES}
  %k.more = icmp ult i64 %k.next, %length
  br i1 %k.more, label %scatter, label %counted
counted:
  %i.next = add i64 %i, %length
  br label %block

blocks.done:
  br label %ends.up
ends.up:
  %stopped = phi i1 [ true, %check ], [ false, %blocks.done ]
  %low.one = call nnan float @llvm.vector.reduce.fmin.v{_LANES}f32({_FLOATS} %low.block)
  %high.one = call nnan float @llvm.vector.reduce.fmax.v{_LANES}f32({_FLOATS} %high.block)
  store float %low.one, ptr %ends
  store float %high.one, ptr %high.at
  %nothing.left = icmp eq i64 %i, %n
  %over = or i1 %stopped, %nothing.left
  br i1 %over, label %done, label %one

one:
  %o = phi i64 [ %i, %ends.up ], [ %o.next, %one.counted ]
  %o.from = getelementptr float, ptr %values, i64 %o
  %o.value = load float, ptr %o.from
  %o.bits = bitcast float %o.value to i32
  %o.size = and i32 %o.bits, 2147483647
  %o.outside = icmp uge i32 %o.size, %limit
  br i1 %o.outside, label %done, label %one.inside
one.inside:
  %o.low = load float, ptr %ends
  %o.high = load float, ptr %high.at
  %o.is.low = fcmp olt float %o.value, %o.low
  %o.low.next = select i1 %o.is.low, float %o.value, float %o.low
  %o.is.high = fcmp ogt float %o.value, %o.high
  %o.high.next = select i1 %o.is.high, float %o.value, float %o.high
  store float %o.low.next, ptr %ends
  store float %o.high.next, ptr %high.at
  br i1 %ranges.only, label %one.counted, label %one.add
one.add:
  %o.sign = ashr i32 %o.bits, 31
  %o.scaled = fmul float %o.value, %scale
  %o.step = fptosi float %o.scaled to i32
  %o.side = add i32 %o.step, %o.sign
  %o.bin = add i32 %o.side, {BINS}
  %o.column = zext i32 %o.bin to i64
  %o.slot = getelementptr i64, ptr %counts, i64 %o.column
  %o.old = load i64, ptr %o.slot
  %o.new = add i64 %o.old, 1
  store i64 %o.new, ptr %o.slot
  br label %one.counted
one.counted:
  %o.next = add i64 %o, 1
  %o.more = icmp ult i64 %o.next, %n
  br i1 %o.more, label %one, label %done

done:
  %result = phi i64 [ %i, %ends.up ], [ %o, %one ], [ %o.next, %one.counted ]
  ret i64 %result
}}
"""

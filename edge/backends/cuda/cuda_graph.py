"""CUDA graphs: the few driver calls that PyCUDA (2026.1) does not offer, through ctypes.

Signatures are those of ``cuda.h``; every driver since CUDA 11.4 has them. A handle is PyCUDA's
``stream.handle``. The caller makes the context current with PyCUDA.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from ctypes import POINTER, byref, c_char_p, c_int, c_uint, c_ulonglong, c_void_p

from edge.errors import DeviceError

# CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: another thread's allocation does not spoil the capture.
_THREAD_LOCAL = 1
_FUNCTIONS = {
    "cuStreamBeginCapture_v2": (c_void_p, c_uint),
    "cuStreamEndCapture": (c_void_p, POINTER(c_void_p)),
    "cuGraphInstantiateWithFlags": (POINTER(c_void_p), c_void_p, c_ulonglong),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphExecDestroy": (c_void_p,),
    "cuGraphDestroy": (c_void_p,),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
}


class CapturedGraph:
    """An instantiated graph, bound to its stream."""

    def __init__(self, library: ctypes.CDLL, executable: c_void_p, stream: int) -> None:
        self._library = library
        self._executable: c_void_p | None = executable
        self._launch = library.cuGraphLaunch
        self._stream = c_void_p(stream)

    def launch(self) -> None:
        """Launch the graph on its stream."""
        if self._executable is None:
            raise DeviceError("the CUDA graph was freed")
        status = self._launch(self._executable, self._stream)
        if status:
            _check(self._library, status, "cuGraphLaunch")

    def free(self) -> None:
        """Release it."""
        executable, self._executable = self._executable, None
        if executable is not None:
            self._library.cuGraphExecDestroy(executable)


def capture(stream: int, work: Callable[[], None], library: str = "libcuda.so.1") -> CapturedGraph:
    """Capture the work that ``work`` enqueues on ``stream``, without running it.

    ``library`` is the driver.

    Raises:
        DeviceError: CUDA cannot capture it, or ``work`` raised it. The capture always ends, also after an exception.
    """
    cuda = _library(library)
    _check(cuda, cuda.cuStreamBeginCapture_v2(stream, _THREAD_LOCAL), "cuStreamBeginCapture")
    graph = c_void_p()
    try:
        work()
    except BaseException:
        cuda.cuStreamEndCapture(stream, byref(graph))
        _destroy(cuda, graph)
        raise
    status = cuda.cuStreamEndCapture(stream, byref(graph))
    try:
        _check(cuda, status, "cuStreamEndCapture")
        executable = c_void_p()
        _check(cuda, cuda.cuGraphInstantiateWithFlags(byref(executable), graph, 0), "cuGraphInstantiate")
    finally:
        _destroy(cuda, graph)
    return CapturedGraph(cuda, executable, stream)


def _destroy(library: ctypes.CDLL, graph: c_void_p) -> None:
    if graph.value:
        library.cuGraphDestroy(graph)


def _check(library: ctypes.CDLL, status: int, call: str) -> None:
    if status:
        name = c_char_p()
        library.cuGetErrorName(status, byref(name))
        raise DeviceError(f"{call} failed: {(name.value or b'error').decode()} ({status})")


@functools.lru_cache(maxsize=1)
def _library(path: str) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(path)
        for name, arguments in _FUNCTIONS.items():
            function = getattr(library, name)
            function.argtypes = arguments
            function.restype = c_int
    except (OSError, AttributeError) as exc:
        raise DeviceError(f"CUDA graphs need {path} of CUDA 11.4 or newer: {exc}") from exc
    return library

"""``pycuda.driver`` in ordinary memory, as far as edge's CUDA room uses it: addresses are those of the process.

Copied into a folder on ``sys.path`` by :mod:`site_double`. ``settings.json`` next to the package says what fails:
``no_driver`` (a message of the dynamic linker), ``no_gpu``, ``gpus``, ``memory`` (bytes that may be allocated),
``integrated``. Calls that CUDA accepts and edge must not make are assertions: a blocking stream, work on the default
stream, the device address of memory that is not mapped.
"""

import ctypes
import json
import sys
from pathlib import Path

import numpy as np

SETTINGS = json.loads((Path(__file__).resolve().parents[1] / "settings.json").read_text()).get("cuda", {})
if SETTINGS.get("no_driver"):
    raise ImportError(SETTINGS["no_driver"])
LIVE = {}
# The streams of all copies, in order.
COPIES = []
# How many contexts are pushed. edge keeps a device's context, and with it a double that was replaced meanwhile.
PUSHED = sys.__dict__.setdefault("_pycuda_double_pushed", [0])


class Error(Exception):
    """CUDA's errors."""


class MemoryError(Error):  # noqa: A001
    """Out of memory."""


class LaunchError(Error):
    """A kernel failed."""


class CompileError(Error):
    """nvcc failed."""


class device_attribute:
    INTEGRATED = "INTEGRATED"
    CAN_MAP_HOST_MEMORY = "CAN_MAP_HOST_MEMORY"


class host_alloc_flags:
    DEVICEMAP = 2


def init():
    if SETTINGS.get("no_gpu"):
        raise Error("cuInit failed: no CUDA-capable device is detected")


def _take(size):
    if sum(LIVE.values()) + size > SETTINGS.get("memory", 1 << 40):
        raise MemoryError("cuMemAlloc failed: out of memory")


class Context:
    def push(self):
        PUSHED[0] += 1

    @staticmethod
    def pop():
        assert PUSHED[0], "no context is current"
        PUSHED[0] -= 1


class Device:
    def __init__(self, ordinal):
        assert 0 <= ordinal < self.count()

    @staticmethod
    def count():
        return SETTINGS.get("gpus", 1)

    def name(self):
        return "a GPU in ordinary memory"

    def compute_capability(self):
        return (8, 7)

    def get_attribute(self, attribute):
        return 1 if attribute == device_attribute.CAN_MAP_HOST_MEMORY else SETTINGS.get("integrated", 1)

    def retain_primary_context(self):
        return Context()


class Stream:
    # CUDA's default stream: a driver that is really here refuses to capture it, and reads no memory behind it.
    handle = 0

    def __init__(self, flags=0):
        assert flags == 1, "a blocking stream waits for the work of every other library"
        self.waited_for = 0

    def synchronize(self):
        assert PUSHED[0]
        self.waited_for += 1

    def wait_for_event(self, _event):
        assert PUSHED[0]


class _Host:
    def __init__(self, size, *, is_mapped):
        self.memory = np.zeros(size, np.uint8)
        self.__array_interface__ = self.memory.__array_interface__
        self.is_mapped = is_mapped

    def get_device_pointer(self):
        assert self.is_mapped, "cuMemHostGetDevicePointer failed: invalid argument"
        return self.memory.ctypes.data


def pagelocked_zeros(size, _dtype, mem_flags=0):
    assert mem_flags in {0, host_alloc_flags.DEVICEMAP}
    _take(size)
    return np.asarray(_Host(size, is_mapped=mem_flags == host_alloc_flags.DEVICEMAP))


class _Allocation:
    def __init__(self, size):
        _take(size)
        self.memory = np.full(size, 0xFF, np.uint8)
        LIVE[int(self)] = size

    def __int__(self):
        return self.memory.ctypes.data

    def free(self):
        del LIVE[int(self)]


def mem_alloc(size):
    assert PUSHED[0]
    return _Allocation(size)


def _put(stream):
    assert PUSHED[0]
    assert stream is not None, "the default stream: it waits for all others"
    COPIES.append(stream)


def memcpy_htod_async(address, array, stream=None):
    _put(stream)
    ctypes.memmove(address, array.ctypes.data, array.nbytes)


def memcpy_dtoh_async(array, address, stream=None):
    _put(stream)
    ctypes.memmove(array.ctypes.data, address, array.nbytes)


class Event:
    def record(self, _stream):
        assert PUSHED[0]

    def synchronize(self):
        assert PUSHED[0]

    def time_till(self, _other):
        return 0.25


def mem_get_info():
    return 1 << 30, 1 << 31

"""The compute capability of the first GPU, from the driver alone: no context, no PyCUDA, no memory on the device.

The functions and the numbers of the attributes are those of ``cuda.h``; they are in every driver since CUDA 5.
"""

from __future__ import annotations

import ctypes
import functools

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR


@functools.cache
def compute_capability(library: str = "libcuda.so.1") -> str | None:
    """Such as ``8.9``; None where there is no driver, no GPU, or a driver that does not start."""
    try:
        cuda = ctypes.CDLL(library)
        names = (cuda.cuInit, cuda.cuDeviceGet, cuda.cuDeviceGetAttribute)
    except (OSError, AttributeError):
        return None
    init, get, attribute = names
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    failed = (
        init(0)
        or get(ctypes.byref(device), 0)
        or attribute(ctypes.byref(major), _MAJOR, device)
        or attribute(ctypes.byref(minor), _MINOR, device)
    )
    return None if failed else f"{major.value}.{minor.value}"

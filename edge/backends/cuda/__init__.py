"""CUDA through PyCUDA (imported only by :mod:`.driver`), and the preprocessing kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge import lazy_exports

if TYPE_CHECKING:
    from edge.backends.cuda.driver import gpu_properties, open_device
    from edge.backends.cuda.gpu_preprocessor import GpuPreprocessor
    from edge.backends.cuda.protocols import DeviceMemory, GpuDevice, Graph, HostMemory
else:
    __getattr__ = lazy_exports(
        __name__,
        {
            "driver": ["gpu_properties", "open_device"],
            "gpu_preprocessor": ["GpuPreprocessor"],
            "protocols": ["DeviceMemory", "GpuDevice", "Graph", "HostMemory"],
        },
    )

__all__ = ["DeviceMemory", "GpuDevice", "GpuPreprocessor", "Graph", "HostMemory", "gpu_properties", "open_device"]

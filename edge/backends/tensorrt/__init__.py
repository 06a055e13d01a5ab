"""TensorRT as a backend: builds, calibrators, timing caches, inference. Only :mod:`.caps` imports ``tensorrt``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge import lazy_exports

if TYPE_CHECKING:
    from edge.backends.tensorrt.backend import TensorRT
    from edge.backends.tensorrt.builder import Built
    from edge.backends.tensorrt.calibrator import Feed
    from edge.backends.tensorrt.timing_cache import TimingCacheEntry
else:
    __getattr__ = lazy_exports(
        __name__,
        {
            "backend": ["TensorRT"],
            "builder": ["Built"],
            "calibrator": ["Feed"],
            "timing_cache": ["TimingCacheEntry"],
        },
    )

__all__ = ["Built", "Feed", "TensorRT", "TimingCacheEntry", "layer_report", "rtx_plan", "timing_cache"]

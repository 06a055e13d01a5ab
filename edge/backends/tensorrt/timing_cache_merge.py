"""Merging timing caches: TensorRT alone can, so a builder is made for it, which needs a GPU."""

from __future__ import annotations

from collections.abc import Sequence

from edge.backends.tensorrt import build_monitor, log_diagnosis
from edge.backends.tensorrt.caps import Caps, binding_module
from edge.errors import ArtifactError, DeviceError


def combine(contents: Sequence[bytes], caps: Caps) -> bytes:
    """All entries of ``contents`` in one serialized cache; where two disagree, the first one's is kept.

    Raises:
        ArtifactError: TensorRT refuses one of them (which one is said): another version, another device, or damaged.
        DeviceError: this TensorRT keeps no timing caches, or no builder can be made here.
    """
    if not caps.timing_cache:
        raise DeviceError(f"timing caches have no effect on {caps.title}, so there is nothing to merge")
    binding = binding_module(caps)
    watch = build_monitor.BuildWatch()
    with build_monitor.watching(binding, watch) as logger:
        try:
            config = binding.Builder(logger).create_builder_config()
        except (TypeError, RuntimeError) as exc:
            watch.raise_kept()
            raise log_diagnosis.as_error(watch.errors, watch.recent) from exc
        whole = config.create_timing_cache(b"")
        # An empty cache belongs to no device until it is attached, so the first content is merged like the others.
        config.set_timing_cache(whole, ignore_mismatch=False)
        for number, content in enumerate(contents, start=1):
            part = config.create_timing_cache(content)
            if part is None or not whole.combine(part, ignore_mismatch=False):
                reported = f": {watch.errors[-1].text}" if watch.errors else ""
                raise ArtifactError(
                    f"{caps.title} refuses the timing cache number {number} of {len(contents)}{reported}",
                    hint="it is of another TensorRT or another kind of GPU, or damaged",
                )
        watch.raise_kept()
        return bytes(whole.serialize())

"""The double's timing cache: which kernels were measured, for whom, and how often it was asked in vain.

Laid out as JSON behind the magic. The lines that it logs are those of a real build log of 8.6.1. What a kernel is
called by depends on its kind, its shapes without the batch, the batch that the engine is optimized for, and the
precision: as with the real one, a larger batch range is no reason to measure again, another optimum is.
"""

from __future__ import annotations

import json
from typing import Any

from tests.support.tensorrt.double import create

MAGIC = b"ptrt"


class Kernels:
    """What is behind an ITimingCache; says what it has served when it goes."""

    def __init__(self, world: Any, logger: Any, owner: str | None, known: list[str]) -> None:
        self.world, self.logger = world, logger
        self.owner, self.known = owner, known
        self.hits = 0

    def ask(self, key: str, *, only: bool) -> bool:
        """Whether the build may go on: the kernel is known, or is measured now."""
        if key in self.known:
            self.hits += 1
            return True
        if not only:
            self.known.append(key)
        return not only

    def __del__(self) -> None:
        text = f"Deleting timing cache: {len(self.known)} entries, served {self.hits} hits since creation."
        self.world.log(self.logger, "VERBOSE", text)


def content(owner: str, known: list[str]) -> bytes:
    """A serialized cache."""
    return MAGIC + json.dumps({"owner": owner, "known": known}).encode()


def create_cache(config: Any, given: Any) -> Any:
    world, logger, data = config._d.world, config._d.logger, bytes(given)
    owner, known = None, []
    if data:
        try:
            said = json.loads(data.removeprefix(MAGIC))
            owner, known = said["owner"], said["known"]
        except ValueError:
            if world.refuses_by_return:
                text = "Error Code 1: Serialization (Serialization assertion magicTagRead == kMAGIC_TAG failed.)"
                world.log(logger, "ERROR", text)
                return None
            # Seen of TensorRT for RTX 1.7.1: an empty cache, and only the log says so.
            world.log(logger, "WARNING", "The timing cache will not be used!")
            world.log(logger, "WARNING", "Failed to deserialize timing cache. Returning an empty timing cache.")
    return create(world.module, "ITimingCache", kernels=Kernels(world, logger, owner, known), world=world)


def set_cache(config: Any, cache: Any, ignore_mismatch: bool) -> bool:
    assert ignore_mismatch is False, "a cache of another device must not be forced on this one"
    world, kernels = config._d.world, cache._d.kernels
    if world.refuses_cache and kernels.known:
        return False
    if kernels.owner not in {None, world.owner}:
        text = f"Timing cache header mismatch: Incoming ITimingCache: UUID = GPU-1, commit = {kernels.owner}"
        world.log(
            config._d.logger, "WARNING", text if not world.refuses_by_return else "The timing cache will not be used!"
        )
        if world.refuses_by_return:
            return False
        kernels.known.clear()
    kernels.owner = world.owner
    config._d.cache = cache
    return True


def combine(cache: Any, other: Any, ignore_mismatch: bool) -> bool:
    assert ignore_mismatch is False
    mine, theirs = cache._d.kernels, other._d.kernels
    if theirs.owner not in {None, mine.owner}:
        mine.world.log(mine.logger, "ERROR", "the timing cache is of another device")
        return False
    mine.known += [key for key in theirs.known if key not in mine.known]
    return True


def serialize(cache: Any) -> bytes:
    kernels = cache._d.kernels
    say = kernels.world.log
    say(kernels.logger, "VERBOSE", "Serializing timing cache. UUID = GPU-0000, commit ID = 0000")
    say(kernels.logger, "VERBOSE", f"Serialized {len(kernels.known)} timing cache entries")
    return content(kernels.owner, kernels.known)


def query_keys(cache: Any) -> list[Any]:
    kernels = cache._d.kernels
    return [create(kernels.world.module, "TimingCacheKey", key=key) for key in kernels.known]


def kernel_names(network: Any, config: Any, flags: set[str]) -> list[str]:
    """What the builder would have to measure."""
    profiles = config._d.profiles
    given = network._d.inputs[0]
    best = profiles[0]._d.shapes[given.name][1] if profiles else given._d.shape
    precision = "+".join(sorted(flags & {"FP16", "INT8", "TF32"}))
    names = []
    for layer in network._d.layers:
        if layer._d.kind != "CONSTANT":
            types = ",".join(item._d.dtype for item in (*layer._d.inputs, *layer._d.outputs))
            names.append(f"{layer._d.kind}:{layer._d.name}:{types}:{best[0]}:{precision}")
    return names


BEHAVIOUR = {
    "IBuilderConfig.create_timing_cache": create_cache,
    "IBuilderConfig.set_timing_cache": set_cache,
    "IBuilderConfig.get_timing_cache": lambda self: self._d.cache,
    "ITimingCache.combine": combine,
    "ITimingCache.queryKeys": query_keys,
}

"""The timing cache of one build: attached before it, counted before and after, taken out again.

How many entries it has comes from its keys (TensorRT 10.8 and later) or from TensorRT's own log; how many lookups it
answered from the log alone, which TensorRT writes when the cache is freed. Both lines were seen in a log of 8.6.1. What
is not said is None: entries that a build added are kernels that it had to measure, so misses are known without hits.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from edge.artifacts import store
from edge.backends.tensorrt import builder_config
from edge.backends.tensorrt.build_monitor import BuildWatch
from edge.backends.tensorrt.caps import Caps

Use = Literal["used", "started", "refused", "off", "no effect"]


class TimingReport(msgspec.Struct, frozen=True, kw_only=True):
    """The use of the timing cache by a build.

    ``used``: it began with one. ``started``: it began with an empty one. ``refused``: TensorRT did not take the one
    that was there. ``off``: the profile or the command line wanted none. ``no effect``: this product has none.

    ``hits`` are lookups that the cache answered; a layer that occurs twice in one network is a hit as well.
    """

    use: Use
    entries_before: int | None = None
    entries_after: int | None = None
    misses: int | None = None
    hits: int | None = None
    bytes_before: int | None = None
    bytes_after: int | None = None
    sha256_before: str | None = None
    sha256_after: str | None = None
    not_counted: str | None = None


class CacheInUse:
    """A timing cache that is attached to a builder's configuration."""

    def __init__(self, config: Any, content: bytes | None, *, caps: Caps, watch: BuildWatch) -> None:  # noqa: ANN401
        self._config = config
        self._caps = caps
        self._watch = watch
        self._before = content
        self._after: bytes | None = None
        self._cache, accepted = builder_config.attach_timing_cache(config, content)
        self.refused = content is not None and not accepted
        self._entries_before = 0 if content is None or self.refused else self._entries(self._cache)
        self._entries_after: int | None = None

    def finish(self) -> bytes | None:
        """The serialized cache after the build; the cache itself is let go, whereupon TensorRT says what it served."""
        after = self._config.get_timing_cache()
        if after is not None:
            self._after = self._serialized(after)
            self._entries_after = self._entries(after)
        del after
        self._cache = self._config = None
        return self._after

    def report(self) -> TimingReport:
        """Report the use, once everything that belongs to the build is freed."""
        before, after = self._entries_before, self._entries_after
        use: Use = "refused" if self.refused else ("used" if self._before else "started")
        kept = None if self.refused else self._before
        unknown = [
            word
            for word, value in (("entries", after if before is not None else None), ("hits", self._watch.cache_hits))
            if value is None
        ]
        return TimingReport(
            use=use,
            entries_before=before,
            entries_after=after,
            misses=None if before is None or after is None else max(after - before, 0),
            hits=self._watch.cache_hits,
            bytes_before=None if kept is None else len(kept),
            bytes_after=None if self._after is None else len(self._after),
            sha256_before=None if kept is None else store.sha256_bytes(kept),
            sha256_after=None if self._after is None else store.sha256_bytes(self._after),
            not_counted=f"{self._caps.title} does not say {' and '.join(unknown)}" if unknown else None,
        )

    def _entries(self, cache: Any) -> int | None:  # noqa: ANN401
        if self._caps.timing_cache_keys:
            keys = cache.queryKeys()
            if keys:
                return len(keys)
        # Serializing makes TensorRT log the number; an empty list of keys may only mean that it keeps them to itself.
        self._watch.cache_entries = None
        self._serialized(cache)
        return self._watch.cache_entries

    def _serialized(self, cache: Any) -> bytes:  # noqa: ANN401
        return bytes(cache.serialize())

"""Timing caches: one per TensorRT, device, power mode, clocks and CUDA, in ``calib_cache/timing``.

A timing cache contains the run time of each kernel on one device. NVIDIA allows its reuse "only within the same
hardware/software configuration (CUDA/cuDNN/TensorRT versions, device model and clock frequency)", so all of that is the
key, and each key has its own file. A file that does not match its manifest is set aside, reported, and never used; the
build then measures again. Writing means read, merge and write under a lock, so that concurrent builds lose nothing.

Only TensorRT can merge two caches (``ITimingCache::combine``), in the process of the build.
"""

from __future__ import annotations

import contextlib
import re
import struct
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from edge.artifacts import Key, Scalar, store
from edge.backends.tensorrt import log_diagnosis, log_watch
from edge.backends.tensorrt.environment import Caps, Environment, binding_module
from edge.backends.tensorrt.log_watch import BuildWatch
from edge.errors import ArtifactError, DeviceError, EdgeError, StoreError, os_error
from edge.events import Listener, Note, ignore_events

MAGIC = b"ptrt"
_PROLOGUE = 24  # magic, padding, format, length of the rest
# Mark of a sequence, its length, mark of its elements' type twice over, and the length again.
_SEQUENCE = struct.Struct("<IQHIQ")
_SEQUENCE_MARKS = (0x18018, 0x8001, 0x1800C)
_COUNT = struct.Struct("<IQ")
_COUNT_MARK = 0x18008
_MOST_ENTRIES = 1 << 32


class TimingCacheHeader(msgspec.Struct, frozen=True, kw_only=True):
    """The first bytes of a timing cache; None for fields that are not laid out as in TensorRT 8.6.1.

    ``whole``: the length in the header matches the file; None if no length was found.
    """

    format: int | None = None
    whole: bool | None = None
    gpu_uuid: str | None = None
    commit: str | None = None
    entries: int | None = None


def timing_key(found: Caps, here: Environment) -> dict[str, Scalar]:
    """Return the key of a timing cache: everything that its times depend on."""
    device = here.device
    return {
        "tensorrt": found.version,
        "package": here.package,
        "module": device.module,
        "gpu": here.gpu,
        "sm": here.sm,
        "multiprocessors": here.multiprocessors,
        "power_mode": device.power_mode,
        "clocks_locked": device.clocks_locked,
        "cuda": here.cuda,
    }


def header(content: bytes) -> TimingCacheHeader:
    """Read the first bytes of a timing cache."""
    if not content.startswith(MAGIC) or len(content) < _PROLOGUE:
        return TimingCacheHeader()
    version, length = struct.unpack_from("<QQ", content, 8)
    first = _sequence(content, _PROLOGUE)
    if first is None or not 0 < version < 1 << 16:
        # TensorRT 8.0 stored the number elsewhere, and future versions may, too.
        return TimingCacheHeader()
    whole = length == len(content) - _PROLOGUE
    raw, at = first
    gpu = f"GPU-{uuid.UUID(bytes=raw)}" if len(raw) == 16 else None
    second = _sequence(content, at)
    if second is None:
        return TimingCacheHeader(format=version, whole=whole, gpu_uuid=gpu)
    commit, at = second
    entries = None
    if len(content) >= at + _COUNT.size:
        mark, count = _COUNT.unpack_from(content, at)
        entries = count if mark == _COUNT_MARK and count < _MOST_ENTRIES else None
    return TimingCacheHeader(
        format=version, whole=whole, gpu_uuid=gpu, commit=commit.decode("ascii", "replace"), entries=entries
    )


def _sequence(content: bytes, at: int) -> tuple[bytes, int] | None:
    """Return the bytes of the sequence at ``at``, and its end."""
    if len(content) < at + _SEQUENCE.size:
        return None
    outer, count, element, inner, size = _SEQUENCE.unpack_from(content, at)
    end = at + _SEQUENCE.size + count
    if (outer, element, inner) != _SEQUENCE_MARKS or count != size or count > 64 or len(content) < end:
        return None
    return content[at + _SEQUENCE.size : end], end


KIND = "timing cache"
FOLDER = "timing"
SUFFIX = ".timing"
_ASIDE = re.compile(r"\.aside-\d+$")
# Notes on builds in a manifest: the last one of each model and precision.
_MOST_BUILDS = 100

Merge = Callable[[list[bytes]], bytes]


class TimingCacheEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One file of the folder: a cache, or a file set aside or without a cache. ``problem`` is None for a good one."""

    path: Path
    state: Literal["ok", "corrupt", "set aside", "no manifest"]
    bytes: int
    entries: int | None = None
    key: dict[str, store.Scalar] = {}
    created_utc: str | None = None
    gpu_uuid: str | None = None
    builds: dict[str, Any] = {}
    problem: str | None = None


class TimingStore:
    """The timing cache of one key in ``folder``."""

    def __init__(self, folder: Path, key: Key, *, listen: Listener = ignore_events) -> None:
        self.key = dict(key)
        self.path = folder / f"{file_stem(key)}{SUFFIX}"
        self.manifest = self.path.with_suffix(".json")
        self._listen = listen

    def read(self) -> bytes | None:
        """Return the verified cache; None if there is none, or if a damaged one was set aside.

        In a folder that cannot be written, a valid cache is read with a warning.
        """
        if not self.manifest.is_file() and not self.path.is_file():
            return None
        try:
            with store.lock(self.path):
                return self._current()
        except StoreError as exc:
            self._listen(Note(f"the timing cache {self.path.name} can at best be read: {exc.what}", "warning"))
            with contextlib.suppress(ArtifactError, OSError):
                return self._verified()
            return None

    def write(self, content: bytes, *, before: bytes | None, merge: Merge, info: Mapping[str, Any]) -> store.Manifest:
        """Write ``content``, merged with what others have written since ``before`` was read.

        Raises:
            StoreError: the folder cannot be written; the existing file is unchanged.
            Any exception of ``merge`` except for incompatible caches.
        """
        with store.lock(self.path):
            current = self._current()
            if current is not None and current not in {before, content}:
                try:
                    content = merge([current, content])
                except ArtifactError as exc:
                    self._set_aside(f"TensorRT cannot merge it with the times of this build ({exc.what})")
            return store.save(
                self.manifest, kind=KIND, files={self.path.name: content}, key=self.key,
                info={"bytes": len(content), **self._history(info)},
            )  # fmt: skip

    def builds(self) -> dict[str, Any]:
        """Return the notes of earlier builds with this cache, by model and precision."""
        with contextlib.suppress(EdgeError):
            found = store.load(self.manifest, kind=KIND, check_files=False).info.get("builds")
            return dict(found) if isinstance(found, dict) else {}
        return {}

    def refused(self, why: str) -> None:
        """Set the cache aside because TensorRT itself refuses it."""
        with store.lock(self.path):
            if self.path.is_file():
                self._set_aside(why)

    def _history(self, info: Mapping[str, Any]) -> dict[str, Any]:
        builds = {**self.builds(), **info.get("builds", {})}
        return {**info, "builds": dict(list(builds.items())[-_MOST_BUILDS:])}

    def _current(self) -> bytes | None:
        """Return the content on disk; call this under the lock."""
        if not self.manifest.is_file():
            if self.path.is_file():
                self._set_aside("it has no manifest, so its origin is unknown")
            return None
        try:
            content = self._verified()
        except ArtifactError as exc:
            self._set_aside(exc.what)
            return None
        except OSError as exc:
            raise os_error(exc, self.path) from exc
        return content

    def _verified(self) -> bytes:
        """Return the content after checking it against its manifest and this key.

        Raises:
            ArtifactError: it does not match.
        """
        manifest = store.load(self.manifest, kind=KIND)
        if self.path.name not in manifest.files:
            raise ArtifactError(f"its manifest belongs to {', '.join(manifest.files)}", where=self.path)
        changed = store.differences(manifest.key, self.key)
        if changed:
            reported = "; ".join(str(item) for item in changed)
            raise ArtifactError(f"it has another key ({reported})", where=self.path)
        return self.path.read_bytes()

    def _set_aside(self, why: str) -> None:
        number = 1 + max(
            (int(item.suffix.removeprefix(".aside-")) for item in _aside(self.path.parent, self.path.stem)), default=0
        )
        for path in (self.path, self.manifest):
            if path.is_file():
                try:
                    path.rename(path.with_name(f"{path.name}.aside-{number}"))
                except OSError as exc:
                    raise os_error(exc, path) from exc
        text = f"the timing cache {self.path.name} is set aside: {why}; this build measures every kernel again"
        self._listen(Note(text, "warning"))


def folder_of(cache: Path) -> Path:
    """Return the folder of timing caches in a calibration cache."""
    return cache / FOLDER


def file_stem(key: Key) -> str:
    """Make a readable file name, unique by the digest of the whole key."""
    device = key.get("module") or key.get("gpu") or "gpu"
    sm = f"sm{key['sm']}" if key.get("sm") else ""
    words = [f"trt{key.get('tensorrt')}", sm, str(device), str(key.get("power_mode") or "")]
    text = "-".join(re.sub(r"[^A-Za-z0-9.]+", "_", word).strip("_") for word in words if word)
    return f"{text}-{store.canonical_digest(dict(key))[:8]}"


def listing(folder: Path) -> list[TimingCacheEntry]:
    """List and verify all files in ``folder`` by name; empty if the folder does not exist."""
    found = [_entry(path) for path in sorted(folder.glob(f"*{SUFFIX}"))]
    orphans = [path for path in sorted(folder.glob("*.json")) if not path.with_suffix(SUFFIX).is_file()]
    found += [_damaged(path, "corrupt", f"{path.with_suffix(SUFFIX).name} is missing") for path in orphans]
    aside = [path for path in sorted(folder.glob("*.aside-*")) if _ASIDE.search(path.name)]
    return found + [_damaged(path, "set aside", "kept for inspection; `edge cache gc` removes it") for path in aside]


def removable(folder: Path, *, older_than_days: float | None, now: float | None = None) -> Iterator[Path]:
    """Return the files that ``edge cache gc`` may remove: set aside, damaged, lost, and caches unused for some time."""
    now = time.time() if now is None else now
    for entry in listing(folder):
        if entry.state != "ok":
            yield entry.path
            if entry.path.suffix == SUFFIX and entry.path.with_suffix(".json").is_file():
                yield entry.path.with_suffix(".json")
        elif older_than_days is not None and now - entry.path.stat().st_mtime > older_than_days * 86400:
            # The manifest first: a cache without one is never used.
            yield entry.path.with_suffix(".json")
            yield entry.path


def remove(path: Path) -> None:
    """Remove one file of the folder.

    Raises:
        StoreError: it cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as exc:
        raise os_error(exc, path) from exc


def _entry(path: Path) -> TimingCacheEntry:
    manifest_path = path.with_suffix(".json")
    if not manifest_path.is_file():
        return _damaged(path, "no manifest", "it has no manifest, so its origin is unknown")
    try:
        manifest = store.load(manifest_path, kind=KIND)
        if path.name not in manifest.files:
            raise ArtifactError(f"its manifest belongs to {', '.join(manifest.files)}")
    except EdgeError as exc:
        return _damaged(path, "corrupt", exc.what)
    with path.open("rb") as file:
        head = header(file.read(4096))
    info = manifest.info
    return TimingCacheEntry(
        path=path,
        state="ok",
        bytes=manifest.files[path.name].size,
        entries=info.get("entries") if info.get("entries") is not None else head.entries,
        key=manifest.key,
        created_utc=manifest.created_utc,
        gpu_uuid=head.gpu_uuid,
        builds=info.get("builds", {}),
    )


def _damaged(path: Path, state: Literal["corrupt", "set aside", "no manifest"], problem: str) -> TimingCacheEntry:
    return TimingCacheEntry(path=path, state=state, bytes=path.stat().st_size, problem=problem)


def _aside(folder: Path, stem: str) -> list[Path]:
    return [path for path in folder.glob(f"{stem}.*.aside-*") if _ASIDE.search(path.name)]


Use = Literal["used", "attached", "started", "refused", "off", "no effect"]


class TimingReport(msgspec.Struct, frozen=True, kw_only=True):
    """Use of the timing cache by a build.

    ``used``: the log, or a build without a miss, proves that the existing cache was used. ``attached``: TensorRT
    accepted it, but nothing proves its use. ``started``: the build began with an empty one. ``refused``: TensorRT did
    not accept the existing one, according to its return value or its log (``reason``). ``off``: the profile or the
    command line disabled it. ``no effect``: this product has none.

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
    reason: str | None = None


class CacheInUse:
    """A timing cache that is attached to a builder's configuration."""

    def __init__(self, config: Any, content: bytes | None, *, caps: Caps, watch: BuildWatch) -> None:  # noqa: ANN401
        self._config = config
        self._caps = caps
        self._watch = watch
        self._before = content
        self._after: bytes | None = None
        self._cache, accepted = self._attach(content)
        self._was_refused = content is not None and not accepted
        self._entries_before = 0 if content is None or self._was_refused else self._entries(self._cache)
        self._entries_after: int | None = None

    @property
    def refused(self) -> bool:
        """True if TensorRT has reported so far that it does not use the given cache."""
        return self._before is not None and (self._was_refused or bool(self._watch.cache_refusals))

    def _attach(self, content: bytes | None) -> tuple[Any, bool]:
        """Attach the cache; return it, and True if ``content`` was accepted.

        A cache of another device or version is refused, never forced on it (``ignore_mismatch`` "may lead to functional
        bugs"); an empty one takes its place.
        """
        config = self._config
        cache = config.create_timing_cache(content or b"")
        is_set = cache is not None and config.set_timing_cache(cache, ignore_mismatch=False)
        if is_set and not self._watch.cache_refusals:
            return cache, True
        empty = config.create_timing_cache(b"")
        if empty is not None:
            config.set_timing_cache(empty, ignore_mismatch=False)
        return empty, content is None

    def finish(self) -> bytes | None:
        """Serialize the cache after the build and release it, whereupon TensorRT logs its use."""
        after = self._config.get_timing_cache()
        if after is not None:
            self._after = self._serialized(after)
            self._entries_after = self._entries(after)
        del after
        self._cache = self._config = None
        return self._after

    def report(self) -> TimingReport:
        """Report how the cache was used; call this after all objects of the build are freed."""
        before, after = self._entries_before, self._entries_after
        misses = None if before is None or after is None else max(after - before, 0)
        is_proven = bool(self._watch.cache_hits) or (misses == 0 and bool(before))
        use: Use = "started" if not self._before else ("used" if is_proven else "attached")
        if self.refused:
            use = "refused"
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
            misses=misses,
            hits=self._watch.cache_hits,
            bytes_before=None if kept is None else len(kept),
            bytes_after=None if self._after is None else len(self._after),
            sha256_before=None if kept is None else store.sha256_bytes(kept),
            sha256_after=None if self._after is None else store.sha256_bytes(self._after),
            not_counted=f"{self._caps.title} does not say {' and '.join(unknown)}" if unknown else None,
            reason=log_watch.one_line(self._watch.cache_refusals[0]) if self._watch.cache_refusals else None,
        )

    def _entries(self, cache: Any) -> int | None:  # noqa: ANN401
        if self._caps.timing_cache_keys:
            keys = cache.queryKeys()
            if keys:
                return len(keys)
        # Serializing makes TensorRT log the number; an empty list of keys may only mean that it does not publish them.
        self._watch.cache_entries = None
        self._serialized(cache)
        return self._watch.cache_entries

    def _serialized(self, cache: Any) -> bytes:  # noqa: ANN401
        return bytes(cache.serialize())


def combine(contents: Sequence[bytes], caps: Caps) -> bytes:
    """Merge all entries of ``contents`` into one serialized cache; for conflicting entries the first one wins.

    Raises:
        ArtifactError: TensorRT refuses one of them (the message names it): another version, another device, or damaged.
        DeviceError: this TensorRT has no timing caches, or no builder can be made here.
    """
    if not caps.timing_cache:
        raise DeviceError(f"timing caches have no effect on {caps.title}, so there is nothing to merge")
    binding = binding_module(caps)
    watch = log_watch.BuildWatch()
    with log_watch.watching(binding, watch) as logger:
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
            is_merged = part is not None and whole.combine(part, ignore_mismatch=False)
            if not is_merged or watch.cache_refusals:
                lines = [*watch.cache_refusals, *(line.text for line in watch.errors)]
                reported = f": {log_watch.one_line(lines[-1])}" if lines else ""
                raise ArtifactError(
                    f"{caps.title} refuses the timing cache number {number} of {len(contents)}{reported}",
                    hint="it belongs to another TensorRT or kind of GPU, or is damaged",
                )
        watch.raise_kept()
        return bytes(whole.serialize())

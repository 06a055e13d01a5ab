"""Steps that want a refusal: engines and tables of other machines, other versions, other models, and damaged ones."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from edge.artifacts import store
from edge.calibration import cache_keys
from edge.diagnostics.selftest_context import SelfTestContext, Variant
from edge.diagnostics.selftest_record import StepOutcome, failed, ok, skipped
from edge.errors import EdgeError

# Fields of an engine's key that must each be enough to refuse it, where the backend has them.
_FIELDS = ("tensorrt", "onnxruntime", "sm", "module", "gpu", "gpus", "machine", "model", "profile", "table")


def engine(bench: SelfTestContext) -> StepOutcome:
    """An engine that differs in one field is refused, and the field is said; one that was damaged is refused."""
    # The last one is INT8, which depends on most.
    variant = next(iter(reversed(bench.built.values())), None)
    if variant is None:
        return skipped("nothing was built")
    path = cache_keys.engine_manifest_path(variant.profile, bench.engines, variant.precision)
    manifest = store.load(path, kind=cache_keys.ENGINE)
    name = next(iter(manifest.files))
    tried, wrong = [], []
    for field in (field for field in _FIELDS if manifest.key.get(field) is not None):
        folder = bench.work / f"foreign-{field}"
        copy = _copied(path.parent, folder, variant) / path.name
        _sealed(copy, manifest, key={**manifest.key, field: "another"})
        tried.append(f"other {field}")
        wrong += _refused(_finder(bench, variant, folder), tried[-1], messages=field)
    for what, damage in (("one bit flipped", _flip), ("cut short", _cut)):
        folder = bench.work / f"damaged-{what.split()[0]}"
        damage(_copied(path.parent, folder, variant) / name)
        tried.append(what)
        wrong += _refused(_finder(bench, variant, folder), what, messages="")
    if bench.has_gpu or variant.profile.backend != "tensorrt":
        garbage = bench.work / f"garbage{Path(name).suffix}"
        garbage.write_bytes(b"this is not an engine\n" * 64)
        backend = bench.backend(variant.profile)
        tried.append("no engine at all")
        wrong += _refused(lambda: backend.open(garbage, precision=variant.precision), tried[-1], messages="")
    return _reported(tried, wrong)


def table(bench: SelfTestContext) -> StepOutcome:
    """A table of another model or preprocessing is refused, and one in which a digit changed."""
    if bench.table is None:
        return skipped("no calibration table")
    source = bench.table.path
    manifest = bench.table.manifest
    tried, wrong = [], []
    for field in ("model", "preprocess", "algorithm"):
        cache = bench.work / f"foreign-table-{field}"
        target = _table_in(bench, cache)
        _sealed(cache_keys.manifest_path(target), manifest, key={**manifest.key, field: "another"})
        tried.append(f"other {field}")
        wrong += _refused(lambda cache=cache: cache_keys.find_table(bench.profile, cache), tried[-1], messages=field)  # type: ignore[misc]
    cache = bench.work / "damaged-table"
    _flip(_table_in(bench, cache))
    tried.append("one bit flipped")
    wrong += _refused(lambda: cache_keys.find_table(bench.profile, cache), tried[-1], messages="")
    cache = bench.work / "bare-table"
    cache_keys.manifest_path(_table_in(bench, cache)).unlink()
    tried.append("without manifest")
    wrong += _refused(lambda: cache_keys.find_table(bench.profile, cache), tried[-1], messages="")
    assert source.is_file()  # noqa: S101 - only copies are touched
    return _reported(tried, wrong)


def _refused(attempt: Callable[[], object], what: str, *, messages: str) -> list[str]:
    """The problem when ``attempt`` is not refused, or refused without a word about ``says``."""
    try:
        attempt()
    except EdgeError as exc:
        return [] if messages in exc.what else [f"{what}: refused without saying so ({exc.what})"]
    return [f"{what}: not refused"]


def _reported(tried: list[str], wrong: list[str]) -> StepOutcome:
    if wrong:
        return failed("; ".join(wrong), hint="attach this file to a bug report", tried=tried)
    return ok(f"refused: {', '.join(tried)}", tried=tried)


def _finder(bench: SelfTestContext, variant: Variant, engines: Path) -> Callable[[], object]:
    backend = bench.backend(variant.profile)
    return lambda: cache_keys.find_engine(
        variant.profile, backend, precision=variant.precision, cache=bench.own_cache, engines=engines
    )


def _copied(source: Path, engines: Path, variant: Variant) -> Path:
    """A copy of a variant's engines in another folder of engines."""
    return Path(shutil.copytree(source, engines / variant.profile.name))


def _table_in(bench: SelfTestContext, cache: Path) -> Path:
    shutil.copytree(bench.own_cache, cache)
    return cache_keys.table_path(bench.profile, cache)


def _sealed(path: Path, manifest: store.Manifest, *, key: store.Key) -> None:
    """Write a manifest of the same files with another key: whole, and of something else."""
    files = {name: (path.parent / name).read_bytes() for name in manifest.files}
    store.save(path, kind=manifest.kind, files=files, key=key, info=manifest.info)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-64])

"""Self-test steps about the machine around the engine: device, power sensors, camera, refusals."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path

from edge import telemetry
from edge.artifacts import Secret, store
from edge.calibration import cache_keys
from edge.diagnostics.selftest_context import SelfTestContext, StepOutcome, Variant, failed, ok, skipped
from edge.errors import EdgeError
from edge.media import Frame, LiveStream, cameras

_FRAMES = 10
_READINGS = 5
_INTERVAL_S = 0.25


def machine(bench: SelfTestContext) -> StepOutcome:
    """Identify this machine, and check that edge supports it."""
    has = bench.machine
    name = has.product or has.model or has.cpu or "unknown machine"
    words = [name, f"{has.memory_mib} MiB" if has.memory_mib else "", f"JetPack {has.jetpack}" if has.jetpack else ""]
    words += [f"mode {has.power_mode}" if has.power_mode else ""]
    text = ", ".join(word for word in words if word)
    if has.unsupported:
        return failed(f"{text}: {has.unsupported}", hint="edge doctor")
    if bench.profile.family not in {"host", "rtx", has.family}:
        return failed(f"{text}; the profile is for {bench.profile.family}", hint="edge selftest without --profile")
    return ok(text)


def pictures(bench: SelfTestContext) -> StepOutcome:
    """Find images for the test."""
    if not bench.pictures:
        return failed("no images", hint="--images DIR; a checkout has some in samples/")
    return ok(f"{len(bench.pictures)} images", pictures=len(bench.pictures), digest=bench.pictures.digest())


def power(bench: SelfTestContext) -> StepOutcome:
    """Check that power can be read, and report source and value."""
    source = telemetry.probe(bench.root)
    if isinstance(source, telemetry.NoSource):
        reasons = {reason.source: reason.reason for reason in source.reasons}
        hint = next((reason.hint for reason in source.reasons if reason.hint), "edge doctor")
        if bench.machine.is_jetson:
            return failed("this Jetson's power sensors cannot be read", hint=hint, **reasons)
        return skipped("no readable power sensor", hint=hint, **reasons)
    values = []
    try:
        for _ in range(_READINGS):
            bench.pause(_INTERVAL_S)
            reading = source.read()
            if reading.power_mw is not None:
                values.append(reading.power_mw)
    finally:
        source.close()
    figures = {"source": source.name, "scope": source.scope, "power_mw": values, "readings": _READINGS}
    if not values:
        return failed(
            f"{source.name} is present but gives no power in {_READINGS} readings", hint="edge doctor", **figures
        )
    mean = sum(values) / len(values)
    return ok(f"{mean / 1000:.2f} W by {source.name} ({source.scope}), {len(values)} readings", **figures)


def camera(bench: SelfTestContext) -> StepOutcome:
    """Check that the given camera, or else the first one found, delivers frames."""
    address = bench.camera
    if address is None:
        there = cameras.cameras(bench.root)
        if not there:
            return skipped("no /dev/video*", hint="--camera csi://0 or an address, as in edge run")
        address = Secret(there[0].path, shown=there[0].path)
    settings = bench.profile.camera
    # The error already describes the problem with the camera, and the command that helps.
    stream = LiveStream(
        cameras.camera_source(address, settings, root=bench.root, backend=bench.has_capture), settings,
        open_capture=bench.open_capture,
    )  # fmt: skip
    taken: list[Frame] = []
    try:
        while len(taken) < _FRAMES:
            given = stream.next()
            if not isinstance(given, Frame):
                return failed(f"{address}: {given.reason if given else 'closed'} after {len(taken)} frames")
            taken.append(given)
            height, width = given.load().shape[:2]
    finally:
        stream.close()
    span = taken[-1].since_s - taken[0].since_s
    rate = (taken[-1].seq - taken[0].seq) / span if span > 0 else None
    figures = {
        "address": str(address), "width": width, "height": height, "rate_per_s": rate, "dropped": stream.dropped,
        "notes": stream.notes, "opened_as": stream.opened.opened_as,
    }  # fmt: skip
    pace = f", {rate:.1f} frames/s" if rate else ""
    return ok(f"{address}: {len(taken)} frames of {width}×{height}{pace}", **figures)


# Fields of an engine's key that must each be enough to refuse it, where the backend has them.
_FIELDS = ("tensorrt", "onnxruntime", "sm", "module", "gpu", "gpus", "machine", "model", "profile", "table")


def engine(bench: SelfTestContext) -> StepOutcome:
    """Check that an engine with one different key field, and a damaged engine, are refused with the right reason."""
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
    for what, damage in (("one bit flipped", _flip), ("truncated", _cut)):
        folder = bench.work / f"damaged-{what.split()[0]}"
        damage(_copied(path.parent, folder, variant) / name)
        tried.append(what)
        wrong += _refused(_finder(bench, variant, folder), what, messages="")
    if bench.has_gpu or variant.profile.backend != "tensorrt":
        garbage = bench.work / f"garbage{Path(name).suffix}"
        garbage.write_bytes(b"this is not an engine\n" * 64)
        backend = bench.backend(variant.profile)
        tried.append("not an engine")
        wrong += _refused(lambda: backend.open(garbage, precision=variant.precision), tried[-1], messages="")
    return _reported(tried, wrong)


def table(bench: SelfTestContext) -> StepOutcome:
    """Check that a table of another model or preprocessing, or with a changed digit, is refused."""
    if bench.table is None:
        return skipped("no calibration table")
    source = bench.table.path
    manifest = bench.table.manifest
    tried, wrong = [], []
    has_todays_name = source.name == cache_keys.table_path(bench.profile, bench.own_cache).name
    for field in ("model", "preprocess", "algorithm"):
        cache = bench.work / f"foreign-table-{field}"
        target = _table_in(bench, cache)
        _sealed(cache_keys.manifest_path(target), manifest, key={**manifest.key, field: "another"})
        tried.append(f"other {field}")
        attempt = functools.partial(cache_keys.find_table, bench.profile, cache)
        wrong += _refused(attempt, tried[-1], messages=field if has_todays_name else "")
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
    """Return the problem if ``attempt`` is not refused, or if its message does not contain ``says``."""
    try:
        attempt()
    except EdgeError as exc:
        return [] if messages in exc.what else [f"{what}: refused with another message ({exc.what})"]
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
    """Copy a variant's engines to another folder of engines."""
    return Path(shutil.copytree(source, engines / variant.profile.name))


def _table_in(bench: SelfTestContext, cache: Path) -> Path:
    shutil.copytree(bench.own_cache, cache)
    # A table of an earlier edge has another name than one that would be made today.
    name = cache_keys.table_path(bench.profile, cache).name if bench.table is None else bench.table.path.name
    return next(cache.rglob(name))


def _sealed(path: Path, manifest: store.Manifest, *, key: store.Key) -> None:
    """Write a manifest with valid digests for the same files but another key."""
    files = {name: (path.parent / name).read_bytes() for name in manifest.files}
    store.save(path, kind=manifest.kind, files=files, key=key, info=manifest.info)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-64])

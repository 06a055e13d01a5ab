"""Self-test steps about engines: build every precision and route, compare with the reference, build again warm."""

from __future__ import annotations

import io
import math
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from edge import stats
from edge.artifacts import store
from edge.backends import Inference, OrtSession, Session
from edge.calibration import cache_keys
from edge.config import Profile
from edge.diagnostics import published_results
from edge.diagnostics.selftest_context import SelfTestContext, StepOutcome, Variant, failed, ok, skipped
from edge.engines import building
from edge.errors import ArtifactError, EdgeError, MissingDependencyError, ProfileError
from edge.media import Pictures, decode
from edge.model import onnx_model, preprocessing
from edge.runtime import evaluation
from edge.stats import percentile

if TYPE_CHECKING:
    from numpy.typing import NDArray


KIND = "reference answers"
MANIFEST = "reference.json"
_ARRAY = "reference.npz"
# Two CPUs round differently, and their JPEG decoders and scalers by one level of 255: 40 dB is one part in 100.
_SAME_DB = 40.0


def key(profile: Profile, pictures: Pictures) -> dict[str, store.Scalar]:
    """Return the key of the reference answers."""
    return {
        "model": onnx_model.fingerprint(Path(profile.model)),
        "preprocess": preprocessing.digest(profile.preprocess, profile.input),
        "pictures": pictures.digest(),
    }


def compute(profile: Profile, pictures: Pictures, *, threads: int | None = None) -> NDArray[np.float32]:
    """Compute the logits of every image, float32 n×classes, in the order of ``pictures``.

    Raises:
        MissingDependencyError: onnxruntime is missing. DataError, ModelError, DeviceError: the model or an image cannot
        be used, or the network failed.
    """
    model = onnx_model.read(Path(profile.model), profile.outputs).SerializeToString()
    session = OrtSession(model, precision="fp32", threads=threads)
    preprocessor = preprocessing.Preprocessor(profile.preprocess, profile.input)
    try:
        found = evaluation.logits(
            list(pictures), session, preprocessor, batch=profile.input.batch.min, stage="reference"
        )
    finally:
        session.close()
    assert found is not None  # noqa: S101 - nobody stops it
    return found


def save(folder: Path, profile: Profile, pictures: Pictures, answers: NDArray[np.float32]) -> Path:
    """Save the answers next to the images; return the manifest's path.

    Raises:
        StoreError: a file cannot be written.
    """
    content = io.BytesIO()
    # No time stamp and a fixed order: the same answers are the same bytes.
    np.savez_compressed(content, logits=answers)
    path = folder / MANIFEST
    info = {"pictures": [picture.name for picture in pictures], "classes": int(answers.shape[1])}
    store.save(path, kind=KIND, files={_ARRAY: content.getvalue()}, key=key(profile, pictures), info=info)
    return path


def load(folder: Path, profile: Profile, pictures: Pictures) -> NDArray[np.float32]:
    """Load the saved answers for these images.

    Raises:
        ArtifactError: there are none, they are corrupt, or they have another key.
    """
    path = folder / MANIFEST
    manifest = store.load(path, kind=KIND)
    changed = store.differences(manifest.key, key(profile, pictures))
    if changed:
        raise ArtifactError(
            f"these reference results were made with other inputs ({'; '.join(map(str, changed))})", where=path
        )
    try:
        with np.load(io.BytesIO((folder / _ARRAY).read_bytes()), allow_pickle=False) as content:
            found: NDArray[np.float32] = content["logits"]
    except (OSError, ValueError, KeyError, EOFError) as exc:
        raise ArtifactError(f"not reference results: {exc}", where=folder / _ARRAY) from exc
    if found.dtype != np.float32 or found.ndim != 2 or len(found) != len(pictures) or not np.isfinite(found).all():
        raise ArtifactError(f"not reference results: {found.dtype} {found.shape}", where=folder / _ARRAY)
    return found


def step(bench: SelfTestContext) -> StepOutcome:
    """Get the reference answers, and compare the computed with the saved ones if both exist."""
    if bench.pictures is None:
        return skipped("no images")
    kept, why_not = None, "no answers are saved for these images"
    if bench.kept_reference is not None:
        try:
            kept = load(bench.kept_reference, bench.profile, bench.pictures)
        except ArtifactError as exc:
            why_not = exc.what
    try:
        bench.reference = compute(bench.profile, bench.pictures, threads=bench.threads)
    except MissingDependencyError as exc:
        if kept is None:
            hint = "edge selftest --write-reference, on a host with the same images"
            return failed(f"{exc.what}, and the saved answers cannot be used: {why_not}", hint=hint)
        bench.reference, bench.reference_from = kept, "kept"
        return ok(f"saved answers for {len(kept)} images ({exc.what})", pictures=len(kept), computed_here=False)
    bench.reference_from = "computed here"
    n = len(bench.reference)
    if kept is None:
        return ok(f"computed here for {n} images; saved answers: {why_not}", pictures=n, computed_here=True)
    away = stats.sqnr_db(bench.reference, kept)
    same = int((bench.reference.argmax(axis=1) == kept.argmax(axis=1)).sum())
    words = "identical to the saved ones" if away is None else f"{away:.0f} dB SQNR against the saved ones"
    figures = {"pictures": n, "computed_here": True, "kept_sqnr_db": away, "kept_same_top1": same}
    if same < n or (away is not None and (math.isnan(away) or away < _SAME_DB)):
        text = f"computed here, {words}, the same top-1 for {same} of {n}: this machine decodes or computes differently"
        return failed(text, hint="attach this file to a bug report", **figures)
    return ok(f"computed here for {n} images, {words}", **figures)


# Minimum agreement of an engine's logits with FP32's: (SQNR in dB, share with the same top-1).
# FP32 and FP16 follow from their precision. INT8 does not promise more than that the table was applied: a scale that is
# lost, or assigned to the wrong tensor, moves the answers far below both.
_LIMITS = {"fp32": (35.0, 1.0), "fp16": (20.0, 0.9), "int8": (6.0, 0.75)}
_WARMUP = 3


def table(bench: SelfTestContext) -> StepOutcome:
    """Verify the calibration table and copy it to the self-test's own cache."""
    try:
        found = cache_keys.find_table(bench.profile, bench.cache)
    except EdgeError as exc:
        return failed(f"{exc.what}: INT8 cannot be tried", hint=exc.hint)
    target = cache_keys.table_path(bench.profile, bench.own_cache)
    target.parent.mkdir(parents=True, exist_ok=True)
    for name in (*found.manifest.files, cache_keys.manifest_path(found.path).name):
        shutil.copyfile(found.path.parent / name, target.parent / name)
    bench.table = cache_keys.find_table(bench.profile, bench.own_cache)
    scales = len(cache_keys.read_table(bench.table).bits)
    pictures = found.manifest.info.get("pictures")
    from_pictures = f", from {pictures} images" if pictures else ""
    return ok(f"{found.path.name}: {scales} scales{from_pictures}", scales=scales, sha256=bench.table.sha256)


def build(bench: SelfTestContext, variant: Variant) -> StepOutcome:
    """Build one engine from scratch."""
    if variant.precision == "int8" and bench.table is None:
        return skipped("no calibration table")
    try:
        outcome = _build(bench, variant)
    except ProfileError as exc:
        # The backend has no such precision, route or unit: nothing is wrong with the machine.
        return skipped(exc.what)
    except EdgeError as exc:
        if variant.profile.build.dla_core is not None and "DLA" in exc.what and "build.dla_core" in exc.what:
            return skipped(exc.what)
        raise
    bench.built[variant.name] = variant
    has = outcome.layers
    size = outcome.engine.stat().st_size if outcome.engine else 0
    figures: dict[str, Any] = {"build_s": round(outcome.seconds, 2), "bytes": size, "warnings": outcome.warnings}
    text = f"{outcome.seconds:.1f} s, {size / 2**20:.1f} MiB"
    if has is not None:
        count = {"int8": has.weighted_int8, "fp16": has.weighted_fp16 + has.weighted_int8}.get(variant.precision)
        figures |= {"weighted": has.weighted, "int8": has.weighted_int8, "fp16": has.weighted_fp16}
        if count is not None:
            text += f", {count} of {has.weighted} weighted layers in {variant.precision.upper()}"
    return ok(text, **figures)


def answers(bench: SelfTestContext, variant: Variant) -> StepOutcome:
    """Run the images through an engine, and compare with the reference."""
    if variant.name not in bench.built:
        return skipped("not built")
    if bench.reference is None or bench.pictures is None:
        return skipped("no reference answers")
    if variant.profile.backend == "tensorrt" and not bench.has_gpu:
        return skipped("no NVIDIA GPU on this machine to run it on")
    session = _Timed(_open(bench, variant))
    profile = variant.profile
    preprocessor = preprocessing.Preprocessor(profile.preprocess, profile.input)
    batch = profile.input.batch.min
    try:
        warm = list(bench.pictures)[:1] * _WARMUP
        evaluation.logits(warm, session, preprocessor, batch=batch, stage="warm-up")
        session.times.clear()
        found = evaluation.logits(list(bench.pictures), session, preprocessor, batch=batch, stage=variant.name)
    finally:
        session.close()
    assert found is not None  # noqa: S101 - nobody stops it
    if found.shape == bench.reference.shape:
        same = int((found.argmax(axis=1) == bench.reference.argmax(axis=1)).sum())
        bench.same_top1[variant.name] = (same, len(found))
    return _judged(found, bench.reference, variant, session.times)


def publish(bench: SelfTestContext, variant: Variant) -> StepOutcome:
    """Measure an engine for the table that compares devices."""
    if variant.name not in bench.built:
        return skipped("not built")
    if bench.pictures is None or bench.publish_s is None:
        return skipped("no images")
    if variant.profile.backend == "tensorrt" and not bench.has_gpu:
        return skipped("no NVIDIA GPU on this machine to run it on")
    session = _open(bench, variant)
    try:
        rows = published_results.measure(bench, variant, session, seconds=bench.publish_s)
    finally:
        session.close()
    words = ", ".join(f"batch {row.batch}: {row.p50_ms:.2f} ms, {row.images_per_s:.0f} images/s" for row in rows)
    return ok(words, rows=msgspec.to_builtins(rows))


def gpu_preprocessing(bench: SelfTestContext) -> StepOutcome:
    """Run the images once more with preprocessing on the GPU, as ``edge run`` does there."""
    variant = next((bench.built[name] for name in ("fp32", "fp16") if name in bench.built), None)
    if bench.profile.backend != "tensorrt":
        return skipped(f"{bench.profile.backend} preprocesses on the CPU")
    if variant is None or bench.reference is None or bench.pictures is None:
        return skipped("no engine or no reference answers")
    if not bench.has_gpu:
        return skipped("no NVIDIA GPU on this machine to run it on")
    session: Any = _open(bench, variant)
    try:
        try:
            session.preprocess_on_gpu(variant.profile.preprocess, variant.profile.input)
        except EdgeError as exc:
            # ``edge run`` does not treat this as an error either, unless the profile requires the GPU.
            wanted = variant.profile.run.preprocess_on == "device"
            return (failed if wanted else skipped)(f"edge run preprocesses on the CPU: {exc.what}", hint=exc.hint)
        exif = variant.profile.preprocess.exif
        frames = [decode(picture.read_checked(), name=picture.where, exif=exif) for picture in bench.pictures]
        session.infer_frames(frames[:1])
        found = [session.infer_frames([frame]) for frame in frames]
    finally:
        session.close()
    logits = np.concatenate([item.logits for item in found])
    return _judged(logits, bench.reference, variant, [item.preprocess_ms for item in found], stage="preprocess")


def unchanged(bench: SelfTestContext) -> StepOutcome:
    """Check that nothing is built a second time."""
    if not bench.built:
        return skipped("nothing was built")
    again = {name: _build(bench, variant) for name, variant in bench.built.items()}
    wrong = {name: "; ".join(outcome.why) for name, outcome in again.items() if outcome.work != "unchanged"}
    if wrong:
        return failed(f"built again although nothing changed: {wrong}")
    slowest = max(outcome.seconds for outcome in again.values())
    return ok(f"{len(again)} engines unchanged, in {slowest:.2f} s at most", seconds_at_most=slowest)


def warm(bench: SelfTestContext) -> StepOutcome:
    """Build the same engine again with the timing cache from its first build."""
    if bench.profile.backend != "tensorrt":
        return skipped(f"{bench.profile.backend} has no timing caches")
    variant = next(
        (bench.built[name] for name in ("int8 implicit", "int8 explicit", "fp16", "fp32") if name in bench.built), None
    )
    if variant is None:
        return skipped("nothing was built")
    before = _info(bench, variant)
    if before.get("timing_cache") is None:
        return skipped("timing caches have no effect on this TensorRT, or the profile says timing_cache: false")
    start = time.monotonic()
    _build(bench, variant, force=True)
    warm_s, cold_s = time.monotonic() - start, float(before.get("build_seconds") or 0)
    info = _info(bench, variant)
    after, counted = info.get("timing_cache"), info.get("timing")
    figures = {
        "variant": variant.name, "cold_s": cold_s, "warm_s": round(warm_s, 2), "timing_cache": after, "timing": counted,
    }  # fmt: skip
    text = f"{variant.name}: {cold_s:.1f} s cold, {warm_s:.1f} s warm"
    if isinstance(counted, dict) and counted.get("hits") is not None:
        text += f", {counted['hits']} hits and {counted.get('misses')} misses"
    if after not in {"used", "attached"}:
        return failed(f"{text}; the timing cache was not used: {after}", hint="edge cache verify", **figures)
    return ok(text, **figures)


def _build(bench: SelfTestContext, variant: Variant, *, force: bool = False) -> building.BuildOutcome:
    return building.build(
        variant.profile,
        bench.backend(variant.profile),
        cache=bench.own_cache,
        engines=bench.engines,
        force=force,
        listen=bench.listen,
    )


def _open(bench: SelfTestContext, variant: Variant) -> Session:
    backend = bench.backend(variant.profile)
    found = cache_keys.find_engine(
        variant.profile, backend, precision=variant.precision, cache=bench.own_cache, engines=bench.engines
    )
    key = found.manifest.key
    return backend.open(found.path, precision=variant.precision, threads=bench.threads, built_for=key)


def _info(bench: SelfTestContext, variant: Variant) -> dict[str, Any]:
    backend = bench.backend(variant.profile)
    found = cache_keys.find_engine(
        variant.profile, backend, precision=variant.precision, cache=bench.own_cache, engines=bench.engines
    )
    return found.manifest.info


def _judged(
    own: NDArray[np.float32],
    reference: NDArray[np.float32],
    variant: Variant,
    times_ms: list[float],
    *,
    stage: str = "infer",
) -> StepOutcome:
    n = len(reference)
    if own.shape != reference.shape:
        return failed(f"answers of shape {own.shape}, the reference has {reference.shape}")
    same = int((own.argmax(axis=1) == reference.argmax(axis=1)).sum())
    away = stats.sqnr_db(own, reference)
    limit_db, limit_share = _LIMITS[variant.precision]
    median = percentile(sorted(times_ms), 0.5)
    words = "identical" if away is None else f"SQNR {away:.1f} dB"
    text = f"same top-1 for {same} of {n}, {words}, {median:.2f} ms"
    figures = {"pictures": n, "same_top1": same, "sqnr_db": away, f"{stage}_ms_p50": median, "n": len(times_ms)}
    if same < limit_share * n or (away is not None and not away >= limit_db):
        hint = f"at least {limit_share:.0%} and {limit_db:g} dB are expected for {variant.precision}"
        return failed(text, hint=hint, **figures)
    return ok(text, **figures)


class _Timed:
    """A session that measures the time of each inference."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.times: list[float] = []

    @property
    def precision(self) -> str:
        """Precision of the wrapped session."""
        return self._session.precision

    def infer(self, batch: NDArray[np.float32]) -> Inference:
        """Run a batch."""
        found = self._session.infer(batch)
        self.times.append(found.infer_ms)
        return found

    def close(self) -> None:
        """Close the session."""
        self._session.close()

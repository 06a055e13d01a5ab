"""Answers of the FP32 network to the pictures: computed by ONNX Runtime where it is there, else as it was kept.

Kept answers (``reference.json`` and ``reference.npz`` next to the pictures) are an artifact like any other: their key
names model, preprocessing and pictures, and answers to other questions are not used. A Jetson without ONNX Runtime
needs them; elsewhere they show whether this machine decodes, scales and computes as the one did that they come from.
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edge import stats
from edge.artifacts import store
from edge.backends import OrtSession
from edge.config import Profile
from edge.diagnostics.selftest_context import SelfTestContext
from edge.diagnostics.selftest_record import StepOutcome, failed, ok, skipped
from edge.errors import ArtifactError, MissingDependencyError
from edge.media import Pictures
from edge.model import onnx_model, preprocessing
from edge.runtime import evaluation

if TYPE_CHECKING:
    from numpy.typing import NDArray

KIND = "reference answers"
MANIFEST = "reference.json"
_ARRAY = "reference.npz"
# Two CPUs round differently, and their JPEG decoders and scalers by one level of 255: 40 dB is one part in 100.
_SAME_DB = 40.0


def key(profile: Profile, pictures: Pictures) -> dict[str, store.Scalar]:
    """The key of the answers."""
    return {
        "model": onnx_model.fingerprint(Path(profile.model)),
        "preprocess": preprocessing.digest(profile.preprocess, profile.input),
        "pictures": pictures.digest(),
    }


def compute(profile: Profile, pictures: Pictures, *, threads: int | None = None) -> NDArray[np.float32]:
    """Logits of every picture, float32 n×classes, in the order of ``pictures``.

    Raises:
        MissingDependencyError: onnxruntime is missing. DataError, ModelError, DeviceError: as the words say.
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
    """Keep answers next to the pictures; the manifest's path.

    Raises:
        StoreError: the disk refused.
    """
    content = io.BytesIO()
    # No time stamp and a fixed order: the same answers are the same bytes.
    np.savez_compressed(content, logits=answers)
    path = folder / MANIFEST
    info = {"pictures": [picture.name for picture in pictures], "classes": int(answers.shape[1])}
    store.save(path, kind=KIND, files={_ARRAY: content.getvalue()}, key=key(profile, pictures), info=info)
    return path


def load(folder: Path, profile: Profile, pictures: Pictures) -> NDArray[np.float32]:
    """The kept answers to these pictures.

    Raises:
        ArtifactError: there are none, they are corrupt, or they answer something else.
    """
    path = folder / MANIFEST
    manifest = store.load(path, kind=KIND)
    changed = store.differences(manifest.key, key(profile, pictures))
    if changed:
        raise ArtifactError(f"these answers are of something else ({'; '.join(map(str, changed))})", where=path)
    try:
        with np.load(io.BytesIO((folder / _ARRAY).read_bytes()), allow_pickle=False) as content:
            found: NDArray[np.float32] = content["logits"]
    except (OSError, ValueError, KeyError, EOFError) as exc:
        raise ArtifactError(f"not reference answers: {exc}", where=folder / _ARRAY) from exc
    if found.dtype != np.float32 or found.ndim != 2 or len(found) != len(pictures) or not np.isfinite(found).all():
        raise ArtifactError(f"not reference answers: {found.dtype} {found.shape}", where=folder / _ARRAY)
    return found


def step(bench: SelfTestContext) -> StepOutcome:
    """Get the reference answers, and compare the computed with the kept ones where both are there."""
    if bench.pictures is None:
        return skipped("no pictures")
    kept, why_not = None, "none are kept for these pictures"
    if bench.kept_reference is not None:
        try:
            kept = load(bench.kept_reference, bench.profile, bench.pictures)
        except ArtifactError as exc:
            why_not = exc.what
    try:
        bench.reference = compute(bench.profile, bench.pictures, threads=bench.threads)
    except MissingDependencyError as exc:
        if kept is None:
            hint = "edge selftest --write-reference, on a host with the same pictures"
            return failed(f"{exc.what}, and kept answers cannot be used: {why_not}", hint=hint)
        bench.reference, bench.reference_from = kept, "kept"
        return ok(f"kept answers to {len(kept)} pictures ({exc.what})", pictures=len(kept), computed_here=False)
    bench.reference_from = "computed here"
    n = len(bench.reference)
    if kept is None:
        return ok(f"computed here for {n} pictures; kept answers: {why_not}", pictures=n, computed_here=True)
    away = stats.sqnr_db(bench.reference, kept)
    same = int((bench.reference.argmax(axis=1) == kept.argmax(axis=1)).sum())
    words = "to the bit as the kept ones" if away is None else f"{away:.0f} dB from the kept ones"
    figures = {"pictures": n, "computed_here": True, "kept_sqnr_db": away, "kept_same_top1": same}
    if same < n or (away is not None and (math.isnan(away) or away < _SAME_DB)):
        text = f"computed here, {words}, the same top-1 for {same} of {n}: this machine decodes or computes differently"
        return failed(text, hint="attach this file to a bug report", **figures)
    return ok(f"computed here for {n} pictures, {words}", **figures)

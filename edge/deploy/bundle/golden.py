"""Golden images with reference outputs, so that a device can check its engine.

The references are the logits of ONNX Runtime on a CPU, one image at a time in one thread: of the FP32 model and, with a
calibration table, of its INT8 Q/DQ form, both rounded to 5 digits. They are the same on every machine with the same
onnxruntime and kind of CPU; another kind may differ in the last digit, and CPUs without VNNI also in the saturation of
INT8 products. To make the same bundle bit for bit on another kind of machine, copy the references of the first
(``reference``).

The gate: an engine passes when its logits have at most 6 dB more noise against FP32 than the INT8 reference has (for
FP32 and FP16: at least 40 dB of signal to noise) and reach the limits of INT8 accuracy that builds are judged by
(:mod:`edge.calibration.quality`, and ``quality.min_sqnr`` of the profile), and when its top-1 is another than FP32's
for at most as many images as the tolerance says. These bounds were chosen, not measured on a device: see
``docs/bundles.md``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from edge.backends import BuildRequest, OnnxRuntime, OrtSession
from edge.calibration import quality
from edge.config import Precision, Profile
from edge.deploy.bundle.manifest import printable_name
from edge.deploy.bundle.reader import Bundle
from edge.errors import ArtifactError, DeviceError
from edge.events import Listener, Progress, ignore_events
from edge.media import Picture, decode
from edge.model import Preprocessor
from edge.stats import sqnr_db, top

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge.quantization import Table

FORMAT = 1
FOLDER = "golden"
FILE = f"{FOLDER}/expected.json"
_TOP = 5
_DIGITS = 5
# Twice the amplitude of the noise that the table itself makes.
_MORE_NOISE_DB = 6.0
# Without a table: FP16 has about 11 bits, so 60 dB; a wrong preprocessing or class order leaves a few dB.
_FLOAT_SQNR_DB = 40.0
_ALLOWED_SHARE = 0.1


class GoldenAnswer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Reference output for one image: the five best classes, and all logits."""

    top5: list[int]
    logits: list[float]


class Tolerance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits against FP32: the minimum SQNR in dB, and the maximum number of images with another top-1."""

    min_sqnr_db: float
    max_other_top1: int


class Expected(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Content of ``golden/expected.json``: the reference answers by image (its path in the bundle) and precision.

    ``tolerance`` has an entry for every precision that an engine of this bundle may have. ``model``, ``preprocess`` and
    ``table`` are the digests that the references were made with.
    """

    format: int
    model: str
    preprocess: str
    table: str | None
    onnxruntime: str
    pictures: dict[str, dict[str, GoldenAnswer]]
    tolerance: dict[str, Tolerance]

    def logits(self, precision: str) -> NDArray[np.float32]:
        """Return the reference logits of all images, n×classes, in the order of their names."""
        rows = [self.pictures[name][precision].logits for name in sorted(self.pictures)]
        return np.asarray(rows, np.float32)


class GoldenVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """Result of an engine on the golden images. ``problems`` is empty if it passed."""

    precision: str
    n: int
    sqnr_db: float | None
    other_top1: int
    tolerance: Tolerance
    problems: list[str]


def refer(
    profile: Profile,
    pictures: Mapping[str, Picture],
    *,
    model: str,
    preprocess: str,
    table: Table | None,
    table_sha256: str | None,
    quantized: Profile | None = None,
    listen: Listener = ignore_events,
) -> Expected:
    """Run the network on ``pictures`` (by their paths in the bundle) and return the reference answers.

    Raises:
        MissingDependencyError: onnxruntime is missing.
        DeviceError: an output contains NaN or infinity.
        DataError: an image cannot be decoded.
    """
    names = sorted(pictures)
    preprocessor = Preprocessor(profile.preprocess, profile.input)
    exif = profile.preprocess.exif
    inputs = np.stack([preprocessor(decode(pictures[name].read_checked(), name=name, exif=exif)) for name in names])
    done, total = 0, len(names) * (2 if table is not None else 1)

    def received() -> None:
        nonlocal done
        done += 1
        listen(Progress("golden", done, total))

    exact = _logits(profile, inputs, "fp32", None, received)
    found: dict[str, NDArray[np.float32]] = {"fp32": exact}
    tolerance = {name: Tolerance(_FLOAT_SQNR_DB, _allowed(len(names))) for name in ("fp32", "fp16")}
    if table is not None:
        found["int8"] = _logits(quantized or profile, inputs, "int8", table, received)
        noise = sqnr_db(found["int8"], exact)
        others = int((top(found["int8"], 1) != top(exact, 1)).sum())
        bound = _FLOAT_SQNR_DB if noise is None else math.floor(10 * (noise - _MORE_NOISE_DB)) / 10
        tolerance["int8"] = Tolerance(_least_sqnr(bound, profile), others + _allowed(len(names)))
    return Expected(
        format=FORMAT,
        model=model,
        preprocess=preprocess,
        table=table_sha256,
        onnxruntime=metadata.version("onnxruntime"),
        pictures={
            name: {precision: _answer(rows[index]) for precision, rows in found.items()}
            for index, name in enumerate(names)
        },
        tolerance=tolerance,
    )


def encode(expected: Expected) -> bytes:
    """Encode the file; there is one way to write it."""
    return msgspec.json.encode(expected, order="sorted") + b"\n"


def decode_expected(data: bytes, *, where: str) -> Expected:
    """Decode ``golden/expected.json``.

    Raises:
        ArtifactError: the data is not such a file, or has another format.
    """
    try:
        found = msgspec.json.decode(data, type=Expected)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ArtifactError(f"not a file of golden references: {printable_name(str(exc))}", where=where) from exc
    if found.format != FORMAT:
        raise ArtifactError(f"golden format {found.format}; this edge reads format {FORMAT}", where=where)
    lengths = {len(answer.logits) for answers in found.pictures.values() for answer in answers.values()}
    if not found.pictures or len(lengths) != 1 or any("fp32" not in answers for answers in found.pictures.values()):
        raise ArtifactError("the references are empty or have different lengths", where=where)
    return found


def _least_sqnr(bound: float, profile: Profile) -> float:
    """The bound in dB, and at least the limits that builds are judged by: collapse, and the profile's own."""
    limits = [bound]
    if profile.quality.collapse == "error":
        limits.append(quality.COLLAPSE_SQNR_DB)
    if profile.quality.min_sqnr is not None:
        limits.append(profile.quality.min_sqnr)
    return max(limits)


def judge(expected: Expected, precision: Precision, logits: NDArray[np.float32]) -> GoldenVerdict:
    """Judge whether an engine's ``logits`` (n×classes, images in the order of their names) are good enough.

    Raises:
        ArtifactError: the references lack this precision, or have another number of images or classes.
    """
    reference = expected.logits("fp32")
    if precision not in expected.tolerance:
        raise ArtifactError(f"the bundle has no tolerance for {precision}")
    if logits.shape != reference.shape:
        raise ArtifactError(f"{logits.shape} logits for references of {reference.shape}")
    tolerance = expected.tolerance[precision]
    is_finite = bool(np.isfinite(logits).all())
    noise = sqnr_db(logits, reference) if is_finite else None
    others = int((top(logits, 1) != top(reference, 1)).sum())
    problems = [] if is_finite else ["the logits contain NaN or infinity"]
    if noise is not None and noise < tolerance.min_sqnr_db:
        problems.append(
            f"the SQNR against FP32 is {noise:.1f} dB, but at least {tolerance.min_sqnr_db:g} dB are required"
        )
    if others > tolerance.max_other_top1:
        problems.append(
            f"{others} of {len(logits)} images have another top-1; at most {tolerance.max_other_top1} are allowed"
        )
    return GoldenVerdict(
        precision=precision, n=len(logits), sqnr_db=noise, other_top1=others, tolerance=tolerance, problems=problems
    )


def taken_over(earlier: Bundle, *, like: Mapping[str, str | None], pictures: Mapping[str, Picture]) -> Expected:
    """Return the references of an earlier bundle that are for this model, preprocessing, table and images.

    Raises:
        ArtifactError: it has none, or an input differs; the message names it.
    """
    expected = decode_expected(earlier.read(FILE), where=f"{earlier.path}: {FILE}")
    for field, wanted in like.items():
        if getattr(expected, field) != wanted:
            raise ArtifactError(f"its references were made with another {field}", where=earlier.path)
    if expected.pictures.keys() != pictures.keys():
        raise ArtifactError("its references are for other images", where=earlier.path)
    for name, picture in pictures.items():
        if name not in earlier.files or earlier.files[name].sha256 != picture.sha256:
            raise ArtifactError(f"its {name} is another image", where=earlier.path)
    return expected


def _logits(
    profile: Profile,
    inputs: NDArray[np.float32],
    precision: Precision,
    table: Table | None,
    received: Callable[[], None],
) -> NDArray[np.float32]:
    built = OnnxRuntime().build(
        BuildRequest(profile=profile, model=Path(profile.model), precision=precision, table=table)
    )
    session = OrtSession(built.data, precision=precision, threads=1)
    rows = []
    for row in inputs:
        # A network of a fixed batch gets the same picture several times.
        answer = session.infer(np.repeat(row[None], profile.input.batch.min, axis=0)).logits[0]
        if not np.isfinite(answer).all():
            raise DeviceError(f"the {precision} network's output for a golden image contains NaN or infinity")
        rows.append(answer)
        received()
    session.close()
    return np.stack(rows)


def _answer(logits: NDArray[np.float32]) -> GoldenAnswer:
    return GoldenAnswer(
        top5=[int(index) for index in top(logits[None], _TOP)[0]],
        logits=[float(f"{value:.{_DIGITS}g}") for value in logits.tolist()],
    )


def _allowed(n: int) -> int:
    """Return how many images may have another top-1, because near ties may change with a correct engine."""
    return math.ceil(_ALLOWED_SHARE * n)

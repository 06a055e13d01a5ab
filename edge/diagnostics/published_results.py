"""``edge selftest --publish``: the figures that devices are compared by, as a Markdown table and as JSON.

One row per engine and batch size: latency and rate of the engine on the sample images, how often its top-1 is FP32's,
and energy per inference with its scope, next to what they depend on. What was not measured is absent, with the reason.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from edge import telemetry
from edge.artifacts import store
from edge.errors import DataError
from edge.media import decode
from edge.model import preprocessing
from edge.stats import percentile
from edge.telemetry import Sampler, Window

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge.backends import Session
    from edge.diagnostics.selftest_context import SelfTest, SelfTestContext, Variant

FORMAT = 1
KIND = "published results"
_WARMUP = 20
# A 99th percentile of fewer values is the largest of them.
_FEWEST_FOR_P99 = 100
_COLUMNS = (
    "model", "precision", "batch", "p50 ms", "p99 ms", "images/s", "top-1 as FP32", "J/inference", "runtime", "JetPack",
    "module", "power mode",
)  # fmt: skip


class PublishedRow(msgspec.Struct, frozen=True, kw_only=True):
    """One engine at one batch size.

    ``p50_ms`` and ``p99_ms`` are of ``runs`` inferences of a whole batch, copies included. ``same_top1`` of the
    ``pictures`` sample images have FP32's top-1. ``joules_per_inference`` is per image, by ``power_source`` over
    ``power_scope``; None with the reason in ``power_unavailable``.
    """

    engine: str
    precision: str
    batch: int
    runs: int
    p50_ms: float
    p99_ms: float | None
    images_per_s: float
    same_top1: int | None = None
    pictures: int | None = None
    joules_per_inference: float | None = None
    power_scope: str | None = None
    power_source: str | None = None
    power_unavailable: str | None = None


class PublishedResults(msgspec.Struct, frozen=True, kw_only=True):
    """All rows of one device, and everything that they depend on."""

    format: int
    kind: str
    edge_version: str
    measured_utc: str
    model: str
    model_sha256: str
    backend: dict[str, Any]
    module: str
    jetpack: str | None
    l4t: str | None
    power_mode: str | None
    clocks_locked: bool | None
    rows: list[PublishedRow]


def measure(bench: SelfTestContext, variant: Variant, session: Session, *, seconds: float) -> list[PublishedRow]:
    """Measure an open engine at its smallest and its largest batch, ``seconds`` each.

    Raises:
        DataError: not one sample image could be decoded.
        DeviceError: the engine failed.
    """
    pictures = _prepared(bench, variant)
    sizes = sorted({variant.profile.input.batch.min, variant.profile.input.batch.max})
    return [_row(bench, variant, session, _batches(pictures, size), seconds=seconds) for size in sizes]


def collect(record: SelfTest) -> PublishedResults:
    """Return the rows of a self-test and the facts about the machine from its record."""
    machine, subject = record.machine, record.subject
    rows = [msgspec.convert(row, PublishedRow) for step in record.steps for row in step.figures.get("rows", [])]
    return PublishedResults(
        format=FORMAT,
        kind=KIND,
        edge_version=record.edge_version,
        measured_utc=record.started_utc,
        model=str(subject["model"]),
        model_sha256=str(subject["model_sha256"]),
        backend=subject["backend"] if isinstance(subject["backend"], dict) else {},
        module=str(machine.get("product") or machine.get("model") or machine.get("cpu") or "unknown"),
        jetpack=machine.get("jetpack"),
        l4t=machine.get("l4t"),
        power_mode=machine.get("power_mode"),
        clocks_locked=machine.get("clocks_locked"),
        rows=rows,
    )


def markdown(found: PublishedResults) -> str:
    """Return the table as Markdown, for an issue or for docs/devices.md."""
    lines = [" | ".join(_COLUMNS), " | ".join("---" for _ in _COLUMNS)]
    lines += [" | ".join(_cells(found, row)) for row in found.rows]
    table = "\n".join(f"| {line} |" for line in lines)
    reasons = {row.power_unavailable for row in found.rows if row.power_unavailable}
    notes = [f"- energy was not measured: {reason}" for reason in sorted(reasons)]
    if any(row.p99_ms is None for row in found.rows):
        notes.append(f"- no 99th percentile from fewer than {_FEWEST_FOR_P99} inferences")
    clocks = {True: "locked", False: "not locked", None: "unknown"}[found.clocks_locked]
    notes.append(f"- clocks: {clocks}; edge {found.edge_version}, {found.measured_utc}; whole batches, copies included")
    return table + "\n\n" + "\n".join(notes) + "\n"


def save(path: Path, found: PublishedResults) -> tuple[Path, Path]:
    """Write ``path`` with the extensions .md and .json; return both paths.

    Raises:
        StoreError: they cannot be written.
    """
    text, data = path.with_suffix(".md"), path.with_suffix(".json")
    store.write_bytes(text, markdown(found).encode())
    store.write_bytes(data, msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
    return text, data


def _prepared(bench: SelfTestContext, variant: Variant) -> list[NDArray[np.float32]]:
    profile = variant.profile
    preprocessor = preprocessing.Preprocessor(profile.preprocess, profile.input)
    found = []
    for picture in bench.pictures or ():
        with contextlib.suppress(DataError):
            found.append(preprocessor(decode(picture.read(), name=picture.where, exif=profile.preprocess.exif)))
    if not found:
        raise DataError("not one sample image could be decoded")
    return found


def _batches(pictures: Sequence[NDArray[np.float32]], size: int) -> list[NDArray[np.float32]]:
    count = max(len(pictures) // size, 1)
    return [np.stack([pictures[(size * b + i) % len(pictures)] for i in range(size)]) for b in range(count)]


def _row(
    bench: SelfTestContext, variant: Variant, session: Session, batches: Sequence[NDArray[np.float32]], *,
    seconds: float,
) -> PublishedRow:  # fmt: skip
    for number in range(_WARMUP):
        session.infer(batches[number % len(batches)])
    source = telemetry.probe(bench.root)
    times: list[float] = []
    with contextlib.ExitStack() as stack:
        sampler = None
        if not isinstance(source, telemetry.NoSource):
            stack.callback(source.close)
            sampler = stack.enter_context(Sampler(source, rate_hz=variant.profile.telemetry.rate_hz))
        start = now = time.monotonic()
        while now - start < seconds or not times:
            session.infer(batches[len(times) % len(batches)])
            end = time.monotonic()
            times.append((end - now) * 1e3)
            now = end
        power = _energy(source, sampler, Window(start, now), pictures=len(times) * len(batches[0]))
    ordered = sorted(times)
    same = bench.same_top1.get(variant.name)
    return PublishedRow(
        engine=variant.name,
        precision=variant.precision,
        batch=len(batches[0]),
        runs=len(times),
        p50_ms=percentile(ordered, 0.5),
        p99_ms=percentile(ordered, 0.99) if len(times) >= _FEWEST_FOR_P99 else None,
        images_per_s=len(times) * len(batches[0]) / (now - start),
        same_top1=None if same is None else same[0],
        pictures=None if same is None else same[1],
        **power,
    )


def _energy(source: Any, sampler: Sampler | None, window: Window, *, pictures: int) -> dict[str, Any]:  # noqa: ANN401
    if sampler is None:
        return {"power_unavailable": str(source)}
    energy = sampler.energy(window)
    if energy.joules is None:
        return {"power_unavailable": f"{energy.source}: {energy.refusal}"}
    return {
        "joules_per_inference": energy.per_picture(pictures)["joules_per_picture"],
        "power_scope": energy.scope,
        "power_source": energy.source,
    }


def _cells(found: PublishedResults, row: PublishedRow) -> list[str]:
    key = found.backend
    name = str(key.get("backend", "unknown"))
    product = "TensorRT for RTX" if key.get("rtx") else "TensorRT" if name == "tensorrt" else name
    joules = "-" if row.joules_per_inference is None else f"{row.joules_per_inference:.3g} ({row.power_scope})"
    return [
        found.model,
        row.engine,
        str(row.batch),
        f"{row.p50_ms:.3f}",
        "-" if row.p99_ms is None else f"{row.p99_ms:.3f}",
        f"{row.images_per_s:.1f}",
        "-" if row.same_top1 is None else f"{row.same_top1} of {row.pictures}",
        joules,
        f"{product} {key.get(name, '')}".strip(),
        found.jetpack or "-",
        found.module,
        found.power_mode or "-",
    ]

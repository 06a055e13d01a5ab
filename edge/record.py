"""The run record: what ran where, how long each stage took, and what was seen. Versioned, frozen, units in the names.

Format history:
    1  first
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from edge import store
from edge.errors import ArtifactError
from edge.stats import Summary

FORMAT = 1


class Guess(msgspec.Struct, frozen=True):
    """One class and the softmax share that the network gives it, 0 to 1."""

    index: int
    label: str
    confidence: float


class Stages(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where one picture's time went. A stage that does not exist on this backend is absent.

    ``decode_ms`` includes reading the file; ``total_ms`` is the wall time from the start of decode to the label.
    """

    decode_ms: float
    preprocess_ms: float
    infer_ms: float
    postprocess_ms: float
    total_ms: float
    host_to_device_ms: float | None = None
    device_to_host_ms: float | None = None


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One classified picture, best guess first."""

    seq: int
    name: str
    guesses: list[Guess]
    stages: Stages


class Skip(msgspec.Struct, frozen=True):
    """One picture that could not be used, and why."""

    seq: int
    name: str
    reason: str


class Warmup(msgspec.Struct, frozen=True):
    """Inferences before the measured ones; never averaged in."""

    n: int
    first_ms: float | None
    last_ms: float | None


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """What ran, where. Runs may be compared only where these agree."""

    profile: str
    profile_digest: str
    model: str
    model_sha256: str
    engine_sha256: str
    table_sha256: str | None
    preprocess_digest: str
    backend: dict[str, Any]
    precision: str
    layers: dict[str, Any]
    device: dict[str, Any]
    source: str


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One run of the loop.

    ``status`` is ``interrupted`` when a signal ended it. ``rate_per_s`` counts labelled pictures over ``measured_s``,
    which starts after the warm-up. ``power`` is an energy reading with its scope and sample count; without one,
    ``power_unavailable`` says why. ``stages_absent`` says why a stage has no time.
    """

    format: int
    edge_version: str
    started_utc: str
    status: Literal["complete", "interrupted"]
    subject: Subject
    pictures: int
    skipped: list[Skip]
    warmup: Warmup
    measured_s: float
    rate_per_s: float | None
    latency: dict[str, Summary]
    stages_absent: dict[str, str]
    power: dict[str, Any] | None
    power_unavailable: str | None
    conditions: dict[str, Any]
    warnings: list[str]
    results: list[Result]


def save(path: Path, record: RunRecord) -> None:
    """Write a record.

    Raises:
        StoreError: the disk refused.
    """
    store.write_bytes(path, msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")


def load(path: Path) -> RunRecord:
    """Read a record.

    Raises:
        ArtifactError: missing, malformed, or of a format that this edge does not read.
    """
    try:
        data = path.read_bytes()
        version = msgspec.json.decode(data, type=dict[str, msgspec.Raw]).get("format")
        if version is None or msgspec.json.decode(version) != FORMAT:
            found = "no format" if version is None else f"format {bytes(version).decode()}"
            raise ArtifactError(f"a record with {found}; this edge reads {FORMAT}", where=path)
        return msgspec.json.decode(data, type=RunRecord)
    except OSError as exc:
        raise ArtifactError(f"cannot read the record: {exc.strerror}", where=path) from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ArtifactError(f"not a run record: {exc}", where=path) from exc

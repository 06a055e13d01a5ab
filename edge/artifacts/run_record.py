"""Format of a run record: engine, device, stage times, counts and results of one run. Versioned and frozen.

Its size is bounded: a run of weeks has a record of the same size as one of an hour.

Format history:
    1  first
    2  live sources (age, drops, gaps), time series, histograms, top labels; failed runs have a record; results bounded.
       Records of format 1 are refused: they lack data that cannot be reconstructed
"""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any, Literal

import msgspec

from edge.artifacts import store
from edge.errors import ArtifactError
from edge.stats import Bin, Summary

FORMAT = 2
# Maximum number of stored entries; the counts next to them cover everything.
MOST_RESULTS = 1000
MOST_SKIPS = 100
MOST_GAPS = 1000
MOST_TICKS = 600
MOST_LABELS = 20

Status = Literal["complete", "interrupted", "failed"]


class Guess(msgspec.Struct, frozen=True):
    """One class and its softmax probability, 0 to 1."""

    index: int
    label: str
    confidence: float


class Stages(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The stage times of one image. A stage that does not exist on this backend is absent.

    ``decode_ms`` includes reading the file. ``total_ms`` is the work on this image: from the start of decoding to the
    label, without the waits between stages. ``age_ms`` is the age of the label, waits included: since the frame was
    captured (live sources), or since the image was due to be read (files). In a batch, each image has the ``infer_ms``
    of the whole batch.
    """

    decode_ms: float
    preprocess_ms: float
    infer_ms: float
    postprocess_ms: float
    total_ms: float
    host_to_device_ms: float | None = None
    device_to_host_ms: float | None = None
    age_ms: float | None = None


class LabelDecision(msgspec.Struct, frozen=True):
    """The label after smoothing over time; ``unknown``, without an index, below the minimum confidence."""

    index: int | None
    label: str
    confidence: float


class FrameResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Result of one classified image, best guess first; ``t_s`` is its time since the start of measurement.

    ``camera`` is the camera's name if there are several. ``decision`` is present if the profile sets smoothing or a
    minimum confidence; the guesses are those of this image alone.
    """

    seq: int
    name: str
    guesses: list[Guess]
    stages: Stages
    t_s: float
    camera: str | None = None
    decision: LabelDecision | None = None


class Skip(msgspec.Struct, frozen=True, omit_defaults=True):
    """One unusable image and the reason."""

    seq: int
    name: str
    reason: str
    camera: str | None = None


class Gap(msgspec.Struct, frozen=True, kw_only=True):
    """A time without frames from a live source, in seconds since the start of measurement; no ``end_s`` while it lasts.

    ``reopened_as`` is the address at which the source was found again; ``attempts`` is the number of tries.
    """

    start_s: float
    end_s: float | None
    reason: str
    hint: str | None = None
    reopened_as: str | None = None
    attempts: int = 0
    camera: str | None = None


class Tick(msgspec.Struct, frozen=True, kw_only=True):
    """One bin of the time series, ending at ``t_s``; it covers the time since the previous bin.

    Latencies are None in a bin without frames; telemetry is the newest reading of the bin, and empty without a source.
    """

    t_s: float
    frames: int
    dropped: int
    total_p50_ms: float | None
    total_max_ms: float | None
    age_p50_ms: float | None
    age_max_ms: float | None
    power_mw: float | None = None
    temps_c: dict[str, float] = {}
    loads_percent: dict[str, float] = {}
    clocks_mhz: dict[str, float] = {}
    throttling: tuple[str, ...] = ()


class CameraRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One camera of a run with several: its counts, its latency (``total`` and ``age``), and its most frequent labels.

    ``reconnects`` is the number of gaps after which the camera delivered frames again.
    """

    name: str
    pictures: int
    skipped_count: int
    dropped: int | None
    gaps_count: int
    reconnects: int
    latency: dict[str, Summary]
    top_labels: list[LabelCount]


class LabelCount(msgspec.Struct, frozen=True):
    """Number of images with this label."""

    index: int
    label: str
    count: int


class NotifyCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of the notifications to one target, whose address is masked.

    ``retried`` is the number of repeated attempts, ``failed`` that of messages given up, ``dropped`` that of messages
    for which the queue had no space, and ``waiting`` the length of the queue.
    """

    target: str
    sent: int
    failed: int
    retried: int
    dropped: int
    waiting: int
    last_error: str | None


class Warmup(msgspec.Struct, frozen=True):
    """Inferences before the measured ones; they are never part of the averages."""

    n: int
    first_ms: float | None
    last_ms: float | None


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """Engine, device and source of a run. Runs are comparable only if these agree."""

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
    """The record of one run.

    ``status`` is ``interrupted`` if a signal ended the run, and ``failed`` if the error in ``failure`` did.
    ``replayed`` names the recording if frames or telemetry come from one. ``source`` describes the source: kind,
    address, width and height in pixels, frames per second, live or not. ``rate_per_s`` is the number of labelled images
    divided by ``measured_s``, which starts after the warm-up. ``dropped`` is the number of live frames that newer ones
    replaced; None for files, which are never dropped. ``power`` is an energy measurement with scope and sample count;
    if it is missing, ``power_unavailable`` gives the reason. ``stages_absent`` gives the reason for a stage without a
    time. ``skipped``, ``gaps``, ``timeline``, ``top_labels`` and ``results`` are bounded (``MOST_…``); ``skipped`` and
    ``gaps`` store the first entries, ``results`` the newest, and ``results_kept`` tells if these are all. ``bench`` is
    the result of a scenario of ``edge bench``, and its compliance with MLPerf's rules. ``cameras`` has one entry per
    camera if there are several; the other figures cover all of them. ``top_decisions`` has the counts of decisions, as
    ``top_labels`` has those of the best guesses; ``unknown`` has the index -1.
    """

    format: int
    edge_version: str
    started_utc: str
    status: Status
    failure: str | None
    replayed: str | None
    subject: Subject
    source: dict[str, Any]
    pictures: int
    skipped: list[Skip]
    skipped_count: int
    dropped: int | None
    gaps: list[Gap]
    warmup: Warmup
    measured_s: float
    rate_per_s: float | None
    latency: dict[str, Summary]
    histogram: dict[str, list[Bin]]
    timeline: list[Tick]
    stages_absent: dict[str, str]
    power: dict[str, Any] | None
    power_unavailable: str | None
    conditions: dict[str, Any]
    top_labels: list[LabelCount]
    warnings: list[str]
    results: list[FrameResult]
    results_kept: Literal["all", "newest"]
    bench: dict[str, Any] | None = None
    cameras: list[CameraRecord] = []
    top_decisions: list[LabelCount] = []
    notify: list[NotifyCounts] = []


class RecordLine(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of a record that is written during the run (``.jsonl``); exactly one field is set.

    A file begins with ``header``, the run so far, so that each file of a rotated record can be read alone. ``state`` is
    the run so far without its time series, which is in the ``tick`` lines; ``end`` is the finished record.
    """

    header: RunRecord | None = None
    result: FrameResult | None = None
    skip: Skip | None = None
    gap: Gap | None = None
    tick: Tick | None = None
    state: RunRecord | None = None
    end: RunRecord | None = None


KILLED = "the record is incomplete: its process was killed or is still running"
_HEADER = b'{"header":'


def save(path: Path, record: RunRecord) -> None:
    """Write a record to a file.

    Raises:
        StoreError: the file cannot be written.
    """
    store.write_bytes(path, encode(record))


def encode(record: RunRecord) -> bytes:
    """Encode a record as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"


def load(path: Path) -> RunRecord:
    """Read a record: a finished one, or the part that a killed run has written.

    If a ``.jsonl`` record has several files, only this file is read: the figures cover the whole run, the results are
    those in the file.

    Raises:
        ArtifactError: the record is missing, malformed, or has a format that this edge does not read.
    """
    try:
        data = path.read_bytes()
        if data.startswith(_HEADER):
            return _from_lines(data, path)
        _check_format(msgspec.json.decode(data, type=dict[str, msgspec.Raw]).get("format"), path)
        return msgspec.json.decode(data, type=RunRecord)
    except OSError as exc:
        raise ArtifactError(f"cannot read the record: {exc.strerror}", where=path) from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ArtifactError(f"not a run record: {exc}", where=path) from exc


def _check_format(version: msgspec.Raw | None, path: Path) -> None:
    if version is None or bytes(version) != str(FORMAT).encode():
        found = "no format" if version is None else f"format {bytes(version).decode()}"
        raise ArtifactError(
            f"record with {found}; this edge reads format {FORMAT}",
            where=path,
            hint="repeat the run with this version of edge",
        )


def _from_lines(data: bytes, path: Path) -> RunRecord:
    # After a power loss the file may end in zeros behind the synced data.
    *lines, rest = data.rstrip(b"\0").split(b"\n")
    lines = [line for line in lines if line]
    if not lines:
        raise ArtifactError("not a run record: the first line is truncated", where=path)
    head = msgspec.json.decode(lines[0], type=dict[str, dict[str, msgspec.Raw]])["header"]
    _check_format(head.get("format"), path)
    newest = msgspec.json.decode(lines[0], type=RecordLine).header
    assert newest is not None  # noqa: S101 - for mypy: the data begins with it
    decoder = msgspec.json.Decoder(RecordLine)
    timeline, results, end = list(newest.timeline), deque[FrameResult](maxlen=MOST_RESULTS), None
    count = 0
    for number, line in enumerate(lines[1:], start=2):
        try:
            found = decoder.decode(line)
        except msgspec.DecodeError as exc:
            if number == len(lines) and not rest:
                break
            raise ArtifactError(f"not a run record: line {number}: {exc}", where=path) from exc
        newest, end = found.state or newest, found.end or end
        # The header may be newer than lines that were still queued when it was written.
        if found.tick is not None and (not timeline or found.tick.t_s > timeline[-1].t_s):
            timeline.append(found.tick)
        if found.result is not None:
            results.append(found.result)
            count += 1
    whole = end or msgspec.structs.replace(
        newest, status="interrupted", failure=newest.failure or KILLED, timeline=timeline
    )
    if not count:
        return whole
    kept: Literal["all", "newest"] = "all" if len(results) == whole.pictures else "newest"
    return msgspec.structs.replace(whole, results=list(results), results_kept=kept)

"""The run record: what ran where, how long each stage took, and what was seen. Versioned, frozen, units in the names.

Everything in it is bounded: a run of weeks has a record of the same size as one of an hour.

Format history:
    1  first
    2  live sources (age, drops, gaps), time line, histograms, top labels; failed runs have a record; results bounded.
       Records of format 1 are refused: what they lack cannot be made up
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
# Most that a record holds of each; the counts next to them are of everything.
MOST_RESULTS = 1000
MOST_SKIPS = 100
MOST_GAPS = 1000
MOST_TICKS = 600
MOST_LABELS = 20

Status = Literal["complete", "interrupted", "failed"]


class Guess(msgspec.Struct, frozen=True):
    """One class and the softmax share that the network gives it, 0 to 1."""

    index: int
    label: str
    confidence: float


class Stages(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The times of one picture. A stage that does not exist on this backend is absent.

    ``decode_ms`` includes reading the file. ``total_ms`` is the work on this picture: from the start of decode to the
    label, without the time that it waited between stages. ``age_ms`` is how old the label is, waiting included: since
    the frame was captured (live sources), or since its turn came to be read (files). In a batch, ``infer_ms`` is that
    of the whole batch, for each of its pictures.
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
    """The label that is decided on, smoothed over time; ``unknown``, without an index, below the least confidence."""

    index: int | None
    label: str
    confidence: float


class FrameResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One classified picture, best guess first; ``t_s`` is when it got its label, since the measured window began.

    ``camera`` is the name of the one that it comes from, where there are several. ``decision`` is there where the
    profile asks for smoothing or for a least confidence; the guesses are those of this picture alone.
    """

    seq: int
    name: str
    guesses: list[Guess]
    stages: Stages
    t_s: float
    camera: str | None = None
    decision: LabelDecision | None = None


class Skip(msgspec.Struct, frozen=True, omit_defaults=True):
    """One picture that could not be used, and why."""

    seq: int
    name: str
    reason: str
    camera: str | None = None


class Gap(msgspec.Struct, frozen=True, kw_only=True):
    """A time without frames from a live source, in seconds since the measured window began; open while no ``end_s``.

    ``reopened_as`` is the place where the source was found again, ``attempts`` how often it was tried.
    """

    start_s: float
    end_s: float | None
    reason: str
    hint: str | None = None
    reopened_as: str | None = None
    attempts: int = 0
    camera: str | None = None


class Tick(msgspec.Struct, frozen=True, kw_only=True):
    """One bin of the time line, up to ``t_s``: what happened since the bin before it.

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
    """One camera of several in a run: its counts, its latency (``total`` and ``age``), and its most frequent labels.

    ``reconnects`` counts the gaps after which it gave frames again.
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
    """Number of pictures with this label."""

    index: int
    label: str
    count: int


class NotifyCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of the notifications to one target: its address is masked.

    ``retried`` counts attempts that were made again, ``failed`` messages that were given up, ``dropped`` those that did
    not fit into the queue, ``waiting`` those in it.
    """

    target: str
    sent: int
    failed: int
    retried: int
    dropped: int
    waiting: int
    last_error: str | None


class Warmup(msgspec.Struct, frozen=True):
    """Inferences before the measured ones; never averaged in."""

    n: int
    first_ms: float | None
    last_ms: float | None


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """The engine, the device and the source of a run. Runs may be compared only where these agree."""

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

    ``status`` is ``interrupted`` when a signal ended it, and ``failed`` when an error did, which is in ``failure``.
    ``replayed`` names the recording when frames or telemetry were not measured now. ``source`` says kind, what it was
    opened as, width and height in pixels, frames per second, and whether it is live. ``rate_per_s`` counts labelled
    pictures over ``measured_s``, which starts after the warm-up. ``dropped`` counts frames of a live source that were
    replaced by newer ones; None for files, of which none is dropped. ``power`` is an energy reading with its scope and
    sample count; without one, ``power_unavailable`` says why. ``stages_absent`` says why a stage has no time.
    ``skipped``, ``gaps``, ``timeline``, ``top_labels`` and ``results`` are bounded (``MOST_…``); ``skipped`` and
    ``gaps`` keep the first ones, ``results`` the newest, and ``results_kept`` says whether these are all. ``bench`` is
    there when a scenario of ``edge bench`` made the record: its result, and whether MLPerf's rules would take it.
    ``cameras`` has one entry per camera where a run had several; the figures beside it are those of all together.
    ``top_decisions`` counts decisions as ``top_labels`` counts guesses; ``unknown`` has the index -1.
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
    """One line of a record that is written while it grows (``.jsonl``); exactly one of these is there.

    A file begins with ``header``: the run so far, so that each file of a rotated record can be read alone. ``state``
    is the run so far without its time line, which the ``tick`` lines hold; ``end`` is the finished record.
    """

    header: RunRecord | None = None
    result: FrameResult | None = None
    skip: Skip | None = None
    gap: Gap | None = None
    tick: Tick | None = None
    state: RunRecord | None = None
    end: RunRecord | None = None


KILLED = "the record has no end: its process was killed, or is still running"
_HEADER = b'{"header":'


def save(path: Path, record: RunRecord) -> None:
    """Write a record.

    Raises:
        StoreError: the disk refused.
    """
    store.write_bytes(path, encode(record))


def encode(record: RunRecord) -> bytes:
    """Encode a record as people can read it."""
    return msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"


def load(path: Path) -> RunRecord:
    """Read a record: a finished one, or what a run that was killed has left.

    Of a ``.jsonl`` record in several files this reads the one file; its figures are those of the whole run, its results
    are those in the file.

    Raises:
        ArtifactError: missing, malformed, or of a format that this edge does not read.
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
            f"a record with {found}; this edge reads {FORMAT}", where=path, hint="run it again with this edge"
        )


def _from_lines(data: bytes, path: Path) -> RunRecord:
    # A machine that lost power may leave zeros behind what was synced.
    *lines, rest = data.rstrip(b"\0").split(b"\n")
    lines = [line for line in lines if line]
    if not lines:
        raise ArtifactError("not a run record: the first line is cut off", where=path)
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
        # The header may be younger than lines that were waiting for the disk when it was written.
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

"""The file that a sweep leaves: what was asked, what every table answered, and what was found. Versioned.

It holds each picture's answers, so everything in it can be worked out again, and a sweep that was stopped goes on
without asking the same table twice. Answers are kept under the digest of their table's scales, and only together with
the ``key``: model, preprocessing, labelled pictures, and what ran them.

Format history:
    1  first
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from edge import __version__
from edge.artifacts import store
from edge.errors import ArtifactError, StoreError
from edge.tuning.scorer import Answers
from edge.tuning.sweep_comparison import Configuration, Findings

FORMAT = 1
KIND: Literal["edge sweep"] = "edge sweep"


class BatchCheck(msgspec.Struct, frozen=True, kw_only=True):
    """The smallest subset, counted with ``batch`` pictures at a time, against one at a time.

    ``tables_identical`` names the algorithms whose table is the same to the byte; ``largest_change`` is the largest
    relative change of a scale over all of them.
    """

    batch: int
    pictures: int
    statistics_identical: bool
    tables_identical: list[str]
    largest_change: float


class Exact(msgspec.Struct, frozen=True, kw_only=True):
    """The labelled pictures (name, true class) in their order, and the answers of the FP32 network."""

    pictures: list[str]
    truth: list[int]
    answers: Answers


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One sweep. ``seconds`` says how long each stage took in the run that wrote this; None until it is through."""

    kind: Literal["edge sweep"] = KIND
    format: int = FORMAT
    edge_version: str = __version__
    started_utc: str
    status: Literal["complete", "interrupted"]
    key: dict[str, store.Scalar]
    subject: dict[str, Any]
    settings: dict[str, Any]
    seconds: dict[str, float]
    batches: list[BatchCheck]
    warnings: list[str]
    configurations: list[Configuration]
    findings: Findings | None
    exact: Exact | None
    answers: dict[str, Answers]


def save(path: Path, record: Record) -> None:
    """Write a record.

    Raises:
        StoreError: the disk refused.
    """
    store.write_bytes(path, msgspec.json.encode(record) + b"\n")


def load(path: Path) -> Record:
    """Read a record.

    Raises:
        ArtifactError: not a sweep's record, or of a format that this edge does not read.
        StoreError: it cannot be read.
    """
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise StoreError(f"cannot read: {exc.strerror or exc}", where=path) from exc
    try:
        head = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        if "kind" not in head or msgspec.json.decode(head["kind"]) != KIND:
            raise ArtifactError("this is not what edge sweep writes", where=path)
        if (version := msgspec.json.decode(head.get("format", b"null"))) != FORMAT:
            raise ArtifactError(f"a sweep of format {version}; this edge reads {FORMAT}", where=path)
        found = msgspec.json.decode(data, type=Record)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise ArtifactError(f"not what edge sweep writes: {exc}", where=path) from exc
    if found.exact is None:
        return msgspec.structs.replace(found, answers={})
    n = len(found.exact.truth)
    for item in (found.exact.answers, *found.answers.values()):
        if not len(item.predicted) == len(item.top5) == len(item.energy) == n:
            raise ArtifactError(f"the answers of a table are not those to {n} pictures", where=path)
    return found


def sweep_summary(record: Record) -> dict[str, Any]:
    """The record without each picture's answers, as plain values: what ``--json`` prints."""
    content: dict[str, Any] = msgspec.to_builtins(record)
    for name in ("exact", "answers"):
        del content[name]
    return content

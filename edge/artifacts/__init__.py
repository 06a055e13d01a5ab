"""Files that edge keeps: atomic writes, manifests, locks, and the format of a run record."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge import lazy_exports

if TYPE_CHECKING:
    from edge.artifacts.run_record import (
        FORMAT,
        MOST_GAPS,
        MOST_LABELS,
        MOST_RESULTS,
        MOST_SKIPS,
        MOST_TICKS,
        FrameResult,
        Gap,
        Guess,
        LabelCount,
        RecordLine,
        RunRecord,
        Skip,
        Stages,
        Status,
        Subject,
        Tick,
        Warmup,
    )
    from edge.artifacts.store import (
        FileEntry,
        Key,
        KeyDifference,
        Manifest,
        Scalar,
        canonical_digest,
        sha256_bytes,
        sha256_file,
    )
else:
    __getattr__ = lazy_exports(
        __name__,
        {
            "run_record": [
                "FORMAT",
                "FrameResult",
                "Gap",
                "Guess",
                "LabelCount",
                "MOST_GAPS",
                "MOST_LABELS",
                "MOST_RESULTS",
                "MOST_SKIPS",
                "MOST_TICKS",
                "RecordLine",
                "RunRecord",
                "Skip",
                "Stages",
                "Status",
                "Subject",
                "Tick",
                "Warmup",
            ],
            "store": [
                "FileEntry",
                "Key",
                "KeyDifference",
                "Manifest",
                "Scalar",
                "canonical_digest",
                "sha256_bytes",
                "sha256_file",
            ],
        },
    )

__all__ = [
    "FORMAT",
    "MOST_GAPS",
    "MOST_LABELS",
    "MOST_RESULTS",
    "MOST_SKIPS",
    "MOST_TICKS",
    "FileEntry",
    "FrameResult",
    "Gap",
    "Guess",
    "Key",
    "KeyDifference",
    "LabelCount",
    "Manifest",
    "RecordLine",
    "RunRecord",
    "Scalar",
    "Skip",
    "Stages",
    "Status",
    "Subject",
    "Tick",
    "Warmup",
    "canonical_digest",
    "run_record",
    "sha256_bytes",
    "sha256_file",
    "store",
]

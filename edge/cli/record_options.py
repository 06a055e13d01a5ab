"""The record of a run: where the command line puts it, and how the profile keeps it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge.errors import UsageError

if TYPE_CHECKING:
    from edge.config import RecordConfig
    from edge.runtime import Journal
    from edge.ui.terminal import Terminal

Record = Annotated[
    Path | None,
    typer.Option("--record", metavar="FILE", help="Run record: .json, or .jsonl, which grows and is rotated."),
]


def check(path: Path | None, config: RecordConfig) -> None:
    """Refuse a line per frame where the record has no lines.

    Raises:
        UsageError: The record is no ``.jsonl``.
    """
    if config.every_frame and path is not None and path.suffix != ".jsonl":
        raise UsageError("record.every_frame in the profile needs a record of lines", hint="--record run.jsonl")


def journal(path: Path | None, config: RecordConfig, terminal: Terminal) -> Journal | None:
    """What keeps the record while the run goes; None where none was asked for."""
    from edge.runtime import Journal, Rotation

    if path is None:
        return None
    return Journal(
        path,
        flush_s=config.flush_s,
        every_frame=config.every_frame,
        rotation=Rotation(limit=config.size_mib << 20, files=config.files),
        warn=terminal.warn,
    )

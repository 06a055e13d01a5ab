"""The record of a run, as the command line says it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from edge.errors import UsageError

if TYPE_CHECKING:
    from edge.runtime import Journal
    from edge.ui.terminal import Terminal

Record = Annotated[
    Path | None,
    typer.Option(
        "--record", metavar="FILE", help="Keep the run record here: .json, or .jsonl, which grows and is rotated."
    ),
]
EveryFrame = Annotated[bool, typer.Option("--every-frame", help="A line for every frame in the record (.jsonl).")]
Flush = Annotated[
    str | None,
    typer.Option(
        "--flush", metavar="TIME", help="How often the record on disk is brought up to date.",
        show_default="10s for .jsonl, 60s for .json",
    ),
]  # fmt: skip
Size = Annotated[int, typer.Option("--record-size", min=1, metavar="MIB", help="Size at which .jsonl is rotated.")]
Files = Annotated[int, typer.Option("--record-files", min=1, help="Files of a rotated .jsonl record that are kept.")]


class RecordOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Where the record is kept, and how."""

    path: Path | None
    every_frame: bool
    flush: str | None
    size_mib: int
    files: int

    def check(self) -> None:
        """See that these go together.

        Raises:
            UsageError: they do not.
        """
        if self.every_frame and (self.path is None or self.path.suffix != ".jsonl"):
            raise UsageError("--every-frame needs a record of lines", hint="--record run.jsonl")
        self._flush_s()

    def journal(self, terminal: Terminal) -> Journal | None:
        """What keeps the record while the run goes; None where none was asked for."""
        from edge.runtime import Journal, Rotation

        if self.path is None:
            return None
        return Journal(
            self.path,
            flush_s=self._flush_s(),
            every_frame=self.every_frame,
            rotation=Rotation(limit=self.size_mib << 20, files=self.files),
            warn=terminal.warn,
        )

    def _flush_s(self) -> float | None:
        from edge.cli.power_options import seconds

        if self.flush is None:
            return None
        flush_s = seconds(self.flush, option="--flush")
        if flush_s < 0.1:
            raise UsageError(f"--flush {self.flush} is too often for any disk", hint="--flush 1s or more")
        return flush_s

"""Options that several commands share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, get_args

import typer

from edge.config import Precision
from edge.errors import StoreError, UsageError
from edge.telemetry import source_names


def _with_samples(path: Path | None) -> Path | None:
    from edge.cli import paths

    return None if path is None else paths.samples(path)


ProfileName = Annotated[
    str | None,
    typer.Option(
        "--profile", "-p", help="Name or file; current: what was shipped here.", show_default="this machine's"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
CacheDir = Annotated[
    Path | None, typer.Option("--cache-dir", help="Calibration cache.", show_default="EDGE_CACHE_DIR, or calib_cache")
]
EngineDir = Annotated[Path | None, typer.Option("--engine-dir", help="Folder of the engines.", show_default="engines")]
Images = Annotated[
    Path | None,
    typer.Option(
        "--images",
        "-i",
        metavar="DIR",
        callback=_with_samples,
        help="Folder, picture, list, CSV or TFRecord shards; samples: for the pictures that come with edge.",
    ),
]
Labels = Annotated[
    Path | None,
    typer.Option(
        "--labels", metavar="FILE", help="Labels of the pictures, where they are in no folder per class: CSV or TSV.",
    ),
]  # fmt: skip
LabelOffset = Annotated[
    int,
    typer.Option("--label-offset", metavar="N", help="Added to every class index: -1 for labels that count from 1."),
]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads.", show_default="all cores")]
PrecisionName = Annotated[
    str | None, typer.Option("--precision", help="fp32, fp16 or int8.", show_default="the profile's")
]
Power = Annotated[
    str | None,
    typer.Option(
        "--power",
        metavar="SOURCE",
        help=f"Where power is read from: {', '.join(source_names())}, or replay:FILE (a recording).",
        show_default="the profile's, or auto",
    ),
]
Idle = Annotated[
    str | None,
    typer.Option(
        "--idle", metavar="TIME", help="Measure idle power first (10s or more), for net energy.",
        show_default="the profile's, or none",
    ),
]  # fmt: skip
SetPowerMode = Annotated[
    bool,
    typer.Option("--set-power-mode", help="Switch to the profile's power_mode, and back at the end (root)."),
]
TelemetryLog = Annotated[
    Path | None,
    typer.Option("--telemetry-log", metavar="FILE.jsonl", help="Keep every power reading here; --power replay:FILE."),
]
Notify = Annotated[
    list[str] | None,
    typer.Option(
        "--notify",
        metavar="TARGET",
        help="Report labels to http://…, mqtt://…, exec:COMMAND or @FILE (docs/running.md).",
    ),
]
Duration = Annotated[
    str | None, typer.Option("--duration", metavar="TIME", help="Stop after this time: 10s, 5m, 2h, 7d.")
]


def precision(name: str | None) -> Precision | None:
    """The precision called ``name``, if one was given.

    Raises:
        UsageError: there is no such precision.
    """
    for known in get_args(Precision):
        if name == known:
            return known  # type: ignore[no-any-return]
    if name is None:
        return None
    raise UsageError(f"there is no precision {name!r}", hint=f"one of {', '.join(get_args(Precision))}")


def read(path: Path) -> bytes:
    """All bytes of a file that the command line names.

    Raises:
        UsageError: there is no such file.
        StoreError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as exc:
        raise UsageError("there is no such file", where=path) from exc
    except OSError as exc:
        raise StoreError(f"cannot read: {exc.strerror or exc}", where=path) from exc


def check_page(path: Path) -> None:
    """Check before the work that an HTML page can be made and written.

    Raises:
        MissingDependencyError: jinja2 or matplotlib is missing.
        StoreError: the file cannot be written.
    """
    from edge.reports import check

    check()
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise StoreError("the page cannot be written", where=path, hint="choose another file")

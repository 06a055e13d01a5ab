"""Make an HTML page from run records.

Several records are compared. The page needs no network and can be printed. Runs of different devices, backends or power
modes get separate axes, with a note; --across forces them onto one axis, also with a note.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from edge.cli import options
from edge.errors import StoreError, UsageError
from edge.ui.terminal import Terminal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge.reports import LoadedRun, RunComparison


def command(
    *,
    records: Annotated[list[Path] | None, typer.Argument(metavar="RECORD…", help="Files of edge run --record.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the page to this file.")] = None,
    across: Annotated[bool, typer.Option("--across", help="Use one axis for runs of different setups.")] = False,
    as_json: options.Json = False,
) -> None:
    """Run the operation."""
    from edge.artifacts import store
    from edge.reports import loaded_runs, run_comparison, run_page

    terminal = Terminal()
    if output is None and not as_json:
        raise UsageError("no output file", hint="use -o report.html or --json")
    if output is not None:
        _check_page(output, records or [])
    runs = loaded_runs.load_runs(records or [])
    comparison = run_comparison.compare(runs, across=across)
    if output is not None:
        store.write_bytes(output, run_page.render(runs, comparison).encode())
    if as_json:
        terminal.data(msgspec.json.encode(_data(runs, comparison)).decode())
        return
    for line in comparison.apart:
        terminal.warn(f"{line}: separate axes")
    for pair in comparison.pairs:
        _show(terminal, runs, comparison, pair.b)
    terminal.info(f"page: {output}")


def _show(terminal: Terminal, runs: Sequence[LoadedRun], comparison: RunComparison, letter: str) -> None:
    """Show the differences of one run from the first of its group."""
    from edge.reports import difference, ms, ratio

    pair = next(pair for pair in comparison.pairs if pair.b == letter)
    names = {run.letter: run.name for run in runs}
    rows = [
        (f"{item.measure}, {item.unit}", ms(item.a), ms(item.b), difference(item), ratio(item), _verdict(item.differs))
        for item in pair.differences
    ]
    terminal.table(
        ("measure", pair.a, pair.b, f"{pair.b} - {pair.a}", f"{pair.b} / {pair.a}", ""), rows, right=range(1, 5),
        title=f"{pair.b} {names[pair.b]} against {pair.a} {names[pair.a]}",
    )  # fmt: skip


def _verdict(differs: bool | None) -> str:  # noqa: FBT001 - a value, not a switch
    return {True: "differs", False: "not significantly different", None: "no interval"}[differs]


def _data(runs: Sequence[LoadedRun], comparison: RunComparison) -> dict[str, object]:
    """Return everything except the single results, which are in the records."""
    from edge.reports import run_facts

    return {
        "runs": [
            {
                "letter": run.letter,
                "facts": run_facts(run),
                "record": {k: v for k, v in msgspec.to_builtins(run.record).items() if k != "results"},
            }
            for run in runs
        ],
        "comparison": msgspec.to_builtins(comparison),
    }


def _check_page(path: Path, records: Sequence[Path]) -> None:
    """Check everything that is needed to write the page before the work."""
    from edge.reports import html

    html.check()
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise StoreError("the page cannot be written", where=path, hint="choose another file")
    if any(path.exists() and record.exists() and path.samefile(record) for record in records):
        raise UsageError("the page would overwrite a record", where=path, hint="choose another file")

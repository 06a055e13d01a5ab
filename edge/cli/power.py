"""Show, set and restore the power mode of a Jetson."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from edge.cli import options
from edge.ui.terminal import Terminal

if TYPE_CHECKING:
    from edge.system import PowerModeState

app = typer.Typer(no_args_is_help=True)

_LOCKED = {True: "locked", False: "not locked", None: "unknown"}


@app.command()
def show(*, as_json: options.Json = False) -> None:
    """Show the current and the available power modes, and whether the clocks are locked."""
    from edge.system import power_modes

    _print(power_modes.show(), as_json=as_json)


@app.command("set")
def set_(
    mode: Annotated[str, typer.Argument(help="Name or number of the mode.")],
    *,
    lock_clocks: Annotated[
        bool, typer.Option("--lock-clocks", help="Lock all clocks at the mode's maximum (jetson_clocks).")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Switch to a power mode; the previous one is stored. Never reboots."""
    from edge.system import power_modes

    _print(power_modes.set_mode(mode, lock_clocks=lock_clocks, again=this_command()), as_json=as_json)


@app.command()
def restore(*, as_json: options.Json = False) -> None:
    """Restore the mode and the clocks from before edge changed them."""
    from edge.system import power_modes

    _print(power_modes.restore(again=this_command()), as_json=as_json)


def this_command() -> str:
    """Return the current command line with the program's full path, as sudo needs it."""
    return shlex.join([str(Path(sys.argv[0]).absolute()), *sys.argv[1:]])


def _print(state: PowerModeState, *, as_json: bool) -> None:
    terminal = Terminal()
    if as_json:
        terminal.data(msgspec.json.encode(state).decode())
        return
    for note in state.notes:
        terminal.warn(note)
    rows = []
    for mode in state.modes or (state.mode,):
        marks = [
            "now" if mode.number == state.mode.number else "",
            "default" if state.default is not None and mode.number == state.default.number else "",
        ]
        rows.append((str(mode.number), mode.name, ", ".join(filter(None, marks))))
    terminal.table(("mode", "name", ""), rows, right=(0,))
    terminal.show(f"clocks {_LOCKED[state.clocks_locked]}")
    if state.changed is not None:
        terminal.info(
            f"changed by edge at {state.changed.changed_utc}, from {state.changed.before}: sudo "
            f"{shlex.quote(str(Path(sys.argv[0]).absolute()))} power restore  restores it"
        )

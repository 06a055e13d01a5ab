"""The Typer application. Apart from :mod:`edge.cli`, so that signals are handled before typer is imported."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Annotated

import typer

from edge import __version__
from edge.cli import COMMANDS
from edge.errors import UsageError


def make_app(arguments: list[str]) -> typer.Typer:
    """The Typer application for this command line: only the module of the command that is asked for is imported."""
    app = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        # Rich's help costs 0.1 s of imports: only where somebody looks at it.
        rich_markup_mode="rich" if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else None,
        context_settings={"help_option_names": ["-h", "--help"]},
        help="From an ONNX classifier to a measured, shipped, running INT8 engine on NVIDIA Jetson.",
    )
    app.callback()(_top)
    wanted = next((word for word in arguments if not word.startswith("-")), None)
    for name, short in COMMANDS.items():
        if name != wanted:
            app.command(name, help=short)(_placeholder)
            continue
        module = import_module(f"edge.cli.{name}")
        _refuse_removed(name, getattr(module, "REMOVED", {}), arguments)
        if hasattr(module, "app"):
            app.add_typer(module.app, name=name, help=module.__doc__)
        else:
            app.command(name, help=module.__doc__)(module.command)
    return app


def _refuse_removed(command: str, removed: dict[str, str], arguments: list[str]) -> None:
    """Say where an option of an earlier version went."""
    for word in arguments:
        option = word.partition("=")[0]
        if option in removed:
            raise UsageError(f"edge {command} has no option {option} any more", hint=f"use {removed[option]}")


def _show_version(asked: bool) -> None:  # noqa: FBT001 - typer calls it
    if asked:
        sys.stdout.write(f"edge {__version__}\n")
        raise typer.Exit


_Version = Annotated[
    bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_show_version)
]


def _top(version: _Version = False) -> None:  # noqa: FBT002 - typer's way of a flag
    del version  # its callback has done the work


def _placeholder() -> None:
    """Stand for a command whose module is not needed on this command line; it only shows its help text."""

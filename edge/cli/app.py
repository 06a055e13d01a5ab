"""The Typer application. It is separate from :mod:`edge.cli` so that signals are handled before typer is imported."""

from __future__ import annotations

import os
import sys
import typing
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.models import ArgumentInfo, OptionInfo

from edge import __version__
from edge.artifacts import masked_text
from edge.cli import COMMAND_GROUPS, COMMANDS
from edge.errors import UsageError

# Packages that bring a backend, for --version.
_DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13-bindings")


class _GroupedCommands(TyperGroup):
    """Lists the commands of ``edge --help`` by task, also when rich does not draw the help."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - click's, which typer brings along
        """Run the command; mask a URL in an argument that Click rejects and quotes."""
        try:
            return super().invoke(ctx)
        except Exception as exc:
            if isinstance(message := getattr(exc, "message", None), str):
                exc.message = masked_text(message)  # type: ignore[attr-defined]
            raise

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401 - click's, which typer brings along
        """Write one list of commands per task."""
        width = max(map(len, COMMANDS))
        for title, names in COMMAND_GROUPS.items():
            rows = []
            for name in names:
                command = self.get_command(ctx, name)
                if command is not None:
                    rows.append((name.ljust(width), command.get_short_help_str(formatter.width)))
            with formatter.section(title):
                formatter.write_dl(rows)


def make_app(arguments: list[str]) -> typer.Typer:
    """Make the command line for these arguments, importing only the module of the requested command."""
    app = typer.Typer(
        cls=_GroupedCommands,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        # Rich's help costs 0.1 s of imports: use it only on a terminal.
        rich_markup_mode="rich" if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else None,
        context_settings={"help_option_names": ["-h", "--help"]},
        help="Turn an ONNX classifier into a measured INT8 engine that runs on NVIDIA Jetson.",
    )
    app.callback()(_top)
    wanted = next((word for word in _words(arguments) if not word.startswith("-")), None)
    # A command that comes first needs no list of the others, whose options typer would look at.
    is_first = arguments[:1] == [wanted] and wanted in COMMANDS
    for title, names in COMMAND_GROUPS.items():
        for name, short in names.items():
            if name != wanted:
                if is_first:
                    continue
                app.command(name, help=short, rich_help_panel=title)(_placeholder)
                continue
            module = import_module(f"edge.cli.{name}")
            _refuse_removed(name, getattr(module, "REMOVED", {}), arguments)
            if hasattr(module, "app"):
                app.add_typer(module.app, name=name, help=module.__doc__, rich_help_panel=title)
            else:
                app.command(name, help=module.__doc__, rich_help_panel=title)(module.command)
    _name_values(app)
    return app


def _refuse_removed(command: str, removed: dict[str, str], arguments: list[str]) -> None:
    """Tell where an option of an earlier version has moved."""
    for word in arguments:
        option = word.partition("=")[0]
        if option in removed:
            raise UsageError(f"edge {command} has no option {option} any more", hint=f"use {removed[option]}")


def _words(arguments: list[str]) -> list[str]:
    """Return the words of the command line, also during a shell completion."""
    if "_EDGE_COMPLETE" not in os.environ:
        return arguments
    typed = os.environ.get("_TYPER_COMPLETE_ARGS") or os.environ.get("COMP_WORDS") or ""
    return typed.split()[1:]


def _name_values(app: typer.Typer) -> None:
    """Show option values as FILE, DIR, N or the option's name instead of their types."""
    for group in app.registered_groups:
        if group.typer_instance is not None:
            _name_values(group.typer_instance)
    for command in app.registered_commands:
        if command.callback is None or command.callback is _placeholder:
            continue
        hints = typing.get_type_hints(command.callback, include_extras=True)
        # Typer reads them again, and annotations that are text would become other objects then.
        command.callback.__annotations__ = hints
        for name, hint in hints.items():
            for info in getattr(hint, "__metadata__", ()):
                if isinstance(info, OptionInfo) and info.metavar is None:
                    info.metavar = _metavar(name, typing.get_args(hint)[0])
                elif isinstance(info, ArgumentInfo) and info.metavar is None:
                    info.metavar = name.upper().replace("_", "-")


def _metavar(name: str, kind: Any) -> str | None:  # noqa: ANN401 - a type
    words = name.upper().replace("_", "-")
    named = {int: "N", float: "NUMBER", Path: "DIR" if name.endswith("dir") else "FILE", str: words}
    if isinstance(kind, type) and kind in named:
        return named[kind]
    # An optional or repeated value has the name of its element.
    return next((found for member in typing.get_args(kind) if (found := _metavar(name, member))), None)


def _show_version(asked: bool) -> None:  # noqa: FBT001 - typer calls it
    if not asked:
        return
    from edge.system import python_env

    found = [f"{name} {version}" for name in _DISTRIBUTIONS if (version := python_env.distribution_version(name))]
    sys.stdout.write(f"edge {__version__} ({', '.join(found) or 'no backend installed'})\n")
    raise typer.Exit


_Version = Annotated[
    bool, typer.Option("--version", help="Print the versions and exit.", is_eager=True, callback=_show_version)
]


def _top(version: _Version = False) -> None:  # noqa: FBT002 - typer's way of a flag
    del version  # its callback has done the work


def _placeholder() -> None:
    """Make a placeholder for a command whose module is not needed on this command line, with its help text only."""

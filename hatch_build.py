"""Build hook of hatchling: the man page ``edge(1)``, from the help of every command, and the sample model's tables.

pip installs the page as ``share/man/man1/edge.1`` beside ``bin/edge``, where ``man edge`` looks for it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_HEADER = r""".TH EDGE 1 "" "edge {version}" "User Commands"
.SH NAME
edge \- from an ONNX classifier to a measured, shipped, running INT8 engine on NVIDIA Jetson
.SH SYNOPSIS
.B edge
.I COMMAND
[\fIOPTIONS\fR]
.SH DESCRIPTION
One YAML profile says everything about a device, and one command does each step. Data goes to standard output, progress
and messages to standard error.
"""
_FOOTER = r""".SH EXIT STATUS
0 success; 1 a quality gate failed; 2 command line; 3 profile; 4 optional dependency; 5 model; 6 images or labels; 7
table, engine, bundle or record; 8 backend, camera, sensor or power mode; 9 disk; 128+n ended by signal n.
.SH ENVIRONMENT
.TP
.B EDGE_CACHE_DIR
Folder of calibration tables and timing caches, instead of calib_cache.
.TP
.B EDGE_ENGINE_DIR
Folder of engines, instead of engines.
.TP
.B NO_COLOR
Plain lines.
.SH FILES
profiles/NAME.yaml, calib_cache/, engines/ in the working folder or the checkout.
"""


_TABLES = "calib_cache/efficientnet_lite0"
# What a used checkout has beside the tables, and what git ignores: 18 MB and more.
_MADE_AGAIN = (".prepared.", ".stats.", ".partial.", ".lock")


class ManPageAndTables(BuildHookInterface):
    """Add the man page and the sample model's tables to a wheel."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Write the page below build/ and name it among the files that are installed."""
        del version
        page = Path(self.root) / "build" / "edge.1"
        page.parent.mkdir(exist_ok=True)
        page.write_text(render(Path(self.root)), encoding="utf-8")
        build_data["shared_data"][str(page)] = "share/man/man1/edge.1"
        for path in sorted((Path(self.root) / _TABLES).iterdir()):
            if not any(part in path.name for part in _MADE_AGAIN):
                build_data["force_include"][str(path)] = f"edge/data/{_TABLES}/{path.name}"


def render(root: Path) -> str:
    """The page in roff, man macros [man(7)], from the commands of the checkout ``root``."""
    sys.path.insert(0, str(root))
    try:
        import typer

        from edge import __version__
        from edge.cli import COMMAND_GROUPS
        from edge.cli.app import make_app
    finally:
        sys.path.remove(str(root))
    parts = [_HEADER.format(version=__version__)]
    for title, names in COMMAND_GROUPS.items():
        parts.append(f".SH {title.upper()}\n")
        for name in names:
            top: Any = typer.main.get_command(make_app([name]))
            parts += _command(top.commands[name], f"edge {name}")
    return "".join([*parts, _FOOTER])


def _command(command: Any, path: str) -> list[str]:  # noqa: ANN401 - of the Click that typer brings along
    """A command with its parameters, and its sub-commands."""
    parts = [f".SS {_roff(path)}\n", *_paragraphs(command.help or "")]
    context = command.make_context(path, [], resilient_parsing=True)
    for parameter in command.params:
        record = parameter.get_help_record(context)
        if record is not None:
            parts.append(f".TP\n.B {_roff(record[0].partition(' <')[0])}\n{_roff(record[1] or '')}\n")
        elif parameter.param_type_name == "argument":
            parts.append(f".TP\n.I {_roff(parameter.make_metavar(context))}\n{_roff(parameter.help or '')}\n")
    for name, inner in getattr(command, "commands", {}).items():
        parts += _command(inner, f"{path} {name}")
    return parts


def _paragraphs(text: str) -> list[str]:
    blocks = (" ".join(block.split()) for block in text.split("\n\n"))
    return [f".PP\n{_roff(block)}\n" for block in blocks if block]


def _roff(text: str) -> str:
    """The text as one line of roff: a backslash, a hyphen and a leading dot or quote mean something to it."""
    line = " ".join(text.split()).replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{line}" if line.startswith((".", "'")) else line

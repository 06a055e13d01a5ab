"""The command line: one module per command, imported when that command runs.

``COMMAND_GROUPS`` lists the commands. A module has either ``command`` (a function) or ``app`` (a Typer with
sub-commands); the first line of its docstring is the text shown by ``edge --help``.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

from edge.cli import signals
from edge.errors import EdgeError, missing_dependency

__all__ = ["COMMANDS", "COMMAND_GROUPS", "main"]

# Commands by task, as edge --help shows them.
COMMAND_GROUPS: dict[str, dict[str, str]] = {
    "Set up": {
        "init": "Write a profile for your own model.",
        "export": "Export a network of torchvision, timm or a file to ONNX.",
        "doctor": "Show what this machine is and what is missing.",
        "selftest": "Test all functions of edge on this machine.",
        "profile": "List, show and check device profiles.",
        "data": "List, extract and check images.",
    },
    "Quantize": {
        "calibrate": "Make an INT8 calibration table from images.",
        "table": "Show, check, compare and convert calibration tables.",
        "sweep": "Compare calibration algorithms and numbers of images.",
        "tune": "Find the layers that INT8 should leave in float.",
    },
    "Build": {
        "build": "Build the engine that a profile describes.",
        "engine": "Show, compare and list built engines.",
        "cache": "List, verify, merge, clear and fetch caches and tables.",
    },
    "Run": {
        "run": "Classify images or camera frames; report latency and power.",
        "eval": "Measure top-1, top-5 and agreement with FP32.",
        "bench": "Measure an engine with the scenarios of MLPerf Inference.",
        "power": "Show, set and restore the power mode of a Jetson.",
    },
    "Deploy": {
        "bundle": "Make, check, sign and share what a device needs, as one file.",
        "ship": "Ship a bundle to devices; show their state; roll back.",
        "canary": "Try a bundle on this device and compare it with the previous one.",
        "service": "Keep edge run going as a systemd service.",
    },
    "Look": {
        "report": "Make an HTML page from run records.",
        "schema": "Print the JSON schema of a profile, record or manifest.",
    },
}
COMMANDS: dict[str, str] = {name: text for group in COMMAND_GROUPS.values() for name, text in group.items()}


def main() -> NoReturn:
    """Run the ``edge`` command, translate errors to exit codes, and exit the process."""
    signals.install()
    try:
        from edge.cli.app import make_app

        make_app(sys.argv[1:])(prog_name="edge")
        code = 0
    except SystemExit as exc:
        code = _code_of(exc)
    except EdgeError as exc:
        _report(exc)
        code = exc.exit_code
    except ModuleNotFoundError as exc:
        # Most modules import NumPy at their top; its absence is translated here only.
        dependency = missing_dependency(exc)
        if dependency is None:
            raise
        _report(dependency)
        code = dependency.exit_code
    except signals.Stopped as exc:
        sys.stderr.write(f"stopped by {signal.Signals(exc.number).name}\n")
        code = 128 + exc.number
    except BrokenPipeError:
        code = _reader_is_gone()
    sys.exit(code)


def _code_of(exc: SystemExit) -> int:
    """Return the intended exit code: Click and rich use 1, that of a quality gate, when they swallow an exception."""
    cause: BaseException | None = exc.__context__
    while cause is not None:
        if isinstance(cause, BrokenPipeError):
            return _reader_is_gone()
        if isinstance(cause, EOFError):
            # Click uses this for Ctrl-D at a prompt. edge has no prompts: it is a bug, and keeps its traceback.
            raise cause
        cause = cause.__cause__ or cause.__context__
    return exc.code if isinstance(exc.code, int) else int(exc.code is not None)


def _reader_is_gone() -> int:
    """Exit quietly when the reader of stdout has gone (`edge … | head`)."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE


def _report(exc: EdgeError) -> None:
    from edge.ui.terminal import Terminal

    Terminal().error(exc)

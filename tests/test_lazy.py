"""`import edge` and every `--help` work on a machine that has none of the guests (DESIGN decision 2).

Each check runs in a process of its own in which importing a guest raises ModuleNotFoundError, as it does where it is
not installed; what was asked for is written to a file, so that a swallowed error is noticed too.
"""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edge.cli import COMMANDS

GUESTS = (
    "numpy", "cv2", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx", "pycuda", "jtop", "pynvml", "llvmlite",
    "google_crc32c", "flatbuffers",
)  # fmt: skip

# Kept apart from the code under test: a finder that comes first and refuses, and a note of what was asked.
BLOCKER = """
import importlib.metadata, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            with open("asked.txt", "a") as file:
                file.write(name + "\\n")
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None

    def find_distributions(self, context=importlib.metadata.DistributionFinder.Context()):
        if context.name in BLOCKED:
            raise importlib.metadata.PackageNotFoundError(context.name)
        return []

sys.meta_path.insert(0, Blocker())
"""

CLI = Path(importlib.import_module("edge.cli").__file__ or "").parent

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def without_guests(tmp_path: Path) -> Run:
    """Run Python code in a process where no guest, or only some of them, can be imported."""

    def run(code: str, *, blocked: tuple[str, ...] = GUESTS) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", f"BLOCKED = {blocked!r}\n{BLOCKER}{code}"]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=60)

    return run


def asked(tmp_path: Path) -> list[str]:
    path = tmp_path / "asked.txt"
    return path.read_text().split() if path.exists() else []


def edge(*arguments: str) -> str:
    """Code that runs the command line as `python -m edge ...` does."""
    return f"import runpy\nsys.argv = ['edge', *{arguments!r}]\nrunpy.run_module('edge', run_name='__main__')\n"


@pytest.mark.parametrize("guest", GUESTS)
def test_the_blocker_blocks(guest: str, without_guests: Run, tmp_path: Path) -> None:
    done = without_guests(f"import {guest}")
    assert done.returncode == 1
    assert f"No module named '{guest}'" in done.stderr
    assert asked(tmp_path) == [guest]


@pytest.mark.parametrize(
    "code",
    [
        "import edge",
        "import edge.cli",
        "import edge.errors, edge.events, edge.config.profiles, edge.artifacts.run_record, edge.stats",
        "import edge.artifacts.store, edge.ui.terminal",
        "import edge.model.onnx_model, edge.model.preprocessing, edge.media.labels, edge.system.device, edge.backends",
        "import edge.backends.onnxruntime, edge.backends.fake, edge.media, edge.telemetry.sampler",
        "import edge.quantization.calibration_table, edge.quantization.table_check",
    ],
)
def test_importing_needs_no_guest(code: str, without_guests: Run, tmp_path: Path) -> None:
    done = without_guests(code)
    assert done.returncode == 0, done.stderr
    assert asked(tmp_path) == []


def test_help_needs_no_guest_and_names_every_command(without_guests: Run, tmp_path: Path) -> None:
    done = without_guests(edge("--help"))
    assert done.returncode == 0, done.stderr
    assert asked(tmp_path) == []
    for name, text in COMMANDS.items():
        assert any(line.split() == [name, *text.split()] for line in done.stdout.splitlines()), name


def test_help_imports_no_command(without_guests: Run) -> None:
    """With ten commands the start would otherwise be ten times as slow."""
    allowed = sorted(f"edge.cli.{name}" for name in ("app", "signals"))
    code = (
        "import atexit\n"
        "atexit.register(lambda: print(sorted(m for m in sys.modules if m.startswith('edge.cli.'))))\n" + edge("--help")
    )
    assert without_guests(code).stdout.splitlines()[-1] == str(allowed)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_needs_no_guest(name: str, without_guests: Run, tmp_path: Path) -> None:
    done = without_guests(edge(name, "--help"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.lstrip().startswith("Usage: edge " + name)
    assert asked(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "command"),
    [(name, command) for name in COMMANDS for command in [
        node.decorator_list[0].args[0].value if getattr(node.decorator_list[0], "args", None) else node.name
        for node in ast.parse((CLI / f"{name}.py").read_text()).body
        if isinstance(node, ast.FunctionDef) and any("app.command" in ast.unparse(d) for d in node.decorator_list)
    ]],
    ids=lambda value: value,
)  # fmt: skip
def test_the_help_of_a_sub_command_needs_no_guest(name: str, command: str, without_guests: Run, tmp_path: Path) -> None:
    done = without_guests(edge(name, command, "--help"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.lstrip().startswith(f"Usage: edge {name} {command}")
    assert asked(tmp_path) == []


def test_a_missing_guest_is_an_error_with_its_install_line(without_guests: Run, tmp_path: Path) -> None:
    done = without_guests(
        "from edge.errors import require, MissingDependencyError\n"
        "try:\n    require('cv2')\nexcept MissingDependencyError as exc:\n    print(exc)\n"
    )
    assert done.stdout.startswith("cv2 is not installed\n  try: pip install 'jetson-edge[host]'")


WORK = {
    "calibrate": ["calibrate", "--profile", "tiny.yaml", "--images", "in", "--cache-dir", "cache"],
    "build": ["build", "--profile", "tiny.yaml", "--precision", "fp32", "--engine-dir", "engines"],
    "run": ["run", "--profile", "tiny.yaml", "--precision", "fp32", "--images", "in", "--engine-dir", "engines"],
    "eval": ["eval", "--profile", "tiny.yaml", "--precision", "fp32", "--images", "in", "--engine-dir", "engines"],
}


@pytest.mark.parametrize(
    ("command", "guest"),
    [
        ("calibrate", "onnx"),
        ("calibrate", "onnxruntime"),
        ("calibrate", "cv2"),
        ("calibrate", "llvmlite"),
        ("build", "onnx"),
        ("build", "onnxruntime"),
        *((name, "numpy") for name in WORK),
    ],
)
def test_a_command_without_its_guest_ends_with_exit_code_4(
    command: str,
    guest: str,
    without_guests: Run,
    tiny_profile: Callable[..., Path],
    pictures: Callable[..., list[Path]],
    tmp_path: Path,
) -> None:
    tiny_profile(tmp_path)
    pictures("in", 2, labels=True)
    done = without_guests(edge(*WORK[command]), blocked=(guest,))
    assert done.returncode == 4, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert f"{guest} is not installed" in done.stderr or f"needs {guest}, which is not installed" in done.stderr
    assert "pip install" in done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_the_text_in_the_table_of_contents_is_the_commands_own(name: str) -> None:
    """``edge --help`` shows COMMANDS, ``edge <name> --help`` the module's docstring: they must not part."""
    text = ast.get_docstring(ast.parse((CLI / f"{name}.py").read_text()))
    assert text is not None
    assert text.splitlines()[0] == COMMANDS[name]


def test_every_command_has_exactly_one_way_in() -> None:
    for name in COMMANDS:
        module = importlib.import_module(f"edge.cli.{name}")
        assert hasattr(module, "app") != hasattr(module, "command"), name


def test_every_module_of_a_command_is_in_the_table_of_contents() -> None:
    """A module with ``command`` or ``app`` that nobody can reach is a mistake."""
    reachable = {
        path.stem
        for path in CLI.glob("*.py")
        for node in ast.parse(path.read_text()).body
        if (isinstance(node, ast.FunctionDef) and node.name == "command")
        or (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "app")
    }
    assert reachable == set(COMMANDS)

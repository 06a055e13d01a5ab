"""``import edge`` and every ``--help`` work on a machine that has none of the optional dependencies.

One process in which importing an optional dependency raises ModuleNotFoundError, as it does where it is not installed,
imports the modules and prints every help text. It writes down what was imported, so a swallowed error is noticed too.
"""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from edge.cli import COMMANDS
from edge.config import read_profile
from tests.support import calibrated

OPTIONAL = (
    "numpy", "cv2", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx", "pycuda", "jtop", "pynvml",
    "google_crc32c", "jinja2", "matplotlib", "distributed", "oras", "requests", "packaging", "starlette",
    "uvicorn", "prometheus_client",
)  # fmt: skip

# Independent of the code under test: a finder that comes first, refuses, and writes down what was asked for.
BLOCKER = """
import importlib.metadata, sys

asked = []

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            asked.append(name)
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None

    def find_distributions(self, context=importlib.metadata.DistributionFinder.Context()):
        if context.name in BLOCKED:
            raise importlib.metadata.PackageNotFoundError(context.name)
        return []

sys.meta_path.insert(0, Blocker())
"""

# Prints one JSON object: for every step, what it printed, how it ended, and what it asked for.
STEPS = """
import contextlib, importlib, io, json, traceback

def step(do):
    asked.clear()
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            do()
        except SystemExit as exc:
            code = exc.code
        except BaseException:
            traceback.print_exc()
            code = -1
    modules = sorted(name for name in sys.modules if name.startswith("edge.cli."))
    return {"code": code, "out": out.getvalue(), "err": err.getvalue(), "asked": list(asked), "modules": modules}

def show_help(arguments):
    from edge.cli import main
    sys.argv = ["edge", *arguments, "--help"]
    main()

found = {name: step(lambda: importlib.import_module(name)) for name in BLOCKED + MODULES[:1]}
found |= {"edge " + " ".join(line): step(lambda: show_help(line)) for line in LINES}
found |= {name: step(lambda: importlib.import_module(name)) for name in MODULES}
print(json.dumps(found))
"""

EDGE = Path(importlib.import_module("edge").__file__ or "").parent
CLI = EDGE / "cli"


def _packages() -> list[str]:
    return sorted(
        ".".join(path.parent.relative_to(EDGE.parent).parts)
        for path in EDGE.rglob("__init__.py")
        if path.parent != EDGE
    )


def _sub_commands(name: str) -> list[str]:
    """Names that a command's module gives to its sub-commands."""
    return [
        node.decorator_list[0].args[0].value if getattr(node.decorator_list[0], "args", None) else node.name  # type: ignore[attr-defined]
        for node in ast.parse((CLI / f"{name}.py").read_text()).body
        if isinstance(node, ast.FunctionDef) and any("app.command" in ast.unparse(item) for item in node.decorator_list)
    ]


# Modules that must not need an optional dependency before one of their functions is called: all interfaces, and these.
MODULES = (
    "edge", *_packages(), "edge.errors", "edge.events", "edge.stats",
    "edge.artifacts.store", "edge.artifacts.run_record",
    "edge.config.profiles", "edge.model.onnx_model", "edge.model.preprocessing", "edge.media.labels",
    "edge.media.pictures", "edge.system.device", "edge.backends.onnxruntime", "edge.backends.fake",
    "edge.telemetry.sampler", "edge.quantization.calibration_table", "edge.quantization.table_check",
)  # fmt: skip
LINES = ((), *((name,) for name in COMMANDS), *((name, sub) for name in COMMANDS for sub in _sub_commands(name)))


class Step(NamedTuple):
    """What one step left behind."""

    code: int
    out: str
    err: str
    asked: list[str]
    modules: list[str]


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Step]:
    """All steps, of one process."""
    code = f"BLOCKED, MODULES, LINES = {OPTIONAL!r}, {MODULES!r}, {LINES!r}\n{BLOCKER}{STEPS}"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120,
        cwd=tmp_path_factory.mktemp("lazy"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {name: Step(**found) for name, found in json.loads(done.stdout).items()}


@pytest.fixture
def without(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """``without("cv2", code)``: Python code in a process where one library cannot be imported."""

    def run(library: str, code: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", f"BLOCKED = {(library,)!r}\n{BLOCKER}{code}"]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=60)

    return run


def test_the_blocker_blocks(steps: dict[str, Step]) -> None:
    for library in OPTIONAL:
        assert steps[library].code == -1
        assert f"No module named '{library}'" in steps[library].err
        assert steps[library].asked == [library]


def test_importing_needs_no_optional_dependency(steps: dict[str, Step]) -> None:
    assert {name: steps[name] for name in MODULES if steps[name].code != 0 or steps[name].asked} == {}


def test_help_names_every_command_and_imports_none(steps: dict[str, Step]) -> None:
    ended = steps["edge "]
    assert (ended.code, ended.err, ended.asked) == (0, "", [])
    for name, text in COMMANDS.items():
        assert any(line.split() == [name, *text.split()] for line in ended.out.splitlines()), name
    assert ended.modules == ["edge.cli.app", "edge.cli.signals"]


@pytest.mark.parametrize("line", LINES[1:], ids=" ".join)
def test_the_help_of_a_command_needs_no_optional_dependency(line: tuple[str, ...], steps: dict[str, Step]) -> None:
    ended = steps["edge " + " ".join(line)]
    assert (ended.code, ended.err, ended.asked) == (0, "", [])
    assert ended.out.lstrip().startswith("Usage: edge " + " ".join(line))


def test_a_missing_dependency_is_an_error_with_its_install_line(without: Callable[..., Any]) -> None:
    done = without(
        "cv2",
        "from edge.errors import require, MissingDependencyError\n"
        "try:\n    require('cv2')\nexcept MissingDependencyError as exc:\n    print(exc)\n",
    )
    assert done.stdout.startswith(f"cv2 is not installed\n  try: {sys.executable} -m pip install ")


WORK = {
    "calibrate": ["calibrate", "--profile", "tiny.yaml", "--images", "in", "--cache-dir", "cache"],
    "build": ["build", "--profile", "tiny.yaml", "--precision", "fp32", "--engine-dir", "engines"],
    "run": ["run", "--profile", "tiny.yaml", "--precision", "fp32", "--images", "in"],
    "eval": ["eval", "--profile", "tiny.yaml", "--precision", "fp32", "--images", "in", "--engine-dir", "engines"],
}


@pytest.mark.parametrize(
    ("command", "library"),
    [
        ("calibrate", "onnx"),
        ("calibrate", "cv2"),
        ("build", "onnxruntime"),
        ("build", "numpy"),
        ("run", "numpy"),
        ("eval", "numpy"),
    ],
)
def test_a_command_without_its_dependency_ends_with_exit_code_4(
    command: str,
    library: str,
    without: Callable[..., Any],
    tiny_profile: Callable[..., Path],
    pictures: Callable[..., list[Path]],
    tmp_path: Path,
) -> None:
    tiny_profile(tmp_path)
    pictures("in", 2, labels=True)
    arguments = ["edge", *WORK[command]]
    done = without(library, f"import runpy\nsys.argv = {arguments!r}\nrunpy.run_module('edge', run_name='__main__')\n")
    assert done.returncode == 4, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert f"{library} is not installed" in done.stderr or f"needs {library}, which is not installed" in done.stderr
    assert "pip install" in done.stderr


def test_the_text_in_the_table_of_contents_is_the_commands_own() -> None:
    """``edge --help`` shows COMMANDS, ``edge NAME --help`` the module's docstring: they must agree."""
    for name, shown in COMMANDS.items():
        text = ast.get_docstring(ast.parse((CLI / f"{name}.py").read_text()))
        assert text is not None, name
        assert text.splitlines()[0] == shown, name


def test_every_command_has_exactly_one_entry_point() -> None:
    for name in COMMANDS:
        module = importlib.import_module(f"edge.cli.{name}")
        assert hasattr(module, "app") != hasattr(module, "command"), name


def test_every_module_of_a_command_is_in_the_table_of_contents() -> None:
    """A module with ``command`` or ``app`` that no command line reaches is a mistake."""
    reachable = {
        path.stem
        for path in CLI.glob("*.py")
        for node in ast.parse(path.read_text()).body
        if (isinstance(node, ast.FunctionDef) and node.name == "command")
        or (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "app")
    }
    assert reachable == set(COMMANDS)


STARTUP = """
import os, runpy, sys, threading

# Several threads read pictures: the first one answers.
first = threading.Lock()

def look(event, arguments):
    if event == "open" and str(arguments[0]).endswith(".jpg") and first.acquire(blocking=False):
        names = [name for name, module in sys.modules.items() if name.split(".")[0] == "edge" and module.__spec__]
        os.write(1, "\\n".join(sorted(names)).encode())
        os._exit(0)

sys.addaudithook(look)
runpy.run_module("edge", run_name="__main__")
"""
# Files of edge that a run executes before it reads its first picture, those of its packages included.
MOST_FILES = 70


def test_a_run_executes_few_files_before_its_first_picture(
    tiny_profile: Callable[..., Path], pictures: Callable[..., list[Path]], tmp_path: Path
) -> None:
    path = tiny_profile(tmp_path / "profiles")
    pictures(tmp_path / "p", 2)
    calibrated.built(read_profile(path), tmp_path / "p", cache=tmp_path / "calib_cache", engines=tmp_path / "engines")
    command = [sys.executable, "-c", STARTUP, "run", "--profile", "tiny", "--images", "p"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    names = done.stdout.split()
    assert "edge.runtime.run_loop" in names, done.stderr
    assert len(names) <= MOST_FILES, names

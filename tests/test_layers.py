"""The layout of the package, checked on its source: imports, adapters of foreign libraries, sizes, names.

Every module is parsed once. Imports are read from the syntax tree wherever they stand: at the top, in a function, under
TYPE_CHECKING, or as ``require("name")`` and ``import_module("name")``.
"""

from __future__ import annotations

import ast
import functools
import graphlib
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "edge"

# Layer of every module and package on the top level of edge. An import points down, or stays inside its package.
LAYERS: dict[str, int] = {
    "edge": 0, "errors": 0, "events": 0, "stats": 0,
    "artifacts": 1,
    "config": 2,
    "media": 3, "model": 3, "system": 3,
    "quantization": 4, "telemetry": 4,
    "backends": 5,
    "calibration": 6, "reports": 6,
    "engines": 7, "runtime": 7,
    "deploy": 8,
    "diagnostics": 9, "tuning": 9,
    "ui": 10,
    "cli": 11,
    "__main__": 12,
}  # fmt: skip

# Which module or package may import which foreign library; one that is not here may be imported nowhere.
ADAPTERS: dict[str, frozenset[str]] = {
    "cv2": frozenset({"media.pictures", "model.preprocessing"}),
    "distributed": frozenset({"calibration.dask_workers"}),
    "filelock": frozenset({"artifacts.store"}),
    "google": frozenset({"backends.tensorrt.onnx_variants", "media.tfrecord", "model.onnx_model"}),  # protobuf
    "google_crc32c": frozenset({"media.tfrecord"}),
    "jinja2": frozenset({"reports.html"}),
    "matplotlib": frozenset({"reports.html"}),
    "onnx": frozenset({
        "backends.onnxruntime", "backends.tensorrt.onnx_variants",
        "calibration.collection", "model", "quantization",
    }),
    # Sessions in backends.onnxruntime alone; the others use its converters of ONNX files.
    "onnxslim": frozenset({"model.torch_export"}),
    "timm": frozenset({"model.torch_export"}),
    "torch": frozenset({"model.torch_export"}),
    "torchvision": frozenset({"model.torch_export"}),
    "onnxruntime": frozenset({
        "backends.onnxruntime", "backends.tensorrt.onnx_variants",
    }),
    "jtop": frozenset({"telemetry.jtop"}),
    "oras": frozenset({"deploy.registry.client"}),
    "packaging": frozenset({"deploy.bundle.wheels"}),
    "paho": frozenset({"runtime.notify"}),
    "PIL": frozenset({"media.pictures"}),
    "pillow_heif": frozenset({"media.pictures"}),
    "pycuda": frozenset({"backends.cuda.driver"}),
    "pynvml": frozenset({"telemetry.nvml"}),
    "requests": frozenset({"deploy.registry.client"}),  # comes with oras
    "rich": frozenset({"cli.doctor", "ui.terminal"}),
    "prometheus_client": frozenset({"ui.web.metrics"}),
    "starlette": frozenset({"ui.web"}),
    "tensorrt": frozenset({"backends.tensorrt.environment"}),
    "tensorrt_rtx": frozenset({"backends.tensorrt.environment"}),
    "tensorrt_rtx_bindings": frozenset({"backends.tensorrt.environment"}),
    "typer": frozenset({"cli"}),
    "uvicorn": frozenset({"ui.web.app"}),
    "urllib3": frozenset({"deploy.registry.client"}),
    "yaml": frozenset({"deploy.bundle.creation", "cli.profile", "config.yaml_source"}),
}  # fmt: skip
EVERYWHERE = frozenset({"msgspec"})  # describes data in every layer
NUMPY_LAYERS = range(3, 10)  # and in functions of stats; never reached by `edge --help`

# Modules that import by a name which is not written out, and why.
DYNAMIC: dict[str, str] = {
    "edge": "the lazy exports of packages",
    "errors": "require() itself",
    "system.python_env": "looks at every optional dependency, to report it",
    "media.tfrecord": "its own dependencies, under one message",
    "cli.app": "the module of the command that was asked for",
}

# What ends a process below the command line, and why.
ENDINGS: dict[tuple[str, str], str] = {
    ("calibration.worker_processes", "os._exit"): "a worker whose parent was killed has nobody to raise to",
}
ENDS_OR_PRINTS = frozenset(
    {"print", "input", "exit", "quit", "sys.exit", "os._exit", "sys.stdout.write", "sys.stderr.write"}
)

FORBIDDEN_NAMES = frozenset({"utils", "util", "helpers", "helper", "common", "misc"})
MAX_TOP_LEVEL_ENTRIES = 24
MAX_MODULE_LINES = 600
MAX_FUNCTION_LINES = 60
MAX_EXCEPTIONS = 10


class Import(NamedTuple):
    """One imported name: ``import base`` has no name; a base of ``?`` is not written out."""

    base: str
    name: str
    alias: str | None
    line: int


class Module(NamedTuple):
    path: Path
    text: str
    tree: ast.Module
    imports: list[Import]

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"


def imports_of(tree: ast.Module) -> Iterator[Import]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, "", alias.asname, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from (Import(base, alias.name, alias.asname, node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and _called(node) in {"require", "import_module", "__import__"}:
            given = node.args[0] if node.args else None
            written = isinstance(given, ast.Constant) and isinstance(given.value, str)
            yield Import(given.value if written else "?", "", None, node.lineno)  # type: ignore[union-attr]


def _called(node: ast.Call) -> str:
    return node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")


@functools.cache
def all_modules() -> dict[str, Module]:
    """Every module by its dotted name below ``edge``; the package itself is ``edge``."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        text = path.read_text()
        tree = ast.parse(text)
        found[".".join(parts) or "edge"] = Module(path, text, tree, list(imports_of(tree)))
    return found


@functools.cache
def all_packages() -> frozenset[str]:
    return frozenset(name for name, module in all_modules().items() if module.is_package and name != "edge")


def interface(package: str) -> frozenset[str]:
    """The ``__all__`` of a package."""
    for node in all_modules()[package].tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return frozenset(ast.literal_eval(node.value))
    return frozenset()


def own_module(item: Import) -> str | None:
    """The module of edge behind an import, or None for a foreign one."""
    full = f"{item.base}.{item.name}".rstrip(".").split(".")
    if full[0] != "edge":
        return None
    while len(full) > 1 and ".".join(full[1:]) not in all_modules():
        full.pop()
    return ".".join(full[1:]) or "edge"


def inside(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def top(module: str) -> str:
    return module.split(".", 1)[0]


def package_of(module: str) -> str:
    return module if module in all_packages() else module.rpartition(".")[0]


def problem_of(importing: str, item: Import) -> str | None:
    """Describe what is wrong with one import of module ``importing``, or return None."""
    if item.base.startswith("."):
        return "relative import"
    target = own_module(item)
    if target is None:
        return adapter_problem(importing, item)
    if item.alias is not None:
        return f"alias {item.alias} of an own module or name"
    if top(importing) != top(target) and LAYERS.get(top(target), 99) >= LAYERS.get(top(importing), -1):
        return f"imports {target}, which is not below it"
    package = package_of(target)
    if package and not inside(package_of(importing), package):
        if item.base != f"edge.{package}":
            if f"{item.base}.{item.name}" == f"edge.{package}":
                return None  # the package itself: what is used of it is checked by mypy
            return f"imports from {item.base} past the interface of edge.{package}"
        if item.name not in interface(package):
            return f"imports {item.name}, which is not in edge.{package}.__all__"
    return None


def adapter_problem(importing: str, item: Import) -> str | None:
    library = item.base.split(".")[0]
    if library == "?":
        return None if importing in DYNAMIC else "imports a name that is not written out"
    if library in sys.stdlib_module_names or library in EVERYWHERE:
        return None
    if library == "numpy":
        allowed = importing == "stats" or LAYERS.get(top(importing), 99) in NUMPY_LAYERS
        return None if allowed else "numpy belongs to layers 3 to 9"
    if library not in ADAPTERS:
        return f"no adapter owns {library}: put it into ADAPTERS"
    if any(inside(importing, owner) for owner in ADAPTERS[library]):
        return None
    return f"{library} belongs to {', '.join(sorted(ADAPTERS[library]))}"


def imported_at_once(body: list[ast.stmt]) -> Iterator[ast.ImportFrom]:
    """The ``from … import …`` that run when a module is imported: not those in functions or for type checkers."""
    for node in body:
        if isinstance(node, ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If):
            is_typing = "TYPE_CHECKING" in ast.dump(node.test)
            yield from imported_at_once(node.orelse if is_typing else node.body + node.orelse)
        elif isinstance(node, ast.Try):
            yield from imported_at_once(node.body)


def exported_by(package: str) -> dict[str, str]:
    """The module of every name that a package imports when it is asked for it."""
    calls = [node for node in ast.walk(all_modules()[package].tree) if isinstance(node, ast.Call)]
    tables = [ast.literal_eval(call.args[1]) for call in calls if _called(call) == "lazy_exports"]
    return {name: f"{package}.{module}" for table in tables for module, names in table.items() for name in names}


def test_modules_can_be_imported_in_any_order() -> None:
    """No module needs, to be imported, one that needs it: which of two comes first is up to the command."""
    exported = {package: exported_by(package) for package in all_packages()}
    needs: dict[str, set[str]] = {}
    for name, module in all_modules().items():
        needs[name] = set()
        for node in imported_at_once(module.tree.body):
            base = (node.module or "").removeprefix("edge").removeprefix(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}".strip(".")
                needs[name].add(inner if inner in all_modules() else exported.get(base, {}).get(alias.name, base))
        needs[name] &= all_modules().keys() - {name}
    # It raises CycleError, which names the modules of the circle.
    graphlib.TopologicalSorter(needs).prepare()


def test_imports() -> None:
    """Down, through interfaces, without aliases, and every foreign library in its adapter."""
    wrong = [
        f"{module.path}:{item.line}: {problem}"
        for name, module in all_modules().items()
        for item in module.imports
        if (problem := problem_of(name, item))
    ]
    assert not wrong, "\n".join(wrong)


def test_interfaces_name_what_exists() -> None:
    """What ``__all__`` and the lazy exports of a package name is there, and no export hides a module."""
    wrong = []
    for package in sorted(all_packages()):
        exported = {}
        for node in ast.walk(all_modules()[package].tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("edge."):
                exported |= {alias.name: node.module for alias in node.names}
            if isinstance(node, ast.Call) and _called(node) == "lazy_exports":
                lazy = {n: f"edge.{package}.{m}" for m, ns in ast.literal_eval(node.args[1]).items() for n in ns}
                given = {n: m for n, m in exported.items() if n != "lazy_exports"}
                wrong += [f"{package}: lazy exports and imports differ: {set(lazy) ^ set(given)}"] * (lazy != given)
        modules = {name.rpartition(".")[2] for name in all_modules() if name.rpartition(".")[0] == package}
        wrong += [f"{package}: {name} is not there" for name in interface(package) - set(exported) - modules
                  if not _defines(package, name)]  # fmt: skip
        lazy_names = set(exported) if "lazy_exports" in exported else set()
        wrong += [f"{package}: export {name} has the name of a module" for name in lazy_names & modules]
    assert not wrong, "\n".join(wrong)


def _defines(module: str, name: str) -> bool:
    return any(
        getattr(node, "name", None) == name or (isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == name)
        for node in all_modules()[module].tree.body
    )


def test_every_module_has_a_layer_and_the_tables_name_what_is_used() -> None:
    assert {top(name) for name in all_modules()} == set(LAYERS)
    entries = [path for path in PACKAGE.iterdir() if path.name != "__pycache__"]
    assert len(entries) <= MAX_TOP_LEVEL_ENTRIES
    used = {(name, item.base.split(".")[0]) for name, module in all_modules().items() for item in module.imports}
    # The two libraries that media.tfrecord needs are named in the arguments of its own function.
    unused = [
        (library, owner)
        for library, owners in ADAPTERS.items()
        for owner in owners - {"media.tfrecord"}
        if not any(used_library == library and inside(name, owner) for name, used_library in used)
    ]
    assert unused == []
    assert sorted(DYNAMIC.keys() - {name for name, library in used if library == "?"}) == []


@pytest.mark.parametrize(
    ("module", "source", "problem"),
    [
        ("artifacts.store", "from edge.config import Profile", "not below"),
        ("errors", "from edge import artifacts", "not below"),
        ("artifacts.store", "import edge.cli", "not below"),
        ("media.pictures", "from edge.model import Preprocessor", "not below"),
        ("calibration.workflow", "def f():\n    from edge.engines import building", "not below"),
        ("system.device", "if TYPE_CHECKING:\n    from edge.quantization import Table", "not below"),
        ("errors", "import_module('edge.ui')", "not below"),
        ("engines.building", "from edge.quantization.calibration_table import Table", "past the interface"),
        ("engines.building", "from edge.backends.tensorrt.environment import load", "past the interface"),
        ("engines.building", "from edge.quantization import nothing_of_the_kind", "__all__"),
        ("engines.building", "from edge.quantization import Table as T", "alias"),
        ("engines.building", "from . import inventory", "relative"),
        ("backends.tensorrt.environment", "from edge.backends.interface import Backend", None),
        ("backends.registry", "from edge.backends.tensorrt.environment import load", "past the interface"),
        ("engines.building", "from edge.engines.inventory import scan", None),
        ("engines.building", "from edge.errors import UsageError", None),
        ("engines.building", "from edge.quantization import Table", None),
        ("runtime.run_loop", "import cv2", "cv2 belongs"),
        ("config.profiles", "def f():\n    import numpy", "numpy belongs"),
        ("cli.run", "import numpy as np", "numpy belongs"),
        ("engines.building", "from onnx import helper", "onnx belongs"),
        ("ui.terminal.terminal", "from typer import echo", "typer belongs"),
        ("telemetry.board", "import_module('jtop')", "jtop belongs"),
        ("runtime.run_loop", "import tensorflow", "no adapter"),
        ("runtime.run_loop", "import_module(name)", "not written out"),
    ],
)
def test_the_check_finds(module: str, source: str, problem: str | None) -> None:
    (item,) = imports_of(ast.parse(source))
    found = problem_of(module, item)
    assert (found is None) if problem is None else problem in (found or "")


# house rules


def test_modules_and_functions_are_small_and_named_for_what_they_are() -> None:
    wrong = []
    for name, module in all_modules().items():
        lines = len(module.text.splitlines())
        wrong += [f"{module.path} has {lines} lines"] * (lines > MAX_MODULE_LINES)
        wrong += [f"{name}: a name that says nothing"] * bool(FORBIDDEN_NAMES & set(name.split(".")))
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) is not None else node.body
                size = body[-1].end_lineno - body[0].lineno + 1 if body else 0  # type: ignore[operator]
                wrong += [f"{module.path}:{node.lineno}: {node.name} has {size} lines"] * (size > MAX_FUNCTION_LINES)
    assert not wrong, "\n".join(wrong)


def test_a_class_name_means_one_thing() -> None:
    names = Counter(
        node.name
        for module in all_modules().values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_one_tree_of_at_most_ten_exceptions() -> None:
    """All in ``errors``; only the signal handler's BaseException is outside."""
    raised = {"Exception", "BaseException", "EdgeError"}
    found = []
    for _ in range(2):  # the second round knows the classes of the first
        found = [
            (name, node.name)
            for name, module in all_modules().items()
            for node in ast.walk(module.tree)
            if isinstance(node, ast.ClassDef)
            and any(ast.unparse(base).rsplit(".", 1)[-1] in raised or ast.unparse(base).endswith("Error")
                    for base in node.bases)
        ]  # fmt: skip
        raised |= {name for _module, name in found}
    assert 2 <= len([name for module, name in found if module == "errors"]) <= MAX_EXCEPTIONS
    assert [item for item in found if item[0] != "errors"] == [("cli.signals", "Stopped")]


def test_nothing_below_the_user_interface_exits_or_prints() -> None:
    found = {
        (name, ast.unparse(node.func))
        for name, module in all_modules().items()
        if LAYERS.get(top(name), 0) < LAYERS["ui"]
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call)
    }
    assert {call for _name, call in found - ENDINGS.keys()} & ENDS_OR_PRINTS == set()

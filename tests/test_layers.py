"""The walls of the design, checked on the source: who imports whom, who owns which foreign library, how big things are.

Imports are read from the syntax tree wherever they stand: at the top, in a function, under TYPE_CHECKING, or as
``require("name")`` and ``import_module("name")``.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "edge"

# Layer of every module or sub-package of edge. An import must go down, or stay inside its own package.
LAYERS: dict[str, float] = {
    "edge": 0,
    "errors": 0,
    "document": 0.5,
    "events": 1,
    "nvpmodel": 1,
    "profile": 1,
    "record": 1,
    "stats": 1,
    "store": 1,
    "backends": 2,
    "calibration": 2,
    "device": 2,
    "distance": 2,
    "frames": 2,
    "heartbeat": 2,
    "interpreter": 2,
    "labels": 2,
    "model": 2,
    "pages": 2,
    "preprocess": 2,
    "telemetry": 2,
    "transport": 2,
    "timeline": 2.1,
    "doubts": 2.1,
    "tally": 2.4,
    "identity": 2.5,
    "observe": 2.5,
    "pulse": 2.5,
    "power": 2.5,
    "crowd": 2.6,
    "fleet": 2.6,
    "bundle": 2.7,
    "registry": 2.8,
    "bench": 3,
    "build": 3,
    "calibrate": 3,
    "doctor": 3,
    "engines": 3,
    "evaluate": 3,
    "loop": 3,
    "report": 3,
    "service": 3,
    "ship": 3,
    "flows": 3.5,
    "ui": 4,
    "cli": 4.5,
    "web": 4.2,
    "__main__": 5,
}

# Sideways imports that are wanted: (importing module or package, imported module) -> why.
SEAMS: dict[tuple[str, str], str] = {
    ("profile", "store"): "the digest of a profile is the store's canonical digest",
    ("record", "store"): "a record is written as every other file is",
    ("record", "stats"): "a record holds summaries",
    ("backends.base", "calibration.table"): "a build request carries the table",
    ("backends.ort", "calibration.qdq"): "an INT8 engine is the Q/DQ form that the table gives",
    ("backends.ort", "model"): "an engine is built from the checked model",
    ("backends.cuda", "preprocess"): "the kernel computes what the one definition says",
    ("backends.trt", "calibration.check"): "which entries of a table the parsed network uses",
    ("backends.trt", "calibration.qdq"): "the explicit route builds from Q/DQ nodes",
    ("backends.trt", "calibration.table"): "the implicit route hands the table to a calibrator",
    ("backends.trt", "device"): "an engine belongs to the device that it was built on",
    ("backends.trt", "model"): "an engine is built from the checked model",
    ("frames.check", "labels"): "pictures and their true classes are checked together",
    ("frames.extract", "labels"): "what is extracted keeps its true classes",
    ("frames.lists", "labels"): "a list of pictures is a truth file",
    ("frames.pictures", "labels"): "file names are shown without bytes that a terminal cannot show",
    ("frames.sources", "labels"): "a folder may hold a truth file",
    ("frames.replay", "labels"): "and so is that of a recording",
    ("frames.video", "labels"): "and so is that of a video",
    ("frames.tfrecord", "labels"): "names from a shard are shown the same way",
}

# Which modules (or packages) may import which foreign library; a library that is not here may be imported nowhere.
ROOMS: dict[str, frozenset[str]] = {
    "cv2": frozenset({"frames.decoding", "frames.jpeg", "preprocess"}),
    "distributed": frozenset({"crowd.cluster"}),
    "filelock": frozenset({"store"}),
    "flatbuffers": frozenset({"calibration.flat_table"}),
    "google": frozenset({"backends.trt.forms", "frames.tfrecord", "model"}),  # protobuf
    "google_crc32c": frozenset({"frames.tfrecord"}),
    "jinja2": frozenset({"pages.document"}),
    "llvmlite": frozenset({"calibration.kernel"}),
    "matplotlib": frozenset({"pages.document", "pages.plot"}),
    "onnx": frozenset(
        {
            "backends.blocked", "backends.ort", "backends.ort_graph", "backends.trt.forms", "calibration.convert",
            "calibration.network", "calibration.qdq", "calibration.template", "calibration.weights", "model",
        }
    ),
    # Sessions in backends.ort alone; the others use its converters of ONNX files.
    "onnxruntime": frozenset({"backends.ort", "backends.ort_graph", "backends.trt.forms", "calibration.qdq"}),
    "jtop": frozenset({"telemetry.jtop"}),
    "oras": frozenset({"registry.client"}),
    "packaging": frozenset({"bundle.wheels"}),
    "pycuda": frozenset({"backends.cuda.driver"}),
    "pynvml": frozenset({"telemetry.nvml"}),
    "requests": frozenset({"registry.client"}),  # comes with oras
    "rich": frozenset({"cli.doctor", "ui"}),
    "prometheus_client": frozenset({"web.metrics"}),
    "starlette": frozenset({"web"}),
    "tensorrt": frozenset({"backends.trt.caps"}),
    "tensorrt_rtx": frozenset({"backends.trt.caps"}),
    "tensorrt_rtx_bindings": frozenset({"backends.trt.caps"}),
    "typer": frozenset({"cli"}),
    "uvicorn": frozenset({"web.server"}),
    "urllib3": frozenset({"registry.client"}),
    "yaml": frozenset({"bundle.create", "cli.profile", "document"}),
}  # fmt: skip
# msgspec describes data in every layer; numpy is the language of L2 and L3 (and never reached by `edge --help`).
EVERYWHERE = frozenset({"msgspec"})
NUMPY_LAYERS = (2, 3.5)

# Modules that import by a name which is not written out, and why.
DYNAMIC: dict[str, str] = {
    "errors": "require() itself",
    "interpreter": "looks at every guest, to report it",
    "frames.tfrecord": "its own guests, under one message",
    "cli.app": "the module of the command that was asked for",
}

# What ends a process below the command line, and why.
ENDINGS: dict[tuple[str, str], str] = {
    ("crowd.processes", "os._exit"): "a worker whose parent was killed has nobody to raise to",
}

ENDS_OR_PRINTS = frozenset(
    {"print", "input", "exit", "quit", "sys.exit", "os._exit", "sys.stdout.write", "sys.stderr.write"}
)

FORBIDDEN_NAMES = frozenset({"utils", "util", "helpers", "helper", "common", "misc"})
MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_EXCEPTIONS = 10


def modules() -> dict[str, Path]:
    """Path of every module by its dotted name below ``edge``; the package itself is ``edge``."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        found[".".join(parts) or "edge"] = path
    return found


MODULES = modules()


def imports(name: str, source: str) -> Iterator[tuple[str, int]]:
    """Absolute dotted names that module ``name`` imports, with line numbers; ``?`` for a name not written out."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                is_package = name == "edge" or (name in MODULES and MODULES[name].name == "__init__.py")
                own = ["edge", *([] if name == "edge" else name.split("."))]
                base = ".".join([*own[: len(own) - node.level + is_package], *([base] if base else [])])
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and _called(node) in {"require", "import_module", "__import__"}:
            given = node.args[0] if node.args else None
            written = isinstance(given, ast.Constant) and isinstance(given.value, str)
            yield (given.value if written else "?", node.lineno)  # type: ignore[union-attr]


def _called(node: ast.Call) -> str:
    return node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")


def own_module(imported: str) -> str | None:
    """The module of edge behind an imported name (``edge.model.load`` is ``model``), or None for a foreign one."""
    parts = imported.split(".")
    if parts[0] != "edge":
        return None
    while len(parts) > 1 and ".".join(parts[1:]) not in MODULES:
        parts.pop()
    return ".".join(parts[1:]) or "edge"


def inside(module: str, package: str) -> bool:
    """Whether ``module`` is ``package`` or lies in it."""
    return module == package or module.startswith(f"{package}.")


def unit(module: str) -> str:
    return module.split(".", 1)[0]


def wrong_direction(importing: str, imported: str) -> bool:
    """Whether an import inside edge goes up or sideways, and is no seam."""
    if unit(importing) == unit(imported) or any(
        imported == target and inside(importing, source) for source, target in SEAMS
    ):
        return False
    # A unit that is missing from the table belongs nowhere; its own test says so.
    return LAYERS.get(unit(imported), 9) >= LAYERS.get(unit(importing), 0)


def owner_problem(module: str, library: str) -> str | None:
    """Why ``module`` may not import ``library``, or None."""
    if library in sys.stdlib_module_names or library in EVERYWHERE:
        return None
    if library == "numpy":
        low, high = NUMPY_LAYERS
        return None if low <= LAYERS.get(unit(module), 9) <= high else "numpy is for L2 and L3"
    if library not in ROOMS:
        return f"no module owns {library}: put it into ROOMS"
    rooms = ROOMS[library]
    if any(inside(module, room) for room in rooms):
        return None
    return f"{library} belongs to {', '.join(sorted(rooms))}"


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down(name: str) -> None:
    wrong = []
    for imported, line in imports(name, MODULES[name].read_text()):
        target = own_module(imported)
        if target is not None and wrong_direction(name, target):
            wrong.append(f"{MODULES[name]}:{line}: {name} imports {target}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", MODULES)
def test_foreign_libraries_stay_in_their_rooms(name: str) -> None:
    wrong = []
    for imported, line in imports(name, MODULES[name].read_text()):
        library = imported.split(".")[0]
        if library == "?":
            if name not in DYNAMIC:
                wrong.append(f"{MODULES[name]}:{line}: imports a name that is not written out")
        elif library != "edge" and (problem := owner_problem(name, library)):
            wrong.append(f"{MODULES[name]}:{line}: {problem}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", MODULES)
def test_every_module_has_a_layer(name: str) -> None:
    assert unit(name) in LAYERS, f"put {unit(name)} into LAYERS, and into DESIGN's table"


def test_the_exceptions_are_still_needed() -> None:
    """A seam or a room that nobody uses any more is taken off the list."""
    edges, guests, dynamic = set(), set(), set()
    for name, path in MODULES.items():
        for imported, _line in imports(name, path.read_text()):
            target = own_module(imported)
            edges.add((name, target))
            guests.add((imported.split(".")[0], name))
            dynamic |= {name} if imported == "?" else set()
    assert [
        (source, target)
        for source, target in SEAMS
        if not any(imported == target and inside(name, source) for name, imported in edges)
    ] == []
    # The two libraries that frames.tfrecord needs are named in the arguments of its own function.
    kept = [(library, room) for library, rooms in ROOMS.items() for room in rooms if room != "frames.tfrecord"]
    assert [
        (library, room)
        for library, room in kept
        if not any(library == guest and inside(name, room) for guest, name in guests)
    ] == []
    assert sorted(DYNAMIC.keys() - dynamic) == []


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("store", "from edge import profile", ["profile"]),
        ("store", "import edge.cli", ["cli"]),
        ("profile", "from edge.store import digest", []),
        ("profile", "from edge import record", ["record"]),
        ("calibrate", "from edge.build import build", ["build"]),
        ("calibrate", "from edge.flows import sweep", ["flows"]),
        ("build", "from edge import calibrate as c", ["calibrate"]),
        ("preprocess", "def f():\n    from edge.frames.decoding import decode", ["frames.decoding"]),
        ("device", "if TYPE_CHECKING:\n    from edge.model import Model", ["model"]),
        ("telemetry.hwmon", "from ..device import identify", ["device"]),
        ("telemetry.hwmon", "from . import sysfs", []),
        ("telemetry", "from .. import model", ["model"]),
        ("calibration.collect", "from edge.backends.ort import OrtSession", ["backends.ort"]),
        ("errors", "from edge import store", ["store"]),
        ("observe", "from edge import identity", ["identity"]),
        ("errors", "import_module('edge.ui')", ["ui"]),
        ("brand_new", "from edge import errors", ["errors"]),
    ],
)
def test_the_walker_finds(module: str, source: str, wrong: list[str]) -> None:
    targets = [own_module(imported) or "" for imported, _line in imports(module, source)]
    # `flows` and `brand_new` are not there yet: the name itself stands for the module.
    targets = ["flows" if "edge.flows" in source else target for target in targets]
    assert [target for target in targets if wrong_direction(module, target)] == wrong


@pytest.mark.parametrize(
    ("module", "source", "library"),
    [
        ("loop", "import cv2", "cv2"),
        ("model", "cv2 = errors.require('cv2')", "cv2"),
        ("profile", "def f():\n    import numpy", "numpy"),
        ("cli.run", "import numpy as np", "numpy"),
        ("build", "from onnx import helper", "onnx"),
        ("observe", "import onnxruntime.quantization", "onnxruntime"),
        ("ui", "from typer import echo", "typer"),
        ("loop", "import torch", "torch"),
        ("telemetry.board", "import_module('jtop')", "jtop"),
    ],
)
def test_the_walker_finds_guests(module: str, source: str, library: str) -> None:
    found = [imported.split(".")[0] for imported, _line in imports(module, source)]
    assert found == [library]
    assert owner_problem(module, library)


# house rules


@pytest.mark.parametrize("name", MODULES)
def test_modules_are_small_and_named_for_what_they_are(name: str) -> None:
    assert len(MODULES[name].read_text().splitlines()) <= MAX_MODULE_LINES
    assert not FORBIDDEN_NAMES & set(name.split("."))


@pytest.mark.parametrize("name", MODULES)
def test_functions_are_small(name: str) -> None:
    long = []
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            size = body[-1].end_lineno - body[0].lineno + 1 if body else 0  # type: ignore[operator]
            if size > MAX_FUNCTION_LINES:
                long.append(f"{MODULES[name]}:{node.lineno}: {node.name} has {size} lines")
    assert not long, "\n".join(long)


def test_one_tree_of_at_most_ten_exceptions() -> None:
    """All in ``errors``; only the signal handler's BaseException stands outside."""
    raised = {"Exception", "BaseException", "EdgeError"}
    found = []
    for _ in range(2):  # the second round knows the classes of the first
        found = [
            (name, node.name)
            for name, path in MODULES.items()
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ClassDef)
            and any(ast.unparse(base).rsplit(".", 1)[-1] in raised or ast.unparse(base).endswith("Error")
                    for base in node.bases)
        ]  # fmt: skip
        raised |= {name for _module, name in found}
    inside = [name for module, name in found if module == "errors"]
    assert 2 <= len(inside) <= MAX_EXCEPTIONS
    assert [item for item in found if item[0] != "errors"] == [("cli.signals", "Stopped")]


@pytest.mark.parametrize("name", [name for name in MODULES if LAYERS.get(unit(name), 0) < 4])
def test_nothing_below_the_command_line_exits_or_prints(name: str) -> None:
    calls = (node for node in ast.walk(ast.parse(MODULES[name].read_text())) if isinstance(node, ast.Call))
    found = {(name, ast.unparse(node.func)) for node in calls}
    assert {call for _name, call in found - ENDINGS.keys()} & ENDS_OR_PRINTS == set()

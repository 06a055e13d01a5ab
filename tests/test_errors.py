"""The tree of errors: exit codes, the text of a message, optional dependencies, and what the disk says."""

from __future__ import annotations

import copy
import errno
import os
import pickle
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edge import errors
from edge.errors import (
    ArtifactError,
    DataError,
    DeviceError,
    EdgeError,
    MissingDependencyError,
    ModelError,
    ProfileError,
    QualityError,
    StoreError,
    UsageError,
    os_error,
    require,
)

CODES = {
    QualityError: 1,
    UsageError: 2,
    ProfileError: 3,
    MissingDependencyError: 4,
    ModelError: 5,
    DataError: 6,
    ArtifactError: 7,
    DeviceError: 8,
    StoreError: 9,
}


def test_the_public_table_of_exit_codes_holds() -> None:
    """People write these numbers into scripts: changing one is a breaking change."""
    found = {cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, EdgeError)}
    assert found == {EdgeError, *CODES}
    assert {cls: cls.exit_code for cls in CODES} == CODES


@pytest.mark.parametrize("kind", CODES, ids=lambda kind: kind.__name__)
def test_the_table_in_the_docstring_is_the_one_in_the_code(kind: type[EdgeError]) -> None:
    rows = [line.split() for line in (errors.__doc__ or "").splitlines() if kind.__name__ in line.split()]
    assert len(rows) == 1
    assert str(kind.exit_code) in rows[0]


@pytest.mark.parametrize(
    ("where", "hint", "text"),
    [
        (None, None, "it broke"),
        ("a.yaml:3", None, "a.yaml:3: it broke"),
        (Path("a.yaml"), None, "a.yaml: it broke"),
        (None, "mend it", "it broke\n  try: mend it"),
        ("a.yaml", "mend it", "a.yaml: it broke\n  try: mend it"),
    ],
    ids=["what", "place", "path", "hint", "all"],
)
def test_a_message_says_what_where_and_what_next(where: str | Path | None, hint: str | None, text: str) -> None:
    assert str(EdgeError("it broke", where=where, hint=hint)) == text


def test_place_and_hint_cannot_be_mixed_up() -> None:
    with pytest.raises(TypeError):
        EdgeError("what", "where")  # type: ignore[misc]


@pytest.mark.parametrize("travel", [copy.copy, lambda exc: pickle.loads(pickle.dumps(exc))], ids=["copy", "pickle"])
def test_an_error_survives_the_way_from_another_process(travel) -> None:
    original = ModelError("model file does not exist", where=Path("a/b.onnx"), hint="export it")
    back = travel(original)
    assert (type(back), str(back), back.where, back.hint) == (ModelError, str(original), "a/b.onnx", "export it")


# optional dependencies


def test_require_gives_the_module() -> None:
    assert require("json") is sys.modules["json"]
    assert require("os.path") is os.path


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write a module that can be imported by its name, here only."""
    monkeypatch.syspath_prepend(str(tmp_path))
    made = []

    def make(name: str, source: str) -> str:
        (tmp_path / f"{name}.py").write_text(source)
        made.append(name)
        return name

    yield make
    for name in made:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("dependency", errors.DEPENDENCIES)
def test_every_dependency_has_an_install_line(dependency: str) -> None:
    line = errors.DEPENDENCIES[dependency]
    assert f"{sys.executable} -m pip install " in line
    extra = re.search(r"\[(\w+)\]", line)
    if extra is not None:
        assert f"\n{extra[1]} = [\n" in (Path(errors.__file__).parents[1] / "pyproject.toml").read_text()


def test_a_dependency_that_is_not_there() -> None:
    with pytest.raises(MissingDependencyError) as caught:
        require("no_such_dependency_of_ours")
    assert caught.value.what == "no_such_dependency_of_ours is not installed"
    assert caught.value.hint == f"{sys.executable} -m pip install no_such_dependency_of_ours"
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_a_dependency_that_lacks_a_library_of_its_own(module) -> None:
    with pytest.raises(MissingDependencyError) as caught:
        require(module("half_there", "import the_other_half_of_it"))
    assert caught.value.what == "half_there needs the_other_half_of_it, which is not installed"
    assert caught.value.hint == f"{sys.executable} -m pip install the_other_half_of_it"


@pytest.mark.parametrize(
    "source",
    [
        "raise ImportError('libnvinfer.so.10: cannot open shared object file')",
        "raise OSError('libcuda.so.1: no such file: libnvinfer.so.10')",
        "raise RuntimeError('module compiled against API version 0x10, libnvinfer.so.10')",
        "raise AttributeError('_ARRAY_API not found, libnvinfer.so.10')",
        # What Cython modules say when built for another NumPy, and protobuf when generated code is too old.
        "raise ValueError('numpy.dtype size changed, may indicate binary incompatibility, libnvinfer.so.10')",
        "raise TypeError('Descriptors cannot be created directly, libnvinfer.so.10')",
    ],
    ids=lambda source: source.split("(")[0].split()[1],
)
def test_a_dependency_that_is_broken_keeps_its_own_words(module, source: str) -> None:
    with pytest.raises(MissingDependencyError) as caught:
        require(module("broken_dependency", source))
    assert caught.value.what.startswith("broken_dependency is installed but cannot be imported: ")
    assert "libnvinfer.so.10" in caught.value.what
    assert "None" not in (caught.value.hint or "")
    assert caught.value.__cause__ is not None


def test_a_mistake_in_code_is_not_taken_for_a_missing_dependency(module) -> None:
    with pytest.raises(ZeroDivisionError):
        require(module("with_a_bug", "1 / 0"))


# the disk


@pytest.mark.parametrize(
    ("number", "word"),
    [
        (errno.ENOSPC, "free some disk space"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "no permission"),
        (errno.EPERM, "no permission"),
    ],
    ids=lambda value: errno.errorcode.get(value, "") if isinstance(value, int) else "",
)
def test_os_errors_come_with_the_next_step(number: int, word: str) -> None:
    exc = os_error(OSError(number, os.strerror(number)), "a/b.table")
    assert isinstance(exc, StoreError)
    assert exc.where == "a/b.table"
    assert exc.what == f"cannot write: {os.strerror(number)}"
    assert word in (exc.hint or "")


def test_an_os_error_without_a_number() -> None:
    exc = os_error(OSError("odd"), Path("x"))
    assert (exc.what, exc.hint) == ("cannot write: odd", None)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["profile", "check", "nothing.yaml"], 3, ["nothing.yaml: there is no such profile", "edge profile list"]),
        (["build", "--profile", "no-such-profile"], 3, ["there is no profile 'no-such-profile'"]),
        (["--no-such-option"], 2, ["no-such-option"]),
        (["no-such-command"], 2, ["no-such-command"]),
        (["table", "show", "nothing.table"], 2, ["nothing.table: the file does not exist"]),
    ],
    ids=["profile", "name", "option", "command", "table"],
)
def test_the_command_line_ends_with_the_code_and_no_traceback(
    arguments: list[str], code: int, words: list[str]
) -> None:
    command = [sys.executable, "-m", "edge", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    for word in words:
        assert word in " ".join(done.stderr.split())


def test_a_bug_keeps_its_traceback() -> None:
    """What is not ours must not be dressed up as an expected failure."""
    code = (
        "import sys, edge.cli\nsys.argv = ['edge', 'doctor']\nimport edge.cli.doctor\n"
        "def command() -> None: raise ZeroDivisionError('a bug')\nedge.cli.doctor.command = command\nedge.cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ZeroDivisionError: a bug" in done.stderr


def test_a_signal_waits_until_the_dependency_is_there(module: Callable[[str, str], str]) -> None:
    """In the middle of its initialization, a dependency in C would say that it does not import, or end the process."""

    class Stop(BaseException):
        pass

    def stop(_number: int, _frame: object) -> None:
        raise Stop

    source = (
        "import signal\ntry:\n    signal.raise_signal(signal.SIGTERM)\nexcept BaseException as exc:\n"
        "    raise ImportError('initialization failed') from exc\nfinished = True\n"
    )
    before = signal.signal(signal.SIGTERM, stop)
    try:
        with pytest.raises(Stop):
            require(module("slow_dependency", source))
        assert sys.modules["slow_dependency"].finished
        assert signal.getsignal(signal.SIGTERM) is stop
    finally:
        signal.signal(signal.SIGTERM, before)


def test_onnxruntime_reports_nothing_to_its_maker(tmp_path: Path) -> None:
    """Its official builds send events and keep an identifier in the home folder, unless they are told not to."""
    code = (
        "import os; from edge.errors import require; ort = require('onnxruntime'); ort.SessionOptions();"
        "print(os.environ['ORT_DISABLE_TELEMETRY'])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": "", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
    assert list(tmp_path.rglob("*")) == []

"""What can go wrong, as one tree; each class carries its exit code.

::

    EdgeError
    ├── QualityError    1  a quality gate failed (accuracy, agreement, quantized share)
    ├── UsageError      2  the command line asks for something impossible
    ├── ProfileError    3  a profile is missing or wrong
    ├── MissingDependencyError      4  an optional dependency is missing, too old or broken
    ├── ModelError      5  an ONNX file is not what edge can work with
    ├── DataError       6  pictures, lists, labels or frames are unusable
    ├── ArtifactError   7  a table, statistics, engine or manifest is corrupt, foreign or stale
    ├── DeviceError     8  a backend, camera, sensor or power mode failed
    └── StoreError      9  the disk: full, read-only, locked, not permitted

0 is success, 128+n means signal n. Anything else that escapes is a bug and keeps its traceback.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from types import ModuleType


class EdgeError(Exception):
    """Root of every expected failure: what happened, where, and what to do next."""

    exit_code: ClassVar[int] = 3

    def __init__(self, what: str, *, where: str | os.PathLike[str] | None = None, hint: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = None if where is None else os.fspath(where)
        self.hint = hint

    def __str__(self) -> str:
        text = self.what if self.where is None else f"{self.where}: {self.what}"
        return text if self.hint is None else f"{text}\n  try: {self.hint}"


class QualityError(EdgeError):
    """A quality gate failed: the work was done, and the result is not good enough."""

    exit_code = 1


class UsageError(EdgeError):
    """The command line asks for something impossible."""

    exit_code = 2


class ProfileError(EdgeError):
    """A profile is missing or wrong."""

    exit_code = 3


class MissingDependencyError(EdgeError):
    """An optional dependency is missing, too old or broken."""

    exit_code = 4


class ModelError(EdgeError):
    """An ONNX file is not what edge can work with."""

    exit_code = 5


class DataError(EdgeError):
    """Pictures, lists, labels or frames are unusable."""

    exit_code = 6


class ArtifactError(EdgeError):
    """A table, statistics, engine or manifest is corrupt, foreign or stale."""

    exit_code = 7


class DeviceError(EdgeError):
    """A backend, camera, sensor or power mode failed."""

    exit_code = 8


class StoreError(EdgeError):
    """The disk refused: full, read-only, locked, not permitted."""

    exit_code = 9


# How each optional dependency arrives; shown when it is missing, and by `edge doctor`.
DEPENDENCIES: dict[str, str] = {
    "numpy": "pip install 'jetson-edge[host]'",
    "cv2": "pip install 'jetson-edge[host]'  (on a Jetson: sudo apt install libopencv-python, which has GStreamer)",
    "onnx": "pip install 'jetson-edge[host]'",
    "onnxruntime": "pip install 'jetson-edge[host]'",
    "flatbuffers": "pip install 'jetson-edge[host]'",
    "pycuda": "PATH=/usr/local/cuda/bin:$PATH pip install pycuda",
    "pynvml": "pip install 'jetson-edge[nvml]'  (nvidia-ml-py)",
    "jtop": "sudo pip install jetson-stats  (AGPL-3.0, so edge does not bring it: your choice)",
    "distributed": "pip install 'jetson-edge[dask]'",
    "packaging": "pip install packaging",
    "oras": "pip install 'jetson-edge[registry]'",
    "requests": "pip install 'jetson-edge[registry]'",
    "jinja2": "pip install 'jetson-edge[report]'",
    "prometheus_client": "pip install 'jetson-edge[web]'",
    "starlette": "pip install 'jetson-edge[web]'",
    "uvicorn": "pip install 'jetson-edge[web]'",
    "matplotlib": "pip install 'jetson-edge[report]'  (on a Jetson also: sudo apt install python3-matplotlib)",
}


def require(name: str) -> ModuleType:
    """Import the optional dependency ``name``, or say how to install it.

    Raises:
        MissingDependencyError: it is missing, or it is there and fails to import (the cause is kept).
    """
    try:
        with contextlib.nullcontext() if name in sys.modules else _signals_wait():
            return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        missing = exc.name or name
        what = f"{name} is not installed" if missing == name else f"{name} needs {missing}, which is not installed"
        raise MissingDependencyError(
            what, hint=DEPENDENCIES.get(missing, DEPENDENCIES.get(name, f"pip install {missing}"))
        ) from exc
    except (ImportError, OSError, RuntimeError, AttributeError, TypeError, ValueError) as exc:
        # An optional dependency built for another NumPy, protobuf or CUDA fails in its own way: keep its words.
        raise MissingDependencyError(
            f"{name} is installed but does not import: {exc}",
            hint=f"edge doctor; or reinstall it: {DEPENDENCIES.get(name, f'pip install --force-reinstall {name}')}",
        ) from exc


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    """Signals that come in here are handled at the end.

    A handler that raises in the middle of a dependency's initialization is taken for its failure: onnxruntime makes an
    ImportError of it, and onnx ends the process (nanobind, std::terminate). Blocking them would leave them to the
    optional dependencies' other threads.
    """
    if threading.current_thread() is not threading.main_thread():
        # Handlers run in the main thread.
        yield
        return
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    ours = {number: handler for number, handler in before.items() if callable(handler)}
    for number in ours:
        signal.signal(number, lambda which, _frame: came.append(which))
    try:
        yield
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)
        for which in came:
            signal.raise_signal(which)


def missing_dependency(exc: ModuleNotFoundError) -> MissingDependencyError | None:
    """The error for a dependency that an import statement did not find; None when it is no dependency, so a bug."""
    name = (exc.name or "").partition(".")[0]
    return MissingDependencyError(f"{name} is not installed", hint=DEPENDENCIES[name]) if name in DEPENDENCIES else None


def os_error(exc: OSError, path: str | os.PathLike[str]) -> StoreError:
    """Translate an OSError met while writing ``path`` into words a user can act on."""
    import errno

    hints = {
        errno.EEXIST: "a file stands where a folder is needed: choose another path",
        errno.ENOTDIR: "a file stands where a folder is needed: choose another path",
        errno.EFBIG: "files of this size are not allowed here: see `ulimit -f`",
        errno.ENOSPC: "free some disk space and run the same command again; nothing half-written was kept",
        errno.EDQUOT: "the quota is used up: free some space and run the same command again",
        errno.EROFS: "the file system is read-only: choose another folder",
        errno.EACCES: "no permission: choose another folder, or change its owner",
        errno.EPERM: "no permission: choose another folder, or change its owner",
    }
    reason = exc.strerror or str(exc)
    return StoreError(f"cannot write: {reason}", where=Path(path), hint=hints.get(exc.errno or 0))

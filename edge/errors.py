"""Exception tree of the expected errors. Each class has its own exit code.

::

    EdgeError
    ├── QualityError    1  a quality gate failed (accuracy, agreement, quantized share)
    ├── UsageError      2  the command line is invalid
    ├── ProfileError    3  a profile is missing or wrong
    ├── MissingDependencyError      4  an optional dependency is missing, too old or broken
    ├── ModelError      5  an ONNX file cannot be used by edge
    ├── DataError       6  images, lists, labels or frames are unusable
    ├── ArtifactError   7  a table, statistics, engine or manifest is corrupt, foreign or stale
    ├── DeviceError     8  a backend, camera, sensor or power mode failed
    └── StoreError      9  a file cannot be written: disk full, read-only, locked, not permitted

0 is success, 128+n means signal n. Any other exception is a bug and is shown with its traceback.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from types import ModuleType


class EdgeError(Exception):
    """Base class of every expected failure. It carries what happened, where, and what to do next."""

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
    """A quality gate failed: the command finished, but its result is not good enough."""

    exit_code = 1


class UsageError(EdgeError):
    """The command line is invalid."""

    exit_code = 2


class ProfileError(EdgeError):
    """A profile is missing or wrong."""

    exit_code = 3


class MissingDependencyError(EdgeError):
    """An optional dependency is missing, too old or broken."""

    exit_code = 4


class ModelError(EdgeError):
    """An ONNX file cannot be used by edge."""

    exit_code = 5


class DataError(EdgeError):
    """Images, lists, labels or frames are unusable."""

    exit_code = 6


class ArtifactError(EdgeError):
    """A table, statistics, engine or manifest is corrupt, foreign or stale."""

    exit_code = 7


class DeviceError(EdgeError):
    """A backend, camera, sensor or power mode failed."""

    exit_code = 8


class StoreError(EdgeError):
    """A file cannot be written: the disk is full, read-only or locked, or permission is missing."""

    exit_code = 9


def install_command(*packages: str, extra: str | None = None) -> str:
    """Return a shell command that installs ``packages`` for the running Python.

    In a checkout the command installs the ``extra``; elsewhere it names the packages, because ``jetson-edge`` is not on
    PyPI.
    """
    python = shlex.quote(sys.executable or "python3")
    checkout = Path(__file__).resolve().parents[1]
    if extra is not None and (checkout / "pyproject.toml").is_file():
        return f"{python} -m pip install -e {shlex.quote(f'{checkout}[{extra}]')}"
    return f"{python} -m pip install {' '.join(map(shlex.quote, packages))}"


_HOST = ("numpy>=1.26", "onnx>=1.16", "onnxruntime>=1.20", "opencv-python-headless>=4.9")
_WEB = ("prometheus_client>=0.20", "starlette>=0.40", "uvicorn>=0.30")
_REPORT = ("Jinja2>=3.1", "matplotlib>=3.9")
_EXPORT = ("torch>=2.6", "torchvision", "timm", "onnxscript", "onnxslim")
# How to install each optional dependency. Shown when it is missing, and by `edge doctor`.
DEPENDENCIES: dict[str, str] = {
    **dict.fromkeys(("numpy", "onnx", "onnxruntime"), install_command(*_HOST, extra="host")),
    "cv2": f"{install_command(*_HOST, extra='host')}  (on a Jetson: sudo apt install libopencv-python, for GStreamer)",
    "pycuda": f"PATH=/usr/local/cuda/bin:$PATH {install_command('pycuda', extra='jetson')}",
    "pynvml": install_command("nvidia-ml-py", extra="nvml"),
    "jtop": f"{install_command('jetson-stats', extra='jtop')}  (AGPL-3.0, so edge does not install it for you)",
    "distributed": install_command("distributed>=2024.8", extra="dask"),
    "packaging": install_command("packaging"),
    **dict.fromkeys(("oras", "requests"), install_command("oras>=0.2.43", extra="registry")),
    **dict.fromkeys(("google", "google_crc32c"), install_command("google-crc32c", "protobuf", extra="tfrecord")),
    "jinja2": install_command(*_REPORT, extra="report"),
    "matplotlib": f"{install_command(*_REPORT, extra='report')}  (on a Jetson: sudo apt install python3-matplotlib)",
    **dict.fromkeys(("prometheus_client", "starlette", "uvicorn"), install_command(*_WEB, extra="web")),
    **dict.fromkeys(
        ("torch", "torchvision", "timm", "onnxscript", "onnxslim"), install_command(*_EXPORT, extra="export")
    ),
    "tensorrt_rtx": install_command("tensorrt-rtx-cu13-libs", "tensorrt-rtx-cu13-bindings", extra="rtx"),
    **dict.fromkeys(("PIL", "pillow_heif"), install_command("pillow>=11.3", "pillow-heif>=1.0", extra="heif")),
    **dict.fromkeys(("paho", "paho.mqtt.client"), install_command("paho-mqtt>=2.0", extra="mqtt")),
}


def require(name: str) -> ModuleType:
    """Import the optional dependency ``name``; if that fails, raise an error that says how to install it.

    Raises:
        MissingDependencyError: it is not installed, or its import fails (then chained to the cause).
    """
    if name == "onnxruntime":
        # Official builds report their use to Microsoft, on Linux since 1.3x, and keep an identifier in ~/.cache. The
        # setting is read when the module is imported; a user's own value holds [onnxruntime, Privacy.md].
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        with contextlib.nullcontext() if name in sys.modules else _signals_wait():
            return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        missing = exc.name or name
        what = (
            f"{missing} is not installed"
            if name.partition(".")[0] == missing
            else f"{name} needs {missing}, which is not installed"
        )
        raise MissingDependencyError(
            what, hint=DEPENDENCIES.get(missing, DEPENDENCIES.get(name, install_command(missing)))
        ) from exc
    except (ImportError, OSError, RuntimeError, AttributeError, TypeError, ValueError) as exc:
        # A package built for another NumPy, protobuf or CUDA fails with its own exception: quote its message.
        raise MissingDependencyError(
            f"{name} is installed but cannot be imported: {exc}",
            hint=f"edge doctor; or reinstall it: {DEPENDENCIES.get(name, install_command(name))}",
        ) from exc


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    """Delay signals that arrive inside the block until its end.

    If a handler raises during a dependency's initialization, onnxruntime turns the exception into an ImportError, and
    onnx ends the process (nanobind, std::terminate). Blocking the signals instead would deliver them to the threads of
    those libraries.
    """
    if threading.current_thread() is not threading.main_thread():
        # Python runs handlers in the main thread only.
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
    """Return the error for a failed import of an optional dependency; None for any other module, which is a bug."""
    name = (exc.name or "").partition(".")[0]
    return MissingDependencyError(f"{name} is not installed", hint=DEPENDENCIES[name]) if name in DEPENDENCIES else None


def os_error(exc: OSError, path: str | os.PathLike[str]) -> StoreError:
    """Translate an OSError raised while writing ``path`` into a StoreError with a hint."""
    import errno

    hints = {
        errno.EEXIST: "a file exists where a folder is needed: choose another path",
        errno.ENOTDIR: "a file exists where a folder is needed: choose another path",
        errno.EFBIG: "the file size limit is exceeded: see `ulimit -f`",
        errno.ENOSPC: "free some disk space and run the command again; no partial file was left",
        errno.EDQUOT: "the disk quota is used up: free some space and run the command again",
        errno.EROFS: "the file system is read-only: choose another folder",
        errno.EACCES: "no permission: choose another folder or change its owner",
        errno.EPERM: "no permission: choose another folder or change its owner",
    }
    reason = exc.strerror or str(exc)
    return StoreError(f"cannot write: {reason}", where=Path(path), hint=hints.get(exc.errno or 0))

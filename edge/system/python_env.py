"""The Python environment: interpreter, virtual environment, user, and the optional dependencies it can import."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec

from edge.errors import MissingDependencyError, require

# Distributions that may provide the module of each optional dependency.
DISTRIBUTIONS: dict[str, tuple[str, ...]] = {
    "numpy": ("numpy",),
    "cv2": (
        "opencv-python",
        "opencv-python-headless",
        "opencv-contrib-python",
        "opencv-contrib-python-headless",
    ),
    "onnx": ("onnx",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "tensorrt": ("tensorrt",),
    "pycuda": ("pycuda",),
    "jtop": ("jetson-stats",),
}


# Code that fails where the module is not whole: of a folder that an uninstall left, Python makes an empty module.
_IMPORTED_APART = {
    "tensorrt": "tensorrt.Logger; print(tensorrt.__version__)",
    "pycuda": "import pycuda.driver; print(pycuda.VERSION_TEXT)",
}
_IMPORT_S = 60.0


class OptionalDependency(msgspec.Struct, frozen=True, kw_only=True):
    """An installed optional dependency. ``problem`` gives the reason if a trial import failed."""

    version: str | None = None
    problem: str | None = None
    distributions: tuple[str, ...] = ()
    gstreamer: bool | None = None


class Process(msgspec.Struct, frozen=True, kw_only=True):
    """The running Python, its user, and the location of its environment."""

    version: str
    executable: str
    prefix: str
    base_prefix: str
    system_site: bool
    user_id: int
    groups: frozenset[int]
    free_mib: int
    dependencies: dict[str, OptionalDependency]

    @property
    def in_venv(self) -> bool:
        """Return True if this is a virtual environment."""
        return self.prefix != self.base_prefix


def this_process() -> Process:
    """Describe the running Python and the optional dependencies that it finds."""
    prefix = Path(sys.prefix)
    try:
        config = (prefix / "pyvenv.cfg").read_text(encoding="utf-8")
    except OSError:
        config = ""
    dependencies = {name: find_dependency(name) for name in DISTRIBUTIONS}
    return Process(
        version=".".join(str(part) for part in sys.version_info[:3]),
        executable=sys.executable,
        prefix=sys.prefix,
        base_prefix=sys.base_prefix,
        system_site=bool(re.search(r"(?mi)^include-system-site-packages\s*=\s*true", config)),
        user_id=os.geteuid(),
        groups=frozenset((os.getegid(), *os.getgroups())),
        free_mib=shutil.disk_usage(Path.cwd()).free >> 20,
        dependencies={name: dependency for name, dependency in dependencies.items() if dependency is not None},
    )


def find_dependency(name: str) -> OptionalDependency | None:
    """Look up the optional dependency ``name``; None when it is not installed.

    Versions come from package metadata. OpenCV is imported, whose build information says whether it has GStreamer, and
    so are optional dependencies without metadata. TensorRT and PyCUDA are imported in a process of their own: after an
    update of JetPack, or in a foreign container, they may fail to load or end the interpreter.
    """
    try:
        if importlib.util.find_spec(name) is None:
            return None
    except (ImportError, ValueError):
        return None
    if name in _IMPORTED_APART:
        return _import_apart(name)
    versions = {name: v for name in DISTRIBUTIONS[name] if (v := distribution_version(name)) is not None}
    version = next(iter(versions.values()), None)
    if version is not None and name != "cv2":
        return OptionalDependency(version=version, distributions=tuple(versions))
    try:
        module = require(name)
    except MissingDependencyError as exc:
        return OptionalDependency(version=version, problem=exc.what, distributions=tuple(versions))
    build = module.getBuildInformation() if name == "cv2" else ""
    gstreamer = re.search(r"GStreamer:\s+(YES|NO)", build)
    return OptionalDependency(
        version=version or getattr(module, "__version__", None),
        distributions=tuple(versions),
        gstreamer=gstreamer[1] == "YES" if gstreamer else None,
    )


def _import_apart(name: str) -> OptionalDependency:
    """Import ``name`` in another process, as this Python would."""
    code = f"import importlib, sys; sys.path[:] = {sys.path!r}\nimport {name}\n{_IMPORTED_APART[name]}"
    distributions = tuple(known for known in DISTRIBUTIONS[name] if distribution_version(known) is not None)
    problem = None
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_IMPORT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return OptionalDependency(problem=f"its import takes more than {_IMPORT_S:.0f} s", distributions=distributions)
    if done.returncode != 0:
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "")
        problem = f"does not import: {last or f'the interpreter ended with {done.returncode}'}"
    version = next((distribution_version(known) for known in distributions), None)
    return OptionalDependency(
        version=version or done.stdout.strip() or None, problem=problem, distributions=distributions
    )


def distribution_version(name: str) -> str | None:
    """Return the version of an installed distribution from its metadata; None if it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None

"""Collect the wheels that install edge on a bare device without a network, for its Python and processor.

The versions are exactly those pinned in ``constraints/jetson.txt`` and ``constraints/bootstrap.txt``, so the same
checkout gives the same wheels at any time. Then it is checked that all requirements of the wheels are included. PyCUDA
has no wheels: its source is included, and ``install.sh`` builds it with the device's nvcc.

Only a checkout of edge can do this: an installed edge has neither its own source nor ``install.sh``.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

import msgspec

from edge.config import Family
from edge.deploy.bundle.manifest import name_problem
from edge.errors import ArtifactError, MissingDependencyError, UsageError, os_error, require
from edge.events import Listener, Note, ignore_events

FOLDER = "wheels"
_SCRIPT = "install.sh"
_PINS = ("constraints/jetson.txt", "constraints/bootstrap.txt")
_BUILD_PINS = "constraints/build.txt"
# The package, and what an installed edge brings along (pyproject.toml, force-include).
_BUILT_FROM = ("edge", "profiles", "models", "samples", "calib_cache/efficientnet_lite0")
# JetPack's major release -> its Python and the oldest glibc of its releases.
_JETPACKS = {"6": ("3.10", 35), "7": ("3.12", 39)}
_OLDEST_GLIBC = 17
_SOURCES = frozenset({"pycuda"})
# edge itself, and requirements that the device provides: install.sh leaves JetPack's OpenCV and NumPy alone.
_EXTRAS = ("", "host", "registry")


class WheelTarget(msgspec.Struct, frozen=True, order=True):
    """Platform of wheels: the Python version ("3.10"), the machine (``uname -m``), and the minor version of glibc 2."""

    python: str
    machine: str
    glibc: int

    def environment(self) -> dict[str, str]:
        """Return the variables for markers [packaging.python.org, "Dependency specifiers"]."""
        return {
            "python_version": self.python, "python_full_version": f"{self.python}.0", "platform_machine": self.machine,
            "sys_platform": "linux", "os_name": "posix", "platform_system": "Linux",
            "implementation_name": "cpython", "platform_python_implementation": "CPython",
        }  # fmt: skip

    def platforms(self) -> list[str]:
        """Return the platform tags of wheels that run there, for pip."""
        tags = [f"manylinux_2_{minor}_{self.machine}" for minor in range(self.glibc, _OLDEST_GLIBC - 1, -1)]
        return [*tags, f"manylinux2014_{self.machine}"]


def targets(family: Family, jetpack: Sequence[str]) -> list[WheelTarget]:
    """Return the platforms of the devices that a bundle is for.

    Raises:
        UsageError: the JetPack of a Jetson is not given, or edge does not know its Python.
    """
    if family in {"host", "rtx"}:
        minor = int((platform.libc_ver()[1] or "2.17").split(".")[1])
        return [WheelTarget(f"3.{sys.version_info.minor}", platform.machine(), minor)]
    if not jetpack:
        raise UsageError("wheels depend on the Python version, so the JetPack must be given", hint="--jetpack 6.2")
    majors = sorted({release.split(".")[0] for release in jetpack})
    unknown = [major for major in majors if major not in _JETPACKS]
    if unknown:
        raise UsageError(f"no wheels for JetPack {unknown[0]}", hint="6 and 7 are in scope")
    return [WheelTarget(_JETPACKS[major][0], "aarch64", _JETPACKS[major][1]) for major in majors]


def gather(folder: Path, wanted: Sequence[WheelTarget], *, listen: Listener = ignore_events) -> dict[str, Path]:
    """Download all packages into ``folder``; return the files by their names in the bundle.

    Raises:
        UsageError: edge is not running from a checkout.
        MissingDependencyError: pip is missing, or cannot download a package.
        ArtifactError: a requirement of a wheel is missing.
        StoreError: a file cannot be written.
    """
    root = _checkout()
    packaging = require("packaging.requirements")
    pins = [line for name in _PINS for line in _lines(root / name)]
    try:
        for target in wanted:
            listen(Note(f"wheels for Python {target.python} on {target.machine}"))
            chosen = [req for req in map(packaging.Requirement, pins) if _applies(req, target)]
            fetch = [f"{req.name}{req.specifier}" for req in chosen if req.name not in _SOURCES]
            _download(folder, target, fetch)
            _shorten(folder, target)
            for req in chosen:
                if req.name in _SOURCES and target.machine == "aarch64":
                    _pip(
                        "download",
                        "--no-deps",
                        "--no-binary",
                        req.name,
                        "-d",
                        str(folder),
                        f"{req.name}{req.specifier}",
                    )
        listen(Note("the wheel of edge itself"))
        _build_edge(root, folder)
        for target in wanted:
            check_complete(folder, target)
        found = {f"{FOLDER}/{path.name}": path for path in sorted(folder.iterdir()) if path.is_file()}
        for name in (_SCRIPT, _PINS[0]):
            found[f"{FOLDER}/{name}"] = root / name
    except OSError as exc:
        raise os_error(exc, exc.filename or folder) from exc
    return found


def check_complete(folder: Path, target: WheelTarget) -> None:
    """Check that the requirements of the wheels in ``folder``, for ``target``, are included.

    Raises:
        ArtifactError: a requirement is missing; the message names it and the wheel that needs it.
    """
    canonical = require("packaging.utils").canonicalize_name
    requirements = require("packaging.requirements")
    there: dict[str, list[str]] = {}
    needs: list[tuple[str, Any]] = []
    for path in _suitable(folder, target):
        metadata = _metadata(path)
        name = canonical(metadata["Name"])
        there.setdefault(name, []).append(metadata["Version"])
        for line in metadata.get_all("Requires-Dist") or []:
            requirement = requirements.Requirement(line)
            if _applies(requirement, target, extras=_EXTRAS if name == "jetson-edge" else ("",)):
                needs.append((name, requirement))
    for name, requirement in needs:
        versions = there.get(canonical(requirement.name), [])
        if not any(requirement.specifier.contains(version, prereleases=True) for version in versions):
            has = f", {', '.join(versions)} is there" if versions else ""
            raise ArtifactError(
                f"{name} needs {requirement.name}{requirement.specifier}{has}",
                where=folder,
                hint=f"pin it in {' or '.join(_PINS)}",
            )


def describe(wanted: Sequence[WheelTarget]) -> dict[str, Any]:
    """Return the entry of the bundle's manifest about its wheels."""
    return {"python": [item.python for item in wanted], "machine": sorted({item.machine for item in wanted})}


def _checkout() -> Path:
    root = Path(__file__).resolve().parents[3]
    missing = [name for name in ("pyproject.toml", _SCRIPT, _BUILD_PINS, *_PINS) if not (root / name).is_file()]
    if missing:
        raise UsageError(
            f"wheels can only be collected in a checkout of edge, but {missing[0]} is missing here",
            where=root,
            hint="git clone, ./install.sh, and run edge from there",
        )
    return root


def _lines(path: Path) -> Iterator[str]:
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.partition("#")[0].strip()
        if text:
            yield text


def _applies(requirement: Any, target: WheelTarget, extras: Sequence[str] = ("",)) -> bool:  # noqa: ANN401
    marker = requirement.marker
    return marker is None or any(marker.evaluate({**target.environment(), "extra": extra}) for extra in extras)


def _download(folder: Path, target: WheelTarget, requirements: Sequence[str]) -> None:
    platforms = [word for tag in target.platforms() for word in ("--platform", tag)]
    _pip(
        "download", "--no-deps", "--only-binary", ":all:", *platforms, "--python-version", target.python,
        "--implementation", "cp", "-d", str(folder), *requirements,
    )  # fmt: skip


def _shorten(folder: Path, target: WheelTarget) -> None:
    """Shorten wheel names with many platform tags to one tag, because names in a bundle have a maximum length.

    pip only looks at the file name [packaging.python.org, "Binary distribution format"].
    """
    for path in folder.glob("*.whl"):
        front, _, tags = path.stem.rpartition("-")
        fitting = [tag for tag in tags.split(".") if tag in target.platforms()]
        if name_problem(path.name) is not None and fitting:
            path.rename(path.with_name(f"{front}-{min(fitting, key=len)}.whl"))


def _build_edge(root: Path, folder: Path) -> None:
    """Build edge's own wheel from a copy of its sources, so that nothing is written into the checkout."""
    copy = folder / "source"
    ignore = shutil.ignore_patterns("__pycache__", "*.prepared.*", "*.stats.*", "*.partial.*", "*.lock")
    for name in _BUILT_FROM:
        shutil.copytree(root / name, copy / name, ignore=ignore)
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        shutil.copy(root / name, copy / name)
    # An absolute path, because pip takes a bare word for the name of a package.
    _pip("wheel", "--no-deps", "-w", str(folder), str(copy.resolve()), build_with=root / _BUILD_PINS)
    shutil.rmtree(copy)


def _pip(*arguments: str, build_with: Path | None = None) -> None:
    try:
        importlib.metadata.version("pip")
    except importlib.metadata.PackageNotFoundError as exc:
        raise MissingDependencyError(
            "pip is not installed next to edge", hint=f"{sys.executable} -m ensurepip"
        ) from exc
    quiet = ("--disable-pip-version-check", "--no-input", "--progress-bar", "off")
    command = [sys.executable, "-m", "pip", arguments[0], *quiet, *arguments[1:]]
    # Since 25.3 pip has a separate setting for build environments; before, one setting was for all.
    # pip cuts these variables at blanks, which an address has none of.
    where = "" if build_with is None else build_with.resolve().as_uri()
    pins = dict.fromkeys(("PIP_BUILD_CONSTRAINT", "PIP_CONSTRAINT"), where) if where else {}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, errors="replace", env={**os.environ, **pins}
    )
    if done.returncode != 0:
        raise MissingDependencyError(f"pip {arguments[0]} failed: {_reason(done.stderr)}", hint=_hint(done.stderr))


def _reason(text: str) -> str:
    errors = [line.strip() for line in text.splitlines() if re.match(r"\s*(ERROR|error|OSError)\b", line)]
    lines = errors or [line.strip() for line in text.splitlines() if line.strip()] or ["no reason given"]
    return lines[-1].removeprefix("ERROR: ")[:300]


def _hint(text: str) -> str | None:
    if re.search(r"NewConnectionError|NameResolution|unreachable|timed out|Connection refused|ProxyError", text):
        return "this host needs a network for it; the device does not"
    return None


def _suitable(folder: Path, target: WheelTarget) -> list[Path]:
    """Return the wheels in ``folder`` that ``target`` can install."""
    tags, utils = require("packaging.tags"), require("packaging.utils")
    version = tuple(int(part) for part in target.python.split("."))
    supported = {
        *tags.cpython_tags(version, platforms=target.platforms()),
        *tags.compatible_tags(version, f"cp{''.join(target.python.split('.'))}", target.platforms()),
    }
    return [path for path in sorted(folder.glob("*.whl")) if utils.parse_wheel_filename(path.name)[3] & supported]


def _metadata(path: Path) -> Any:  # noqa: ANN401
    try:
        with zipfile.ZipFile(path) as wheel:
            name = next(item for item in wheel.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", item))
            return HeaderParser().parsestr(wheel.read(name).decode())
    except (zipfile.BadZipFile, StopIteration, UnicodeDecodeError) as exc:
        raise ArtifactError("not a wheel", where=path, hint="remove it, and run the same command again") from exc

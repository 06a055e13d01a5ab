"""NVIDIA's real bindings without NVIDIA's libraries: wheels from a folder, and stand-ins for what they link to.

The binding is one pybind11 module. It needs a dozen C functions of libnvinfer and libnvonnxparser to be loaded; a
library of that name whose functions return null is enough. Classes, enumerations, signatures and the trampolines into
Python subclasses are then the real ones; only what the library makes (builder, runtime) cannot be made.

The stand-ins for ``createInferBuilder`` and ``createInferRuntime`` log one line through the C++ logger that they are
given, as the library does when CUDA cannot start.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
# Read now: the test suite clears every EDGE_ variable.
WHEELS = Path(os.environ.get("EDGE_TRT_WHEELS") or REPOSITORY / ".cache" / "trt-wheels")
VERSIONS = ("8.6.1", "10.3.0", "10.13.3.9", "10.16.1.11", "11.4.0.106")
SAYS = "CUDA initialization failure with error: 35. Please check your CUDA installation."
_CALL_LOG = """
void *{name}(void *logger, int version) {{
    (void)version;
    if (logger) ((void (*)(void *, int, const char *))(*(void ***)logger)[{slot}])(logger, 1, "{text}");
    return 0;
}}
"""


def wheel(version: str) -> Path | None:
    """The wheel of a version for this Python, if it is in the folder."""
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    found = sorted(WHEELS.glob(f"tensorrt*_bindings-{version}-{tag}-*x86_64.whl"))
    return next((path for path in found if not re.match(r"tensorrt_(lean|dispatch)_", path.name)), None)


def runtime_wheels(kind: str, version: str) -> tuple[Path, Path] | None:
    """The library and the binding of a real runtime, ``lean`` or ``dispatch``, if both are in the folder."""
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    libraries = sorted(WHEELS.glob(f"tensorrt_{kind}_*libs-{version}-py*x86_64.whl"))
    bindings = sorted(WHEELS.glob(f"tensorrt_{kind}_*bindings-{version}-{tag}-*x86_64.whl"))
    return (libraries[0], bindings[0]) if libraries and bindings else None


def unpack_runtime(wheels: tuple[Path, Path], folder: Path) -> Path:
    """Unpack a real runtime; the folder for ``sys.path``. What was unpacked before is taken as it is."""
    done = folder / "unpacked"
    if not done.is_file():
        for path in wheels:
            with zipfile.ZipFile(path) as archive:
                names = [name for name in archive.namelist() if "vc_plugin" not in name]
                archive.extractall(folder, names)
        done.touch()
    return folder


def unpack(path: Path, folder: Path) -> tuple[Path, Path]:
    """Unpack a wheel and compile what it links to; the folder for ``sys.path`` and the one for the loader."""
    site, libraries = folder / "site", folder / "lib"
    libraries.mkdir(parents=True)
    with zipfile.ZipFile(path) as archive:
        archive.extractall(site)
    binding = site / "tensorrt_bindings" / "tensorrt.so"
    wanted = re.findall(r"\(NEEDED\).*\[(libnv[^\]]+)\]", _output("readelf", "-d", binding))
    undefined = (line.split()[-1] for line in _output("nm", "-D", "--undefined-only", binding).splitlines())
    # What is versioned (@GLIBC…) or Python's own is found elsewhere.
    names = [name for name in undefined if "@" not in name and re.match(r"create|get|init|_ZN\d+nv", name)]
    source = libraries / "stand_in.c"
    major = int(path.name.split("-")[1].split(".")[0])
    source.write_text("".join(_function(name, log_slot=logger_slot(major)) for name in names))
    for index, library in enumerate(wanted):
        content = [source] if index == 0 else ["-x", "c", os.devnull]
        subprocess.run(
            ["cc", "-shared", "-fPIC", "-w", f"-Wl,-soname,{library}", "-o", libraries / library, *content], check=True
        )
    return site, libraries


def logger_slot(major: int) -> int:
    """Where `log` stands among ILogger's virtual functions: first, until IVersionedInterface became its base in 11."""
    return 0 if major < 11 else 4


def _function(name: str, *, log_slot: int) -> str:
    if name in {"createInferBuilder_INTERNAL", "createInferRuntime_INTERNAL"}:
        return _CALL_LOG.format(name=name, slot=log_slot, text=SAYS)
    return f"void *{name}(void) {{ return 0; }}\n"


def _output(*command: object) -> str:
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout

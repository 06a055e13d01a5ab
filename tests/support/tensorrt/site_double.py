"""The doubles of TensorRT and PyCUDA as packages in a folder: whole commands and their child processes find them."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parent
NAMES = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings", "pycuda")
_PACKAGE = """\
import json, pathlib, sys
sys.path.append({tests!r})
from tests.support.tensorrt.machine import machine
settings = json.loads((pathlib.Path(__file__).resolve().parents[1] / "settings.json").read_text())
sys.modules[__name__] = machine({version!r}, **settings["tensorrt"])
"""


def write(folder: Path, version: str, *, cuda: dict[str, Any] | None = None, **settings: Any) -> Path:
    """Packages for TensorRT ``version`` on a machine with ``settings`` (see ``machine.World``); for sys.path.

    Written again, it is what the next process finds.
    """
    name = "tensorrt_rtx_bindings" if version == "rtx" else "tensorrt"
    for other in NAMES:
        shutil.rmtree(folder / other, ignore_errors=True)
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(_PACKAGE.format(tests=str(HERE.parents[2]), version=version))
    (folder / "pycuda").mkdir()
    (folder / "pycuda" / "__init__.py").write_text("")
    shutil.copy(HERE / "pycuda_double.py", folder / "pycuda" / "driver.py")
    (folder / "settings.json").write_text(json.dumps({"tensorrt": settings, "cuda": cuda or {}}))
    return folder


def pycuda(folder: Path, **settings: Any) -> dict[str, ModuleType]:
    """The double of PyCUDA with ``settings`` for this process: what goes into ``sys.modules``."""
    path = write(folder, "10.3.0", cuda=settings) / "pycuda" / "driver.py"
    spec = importlib.util.spec_from_file_location("pycuda.driver", path)
    assert spec is not None
    assert spec.loader is not None
    package, driver = ModuleType("pycuda"), importlib.util.module_from_spec(spec)
    spec.loader.exec_module(driver)
    package.driver = driver  # type: ignore[attr-defined]
    return {"pycuda": package, "pycuda.driver": driver}

"""The doubles of TensorRT and PyCUDA as packages in a folder: whole commands and their child processes find them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
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

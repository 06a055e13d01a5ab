"""Runs in a process of its own: TrtSession on a real runtime of NVIDIA's, which may end the process.

Usage: real_runtime_script.py SITE lean|dispatch|rtx PLAN...   (with EDGE_TEST_GPU=1 on a real GPU, else in host memory)

Prints one JSON object per plan: what TrtSession raised.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any


def main(site: str, kind: str, plans: list[str]) -> None:
    if kind == "rtx":
        from edge.backends.tensorrt.environment import load

        caps = load(rtx=True)
    else:
        sys.path.insert(0, site)
        for library in sorted(Path(site).glob(f"tensorrt_{kind}_libs/libnvinfer_{kind}.so*")):
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        caps = runtime_caps(importlib.import_module(f"tensorrt_{kind}_bindings"))
    for plan in plans:
        print(json.dumps(outcome(Path(plan), caps)), flush=True)


def runtime_caps(binding: Any) -> Any:
    """The capabilities of a binding without a builder: it only runs version-compatible plans."""
    from edge.backends.tensorrt.environment import Caps

    absent = {name: False for name, kind in Caps.__annotations__.items() if kind == "bool"}
    return Caps(
        **absent | {
            "module": binding.__name__, "version": binding.__version__, "calibrators": (), "hardware_compatibility": (),
            "compute_capabilities": (), "plan_check": hasattr(binding.Runtime, "get_engine_validity"),
        }
    )  # fmt: skip


def outcome(plan: Path, caps: Any) -> dict[str, Any]:
    from edge.backends.tensorrt.runner import TrtSession
    from edge.errors import EdgeError

    try:
        TrtSession(plan, caps, precision="int8", device=_device()).close()
    except EdgeError as exc:
        return {
            "plan": plan.name,
            "error": type(exc).__name__,
            "code": exc.exit_code,
            "what": exc.what,
            "hint": exc.hint,
        }
    return {"plan": plan.name, "error": None}


def _device() -> Any:
    if os.environ.get("EDGE_TEST_GPU"):
        from edge.backends.cuda import open_device

        return open_device()
    from tests.support.cuda.host_device import HostDevice

    return HostDevice()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])

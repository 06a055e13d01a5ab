"""edge: from an ONNX classifier to a measured, shipped, running INT8 engine on NVIDIA Jetson.

The command line is :mod:`edge.cli`; the functions behind its commands are in the packages ``edge.calibration``,
``edge.engines``, ``edge.runtime``, ``edge.deploy`` and ``edge.tuning``. What a package offers to the others is its
``__all__``. Importing this package imports no optional dependency (see :func:`edge.errors.require`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

__version__ = "0.1.0"


def lazy_exports(package: str, names_of: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """Return a ``__getattr__`` for a package's ``__init__`` (PEP 562) that imports each export on first use.

    Args:
        package: the package's ``__name__``.
        names_of: the exported names of each of its modules.
    """
    module_of = {name: module for module, names in names_of.items() for name in names}

    def get(name: str) -> Any:  # noqa: ANN401 - any export
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{module_of[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return get

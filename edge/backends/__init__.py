"""Inference backends behind one interface: :mod:`edge.backends.base`."""

from __future__ import annotations

from edge.backends.base import Backend
from edge.errors import DeviceError


def get(name: str) -> Backend:
    """The backend called ``name``; its guest library is imported when it is first used.

    Raises:
        DeviceError: there is no such backend in this version.
    """
    if name == "onnxruntime":
        from edge.backends.ort import OnnxRuntime

        return OnnxRuntime()
    if name == "fake":
        from edge.backends.fake import Fake

        return Fake()
    raise DeviceError(
        f"backend {name!r} is not in this version of edge",
        hint="use --profile host, or a profile with `backend: onnxruntime`",
    )

"""Inference backends behind one interface: :mod:`edge.backends.interface`."""

from __future__ import annotations

from edge.backends.interface import Backend
from edge.config import Profile
from edge.errors import DeviceError


def get(name: str, profile: Profile | None = None) -> Backend:
    """The backend called ``name``; its optional dependency is imported when it is first used.

    ``profile`` tells it what the engines are for: with TensorRT, an engine may belong to this very GPU or to many.

    Raises:
        DeviceError: there is no such backend in this version.
    """
    if name == "onnxruntime":
        from edge.backends.onnxruntime import OnnxRuntime

        return OnnxRuntime()
    if name == "tensorrt":
        from edge.backends.tensorrt import TensorRT

        return TensorRT(profile=profile)
    if name == "fake":
        from edge.backends.fake import Fake

        return Fake()
    raise DeviceError(
        f"backend {name!r} is not in this version of edge",
        hint="use --profile host, or a profile with `backend: onnxruntime`",
    )


def of(profile: Profile) -> Backend:
    """The backend of ``profile``.

    Raises:
        DeviceError: there is no such backend in this version.
    """
    return get(profile.backend, profile)

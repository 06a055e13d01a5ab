"""Inference backends behind one interface (:mod:`edge.backends.interface`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge import lazy_exports

if TYPE_CHECKING:
    from edge.backends.interface import (
        ENGINE_SETTINGS,
        Backend,
        BackendMessage,
        BuildRequest,
        BuiltEngine,
        FrameSession,
        Inference,
        Int8Plan,
        Layers,
        LayerSamples,
        LayerTimer,
        Session,
        TimingUse,
        of,
        report_messages,
        session_messages,
    )
    from edge.backends.onnxruntime import OnnxRuntime, OrtSession, check_readable
else:
    __getattr__ = lazy_exports(
        __name__,
        {
            "interface": [
                "Backend",
                "BackendMessage",
                "BuildRequest",
                "BuiltEngine",
                "ENGINE_SETTINGS",
                "FrameSession",
                "Inference",
                "Int8Plan",
                "LayerSamples",
                "LayerTimer",
                "Layers",
                "Session",
                "TimingUse",
                "of",
                "report_messages",
                "session_messages",
            ],
            "onnxruntime": ["OnnxRuntime", "OrtSession", "check_readable"],
        },
    )

__all__ = [
    "ENGINE_SETTINGS",
    "Backend",
    "BackendMessage",
    "BuildRequest",
    "BuiltEngine",
    "FrameSession",
    "Inference",
    "Int8Plan",
    "LayerSamples",
    "LayerTimer",
    "Layers",
    "OnnxRuntime",
    "OrtSession",
    "Session",
    "TimingUse",
    "check_readable",
    "of",
    "report_messages",
    "session_messages",
]

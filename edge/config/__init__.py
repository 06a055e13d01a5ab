"""YAML read with file and line, and device profiles."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge import lazy_exports

if TYPE_CHECKING:
    from edge.config.profiles import (
        PROFILE_PATH_WORDS,
        PROFILE_PATHS,
        BatchRange,
        CameraConfig,
        DecisionSettings,
        Family,
        InputConfig,
        NamedCameraConfig,
        NotifyRule,
        OutputKind,
        OutputOptions,
        Precision,
        PreprocessConfig,
        Profile,
        QualityConfig,
        RecordConfig,
        WebConfig,
        available_profiles,
        find_profile,
        is_camera_name,
        parse_duration,
        read_profile,
    )
    from edge.config.yaml_source import Document, Kind, did_you_mean, parse_plain_yaml
else:
    __getattr__ = lazy_exports(
        __name__,
        {
            "profiles": [
                "PROFILE_PATHS",
                "PROFILE_PATH_WORDS",
                "BatchRange",
                "CameraConfig",
                "DecisionSettings",
                "Family",
                "InputConfig",
                "NamedCameraConfig",
                "NotifyRule",
                "OutputKind",
                "OutputOptions",
                "Precision",
                "PreprocessConfig",
                "Profile",
                "QualityConfig",
                "RecordConfig",
                "WebConfig",
                "available_profiles",
                "find_profile",
                "is_camera_name",
                "parse_duration",
                "read_profile",
            ],
            "yaml_source": ["Document", "Kind", "did_you_mean", "parse_plain_yaml"],
        },
    )

__all__ = [
    "PROFILE_PATHS",
    "PROFILE_PATH_WORDS",
    "BatchRange",
    "CameraConfig",
    "DecisionSettings",
    "Document",
    "Family",
    "InputConfig",
    "Kind",
    "NamedCameraConfig",
    "NotifyRule",
    "OutputKind",
    "OutputOptions",
    "Precision",
    "PreprocessConfig",
    "Profile",
    "QualityConfig",
    "RecordConfig",
    "WebConfig",
    "available_profiles",
    "did_you_mean",
    "find_profile",
    "is_camera_name",
    "parse_duration",
    "parse_plain_yaml",
    "profiles",
    "read_profile",
]

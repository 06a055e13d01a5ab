"""Device profiles, and YAML with the file and line of each key."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge import lazy_exports

if TYPE_CHECKING:
    from edge.config.profiles import (
        PROFILE_PATH_WORDS,
        PROFILE_PATHS,
        BatchRange,
        Family,
        InputConfig,
        OutputKind,
        OutputOptions,
        Precision,
        PreprocessConfig,
        Profile,
        QualityConfig,
        available_profiles,
        find_profile,
        read_profile,
    )
    from edge.config.run_sections import (
        CameraConfig,
        DecisionSettings,
        NamedCameraConfig,
        NotifyRule,
        RecordConfig,
        Roi,
        WebConfig,
        is_camera_name,
        parse_duration,
        roi_box,
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
                "Family",
                "InputConfig",
                "OutputKind",
                "OutputOptions",
                "Precision",
                "PreprocessConfig",
                "Profile",
                "QualityConfig",
                "available_profiles",
                "find_profile",
                "read_profile",
            ],
            "run_sections": [
                "CameraConfig",
                "DecisionSettings",
                "NamedCameraConfig",
                "NotifyRule",
                "RecordConfig",
                "Roi",
                "WebConfig",
                "is_camera_name",
                "parse_duration",
                "roi_box",
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
    "Roi",
    "WebConfig",
    "available_profiles",
    "did_you_mean",
    "find_profile",
    "is_camera_name",
    "parse_duration",
    "parse_plain_yaml",
    "profiles",
    "read_profile",
    "roi_box",
]

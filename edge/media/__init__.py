"""Images, lists, TFRecord shards and labels; videos, cameras, recording and replay."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge import lazy_exports

if TYPE_CHECKING:
    from edge.media.camera_group import CameraGroup
    from edge.media.camera_stream import LiveStream
    from edge.media.cameras import HasBackend, camera_source
    from edge.media.labels import ClassNames, shown
    from edge.media.opencv_capture import OpenCapture, VideoStream, has_backend, open_opencv_capture
    from edge.media.picture_sources import open_pictures
    from edge.media.pictures import Picture, Pictures, decode
    from edge.media.recorder import SavingStream
    from edge.media.replay import ReplayStream, recordings
    from edge.media.streams import (
        Frame,
        GroupStream,
        LimitedGroup,
        LimitedStream,
        OpenedSource,
        Outage,
        PictureStream,
        Stream,
    )
    from edge.media.video_writer import OpenWriter, VideoWriter, check_video_path, open_opencv_writer
else:
    __getattr__ = lazy_exports(
        __name__,
        {
            "camera_group": ["CameraGroup"],
            "camera_stream": ["LiveStream"],
            "cameras": ["HasBackend", "camera_source"],
            "labels": ["ClassNames", "shown"],
            "opencv_capture": ["OpenCapture", "VideoStream", "has_backend", "open_opencv_capture"],
            "picture_sources": ["open_pictures"],
            "pictures": ["Picture", "Pictures", "decode"],
            "recorder": ["SavingStream"],
            "replay": ["ReplayStream", "recordings"],
            "streams": [
                "Frame",
                "GroupStream",
                "LimitedGroup",
                "LimitedStream",
                "OpenedSource",
                "Outage",
                "PictureStream",
                "Stream",
            ],
            "video_writer": ["OpenWriter", "VideoWriter", "check_video_path", "open_opencv_writer"],
        },
    )

__all__ = [
    "CameraGroup",
    "ClassNames",
    "Frame",
    "GroupStream",
    "HasBackend",
    "LimitedGroup",
    "LimitedStream",
    "LiveStream",
    "OpenCapture",
    "OpenWriter",
    "OpenedSource",
    "Outage",
    "Picture",
    "PictureStream",
    "Pictures",
    "ReplayStream",
    "SavingStream",
    "Stream",
    "VideoStream",
    "VideoWriter",
    "camera_source",
    "cameras",
    "check_video_path",
    "decode",
    "has_backend",
    "image_lists",
    "labels",
    "open_opencv_capture",
    "open_opencv_writer",
    "open_pictures",
    "picture_sets",
    "picture_sources",
    "pictures",
    "recordings",
    "shown",
]

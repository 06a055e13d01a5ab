"""Sections of a profile about the loop: its pipeline, cameras, decisions, notifications, record and page.

:mod:`edge.config.profiles` has the others, and reads them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Annotated, Literal

import msgspec

from edge.artifacts import Secret
from edge.config.yaml_source import Document, did_you_mean
from edge.errors import DataError

Positive = Annotated[int, msgspec.Meta(ge=1)]
PositiveFloat = Annotated[float, msgspec.Meta(gt=0)]
Roi = tuple[float, float, float, float]


class ConfigSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base class of every section: frozen, keyword-only; unknown keys are errors."""


class RunConfig(ConfigSection, frozen=True):
    """Settings of the run loop. ``threads`` is for the CPU backend; None means all cores.

    ``workers`` is the number of sessions that infer concurrently, and ``prepare`` the number of threads that read,
    decode and preprocess; None means automatic. ``preprocess_on``: auto uses the GPU if the backend supports it and the
    kernel compiles, device requires the GPU, cpu uses OpenCV.

    ``batch`` is the number of files per inference. Frames of several cameras share one inference: a frame waits for
    those of the other cameras until it is ``batch_wait_ms`` old. ``replay_speed``: real plays recorded frames at their
    own times and drops late ones; fast plays every frame as soon as possible.
    """

    warmup: Annotated[int, msgspec.Meta(ge=0)] = 10
    topk: Positive = 5
    threads: Positive | None = None
    workers: Positive | None = None
    prepare: Positive | None = None
    preprocess_on: Literal["auto", "cpu", "device"] = "auto"
    batch: Positive = 1
    batch_wait_ms: Annotated[float, msgspec.Meta(ge=0, le=1000)] = 5.0
    replay_speed: Literal["real", "fast"] = "real"


class DecisionSettings(ConfigSection, frozen=True):
    """Settings that turn guesses into a decision, smoothed over the last ``window_s`` seconds of a camera.

    Below ``min_confidence`` (0 to 1) the decision is ``unknown``.
    """

    smoothing: Literal["none", "exponential", "majority"] = "none"
    window_s: PositiveFloat = 0.5
    min_confidence: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0


class NotifyRule(ConfigSection, frozen=True):
    """A label to report, and the targets.

    ``to`` has the addresses (``http://…``, ``mqtt://…``, ``exec:COMMAND``, or ``@FILE`` with one in it); without any,
    the rule is for ``--notify``. ``labels`` are names or class numbers, all where there are none. A label
    must be seen ``for`` that long with ``min_confidence``, is reported once until it changes (``on_change``), and no
    more often than ``every``. Times are seconds, or texts such as 0.5s and 2m.
    """

    to: tuple[Secret, ...] = ()
    labels: tuple[int | str, ...] = ()
    min_confidence: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    hold: float | str = msgspec.field(default=0.0, name="for")
    every: float | str = 0.0
    on_change: bool = True

    @property
    def for_s(self) -> float:
        """Seconds for which a label must be seen."""
        return parse_duration(self.hold)

    @property
    def every_s(self) -> float:
        """Minimum number of seconds between two reports of one camera."""
        return parse_duration(self.every)


_UNITS = {"": 1.0, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def parse_duration(text: float | str) -> float:
    """Parse a duration, a number or a text such as 10s, 1.5m, 2h, 7d, and return its seconds.

    Raises:
        ValueError: It is none.
    """
    if isinstance(text, str):
        number = text.rstrip("abcdefghijklmnopqrstuvwxyz")
        unit = text[len(number) :]
        if unit not in _UNITS:
            raise ValueError(f"invalid duration {text!r}")
        seconds = float(number) * _UNITS[unit]
    else:
        seconds = float(text)
    if not 0.0 <= seconds < 1e9:
        raise ValueError(f"invalid duration {text!r}")
    return seconds


class ReconnectConfig(ConfigSection, frozen=True):
    """Retry times for a lost camera: after ``first_s`` seconds, then after twice as long each time, up to ``max_s``.

    ``give_up_s`` seconds without a frame end the run; None retries for ever.
    """

    first_s: PositiveFloat = 0.5
    max_s: PositiveFloat = 30.0
    give_up_s: PositiveFloat | None = None


class CameraConfig(ConfigSection, frozen=True):
    """Settings for opening a camera, and the time after which it is considered lost.

    Width, height in pixels and fps are asked for; what the camera gives is in the record. ``format`` and ``decoder``
    are for USB cameras, ``flip`` (0 to 7, nvvidconv's flip-method) for CSI, ``transport`` for RTSP. ``pipeline`` is a
    GStreamer pipeline for any of them; ``{device}`` in it stands for node, sensor number or URL. ``timeout_s`` is the
    longest time without a frame, and ``freeze_s`` the longest with the same frame over and over; null where an image
    may stand still. ``roi`` is the region of the frames that is used, as in the section ``preprocess``.
    """

    width: Positive = 1280
    height: Positive = 720
    fps: PositiveFloat = 30.0
    format: Literal["mjpg", "yuyv", "any"] = "mjpg"
    decoder: Literal["software", "hardware"] = "software"
    flip: Annotated[int, msgspec.Meta(ge=0, le=7)] = 0
    transport: Literal["tcp", "udp"] = "tcp"
    pipeline: Secret | None = None
    timeout_s: PositiveFloat = 5.0
    freeze_s: PositiveFloat | None = 10.0
    roi: Roi | None = None
    reconnect: ReconnectConfig = ReconnectConfig()


class NamedCameraConfig(CameraConfig, frozen=True, kw_only=True):
    """One camera of several: its source, and its differences from the section ``camera``."""

    source: Secret


class RecordConfig(ConfigSection, frozen=True):
    """Settings for writing the record during the run.

    It is written every ``flush_s`` seconds, by default 10 for ``.jsonl`` and 60 for ``.json``. A ``.jsonl`` record has
    a line per frame with ``every_frame``, begins a new file at ``size_mib``, and keeps ``files`` of them.
    """

    every_frame: bool = False
    flush_s: Annotated[float, msgspec.Meta(ge=0.1, le=1e6)] | None = None
    size_mib: Positive = 64
    files: Positive = 5


class WebConfig(ConfigSection, frozen=True):
    """Access to a run: ``token_file`` holds the token for ``--web`` and ``--metrics``."""

    token_file: str | None = None


def pasted(values: Iterable[float]) -> str:
    """Format numbers as they are written in a profile."""
    return f"[{', '.join(f'{value:.6g}' for value in values)}]"


def check_roi(roi: Roi | None, document: Document, key: tuple[str, ...]) -> None:
    """Refuse a region that fits no image.

    Raises:
        ProfileError: It is none.
    """
    if roi is None:
        return
    x, y, width, height = roi
    if not all(math.isfinite(value) for value in roi) or min(x, y) < 0 or min(width, height) <= 0:
        raise document.error(key, f"needs x and y of at least 0, and a width and height above 0, got {pasted(roi)}")
    if max(roi) <= 1:
        if max(x + width, y + height) > 1 + 1e-9:
            raise document.error(key, f"{pasted(roi)} reaches beyond the image: a fraction is at most 1")
    elif any(value != int(value) for value in roi):
        raise document.error(
            key, f"{pasted(roi)} is neither in pixels (whole numbers) nor in fractions (all from 0 to 1)",
            hint="[0.25, 0, 0.5, 1] is the middle half",
        )  # fmt: skip


def roi_box(roi: Roi | None, height: int, width: int) -> tuple[int, int, int, int]:
    """Top, left, height and width of a region in whole pixels of an H×W image; the whole image without a region.

    Raises:
        DataError: The region reaches beyond the image.
    """
    if roi is None:
        return 0, 0, height, width
    x, y, across, down = roi
    if max(roi) <= 1:
        left, top = min(round(x * width), width - 1), min(round(y * height), height - 1)
        return top, left, max(round((y + down) * height) - top, 1), max(round((x + across) * width) - left, 1)
    if x + across > width or y + down > height:
        raise DataError(
            f"the roi {pasted(roi)} reaches beyond the image of {width}×{height}",
            hint="use fractions, such as [0.25, 0, 0.5, 1], which suit images of every size",
        )
    return int(y), int(x), int(down), int(across)


def is_camera_name(name: str) -> bool:
    """Return True if ``name`` is a valid camera name: it becomes part of messages, file names and metrics."""
    return re.fullmatch(r"[A-Za-z0-9_-]{1,32}", name) is not None


def merge_cameras(document: Document) -> None:
    """Merge the section ``camera`` into each entry of ``cameras``; a plain value is the camera's source."""
    tree = document.tree
    named, base = tree.get("cameras"), tree.get("camera")
    if not isinstance(named, dict):
        return
    fields = {field.encode_name for field in msgspec.structs.fields(NamedCameraConfig)}
    for name, value in named.items():
        own = value if isinstance(value, dict) else {"source": value}
        for key in own:
            if key not in fields:
                raise document.error(("cameras", name, key), f"unknown key{did_you_mean(key, fields)}")
        if isinstance(own.get("source"), int):
            own = {**own, "source": str(own["source"])}
        named[name] = {**(base if isinstance(base, dict) else {}), **own}


def check_camera(camera: CameraConfig, document: Document, at: tuple[str, ...]) -> None:
    """Refuse settings of a camera that contradict each other.

    Raises:
        ProfileError: They do not.
    """
    again = camera.reconnect
    check_roi(camera.roi, document, (*at, "roi"))
    for key, value in (
        (("fps",), camera.fps),
        (("timeout_s",), camera.timeout_s),
        (("freeze_s",), camera.freeze_s),
        (("reconnect", "first_s"), again.first_s),
        (("reconnect", "max_s"), again.max_s),
        (("reconnect", "give_up_s"), again.give_up_s),
    ):
        if value is not None and not math.isfinite(value):
            raise document.error((*at, *key), f"must be finite, got {value}")
    if again.first_s > again.max_s:
        raise document.error((*at, "reconnect"), f"needs first_s <= max_s, got {again.first_s}, {again.max_s}")
    if camera.pipeline is not None and "appsink" not in camera.pipeline.reveal():
        raise document.error((*at, "pipeline"), "must end in appsink, like edge's own pipelines (docs/running.md)")


def check_rule(rule: NotifyRule, document: Document, key: tuple[str, ...]) -> None:
    """Refuse invalid durations in a rule.

    Raises:
        ProfileError: One is none.
    """
    for name, duration in (("for", rule.hold), ("every", rule.every)):
        try:
            parse_duration(duration)
        except ValueError:  # noqa: PERF203 - two values
            raise document.error((*key, name), f"invalid duration {duration!r} (examples: 0.5, 0.5s, 2m)") from None

"""Data for the web page of a run: the state as JSON, and the newest labelled frame as JPEG.

No work is done without a viewer: a frame is stored only after a request in the last seconds, and encoded once for all
viewers, at most eight times a second.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec

from edge.artifacts import FrameResult, RunRecord, Subject
from edge.media import pictures
from edge.runtime import CameraSnapshot, Clock, RunSnapshot, RunStatistics, seen_label

# uint8 H×W×3 BGR. This layer only passes it on and does not import NumPy.
Pixels = Any

_WANTED_S = 3.0
_ENCODE_S = 0.125
# Maximum number of ticks in one answer; the page asks for those after its last one.
_MOST_TICKS = 600


class FrameImage(msgspec.Struct, frozen=True):
    """A JPEG and the number of its frame."""

    seq: int
    data: bytes


class RunView:
    """State of a run for its viewers. ``headline`` names the engine, ``power`` its source or why there is none."""

    def __init__(
        self,
        statistics: RunStatistics,
        subject: Subject,
        *,
        headline: str,
        power: str,
        clock: Clock = time.monotonic,
        encode: Callable[[Any], bytes] = pictures.encode,
    ) -> None:
        self.statistics = statistics
        self.subject = subject
        self.headline = headline
        self.power = power
        self._clock = clock
        self._encode = encode
        self._lock = threading.Lock()
        self._frames: dict[str, tuple[Pixels, int]] = {}
        self._asked_s = -_WANTED_S
        self._pictures: dict[str, FrameImage] = {}
        self._encoded_s: dict[str, float] = {}
        self._ended: dict[str, Any] | None = None
        self._reported = threading.Event()

    def show(self, pixels: Pixels, result: FrameResult) -> None:
        """Store the newest labelled frame if there was a viewer within the last seconds."""
        if self._clock() - self._asked_s < _WANTED_S:
            self._frames[result.camera or ""] = (pixels, result.seq)

    def picture(self, camera: str = "") -> FrameImage | None:
        """Return the newest labelled frame (of ``camera``, if given) as JPEG; None if there is none yet."""
        with self._lock:
            now = self._clock()
            self._asked_s = now
            frame, picture = self._frames.get(camera), self._pictures.get(camera)
            if frame is None or now - self._encoded_s.get(camera, -_ENCODE_S) < _ENCODE_S:
                return picture
            pixels, seq = frame
            if picture is None or picture.seq != seq:
                picture = self._pictures[camera] = FrameImage(seq, self._encode(pixels))
                self._encoded_s[camera] = now
            return picture

    def state(self, *, since_s: float) -> dict[str, Any]:
        """Return everything on the page except the image; the history starts after ``since_s``."""
        now = self.statistics.snapshot()
        summary = self.statistics.summary()
        with self._lock:
            ended = self._ended
        if ended is not None:
            self._reported.set()
        reading = now.reading
        return {
            "t_s": now.t_s,
            "pictures": now.pictures,
            "total": now.total,
            "skipped": now.skipped,
            "dropped": now.dropped,
            "rate_per_s": now.rate_per_s,
            "gap": None if now.gap is None else msgspec.to_builtins(now.gap),
            "gaps": now.gaps_count,
            "name": None if now.result is None else now.result.name,
            "guesses": [] if now.result is None else msgspec.to_builtins(now.result.guesses[:5]),
            "decision": _decision(now.result),
            "cameras": [_camera(camera) for camera in now.cameras],
            "notify": msgspec.to_builtins(now.notify),
            "changes": msgspec.to_builtins(now.changes),
            "age_ms": None if now.result is None else now.result.stages.age_ms,
            "latency": None if summary is None else msgspec.to_builtins(summary),
            "power_mw": None if reading is None else reading.power_mw,
            "temps_c": {} if reading is None else reading.temps_c,
            "loads_percent": {} if reading is None else reading.loads_percent,
            "throttling": [] if reading is None else list(reading.throttling),
            "history": _history(now, since_s),
            "ended": ended,
        }

    def about(self) -> dict[str, Any]:
        """Return the facts of the run, for the page's head and its table."""
        subject = self.subject
        device = subject.device
        return {
            "headline": self.headline,
            "power": self.power,
            "facts": {
                "model": subject.model.rpartition("/")[2],
                "precision": subject.precision,
                "engine": subject.engine_sha256[:12],
                "backend": ", ".join(f"{name} {value}" for name, value in subject.backend.items()),
                "device": str(device.get("product") or device.get("model") or device.get("cpu") or "unknown"),
                "power mode": str(device.get("power_mode") or "–"),
                "source": subject.source,
            },
        }

    def end(self, record: RunRecord, *, wait_s: float = 1.5) -> None:
        """Show connected viewers that the run is over, and wait briefly for them."""
        energy = (record.power or {}).get("joules_per_picture")
        with self._lock:
            self._ended = {"status": record.status, "measured_s": record.measured_s, "joules_per_picture": energy}
            is_watched = self._clock() - self._asked_s < _WANTED_S
        if is_watched:
            self._reported.wait(wait_s)


def _decision(result: FrameResult | None) -> dict[str, Any] | None:
    return None if result is None or result.decision is None else msgspec.to_builtins(result.decision)


def _camera(camera: CameraSnapshot) -> dict[str, Any]:
    label, confidence = None, None
    if camera.result is not None:
        _index, label, confidence = seen_label(camera.result)
    return {
        "name": camera.name,
        "label": label,
        "confidence": confidence,
        "pictures": camera.pictures,
        "dropped": camera.dropped,
        "gaps": camera.gaps_count,
        "gap": None if camera.gap is None else msgspec.to_builtins(camera.gap),
        "rate_per_s": camera.rate_per_s,
        "age_ms": None if camera.result is None else camera.result.stages.age_ms,
    }


def _history(now: RunSnapshot, since_s: float) -> list[dict[str, Any]]:
    return [
        {
            "t": tick.t_s, "n": tick.frames, "d": tick.dropped, "p50": tick.total_p50_ms, "max": tick.total_max_ms,
            "w": None if tick.power_mw is None else tick.power_mw / 1e3, "c": tick.temps_c,
            "x": len(tick.throttling),
        }
        for tick in now.history[-_MOST_TICKS:]
        if tick.t_s > since_s
    ]  # fmt: skip

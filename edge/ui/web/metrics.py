"""Export a run to Prometheus. Names and units follow its conventions (seconds, watts, degrees Celsius, ``_total``).

Prometheus' own client library (pure Python, no dependencies) writes the text: it does the escaping and chooses between
the two formats. docs/web.md lists every metric. Image labels never become metrics, so that neither a camera's view nor
a thousand series enter a time-series database.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from edge import __version__
from edge.artifacts import Subject
from edge.errors import require
from edge.runtime import CameraSnapshot, RunSnapshot, RunStatistics

# From half a millisecond to ten seconds; about 1, 2, 5 per decade.
_BOUNDS_S = (
    0.0005,
    0.001,
    0.002,
    0.003,
    0.005,
    0.0075,
    0.01,
    0.015,
    0.02,
    0.03,
    0.05,
    0.075,
    0.1,
    0.2,
    0.5,
    1.0,
    2.0,
    5.0,
    10.0,
)


def check() -> None:
    """Check that metrics can be written.

    Raises:
        MissingDependencyError: prometheus_client is missing.
    """
    require("prometheus_client")


class Metrics:
    """The state of a run as Prometheus text. ``joules`` returns the energy since the start, or None if unknown.

    Raises:
        MissingDependencyError: prometheus_client is missing.
    """

    def __init__(
        self,
        statistics: RunStatistics,
        subject: Subject,
        *,
        power: tuple[str, str] | None = None,
        joules: Callable[[], float | None] = lambda: None,
        started: Callable[[], float] = time.time,
    ) -> None:
        self._statistics = statistics
        self._subject = subject
        self._power = power
        self._joules = joules
        self._started_s = started()
        self._core: Any = require("prometheus_client.core")
        self._exposition: Any = require("prometheus_client.exposition")
        registry: Any = require("prometheus_client.registry")
        self._registry = registry.CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def text(self, accept: str = "") -> tuple[bytes, str]:
        """Return all metrics in the format that ``accept`` requests, and its content type."""
        encode, kind = self._exposition.choose_encoder(accept)
        data: bytes = encode(self._registry)
        return data, str(kind)

    def collect(self) -> Iterator[Any]:
        """Yield the metrics; prometheus_client asks for them at each scrape."""
        now = self._statistics.snapshot()
        yield from self._about()
        yield from self._counts(now)
        yield from self._histograms(now)
        yield from self._notifications(now)
        yield from self._telemetry(now)

    def _about(self) -> Iterator[Any]:
        subject, device = self._subject, self._subject.device
        yield self._core.InfoMetricFamily(
            "edge_run", "Engine, device and source of the run.",
            value={
                "version": __version__, "profile": subject.profile, "model": subject.model.rpartition("/")[2],
                "engine": subject.engine_sha256[:12], "precision": subject.precision,
                "backend": str(subject.backend.get("backend", "")),
                "device": str(device.get("product") or device.get("model") or device.get("cpu") or ""),
                "power_mode": str(device.get("power_mode") or ""),
            },
        )  # fmt: skip
        gauge = self._core.GaugeMetricFamily
        yield gauge("edge_run_start_time_seconds", "Unix time at which the run began.", value=self._started_s)

    def _counts(self, now: RunSnapshot) -> Iterator[Any]:
        """Yield the counts of the run, or of each camera if there are several, with the label ``camera``."""
        each: list[tuple[list[str], RunSnapshot | CameraSnapshot]] = [([camera.name], camera) for camera in now.cameras]
        each = each or [([], now)]
        names = ["camera"] if now.cameras else []
        frames = self._core.CounterMetricFamily("edge_frames", "Frames by outcome.", labels=[*names, "outcome"])
        up = self._core.GaugeMetricFamily(
            "edge_source_up", "1 while frames come, 0 while the source is being reopened.", labels=names
        )
        gaps = self._core.CounterMetricFamily("edge_source_gaps", "Number of times without frames.", labels=names)
        seconds = self._core.CounterMetricFamily(
            "edge_source_gap_seconds", "Total length of the finished times without frames.", labels=names
        )
        for labels, counts in each:
            frames.add_metric([*labels, "labelled"], counts.pictures)
            frames.add_metric([*labels, "skipped"], counts.skipped)
            if counts.dropped is not None:
                frames.add_metric([*labels, "dropped"], counts.dropped)
            up.add_metric(labels, 0 if counts.gap is not None else 1)
            gaps.add_metric(labels, counts.gaps_count)
            seconds.add_metric(labels, counts.gap_s)
        messages = self._core.CounterMetricFamily(
            "edge_backend_messages", "Warnings and errors that the backend has logged.", labels=["severity"]
        )
        for severity in ("warning", "error"):
            messages.add_metric([severity], sum(item.count for item in now.messages if item.severity == severity))
        reconnects = self._core.CounterMetricFamily(
            "edge_source_reconnects", "Times that a camera gave frames again after a gap.", labels=names
        )
        for camera in now.cameras:
            reconnects.add_metric([camera.name], camera.reconnects)
        yield from (frames, up, gaps, seconds, messages, *([reconnects] if now.cameras else []))

    def _notifications(self, now: RunSnapshot) -> Iterator[Any]:
        if not now.notify:
            return
        counts = self._core.CounterMetricFamily(
            "edge_notifications", "Notifications by target and by what became of them.", labels=["target", "outcome"]
        )
        waiting = self._core.GaugeMetricFamily(
            "edge_notifications_waiting", "Notifications that are not sent yet.", labels=["target"]
        )
        for target in now.notify:
            for outcome in ("sent", "failed", "retried", "dropped"):
                counts.add_metric([target.target, outcome], getattr(target, outcome))
            waiting.add_metric([target.target], target.waiting)
        yield from (counts, waiting)

    def _histograms(self, now: RunSnapshot) -> Iterator[Any]:
        family = self._core.HistogramMetricFamily(
            "edge_stage_seconds", "Time of each stage for one image; total is all of them, age is since capture.",
            labels=["stage"],
        )  # fmt: skip
        bounds, bounds_ms = [*map(str, _BOUNDS_S), "+Inf"], [bound * 1e3 for bound in _BOUNDS_S]
        for stage, (counts, sum_ms) in self._statistics.cumulative(bounds_ms).items():
            family.add_metric([stage], list(zip(bounds, counts, strict=True)), sum_ms / 1e3)
        yield family
        if not now.cameras:
            return
        each = self._core.HistogramMetricFamily(
            "edge_camera_seconds", "The stages total and age of each camera.", labels=["camera", "stage"]
        )
        for camera in now.cameras:
            for stage, (counts, sum_ms) in self._statistics.cumulative(bounds_ms, camera=camera.name).items():
                each.add_metric([camera.name, stage], list(zip(bounds, counts, strict=True)), sum_ms / 1e3)
        yield each

    def _telemetry(self, now: RunSnapshot) -> Iterator[Any]:
        gauge, counter = self._core.GaugeMetricFamily, self._core.CounterMetricFamily
        reading = now.reading
        if self._power is not None:
            joules = self._joules()
            if joules is not None:
                energy = counter("edge_energy_joules", "Energy since the run began.", labels=["scope", "source"])
                energy.add_metric(list(self._power), joules)
                yield energy
        if reading is None:
            return
        if reading.power_mw is not None and self._power is not None:
            power = gauge("edge_power_watts", "Power now; scope says what it covers.", labels=["scope", "source"])
            power.add_metric(list(self._power), reading.power_mw / 1e3)
            yield power
        for name, text, label, values in (
            ("edge_temperature_celsius", "Temperatures.", "sensor", reading.temps_c),
            ("edge_load_ratio", "Load of each unit, 0 to 1.", "unit", _scaled(reading.loads_percent, 0.01)),
            ("edge_clock_hertz", "Clock of each unit.", "unit", _scaled(reading.clocks_mhz, 1e6)),
            ("edge_throttling", "1 for each throttled component.", "by", dict.fromkeys(reading.throttling, 1)),
        ):
            family = gauge(name, text, labels=[label])
            for key, value in values.items():
                family.add_metric([key], value)
            yield family
        events = counter("edge_throttle_events", "Throttle and over-current events since boot.", labels=["counter"])
        for key, count in reading.throttles.items():
            events.add_metric([key], count)
        yield events


def _scaled(values: dict[str, float], factor: float) -> dict[str, float]:
    return {name: value * factor for name, value in values.items()}

"""The end of a run: what was measured, on stdout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge.artifacts import RunRecord
from edge.stats import Summary
from edge.ui.terminal.live_view import notify_line
from edge.ui.terminal.terminal import Terminal

_STAGE_NAMES = {
    "decode": "decode",
    "preprocess": "preprocess",
    "host_to_device": "host-to-device",
    "infer": "infer",
    "device_to_host": "device-to-host",
    "postprocess": "postprocess",
    "total": "total",
    "age": "age",
}


def render_summary(terminal: Terminal, record: RunRecord) -> None:
    """The end of a run, on stdout."""
    subject = record.subject
    terminal.show(
        f"{record.pictures} pictures in {record.measured_s:.2f} s"
        + (f", {record.rate_per_s:.1f} pictures/s" if record.rate_per_s else "")
        + (f", {record.skipped_count} skipped" if record.skipped_count else "")
        + (f"  ({record.status})" if record.status != "complete" else "")
    )
    if record.dropped is not None:
        terminal.show(_live_line(record))
    if record.cameras:
        _show_cameras(terminal, record)
    for target in record.notify:
        terminal.show(f"notify {notify_line(target)}")
    layers = subject.layers
    terminal.show(
        f"{Path(subject.model).name}, {subject.precision}, {subject.backend.get('backend')} "
        f"{subject.backend.get('onnxruntime', '')}; {layers.get('weighted_int8')} of {layers.get('weighted')} weighted "
        f"layers in INT8"
    )
    rows = [_summary_row(_STAGE_NAMES[stage], record.latency[stage]) for stage in record.latency]
    columns = ("stage, ms", "mean", "p50", "p90", "p99", "max", "n")
    terminal.table(columns, rows, right=range(1, len(columns)))
    for stage, reason in record.stages_absent.items():
        copy = " copy" if stage in {"host_to_device", "device_to_host"} else ""
        terminal.show(f"{_STAGE_NAMES[stage]}{copy}: {reason}")
    if record.power is not None and record.pictures:
        for line in energy_lines(record.power):
            terminal.show(line)
    elif record.power is None:
        terminal.show("power not measured:")
        for reason in str(record.power_unavailable).split("; "):
            terminal.show(f"  {reason}")
    for warning in record.warnings:
        terminal.warn(warning)


def energy_lines(energy: Mapping[str, Any]) -> list[str]:
    """Power and energy per picture, with what it takes to judge them; ``energy`` as in a record."""
    each, error = energy["joules_per_picture"], energy.get("error_joules_per_picture")
    spread = "" if error is None else f" ± {error * 1e3:.1f}"
    first = (
        f"power {energy['mean_mw'] / 1e3:.2f} W mean, {each * 1e3:.1f}{spread} mJ per picture "
        f"({energy['source']}, {energy['scope']}, {energy['samples']} samples, one each "
        f"{energy['interval_s'] * 1e3:.0f} ms)"
    )
    lines = [first]
    net, net_error = energy.get("net_joules_per_picture"), energy.get("net_error_joules_per_picture")
    if net is not None and net_error is not None:
        lines.append(
            f"above idle: {net * 1e3:.1f} ± {net_error * 1e3:.1f} mJ per picture "
            f"(idle {energy['idle_mw'] / 1e3:.2f} W, over {energy['idle_s']:.0f} s)"
        )
    elif energy.get("idle_refusal"):
        lines.append(f"above idle: not known, {energy['idle_refusal']}")
    return lines


def _show_cameras(terminal: Terminal, record: RunRecord) -> None:
    rows = []
    for camera in record.cameras:
        age = camera.latency.get("age")
        tail = "–" if age is None or age.p99_ms is None else f"{age.p99_ms:.1f}"
        rows.append(
            (camera.name, str(camera.pictures), "–" if camera.dropped is None else str(camera.dropped),
             str(camera.gaps_count), str(camera.reconnects), "–" if age is None else f"{age.p50_ms:.1f}", tail,
             camera.top_labels[0].label.replace("_", " ") if camera.top_labels else "–")
        )  # fmt: skip
    columns = ("camera", "pictures", "dropped", "gaps", "reconnects", "age p50, ms", "p99", "most seen")
    terminal.table(columns, rows, right=range(1, 7))


def _live_line(record: RunRecord) -> str:
    """The losses of a live source: what it lost: frames that were replaced by newer ones, and times without any."""
    without_s = sum((gap.end_s if gap.end_s is not None else record.measured_s) - gap.start_s for gap in record.gaps)
    gaps = f"{len(record.gaps)} gap{'s' if len(record.gaps) > 1 else ''}, {without_s:.1f} s without frames"
    return f"{record.dropped} frames dropped for newer ones; {gaps if record.gaps else 'no gaps'}"


def _summary_row(name: str, values: Summary) -> tuple[str, ...]:
    numbers = (values.mean_ms, values.p50_ms, values.p90_ms, values.p99_ms, values.max_ms)
    return (name, *("–" if value is None else f"{value:.2f}" for value in numbers), str(values.n))

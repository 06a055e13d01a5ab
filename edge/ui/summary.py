"""The end of a run: what was measured, on stdout."""

from __future__ import annotations

from pathlib import Path

from edge.record import RunRecord
from edge.stats import Summary
from edge.ui import Terminal

_STAGE_NAMES = {
    "decode": "decode",
    "preprocess": "preprocess",
    "host_to_device": "host to device",
    "infer": "infer",
    "device_to_host": "device to host",
    "postprocess": "postprocess",
    "total": "total",
    "age": "age",
}


def summary(terminal: Terminal, record: RunRecord) -> None:
    """The end of a run, on stdout."""
    subject = record.subject
    terminal.show(
        f"{record.pictures} pictures in {record.measured_s:.2f} s"
        + (f", {record.rate_per_s:.1f} pictures/s" if record.rate_per_s else "")
        + (f", {record.skipped_count} skipped" if record.skipped_count else "")
        + (f"  ({record.status})" if record.status != "complete" else "")
    )
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
        terminal.show(f"{_STAGE_NAMES[stage]}: {reason}")
    if record.power is not None and record.pictures:
        energy = record.power
        terminal.show(
            f"power {energy['mean_mw'] / 1e3:.2f} W mean, {energy['joules_per_picture'] * 1e3:.1f} ± "
            f"{energy['error_joules'] / record.pictures * 1e3:.1f} mJ per picture "
            f"({energy['source']}, {energy['scope']}, {energy['samples']} samples)"
        )
    elif record.power is None:
        terminal.show("power not measured:")
        for reason in str(record.power_unavailable).split("; "):
            terminal.show(f"  {reason}")
    for doubt in record.warnings:
        terminal.warn(doubt)


def _summary_row(name: str, values: Summary) -> tuple[str, ...]:
    numbers = (values.mean_ms, values.p50_ms, values.p90_ms, values.p99_ms, values.max_ms)
    return (name, *("–" if value is None else f"{value:.2f}" for value in numbers), str(values.n))

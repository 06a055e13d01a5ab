"""The live view of a run: what is seen, how fast, at what power. Without a terminal there are plain lines."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edge.record import Gap, Guess, Result, RunRecord, Skip
from edge.stats import Summary, percentile
from edge.ui import Terminal

if TYPE_CHECKING:
    from rich.console import RenderableType

_BLOCKS = "▁▂▃▄▅▆▇█"
_BAR = 24
_RECENT = 240
_PLAIN_INTERVAL_S = 5.0
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


class LiveView:
    """Shows a run while it goes. ``headline`` says what runs; ``power`` is a line about power, or why there is none."""

    def __init__(self, terminal: Terminal, *, headline: str, power: str, total: int | None) -> None:
        self._terminal = terminal
        self._headline = headline
        self._power = power
        self._total = total
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._last: Result | None = None
        self._done = 0
        self._skips: list[Skip] = []
        self._started = time.monotonic()
        self._said = self._started

    @contextmanager
    def showing(self) -> Iterator[LiveView]:
        """Draw until the block ends. The view disappears then: the summary takes its place."""
        if not self._terminal.is_live:
            yield self
            return
        from rich.live import Live

        # Stdout is data, and may be a file: rich would print it on this console instead.
        with Live(
            console=self._terminal.err, refresh_per_second=8, transient=True, get_renderable=self.drawn,
            redirect_stdout=False,
        ):  # fmt: skip
            yield self

    def hear(self, heard: Result | Skip | Gap) -> None:
        """Take in one picture, or a time without any."""
        if isinstance(heard, Gap):
            if not self._terminal.is_live:
                self._terminal.warn(
                    f"no frames: {heard.reason}" if heard.end_s is None else f"frames again ({heard.reopened_as})"
                )
            return
        if isinstance(heard, Skip):
            self._skips.append(heard)
            if not self._terminal.is_live:
                self._terminal.warn(f"skipped {heard.name}: {heard.reason}")
            return
        self._done += 1
        self._last = heard
        self._recent.append(heard.stages.total_ms)
        now = time.monotonic()
        if not self._terminal.is_live and now - self._said >= _PLAIN_INTERVAL_S:
            self._said = now
            self._terminal.say(f"{self._count()}, {self._rate()}, {self._percentiles()}")

    def drawn(self) -> RenderableType:
        """What the view shows now."""
        from rich import box
        from rich.console import Group
        from rich.panel import Panel
        from rich.text import Text

        lines: list[RenderableType] = []
        if self._last is not None:
            lines.append(Text(self._last.name, style="bold", no_wrap=True, overflow="ellipsis"))
            lines += [_guess_line(guess, first=i == 0) for i, guess in enumerate(self._last.guesses)]
        else:
            lines.append(Text("warming up …", style="dim"))
        lines += [
            Text(),
            _field("pictures", self._count()),
            _field("rate", self._rate()),
            _field("latency", self._percentiles()),
            _field("", sparkline(list(self._recent)), style="cyan"),
            _field("power", self._power),
        ]
        if self._skips:
            lines.append(_field("skipped", f"{len(self._skips)} (last: {self._skips[-1].name})", style="yellow"))
        return Panel(Group(*lines), title=self._headline, title_align="left", box=box.ROUNDED, width=76)

    def _count(self) -> str:
        return f"{self._done}" + (f" of {self._total}" if self._total is not None else "")

    def _rate(self) -> str:
        elapsed = time.monotonic() - self._started
        return f"{self._done / elapsed:.1f} pictures/s" if elapsed > 0 and self._done else "–"

    def _percentiles(self) -> str:
        if not self._recent:
            return "–"
        ordered = sorted(self._recent)
        # Fewer than 100 have no 99th percentile to speak of.
        tail = f"p99 {percentile(ordered, 0.99):.1f}" if len(ordered) >= 100 else f"max {ordered[-1]:.1f}"
        middle, high = percentile(ordered, 0.5), percentile(ordered, 0.9)
        return f"p50 {middle:.1f}, p90 {high:.1f}, {tail} ms over the last {len(ordered)}"


def sparkline(values: Sequence[float], width: int = 48) -> str:
    """The newest ``width`` values as blocks, scaled from 0 to the largest."""
    shown = list(values)[-width:]
    top = max(shown, default=0.0)
    if top <= 0:
        return ""
    return "".join(_BLOCKS[min(int(value / top * len(_BLOCKS)), len(_BLOCKS) - 1)] for value in shown)


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


def _guess_line(guess: Guess, *, first: bool) -> RenderableType:
    from rich.text import Text

    filled = round(guess.confidence * _BAR)
    line = Text(no_wrap=True)
    line.append("█" * filled, style="green" if first else "dim green")
    line.append("·" * (_BAR - filled), style="dim")
    line.append(f" {guess.confidence:6.1%} ", style="bold" if first else "")
    line.append(guess.label.replace("_", " "), style="bold green" if first else "")
    return line


def _field(name: str, value: str, *, style: str = "") -> RenderableType:
    from rich.text import Text

    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(f"{name:<10}", style="dim")
    line.append(value, style=style)
    return line

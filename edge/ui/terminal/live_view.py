"""The live view of a run on a terminal: labels, rate, latency and power. Without a terminal there are plain lines.

It is drawn from :class:`~edge.runtime.RunStatistics` a few times a second to fit the terminal. In a small terminal the
rows with the lowest priority disappear, down to a single line.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.artifacts import Gap, Guess, NotifyCounts, RunRecord, Skip
from edge.runtime import CameraSnapshot, Event, RunSnapshot, RunStatistics, seen_label
from edge.stats import Summary, energy_text, percentile
from edge.ui.terminal.terminal import Glyphs, Terminal

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text


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
    """Print the summary of a finished run on stdout."""
    subject = record.subject
    terminal.show(
        f"{record.pictures} images in {record.measured_s:.2f} s"
        + (f", {record.rate_per_s:.1f} images/s" if record.rate_per_s else "")
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
    """Return lines with power and energy per image and the data to judge them; ``energy`` as in a record."""
    each, error = energy["joules_per_picture"], energy.get("error_joules_per_picture")
    value, unit = energy_text(each * 1e3, None if error is None else error * 1e3)
    first = (
        f"power {energy['mean_mw'] / 1e3:.2f} W mean, {value} {unit} per image "
        f"({energy['source']}, {energy['scope']}, {energy['samples']} samples, one each "
        f"{energy['interval_s'] * 1e3:.0f} ms)"
    )
    lines = [first]
    net, net_error = energy.get("net_joules_per_picture"), energy.get("net_error_joules_per_picture")
    if net is not None and net_error is not None:
        value, unit = energy_text(net * 1e3, net_error * 1e3)
        lines.append(
            f"above idle: {value} {unit} per image "
            f"(idle {energy['idle_mw'] / 1e3:.2f} W, over {energy['idle_s']:.0f} s)"
        )
    elif energy.get("idle_refusal"):
        lines.append(f"above idle: unknown, {energy['idle_refusal']}")
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
    columns = ("camera", "images", "dropped", "gaps", "reconnects", "age p50, ms", "p99", "most seen")
    terminal.table(columns, rows, right=range(1, 7))


def _live_line(record: RunRecord) -> str:
    """Return a line with a live source's losses: dropped frames and gaps."""
    without_s = sum((gap.end_s if gap.end_s is not None else record.measured_s) - gap.start_s for gap in record.gaps)
    gaps = f"{len(record.gaps)} gap{'s' if len(record.gaps) > 1 else ''}, {without_s:.1f} s without frames"
    dropped = (
        "1 frame replaced by a newer one" if record.dropped == 1 else f"{record.dropped} frames replaced by newer ones"
    )
    return f"{dropped}; {gaps if record.gaps else 'no gaps'}"


def _summary_row(name: str, values: Summary) -> tuple[str, ...]:
    numbers = (values.mean_ms, values.p50_ms, values.p90_ms, values.p99_ms, values.max_ms)
    return (name, *("–" if value is None else f"{value:.2f}" for value in numbers), str(values.n))


_WIDEST = 100
_PANEL_WIDTH, _PANEL_HEIGHT = 30, 6
_PLAIN_INTERVAL_S = 5.0
_REFRESH_HZ = 5
# With fewer than 100 values there is no meaningful 99th percentile.
_FEW = 100


class LiveView:
    """Shows a run in progress. ``headline`` names the engine, ``power`` the power source or why there is none."""

    def __init__(self, terminal: Terminal, statistics: RunStatistics, *, headline: str, power: str) -> None:
        self._terminal = terminal
        self._statistics = statistics
        self._headline = headline
        self._power = power
        self._last_line_s = time.monotonic()
        self._throttling: tuple[str, ...] = ()

    def showing(self) -> AbstractContextManager[None]:
        """Draw until the block ends; the view disappears then."""
        return self._terminal.drawing(self.drawn, refresh_hz=_REFRESH_HZ)

    def on_event(self, event: Event) -> None:
        """Print the event as a plain line if there is no live panel."""
        if self._terminal.is_live:
            return
        if isinstance(event, Skip):
            self._terminal.warn(f"skipped {event.name}: {event.reason}")
        elif isinstance(event, Gap):
            hint = f"\n  try: {event.hint}" if event.hint and event.end_s is None else ""
            self._terminal.warn(f"{_gap_line(event)}{hint}")
        elif time.monotonic() - self._last_line_s >= _PLAIN_INTERVAL_S:
            self._last_line_s = time.monotonic()
            now = self._statistics.snapshot()
            self._terminal.info(now.status_line)
            throttling = now.reading.throttling if now.reading is not None else ()
            if throttling and throttling != self._throttling:
                self._terminal.warn(f"throttled: {', '.join(throttling)}")
            self._throttling = throttling

    def drawn(self) -> RenderableType:
        """Return the panel for the terminal's current size."""
        width, height = self._terminal.err.size
        return drawn(
            self._statistics.snapshot(), headline=self._headline, power=self._power, width=width, height=height,
            glyphs=Glyphs(self._terminal.err.encoding),
        )  # fmt: skip


def drawn(now: RunSnapshot, *, headline: str, power: str, width: int, height: int, glyphs: Glyphs) -> RenderableType:
    """Return the panel for ``width`` columns and ``height`` rows, or one line if that is too small."""
    from rich import box
    from rich.console import Group
    from rich.panel import Panel

    if width < _PANEL_WIDTH or height < _PANEL_HEIGHT:
        return _one_line(now, width, glyphs)
    inner = min(width, _WIDEST) - 4
    # Leave one row free: with the cursor's line, a full screen would scroll.
    rows = _fitting(_rows(now, inner, power, glyphs), height - 3)
    elapsed = int(now.t_s)
    clock = f"{elapsed // 3600}:{elapsed % 3600 // 60:02d}:{elapsed % 60:02d}"
    return Panel(
        Group(*rows), title=_cut(headline.replace("·", glyphs.dot), inner - 4), title_align="left",
        subtitle=clock if now.result or now.gap else None, subtitle_align="right",
        box=box.ROUNDED if glyphs.is_fine else box.ASCII, width=min(width, _WIDEST),
        border_style="red" if now.gap is not None else "yellow" if _is_throttled(now) else "",
    )  # fmt: skip


def _rows(now: RunSnapshot, width: int, power: str, glyphs: Glyphs) -> list[tuple[int, Text]]:
    """Return all rows from top to bottom, each with its priority: the lowest disappear first."""
    rows: list[tuple[int, Text]] = []
    if now.gap is not None:
        rows.append((99, _text(_gap_line(now.gap), style="bold red")))
        if now.gap.hint:
            rows.append((60, _text(f"  try: {now.gap.hint}", style="red")))
    rows += _seen_rows(now, width, glyphs)
    rows.append((20, _text("")))
    rows += [
        (57, _field("notify", notify_line(target), style="yellow" if target.last_error else ""))
        for target in now.notify
    ]
    rows.append((90, _field("rate", _rate(now, glyphs))))
    rows.append((85, _field("latency", _percentiles(now.recent_ms, glyphs))))
    chart = width - 9
    latency = glyphs.sparkline([tick.total_p50_ms for tick in now.history] or list(now.recent_ms), chart)
    if latency:
        rows.append((55, _field("", latency, style="cyan")))
    if now.recent_age_ms and (now.dropped is not None):
        rows.append((65, _field("age", _percentiles(now.recent_age_ms, glyphs))))
    rows += _telemetry_rows(now, chart, power, glyphs)
    if _is_throttled(now) and now.reading is not None:
        rows.append((97, _field("throttle", ", ".join(now.reading.throttling), style="bold yellow")))
    if now.last_skip is not None:
        text = f"{now.skipped}, last: {now.last_skip.name}: {now.last_skip.reason}"
        rows.append((45, _field("skipped", text, style="yellow")))
    if now.gaps_count > (now.gap is not None):
        last = [gap for gap in now.gaps if gap.end_s is not None][-1:]
        rows.append((58, _field("gaps", f"{now.gaps_count}" + "".join(f", last: {g.reason}" for g in last))))
    return rows


def _seen_rows(now: RunSnapshot, width: int, glyphs: Glyphs) -> list[tuple[int, Text]]:
    """Return the label rows: one row per camera if there are several, else the guesses for the newest image."""
    if now.cameras:
        return [(96, _camera_row(camera, width, glyphs)) for camera in now.cameras]
    rows: list[tuple[int, Text]] = []
    if now.result is not None:
        if now.result.decision is not None:
            decided = now.result.decision
            text = f"{_words(decided.label)}  {decided.confidence:.0%}"
            rows.append((99, _field("decided", text, style="bold")))
        rows.append((70, _text(now.result.name, style="dim" if now.gap else "bold")))
        for index, guess in enumerate(now.result.guesses):
            rows.append((98 if index == 0 else 50 - index, _guess_row(guess, width, glyphs, first=index == 0)))
    elif now.gap is None:
        rows.append((98, _text("warming up …" if glyphs.is_fine else "warming up ...", style="dim")))
    return rows


def _camera_row(camera: CameraSnapshot, width: int, glyphs: Glyphs) -> Text:
    """Return the row of one camera: label, rate and age, or the reason why it delivers no frames."""
    name = f"{camera.name:<12} "
    if camera.gap is not None:
        return _text(_cut(name + _gap_line(camera.gap), width), style="bold red")
    if camera.result is None:
        return _text(_cut(f"{name}no frame yet", width), style="dim")
    _index, label, confidence = seen_label(camera.result)
    words = [f"{name}{confidence:4.0%} {_words(label)}"]
    if camera.rate_per_s is not None:
        words.append(f"{camera.rate_per_s:.1f}/s")
    if camera.recent_age_ms:
        words.append(f"age {percentile(sorted(camera.recent_age_ms), 0.5):.0f} ms")
    if camera.dropped:
        words.append(f"{camera.dropped} dropped")
    return _text(_cut(f" {glyphs.dot} ".join(words), width), style="bold")


def notify_line(target: NotifyCounts) -> str:
    """Format the counts of the notifications to one target."""
    words = [f"{target.target}: {target.sent} sent"]
    words += [
        f"{count} {name}"
        for name, count in (("failed", target.failed), ("dropped", target.dropped), ("waiting", target.waiting))
        if count
    ]
    return ", ".join(words) + (f" ({target.last_error})" if target.last_error else "")


def _telemetry_rows(now: RunSnapshot, chart: int, power: str, glyphs: Glyphs) -> list[tuple[int, Text]]:
    reading = now.reading
    if reading is None or reading.power_mw is None:
        rows = [(40, _field("power", power, style="dim"))]
    else:
        rows = [(80, _field("power", f"{reading.power_mw / 1e3:.2f} W", note=power))]
        line = glyphs.sparkline([tick.power_mw for tick in now.history], chart)
        if line:
            rows.append((54, _field("", line, style="magenta")))
    if reading is not None and reading.temps_c:
        hottest = sorted(reading.temps_c.items(), key=lambda item: -item[1])
        values = "  ".join(f"{name} {value:.0f}" for name, value in hottest)
        rows.append((75, _field(glyphs.degree, values)))
    if reading is not None and reading.loads_percent:
        loads = "  ".join(f"{name} {value:.0f}" for name, value in reading.loads_percent.items())
        rows.append((30, _field("load %", loads)))
    return rows


def _fitting(rows: list[tuple[int, Text]], room: int) -> list[Text]:
    worth = sorted((value for value, _row in rows), reverse=True)
    least = worth[min(room, len(worth)) - 1] if worth else 0
    kept = [(value, row) for value, row in rows if value >= least]
    return [row for _value, row in kept][:room]


def _one_line(now: RunSnapshot, width: int, glyphs: Glyphs) -> Text:
    if now.gap is not None:
        return _text(_cut(f"NO FRAMES {now.gap.reason}", width), style="bold red")
    if now.result is None or not now.result.guesses:
        return _text(_cut("warming up", width), style="dim")
    best = now.result.guesses[0]
    words = [f"{best.confidence:.0%} {_words(best.label)}"]
    if now.rate_per_s is not None:
        words.append(f"{now.rate_per_s:.0f}/s")
    if now.reading is not None and now.reading.power_mw is not None:
        words.append(f"{now.reading.power_mw / 1e3:.1f}W")
    if _is_throttled(now):
        words.insert(0, "THROTTLED")
    return _text(_cut(f" {glyphs.dot} ".join(words), width), style="yellow" if _is_throttled(now) else "green")


def _guess_row(guess: Guess, width: int, glyphs: Glyphs, *, first: bool) -> Text:
    from rich.text import Text

    line = Text(no_wrap=True, overflow="ellipsis")
    room = max(min(width // 2, width - 9), 10)
    bar = max(width - room - 9, 0)
    line.append(f"{_cut(_words(guess.label), room):<{room}} ", style="bold green" if first else "")
    filled, empty = glyphs.bar(guess.confidence, bar)
    line.append(filled, style="green" if first else "dim green")
    line.append(empty, style="dim")
    line.append(f" {guess.confidence:6.1%}", style="bold" if first else "")
    return line


def _rate(now: RunSnapshot, glyphs: Glyphs) -> str:
    words = [f"{now.rate_per_s:.1f} images/s" if now.rate_per_s is not None else glyphs.dash]
    words.append(f"{now.pictures}" + (f" of {now.total}" if now.total is not None else "") + " done")
    if now.dropped is not None:
        words.append(f"{now.dropped} dropped")
    return f" {glyphs.dot} ".join(words)


def _percentiles(values_ms: tuple[float, ...], glyphs: Glyphs) -> str:
    if not values_ms:
        return glyphs.dash
    ordered = sorted(values_ms)
    n = len(ordered)
    tail = f"p99 {percentile(ordered, 0.99):.1f}" if n >= _FEW else f"max {ordered[-1]:.1f}"
    middle, high = percentile(ordered, 0.5), percentile(ordered, 0.9)
    return f"p50 {middle:.1f}  p90 {high:.1f}  {tail} ms, last {n}"


def _gap_line(gap: Gap) -> str:
    if gap.end_s is None:
        tries = f" ({gap.attempts} tries)" if gap.attempts else ""
        return f"no frames: {gap.reason}; reopening{tries}"
    found = f", reopened as {gap.reopened_as}" if gap.reopened_as else ""
    return f"frames again after {gap.end_s - gap.start_s:.1f} s{found} (it was: {gap.reason})"


def _is_throttled(now: RunSnapshot) -> bool:
    return now.reading is not None and bool(now.reading.throttling)


def _words(label: str) -> str:
    return _printable(label.replace("_", " "))


def _printable(text: str) -> str:
    """Return ``text`` without control sequences, which could move the cursor or change colours."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _cut(text: str, width: int) -> str:
    from rich.cells import cell_len, set_cell_size

    text = _printable(text)
    return text if cell_len(text) <= width else set_cell_size(text, max(width - 1, 0)).rstrip() + "…"


def _text(text: str, *, style: str = "") -> Text:
    from rich.text import Text

    return Text(_printable(text), style=style, no_wrap=True, overflow="ellipsis")


def _field(name: str, value: str, *, style: str = "", note: str = "") -> Text:
    from rich.text import Text

    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(f"{name:<9}", style="dim")
    line.append(_printable(value), style=style)
    if note:
        line.append(f"  {note}", style="dim")
    return line

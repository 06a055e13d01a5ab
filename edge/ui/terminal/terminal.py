r"""The only module that draws on a terminal.

Data goes to stdout, everything else to stderr. Markup, emoji and highlighting are off, because a path with brackets
must be printed unchanged. Control characters in text, such as those of a file name or of a label from somebody else's
bundle, are printed as ``\x1b``. Without a terminal, or with ``NO_COLOR``, there are only plain lines.
"""

from __future__ import annotations

import io
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from edge.artifacts import masked_text
from edge.errors import EdgeError
from edge.events import Event, Listener, Note, Progress

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


Style = Literal["", "bold", "dim", "green", "yellow", "red", "cyan"]

# Control characters but line ends and tabs, and those that change the direction of the text after them.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
# Minimum time between plain progress lines (no terminal).
_PLAIN_INTERVAL_S = 5.0


class Terminal:
    """Standard output and standard error, drawn with rich.

    ``quiet``: no messages but warnings and errors. ``has_results`` False: nothing is printed on standard output, except
    by :meth:`data`.
    """

    def __init__(self, *, quiet: bool = False, has_results: bool = True) -> None:
        from rich.console import Console

        for stream in (sys.stdout, sys.stderr):
            # In a Latin-1 or ASCII locale a file name or a × must not cause a crash.
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        options = {"markup": False, "emoji": False, "highlight": False, "soft_wrap": True}
        if is_plain():
            # Rich's NO_COLOR removes colours but leaves bold and dim, which are escape codes, too.
            options["color_system"] = None  # type: ignore[assignment]
        self.out: Console = Console(file=sys.stdout, quiet=not has_results, **options)  # type: ignore[arg-type]
        self.err: Console = Console(file=sys.stderr, **options)  # type: ignore[arg-type]
        self.quiet = quiet

    @property
    def is_live(self) -> bool:
        """True if live updates may be drawn on stderr."""
        return self.err.is_terminal and not is_plain() and not self.quiet

    def data(self, text: str) -> None:
        """Write ``text`` unchanged to stdout, without wrapping or colour: for JSON and for lists that scripts read."""
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    def show(self, item: RenderableType, *, style: Style = "") -> None:
        """Print a result on stdout."""
        self.out.print(visible(item) if isinstance(item, str) else item, style=style or None)

    def marked(self, mark: str, text: str, *, style: Style, on_stderr: bool = False) -> None:
        """Print a line whose first word has a colour: a result that begins with a verdict."""
        from rich.text import Text

        (self.err if on_stderr else self.out).print(Text.assemble((mark, style), visible(text)))

    def info(self, text: str, *, style: Style = "") -> None:
        """Print a message on stderr."""
        if not self.quiet:
            self.err.print(visible(text), style=style or None)

    def warn(self, text: str) -> None:
        """Print a warning on stderr, even in quiet mode; mask URLs in it."""
        self.err.print(f"warning: {visible(masked_text(text))}", style="yellow")

    def error(self, exc: EdgeError) -> None:
        """Print an expected failure: what, where, and what to do next; mask URLs in it."""
        self.err.print(f"error: {visible(masked_text(str(exc)))}", style="red")

    def table(
        self, columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[int] = (), title: str = ""
    ) -> None:
        """Print a table on stdout; ``right`` names the right-aligned columns."""
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False)
        for index, name in enumerate(columns):
            table.add_column(name, justify="right" if index in right else "left", overflow="fold")
        for row in rows:
            table.add_row(*map(visible, row))
        self.out.print(table, soft_wrap=False)

    @contextmanager
    def drawing(self, drawn: Callable[[], RenderableType], *, refresh_hz: int) -> Iterator[None]:
        """Redraw the result of ``drawn`` on stderr until the block ends; do nothing without a terminal."""
        if not self.is_live:
            yield
            return
        from rich.live import Live

        # Stdout is for data, and may be a file: rich would print such output on this console instead.
        with Live(
            console=self.err, refresh_per_second=refresh_hz, transient=True, get_renderable=drawn,
            redirect_stdout=False, vertical_overflow="crop",
        ):  # fmt: skip
            yield

    @contextmanager
    def progress(self) -> Iterator[Listener]:
        """Return a listener that draws a bar with rate and ETA on a terminal, and plain lines elsewhere."""
        if self.is_live:
            yield from self._bars()
        else:
            yield self._plain_listener()

    def _bars(self) -> Iterator[Listener]:
        from rich import progress

        columns = (
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=32),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[rate]}"),
            progress.TimeRemainingColumn(compact=True),
        )
        with progress.Progress(*columns, console=self.err, transient=True, redirect_stdout=False) as bars:
            tasks: dict[str, progress.TaskID] = {}

            def listen(event: Event) -> None:
                if isinstance(event, Note):
                    self._note(event)
                    return
                if event.stage not in tasks:
                    tasks[event.stage] = bars.add_task(event.stage, total=event.total, rate="")
                task = tasks[event.stage]
                speed = bars.tasks[bars.task_ids.index(task)].speed
                rate = f"{speed:.1f} {event.unit}/s" if speed else ""
                bars.update(task, completed=event.done, total=event.total, rate=rate)

            yield listen

    def _plain_listener(self) -> Listener:
        reported_at: dict[str, float] = {}

        def listen(event: Event) -> None:
            if isinstance(event, Note):
                self._note(event)
                return
            now = time.monotonic()
            ended = event.total is not None and event.done >= event.total
            if ended or now - reported_at.setdefault(event.stage, now) >= _PLAIN_INTERVAL_S:
                reported_at[event.stage] = now
                self.info(_progress_line(event))

        return listen

    def _note(self, event: Note) -> None:
        if event.level == "warning":
            self.warn(event.text)
        else:
            self.info(event.text)


def visible(text: str) -> str:
    r"""Write control characters, which could move the cursor or hide text, as ``\x1b``; line ends and tabs stay."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def is_plain() -> bool:
    """Return True if the environment asks for plain lines: ``NO_COLOR`` (no-color.org), or a dumb terminal."""
    return bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"


def _progress_line(event: Progress) -> str:
    total = f"/{event.total}" if event.total is not None else ""
    return f"{event.stage}: {event.done}{total} {event.unit}"


_BLOCKS = "▁▂▃▄▅▆▇█"
_EIGHTHS = "▏▎▍▌▋▊▉"


class Glyphs:
    """Characters for drawing; ``encoding`` is the encoding of the stream."""

    def __init__(self, encoding: str) -> None:
        self.is_fine = "utf" in encoding.lower()
        self.dot, self.dash, self.degree = ("·", "–", "°C") if self.is_fine else ("|", "-", "C")

    def bar(self, share: float, width: int) -> tuple[str, str]:
        """Return the filled and the empty part of a bar of ``width`` characters; ``share`` is 0 to 1."""
        share = min(max(share, 0.0), 1.0) if math.isfinite(share) else 0.0
        if not self.is_fine:
            filled = round(share * width)
            return "#" * filled, "." * (width - filled)
        eighths = round(share * width * 8)
        full, rest = divmod(eighths, 8)
        drawn = "█" * full + (_EIGHTHS[rest - 1] if rest else "")
        return drawn, "·" * (width - len(drawn))

    def sparkline(self, values: Sequence[float | None], width: int) -> str:
        """Draw the newest ``width`` values, scaled from 0 to the largest; a blank for a missing value."""
        shown = list(values)[-width:] if width > 0 else []
        top = max((value for value in shown if value is not None and math.isfinite(value)), default=0.0)
        if top <= 0:
            return ""
        steps = _BLOCKS if self.is_fine else "_.-=+*#"
        return "".join(_step(value, top, steps) for value in shown)


def _step(value: float | None, top: float, steps: str) -> str:
    if value is None or not math.isfinite(value):
        return " "
    return steps[min(int(max(value, 0.0) / top * len(steps)), len(steps) - 1)]

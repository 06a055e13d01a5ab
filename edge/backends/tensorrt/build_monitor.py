"""The messages and the progress of one TensorRT build: its logger and its progress monitor.

TensorRT calls both from C++, where an exception of ours is printed and lost. So every callback keeps what it raised,
asks for the build to be cancelled, and :meth:`Watch.raise_kept` raises it again afterwards. A signal's exception
(Ctrl-C) arrives the same way: Python runs signal handlers between two callbacks' instructions.

TensorRT takes the first logger of a process for all that follow ("the current new logger is ignored"), and keeps a bare
pointer to it. So there is one logger object per binding, never freed, and it speaks to the watch that is on.

Called from the threads that TensorRT likes; it holds the GIL while it does.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Literal

import msgspec

from edge.events import Listener, Progress, ignore_events

Severity = Literal["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"]
STAGE = "build engine"
# Lines of no consequence that are before an error often explain it; VERBOSE ones come by the hundred thousand.
_RECENT = 50
_KEPT_WARNINGS = 2000


class LogLine(msgspec.Struct, frozen=True):
    """One line of TensorRT's log."""

    severity: Severity
    text: str


class BuildWatch:
    """Receive one build: its log lines, its progress, and what went wrong inside of our own callbacks."""

    def __init__(self, *, listen: Listener = ignore_events, should_stop: Callable[[], bool] = lambda: False) -> None:
        self.errors: list[LogLine] = []
        self.warnings: list[LogLine] = []
        self.recent: deque[LogLine] = deque(maxlen=_RECENT)
        self.kept: BaseException | None = None
        self.stopped = False
        self.cache_entries: int | None = None
        self.cache_hits: int | None = None
        self._listen = listen
        self._should_stop = should_stop
        self._phases: dict[str, _Phase] = {}
        self._percent = -1

    def keep(self, exc: BaseException) -> None:
        """Remember the first exception of a callback; the build is cancelled at the next step."""
        if self.kept is None:
            self.kept = exc

    def raise_kept(self) -> None:
        """Raise what a callback raised, if one did."""
        if self.kept is not None:
            raise self.kept

    def reported(self, severity: Severity, text: str) -> None:
        """TensorRT logged a line."""
        line = LogLine(severity, text.strip())
        if severity in {"ERROR", "INTERNAL_ERROR"}:
            self.errors.append(line)
        elif severity == "WARNING" and len(self.warnings) < _KEPT_WARNINGS:
            self.warnings.append(line)
        if severity != "VERBOSE":
            self.recent.append(line)
        if "timing cache" in text:
            self._count_cache(text)

    def _count_cache(self, text: str) -> None:
        """Lines of TensorRT 8.6.1 (a public build log): entries of a serialized cache, hits of one that is freed."""
        if found := re.search(r"Serialized (\d+) timing cache entries", text):
            self.cache_entries = int(found[1])
        elif found := re.search(r"Deleting timing cache: \d+ entries, served (\d+) hits", text):
            # Several may be freed at the end; those that only carried bytes have served none.
            self.cache_hits = max(self.cache_hits or 0, int(found[1]))

    def started(self, phase: str, parent: str | None, steps: int) -> None:
        """A phase of ``steps`` steps began inside of ``parent``."""
        self._phases[phase] = _Phase(parent, max(steps, 1))
        self._notify()

    def stepped(self, phase: str, step: int) -> bool:
        """Step ``step`` (from 0) of a phase ended; whether the build may go on."""
        if phase in self._phases:
            self._phases[phase].done = min(step + 1, self._phases[phase].steps)
            self._notify()
        if not self.stopped and self._should_stop():
            self.stopped = True
        return not self.stopped

    def finished(self, phase: str) -> None:
        """A phase ended, whole or because the build was cancelled."""
        if phase in self._phases and not self.stopped and self.kept is None:
            # The last step of a phase may come without a word of its own.
            self._phases[phase].done = self._phases[phase].steps
            self._notify()
        self._phases.pop(phase, None)

    def _notify(self) -> None:
        # Percent of the whole, never going back: a phase that ends hands its share to the parent's next step.
        share = max((self._share(phase) for phase in self._phases), default=0.0)
        percent = int(100 * share)
        if percent > self._percent:
            self._percent = percent
            self._listen(Progress(STAGE, percent, 100, unit="%"))

    def _share(self, name: str) -> float:
        """The share of the outermost phase that is done, 0 to 1, as seen from phase ``name``."""
        phase = self._phases[name]
        share = phase.done / phase.steps
        seen = {name}
        while phase.parent in self._phases and phase.parent not in seen:
            seen.add(phase.parent)
            phase = self._phases[phase.parent]
            share = min((phase.done + share) / phase.steps, 1.0)
        return share


class _Phase:
    def __init__(self, parent: str | None, steps: int) -> None:
        self.parent = parent
        self.steps = steps
        self.done = 0


@contextlib.contextmanager
def watching(binding: Any, watch: BuildWatch) -> Iterator[Any]:  # noqa: ANN401
    """Inside the block, ``watch`` receives what TensorRT logs; gives the logger that its factories want."""
    logger = _logger(binding)
    before = logger.watch
    logger.watch = watch
    try:
        yield logger
    finally:
        logger.watch = before


def progress_monitor(binding: Any, watch: BuildWatch) -> Any:  # noqa: ANN401
    """An IProgressMonitor that reports to ``watch``. Keep a reference to it until the build ends."""

    class Monitor(binding.IProgressMonitor):  # type: ignore[misc]
        """NVIDIA's interface; each method may be called from another thread."""

        def __init__(self) -> None:
            binding.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            """A phase begins."""
            with _kept(watch):
                watch.started(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            """A step ended; False cancels the build."""
            with _kept(watch):
                watch.stopped |= not watch.stepped(phase_name, step)
            return not watch.stopped and watch.kept is None

        def phase_finish(self, phase_name: str) -> None:
            """A phase ended."""
            with _kept(watch):
                watch.finished(phase_name)

    return Monitor()


@functools.cache
def _logger(binding: Any) -> Any:  # noqa: ANN401
    class Logger(binding.ILogger):  # type: ignore[misc]
        """NVIDIA's interface; speaks to whoever watches."""

        def __init__(self) -> None:
            binding.ILogger.__init__(self)
            self.watch: BuildWatch | None = None

        def log(self, severity: Any, msg: str) -> None:  # noqa: ANN401
            """TensorRT says something."""
            watch = self.watch
            if watch is not None:
                with _kept(watch):
                    watch.reported(severity.name, msg)

    return Logger()


@contextlib.contextmanager
def _kept(watch: BuildWatch) -> Iterator[None]:
    """Keep whatever the block raises, also a signal's exception: above us is C++."""
    try:
        yield
    except BaseException as exc:  # noqa: BLE001 - raised again by raise_kept
        watch.keep(exc)

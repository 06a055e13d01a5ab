"""TensorRT's logger: the lines and the progress of a build, and the warnings of an engine that runs.

TensorRT calls edge's logger and progress monitor from C++, where a Python exception is printed and lost. So every
callback stores its exception and requests the cancellation of the build, and :meth:`BuildWatch.raise_kept` raises it
afterwards. A signal's exception (Ctrl-C) arrives the same way: Python runs signal handlers between two instructions of
a callback.

TensorRT uses the first logger of a process for all later ones ("the current new logger is ignored"), and stores a bare
pointer to it. So there is one logger object per binding, never freed, which passes a line to the watch of its thread.
TensorRT calls it from any thread while holding the GIL.
"""

from __future__ import annotations

import contextlib
import functools
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Literal

import msgspec

from edge.backends.interface import BackendMessage
from edge.events import Listener, Progress, ignore_events

Severity = Literal["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"]
STAGE = "build engine"
WARNINGS = frozenset({"WARNING", "ERROR", "INTERNAL_ERROR"})
# Lines by which TensorRT reports that it does not use the given timing cache. Seen with TensorRT for RTX 1.7.1,
# whose return values indicate the opposite; the header lines are from public logs of 8.6 and 10.
_CACHE_REFUSED = re.compile(
    r"(?i)timing cache will not be used|failed to deserialize (?:the )?timing cache|timing cache header mismatch"
    r"|(?:magicTagRead|stdVersionRead) == \w+ failed"
)
# Less severe lines before an error often explain it; there are hundreds of thousands of VERBOSE lines.
_RECENT = 50
_KEPT_WARNINGS = 2000


class LogLine(msgspec.Struct, frozen=True):
    """One line of TensorRT's log."""

    severity: Severity
    text: str


class BuildWatch:
    """Receives one build's log lines and progress, and exceptions of edge's own callbacks.

    ``cache_refusals`` are lines by which TensorRT reports that the timing cache is not used.
    """

    def __init__(
        self,
        *,
        listen: Listener = ignore_events,
        should_stop: Callable[[], bool] = lambda: False,
        on_warning: Callable[[LogLine], None] = lambda _line: None,
    ) -> None:
        self.errors: list[LogLine] = []
        self.warnings: list[LogLine] = []
        self.recent: deque[LogLine] = deque(maxlen=_RECENT)
        self.kept: BaseException | None = None
        self.stopped = False
        self.cache_entries: int | None = None
        self.cache_hits: int | None = None
        self.cache_refusals: list[str] = []
        self._listen = listen
        self._should_stop = should_stop
        self._on_warning = on_warning
        self._phases: dict[str, _Phase] = {}
        self._percent = -1

    def keep(self, exc: BaseException) -> None:
        """Store the first exception of a callback; the build is cancelled at the next step."""
        if self.kept is None:
            self.kept = exc

    def raise_kept(self) -> None:
        """Raise the stored exception of a callback, if there is one."""
        if self.kept is not None:
            raise self.kept

    def reported(self, severity: Severity, text: str) -> None:
        """Receive a line of TensorRT's log."""
        line = LogLine(severity, text.strip())
        if severity in {"ERROR", "INTERNAL_ERROR"}:
            self.errors.append(line)
        elif severity == "WARNING" and len(self.warnings) < _KEPT_WARNINGS:
            self.warnings.append(line)
        if severity in WARNINGS:
            self._on_warning(line)
        if severity != "VERBOSE":
            self.recent.append(line)
        if "timing cache" in text or _CACHE_REFUSED.search(text):
            self._count_cache(text)

    def _count_cache(self, text: str) -> None:
        """Parse cache lines of TensorRT 8.6.1 (a public build log): entries when serialized, hits when freed."""
        if _CACHE_REFUSED.search(text):
            self.cache_refusals.append(text.strip())
        elif found := re.search(r"Serialized (\d+) timing cache entries", text):
            self.cache_entries = int(found[1])
        elif found := re.search(r"Deleting timing cache: \d+ entries, served (\d+) hits", text):
            # Several may be freed at the end; those that only carried bytes have served none.
            self.cache_hits = max(self.cache_hits or 0, int(found[1]))

    def started(self, phase: str, parent: str | None, steps: int) -> None:
        """Record that a phase of ``steps`` steps began inside ``parent``."""
        self._phases[phase] = _Phase(parent, max(steps, 1))
        self._notify()

    def stepped(self, phase: str, step: int) -> bool:
        """Record that step ``step`` (from 0) of a phase ended; return True if the build may continue."""
        if phase in self._phases:
            self._phases[phase].done = min(step + 1, self._phases[phase].steps)
            self._notify()
        if not self.stopped and self._should_stop():
            self.stopped = True
        return not self.stopped

    def finished(self, phase: str) -> None:
        """Record that a phase ended, complete or cancelled."""
        if phase in self._phases and not self.stopped and self.kept is None:
            # The last step of a phase may have no call of its own.
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
        """Return the finished share of the outermost phase, 0 to 1, as seen from phase ``name``."""
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
    """Send TensorRT's log to ``watch`` during the block; yield the logger for its factories."""
    logger = _logger(binding)
    before = logger.enter(watch)
    try:
        yield logger
    finally:
        logger.leave(watch, before)


def progress_monitor(binding: Any, watch: BuildWatch) -> Any:  # noqa: ANN401
    """Make an IProgressMonitor that reports to ``watch``. Keep a reference to it until the build ends."""

    class Monitor(binding.IProgressMonitor):  # type: ignore[misc]
        """Implements NVIDIA's interface; each method may be called from another thread."""

        def __init__(self) -> None:
            binding.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            """Handle the start of a phase."""
            with _kept(watch):
                watch.started(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            """Handle the end of a step; return False to cancel the build."""
            with _kept(watch):
                watch.stopped |= not watch.stepped(phase_name, step)
            return not watch.stopped and watch.kept is None

        def phase_finish(self, phase_name: str) -> None:
            """Handle the end of a phase."""
            with _kept(watch):
                watch.finished(phase_name)

    return Monitor()


def layer_profiler(binding: Any, record: Callable[[str, float], None], watch: BuildWatch) -> Any:  # noqa: ANN401
    """Make an IProfiler that calls ``record`` with each layer's name and milliseconds, in the engine's order."""

    class Profiler(binding.IProfiler):  # type: ignore[misc]
        """Implements NVIDIA's interface."""

        def __init__(self) -> None:
            binding.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            """Handle the time of a layer, ``ms`` milliseconds."""
            with _kept(watch):
                record(layer_name, ms)

    return Profiler()


@functools.cache
def _logger(binding: Any) -> Any:  # noqa: ANN401
    class Logger(binding.ILogger):  # type: ignore[misc]
        """Implements NVIDIA's interface. A line goes to the watch of the logging thread, else to the newest one."""

        def __init__(self) -> None:
            binding.ILogger.__init__(self)
            self.of_thread = threading.local()
            self.watches: list[BuildWatch] = []

        def enter(self, watch: BuildWatch) -> BuildWatch | None:
            """Begin to watch in this thread; return the previous watch."""
            before: BuildWatch | None = getattr(self.of_thread, "watch", None)
            self.of_thread.watch = watch
            self.watches.append(watch)
            return before

        def leave(self, watch: BuildWatch, before: BuildWatch | None) -> None:
            """End the watch of :meth:`enter`."""
            self.of_thread.watch = before
            self.watches.remove(watch)

        def log(self, severity: Any, msg: str) -> None:  # noqa: ANN401
            """Receive a log line from TensorRT."""
            watch: BuildWatch | None = getattr(self.of_thread, "watch", None)
            if watch is None:
                # A thread of TensorRT's own. Another thread may end its watch at this moment.
                with contextlib.suppress(IndexError):
                    watch = self.watches[-1]
            if watch is not None:
                with _kept(watch):
                    watch.reported(severity.name, msg)

    return Logger()


@contextlib.contextmanager
def _kept(watch: BuildWatch) -> Iterator[None]:
    """Store any exception of the block, also a signal's: the caller is C++."""
    try:
        yield
    except BaseException as exc:  # noqa: BLE001 - raised again by raise_kept
        watch.keep(exc)


# Warnings of a runtime that a user can do something about [public logs; strings of libnvinfer_lean 10.16.1 and 11.4.0].
_RUNTIME_HINTS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), hint)
    for pattern, hint in (
        (
            r"only supports \d+ multiprocessors but the engine file requires \d+",
            "it may deadlock: edge build, in this power mode, or switch back to the other one (sudo nvpmodel -q)",
        ),
        (
            r"(?i)across different models of devices|device (?:model|type)? ?mismatch|different (?:GPU|device)",
            "the engine was built on another device: edge build, on this one",
        ),
        (
            r"(?i)out ?of ?memory|memory is insufficient|insufficient memory|failed to allocate|NvMapMem|cudaError 2\b",
            "close other programs on this device, or set input.batch.max lower and build again",
        ),
        (r"(?i)lazy loading is not enabled", "export CUDA_MODULE_LOADING=LAZY saves memory"),
    )
)
# Maximum number of different texts; further ones are counted together.
_MOST_MESSAGES = 50
_OTHER_MESSAGES = "further messages of TensorRT"


class MessageLog:
    """Warnings and errors of TensorRT while an engine is opened and runs: each text once, with its count.

    Thread-safe. ``listen`` is called with each text on its first occurrence.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str], int] = {}
        self._hints: dict[str, str | None] = {}
        self._listen: Callable[[BackendMessage], None] = lambda _message: None

    def add(self, line: LogLine) -> None:
        """Record a line at WARNING or above."""
        text = f"TensorRT: {one_line(line.text)}"
        self.record(BackendMessage(severity="warning" if line.severity == "WARNING" else "error", text=text))

    def record(self, message: BackendMessage) -> None:
        """Record one message; look up its hint if it has none."""
        key = (message.severity, message.text)
        with self._lock:
            if key not in self._counts and len(self._counts) >= _MOST_MESSAGES:
                key = (message.severity, _OTHER_MESSAGES)
            is_new = key not in self._counts
            self._counts[key] = self._counts.get(key, 0) + message.count
            if is_new:
                hint = next((hint for pattern, hint in _RUNTIME_HINTS if pattern.search(message.text)), None)
                self._hints[key[1]] = message.hint or hint
                message = self._message(key, 1)
            listen = self._listen
        if is_new:
            listen(message)

    def listen(self, listen: Callable[[BackendMessage], None]) -> None:
        """Call ``listen`` with everything so far, and with each new text from now on."""
        with self._lock:
            self._listen = listen
        for message in self.messages():
            listen(message)

    def messages(self) -> tuple[BackendMessage, ...]:
        """Return all messages, in the order of their first occurrence."""
        with self._lock:
            return tuple(self._message(key, count) for key, count in self._counts.items())

    def _message(self, key: tuple[str, str], count: int) -> BackendMessage:
        severity: Any = key[0]
        return BackendMessage(severity=severity, text=key[1], count=count, hint=self._hints[key[1]])


def one_line(text: str) -> str:
    """Return a line of TensorRT's log without its source positions, at most 300 characters."""
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r" ?(?:In (?:operator\(\)|\w+) )?at /_src/[^\s)]+", "", text)
    text = re.sub(r"^(?:\d+: )?(?:\[[\w.:]+\] ?)?", "", text)
    text = re.sub(r"^(?:[\w./]+\.cpp:\d+: )", "", text)
    return text if len(text) <= 300 else f"{text[:299]}…"

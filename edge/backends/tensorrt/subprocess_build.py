"""A build in a process of its own, so that what TensorRT does to it happens to nobody else.

Ctrl-C then ends a build at once, also with TensorRT 8.6, which cannot be asked to stop; the out-of-memory killer and a
crash inside of TensorRT become errors with a hint; and the builder's memory and its CUDA context are given back.

The job goes to the child as one line of JSON on stdin; what the build says comes back on stdout, one JSON message per
line; the engine and the timing cache come as files in a temporary folder that the parent removes.

Pictures for one of the device's own calibrators stay in the parent, which decodes and preprocesses them: the child asks
for each batch with a message, and gets its bytes on stdin behind the job. Whatever the parent meets on the way ends the
child and is raised as it is.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Literal

import msgspec

from edge import errors
from edge.artifacts import temporary_folder
from edge.backends.interface import BuildRequest, Layers, TimingUse
from edge.backends.tensorrt import batch_pipe, builder, environment
from edge.backends.tensorrt.builder import Built
from edge.backends.tensorrt.builder_config import Decision, Options
from edge.backends.tensorrt.calibrator import Feed
from edge.backends.tensorrt.timing_cache import TimingReport, combine
from edge.config import Precision, Profile
from edge.errors import DeviceError, EdgeError
from edge.events import Event, Listener, Note, Progress, ignore_events
from edge.model import Inspection
from edge.quantization import Table

Severity = Literal["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"]
STAGE = "build engine"
WARNINGS = frozenset({"WARNING", "ERROR", "INTERNAL_ERROR"})
# Lines by which TensorRT says that it does not use the timing cache that it was given. Seen of TensorRT for RTX 1.7.1,
# whose return values say the opposite; the header lines are from public logs of 8.6 and 10.
_CACHE_REFUSED = re.compile(
    r"(?i)timing cache will not be used|failed to deserialize (?:the )?timing cache|timing cache header mismatch"
    r"|(?:magicTagRead|stdVersionRead) == \w+ failed"
)
# Lines of no consequence that are before an error often explain it; VERBOSE ones come by the hundred thousand.
_RECENT = 50
_KEPT_WARNINGS = 2000


class LogLine(msgspec.Struct, frozen=True):
    """One line of TensorRT's log."""

    severity: Severity
    text: str


class BuildWatch:
    """Receive one build: its log lines, its progress, and what went wrong inside of our own callbacks.

    ``cache_refusals`` are lines by which TensorRT says that the timing cache is not used.
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
        if severity in WARNINGS:
            self._on_warning(line)
        if severity != "VERBOSE":
            self.recent.append(line)
        if "timing cache" in text or _CACHE_REFUSED.search(text):
            self._count_cache(text)

    def _count_cache(self, text: str) -> None:
        """Lines of TensorRT 8.6.1 (a public build log): entries of a serialized cache, hits of one that is freed."""
        if _CACHE_REFUSED.search(text):
            self.cache_refusals.append(text.strip())
        elif found := re.search(r"Serialized (\d+) timing cache entries", text):
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
    before = logger.enter(watch)
    try:
        yield logger
    finally:
        logger.leave(watch, before)


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
        """NVIDIA's interface. A line goes to the watch of the thread that logs it, else to the one that began last."""

        def __init__(self) -> None:
            binding.ILogger.__init__(self)
            self.of_thread = threading.local()
            self.watches: list[BuildWatch] = []

        def enter(self, watch: BuildWatch) -> BuildWatch | None:
            """Begin to watch in this thread; the watch that did so until now."""
            before: BuildWatch | None = getattr(self.of_thread, "watch", None)
            self.of_thread.watch = watch
            self.watches.append(watch)
            return before

        def leave(self, watch: BuildWatch, before: BuildWatch | None) -> None:
            """End what :meth:`enter` began."""
            self.of_thread.watch = before
            self.watches.remove(watch)

        def log(self, severity: Any, msg: str) -> None:  # noqa: ANN401
            """TensorRT logs a line."""
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
    """Keep whatever the block raises, also a signal's exception: above us is C++."""
    try:
        yield
    except BaseException as exc:  # noqa: BLE001 - raised again by raise_kept
        watch.keep(exc)


# The child looks for modules where we do, wherever edge was started from.
_CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from edge.backends.tensorrt import subprocess_build; subprocess_build.main()"
)
_PLAN = "plan"
_CACHE = "timing.cache"
_GRACE_S = 5.0
_KILLED = (
    "close other programs, set build.workspace_mib lower, or add a swap file on disk (edge doctor shows how); "
    "nothing half-built was kept"
)


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the child must know. ``folder`` takes the results; a timing cache to start from is there.

    ``meal``: batches for a calibrator follow behind the job. ``merge``: nothing is built; that many timing caches in
    ``folder`` are merged into one, and ``profile`` and what belongs to it are not there.
    """

    rtx: bool | None
    folder: str
    profile: Profile | None = None
    model: str = ""
    precision: Precision = "fp32"
    table: Table | None = None
    timing: TimingUse = TimingUse()
    options: Options = Options()
    spec: batch_pipe.FeedSpec | None = None
    merge: int = 0


class _Failure(msgspec.Struct, frozen=True):
    kind: str
    what: str
    where: str | None
    hint: str | None


class _Summary(msgspec.Struct, frozen=True):
    inspection: str | None
    described: Inspection
    decision: Decision
    flags: list[str]
    layers: Layers
    notes: list[str]
    info: dict[str, Any]
    timing: TimingReport
    table: Table | None


class _Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One of these; ``hungry``: the child wants the next batch; ``merged``: it has merged timing caches."""

    progress: Progress | None = None
    note: Note | None = None
    failure: _Failure | None = None
    summary: _Summary | None = None
    hungry: bool = False
    merged: bool = False


def build(
    request: BuildRequest,
    *,
    rtx: bool | None,
    options: Options,
    timing_cache: bytes | None = None,
    feed: Feed | None = None,
    listen: Listener = ignore_events,
    command: Sequence[str] | None = None,
    grace_s: float = _GRACE_S,
) -> Built:
    """Build as :func:`.builder.build` does, in a child process (``command``, this Python by default).

    ``feed.memory`` is not used: the child has its own. ``grace_s`` seconds after it was asked to end, it is killed.

    Raises:
        EdgeError: what the child met, in its own class. DeviceError: the child was killed, or crashed.
        Whatever ``feed.batches`` raises.
    """
    with temporary_folder("build") as name:
        folder = Path(name)
        if timing_cache is not None:
            (folder / _CACHE).write_bytes(timing_cache)
        job = Job(
            profile=request.profile, model=os.fspath(request.model), precision=request.precision, table=request.table,
            timing=request.timing, rtx=rtx, options=options, folder=str(name),
            spec=None if feed is None else batch_pipe.feed_spec(feed, request.profile),
        )  # fmt: skip
        with _child(command or _command(), grace_s) as process:
            summary = _run(process, job, feed=feed, listen=listen).summary
        if summary is None:
            raise RuntimeError("the build process has merged timing caches")
        cache = folder / f"{_CACHE}.new"
        return Built(
            plan=(folder / _PLAN).read_bytes(),
            timing_cache=cache.read_bytes() if cache.is_file() else None,
            timing=summary.timing,
            inspection=summary.inspection,
            described=summary.described,
            decision=summary.decision,
            flags=summary.flags,
            layers=summary.layers,
            notes=summary.notes,
            info=summary.info,
            table=summary.table,
        )


def merge(contents: Sequence[bytes], *, rtx: bool | None) -> bytes:
    """Merge timing caches as :func:`edge.backends.tensorrt.timing_cache.combine` does, in a child process.

    Raises:
        EdgeError: as there. DeviceError: the child was killed, or crashed.
    """
    with temporary_folder("merge") as name:
        for number, content in enumerate(contents):
            (Path(name) / f"{_CACHE}.{number}").write_bytes(content)
        with _child(_command(), _GRACE_S) as process:
            _run(process, Job(rtx=rtx, folder=str(name), merge=len(contents)), feed=None, listen=ignore_events)
        return (Path(name) / f"{_CACHE}.new").read_bytes()


def _command() -> tuple[str, ...]:
    return (sys.executable, "-c", _CHILD, json.dumps(sys.path))


def _run(process: subprocess.Popen[bytes], job: Job, *, feed: Feed | None, listen: Listener) -> _Message:
    """Give the child its job and listen to it; its last message."""
    assert process.stdin is not None  # noqa: S101 - a pipe was asked for
    assert process.stdout is not None  # noqa: S101
    last: _Message | None = None
    # A child that dies before it has read everything says why by its exit code.
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(msgspec.json.encode(job, enc_hook=os.fspath) + b"\n")
        process.stdin.flush()
        if feed is None:
            process.stdin.close()
    for message in _messages(process.stdout):
        if message.failure is not None:
            raise _error(message.failure)
        if message.hungry and feed is not None:
            batch = next(feed.batches, None)
            with contextlib.suppress(BrokenPipeError):
                batch_pipe.send(process.stdin, batch)
        elif message.summary is not None or message.merged:
            last = message
        else:
            event: Event | None = message.progress or message.note
            if event is not None:
                listen(event)
    code = process.wait()
    if last is not None and code == 0:
        return last
    where = job.model or None
    if code == -signal.SIGKILL:
        raise DeviceError("the build was killed, most likely because memory ran out", where=where, hint=_KILLED)
    if code < 0:
        name = signal.Signals(-code).name
        raise DeviceError(f"TensorRT crashed in the build ({name})", where=where, hint="edge doctor; " + _KILLED)
    # The child has written its traceback to our stderr: a bug stays a bug.
    raise RuntimeError(f"the build process ended with code {code}")


@contextlib.contextmanager
def _child(command: Sequence[str], grace_s: float) -> Iterator[subprocess.Popen[bytes]]:
    """The build process; ended, by force if need be, when the block is left."""
    process = subprocess.Popen(
        list(command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # Ctrl-C goes to a terminal's whole group; this way it is ours alone, and we end the child.
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(grace_s)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


def _messages(stream: IO[bytes]) -> Iterator[_Message]:
    for line in stream:
        yield msgspec.json.decode(line, type=_Message)


def _error(failure: _Failure) -> EdgeError:
    kind = getattr(errors, failure.kind)
    made: EdgeError = kind(failure.what, where=failure.where, hint=failure.hint)
    return made


# in the child


def main() -> None:
    """Entry point of the child process."""
    # Whatever a library prints must not land between our messages.
    with os.fdopen(os.dup(1), "wb", buffering=0) as out:
        os.dup2(2, 1)

        def notify(message: _Message) -> None:
            out.write(msgspec.json.encode(message) + b"\n")

        try:
            line = sys.stdin.buffer.readline()
            if not line.endswith(b"\n"):
                # Ctrl-C ended the parent while it was about to give us the job.
                return
            job = msgspec.json.decode(line, type=Job, dec_hook=lambda kind, value: kind(value))
            notify(_merge(job) if job.merge else _Message(summary=_work(job, notify)))
        except EdgeError as exc:
            notify(_Message(failure=_Failure(type(exc).__name__, exc.what, exc.where, exc.hint)))


def _merge(job: Job) -> _Message:
    folder = Path(job.folder)
    contents = [(folder / f"{_CACHE}.{number}").read_bytes() for number in range(job.merge)]
    (folder / f"{_CACHE}.new").write_bytes(combine(contents, environment.load(rtx=job.rtx)))
    return _Message(merged=True)


def _work(job: Job, notify: Callable[[_Message], None]) -> _Summary:
    assert job.profile is not None  # noqa: S101 - the parent sends one with every build
    folder = Path(job.folder)
    cache = folder / _CACHE
    request = BuildRequest(
        profile=job.profile, model=Path(job.model), precision=job.precision, table=job.table, timing=job.timing
    )

    def listen(event: Event) -> None:
        notify(_Message(note=event) if isinstance(event, Note) else _Message(progress=event))

    with contextlib.ExitStack() as stack:
        feed = None
        if job.spec is not None:
            ask = functools.partial(notify, _Message(hungry=True))
            feed = stack.enter_context(batch_pipe.served(job.spec, sys.stdin.buffer, ask))
        built = builder.build(
            request,
            environment.load(rtx=job.rtx),
            timing_cache=cache.read_bytes() if cache.is_file() else None,
            feed=feed,
            options=job.options,
            listen=listen,
        )
    if built is None:
        raise DeviceError("the build was stopped", where=job.model)
    (folder / _PLAN).write_bytes(built.plan)
    if built.timing_cache is not None:
        (folder / f"{_CACHE}.new").write_bytes(built.timing_cache)
    peak = environment.peak_rss_mib()
    info = built.info if peak is None else {**built.info, "peak_memory_mib": peak}
    return _Summary(
        built.inspection, built.described, built.decision, built.flags, built.layers, built.notes, info, built.timing,
        built.table,
    )  # fmt: skip

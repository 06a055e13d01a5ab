"""Build in a separate process, so that a crash of TensorRT cannot affect this one.

Ctrl-C then ends a build at once, also with TensorRT 8.6, which has no way to stop; the out-of-memory killer and a
crash inside of TensorRT become errors with a hint; and the builder's memory and its CUDA context are freed.

The job goes to the child as one line of JSON on stdin; messages of the build come back on stdout, one JSON message per
line; the engine and the timing cache are files in a temporary folder that the parent removes.

Images for one of the device's own calibrators stay in the parent, which decodes and preprocesses them: the child
requests each batch with a message, and reads its bytes from stdin after the job. An exception in the parent ends the
child and is raised unchanged.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import msgspec

from edge import errors
from edge.artifacts import temporary_folder
from edge.backends.interface import BuildRequest, Layers, TimingUse
from edge.backends.tensorrt import batch_pipe, builder, environment
from edge.backends.tensorrt.builder import Built
from edge.backends.tensorrt.builder_config import Options
from edge.backends.tensorrt.calibrator import Feed
from edge.backends.tensorrt.int8_route import Decision
from edge.backends.tensorrt.timing_cache import TimingReport, combine
from edge.config import Precision, Profile
from edge.errors import DeviceError, EdgeError
from edge.events import Event, Listener, Note, Progress, ignore_events
from edge.model import Inspection
from edge.quantization import Table

# The child looks for modules where we do, wherever edge was started from.
_CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from edge.backends.tensorrt import subprocess_build; subprocess_build.main()"
)
_PLAN = "plan"
_CACHE = "timing.cache"
_GRACE_S = 5.0
_KILLED = (
    "close other programs, lower build.workspace_mib, or add a swap file on disk (edge doctor shows how); "
    "no partial engine was stored"
)


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """Input of the child process. ``folder`` is for the results; it may have a timing cache to start from.

    ``spec``: batches of this form for a calibrator follow behind the job. ``merge``: nothing is built; that many timing
    caches in ``folder`` are merged into one, and ``profile`` and what belongs to it are not there.
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
    """Build like :func:`.builder.build`, in a child process (``command``, this Python by default).

    ``feed.memory`` is not used: the child has its own. The child is killed ``grace_s`` seconds after a request to end.

    Raises:
        EdgeError: an error of the child, with its class. DeviceError: the child was killed, or crashed.
        Any exception of ``feed.batches``.
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
    """Send the child its job, process its messages, and return the last one."""
    assert process.stdin is not None  # noqa: S101 - a pipe was asked for
    assert process.stdout is not None  # noqa: S101
    last: _Message | None = None
    # The exit code of a child that dies before it has read everything gives the reason.
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(msgspec.json.encode(job, enc_hook=str) + b"\n")
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
        raise DeviceError("the build was killed, probably for lack of memory", where=where, hint=_KILLED)
    if code < 0:
        name = signal.Signals(-code).name
        raise DeviceError(f"TensorRT crashed in the build ({name})", where=where, hint="edge doctor; " + _KILLED)
    # The child has written its traceback to our stderr: a bug stays a bug.
    raise RuntimeError(f"the build process ended with code {code}")


@contextlib.contextmanager
def _child(command: Sequence[str], grace_s: float) -> Iterator[subprocess.Popen[bytes]]:
    """Start the build process; end it, by force if necessary, at the end of the block."""
    process = subprocess.Popen(
        list(command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # Ctrl-C goes to a terminal's whole group; with its own session, the child gets none, and the parent ends it.
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
    # Output of libraries must not mix with edge's messages.
    with os.fdopen(os.dup(1), "wb", buffering=0) as out:
        os.dup2(2, 1)

        def notify(message: _Message) -> None:
            out.write(msgspec.json.encode(message) + b"\n")

        try:
            line = sys.stdin.buffer.readline()
            if not line.endswith(b"\n"):
                # Ctrl-C ended the parent while it was about to send the job.
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

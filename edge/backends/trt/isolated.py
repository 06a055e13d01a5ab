"""A build in a process of its own, so that what TensorRT does to it happens to nobody else.

Ctrl-C then ends a build at once, also with TensorRT 8.6, which cannot be asked to stop; the out-of-memory killer and a
crash inside of TensorRT become errors with a hint; and the builder's memory and its CUDA context are given back.

The job goes to the child as JSON on stdin; what the build says comes back on stdout, one JSON message per line; the
engine and the timing cache come as files in a temporary folder that the parent removes.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import msgspec

from edge import errors
from edge.backends.base import BuildRequest, Layers
from edge.backends.inspection import Inspection
from edge.backends.trt import builder
from edge.backends.trt import caps as capabilities
from edge.backends.trt.builder import Built
from edge.backends.trt.configure import Options
from edge.backends.trt.route import Decision
from edge.calibration.table import Table
from edge.errors import DeviceError, EdgeError
from edge.events import Event, Listener, Note, Progress, silence
from edge.profile import Precision, Profile

# The child looks for modules where we do, wherever edge was started from.
_CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from edge.backends.trt import isolated as i; i.main()"
)
_PLAN = "plan"
_CACHE = "timing.cache"
_GRACE_S = 5.0
_KILLED = (
    "close other programs, set build.workspace_mib lower, or add a swap file on disk (edge doctor shows how); "
    "nothing half-built was kept"
)


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the child must know. ``folder`` takes the results; a timing cache to start from lies there."""

    profile: Profile
    model: str
    precision: Precision
    table: Table | None
    rtx: bool | None
    options: Options
    folder: str


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


class _Message(msgspec.Struct, frozen=True, omit_defaults=True):
    progress: Progress | None = None
    note: Note | None = None
    failure: _Failure | None = None
    summary: _Summary | None = None


def build(
    request: BuildRequest,
    *,
    rtx: bool | None,
    options: Options,
    timing_cache: bytes | None = None,
    listen: Listener = silence,
    command: Sequence[str] | None = None,
    grace_s: float = _GRACE_S,
) -> Built:
    """Build as :func:`edge.backends.trt.builder.build` does, in a child process (``command``, this Python by default).

    Not for the device's own calibrators: their pictures come from this process. ``grace_s`` seconds after it was asked
    to end, the child is killed.

    Raises:
        EdgeError: what the child met, in its own class. DeviceError: the child was killed, or crashed.
    """
    with tempfile.TemporaryDirectory(prefix="edge-build-") as name:
        folder = Path(name)
        if timing_cache is not None:
            (folder / _CACHE).write_bytes(timing_cache)
        job = Job(
            profile=request.profile, model=os.fspath(request.model), precision=request.precision, table=request.table,
            rtx=rtx, options=options, folder=name,
        )  # fmt: skip
        command = command or (sys.executable, "-c", _CHILD, json.dumps(sys.path))
        content = msgspec.json.encode(job, enc_hook=os.fspath)
        with _child(command, grace_s) as process:
            summary = _run(process, content, where=job.model, listen=listen)
        cache = folder / f"{_CACHE}.new"
        return Built(
            plan=(folder / _PLAN).read_bytes(),
            timing_cache=cache.read_bytes() if cache.is_file() else None,
            inspection=summary.inspection,
            described=summary.described,
            decision=summary.decision,
            flags=summary.flags,
            layers=summary.layers,
            notes=summary.notes,
            info=summary.info,
        )


def _run(process: subprocess.Popen[bytes], job: bytes, *, where: str, listen: Listener) -> _Summary:
    assert process.stdin is not None  # noqa: S101 - a pipe was asked for
    assert process.stdout is not None  # noqa: S101
    summary: _Summary | None = None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(job)
        process.stdin.close()
    for message in _messages(process.stdout):
        if message.failure is not None:
            raise _error(message.failure)
        if message.summary is not None:
            summary = message.summary
        event: Event | None = message.progress or message.note
        if event is not None:
            listen(event)
    code = process.wait()
    if summary is not None and code == 0:
        return summary
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
    """What the child runs."""
    # Whatever a library prints must not land between our messages.
    with os.fdopen(os.dup(1), "wb", buffering=0) as out:
        os.dup2(2, 1)

        def tell(message: _Message) -> None:
            out.write(msgspec.json.encode(message) + b"\n")

        try:
            job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job, dec_hook=lambda kind, value: kind(value))
            tell(_Message(summary=_work(job, tell)))
        except EdgeError as exc:
            tell(_Message(failure=_Failure(type(exc).__name__, exc.what, exc.where, exc.hint)))


def _work(job: Job, tell: Any) -> _Summary:  # noqa: ANN401
    folder = Path(job.folder)
    cache = folder / _CACHE
    request = BuildRequest(profile=job.profile, model=Path(job.model), precision=job.precision, table=job.table)

    def listen(event: Event) -> None:
        tell(_Message(note=event) if isinstance(event, Note) else _Message(progress=event))

    built = builder.build(
        request,
        capabilities.load(rtx=job.rtx),
        timing_cache=cache.read_bytes() if cache.is_file() else None,
        options=job.options,
        listen=listen,
    )
    if built is None:
        raise DeviceError("the build was stopped", where=job.model)
    (folder / _PLAN).write_bytes(built.plan)
    if built.timing_cache is not None:
        (folder / f"{_CACHE}.new").write_bytes(built.timing_cache)
    # Resident memory of this process: what CUDA holds of a discrete GPU is not in it.
    info = {**built.info, "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}
    return _Summary(built.inspection, built.described, built.decision, built.flags, built.layers, built.notes, info)

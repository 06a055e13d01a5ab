"""One session with the script on a device (``agent.sh``), over the pipes of a child process.

Only :mod:`edge.deploy.transport.frames` parses the answers. Reading and writing never block for ever:
of life is progress, not bytes, so every answer has a time limit of its own, and every transfer a lowest rate.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import selectors
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from importlib import resources

import msgspec

from edge.deploy.transport.frames import Answer, FrameReader, MessageFrame, invalid, printable_lines
from edge.errors import ArtifactError, DeviceError, EdgeError, StoreError, UsageError

# The only command that a remote shell ever sees; it means the same in sh, bash, zsh, fish and csh. The script and all
# names follow on standard input. `dd bs=1` reads not one byte too many.
LOADER = """exec sh -c 'read -r n; eval "$(dd bs=1 count=$n 2>/dev/null)"'"""

_CHUNK_BYTES = 1 << 22
_READ_BYTES = 1 << 16
_KEPT_STDERR = 16_384
_MAX_STDERR_BYTES = 1 << 20
# A transfer that is slower than this over one piece is given up.
_LOWEST_RATE_BPS = 5_000
# Requests during whose answer the device works on its own.
_LONG_REQUESTS = frozenset({"begin", "trial", "bootstrap"})

Explain = Callable[[int | None, str, str], EdgeError]


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """Timeouts in seconds: for the script to start, and for the answer to a request."""

    start_s: float = 30.0
    answer_s: float = 180.0


TIMEOUTS = Timeouts()


def without_cancel(_session: DeviceSession) -> None:
    """Do not register the session for cancellation."""


class DeviceSession:
    """A running script on a device; use it in a ``with`` block."""

    def __init__(self, command: Sequence[str], *, where: str, explain: Explain, timeouts: Timeouts = TIMEOUTS) -> None:
        self.where = where
        self.sent = 0
        self._explain = explain
        self._timeouts = timeouts
        self._nonce = secrets.token_hex(16).encode()
        self._out = bytearray()
        self._reader = FrameReader(self._nonce, where=where)
        self._errors = bytearray()
        self._stderr_bytes = 0
        self._request = "start"
        self._progress_at = time.monotonic()
        try:
            self._process = subprocess.Popen(
                list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
            )
        except OSError as exc:
            raise explain(None, f"{command[0]}: {exc.strerror or exc}", "") from exc
        pipes = self._process.stdin, self._process.stdout, self._process.stderr
        self._stdin, self._stdout, self._stderr = (pipe.fileno() for pipe in pipes if pipe is not None)
        for handle in (self._stdin, self._stdout, self._stderr):
            os.set_blocking(handle, False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._stdout, selectors.EVENT_READ)
        self._selector.register(self._stderr, selectors.EVENT_READ)
        self._writes = False
        self._ended = False
        self._is_deaf = False
        self._is_killed = False

    def __enter__(self) -> DeviceSession:  # noqa: PYI034 - Self is Python 3.11
        try:
            script = _script()
            self._queue(b"%d\n" % len(script) + script + self._nonce + b"\n")
            self.until("ready", request="start", limit_s=self._timeouts.start_s)
        except BaseException:
            self.kill()
            self._release()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    @property
    def idle_s(self) -> float:
        """Seconds since the last data in either direction; 0 while the device is known to work on its own."""
        return 0.0 if self._request in _LONG_REQUESTS else time.monotonic() - self._progress_at

    def notify(self, request: str, *lines: str) -> None:
        """Queue a request; its arguments are one line each, without line ends (:func:`.address.parse`)."""
        for line in lines:
            if "\n" in line or "\0" in line:
                raise UsageError(f"{line!r} contains a line end", where=self.where)
        self._queue("".join(f"{line}\n" for line in (request, *lines)).encode("utf-8", "surrogateescape"))

    def ask(self, request: str, *lines: str, limit_s: float | None = None) -> list[MessageFrame]:
        """Send a request and return its answer without ``done``.

        Args:
            request: its name in the script.
            lines: its arguments.
            limit_s: seconds until the answer must be complete.

        Raises:
            EdgeError: the device reports a failure, gives an invalid answer, or disconnects.
        """
        self.notify(request, *lines)
        return self.until("done", request=request, limit_s=limit_s)[:-1]

    def put(
        self, sha256: str, offset: int, chunks: Iterable[bytes], *, on_sent: Callable[[int], None] = lambda _n: None
    ) -> None:
        """Send the rest of a file from byte ``offset`` on; ``on_sent`` is called with the size of each chunk.

        There is no answer: request the sealing of the file afterwards.

        Raises:
            EdgeError: the device reports a failure such as a full disk, or disconnects.
        """
        at = offset
        for chunk in _chunks(chunks):
            self._queue(f"put\n{sha256} {at} {len(chunk)}\n".encode())
            self._queue(chunk)
            self._flush()
            if self._is_deaf:
                self.until("fail", request="put")
            at += len(chunk)
            self.sent += len(chunk)
            on_sent(len(chunk))

    def get(self, path: str, *, most: int, write: Callable[[bytes], object]) -> str | None:
        """Receive a file of at most ``most`` bytes; ``write`` is called with each chunk.

        Returns:
            The reason why the file no longer exists; None if it was received.

        Raises:
            DeviceError: the device sends too much, or disconnects.
        """
        self._reader.expects_data = True
        self.notify("get", path, str(most))
        answer = self.until("data", "gone", request="get")[-1]
        self._reader.expects_data = False
        if answer.word == "gone":
            return answer.text
        size = int(answer.text)
        if size > most:
            raise DeviceError(f"it sends {size} bytes although at most {most} were requested", where=self.where)
        limit_s = self._timeouts.answer_s + size / _LOWEST_RATE_BPS
        deadline = time.monotonic() + limit_s
        while self._reader.data_bytes:
            self._pump(self._reader.has_data, limit_s=limit_s, deadline=deadline)
            write(self._reader.take())
        return None

    def until(self, *words: str, request: str, limit_s: float | None = None) -> list[MessageFrame]:
        """Return frames of the answer to ``request`` up to the first whose word is one of ``words``.

        Raises:
            EdgeError: the device reports a failure, gives an invalid answer, or disconnects.
        """
        limit = self._timeouts.answer_s if limit_s is None else limit_s
        deadline = time.monotonic() + limit
        answer = Answer(request, where=self.where)
        found: list[MessageFrame] = []
        self._request = request
        while True:
            self._pump(lambda: bool(self._reader.frames), limit_s=limit, deadline=deadline)
            frame = self._reader.frames.popleft()
            answer.check(frame)
            self._progress_at = time.monotonic()
            if frame.word == "fail":
                raise refusal(frame.text, self.where)
            found.append(frame)
            if frame.word in words:
                self._request = ""
                return found
            if frame.word == "done":
                raise invalid("done", request=request, where=self.where)

    def keepalive(self) -> None:
        """Tell the device that its client is alive."""
        self.notify("keepalive")
        self._flush()

    def close(self) -> None:
        """End the session: the script sees the end of its input, finishes its work and exits."""
        self._close_stdin()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._release()

    def kill(self) -> None:
        """End the program at once, from any thread; the session's user then gets an error."""
        self._is_killed = True
        with contextlib.suppress(OSError):
            self._process.kill()

    def _release(self) -> None:
        self._process.wait()
        self._selector.close()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _queue(self, data: bytes) -> None:
        self._out += data

    def _flush(self) -> None:
        limit_s = self._timeouts.answer_s + len(self._out) / _LOWEST_RATE_BPS
        self._pump(lambda: not self._out, limit_s=limit_s, deadline=time.monotonic() + limit_s)

    def _pump(self, is_done: Callable[[], bool], *, limit_s: float, deadline: float) -> None:
        """Write and read until ``is_done``."""
        while not is_done():
            if self._ended and any(frame.word == "fail" for frame in self._reader.frames):
                # It sent the reason before it ended: read that next.
                self._out.clear()
                self._is_deaf = True
                return
            if self._ended or self._is_killed:
                raise self._gone()
            self._watch_stdin(wanted=bool(self._out))
            for key, _ in self._selector.select(timeout=max(0.0, min(deadline - time.monotonic(), 1.0))):
                self._handle(key.fd)
            if time.monotonic() > deadline and not is_done():
                raise self._too_slow(limit_s)

    def _too_slow(self, limit_s: float) -> EdgeError:
        self._process.kill()
        noise = (self._reader.noise + self._reader.rest).strip()
        printed = f"; it printed {noise[:200]!r}" if noise else ""
        return DeviceError(
            f"no answer within {limit_s:.3g} s{printed}", where=self.where,
            hint="check that `ssh` works by hand without a prompt, then run the command again",
        )  # fmt: skip

    def _watch_stdin(self, *, wanted: bool) -> None:
        if wanted and not self._writes:
            self._selector.register(self._stdin, selectors.EVENT_WRITE)
        elif self._writes and not wanted:
            self._selector.unregister(self._stdin)
        self._writes = wanted

    def _handle(self, handle: int) -> None:
        """Read or write available data."""
        if handle == self._stdin:
            self._write()
            return
        data = _read(handle)
        if data is None:
            return
        if handle == self._stderr:
            self._keep_stderr(data)
            if not data:
                self._selector.unregister(self._stderr)
        elif data:
            self._reader.feed(data)
        else:
            self._ended = True

    def _write(self) -> None:
        try:
            written = os.write(self._stdin, memoryview(self._out)[: 1 << 18])
        except BlockingIOError:
            return
        except OSError:
            # It has ended; the reason may still arrive.
            self._out.clear()
            self._is_deaf = True
            return
        del self._out[:written]
        self._progress_at = time.monotonic()

    def _keep_stderr(self, data: bytes) -> None:
        self._errors = (self._errors + data)[-_KEPT_STDERR:]
        self._stderr_bytes += len(data)
        if self._stderr_bytes > _MAX_STDERR_BYTES:
            raise DeviceError(
                f"it writes error messages without end: {printable_lines(self._errors[-80:])!r}", where=self.where,
                hint="ssh by hand shows them",
            )  # fmt: skip

    def _gone(self) -> EdgeError:
        """Return the reason why the program ended before it answered."""
        deadline = time.monotonic() + (0 if self._is_killed else 5)
        while time.monotonic() < deadline:
            data = _read(self._stderr)
            if data == b"":
                break
            if data is None:
                time.sleep(0.02)
                continue
            self._keep_stderr(data)
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = None
        return self._explain(code, printable_lines(self._errors), self._reader.noise + self._reader.rest)

    def _close_stdin(self) -> None:
        if self._writes:
            self._watch_stdin(wanted=False)
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()


def _script() -> bytes:
    """Return the device's script without comments, because it is read byte by byte there."""
    lines = resources.files("edge.deploy.transport").joinpath("agent.sh").read_bytes().splitlines(keepends=True)
    return b"".join(line for line in lines if line.strip() and not line.lstrip().startswith(b"#"))


def refusal(text: str, where: str) -> EdgeError:
    """Translate the device's ``fail KIND WORDS`` into an error with a hint."""
    kind, _, words = text.partition(" ")
    if kind == "write":
        return _disk(words, where)
    if kind == "locked":
        return StoreError(
            f"another shipment to this device is in progress: {words or 'unknown'}", where=where,
            hint="wait for it; without its client it ends after two minutes",
        )  # fmt: skip
    if kind == "tools":
        return DeviceError(
            f"missing on the device: {words.replace(' ', ', ')}; nothing was sent", where=where,
            hint="sudo apt install coreutils findutils sed util-linux openssh-client",
        )  # fmt: skip
    if kind == "signature":
        return ArtifactError(
            f"the device refuses the signature: {words}",
            where=where,
            hint="edge bundle sign; allowed_signers on the device lists the accepted signers",
        )
    if kind == "damaged":
        return ArtifactError(
            f"{words} on the device is damaged; nothing was changed", where=where, hint="ship that bundle again"
        )
    if kind == "nothing":
        return UsageError(
            f"there is no bundle to roll back to: {words}", where=where,
            hint="to switch to a bundle without a trial: edge ship TARGET --bundle FILE --no-canary",
        )  # fmt: skip
    return DeviceError(f"the device did not understand edge ({text})", where=where, hint="report this as a bug")


def _disk(words: str, where: str) -> StoreError:
    lower = words.lower()
    if "no space" in lower or "quota" in lower or "file size limit" in lower or "too large" in lower:
        hint = "free some space there (edge ship gc TARGET), then run the command again"
    elif "read-only" in lower:
        hint = "the file system is read-only: remount it, or ship to another path (user@host:path)"
    elif "symbolic link" in lower and "not permitted" in lower:
        hint = "the file system does not support links (FAT, exFAT): use ext4, or ship to another path"
    elif "permission denied" in lower or "not permitted" in lower:
        hint = "ship to a path that this user may write (user@host:path), or change the owner of the path"
    else:
        hint = "look at that path on the device; edge ship status TARGET shows what is in use"
    return StoreError(
        f"cannot write on the device: {words or 'the file size limit was reached'}", where=where, hint=hint
    )


def _chunks(source: Iterable[bytes]) -> Iterable[bytes]:
    """Split bytes into chunks of at most 4 MiB; one empty chunk for an empty file, so that it is created."""
    pending = bytearray()
    given = False
    for data in source:
        pending += data
        while len(pending) >= _CHUNK_BYTES:
            yield bytes(pending[:_CHUNK_BYTES])
            given = True
            del pending[:_CHUNK_BYTES]
    if pending or not given:
        yield bytes(pending)


def _read(handle: int) -> bytes | None:
    """Read the available bytes; return None if there are none, and an empty result at the end."""
    try:
        return os.read(handle, _READ_BYTES)
    except BlockingIOError:
        return None
    except OSError:
        return b""

"""One conversation with the script on a device (``agent.sh``), over the pipes of a program that was started for it.

Every answer is a line that begins with a random word made for this conversation, so whatever a login shell, a banner or
a profile script prints is passed over. Reading and writing never block for good: without any sign of life for a while,
the conversation ends with an error.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import selectors
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from importlib import resources

import msgspec

from edge.errors import ArtifactError, DeviceError, EdgeError, StoreError, UsageError

# The only command that a remote shell ever sees; it means the same in sh, bash, zsh, fish and csh. The script and all
# names follow on standard input. `dd bs=1` reads not one byte too many.
LOADER = """exec sh -c 'read -r n; eval "$(dd bs=1 count=$n 2>/dev/null)"'"""

_PIECE = 1 << 22
_READ = 1 << 16
_KEPT_STDERR = 16_384
_KEPT_NOISE = 2_000

Explain = Callable[[int | None, str, str], EdgeError]


class MessageFrame(msgspec.Struct, frozen=True):
    """One line of the device: its first word, and the rest."""

    word: str
    text: str


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """How long to wait, in seconds: for the script to start, and then without any sign of life."""

    start_s: float = 30.0
    silence_s: float = 180.0


PATIENCE = Timeouts()


def without_cancel(_session: DeviceSession) -> None:
    """Nobody wants to end the conversation from outside."""


class DeviceSession:
    """A running script on a device; use it in a ``with`` block."""

    def __init__(self, command: Sequence[str], *, where: str, explain: Explain, patience: Timeouts = PATIENCE) -> None:
        self.where = where
        self.sent = 0
        self._explain = explain
        self._patience = patience
        self._nonce = secrets.token_hex(16).encode()
        self._out = bytearray()
        self._in = bytearray()
        self._noise = ""
        self._frames: deque[MessageFrame] = deque()
        self._raw: int | None = None  # bytes that a `data` line has promised
        self._errors = bytearray()
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
            script = resources.files("edge.deploy.transport").joinpath("agent.sh").read_bytes()
            self._queue(b"%d\n" % len(script) + script + self._nonce + b"\n")
            self.until("ready", silence_s=self._patience.start_s)
        except BaseException:
            self.kill()
            self._release()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def tell(self, verb: str, *lines: str) -> None:
        """Queue a request; names are one line each and hold no line ends (:func:`.address.parse`)."""
        for line in lines:
            if "\n" in line or "\0" in line:
                raise UsageError(f"{line!r} holds a line end", where=self.where)
        self._queue("".join(f"{line}\n" for line in (verb, *lines)).encode("utf-8", "surrogateescape"))

    def ask(self, verb: str, *lines: str, silence_s: float | None = None) -> list[MessageFrame]:
        """Send a request and return its answer up to ``done``.

        Raises:
            EdgeError: the device says why it cannot, or went away.
        """
        self.tell(verb, *lines)
        return self.until("done", silence_s=silence_s)[:-1]

    def put(self, sha256: str, offset: int, pieces: Iterable[bytes], *, hear: Callable[[int], None]) -> None:
        """Send the rest of a file from byte ``offset`` on; ``hear`` gets the number of bytes of each piece sent.

        There is no answer to wait for: ask for the file to be sealed afterwards.

        Raises:
            EdgeError: the device says why it cannot (its disk is full, say), or went away.
        """
        at = offset
        for piece in _pieces(pieces):
            self._queue(f"put\n{sha256} {at} {len(piece)}\n".encode())
            self._queue(piece)
            self._pump(lambda: not self._out, silence_s=self._patience.silence_s)
            if self._is_deaf:
                self.until("fail")
            at += len(piece)
            self.sent += len(piece)
            hear(len(piece))

    def data(self, *, most: int) -> bytes:
        """The bytes that the last answer promised (after :meth:`until` ``data``).

        Raises:
            DeviceError: they are more than ``most``, which the device was told, or it went away.
        """
        if self._raw is not None and self._raw > most:
            raise DeviceError(f"it sends {self._raw} bytes where at most {most} were asked for", where=self.where)
        self._pump(lambda: self._raw is None or len(self._in) >= self._raw, silence_s=self._patience.silence_s)
        size = self._raw or 0
        content = bytes(self._in[:size])
        del self._in[:size]
        self._raw = None
        self._parse()
        return content

    def until(self, *words: str, silence_s: float | None = None) -> list[MessageFrame]:
        """Frames up to the first whose word is one of ``words``.

        Raises:
            EdgeError: the device says why it cannot, or went away.
        """
        found: list[MessageFrame] = []
        limit = self._patience.silence_s if silence_s is None else silence_s
        while True:
            self._pump(lambda: bool(self._frames), silence_s=limit)
            frame = self._frames.popleft()
            if frame.word == "fail":
                raise refusal(frame.text, self.where)
            found.append(frame)
            if frame.word in words:
                return found

    def beat(self) -> None:
        """Tell the device that its client is alive."""
        self.tell("beat")
        self._pump(lambda: not self._out, silence_s=self._patience.silence_s)

    def close(self) -> None:
        """End the conversation: the script sees the end of its input, finishes what it does and goes."""
        self._close_stdin()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._release()

    def kill(self) -> None:
        """End the program at once, from any thread; whoever holds the conversation then hears that it ended."""
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

    def _pump(self, is_done: Callable[[], bool], *, silence_s: float) -> None:
        """Write and read until ``is_done``."""
        heard = time.monotonic()
        while not is_done():
            if self._ended and any(frame.word == "fail" for frame in self._frames):
                # It said why before it went: that is heard next.
                self._out.clear()
                self._is_deaf = True
                return
            if self._ended or self._is_killed:
                raise self._gone()
            self._watch_stdin(wanted=bool(self._out))
            ready = self._selector.select(timeout=min(silence_s, 1.0))
            if any([self._handle(key.fd) for key, _ in ready]):  # noqa: C419 - all of them, not up to the first
                heard = time.monotonic()
            elif time.monotonic() - heard > silence_s:
                self._process.kill()
                noise = f"; it printed {self._noise.strip()!r}" if self._noise.strip() else ""
                raise DeviceError(
                    f"no answer for {silence_s:g} s{noise}", where=self.where,
                    hint="does `ssh` by hand get through, without a question? then the same command again",
                )  # fmt: skip

    def _watch_stdin(self, *, wanted: bool) -> None:
        if wanted and not self._writes:
            self._selector.register(self._stdin, selectors.EVENT_WRITE)
        elif self._writes and not wanted:
            self._selector.unregister(self._stdin)
        self._writes = wanted

    def _handle(self, handle: int) -> bool:
        """Read or write what can be; whether anything moved."""
        if handle == self._stdin:
            try:
                written = os.write(self._stdin, memoryview(self._out)[: 1 << 18])
            except BlockingIOError:
                return False
            except OSError:
                # It is gone; why, it may still have said.
                self._out.clear()
                self._is_deaf = True
                return False
            del self._out[:written]
            return True
        data = _read(handle)
        if data is None:
            return False
        if handle == self._stderr:
            self._errors = (self._errors + data)[-_KEPT_STDERR:]
            if not data:
                self._selector.unregister(self._stderr)
        elif data:
            self._in += data
            self._parse()
        else:
            self._ended = True
        return bool(data)

    def _parse(self) -> None:
        """Turn whole lines into frames; lines without our word are somebody else's."""
        while self._raw is None and (end := self._in.find(b"\n")) >= 0:
            line = bytes(self._in[:end])
            del self._in[: end + 1]
            start = line.find(self._nonce + b" ")
            if start < 0:
                self._noise = (self._noise + line.decode(errors="replace") + "\n")[-_KEPT_NOISE:]
                continue
            word, _, text = clean_text(line[start + len(self._nonce) + 1 :]).partition(" ")
            if word == "data":
                if not re.fullmatch(r"[0-9]{1,15}", text):
                    raise DeviceError(f"an answer that makes no sense: {text[:100]!r}", where=self.where)
                self._raw = int(text)
            self._frames.append(MessageFrame(word, text))

    def _gone(self) -> EdgeError:
        """The reason why the program ended before it answered."""
        deadline = time.monotonic() + (0 if self._is_killed else 5)
        while time.monotonic() < deadline:
            data = _read(self._stderr)
            if data == b"":
                break
            if data is None:
                time.sleep(0.02)
                continue
            self._errors = (self._errors + data)[-_KEPT_STDERR:]
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = None
        noise = self._noise + self._in.decode(errors="replace")
        return self._explain(code, clean_text(self._errors), noise)

    def _close_stdin(self) -> None:
        if self._writes:
            self._watch_stdin(wanted=False)
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()


def clean_text(data: bytes | bytearray) -> str:
    """A stranger's text without what a terminal obeys: only what can be printed, and line ends."""
    return "".join(sign if sign.isprintable() or sign == "\n" else "\ufffd" for sign in data.decode(errors="replace"))


def refusal(text: str, where: str) -> EdgeError:
    """What a device that says ``fail KIND WORDS`` means, and what to do about it."""
    kind, _, words = text.partition(" ")
    if kind == "write":
        return _disk(words, where)
    if kind == "locked":
        return StoreError(
            f"another ship is at work on this device: {words or 'unknown'}", where=where,
            hint="wait for it; one whose client is gone gives up by itself after two minutes",
        )  # fmt: skip
    if kind == "tools":
        return DeviceError(
            f"{words} is not on the device", where=where,
            hint="sudo apt install coreutils findutils util-linux openssh-client",
        )  # fmt: skip
    if kind == "signature":
        return ArtifactError(
            f"the device refuses the signature: {words}",
            where=where,
            hint="edge bundle sign; its allowed_signers say who may",
        )
    if kind == "damaged":
        return ArtifactError(
            f"{words} on the device is damaged; nothing was changed", where=where, hint="ship that bundle again"
        )
    if kind == "nothing":
        return UsageError(f"there is nothing to go back to: {words}", where=where, hint="edge ship status")
    return DeviceError(f"the device did not understand edge ({text})", where=where, hint="report this as a bug")


def _disk(words: str, where: str) -> StoreError:
    lower = words.lower()
    if "no space" in lower or "quota" in lower or "file size limit" in lower or "too large" in lower:
        hint = "free some space there (edge ship gc TARGET), then the same command again; `current` was not touched"
    elif "read-only" in lower:
        hint = "the file system is read-only: remount it, or ship to another path (user@host:path)"
    elif "symbolic link" in lower and "not permitted" in lower:
        hint = "the file system there has no links (FAT, exFAT): give it ext4, or ship to another path"
    elif "permission denied" in lower or "not permitted" in lower:
        hint = "ship to a path that this user may write (user@host:path), or change its owner there"
    else:
        hint = "look at that path on the device; `current` was not touched"
    return StoreError(
        f"cannot write on the device: {words or 'the file size limit was reached'}", where=where, hint=hint
    )


def _pieces(source: Iterable[bytes]) -> Iterable[bytes]:
    """The same bytes in pieces of at most 4 MiB; one empty piece when there are none, so that the file comes to be."""
    pending = bytearray()
    given = False
    for data in source:
        pending += data
        while len(pending) >= _PIECE:
            yield bytes(pending[:_PIECE])
            given = True
            del pending[:_PIECE]
    if pending or not given:
        yield bytes(pending)


def _read(handle: int) -> bytes | None:
    """What can be read now; None when nothing can, empty at the end."""
    try:
        return os.read(handle, _READ)
    except BlockingIOError:
        return None
    except OSError:
        return b""

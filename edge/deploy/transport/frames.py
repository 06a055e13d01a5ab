"""The only parser of a device's answers: a pattern for every word, a limit for every size.

A device is not trusted. Every answer is a line that begins with a random word made for this session; other lines are
output of a login shell, of which the end is stored for messages. A line that is too long, an unexpected word, an
invalid text, too many lines of a kind, or endless output ends the session with a :class:`~edge.errors.DeviceError`.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from typing import NamedTuple

import msgspec

from edge.errors import DeviceError

MAX_LINE_BYTES = 1 << 20
MAX_ANSWER_BYTES = 4 << 20
# A banner and a profile script print less.
MAX_NOISE_BYTES = 1 << 18
_KEPT_NOISE = 2_000

DIGEST = "[0-9a-f]{64}"
NUMBER = "[0-9]{1,15}"
BASE64 = "[A-Za-z0-9+/]*={0,2}"
VERDICT = "passed|failed|unknown|untried"
_PATH = "/.{0,4095}"
_TEXT = ".{0,1000}"
_MANY = 100_000


class MessageFrame(msgspec.Struct, frozen=True):
    """One answer line of the device: its first word, and the rest."""

    word: str
    text: str


class _Form(NamedTuple):
    pattern: str
    most: int = 1


_SITUATION = {
    "free": _Form(f"(?:{NUMBER} {NUMBER})?"),
    "current": _Form(DIGEST),
    "previous": _Form(DIGEST),
    "verdict": _Form(VERDICT),
}
_EDGE = {"edge": _Form(_PATH), "foreign": _Form(_PATH)}
# By request: the words of its answer; `done` and `fail` are common to all.
FORMS: dict[str, dict[str, _Form]] = {
    "start": {"ready": _Form("1")},
    "hello": {
        "root": _Form(_PATH), "there": _Form("yes"), "clock": _Form(NUMBER), "rsync": _Form("yes"),
        "file": _Form(f"[a-z0-9_/-]{{1,64}} {BASE64}", 4), **_SITUATION, **_EDGE,
    },
    "look": _SITUATION,
    "begin": _SITUATION,
    "want": {"need": _Form(f"{DIGEST} {NUMBER}", _MANY)},
    # Files that were sealed before it may be answered first.
    "put": {"sealed": _Form(DIGEST, _MANY), "bad": _Form(DIGEST, _MANY)},
    "seal": {"sealed": _Form(DIGEST), "bad": _Form(DIGEST)},
    "adopt": {},
    "tree": {"rotten": _Form(DIGEST, _MANY), "signed": _Form(_TEXT)},
    "switch": _SITUATION,
    "rollback": {"back": _Form(DIGEST), **_SITUATION},
    "bootstrap": {"code": _Form(NUMBER), "log": _Form(BASE64), **_EDGE},
    "trial": {
        "code": _Form(NUMBER), "report": _Form(BASE64), "log": _Form(BASE64), "foreign": _Form(_PATH),
        "result": _Form(VERDICT), "left": _Form(DIGEST), **_SITUATION,
    },
    "status": {
        "bundle": _Form(f"{DIGEST} (?:{VERDICT}) [0-9]{{1,11}} {BASE64}", _MANY),
        "history": _Form(BASE64), "version": _Form(_TEXT),
    },
    "verify": {"whole": _Form(""), "damaged": _Form("")},
    "gc": {"removed": _Form(DIGEST, _MANY), "freed": _Form(NUMBER, _MANY)},
    "listing": {"entry": _Form(rf"\\?{DIGEST}  .{{1,4096}}", _MANY)},
    "get": {"gone": _Form(_TEXT), "data": _Form(NUMBER)},
}  # fmt: skip
_FAIL = re.compile(f"(?:write|locked|tools|signature|damaged|nothing|protocol)(?: {_TEXT})?")
_COMPILED = {
    request: {word: (re.compile(form.pattern), form.most) for word, form in forms.items()}
    for request, forms in FORMS.items()
}


class Answer:
    """Checks the answer to one request as it arrives: every frame must match the request's patterns."""

    def __init__(self, request: str, *, where: str) -> None:
        self._request = request
        self._where = where
        self._counts: Counter[str] = Counter()
        self._bytes = 0

    def check(self, frame: MessageFrame) -> None:
        """Check the next frame.

        Raises:
            DeviceError: it is not part of an answer to this request.
        """
        self._counts[frame.word] += 1
        self._bytes += len(frame.word) + len(frame.text)
        if frame.word == "fail":
            is_good = _FAIL.fullmatch(frame.text) is not None
        elif frame.word == "done":
            is_good = not frame.text
        else:
            pattern, most = _COMPILED[self._request].get(frame.word, (None, 0))
            is_good = self._counts[frame.word] <= most and pattern is not None and bool(pattern.fullmatch(frame.text))
        if not is_good:
            raise invalid(f"{frame.word[:40]} {frame.text[:80]}", request=self._request, where=self._where)
        if self._bytes > MAX_ANSWER_BYTES:
            raise invalid("the answer exceeds 4 MiB", request=self._request, where=self._where)


class FrameReader:
    """Splits the bytes of a device into frames. ``noise`` is the end of its other output."""

    def __init__(self, nonce: bytes, *, where: str) -> None:
        self.frames: deque[MessageFrame] = deque()
        self.noise = ""
        # Whether a `data` line may come now; the bytes that one has promised, and that have not come yet.
        self.expects_data = False
        self.data_bytes: int | None = None
        self._nonce = nonce + b" "
        self._where = where
        self._buffer = bytearray()
        self._noise_bytes = 0

    def feed(self, data: bytes) -> None:
        """Add received bytes.

        Raises:
            DeviceError: a line or the other output is longer than from any working device.
        """
        self._buffer += data
        self._parse()

    def take(self) -> bytes:
        """Return received bytes of an announced file, at most as many as were announced."""
        data = bytes(self._buffer[: self.data_bytes or 0])
        del self._buffer[: len(data)]
        self.data_bytes = (self.data_bytes or 0) - len(data)
        if not self.data_bytes:
            self.data_bytes = None
            self._parse()
        return data

    def has_data(self) -> bool:
        """Return True if bytes of an announced file have arrived."""
        return bool(self._buffer)

    @property
    def rest(self) -> str:
        """Return the beginning of an incomplete line."""
        return printable_lines(self._buffer[-_KEPT_NOISE:])

    def _parse(self) -> None:
        while self.data_bytes is None and (end := self._buffer.find(b"\n")) >= 0:
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 1]
            if end > MAX_LINE_BYTES:
                raise self._endless("a line of more than 1 MiB")
            start = line.find(self._nonce)
            if start < 0:
                self._read_noise(line)
                continue
            word, _, text = printable_lines(line[start + len(self._nonce) :]).partition(" ")
            frame = MessageFrame(word, text)
            if word == "data" and self.expects_data and re.fullmatch(NUMBER, text):
                self.data_bytes, self.expects_data = int(text), False
            self.frames.append(frame)
        if self.data_bytes is None and len(self._buffer) > MAX_LINE_BYTES:
            raise self._endless("a line of more than 1 MiB")

    def _read_noise(self, line: bytes) -> None:
        self._noise_bytes += len(line) + 1
        if self._noise_bytes > MAX_NOISE_BYTES:
            raise self._endless("more than 256 KiB of other text")
        self.noise = (self.noise + printable_lines(line[-_KEPT_NOISE:]) + "\n")[-_KEPT_NOISE:]

    def _endless(self, what: str) -> DeviceError:
        start = " ".join((self.noise or self.rest)[:60].split())
        return DeviceError(
            f"it sends {what} instead of an answer ({start!r} …)", where=self._where,
            hint="check the output of ssh by hand; a login script must not print endlessly",
        )  # fmt: skip


def printable_lines(data: bytes | bytearray) -> str:
    """Return a device's text without terminal control characters, except line ends."""
    text = data.decode(errors="replace").replace("\r\n", "\n").replace("\r", "\n")
    return "".join(sign if sign.isprintable() or sign == "\n" else "\ufffd" for sign in text)


def invalid(text: str, *, request: str, where: str) -> DeviceError:
    """Return the error for an invalid answer of a device."""
    return DeviceError(
        f"an invalid answer to {request}: {' '.join(text.split())!r}", where=where,
        hint="its memory or disk may be failing, or something else answers in its place",
    )  # fmt: skip

"""Secrets that are never shown: camera URLs, tokens, passwords.

The text form of a :class:`Secret` is masked wherever it is printed: in an f-string, ``repr``, a log, an exception.
Only :meth:`Secret.reveal` returns the value; call it right where the value is used.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, final
from urllib.parse import unquote

from edge.errors import ArtifactError, UsageError

MASK = "***"
_URL = re.compile(r"(?P<scheme>.*?[a-zA-Z][a-zA-Z0-9+.-]*)://(?P<rest>.*)", re.DOTALL)
# `user=admin_password=…_channel=1` and similar: some cameras have such parts in the path.
_KEY = (
    r"(?:(?:user|usr)(?:name|[_-]?id|[_-]?pw)?|login|pass(?:word|wd|phrase)?|pwd?|token|auth|secret|(?:api)?[_-]?key|"
    r"sig(?:nature)?)"
)
_IN_PATH = re.compile(rf"(\b|_){_KEY}\s*=[^/;!]*", re.IGNORECASE)
_IN_WORDS = re.compile(rf"(?P<name>(?:\b|_){_KEY}\s*=\s*)[^\s!]+", re.IGNORECASE)
# A part of a path that is a token, as in the address of a webhook: 16 letters and digits without a break.
_TOKEN = re.compile(r"(?<=/)(?=[^/?#]*[0-9])(?=[^/?#]*[A-Za-z])[^/?#\s]*[A-Za-z0-9]{16}[^/?#\s]*")
_WORD = re.compile(r"[^\s'\"<>]*:/[^\s'\"<>]*")
# A URL that was taken for a path has one slash.
_AS_PATH = re.compile(r"\b(rtsps?|https?|rtmps?|mqtts?|ftps?|tcp|udp|oci|ssh):/(?!/)", re.IGNORECASE)


@final
class Secret:
    """A value whose text form is masked.

    Args:
        text: The secret.
        shown: The text that stands for it wherever it is printed.
    """

    __slots__ = ("_shown", "_text")

    def __init__(self, text: str, *, shown: str = MASK) -> None:
        self._text = text
        self._shown = shown

    @classmethod
    def url(cls, text: str) -> Secret:
        """Return a URL that may hold a user, a password or a token: its text form is :func:`masked_url`."""
        return cls(text, shown=masked_url(text))

    def reveal(self) -> str:
        """Return the secret itself."""
        return self._text

    @property
    def is_masked(self) -> bool:
        """True if the text form hides anything."""
        return self._shown != self._text

    def scrub(self, text: str) -> str:
        """Return ``text`` with every occurrence of the secret masked, and of the password in a secret URL."""
        if not self.is_masked or not self._text:
            return text
        text = text.replace(self._text, self._shown)
        for part in sorted(_parts(self._text), key=len, reverse=True):
            text = text.replace(part, MASK)
        return text

    def __str__(self) -> str:
        return self._shown

    def __repr__(self) -> str:
        return f"Secret({self._shown!r})"

    def __format__(self, spec: str) -> str:
        return format(self._shown, spec)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._text.encode(errors="replace"), other._text.encode(errors="replace"))

    def __hash__(self) -> int:
        return hash(self._text)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret must not be pickled")


def masked_url(url: str) -> str:
    """Return a URL as it may be shown: scheme, host and path.

    User and password (up to the last ``@``, which passwords may hold), the values of a query, values in a path that are
    called user, password, token and the like, and parts of a path that look like a token are masked. Text in front of
    the URL, as in ``NAME=URL``, stays as it is. In several words without a URL, such as a pipeline or a command,
    values of such names are masked.
    """
    url = _AS_PATH.sub(r"\1://", url)
    found = _URL.fullmatch(url)
    if found is None:
        # The words of a GStreamer pipeline or of a command.
        return _IN_WORDS.sub(rf"\g<name>{MASK}", url) if " " in url else url
    rest = found["rest"]
    credentials, at, place = rest.rpartition("@")
    if found["scheme"].lower().endswith("ssh") and ":" not in credentials:
        # A user by itself is part of a target.
        return url
    place, hash_, _fragment = place.partition("#")
    path, question, query = place.partition("?")
    if question:
        path += "?" + "&".join(f"{name.partition('=')[0]}={MASK}" if "=" in name else MASK for name in query.split("&"))
    shown = _IN_PATH.sub(lambda match: f"{match[0].partition('=')[0]}={MASK}", path.partition("?")[0])
    shown = _TOKEN.sub(MASK, shown)
    shown += path[len(path.partition("?")[0]) :]
    return f"{found['scheme']}://{MASK + '@' if at and credentials else at}{shown}{'#' + MASK if hash_ else ''}"


def hides(text: str) -> bool:
    """Return True if ``text`` is a URL with something in it that must not be shown."""
    return masked_url(text) != text


def masked_text(text: str) -> str:
    """Mask every URL in a message, such as that of a library or of a parser that quotes what was typed."""
    return _WORD.sub(lambda match: masked_url(match[0]), text) if ":/" in text else text


def decode_secret(kind: type, value: object) -> Secret:
    """Decode a text of a profile as a URL that may hold a secret: the ``dec_hook`` of msgspec.

    Raises:
        ValueError: it is no text.
        NotImplementedError: another type is asked for.
    """
    if kind is not Secret:
        raise NotImplementedError(kind)
    if not isinstance(value, str):
        raise ValueError(f"Expected `str`, got `{type(value).__name__}`")  # noqa: TRY004 - what msgspec translates
    return Secret.url(value)


def encode_masked(value: object) -> str:
    """Encode a secret as its masked text: the ``enc_hook`` of msgspec for everything that is shown or recorded.

    Raises:
        NotImplementedError: ``value`` is no secret.
    """
    if not isinstance(value, Secret):
        raise NotImplementedError(type(value))
    return str(value)


def read_secret(path: Path, *, what: str) -> Secret:
    """Read a URL or a token from the first line of a file.

    Raises:
        ArtifactError: the file cannot be read.
        UsageError: its first line is empty.
    """
    try:
        with path.open(errors="replace") as file:
            line = file.readline(65536).strip()
    except OSError as exc:
        raise ArtifactError(f"cannot read {what}: {exc.strerror or exc}", where=path) from exc
    if not line:
        raise UsageError(f"the first line is empty; it must be the {what}", where=path)
    return Secret.url(line) if "://" in line else Secret(line)


def read_address(given: Secret, *, what: str, warn: Callable[[str], None]) -> Secret:
    """Return an address, or the one in the file that ``@FILE`` names.

    Args:
        given: the address, or ``@FILE``.
        what: what the file holds, for messages.
        warn: gets a warning about a file that other users of this machine may read.

    Raises:
        ArtifactError: the file cannot be read.
        UsageError: its first line is empty.
    """
    text = given.reveal()
    if not text.startswith("@"):
        return given
    path = Path(text[1:]).expanduser()
    found = read_secret(path, what=what)
    if found.is_masked and is_readable_by_others(path):
        warn(f"{path}: other users of this machine may read this {what} (chmod 600 {path})")
    return found


def is_readable_by_others(path: Path) -> bool:
    """Return True if other users of this machine may read the file."""
    try:
        return bool(path.stat().st_mode & 0o044)
    except OSError:
        return False


def _parts(text: str) -> set[str]:
    """Return the parts of a URL that must be masked on their own: credentials, values of the query and the path."""
    found = _URL.fullmatch(text)
    if found is None:
        return {match[0][len(match["name"]) :] for match in _IN_WORDS.finditer(text)}
    credentials, _at, place = found["rest"].rpartition("@")
    parts = {credentials, credentials.partition(":")[2]}
    parts |= {value.partition("=")[2] for value in re.split("[?&#]", place)[1:]}
    path = place.partition("?")[0]
    parts |= {match[0].partition("=")[2] for match in _IN_PATH.finditer(path)}
    parts |= {match[0] for match in _TOKEN.finditer(path)}
    parts |= {unquote(part) for part in parts}
    # Two letters occur in every sentence.
    return {part for part in parts if len(part) > 3}

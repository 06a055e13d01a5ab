"""Texts that are never shown: camera URLs, tokens, passwords.

The text form of a :class:`Secret` is masked, whatever prints it: an f-string, ``repr``, a log, an exception. The text
itself is had by one call, :meth:`Secret.reveal`, which belongs right beside the use of it.
"""

from __future__ import annotations

import hmac
import os
import re
from pathlib import Path
from typing import NoReturn, final
from urllib.parse import unquote

from edge.errors import ArtifactError, UsageError

MASK = "***"
_URL = re.compile(r"(?P<scheme>.*?[a-zA-Z][a-zA-Z0-9+.-]*)://(?P<rest>.*)", re.DOTALL)
# `user=admin_password=…_channel=1` and the like, as some cameras have it in the path.
_KEY = r"(?:user(?:name)?|usr|login|pass(?:word|wd)?|pwd|token|auth|secret|(?:api)?_?key|sig(?:nature)?)"
_IN_PATH = re.compile(rf"(\b|_){_KEY}=[^/;]*", re.IGNORECASE)


@final
class Secret:
    """A text whose text form is masked.

    Args:
        text: The secret.
        shown: What stands for it wherever it is printed.
    """

    __slots__ = ("_shown", "_text")

    def __init__(self, text: str, *, shown: str = MASK) -> None:
        self._text = text
        self._shown = shown

    @classmethod
    def url(cls, text: str) -> Secret:
        """A URL that may hold a user, a password or a token: its text form is :func:`masked_url`."""
        return cls(text, shown=masked_url(text))

    def reveal(self) -> str:
        """The secret itself."""
        return self._text

    @property
    def is_masked(self) -> bool:
        """True when the text form hides anything."""
        return self._shown != self._text

    def scrub(self, text: str) -> str:
        """``text`` with every occurrence of the secret masked, also of the password in it when it is a URL."""
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
        raise TypeError("a secret is not pickled")


def masked_url(url: str) -> str:
    """A URL as it may be shown: scheme, host and path.

    User and password (up to the last ``@``, which passwords may hold), the values of a query, and values in a path that
    are called user, password, token and the like are masked. Text in front of the URL, as in ``NAME=URL``, and a
    text that holds none, stay as they are.
    """
    found = _URL.fullmatch(url)
    if found is None:
        return url
    rest = found["rest"]
    credentials, at, place = rest.rpartition("@")
    place, hash_, _fragment = place.partition("#")
    path, question, query = place.partition("?")
    if question:
        path += "?" + "&".join(f"{name.partition('=')[0]}={MASK}" if "=" in name else MASK for name in query.split("&"))
    shown = _IN_PATH.sub(lambda match: f"{match[0].partition('=')[0]}={MASK}", path.partition("?")[0])
    shown += path[len(path.partition("?")[0]) :]
    return f"{found['scheme']}://{MASK + '@' if at and credentials else at}{shown}{'#' + MASK if hash_ else ''}"


def hides(text: str) -> bool:
    """True when ``text`` is a URL with something in it that must not be shown."""
    return masked_url(text) != text


def read_secret(path: Path, *, what: str) -> str:
    """The first line of a file that holds a secret.

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
        raise UsageError(f"the first line has no {what}", where=path)
    return line


def is_readable_by_others(path: Path) -> bool:
    """True when other users of this machine may read the file."""
    try:
        return bool(os.stat(path).st_mode & 0o077)  # noqa: PTH116
    except OSError:
        return False


def _parts(text: str) -> set[str]:
    """Parts of a URL that must not be seen by themselves either: credentials, values of the query and of the path."""
    found = _URL.fullmatch(text)
    if found is None:
        return set()
    credentials, _at, place = found["rest"].rpartition("@")
    parts = {credentials, credentials.partition(":")[2]}
    parts |= {value.partition("=")[2] for value in re.split("[?&#]", place)[1:]}
    parts |= {match[0].partition("=")[2] for match in _IN_PATH.finditer(place.partition("?")[0])}
    parts |= {unquote(part) for part in parts}
    # Two letters are in every sentence.
    return {part for part in parts if len(part) > 3}

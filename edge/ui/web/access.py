"""Access to the pages: the name that was asked for, and the token.

Host: a page of somebody else whose name resolves to this machine (DNS rebinding) still sends its own name in ``Host``.
Only addresses, which cannot be rebound, and this machine's own names are answered.

Token: needed on every address but loopback. A browser gives it once, in the body of a form, and gets a cookie with a
secret of this run; Prometheus sends it as ``Authorization: Bearer``. It is never part of an address, so it is in no log
and no history; the part after ``#`` in the address that is printed stays in the browser.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import secrets
import socket
from pathlib import Path

from edge.errors import ArtifactError, UsageError

_FEWEST_LETTERS = 16
# RFC 9110, 7.2, and RFC 3986, 3.2.2: a name or IPv4 address, or an IPv6 address in brackets; and a port.
_HOST = re.compile(r"(?:\[(?P<address>[0-9a-f:.]{2,45})\]|(?P<name>[a-z0-9._-]{1,253}))(?::\d{0,5})?")


class Access:
    """``token`` None lets everybody in who asks by a right name; for loopback only."""

    def __init__(self, token: str | None) -> None:
        self.token = token
        self._session = secrets.token_urlsafe(24)
        own = socket.gethostname().lower()
        self._names = {"localhost", own, f"{own}.local", own.partition(".")[0]}

    def is_ours(self, host: str) -> bool:
        """True if a ``Host`` header names this machine."""
        found = _HOST.fullmatch(host.strip().lower())
        if found is None:
            return False
        name = found["address"] or found["name"]
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return found["name"] is not None and name.rstrip(".") in self._names
        # An IPv6 address has brackets, and nothing else has.
        return (":" in name) == (found["address"] is not None)

    def is_token(self, given: str) -> bool:
        """True if ``given`` is the token; takes the same time for every wrong one."""
        return self.token is None or hmac.compare_digest(given.encode(errors="replace"), self.token.encode())

    def may_look(self, *, cookie: str | None, authorization: str | None) -> bool:
        """True if a request with this cookie or ``Authorization`` header is let in."""
        if self.token is None:
            return True
        if cookie is not None and hmac.compare_digest(cookie.encode(errors="replace"), self._session.encode()):
            return True
        scheme, _, given = (authorization or "").partition(" ")
        return scheme.lower() == "bearer" and self.is_token(given.strip())

    @property
    def session(self) -> str:
        """The value of the cookie of somebody who gave the token holds."""
        return self._session


def read_token(path: Path) -> str:
    """The token in the first line of a file.

    Raises:
        ArtifactError: the file cannot be read.
        UsageError: it is too short to be a secret, or has letters that no header may hold.
    """
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError as exc:
        raise ArtifactError(f"cannot read the token: {exc.strerror}", where=path) from exc
    token = lines[0].strip() if lines else ""
    if len(token) < _FEWEST_LETTERS or not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(
            f"a token has at least {_FEWEST_LETTERS} ASCII letters and no spaces", where=path,
            hint=f"openssl rand -hex 24 > {path}",
        )  # fmt: skip
    return token


def new_token() -> str:
    """A token that nobody can guess."""
    return secrets.token_urlsafe(24)

"""Parse ``HOST:PORT``, open the listening socket, and check the host name and token of requests."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import re
import secrets
import socket
from pathlib import Path

import msgspec

from edge.artifacts import Secret
from edge.errors import ArtifactError, DeviceError, UsageError

# The kernel closes the connection of a client that reads nothing for this long.
_STALLED_MS = 15_000
_BACKLOG = 16


class Address(msgspec.Struct, frozen=True):
    """An address to listen on. ``port`` 0 means any free port."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """True if only this machine can reach the address."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def url(self) -> str:
        """The URL to open in a browser on this machine or in its network."""
        try:
            any_address = ipaddress.ip_address(self.host).is_unspecified
        except ValueError:
            any_address = False
        host = socket.gethostname() if any_address else f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/"


def parse_address(text: str, *, option: str) -> Address:
    """Parse ``8080``, ``:8080``, ``HOST:8080`` or ``[IPV6]:8080``; the default host is the loopback address.

    Raises:
        UsageError: ``text`` has none of these forms.
    """
    host, _, port = text.strip().rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        valid = _is_ipv6(host)
    else:
        valid = ":" not in host and "/" not in host and host.isprintable() and " " not in host
    if not valid or not port.isdecimal() or not port.isascii() or int(port) > 65535:
        raise UsageError(
            f"invalid HOST:PORT {text!r}", where=option, hint=f"{option} 127.0.0.1:8080, or {option} 0.0.0.0:8080"
        )
    return Address(host or "127.0.0.1", int(port))


def listen(address: Address, *, option: str) -> socket.socket:
    """Open a listening socket.

    Raises:
        DeviceError: the port is in use or not permitted, or this machine does not have the address.
    """
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _name, target = found[0]
        made = socket.socket(family, kind, protocol)
    except OSError as exc:
        raise DeviceError(f"cannot listen on {address.host}: {exc.strerror}", where=option) from exc
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted connections inherit these: bounded buffers, and a timeout for clients that never read.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 128 << 10)
        with contextlib.suppress(OSError):
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _STALLED_MS)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, _STALLED_MS // 1000)
        made.bind(target)
        made.listen(_BACKLOG)
    except OSError as exc:
        made.close()
        raise DeviceError(
            f"cannot listen on {address.host}:{address.port}: {exc.strerror}", where=option, hint=_hint(exc, address)
        ) from exc
    return made


def _hint(exc: OSError, address: Address) -> str | None:
    hints = {
        errno.EADDRINUSE: f"ss -ltnp 'sport = :{address.port}' shows which process uses it; choose another port",
        errno.EACCES: "ports below 1024 need root: choose another port",
        errno.EADDRNOTAVAIL: "this machine has no such address: ip -brief address lists them",
    }
    return hints.get(exc.errno or 0)


def _is_ipv6(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).version == 6
    except ValueError:
        return False


_FEWEST_LETTERS = 16
# RFC 9110, 7.2, and RFC 3986, 3.2.2: a name or IPv4 address, or an IPv6 address in brackets; and a port.
_HOST = re.compile(r"(?:\[(?P<address>[0-9a-f:.]{2,45})\]|(?P<name>[a-z0-9._-]{1,253}))(?::\d{0,5})?")


class Access:
    """Access rules. ``token`` None admits every request with a valid host name; use it on loopback only."""

    def __init__(self, token: Secret | None) -> None:
        self.token = token
        # The value of the cookie of somebody who gave the token.
        self.session = Secret(secrets.token_urlsafe(24))
        own = socket.gethostname().lower()
        self._names = {"localhost", own, f"{own}.local", own.partition(".")[0]}

    def is_ours(self, host: str) -> bool:
        """Return True if a ``Host`` header names this machine."""
        found = _HOST.fullmatch(host.strip().lower())
        if found is None:
            return False
        name = found["address"] or found["name"]
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return found["name"] is not None and name.rstrip(".") in self._names
        # Only an IPv6 address has brackets.
        return (":" in name) == (found["address"] is not None)

    def is_token(self, given: str) -> bool:
        """Return True if ``given`` is the token, after the same time for every wrong one."""
        return self.token is None or self.token == Secret(given)

    def may_look(self, *, cookie: str | None, authorization: str | None) -> bool:
        """Return True if a request with this cookie or ``Authorization`` header is admitted."""
        if self.token is None:
            return True
        if cookie is not None and self.session == Secret(cookie):
            return True
        scheme, _, given = (authorization or "").partition(" ")
        return scheme.lower() == "bearer" and self.is_token(given.strip())


def read_token(path: Path) -> Secret:
    """Read the token from the first line of a file.

    Raises:
        ArtifactError: the file cannot be read.
        UsageError: it is too short to be a secret, or has characters that are invalid in a header.
    """
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError as exc:
        hint = f"openssl rand -hex 24 > {path}; chmod 600 {path}"
        raise ArtifactError(f"cannot read the token: {exc.strerror}", where=path, hint=hint) from exc
    token = lines[0].strip() if lines else ""
    if len(token) < _FEWEST_LETTERS or not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(
            f"a token must have at least {_FEWEST_LETTERS} ASCII characters and no spaces", where=path,
            hint=f"openssl rand -hex 24 > {path}",
        )  # fmt: skip
    return Secret(token)


def new_token() -> Secret:
    """Make a token that nobody can guess."""
    return Secret(secrets.token_urlsafe(24))

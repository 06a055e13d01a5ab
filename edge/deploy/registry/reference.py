"""The address of a bundle in a registry: ``oci://host[:port]/name[:tag][@sha256:…]``."""

from __future__ import annotations

import ipaddress
import re

import msgspec

from edge.errors import UsageError

SCHEME = "oci://"
DEFAULT_TAG = "latest"
# [OCI distribution specification 1.1, "Pulling manifests"]
_NAME = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:]+\]|[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?)(?::[0-9]{1,5})?")
_HINT = "oci://registry.example:5000/team/orin:1.2, perhaps with @sha256:…"


class Reference(msgspec.Struct, frozen=True):
    """One artifact: by tag, by digest, or by a tag that must have this digest."""

    host: str
    name: str
    tag: str | None
    digest: str | None

    @property
    def is_loopback(self) -> bool:
        """True if the registry is on this machine, where nobody listens on the way."""
        return is_loopback(self.host)

    @property
    def wanted(self) -> str:
        """The digest or tag to request: the digest where there is one."""
        return self.digest or self.tag or DEFAULT_TAG

    def pinned(self, digest: str) -> Reference:
        """The same with this digest."""
        return msgspec.structs.replace(self, digest=digest)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{SCHEME}{self.host}/{self.name}{tag}{f'@{self.digest}' if self.digest else ''}"


def is_loopback(netloc: str) -> bool:
    """True if ``host[:port]`` is this machine."""
    # An address of IPv6 is in brackets, and has colons of its own.
    host = netloc if netloc.endswith("]") else re.sub(r":[0-9]*$", "", netloc)
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def parse_reference(text: str) -> Reference:
    """Read a reference.

    Raises:
        UsageError: it is not one; a password in it is never shown.
    """
    if not text.startswith(SCHEME):
        raise UsageError("not a reference to a registry", where=text.partition("@")[0], hint=_HINT)
    host, slash, path = text.removeprefix(SCHEME).partition("/")
    if "@" in host:
        raise UsageError(
            "a user or password does not belong on a command line, where others can read it",
            hint="docker login, or EDGE_REGISTRY_USER and EDGE_REGISTRY_PASSWORD",
        )
    rest, at, digest = path.partition("@")
    name, colon, tag = rest.partition(":")
    problems = (
        (not slash or not _HOST.fullmatch(host), f"{host!r} is not the name of a registry"),
        (not _NAME.fullmatch(name), f"{name!r} is not the name of a repository (lower case)"),
        (bool(colon) and not _TAG.fullmatch(tag), f"{tag!r} is not a tag"),
        (bool(at) and not _DIGEST.fullmatch(digest), f"{digest!r} is not a digest (sha256: and 64 hex digits)"),
    )
    for wrong, what in problems:
        if wrong:
            raise UsageError(what, where=text, hint=_HINT)
    return Reference(host, name, tag or (None if digest else DEFAULT_TAG), digest or None)

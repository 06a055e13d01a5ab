"""Parse addresses of devices: a folder, or a host behind ssh, from TARGET on the command line."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from edge.errors import UsageError

# Folder of edge's bundles on a device, relative to the home folder.
DEFAULT_PATH = ".local/share/edge"

# ssh expands host and user in the user's own ProxyCommand: they must not contain shell syntax.
_HOST = re.compile(r"[A-Za-z0-9_:][A-Za-z0-9_.:%-]*")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]*")


class DeviceAddress(msgspec.Struct, frozen=True, kw_only=True):
    """The address of a device's bundles: host, path and connection options.

    ``folder`` is set for a folder of this machine; otherwise ``host`` and ``path`` are. ``path`` is relative to the
    home folder there unless it begins with ``/``. ``jump`` is ``[user@]host[:port]``, several with commas. ``edge`` is
    the program there, when it is not in one of the usual places. ``system_root`` is where the root of the device's file
    system lies: another folder when a disk of a device is mounted here.
    """

    name: str
    folder: Path | None = None
    user: str | None = None
    host: str = ""
    port: int | None = None
    path: str = DEFAULT_PATH
    jump: str | None = None
    ssh_config: Path | None = None
    edge: str | None = None
    system_root: str = ""

    @property
    def is_folder(self) -> bool:
        """True if it is a folder of this machine."""
        return self.folder is not None

    @property
    def is_own(self) -> bool:
        """True for a running device: one reached over ssh, or this machine itself (``system_root: /``)."""
        return not self.is_folder or self.system_root == "/"


def parse(text: str) -> DeviceAddress | None:
    """Return the address that ``text`` describes; None for a bare word: the name of a fleet host or an ssh host.

    Raises:
        UsageError: ``text`` is invalid.
    """
    if any(ord(sign) < 32 or ord(sign) == 127 for sign in text) or not text:
        raise UsageError(f"{text!r} cannot be a target: it is empty or has control characters", hint=_FORMS)
    if text.startswith("ssh://"):
        return _address(text)
    if re.fullmatch(r"[^/@:\[]+:[^/@]+@[^/]+", text):
        raise UsageError(
            f"{text.partition(':')[0]}:***@{text.rpartition('@')[2]}: a password must not be part of a target",
            hint="use a key (ssh-copy-id); begin a path that contains @ with ./ or ~/",
        )
    head, colon, path = _split(text)
    if colon and "/" not in head:
        if path.isdecimal():
            hint = f"for a port: ssh://{head}:{path}; for that folder: {head}:./{path}"
            raise UsageError(f"{text!r} names the folder {path}, not a port", hint=hint)
        return remote_address(head, name=text, path=path)
    if "/" in text or text in {".", ".."} or text.startswith("~"):
        return DeviceAddress(name=text, folder=Path(text).expanduser().absolute())
    return remote_address(text, name=text) if "@" in text else None


def remote_address(address: str, *, name: str, path: str = "") -> DeviceAddress:
    """Return the address of a device behind ``[user@]host``.

    Raises:
        UsageError: host or user is invalid, or the path is in another user's home.
    """
    user, _, host = address.rpartition("@")
    if ":" in user:
        raise UsageError(
            "a password must not be part of a target: others can read a command line, and ssh would not use it",
            hint="use a key (ssh-copy-id)",
        )
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if not _HOST.fullmatch(host):
        raise UsageError(f"{host!r} is not a valid host name", where=name, hint=_FORMS)
    if user and not _USER.fullmatch(user):
        raise UsageError(f"{user!r} is not a valid user name", where=name, hint=_FORMS)
    path = path.removeprefix("~/") if path != "~" else "."
    if path.startswith("~"):
        raise UsageError(
            f"{path!r} cannot be resolved",
            where=name,
            hint="use an absolute path, or ~/… for a path in your home folder",
        )
    return DeviceAddress(name=name, user=user or None, host=host, path=path or DEFAULT_PATH)


def check_jump(jump: str) -> str | None:
    """Return the reason why ``jump`` is not a list of ``[user@]host[:port]``; None if it is one."""
    for hop in jump.split(","):
        address, _, port = hop.rpartition(":") if re.search(r":\d+$", hop) else (hop, "", "")
        user, _, host = address.rpartition("@")
        host = host.removeprefix("[").removesuffix("]")
        if not _HOST.fullmatch(host) or (user and not _USER.fullmatch(user)) or (port and not 0 < int(port) < 65536):
            return f"{hop!r} is not [user@]host[:port]"
    return None


def _split(text: str) -> tuple[str, str, str]:
    """Split ``host:path`` at the first colon that is not part of an IPv6 address in brackets."""
    match = re.match(r"((?:[^@/]*@)?\[[^\]/]*\])(:?)(.*)", text)
    if match:
        return match[1], ":", match[3]
    return text.partition(":")


def _address(text: str) -> DeviceAddress:
    match = re.fullmatch(
        r"ssh://(?P<address>(?:[^@/]*@)?(?:\[[^\]]*\]|[^:/]*))(?::(?P<port>\d{1,5}))?(?P<path>/.*)?", text
    )
    if match is None or (match["port"] and not 0 < int(match["port"]) < 65536):
        raise UsageError(f"{text!r} is not ssh://[user@]host[:port][/path]", hint=_FORMS)
    place = remote_address(match["address"], name=text, path=match["path"] or "")
    return msgspec.structs.replace(place, port=int(match["port"]) if match["port"] else None)


_FORMS = "a folder (./device), user@host, user@host:path, ssh://user@host:port/path, or a name from fleet.yaml"

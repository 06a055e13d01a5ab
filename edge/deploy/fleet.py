"""Read fleet.yaml: device names and addresses, what each device gets, and the settings of a roll-out.

::

    rollout:  {parallel: 8, canary: [orin-1], stop_after: 3}
    defaults: {user: ada, profile: orin}
    groups:   {line-3: [orin-1, orin-2]}
    hosts:
      orin-1: {host: 10.0.0.11, port: 2222, jump: bastion}
      orin-2:                      # no settings: the name is the host

Paths are relative to the file. Errors are reported as ``file:line: key.path``, as for profiles. The group ``all``
is every host.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import msgspec

from edge.config import Document, Kind, did_you_mean
from edge.deploy.transport import DeviceAddress, check_jump, remote_address
from edge.errors import ProfileError, UsageError

_KIND = Kind(name="fleet file", hint="docs/shipping.md shows one")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
# Names with another meaning on the command line of `edge ship`.
_TAKEN = frozenset({"status", "rollback", "gc", "to"})
ALL = "all"


class _FleetSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base class of every section: unknown keys are errors."""


class HostSettings(_FleetSection, frozen=True):
    """Settings of one device, or defaults of all. See :class:`edge.deploy.transport.DeviceAddress`."""

    host: str | None = None
    user: str | None = None
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] | None = None
    jump: str | None = None
    path: str | None = None
    folder: str | None = None
    ssh_config: str | None = None
    edge: str | None = None
    system_root: str | None = None
    profile: str | None = None
    bundle: str | None = None


class Rollout(_FleetSection, frozen=True):
    """Settings of a roll-out: devices in parallel, the canary devices, and the number of failures that stops it.

    ``gates`` are limits of the trial on the device (``edge ship --gate``).
    """

    parallel: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 8
    canary: list[str] = []
    stop_after: Annotated[int, msgspec.Meta(ge=1)] | None = None
    gates: dict[str, float] = {}


class _File(_FleetSection, frozen=True):
    """The sections of the file; hosts are parsed one by one, so that errors have their line."""

    rollout: Rollout = Rollout()
    defaults: HostSettings = HostSettings()
    groups: dict[str, list[str]] = {}
    hosts: dict[str, HostSettings | None] = {}


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """One device of a fleet: its address, and its profile or bundle if the file sets one."""

    place: DeviceAddress
    profile: str | None = None
    bundle: Path | None = None


class Fleet(msgspec.Struct, frozen=True, kw_only=True):
    """A checked fleet file."""

    path: Path
    rollout: Rollout
    groups: dict[str, list[str]]
    hosts: dict[str, Host]

    def find(self, word: str) -> list[Host]:
        """Return the hosts of a name or group.

        Raises:
            UsageError: neither exists; the nearest name is suggested.
        """
        if word == ALL:
            return list(self.hosts.values())
        if word in self.groups:
            return [self.hosts[name] for name in self.groups[word]]
        if word in self.hosts:
            return [self.hosts[word]]
        known = [*self.hosts, *self.groups, ALL]
        raise UsageError(
            f"there is no host or group {word!r}{did_you_mean(word, known)}", where=self.path,
            hint=f"write ./{word} for a folder, or {word}: with a colon for a host of your ssh configuration",
        )  # fmt: skip

    @property
    def canary(self) -> frozenset[str]:
        """Names of the canary hosts, which go first."""
        return frozenset(host.place.name for word in self.rollout.canary for host in self.find(word))


def load_fleet(path: Path) -> Fleet:
    """Read a fleet file.

    Raises:
        ProfileError: the file is invalid; the error has ``file:line: key.path``.
    """
    document = Document.read_one(path, _KIND)
    tree = document.tree
    document.reject_unknown(_File, tree)
    hosts = tree.get("hosts")
    if not isinstance(hosts, dict) or not hosts:
        raise document.error(("hosts",), "needs at least one host")
    defaults = _settings(document, tree.get("defaults") or {}, ("defaults",))
    known = {}
    for name, content in hosts.items():
        at = ("hosts", name)
        _check_name(document, name, at)
        settings = _settings(document, {} if content is None else content, at)
        known[name] = _host(document, name, settings, defaults)
    try:
        rollout = msgspec.convert(tree.get("rollout") or {}, Rollout)
    except msgspec.ValidationError as exc:
        raise document.error_from(exc, Rollout, at=("rollout",)) from exc
    groups = _groups(document, tree.get("groups") or {}, known)
    for word in rollout.canary:
        if word not in known and word not in groups and word != ALL:
            names = [*known, *groups, ALL]
            raise document.error(
                ("rollout", "canary"), f"there is no host or group {word!r}{did_you_mean(word, names)}"
            )
    return Fleet(path=path, rollout=rollout, groups=groups, hosts=known)


def _settings(document: Document, content: object, at: tuple[str, ...]) -> HostSettings:
    if not isinstance(content, dict):
        raise document.error(at, "must be a mapping of keys to values")
    document.reject_unknown(HostSettings, content, at)
    try:
        return msgspec.convert(content, HostSettings)
    except msgspec.ValidationError as exc:
        raise document.error_from(exc, HostSettings, at=at) from exc


def _check_name(document: Document, name: str, at: tuple[str, ...]) -> None:
    if not _NAME.fullmatch(name):
        raise document.error(at, "a name is letters, digits, '_', '.' and '-'")
    if name in _TAKEN or name == ALL:
        raise document.error(at, f"{name!r} has another meaning on the command line: choose another name")


def _host(document: Document, name: str, own: HostSettings, defaults: HostSettings) -> Host:
    merged = msgspec.to_builtins(defaults) | {k: v for k, v in msgspec.to_builtins(own).items() if v is not None}
    if own.bundle is None and own.profile is not None:
        # The host's own settings override the defaults.
        merged["bundle"] = None
    both = msgspec.convert(merged, HostSettings)
    at = ("hosts", name)
    for key, value in merged.items():
        if isinstance(value, str) and (not value or any(ord(sign) < 32 for sign in value)):
            raise document.error((*at, key), "must not be empty or contain control characters")
    if both.folder is not None:
        if own.host is not None:
            raise document.error((*at, "folder"), "a host has either folder or host")
        place = DeviceAddress(
            name=name, folder=_path(document, both.folder), edge=both.edge, system_root=both.system_root or ""
        )
        return _with_load(document, both, place)
    if both.jump is not None and (why := check_jump(both.jump)):
        raise document.error((*at, "jump"), why)
    address = both.host or name
    if both.user is not None and "@" not in address:
        address = f"{both.user}@{address}"
    try:
        reached = remote_address(address, name=name, path=both.path or "")
    except UsageError as exc:
        raise document.error((*at, "host"), exc.what) from exc
    place = msgspec.structs.replace(
        reached, port=both.port, jump=both.jump, edge=both.edge, system_root=both.system_root or "",
        ssh_config=None if both.ssh_config is None else _path(document, both.ssh_config),
    )  # fmt: skip
    return _with_load(document, both, place)


def _with_load(document: Document, settings: HostSettings, place: DeviceAddress) -> Host:
    bundle = None if settings.bundle is None else _path(document, settings.bundle)
    return Host(place=place, profile=settings.profile, bundle=bundle)


def _groups(document: Document, content: object, hosts: dict[str, Host]) -> dict[str, list[str]]:
    if not isinstance(content, dict):
        raise document.error(("groups",), "must be a mapping of names to lists of hosts")
    groups: dict[str, list[str]] = {}
    for name, members in content.items():
        at = ("groups", name)
        _check_name(document, name, at)
        if name in hosts:
            raise document.error(at, "is also the name of a host")
        if not isinstance(members, list) or not all(isinstance(member, str) for member in members):
            raise document.error(at, "must be a list of names of hosts")
        for member in members:
            if member not in hosts:
                raise document.error(at, f"there is no host {member!r}{did_you_mean(member, hosts)}")
        groups[name] = list(dict.fromkeys(members))
    return groups


def _path(document: Document, text: str) -> Path:
    try:
        return (document.path.parent / Path(text).expanduser()).absolute()
    except RuntimeError as exc:  # ~ of an unknown user
        raise ProfileError(str(exc), where=document.path) from exc

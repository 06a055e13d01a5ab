"""TARGETs of the command line: folders, ssh addresses, and names from fleet.yaml."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from edge.deploy import Fleet, Host, load_fleet
from edge.deploy.transport import DeviceAddress, address
from edge.errors import UsageError

Targets = Annotated[
    list[str],
    typer.Argument(
        metavar="TARGET…", help="Folder, user@host[:path], or a host or group of fleet.yaml.", show_default=False
    ),
]
FleetFile = Annotated[
    Path | None,
    typer.Option("--fleet", metavar="FILE", help="Fleet file.", show_default="fleet.yaml, where it is there"),
]
SshConfig = Annotated[
    Path | None,
    typer.Option("--ssh-config", "-F", metavar="FILE", help="ssh configuration file.", show_default="ssh's own"),
]
Parallel = Annotated[
    int | None,
    typer.Option("--parallel", min=1, metavar="N", help="Devices at once.", show_default="the fleet's, or 8"),
]


class ChosenTargets(msgspec.Struct, frozen=True, kw_only=True):
    """The devices that were named, each once, and the fleet file, if there is one."""

    hosts: list[Host]
    fleet: Fleet | None

    @property
    def names(self) -> list[str]:
        """Their names, as they are shown."""
        return [host.place.name for host in self.hosts]


def choose(words: Sequence[str], *, fleet_file: Path | None, ssh_config: Path | None) -> ChosenTargets:
    """The devices that ``words`` name.

    Raises:
        UsageError: a word names nothing.
        ProfileError: the fleet file is wrong.
    """
    found = fleet_file if fleet_file is not None else Path("fleet.yaml")
    known = load_fleet(found) if fleet_file is not None or found.is_file() else None
    hosts: dict[str, Host] = {}
    for word in words:
        place = address.parse(word)
        if place is not None:
            mine = [Host(place=place)]
        elif known is not None:
            mine = known.find(word)
        elif word == "all":
            raise UsageError(f"'all' needs a fleet.yaml; none found in {Path.cwd()}", hint="--fleet FILE")
        else:
            mine = [Host(place=address.remote_address(word, name=word))]
        for host in mine:
            hosts.setdefault(host.place.name, _with_config(host, ssh_config))
    if not hosts:
        raise UsageError("no target", hint="edge ship --help")
    return ChosenTargets(hosts=list(hosts.values()), fleet=known)


def _with_config(host: Host, ssh_config: Path | None) -> Host:
    if ssh_config is None or host.place.is_folder:
        return host
    place: DeviceAddress = msgspec.structs.replace(host.place, ssh_config=ssh_config)
    return msgspec.structs.replace(host, place=place)

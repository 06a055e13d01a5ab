"""Ship a bundle to devices; show their state; roll back.

Only missing files are sent. A device verifies everything before it switches `current` in one step, then tries the
bundle and rolls back by itself if the trial fails. `edge ship TARGET…` is short for `edge ship to TARGET…`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from edge.cli import fleet_jobs, options
from edge.errors import ProfileError, UsageError
from edge.ui.terminal import Terminal

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge.cli.fleet_jobs import ChosenTargets, Hold
    from edge.deploy import DeviceOutcome, ManageStep, Status
    from edge.deploy.transport import DeviceAddress

_COMMANDS = ("to", "status", "rollback", "gc")


class _ShipShortForm(TyperGroup):
    """`edge ship orin-1` means `edge ship to orin-1`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - click's context
        """Insert the omitted command."""
        if args and args[0] not in {*_COMMANDS, "-h", "--help"}:
            args = ["to", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(no_args_is_help=True, cls=_ShipShortForm)

Everything = Annotated[bool, typer.Option("--verify", help="Also verify the digests of the bundle in use.")]


@app.command()
def to(  # noqa: PLR0913 - every option is one parameter: Typer reads the signature
    *,
    target: fleet_jobs.Targets,
    bundle: Annotated[
        Path | None, typer.Option("--bundle", "-b", metavar="FILE", help="Bundle to ship.", show_default="the fleet's")
    ] = None,
    profile: Annotated[
        str | None, typer.Option("--profile", "-p", help="Create the bundle of this profile and ship it.")
    ] = None,
    cache_dir: options.CacheDir = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be sent; write nothing.")] = False,
    no_canary: Annotated[bool, typer.Option("--no-canary", help="Switch without a trial on the device.")] = False,
    gate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="Limit of the trial: labels=N, distance=X, latency=FACTOR, energy=FACTOR."
        ),
    ] = None,
    bootstrap: Annotated[
        bool, typer.Option("--bootstrap", help="Install edge on the device from the bundle's wheels.")
    ] = False,
    parallel: fleet_jobs.Parallel = None,
    stop_after: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Ship to no further device after N failures.", show_default="the fleet's"
        ),
    ] = None,
    no_rsync: Annotated[bool, typer.Option("--no-rsync", help="Send complete files, without rsync.")] = False,
    lock_wait: Annotated[
        int, typer.Option(min=0, metavar="SECONDS", help="Maximum wait for another shipment to a device.")
    ] = 30,
    fleet: fleet_jobs.FleetFile = None,
    ssh_config: fleet_jobs.SshConfig = None,
    as_json: options.Json = False,
) -> None:
    """Ship a bundle to devices."""
    from edge.cli import fleet_jobs
    from edge.deploy import ShipSettings, parse_gates

    if bundle is not None and profile is not None:
        raise UsageError("give either --bundle or --profile", hint="edge bundle --profile NAME -o FILE writes a bundle")
    chosen = fleet_jobs.choose(target, fleet_file=fleet, ssh_config=ssh_config)
    gates = parse_gates(gate or [])
    if chosen.fleet is not None:
        try:
            gates = parse_gates([f"{name}={value}" for name, value in chosen.fleet.rollout.gates.items()]) | gates
        except UsageError as exc:
            raise ProfileError(f"rollout.gates: {exc.what}", where=chosen.fleet.path, hint=exc.hint) from exc
    settings = ShipSettings(
        dry_run=dry_run, canary=not no_canary, bootstrap=bootstrap, rsync=not no_rsync, lock_wait_s=lock_wait,
        gates=gates,
    )  # fmt: skip
    fleet_jobs.ship_all(
        chosen, settings, fleet_jobs.Load(bundle=bundle, profile=profile, cache_dir=cache_dir),
        parallel=parallel, stop_after=stop_after, as_json=as_json,
    )  # fmt: skip


@app.command()
def status(
    target: fleet_jobs.Targets,
    *,
    verify: Everything = False,
    parallel: fleet_jobs.Parallel = None,
    fleet: fleet_jobs.FleetFile = None,
    ssh_config: fleet_jobs.SshConfig = None,
    as_json: options.Json = False,
) -> None:
    """Show the bundles on devices."""
    from edge.cli import fleet_jobs
    from edge.deploy import rollback

    chosen = fleet_jobs.choose(target, fleet_file=fleet, ssh_config=ssh_config)
    ended = fleet_jobs.each(
        chosen,
        lambda place, hold: rollback.status(place, verify=verify, hold=hold),
        parallel=parallel,
        as_json=as_json,
    )
    if not as_json:
        _show_status(ended)
    fleet_jobs.finish(ended)


@app.command()
def rollback(
    target: fleet_jobs.Targets,
    *,
    parallel: fleet_jobs.Parallel = None,
    fleet: fleet_jobs.FleetFile = None,
    ssh_config: fleet_jobs.SshConfig = None,
    as_json: options.Json = False,
) -> None:
    """Roll back to the previous bundle after verifying it."""
    from edge.deploy import rollback

    chosen = fleet_jobs.choose(target, fleet_file=fleet, ssh_config=ssh_config)
    _steps(
        chosen,
        lambda place, hold: rollback.rollback(place, hold=hold),
        parallel=parallel,
        as_json=as_json,
        info=lambda step: f"back to {_short(step.current)}",
    )


@app.command()
def gc(
    target: fleet_jobs.Targets,
    *,
    keep: Annotated[int, typer.Option(min=0, metavar="N", help="Number of other bundles to keep, newest first.")] = 0,
    parallel: fleet_jobs.Parallel = None,
    fleet: fleet_jobs.FleetFile = None,
    ssh_config: fleet_jobs.SshConfig = None,
    as_json: options.Json = False,
) -> None:
    """Remove old bundles and left-over files from devices."""
    from edge.deploy import rollback

    chosen = fleet_jobs.choose(target, fleet_file=fleet, ssh_config=ssh_config)
    _steps(
        chosen, lambda place, hold: rollback.clear(place, keep=keep, hold=hold), parallel=parallel, as_json=as_json,
        info=lambda step: f"{len(step.removed)} bundles removed, {step.freed_bytes / 1e6:.1f} MB freed",
    )  # fmt: skip


def _steps(
    chosen: ChosenTargets,
    work: Callable[[DeviceAddress, Hold], ManageStep],
    *,
    parallel: int | None,
    as_json: bool,
    info: Callable[[ManageStep], str],
) -> None:
    from edge.cli import fleet_jobs

    ended = fleet_jobs.each(chosen, work, parallel=parallel, as_json=as_json)
    if not as_json:
        terminal = Terminal()
        for one in ended:
            if one.result is not None:
                terminal.data(f"{one.name}: {info(one.result)}")
    fleet_jobs.finish(ended)


def _show_status(ended: list[DeviceOutcome[Status]]) -> None:
    terminal = Terminal()
    if len(ended) == 1 and ended[0].result is not None:
        _show_one(terminal, ended[0].result)
        return
    rows = []
    for one in ended:
        found = one.result
        if found is None:
            rows.append((one.name, "-", "-", "-", "-", one.error.what if one.error else one.reason or ""))
            continue
        now = next((kept for kept in found.bundles if kept.digest == found.current), None)
        rows.append(
            (
                one.name, (now.name if now else None) or "-", _short(found.current), now.trial if now else "-",
                found.edge_version or "no edge", _state(found),
            )
        )  # fmt: skip
    terminal.table(("device", "bundle", "digest", "trial", "edge", "state"), rows)


def _show_one(terminal: Terminal, found: Status) -> None:
    machine = found.machine
    terminal.data(f"device    {machine.product or machine.model or machine.machine or 'unknown'}")
    if machine.is_jetson:
        terminal.data(f"JetPack   {machine.jetpack or 'unknown'} (L4T {machine.l4t or 'unknown'})")
    terminal.data(f"edge      {found.edge_version or 'not installed'}")
    room = "" if found.free_bytes is None else f", {found.free_bytes / 1e9:.1f} GB free"
    terminal.data(f"folder    {found.root}{room}")
    terminal.data(f"state     {_state(found)}")
    if found.bundles:
        rows = [
            (
                "current" if kept.digest == found.current else "previous" if kept.digest == found.previous else "",
                kept.name or "unreadable", _short(kept.digest), kept.arrived_utc, kept.trial,
            )
            for kept in found.bundles
        ]  # fmt: skip
        terminal.table(("", "bundle", "digest", "arrived", "trial"), rows)
    for entry in found.history[-5:]:
        terminal.data(f"{entry.at}  {entry.action:12}  {_short(entry.bundle)}  {entry.by}")
    for warning in found.warnings:
        terminal.warn(warning)


def _state(found: Status) -> str:
    if found.current is None:
        return "nothing shipped yet"
    if found.current not in {kept.digest for kept in found.bundles} or found.is_whole is False:
        return "damaged: ship again"
    return {None: "in use", True: "in use, verified"}[found.is_whole]


def _short(digest: str | None) -> str:
    return digest[:12] if digest else "-"

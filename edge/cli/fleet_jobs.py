"""Run one job on many devices, show its progress, and report the outcome."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import typer

from edge.artifacts import remove_leftovers, temporary_folder
from edge.cli import paths, signals
from edge.deploy import (
    REFUSED,
    BundleTree,
    CancellableSession,
    DeviceOutcome,
    DeviceTask,
    Fleet,
    Host,
    RolloutPlan,
    ShipOutcome,
    ShipSettings,
    load_fleet,
    rollout,
    ship,
)
from edge.deploy.bundle import Bundle, check_models, open_bundle
from edge.deploy.transport import DeviceAddress, address
from edge.errors import DeviceError, EdgeError, QualityError, UsageError
from edge.events import Event
from edge.ui.terminal import FleetView, Terminal

T = TypeVar("T")
# Is given the conversation with a device, which the user may end.
Hold = Callable[[CancellableSession], None]
_PARALLEL = 8


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """The bundle to ship according to the command line; otherwise the fleet file decides."""

    bundle: Path | None
    profile: str | None
    cache_dir: Path | None


def ship_all(
    chosen: ChosenTargets,
    settings: ShipSettings,
    load: Load,
    *,
    parallel: int | None,
    stop_after: int | None,
    as_json: bool,
) -> None:
    """Ship to every given device, print a table or JSON, and raise an error if a device did not get the bundle."""
    terminal = Terminal()
    with contextlib.ExitStack() as stack:
        bundles = stack.enter_context(_bundles(chosen, load, terminal))
        trees: dict[int, BundleTree] = {}

        def task(host: Host) -> DeviceTask[ShipOutcome]:
            bundle = bundles[host.place.name]
            if id(bundle) not in trees:
                trees[id(bundle)] = stack.enter_context(BundleTree(bundle))
            tree = trees[id(bundle)]
            return DeviceTask(
                host.place.name,
                lambda listen, hold: ship(bundle, host.place, settings=settings, listen=listen, hold=hold, tree=tree),
            )

        rules = chosen.fleet.rollout if chosen.fleet else None
        plan = RolloutPlan(
            parallel=parallel or (rules.parallel if rules else _PARALLEL),
            first=chosen.fleet.canary & frozenset(chosen.names) if chosen.fleet else frozenset(),
            stop_after=stop_after or (rules.stop_after if rules else None),
        )
        stop = stack.enter_context(signals.graceful())
        ended = _run(terminal, [task(host) for host in chosen.hosts], plan, stop, line=_line)
    outcomes = [_outcome(one, bundles[one.name]) for one in ended]
    if as_json:
        terminal.data(msgspec.json.encode(_summary(outcomes)).decode())
    else:
        _show(terminal, outcomes)
    stop.grant()
    finish(ended, hint="run the command again to continue; finished devices stay unchanged")


def each(
    chosen: ChosenTargets, work: Callable[[DeviceAddress, Hold], T], *, parallel: int | None, as_json: bool
) -> list[DeviceOutcome[T]]:
    """Run ``work`` for every device; with ``as_json`` print the results."""
    terminal = Terminal()

    def task(place: DeviceAddress) -> DeviceTask[T]:
        return DeviceTask(place.name, lambda _listen, hold: work(place, hold))

    tasks = [task(host.place) for host in chosen.hosts]
    wanted = parallel or (chosen.fleet.rollout.parallel if chosen.fleet else _PARALLEL)
    with signals.graceful() as stop:
        ended = _run(terminal, tasks, RolloutPlan(parallel=wanted), stop, line=lambda one: _failure(one) or "ok")
    if as_json:
        terminal.data(
            msgspec.json.encode(
                [
                    one.result if one.result is not None else {"target": one.name, "error": _failure(one)}
                    for one in ended
                ],
                enc_hook=str,
            ).decode()
        )
    stop.grant()
    return ended


def finish(ended: list[DeviceOutcome[Any]], *, hint: str | None = None) -> None:
    """Raise the error of the devices, if any; several errors become one, with ``hint``.

    Raises:
        EdgeError: the error of a single target; otherwise DeviceError with the number of failures, or QualityError if
        every
            device without the bundle rolled back by itself.
    """
    if len(ended) == 1 and ended[0].error is not None:
        raise ended[0].error
    failed = [one for one in ended if one.result is None]
    refused = [one.result for one in ended if isinstance(one.result, ShipOutcome) and one.result.work in REFUSED]
    broken = sum(one.error is not None for one in failed)
    left = f", {len(failed) - broken} not begun" if len(failed) > broken else ""
    if broken or (failed and not refused):
        words = f", {len(refused)} did not accept the bundle" if refused else ""
        raise DeviceError(f"{broken} of {len(ended)} devices failed{words}{left}", hint=hint)
    if refused:
        raise QualityError(
            f"{len(refused)} of {len(ended)} devices did not accept the bundle{left}"
            if len(ended) > 1 else f"{_refusal(refused[0])}{left}",
            hint="edge ship status TARGET; --gate sets the limits, --no-canary switches without a trial",
        )  # fmt: skip


def _refusal(outcome: ShipOutcome) -> str:
    """Return the reason why a bundle is not in use, and the bundle that the device reports instead."""
    now = f"{outcome.current[:12]} is in use" if outcome.current else "no bundle is in use"
    if outcome.work == "not tried":
        return f"not tried: {outcome.reason}; {now}, as before"
    if outcome.work == "rolled back":
        return f"the trial failed: {outcome.reason}; the device rolled back, {now}"
    return f"the trial failed: {outcome.reason}; {now}, as before"


def _run(
    terminal: Terminal,
    tasks: list[DeviceTask[T]],
    plan: RolloutPlan,
    stop: Callable[[], bool],
    *,
    line: Callable[[DeviceOutcome[T]], str],
) -> list[DeviceOutcome[T]]:
    possible = rollout.possible_conversations()
    if possible < min(plan.parallel, len(tasks)):
        terminal.warn(
            f"{possible} devices at once instead of {plan.parallel}: the limit of open files is too low (ulimit -n)"
        )
    view = FleetView(terminal, total=len(tasks))
    listeners = {task.name: view.listener(task.name) for task in tasks}

    def watch(name: str, what: Event | rollout.Phase, ended: DeviceOutcome[T] | None) -> None:
        if ended is not None:
            view.ended(name, work=_word(ended), line=line(ended))
        elif what == "begun":
            view.begun(name)
        elif not isinstance(what, str):
            listeners[name](what)

    def is_bad(result: T) -> bool:
        return isinstance(result, ShipOutcome) and result.work in REFUSED

    with view.showing():
        return rollout.roll_out(tasks, plan, is_bad=is_bad, watch=watch, should_stop=stop)


@contextlib.contextmanager
def _bundles(chosen: ChosenTargets, load: Load, terminal: Terminal) -> Iterator[dict[str, Bundle]]:
    """Return the bundle of every device by name. Bundles of profiles are made here: same inputs, same bytes."""
    known: dict[object, Bundle] = {}
    found: dict[str, Bundle] = {}
    remove_leftovers()
    with temporary_folder("ship") as folder:
        for host in chosen.hosts:
            path, profile = (load.bundle, load.profile) if load.bundle or load.profile else (host.bundle, host.profile)
            if path is None and profile is None:
                raise UsageError(
                    "no bundle to ship", where=host.place.name,
                    hint="give --bundle FILE or --profile NAME, or set bundle: in fleet.yaml",
                )  # fmt: skip
            source: object = path or profile
            if source not in known:
                known[source] = open_bundle(path) if path else _made(str(profile), Path(folder), load, terminal)
                check_models(known[source])
            found[host.place.name] = known[source]
        yield found


def _made(name: str, folder: Path, load: Load, terminal: Terminal) -> Bundle:
    from edge.deploy.bundle import creation
    from edge.media import open_pictures

    chosen, path = paths.load_profile(name)
    terminal.info(f"profile {chosen.name} ({path})", style="dim")
    samples = paths.resources() / "samples"
    out = Path(tempfile.mkdtemp(dir=folder)) / f"{chosen.name}.edge"
    with terminal.progress() as listen:
        return creation.create(
            chosen, cache=paths.cache_folder(load.cache_dir, path), out=out,
            golden=list(open_pictures(samples)) if samples.is_dir() else [], listen=listen,
        )  # fmt: skip


def _outcome(one: DeviceOutcome[ShipOutcome], bundle: Bundle) -> ShipOutcome:
    if one.result is not None:
        return one.result
    error: EdgeError | None = one.error
    if error is None:
        return ShipOutcome(target=one.name, work="stopped", bundle=bundle.digest, reason=one.reason)
    return ShipOutcome(
        target=one.name, work="failed", bundle=bundle.digest, reason=error.what, hint=error.hint,
        exit_code=error.exit_code,
    )  # fmt: skip


def _summary(outcomes: list[ShipOutcome]) -> dict[str, Any]:
    counts: dict[str, int] = {}
    for outcome in outcomes:
        counts[outcome.work] = counts.get(outcome.work, 0) + 1
    return {"counts": counts, "targets": outcomes}


def _show(terminal: Terminal, outcomes: list[ShipOutcome]) -> None:
    if len(outcomes) == 1:
        if outcomes[0].work not in {"failed", "stopped"}:
            terminal.data(f"{outcomes[0].target}: {_reported(outcomes[0])}")
        return
    rows = [
        (
            outcome.target, outcome.work, outcome.bundle[:12], f"{outcome.sent_bytes / 1e6:.2f}",
            f"{outcome.seconds:.1f}", outcome.reason or "",
        )
        for outcome in outcomes
    ]  # fmt: skip
    terminal.table(("device", "result", "bundle", "MB sent", "s", "reason"), rows, right=(3, 4))


def _line(ended: DeviceOutcome[ShipOutcome]) -> str:
    return _failure(ended) or (_reported(ended.result) if ended.result is not None else "")


def _failure(ended: DeviceOutcome[Any]) -> str | None:
    if ended.error is not None:
        return f"failed: {ended.error.what}"
    return ended.reason


def _word(ended: DeviceOutcome[Any]) -> str:
    if isinstance(ended.result, ShipOutcome):
        return ended.result.work
    return "ok" if ended.result is not None else "failed" if ended.error is not None else "stopped"


def _reported(outcome: ShipOutcome) -> str:
    name = outcome.bundle[:12]
    sent = f"{outcome.sent_files} files, {outcome.sent_bytes / 1e6:.2f} MB"
    if outcome.work == "unchanged":
        return f"unchanged, {name} is already there and complete"
    if outcome.work == "would ship":
        resumed = (
            f" ({outcome.resumed_bytes / 1e6:.2f} MB were there from an earlier attempt)"
            if outcome.resumed_bytes
            else ""
        )
        return f"would ship {name}: {sent}{resumed}"
    if outcome.work in REFUSED:
        return _refusal(outcome)
    trial = ", trial passed" if outcome.verdict == "passed" else f", {outcome.verdict}"
    return f"{name} is in use, {sent} sent in {outcome.seconds:.1f} s{trial}"


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
    """The given devices, each once, and the fleet file, if there is one."""

    hosts: list[Host]
    fleet: Fleet | None

    @property
    def names(self) -> list[str]:
        """Display names of the devices."""
        return [host.place.name for host in self.hosts]


def choose(words: Sequence[str], *, fleet_file: Path | None, ssh_config: Path | None) -> ChosenTargets:
    """Return the devices that ``words`` name.

    Raises:
        UsageError: a word names no device.
        ProfileError: the fleet file is invalid.
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

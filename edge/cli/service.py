"""Keep edge run going as a systemd service.

Arguments after -- are passed to edge run. systemd starts it at boot, restarts it when it fails, and ends it if no image
is processed within the watchdog's time; a missing or lost camera is waited for.
"""

from __future__ import annotations

import getpass
import grp
import os
import pwd
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from edge.artifacts import hides, is_readable_by_others, masked_url, read_secret
from edge.cli import run_options
from edge.cli.options import Json, ProfileName
from edge.errors import QualityError, UsageError
from edge.ui.terminal import Terminal

if TYPE_CHECKING:
    from edge.config import Profile
    from edge.deploy import ServiceSettings, Systemctl

app = typer.Typer(no_args_is_help=True)

_Words = Annotated[list[str] | None, typer.Argument(metavar="-- [RUN OPTIONS]", help="Options of edge run.")]
_Name = Annotated[str | None, typer.Option("--name", help="Name of the service.", show_default="the profile's")]
_User = Annotated[bool, typer.Option("--user", help="Install for this user instead of the system.")]
_As = Annotated[
    str | None,
    typer.Option("--as", metavar="USER", help="User of the system service.", show_default="who calls sudo"),
]
_Watchdog = Annotated[
    int, typer.Option("--watchdog", min=5, metavar="SECONDS", help="Restart after this long without a frame.")
]
_Restarts = Annotated[int, typer.Option(min=1, metavar="N", help="Give up after N restarts in 10 minutes.")]
_UnitDir = Annotated[
    Path | None,
    typer.Option("--unit-dir", metavar="DIR", help="Only write the unit file to DIR; do not call systemctl."),
]


@app.command("print")
def show(
    *,
    words: _Words = None,
    profile: ProfileName = None,
    name: _Name = None,
    user: _User = False,
    run_as: _As = None,
    watchdog: _Watchdog = 30,
    restarts: _Restarts = 10,
) -> None:
    """Print the unit file without writing it."""
    from edge.deploy import service

    settings = _settings(
        words, profile=profile, name=name, user=user, run_as=run_as, watchdog=watchdog, restarts=restarts
    )
    Terminal().data(service.unit(settings).rstrip("\n"))


@app.command("install")
def install(
    *,
    words: _Words = None,
    profile: ProfileName = None,
    name: _Name = None,
    user: _User = False,
    run_as: _As = None,
    watchdog: _Watchdog = 30,
    restarts: _Restarts = 10,
    start: Annotated[bool, typer.Option(help="Start it now and at every boot.")] = True,
    unit_dir: _UnitDir = None,
) -> None:
    """Write the unit file; start the service now and at every boot."""
    from edge.deploy import service

    terminal = Terminal()
    settings = _settings(
        words, profile=profile, name=name, user=user, run_as=run_as, watchdog=watchdog, restarts=restarts,
        unit_dir=unit_dir,
    )  # fmt: skip
    token = settings.environment.get(run_options.TOKEN_VARIABLE)
    if token is not None and service.make_token(Path(token), user=settings.user):
        terminal.info(f"token of the web page: in {token}")
    path = service.install(
        settings, folder=_folder(unit_dir, user=user), systemctl=_systemctl(unit_dir, user=user), start=start
    )
    terminal.info(f"unit: {path}")
    if unit_dir is None:
        terminal.info(f"log: journalctl {'--user ' if user else ''}-u {path.name} -f")
        if user:
            terminal.info(
                f"the service ends when {getpass.getuser()} logs out; to keep it running: loginctl enable-linger"
            )
    else:
        terminal.info("systemd was not called: run systemctl daemon-reload, then enable --now")


@app.command("uninstall")
def uninstall(
    *, profile: ProfileName = None, name: _Name = None, user: _User = False, unit_dir: _UnitDir = None
) -> None:
    """Stop the service and remove its unit; records are not removed."""
    from edge.deploy import service

    path = service.uninstall(
        _name(name, profile, user=user), folder=_folder(unit_dir, user=user), systemctl=_systemctl(unit_dir, user=user)
    )
    Terminal().info(f"removed {path}")


@app.command("status")
def status(*, profile: ProfileName = None, name: _Name = None, user: _User = False, as_json: Json = False) -> None:
    """Show whether the service runs, and its status line; exit code 1 if it does not run."""
    from edge.deploy import service

    terminal = Terminal()
    systemctl = service.run_systemctl("user" if user else "system")
    found = service.state(_name(name, profile, user=user), folder=_folder(None, user=user), systemctl=systemctl)
    if as_json:
        terminal.data(msgspec.json.encode(found).decode())
    else:
        ended = "" if found.exit_code is None else f", last exit code {found.exit_code}"
        rows = [
            ("unit", f"{found.path} ({found.enabled or 'not enabled'})"),
            ("state", f"{found.active} ({found.sub})" + (f" since {found.since}" if found.since else "")),
            ("process", "–" if found.pid is None else str(found.pid)),
            ("says", found.status or "–"),
            ("restarts", "–" if found.restarts is None else f"{found.restarts}{ended}"),
        ]
        for title, value in rows:
            terminal.show(f"{title:<9} {value}")
    if found.active not in {"active", "activating", "reloading"}:
        raise QualityError(
            f"{found.unit} is {found.active}" + (f" ({found.result})" if found.result not in {"", "success"} else ""),
            hint=f"journalctl {'--user ' if user else ''}-u {found.unit} -n 50",
        )


def _settings(
    words: list[str] | None,
    *,
    profile: str | None,
    name: str | None,
    user: bool,
    run_as: str | None,
    watchdog: int,
    restarts: int,
    unit_dir: Path | None = None,
) -> ServiceSettings:
    from edge.cli import paths
    from edge.deploy import service
    from edge.deploy.bundle import deployed

    given = list(words or [])
    options = _check(given)
    credentials = _credentials(given, options, scope="user" if user else "system")
    if options["camera"] and not options["wait_for_camera"]:
        # After a boot without the camera, the restarts would be used up before it is plugged in.
        given += ["--wait-for-camera"]
    owner = None if user else run_as or os.environ.get("SUDO_USER")
    chosen, path = paths.load_profile(profile, user=owner)
    paths.require_model(chosen)
    named = name or chosen.name
    service.unit_name(named)
    if paths.is_current(path, user=owner):
        # Use its name: on a restart, the service then uses a newly shipped bundle.
        called, folder = deployed.CURRENT, paths.device_home(owner)
        # An engine that does not fit any more is built before the run.
        built = [folder / name for name in ("cache", "engines", "timing")]
    else:
        called, folder, built = str(path.absolute()), paths.home().absolute(), []
    files = [str(file) for file in (options["record"], chosen.telemetry.log) if file is not None]
    writable, state_folder = list(dict.fromkeys([*built, *((folder / str(file)).parent for file in files)])), None
    if options["record"] is None and user:
        base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
        writable.append(base / "edge" / named)
        given += ["--record", str(writable[-1] / "run.jsonl")]
    elif options["record"] is None:
        state_folder = f"edge/{named}"
        given += ["--record", f"/var/lib/{state_folder}/run.jsonl"]
    if user and run_as is not None:
        raise UsageError("--as only applies to system services, not to --user")
    command = (sys.executable, "-m", "edge", "run", "--profile", called, *given)
    return service.ServiceSettings(
        name=named,
        profile=chosen.name,
        command=command,
        folder=folder,
        scope="user" if user else "system",
        user=owner or (None if user else _own_name()),
        groups=("video", *(name for name in ("render",) if _has_group(name))),
        state_folder=state_folder,
        writable=tuple(writable),
        environment=_environment() | _token(chosen, options, named=named, user=user, unit_dir=unit_dir),
        credentials=credentials,
        watchdog_s=watchdog,
        restarts=restarts,
    )


def _own_name() -> str | None:
    """Return the user who runs this, for a unit installed by another user; None for root."""
    number = os.geteuid()
    if number == 0:
        return None
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _has_group(name: str) -> bool:
    """Return True if the group exists: systemd does not start a service with a missing group."""
    try:
        grp.getgrnam(name)
    except KeyError:
        return False
    return True


# Variables for edge's package and caches, which a service starts without. All others may contain secrets.
_VARIABLES = ("EDGE_CACHE_DIR", "EDGE_ENGINE_DIR", "PYTHONPATH")


def _environment() -> dict[str, str]:
    return {name: os.environ[name] for name in _VARIABLES if name in os.environ}


def _credentials(given: list[str], options: dict[str, Any], *, scope: str) -> dict[str, Path]:
    """Check the ``@FILE`` arguments of edge run, and let systemd read those of a system service.

    Args:
        given: the arguments, in which such a file is replaced.
        options: the parsed arguments.
        scope: a user's own manager reads the file itself, as the service would.

    Returns:
        The files by the name of their credential.

    Raises:
        UsageError: other users may read the file.
        ArtifactError: the file cannot be read.
    """
    from edge.deploy import service

    found: dict[str, Path] = {}
    for option, letter in (("camera", "-c"), ("notify", "")):
        for text in options[option] or ():
            name, at, file = text.partition("@")
            if not at or (name and not name.endswith("=")) or "://" in name:
                continue
            path = Path(file).expanduser().absolute()
            read_secret(path, what=f"URL for --{option}")
            if is_readable_by_others(path):
                raise UsageError("other users of this machine may read this file", where=path, hint=f"chmod 600 {path}")
            called = f"{option}-{len(found) + 1}"
            found[called] = path
            goal = str(path) if scope == "user" else service.credential_path(called)
            for prefix in ("", f"--{option}=", *([letter] if letter else [])):
                if f"{prefix}{text}" in given:
                    given[given.index(f"{prefix}{text}")] = f"{prefix}{name}@{goal}"
                    break
    return found if scope == "system" else {}


def _token(
    profile: Profile, options: dict[str, Any], *, named: str, user: bool, unit_dir: Path | None
) -> dict[str, str]:
    """Return the variable with the token of ``--web`` and ``--metrics`` if they need one and the profile has none.

    A token that a run generates itself would be in the journal.
    """
    from edge.ui.web import parse_address

    asked = [(f"--{option}", options[option]) for option in ("web", "metrics") if options[option] is not None]
    if profile.web.token_file is not None or all(parse_address(text, option=name).is_loopback for name, text in asked):
        return {}
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") if user else Path("/etc")
    folder = unit_dir.absolute() if unit_dir is not None else config / "edge"
    return {run_options.TOKEN_VARIABLE: str(folder / f"{named}.token")}


def _check(given: list[str]) -> dict[str, Any]:
    """Check the options like ``edge run``, so that an error is found now and not in the service's log."""
    from edge.cli.app import make_app

    command = typer.main.get_command(make_app(["run"]))
    run = command.get_command(typer.Context(command), "run")  # type: ignore[attr-defined]
    # Errors of the command line are raised as they are by `edge run`, and end the process in the same way.
    options: dict[str, Any] = run.make_context("edge run", list(given)).params
    if options["profile"] is not None:
        raise UsageError("the profile must be before --", hint="edge service install --profile NAME -- …")
    for option in ("camera", "notify"):
        for text in options[option] or ():
            if hides(text):
                raise UsageError(
                    f"{masked_url(text)}: a password in a unit file can be read by every user of this machine",
                    hint=f"write the URL into a file of mode 0600, and use --{option} @FILE",
                )
    if os.environ.get(run_options.CAMERA_VARIABLE) and not any(
        options[name] for name in ("camera", "images", "video", "replay")
    ):
        raise UsageError(
            f"a service gets no {run_options.CAMERA_VARIABLE}: every user of this machine can read a unit file",
            hint="write the URL into a file of mode 0600, and use --camera @FILE",
        )
    for name, option in (("save_video", "--save-video"), ("csv", "--csv")):
        if options[name] is not None:
            raise UsageError(
                f"{option} in a service: every start replaces the file",
                hint=f"use --record run.jsonl, or run edge run {option} FILE without a service",
            )
    if options["save_frames"] is not None:
        hint = "run edge run --save-frames DIR without a service"
        raise UsageError(
            "--save-frames is not possible in a service: it would fill the disk, and each start needs a new folder",
            hint=hint,
        )
    return options


def _name(name: str | None, profile: str | None, *, user: bool) -> str:
    from edge.cli import paths

    owner = None if user else os.environ.get("SUDO_USER")
    return name or paths.load_profile(profile, user=owner)[0].name


def _folder(unit_dir: Path | None, *, user: bool) -> Path:
    if unit_dir is not None:
        return unit_dir
    if not user:
        return Path("/etc/systemd/system")
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "systemd" / "user"


def _systemctl(unit_dir: Path | None, *, user: bool) -> Systemctl | None:
    from edge.deploy import service

    return None if unit_dir is not None else service.run_systemctl("user" if user else "system")

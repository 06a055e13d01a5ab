"""Install and manage a systemd unit that keeps ``edge run`` going for weeks.

The unit is of ``Type=notify`` with a watchdog (:mod:`edge.runtime.watchdog` answers it). Its words, and how
they are escaped,
are those of systemd.service(5), systemd.exec(5) and systemd.syntax(7); nothing newer than systemd 249 (JetPack 6) is
used. Verified with ``systemd-analyze verify`` 252; it has not run on a Jetson yet.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from edge.artifacts import store
from edge.errors import ArtifactError, DeviceError, EdgeError, MissingDependencyError, UsageError, os_error

Scope = Literal["system", "user"]

_MARK = "# Written by edge service; `edge service uninstall` removes it, `edge service install` writes it again."
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_PLAIN = re.compile(r"[A-Za-z0-9_@%+=:,./-]+")
# Exit codes after which a restart is useless: command line, profile, dependency, model, artifact. Cameras and disks may
# back.
_FINAL_CODES = (2, 3, 4, 5, 7)
# Ended by request (SIGHUP, SIGINT or SIGTERM), with the record written.
_ASKED_CODES = (129, 130, 143)
# The first engine load after a boot takes minutes on a Jetson.
_START_S = 300
# `systemctl restart` waits until the service is ready, or has failed to be.
_TIMEOUT_S = _START_S + 60
_SHOWN = (
    "LoadState", "ActiveState", "SubState", "Result", "StatusText", "MainPID", "NRestarts", "ExecMainCode",
    "ExecMainStatus", "ActiveEnterTimestamp", "UnitFileState",
)  # fmt: skip


class ServiceSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of a service: ``command`` runs in ``folder`` and may write below ``writable`` only.

    ``credentials`` are files with a secret by name, which systemd reads as root and passes to this service only; an
    argument of the command refers to one by :func:`credential_path`.
    ``state_folder`` is made by systemd for its user, in /var/lib (scope system), as ``edge/NAME``.
    ``watchdog_s`` is the longest silence of the pipeline; ``restarts`` in ``restart_window_s`` are too many. ``user``
    None means the one who installs it (scope user) or root (scope system). ``groups`` own cameras and GPU device files.
    """

    name: str
    profile: str
    command: tuple[str, ...]
    folder: Path
    scope: Scope = "system"
    user: str | None = None
    groups: tuple[str, ...] = ("video",)
    state_folder: str | None = None
    writable: tuple[Path, ...] = ()
    environment: dict[str, str] = {}
    credentials: dict[str, Path] = {}
    watchdog_s: int = 30
    start_s: int = _START_S
    restarts: int = 10
    restart_window_s: int = 600


class ServiceState(msgspec.Struct, frozen=True, kw_only=True):
    """State of the service in systemd; ``status`` is the status line of the run."""

    unit: str
    path: str
    active: str
    sub: str
    result: str
    status: str
    enabled: str
    pid: int | None
    restarts: int | None
    exit_code: int | None
    since: str


Systemctl = Callable[[Sequence[str]], str]

# systemd replaces this variable in the command of a unit [systemd.exec(5), LoadCredential=].
_CREDENTIALS = "${CREDENTIALS_DIRECTORY}/"


def credential_path(name: str) -> str:
    """Return the path of a credential in the command line of the service."""
    return _CREDENTIALS + name


def unit_name(name: str) -> str:
    """File name of the unit of service ``name``.

    Raises:
        UsageError: it has a character that is not allowed in a unit's name.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be the name of a service",
            hint="use letters, digits, dot, dash and underscore, at most 64: --name front-door",
        )
    return f"edge-{name}.service"


def unit(settings: ServiceSettings) -> str:
    """Return the text of the unit file.

    Raises:
        UsageError: a path or an argument cannot be written in a unit file.
    """
    program, *arguments = settings.command
    if "$" in program:
        raise UsageError("systemd replaces $ in a program's path", where=program, hint="install edge somewhere else")
    unit_name(settings.name)
    environment = {"PYTHONUNBUFFERED": "1", "NO_COLOR": "1", **settings.environment}
    lines = [
        _MARK,
        "[Unit]",
        f"Description=edge run, profile {_plain(settings.profile)}",
        "# A camera in the network, and the daemon of CSI cameras; both only where they exist.",
        "Wants=network-online.target",
        "After=network-online.target nvargus-daemon.service",
        f"StartLimitIntervalSec={settings.restart_window_s}",
        f"StartLimitBurst={settings.restarts}",
        "",
        "[Service]",
        "Type=notify",
        "NotifyAccess=main",
        f"ExecStart={' '.join([_quoted(program), *map(_argument, arguments)])}",
        *(f"LoadCredential={name}:{_path(path)}" for name, path in settings.credentials.items()),
        f"WorkingDirectory={_path(settings.folder)}",
        *(f"Environment={_quoted(f'{key}={value}')}" for key, value in environment.items()),
        *_who(settings),
        "# Without any image, skip or reopening of a camera for this time, the pipeline hangs.",
        f"WatchdogSec={settings.watchdog_s}",
        "# The first engine load after a boot takes minutes on a Jetson.",
        f"TimeoutStartSec={settings.start_s}",
        "TimeoutStopSec=30",
        "KillMode=mixed",
        "Restart=on-failure",
        "RestartSec=5",
        f"SuccessExitStatus={' '.join(map(str, _ASKED_CODES))}",
        "# Command line, profile, dependency, model, artifact: a restart is useless (README, exit codes).",
        f"RestartPreventExitStatus={' '.join(map(str, _FINAL_CODES))}",
        "StandardOutput=journal",
        "StandardError=journal",
        f"SyslogIdentifier=edge-{settings.name}",
        *_hardening(settings),
        "",
        "[Install]",
        f"WantedBy={'multi-user' if settings.scope == 'system' else 'default'}.target",
        "",
    ]
    return "\n".join(lines)


def _who(settings: ServiceSettings) -> list[str]:
    if settings.scope == "user":
        # A user's own manager can give no groups: `usermod -aG video` does that.
        return []
    user = [f"User={_plain(settings.user)}"] if settings.user else []
    return [*user, "# Cameras and the GPU's device files.", f"SupplementaryGroups={' '.join(settings.groups)}"]


def _hardening(settings: ServiceSettings) -> list[str]:
    lines = ["NoNewPrivileges=yes", "LockPersonality=yes", "RestrictSUIDSGID=yes", "UMask=0022"]
    if settings.scope == "user":
        return lines
    return [
        *lines,
        "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
        "RestrictNamespaces=yes",
        "ProtectKernelModules=yes",
        "ProtectKernelLogs=yes",
        "ProtectKernelTunables=yes",
        "ProtectControlGroups=yes",
        "ProtectHostname=yes",
        "# No PrivateTmp: CSI cameras are reached by /tmp/argus_socket. No MemoryDenyWriteExecute: CUDA compiles.",
        "ProtectSystem=strict",
        "ProtectHome=read-only",
        *([f"StateDirectory={_quoted(settings.state_folder)}"] if settings.state_folder else []),
        *(f"ReadWritePaths={_quoted(str(path))}" for path in settings.writable),
    ]


def install(settings: ServiceSettings, *, folder: Path, systemctl: Systemctl | None, start: bool) -> Path:
    """Write the unit to ``folder``; with ``systemctl`` also load, enable and start it.

    Raises:
        ArtifactError: a file of that name exists that edge did not write.
        StoreError: the folder cannot be written.
        DeviceError, MissingDependencyError: systemctl failed, or is missing; a new unit is
            removed again when systemd has not read it.
    """
    path = folder / unit_name(settings.name)
    text = unit(settings)
    is_new = not _ours(path)
    for writable in settings.writable:
        _make(writable, user=settings.user)
    store.write_bytes(path, text.encode())
    if systemctl is not None:
        try:
            systemctl(["daemon-reload"])
        except EdgeError:
            # Nothing has seen the unit, and nothing else would remove it.
            if is_new:
                path.unlink(missing_ok=True)
            raise
        if start:
            systemctl(["enable", path.name])
            systemctl(["restart", path.name])
    return path


def uninstall(name: str, *, folder: Path, systemctl: Systemctl | None) -> Path:
    """Stop the service, and remove its unit from ``folder``.

    Raises:
        ArtifactError: the unit does not exist, or edge did not write it.
        StoreError: it cannot be removed.
        DeviceError: systemctl failed.
    """
    path = folder / unit_name(name)
    if not _ours(path):
        raise ArtifactError("this service is not installed", where=path, hint="edge service install")
    if systemctl is not None:
        systemctl(["disable", "--now", path.name])
    try:
        path.unlink()
    except OSError as exc:
        raise os_error(exc, path) from exc
    if systemctl is not None:
        systemctl(["daemon-reload"])
    return path


def make_token(path: Path, *, user: str | None) -> bool:
    """Make a file of mode 0600 with a new token for the service's user; an existing file stays unchanged.

    Returns:
        True if it was made.

    Raises:
        StoreError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:  # noqa: PTH123 - a mode
            file.write(f"{secrets.token_urlsafe(24)}\n")
        if user is not None and os.geteuid() == 0:
            shutil.chown(path, user)
    except FileExistsError:
        return False
    except OSError as exc:
        raise os_error(exc, path) from exc
    return True


def state(name: str, *, folder: Path, systemctl: Systemctl) -> ServiceState:
    """Query systemd for the state of the service.

    Raises:
        ArtifactError: it is not installed.
        DeviceError: systemctl failed.
    """
    unit_file = unit_name(name)
    path = folder / unit_file
    if not path.exists():
        raise ArtifactError("this service is not installed", where=path, hint="edge service install")
    answer = systemctl(["show", unit_file, f"--property={','.join(_SHOWN)}"])
    values = dict(line.split("=", 1) for line in answer.splitlines() if "=" in line)
    return ServiceState(
        unit=unit_file,
        path=str(path),
        active=values.get("ActiveState", "unknown"),
        sub=values.get("SubState", ""),
        result=values.get("Result", ""),
        status=values.get("StatusText", ""),
        enabled=values.get("UnitFileState", ""),
        pid=_number(values, "MainPID") or None,
        restarts=_number(values, "NRestarts"),
        exit_code=_number(values, "ExecMainStatus"),
        since=values.get("ActiveEnterTimestamp", ""),
    )


def run_systemctl(scope: Scope) -> Systemctl:
    """Run ``systemctl`` for the system's manager or the user's own."""

    def call(arguments: Sequence[str]) -> str:
        line = ["systemctl", *(["--user"] if scope == "user" else []), "--no-pager", *arguments]
        try:
            done = subprocess.run(
                line, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False,
                timeout=_TIMEOUT_S,
            )  # fmt: skip
        except FileNotFoundError as exc:
            raise MissingDependencyError(
                "there is no systemctl on this machine",
                hint="edge service print shows the unit; --unit-dir DIR only writes it",
            ) from exc
        except subprocess.TimeoutExpired as exc:
            raise DeviceError(f"{' '.join(line)} did not end within {_TIMEOUT_S} s", hint="journalctl -xe") from exc
        if done.returncode != 0:
            words = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
            raise DeviceError(f"{' '.join(line)}: {words}", hint=_systemctl_hint(words, scope))
        return done.stdout

    return call


def _systemctl_hint(words: str, scope: Scope) -> str:
    if "not been booted with systemd" in words or "connect to bus" in words:
        return "systemd does not run here; edge service print shows the unit, --unit-dir DIR only writes it"
    if scope == "system" and ("authentication" in words.lower() or "denied" in words.lower()):
        return "run it with sudo, or install a user service with --user"
    return "systemctl status and journalctl -xe say more"


def _ours(path: Path) -> bool:
    """Return True if edge's unit exists at ``path``.

    Raises:
        ArtifactError: the file exists, but edge did not write it.
    """
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return False
    except OSError as exc:
        raise ArtifactError(f"cannot read the unit: {exc.strerror}", where=path) from exc
    if not text.startswith(_MARK.split(";", 1)[0]):
        raise ArtifactError("this unit was not written by edge", where=path, hint="choose another --name")
    return True


def _make(folder: Path, *, user: str | None) -> None:
    """Make a folder for the service's user: systemd refuses a unit with a missing folder in ReadWritePaths=."""
    try:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        if user is not None and os.geteuid() == 0:
            for path in missing:
                shutil.chown(path, user)
    except OSError as exc:
        raise os_error(exc, folder) from exc


def _number(values: Mapping[str, str], name: str) -> int | None:
    text = values.get(name, "")
    return int(text) if text.isdecimal() else None


def _argument(word: str) -> str:
    escaped = _CREDENTIALS.replace("$", "$$")
    return _quoted(word, variables=True).replace(escaped, _CREDENTIALS)


def _quoted(word: str, *, variables: bool = False) -> str:
    """Quote one word of a line that systemd splits. ``variables``: systemd also replaces ``$NAME`` there."""
    text = _plain(word).replace("%", "%%")
    if variables:
        text = text.replace("$", "$$")
    if _PLAIN.fullmatch(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _path(path: Path) -> str:
    """Escape a path that is alone on its line: without quotes, only ``%`` is special."""
    text = _plain(str(path)).replace("%", "%%")
    if not path.is_absolute() or text != text.strip() or text.endswith("\\"):
        raise UsageError(
            "this folder's name cannot be used in a unit file", where=path, hint="run it from another folder"
        )
    return text


def _plain(text: str) -> str:
    """Return ``text`` if a unit file can contain it: one line of UTF-8 without control characters."""
    if not text.isprintable() or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise UsageError(f"{text!r} cannot be in a unit file", hint="remove the line break or control character")
    return text

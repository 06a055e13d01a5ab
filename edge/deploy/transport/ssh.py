"""Start the script for an address: `sh` here, or the system's OpenSSH client with the user's own configuration."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

from edge.deploy.transport.address import DeviceAddress
from edge.deploy.transport.session import LOADER, TIMEOUTS, DeviceSession, Timeouts, without_cancel
from edge.errors import DeviceError, EdgeError, MissingDependencyError

# A fleet has no user to answer prompts: each prompt of ssh is an error with a hint.
_SSH_OPTIONS = (
    "BatchMode=yes",
    "ClearAllForwardings=yes",
    "ConnectTimeout=10",
    "PermitLocalCommand=no",
    "RemoteCommand=none",
    "ServerAliveCountMax=4",
    "ServerAliveInterval=15",
)


def connect(
    place: DeviceAddress,
    *,
    hold: Callable[[DeviceSession], None] = without_cancel,
    timeouts: Timeouts = TIMEOUTS,
) -> DeviceSession:
    """Start the script at ``place``; use the session in a ``with`` block.

    ``hold`` is called with the session before any wait, so that it can be ended from outside.

    Raises:
        DeviceError: the device cannot be reached, or refuses the login (when the block is entered).
        MissingDependencyError: there is no OpenSSH client on this machine.
    """
    command = ["sh", "-c", LOADER] if place.is_folder else [*ssh_command(place), "--", place.host, LOADER]

    def explain(code: int | None, errors: str, noise: str) -> EdgeError:
        return explain_local(place, errors) if place.is_folder else explain_ssh(place, code, errors, noise)

    session = DeviceSession(command, where=place.name, explain=explain, timeouts=timeouts)
    hold(session)
    return session


def root_of(place: DeviceAddress) -> str:
    """Return the bundle folder as the script gets it."""
    return os.fspath(place.folder) if place.folder is not None else place.path


def ssh_command(place: DeviceAddress) -> list[str]:
    """Return the command line of the OpenSSH client with its options, without host and command."""
    command = ["ssh", "-T", "-x"]
    for option in _SSH_OPTIONS:
        command += ["-o", option]
    if place.ssh_config is not None:
        command += ["-F", os.fspath(place.ssh_config)]
    if place.port is not None:
        command += ["-p", str(place.port)]
    if place.jump is not None:
        command += ["-J", place.jump]
    if place.user is not None:
        command += ["-l", place.user]
    return command


def explain_local(place: DeviceAddress, errors: str) -> EdgeError:
    """Return the reason why the local shell went away."""
    return DeviceError(
        f"the shell ended before it answered: {_last_line(errors) or 'no reason given'}", where=place.name
    )


def explain_ssh(place: DeviceAddress, code: int | None, errors: str, noise: str) -> EdgeError:
    """Return the reason why ssh ended and what to do, from OpenSSH's messages, which are not translated."""
    if code is None and "No such file" in errors:
        return MissingDependencyError(
            "the OpenSSH client is not installed", where=place.name, hint="sudo apt install openssh-client"
        )
    shown = place.host if place.user is None else f"{place.user}@{place.host}"
    for pattern, what, hint in _MEANINGS:
        match = re.search(pattern, errors, re.IGNORECASE)
        if match:
            words = {"host": shown, "bare": place.host, "line": _line_of(errors, match.start())}
            return DeviceError(what.format(**words), where=place.name, hint=hint.format(**words))
    if code == 255 or (code is not None and code < 0):
        reason = _last_line(errors) or "without a reason"
        return DeviceError(
            f"the connection ended: {reason}", where=place.name, hint="run the command again to continue"
        )
    reported = (noise.strip() or _last_line(errors)).replace("\n", " ")[:200]
    printed = f" and printed {reported!r}" if reported else ""
    return DeviceError(
        f"the shell there did not start edge's script: it ended with {code}{printed}",
        where=place.name, hint=f"the account needs a login shell: ssh {shown} true",
    )  # fmt: skip


_MEANINGS: tuple[tuple[str, str, str], ...] = (
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED",
        "the host key has changed: the device was set up again, or the connection is intercepted",
        "if it was set up again: ssh-keygen -R {bare}, then ssh {host} once to check and accept its key",
    ),
    (
        r"Host key verification failed|No \S+ host key is known",
        "the host key is unknown",
        "ssh {host} once, compare the fingerprint with the device's, and accept it",
    ),
    (
        r"Permission denied \(|Too many authentication failures",
        "the device refuses the login: {line}",
        "ssh-copy-id {host}; a key with a passphrase must be in the agent (ssh-add)",
    ),
    (
        r"Could not resolve hostname",
        "{line}",
        "check the name, or give the address; for a name from fleet.yaml, see --fleet",
    ),
    (
        r"open failed: administratively prohibited",
        "the jump host refuses to forward the connection: {line}",
        "its sshd must allow it (AllowTcpForwarding)",
    ),
    (r"Connection refused", "{line}", "check that the device is on and sshd runs on that port"),
    (
        r"Connection timed out|No route to host|Network is unreachable|Operation timed out",
        "{line}",
        "check that the device is on and in this network",
    ),
    (
        r"kex_exchange_identification",
        "sshd on the device closed the connection at once: {line}",
        "too many connections at once (MaxStartups; lower --parallel), a blocked address, or no sshd on that port",
    ),
    (
        r"Timeout, server .* not responding",
        "the connection was lost: {line}",
        "run the command again to continue where it was",
    ),
    (
        r"Connection (to \S+ )?(closed|reset)|Broken pipe|client_loop",
        "the connection was lost: {line}",
        "run the command again to continue where it was",
    ),
    (r"bad permissions|UNPROTECTED PRIVATE KEY", "{line}", "chmod 600 the key file"),
    (
        r"Can't open user config file|Bad configuration option|terminating, \d+ bad configuration",
        "{line}",
        "see your ssh configuration",
    ),
)


def _line_of(text: str, at: int) -> str:
    start = text.rfind("\n", 0, at) + 1
    return text[start:].splitlines()[0].strip().removeprefix("ssh: ")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""

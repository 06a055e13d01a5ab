"""User and password for a registry, from the environment or from the login files of docker and podman.

They are never taken from a command line, and never shown. docker-py reads the same files and asks the same helpers; it
knows none of podman's, says nothing about a broken file, and brings docker's whole API along (7.2.0, 1.5 MB).
"""

from __future__ import annotations

import base64
import binascii
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from edge.artifacts import Secret
from edge.errors import DeviceError, StoreError

USER = "EDGE_REGISTRY_USER"
PASSWORD = "EDGE_REGISTRY_PASSWORD"  # noqa: S105 - the name of a variable
_TIMEOUT_S = 60


class Credentials(msgspec.Struct, frozen=True):
    """A user and a password."""

    user: str
    password: Secret


def find(host: str, environment: Mapping[str, str]) -> Credentials | None:
    """Find the credentials for the registry ``host``; return None if there are none.

    Raises:
        DeviceError: the credential helper in docker's configuration failed.
        StoreError: the configuration cannot be read.
    """
    user, password = environment.get(USER), environment.get(PASSWORD)
    if user and password:
        return Credentials(user, Secret(password))
    for path in _files(environment):
        if path.is_file():
            found = _from_file(path, host)
            if found is not None:
                return found
    return None


def _files(environment: Mapping[str, str]) -> list[Path]:
    """Return docker's configuration file, then podman's [docker-login(1), containers-auth.json(5)]."""
    home = Path(environment.get("HOME") or Path.home())
    docker = Path(environment.get("DOCKER_CONFIG") or home / ".docker") / "config.json"
    files = [docker]
    if environment.get("REGISTRY_AUTH_FILE"):
        files.append(Path(environment["REGISTRY_AUTH_FILE"]))
    if environment.get("XDG_RUNTIME_DIR"):
        files.append(Path(environment["XDG_RUNTIME_DIR"]) / "containers" / "auth.json")
    return files


def _from_file(path: Path, host: str) -> Credentials | None:
    try:
        content = json.loads(path.read_bytes())
    except OSError as exc:
        raise StoreError(f"cannot read: {exc.strerror or exc}", where=path) from exc
    except (ValueError, RecursionError) as exc:
        # The error message may quote the file's content.
        raise StoreError("not JSON", where=path, hint="run docker login to write it again") from exc
    helpers, entries = _mapping(content, "credHelpers"), _mapping(content, "auths")
    entry = next((value for key, value in entries.items() if _same_host(key, host)), None)
    if isinstance(entry, dict) and isinstance(entry.get("auth"), str) and entry["auth"]:
        return _decoded(entry["auth"], path)
    helper = next((value for key, value in helpers.items() if _same_host(key, host)), None)
    if helper is None and isinstance(content, dict):
        helper = content.get("credsStore")
    return _ask(helper, host) if isinstance(helper, str) and helper else None


def _decoded(text: str, path: Path) -> Credentials:
    try:
        user, colon, password = base64.b64decode(text, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError) as exc:
        raise StoreError("an entry is not base64", where=path, hint="run docker login to write it again") from exc
    if not colon:
        raise StoreError("an entry has no password", where=path, hint="run docker login to write it again")
    return Credentials(user, Secret(password))


def _ask(helper: str, host: str) -> Credentials | None:
    """Query ``docker-credential-<helper> get`` [docker/docker-credential-helpers, README]; None for "not found"."""
    program = f"docker-credential-{helper}"
    if "/" in helper:
        raise DeviceError(f"{program!r} is not the name of a credential helper")
    try:
        done = subprocess.run(
            [program, "get"], input=host.encode(), capture_output=True, check=False, timeout=_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise DeviceError(f"{program} cannot be started", hint="install it, or remove it from config.json") from exc
    if done.returncode != 0:
        return None
    try:
        answer = json.loads(done.stdout)
        return Credentials(str(answer["Username"]), Secret(str(answer["Secret"])))
    except (ValueError, KeyError, TypeError) as exc:
        raise DeviceError(f"{program} returned no user and password") from exc


def _mapping(content: object, name: str) -> dict[str, Any]:
    found = content.get(name) if isinstance(content, dict) else None
    return found if isinstance(found, dict) else {}


def _same_host(key: str, host: str) -> bool:
    return key.removeprefix("https://").removeprefix("http://").partition("/")[0] == host

"""Where things are when the user does not say: profiles, the cache folder, the engine folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edge import device, profile
from edge.errors import ProfileError
from edge.profile import Precision, Profile

if TYPE_CHECKING:
    from edge.backends.base import Backend
    from edge.identity import Found
    from edge.record import Subject

# A checkout is recognized by what stands beside the package.
_BESIDE_PACKAGE = Path(__file__).resolve().parents[2]


def home() -> Path:
    """Folder that holds ``profiles/``, ``calib_cache/`` and ``engines/``.

    The working directory when it has a ``profiles`` folder, else the checkout that edge runs from, else the working
    directory.
    """
    here = Path.cwd()
    if not (here / "profiles").is_dir() and (_BESIDE_PACKAGE / "profiles").is_dir():
        return _BESIDE_PACKAGE
    return here


def device_home() -> Path:
    """Where a device keeps bundles, what ``edge ship`` brought, and its list of allowed signers."""
    return Path.home() / ".local" / "share" / "edge"


def profile_folders() -> list[Path]:
    """Folders searched for a profile's name, first match wins."""
    folders = [Path.cwd() / "profiles", _BESIDE_PACKAGE / "profiles"]
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def load_profile(name: str | None) -> tuple[Profile, Path]:
    """The profile called ``name``, or without a name the one that fits this machine; and the file it came from.

    Raises:
        ProfileError: there is none, it is wrong, or no profile fits this machine.
    """
    if name is None:
        machine = device.identify()
        name = device.default_profile(machine)
        if name is None:
            why = f": {machine.unsupported}" if machine.unsupported else ""
            raise ProfileError(f"no profile fits this machine{why}", hint="name one with --profile; edge profile list")
    path = profile.find(name, profile_folders())
    return profile.load(path), path


def cache_folder(option: Path | None) -> Path:
    """The calibration cache: ``--cache-dir``, ``EDGE_CACHE_DIR``, or ``calib_cache`` at :func:`home`."""
    if option is not None:
        return option
    named = os.environ.get("EDGE_CACHE_DIR")
    return Path(named) if named else home() / "calib_cache"


def engine_folder(option: Path | None) -> Path:
    """Folder of the engines: ``--engine-dir`` or ``engines`` at :func:`home`."""
    return option if option is not None else home() / "engines"


def find_engine(
    chosen: Profile, *, precision: Precision | None, cache_dir: Path | None, engine_dir: Path | None
) -> tuple[Backend, Precision, Found]:
    """The backend, the precision and the verified engine of a profile on this machine.

    Raises:
        ArtifactError: there is no such engine, or it was built for something else.
    """
    from edge import backends, identity

    backend = backends.of(chosen)
    wanted = precision or chosen.precision
    cache, engines = cache_folder(cache_dir), engine_folder(engine_dir)
    return backend, wanted, identity.find_engine(chosen, backend, precision=wanted, cache=cache, engines=engines)


def subject(profile: Profile, backend: Backend, found: Found, precision: str, source: Path | str) -> Subject:
    """What runs where, for a record."""
    from edge import preprocess
    from edge.record import Subject

    key = found.manifest.key
    return Subject(
        profile=profile.name,
        profile_digest=profile.digest,
        model=profile.model,
        model_sha256=str(key["model"]),
        engine_sha256=found.sha256,
        table_sha256=None if key["table"] is None else str(key["table"]),
        preprocess_digest=preprocess.digest(profile.preprocess, profile.input),
        backend=dict(backend.identity()),
        precision=precision,
        layers=found.manifest.info["layers"],
        device=msgspec.to_builtins(device.identify()),
        source=str(source),
    )

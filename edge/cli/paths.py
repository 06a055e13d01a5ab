"""Default locations: profiles, the calibration cache, the engines, and the files included in edge."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edge.artifacts import store
from edge.config import Precision, Profile, available_profiles, find_profile, read_profile
from edge.deploy.bundle import MANIFEST, PROFILE, deployed
from edge.errors import ArtifactError, ModelError, ProfileError, UsageError
from edge.system import device

if TYPE_CHECKING:
    from edge.artifacts import Subject
    from edge.backends import Backend
    from edge.calibration import FoundArtifact
    from edge.media import ClassNames, Pictures
    from edge.ui.terminal import Terminal

_PACKAGE = Path(__file__).resolve().parents[1]
# The value of --images for the images included in edge.
SAMPLES = "samples:"


def checkout() -> Path | None:
    """Return the checkout that edge runs from, recognized by the files next to the package; None for a wheel."""
    folder = _PACKAGE.parent
    return folder if (folder / "pyproject.toml").is_file() and (folder / "profiles").is_dir() else None


def resources() -> Path:
    """Return the folder with the included profiles, sample model and images: the checkout, or package data."""
    return checkout() or _PACKAGE / "data"


def samples(path: Path) -> Path:
    """Return ``path``, or the folder of the included images for ``samples:``."""
    return resources() / "samples" if str(path) == SAMPLES else path


def home() -> Path:
    """Return the folder with ``profiles/``, ``calib_cache/`` and ``engines/``.

    This is the working directory if it has a ``profiles`` folder, else the checkout that edge runs from, else the
    working directory.
    """
    here = Path.cwd()
    return here if (here / "profiles").is_dir() else checkout() or here


def device_home(user: str | None = None) -> Path:
    """Return the folder of a device's bundles and list of allowed signers, in a user's home.

    Raises:
        UsageError: the user does not exist.
    """
    try:
        home_folder = Path.home() if user is None else Path(f"~{user}").expanduser()
    except RuntimeError as exc:
        raise UsageError(f"there is no user {user} here") from exc
    return home_folder / ".local" / "share" / "edge"


def profile_folders() -> list[Path]:
    """Return the folders to search for a profile's name; the first match wins."""
    folders = [Path.cwd() / "profiles", resources() / "profiles"]
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def profiles() -> dict[str, Path]:
    """List every profile with a name here and its file; ``current`` is that of the bundle shipped to this device."""
    found = {path.stem: path for path in available_profiles(profile_folders())}
    shipped = deployed.current(device_home())
    return found if shipped is None else {**found, deployed.CURRENT: shipped.profile}


def default_profile(machine: device.Device, *, user: str | None = None) -> str | None:
    """Return the default profile name; without profiles of the user, that of the bundle shipped to this device.

    The bundle is in the home of ``user``, by default of the calling user. Returns None if no profile suits the machine.
    """
    has_own = checkout() is not None or (Path.cwd() / "profiles").is_dir()
    if not has_own and deployed.current(device_home(user)) is not None:
        return deployed.CURRENT
    return device.default_profile(machine)


def is_current(path: Path, *, user: str | None = None) -> bool:
    """Return True if ``path`` leads to the profile of the bundle in use, even through a link."""
    state = device_home(user)
    shipped = deployed.holding(path, state)
    return shipped is not None and shipped == deployed.current(state)


def is_shipped(path: Path) -> bool:
    """Return True if ``path`` is the profile of any bundle shipped to this device."""
    return deployed.holding(path, device_home()) is not None


def load_profile(name: str | None, *, user: str | None = None) -> tuple[Profile, Path]:
    """Load the profile called ``name``, or the default profile for this machine; return it with its file.

    ``current`` is that of the bundle shipped to this device, in the home of ``user`` or of the calling user.

    Raises:
        ProfileError: the profile does not exist or is invalid, or no profile matches this machine.
    """
    if name is None:
        machine = device.identify()
        name = default_profile(machine, user=user)
        if name is None:
            why = f": {machine.unsupported}" if machine.unsupported else ""
            raise ProfileError(
                f"no profile matches this machine{why}", hint="give one with --profile; edge profile list shows them"
            )
    shipped = deployed.current(device_home(user)) if name == deployed.CURRENT else None
    path = shipped.profile if shipped is not None else _found(name, user=user)
    _check_bundle(path, shipped=shipped or deployed.holding(path, device_home(user)), user=user)
    return read_profile(path), path


def _found(name: str, *, user: str | None) -> Path:
    """Find a profile by name; without a shipped bundle, ``current`` may be the name of one of the user's own."""
    try:
        return find_profile(name, profile_folders())
    except ProfileError as exc:
        if name != deployed.CURRENT:
            raise
        raise ProfileError(
            "no bundle is in use on this device", where=device_home(user),
            hint="edge ship USER@HOST --bundle FILE, on the host; or --profile NAME",
        ) from exc  # fmt: skip


def require_model(profile: Profile) -> None:
    """Check that the model of a profile is there: other missing files would only follow from that.

    Raises:
        ModelError: there is no such file.
    """
    if not Path(profile.model).is_file():
        raise ModelError("the model file does not exist", where=profile.model, hint="check `model:` in the profile")


def _check_bundle(path: Path, *, shipped: deployed.Deployed | None, user: str | None) -> None:
    """Verify the bundle that contains a profile, if any, so that only verified and signed files are used.

    Raises:
        ArtifactError: a file was changed or is outside of it, or its signature is not accepted here.
    """
    folder = path.parent if shipped is not None else path.resolve().parent
    if shipped is None and (path.name != PROFILE or not (folder / MANIFEST).is_file()):
        return
    from edge.deploy.bundle import check_models, open_bundle, signature, verify_bundle

    if shipped is not None:
        folder = shipped.folder
        if path.resolve() != (folder / PROFILE).resolve():
            raise ArtifactError(f"use the file {PROFILE} as the profile of a shipped bundle", where=path)
    found = open_bundle(folder)
    verify_bundle(found)
    check_models(found)
    state = device_home(user)
    if shipped is not None and shipped.digest != found.digest:
        raise ArtifactError("the bundle does not match the name of its folder", where=folder, hint="ship it again")
    signature.check_policy(found, signature.lists(state))


def labelled_pictures(profile: Profile, images: Path, labels: Path | None, *, label_offset: int = 0) -> Pictures:
    """List the images of ``images`` with their classes: from ``labels``, their folders, or a list.

    Raises:
        DataError: images or labels are unusable, or a label is not one of the profile's classes.
    """
    from edge.media import open_pictures

    return open_pictures(images, labels=labels, names=class_names(profile), label_offset=label_offset)


def class_names(profile: Profile) -> ClassNames:
    """Return the class names of a profile.

    Raises:
        DataError: its file of class names is unusable.
    """
    from edge.media import ClassNames, labels

    return ClassNames(labels.load_names(Path(profile.labels)), source=profile.labels)


def cache_folder(option: Path | None, of: Path | None = None) -> Path:
    """Return the calibration cache: ``--cache-dir``, ``EDGE_CACHE_DIR``, or ``calib_cache`` in :func:`home`.

    For a profile file ``of`` in a shipped bundle, it is the read-only folder of tables in that bundle.
    """
    if option is not None:
        return option
    named = os.environ.get("EDGE_CACHE_DIR")
    if named:
        return Path(named)
    shipped = _shipped(of)
    if shipped is not None:
        return shipped.tables
    own = home() / "calib_cache"
    return resources() / "calib_cache" if _is_packaged(of) and not own.is_dir() else own


def build_cache_folder(option: Path | None, of: Path) -> Path:
    """Return a cache folder for builds, which write timing caches; for a shipped bundle, to this device's own."""
    shipped = _shipped(of) if option is None and not os.environ.get("EDGE_CACHE_DIR") else None
    if shipped is not None:
        return shipped.build_cache()
    folder = cache_folder(option)
    if option is None and _is_packaged(of):
        # Package data is read only, and builds write timing caches beside the tables.
        brought = resources() / "calib_cache"
        folder = home() / "calib_cache"
        for file in sorted(brought.rglob("*")):
            copy = folder / file.relative_to(brought)
            if file.is_file() and not copy.exists():
                store.write_bytes(copy, file.read_bytes())
    return folder


def own_cache_folder(option: Path | None, of: Path) -> Path:
    """Return a cache folder for writing tables; see :func:`cache_folder`.

    Raises:
        UsageError: the profile belongs to a shipped bundle, which is read-only.
    """
    if option is None and _shipped(of) is not None:
        raise UsageError(
            "a shipped bundle is read-only and already has its table", where=of,
            hint="calibrate on the machine that makes the bundle, or use --cache-dir DIR",
        )  # fmt: skip
    return cache_folder(option)


def engine_folder(option: Path | None, of: Path | None = None) -> Path:
    """Return the engine folder: ``--engine-dir``, ``EDGE_ENGINE_DIR``, a bundle's, or ``engines`` in :func:`home`."""
    if option is not None:
        return option
    named = os.environ.get("EDGE_ENGINE_DIR")
    if named:
        return Path(named)
    shipped = _shipped(of)
    return shipped.engines if shipped is not None else home() / "engines"


def _is_packaged(of: Path | None) -> bool:
    """Return True if ``of`` is a profile included in an installed wheel."""
    return of is not None and checkout() is None and of.is_relative_to(resources())


def _shipped(of: Path | None) -> deployed.Deployed | None:
    return None if of is None else deployed.holding(of, device_home())


def find_engine(
    chosen: Profile, path: Path, *, precision: Precision | None, cache_dir: Path | None = None,
    engine_dir: Path | None = None, exact: bool = False,
) -> tuple[Backend, Precision, FoundArtifact]:  # fmt: skip
    """Return backend, precision and verified engine of a profile on this machine; the profile's file is ``path``.

    ``exact``: an engine of another power mode or other clocks is refused as well.

    Raises:
        ArtifactError: the engine does not exist, or was built with other inputs.
    """
    from edge import backends
    from edge.calibration import cache_keys

    require_model(chosen)
    backend = backends.of(chosen)
    wanted = precision or chosen.precision
    cache, engines = cache_folder(cache_dir, path), engine_folder(engine_dir, path)
    found = cache_keys.find_engine(
        chosen, backend, precision=wanted, cache=cache, engines=engines,
        called=deployed.CURRENT if is_current(path) else None, exact=exact,
    )  # fmt: skip
    return backend, wanted, found


def ready_engine(
    chosen: Profile, path: Path, *, precision: Precision | None, terminal: Terminal
) -> tuple[Backend, Precision, FoundArtifact]:
    """Find an engine like :func:`find_engine`; build the engine of the bundle in use if none is valid.

    The bundle may be in use without a trial, or the power mode or TensorRT may have changed: a service must not fail
    for ever because of that. The supervisor is told that the start takes longer.
    """
    try:
        return find_engine(chosen, path, precision=precision, exact=is_current(path))
    except ArtifactError as exc:
        if not is_current(path):
            raise
        why = exc.what
    from edge import backends
    from edge.engines import building
    from edge.runtime import slow_start

    terminal.info(f"building the engine of the bundle in use first: {why}")
    with slow_start("building the engine"), terminal.progress() as listen:
        building.build(
            chosen, backends.of(chosen), cache=build_cache_folder(None, path), engines=engine_folder(None, path),
            precision=precision, listen=listen,
        )  # fmt: skip
    return find_engine(chosen, path, precision=precision)


def subject(profile: Profile, backend: Backend, found: FoundArtifact, precision: str, source: Path | str) -> Subject:
    """Describe engine, device and source for a record."""
    from edge.artifacts import Subject
    from edge.model import preprocessing

    key = found.manifest.key
    return Subject(
        profile=profile.name,
        profile_digest=profile.digest,
        model=profile.model,
        model_sha256=str(key["model"]),
        engine_sha256=found.sha256,
        table_sha256=None if key["table"] is None else str(key["table"]),
        preprocess_digest=preprocessing.digest(profile.preprocess, profile.input),
        backend=dict(backend.identity()),
        precision=precision,
        layers=found.manifest.info["layers"],
        device=msgspec.to_builtins(device.identify()),
        source=str(source),
    )

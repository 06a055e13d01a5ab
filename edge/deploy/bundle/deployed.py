"""A bundle on this device, and the folders for what is built from it.

`edge ship` stores bundles in ``STATE/bundles/<digest>``, and the link ``STATE/current`` refers to the one in use
(docs/shipping.md). A bundle is never modified: its files are shared with other bundles. Engines and timing caches are
next to them.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import msgspec

from edge.artifacts import store
from edge.deploy.bundle.manifest import PROFILE, TABLES, BundleManifest
from edge.errors import DeviceError, os_error
from edge.system import Device

CURRENT = "current"
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Deployed(msgspec.Struct, frozen=True, kw_only=True):
    """A ``folder`` with the bundle ``digest``, and the ``state`` folder of its device."""

    folder: Path
    digest: str
    state: Path

    @property
    def profile(self) -> Path:
        """The profile, with everything that it extends merged in."""
        return self.folder / PROFILE

    @property
    def tables(self) -> Path:
        """The read-only cache folder with calibration tables and their manifests."""
        return self.folder / TABLES

    @property
    def engines(self) -> Path:
        """The folder of the engines built from this bundle on this device."""
        return self.state / "engines" / self.digest

    def build_cache(self) -> Path:
        """Make a cache folder for building, with links to this bundle's tables and this device's timing caches.

        Raises:
            StoreError: the state folder cannot be written.
            ArtifactError: a timing cache that came with the bundle is corrupt.
        """
        folder, timing = self.state / "cache" / self.digest, self.state / "timing"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            timing.mkdir(exist_ok=True)
            _seed(self.folder / "timing", timing)
            links = {path.name: path for path in self.tables.iterdir()} if self.tables.is_dir() else {}
            # Timing caches are written, and a bundle never is, whatever it calls its folders.
            links["timing"] = timing
            for name, goal in links.items():
                link = folder / name
                if not link.is_symlink() or link.readlink() != goal.absolute():
                    new = folder / f".{name}.{os.getpid()}"
                    new.symlink_to(goal.absolute())
                    new.replace(link)
        except OSError as exc:
            raise os_error(exc, folder) from exc
        return folder


def current(state: Path) -> Deployed | None:
    """Return the bundle in use, to which ``current`` points now; None if nothing was shipped.

    The returned bundle stays unchanged when another one is shipped in the meantime.
    """
    try:
        digest = (state / CURRENT).readlink().name
    except OSError:
        return None
    return _of(state, digest)


def holding(path: Path, state: Path) -> Deployed | None:
    """Return the bundle on this device that contains the file ``path``."""
    try:
        inside = path.resolve().relative_to((state / "bundles").resolve())
    except ValueError:
        return None
    return _of(state, inside.parts[0]) if inside.parts else None


def _of(state: Path, digest: str) -> Deployed | None:
    folder = state / "bundles" / digest
    if _DIGEST.fullmatch(digest) is None or not folder.is_dir():
        return None
    return Deployed(folder=folder, digest=digest, state=state)


def _seed(source: Path, goal: Path) -> None:
    """Add the bundle's timing caches to those of this device, whose own caches take precedence."""
    from edge.backends.tensorrt import timing_cache

    for manifest in sorted(source.glob("*.json")):
        found = store.load(manifest, kind=timing_cache.KIND)
        with store.lock(goal / manifest.with_suffix(".timing").name):
            if not (goal / manifest.name).exists():
                for name in found.files:
                    store.write_bytes(goal / name, (source / name).read_bytes())
                store.write_bytes(goal / manifest.name, manifest.read_bytes())


def mismatch(about: BundleManifest, machine: Device) -> str | None:
    """Return the reason why the bundle is not for ``machine``; None if it is.

    A desktop with an RTX card is a host like any other to :mod:`edge.system.device`, so a bundle for ``rtx`` is
    for hosts.
    A release of JetPack matches with all of its updates: 6.2 is also 6.2.1, and is not 6.20.
    """
    where = machine.product or machine.model or machine.machine or "this machine"
    if machine.family is None:
        return f"{where} belongs to an unknown device family: {machine.unsupported or 'unknown'}"
    family = "host" if about.family == "rtx" else about.family
    if family != machine.family:
        return f"the bundle is for {about.family}, but {where} is {machine.family}"
    if about.jetpack is None or not machine.is_jetson:
        return None
    wanted = " or ".join(about.jetpack)
    if machine.jetpack is None:
        return f"the bundle is for JetPack {wanted}, but the JetPack of {where} is unknown"
    if not any(f"{machine.jetpack}.".startswith(f"{release}.") for release in about.jetpack):
        return f"the bundle is for JetPack {wanted}, but {where} has {machine.jetpack}"
    return None


def check_target(about: BundleManifest, machine: Device) -> None:
    """Refuse a bundle that is for another machine.

    Raises:
        DeviceError: the machine is another one; the message names both.
    """
    why = mismatch(about, machine)
    if why is not None:
        raise DeviceError(why, hint="edge bundle show FILE; make one with the profile of this device")

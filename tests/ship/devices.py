"""What tests look at on a device, from outside of edge's own ship."""

from __future__ import annotations

from pathlib import Path

from edge.bundle import open_bundle
from edge.ship import Settings
from edge.transport.target import Place

QUICK = Settings(canary=False)


def root_of(place: Place) -> Path:
    return place.folder if place.folder is not None else Path(place.path)


def current(place: Place) -> str | None:
    """Digest of the bundle in use, after every file of it was read and compared with the manifest."""
    link = root_of(place) / "current"
    if not link.is_symlink():
        return None
    found = open_bundle(link)
    for name in found.files:
        found.read(name)
    assert found.digest == link.readlink().name
    listed = {path.relative_to(link).as_posix() for path in link.rglob("*") if path.is_file()}
    assert listed - {"bundle.json.sig"} == {*found.files, "bundle.json"}
    return found.digest


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder``, but for the lock."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "lock"
    }

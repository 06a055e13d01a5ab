"""Tables and engines of small profiles, made once per process for the same inputs, and written again for each test."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from edge.backends import interface
from edge.calibration import cache_keys, workflow
from edge.config.profiles import Precision, Profile
from edge.engines import building
from edge.media.picture_sources import open_pictures

# For each set of inputs and each folder: content by relative path.
_MADE: dict[str, list[dict[str, bytes]]] = {}


def calibrated(profile: Profile, pictures: Path, *, cache: Path) -> Path:
    """Do what ``edge calibrate`` does, in an empty cache.

    Returns:
        The table.
    """

    def make() -> None:
        assert workflow.calibrate(profile, open_pictures(pictures), cache=cache, threads=1)

    _once(f"table {_digest(profile, pictures)}", [cache], make)
    return cache_keys.find_table(profile, cache).path


def built(
    profile: Profile, pictures: Path, *, cache: Path, engines: Path, precisions: Sequence[Precision] = ("fp32", "int8")
) -> None:
    """Do what ``edge calibrate`` and ``edge build`` do, in empty folders."""

    def make() -> None:
        calibrated(profile, pictures, cache=cache)
        backend = interface.get(profile.backend)
        for precision in precisions:
            building.build(profile, backend, cache=cache, engines=engines, precision=precision)

    _once(f"engines {precisions} {_digest(profile, pictures)}", [cache, engines], make)


def _once(key: str, folders: Sequence[Path], make: Callable[[], None]) -> None:
    if any(folder.exists() for folder in folders):
        make()
        return
    if key not in _MADE:
        make()
        _MADE[key] = [_content(folder) for folder in folders]
        return
    for folder, content in zip(folders, _MADE[key], strict=True):
        for name, data in content.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def _content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _digest(profile: Profile, pictures: Path) -> str:
    """Digest of all that a table and an engine depend on: settings, model with its weights, pictures."""
    model = Path(profile.model)
    found = hashlib.sha256(
        msgspec.json.encode(msgspec.structs.replace(profile, model=model.name, labels=""), enc_hook=str)
    )
    for path in sorted([*model.parent.glob(f"{model.name}*"), *pictures.iterdir()]):
        found.update(f"\0{path.name}\0".encode())
        found.update(path.read_bytes())
    return found.hexdigest()

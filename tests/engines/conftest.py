"""Engines of the tiny network, built by ONNX Runtime, and a look at where they lie."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge.artifacts import store
from edge.backends import interface
from edge.calibration import cache_keys
from edge.config import profiles
from edge.config.profiles import Profile
from edge.engines import building
from edge.engines.inventory import InventoryScan
from edge.errors import ProfileError
from tests.support.calibrated import calibrated


@pytest.fixture
def tiny(tiny_profile: Callable[..., Path], pictures: Callable[..., Any], tmp_path: Path) -> Profile:
    """The tiny profile, calibrated."""
    chosen = profiles.read_profile(tiny_profile(tmp_path / "profiles"))
    pictures(tmp_path / "p", 4)
    calibrated(chosen, tmp_path / "p", cache=tmp_path / "cache")
    return chosen


@pytest.fixture
def make(tiny: Profile, tmp_path: Path) -> Callable[..., Path]:
    """``make("int8")``: the manifest of the tiny network's engine; ``profile=`` another one."""

    def call(precision: Any = "int8", profile: Profile | None = None) -> Path:
        chosen = profile or tiny
        outcome = building.build(
            chosen, interface.get(chosen.backend), cache=tmp_path / "cache", engines=tmp_path / "engines",
            precision=precision,
        )  # fmt: skip
        assert outcome.manifest == cache_keys.engine_manifest_path(chosen, tmp_path / "engines", precision)
        return outcome.manifest

    return call


@pytest.fixture
def look(tmp_path: Path) -> Callable[..., InventoryScan]:
    """``look()``: profiles from ``tmp_path/profiles``, the real backends, the cache of ``make``."""

    def resolve(name: str) -> Profile:
        path = tmp_path / "profiles" / f"{name}.yaml"
        if not path.is_file():
            raise ProfileError(f"there is no profile {name!r}")
        return profiles.read_profile(path)

    def call(**changes: Any) -> InventoryScan:
        given = {"resolve": resolve, "backend": interface.of, "cache": tmp_path / "cache", **changes}
        return InventoryScan(**given)

    return call


@pytest.fixture
def rewrite() -> Callable[..., None]:
    """``rewrite(manifest, {"name": b"content"}, warnings=[...])``: other files or info, all of it whole."""

    def call(manifest: Path, files: dict[str, bytes] | None = None, **info: Any) -> None:
        found = store.load(manifest, kind=cache_keys.ENGINE)
        kept = {name: (manifest.parent / name).read_bytes() for name in found.files}
        store.save(
            manifest,
            kind=cache_keys.ENGINE,
            files={**kept, **(files or {})},
            key=found.key,
            info={**found.info, **info},
        )

    return call

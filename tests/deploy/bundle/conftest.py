"""Small bundles made by hand, and one of a real profile."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from edge.config import profiles
from edge.deploy.bundle import creation
from edge.deploy.bundle.reader import Bundle
from edge.media.picture_sources import open_pictures
from tests.support.bundles import FILES, tar_of
from tests.support.calibrated import calibrated


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A small bundle as a tar."""
    path = tmp_path / "small.edge"
    path.write_bytes(tar_of(FILES))
    return path


@pytest.fixture
def made(
    tmp_path: Path, tiny_profile: Callable[..., Path], pictures: Callable[..., list[Path]]
) -> Callable[..., Bundle]:
    """``made(out="tiny.edge", overrides={…}, **options)``: the bundle of a calibrated tiny profile."""

    def make(out: str = "tiny.edge", *, overrides: Mapping[str, Any] | None = None, **options: Any) -> Bundle:
        path = tiny_profile(tmp_path / "profiles", **(overrides or {}))
        chosen = profiles.read_profile(path)
        if not (tmp_path / "pictures").is_dir():
            pictures(tmp_path / "pictures", 6)
        cache = tmp_path / "calib_cache"
        source = open_pictures(tmp_path / "pictures")
        if chosen.precision == "int8":
            calibrated(chosen, tmp_path / "pictures", cache=cache)
        options = {"golden": list(source.take(2)), **options}
        return creation.create(chosen, cache=cache, out=tmp_path / out, **options)

    return make

"""A small sweep: the tiny network, some pictures to calibrate with, some labelled ones to score with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from edge.config import profiles
from edge.config.profiles import Profile
from edge.media.picture_sources import open_pictures
from edge.media.pictures import Picture, Pictures
from edge.tuning import sweep, sweep_tables
from edge.tuning.sweep_record import Record


class Bench(NamedTuple):
    """What a sweep needs; call it to sweep."""

    profile: Profile
    pictures: Pictures
    labelled: list[Picture]
    cache: Path

    def __call__(
        self,
        *,
        algorithms: tuple[str, ...] = ("minmax", "percentile:90"),
        sizes: tuple[int, ...] = (4, 12),
        seeds: int = 2,
        threads: int = 2,
        **more: Any,
    ) -> Record:
        settings = sweep_tables.SweepSettings(
            candidates=sweep_tables.candidates(algorithms),
            sizes=list(sizes),
            seeds=seeds,
            threads=threads,
        )
        return sweep.sweep(self.profile, self.pictures, self.labelled, settings, cache=self.cache, **more)


@pytest.fixture
def bench(
    tmp_path: Path, tiny_profile: Callable[..., Path], pictures: Callable[..., list[Path]]
) -> Callable[..., Bench]:
    """``bench(calibration=12, labelled=20, **profile)``: a small sweep that is ready to run."""

    def make(calibration: int = 12, labelled: int = 20, **overrides: Any) -> Bench:
        chosen = profiles.read_profile(tiny_profile(tmp_path / "profiles", **overrides))
        pictures(tmp_path / "calibration", calibration, seed=1)
        pictures(tmp_path / "scored", labelled, seed=2, labels=True)
        scored = open_pictures(tmp_path / "scored", labels=tmp_path / "scored" / "labels.csv")
        return Bench(chosen, open_pictures(tmp_path / "calibration"), list(scored), tmp_path / "cache")

    return make

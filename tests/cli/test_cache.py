"""``edge cache`` and calibration tables: listed, and removed by folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Edge = Callable[..., Any]
Place = Callable[..., Path]


@pytest.fixture
def calibrated(edge: Edge, place: Place) -> Path:
    folder = place(2)
    assert edge("calibrate", "--profile", "tiny", "--images", "pictures", "--algorithm", "minmax").code == 0
    return folder


def test_tables_are_listed_with_what_they_belong_to(edge: Edge, calibrated: Path) -> None:
    (entry,) = json.loads(edge("cache", "list", "--json").out)["tables"]
    assert (entry["folder"], entry["algorithm"], entry["pictures"]) == ("model", "minmax", 2)
    assert entry["preprocess"].startswith("mean [")
    assert entry["bytes"] > 0
    assert entry["table"] in edge("cache", "list").out


def test_tables_are_cleared_by_folder(edge: Edge, calibrated: Path) -> None:
    cache = calibrated / "calib_cache"
    before = sorted(path for path in cache.rglob("*") if path.is_file())
    would = edge("cache", "clear", "model", "--dry-run")
    assert (would.code, "would remove" in would.out) == (0, True)
    assert sorted(path for path in cache.rglob("*") if path.is_file()) == before
    assert edge("cache", "clear", "model").code == 0
    assert not (cache / "model").exists()
    assert json.loads(edge("cache", "list", "--json").out)["tables"] == []


@pytest.mark.parametrize("name", ["modl", "..", "../profiles", ".", "model/x"])
def test_only_folders_of_tables_are_cleared(name: str, edge: Edge, calibrated: Path) -> None:
    before = sorted(calibrated.rglob("*"))
    ended = edge("cache", "clear", name)
    assert ended.code == 2
    assert f"there are no tables in '{name}'" in ended.err
    assert sorted(calibrated.rglob("*")) == before

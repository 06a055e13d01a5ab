from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge.engines import engine_report, layer_times
from edge.engines.engine_report import EngineReport
from edge.errors import ArtifactError, StoreError

LAYERS = [
    {"Name": "move", "LayerType": "Reformat"},
    {"Name": "/a", "LayerType": "CaskConvolution", "Inputs": [{"Name": "x", "Format/Datatype": "Int8"}]},
    {"Name": "/b", "LayerType": "CaskConvolution"},
]


@pytest.fixture
def shown(tmp_path: Path) -> EngineReport:
    path = tmp_path / "graph.json"
    path.write_text(json.dumps({"Layers": LAYERS}))
    return engine_report.load(path)


@pytest.fixture
def profiled(tmp_path: Path) -> Callable[..., Path]:
    def write(content: Any) -> Path:
        path = tmp_path / "times.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


def test_where_the_time_goes(shown: EngineReport, profiled: Callable[..., Path]) -> None:
    path = profiled([
        {"count": 100},
        {"name": "move", "averageMs": 9.0, "medianMs": 0.1, "timeMs": 900.0, "percentage": 10},
        {"name": "/b", "averageMs": 9.0, "medianMs": 0.2},
        {"name": "/b", "averageMs": 9.0, "medianMs": 0.3},
        {"name": "unlisted", "averageMs": 9.0, "medianMs": 0.4},
    ])  # fmt: skip
    found = layer_times.read(path, shown)
    assert (found.statistic, found.runs, found.source) == ("median", 100, "times.json")
    assert found.total_ms == pytest.approx(1.0)
    assert [(item.name, pytest.approx(item.ms)) for item in found.layers] == [
        ("/b", 0.5), ("unlisted", 0.4), ("move", 0.1),
    ]  # fmt: skip
    assert found.by_role == {"weighted": 0.5, "not listed": 0.4, "reformat": 0.1}
    drawn = " ".join(engine_report.render(shown, found).split())
    assert "Where the time goes" in drawn
    assert "median of 100 runs each, in a run of its own by trtexec (times.json)" in drawn


def test_means_where_there_are_no_medians(shown: EngineReport, profiled: Callable[..., Path]) -> None:
    found = layer_times.read(profiled([{"name": "/a", "averageMs": 2.0}]), shown)
    assert (found.statistic, found.runs, found.total_ms) == ("mean", None, 2.0)


def test_nothing_takes_time(shown: EngineReport, profiled: Callable[..., Path]) -> None:
    found = layer_times.read(profiled([{"name": "/a", "averageMs": 0.0}]), shown)
    assert found.layers[0].share == 0.0
    engine_report.render(shown, found)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "not a profile that trtexec exported"),
        ('{"Layers": []}', "not a profile that trtexec exported"),
        ('[{"name": 3}]', "not a profile that trtexec exported"),
        ("[" * 100_000, "not a profile that trtexec exported"),
        ([{"name": "/z", "averageMs": 1.0}], "not times of this engine"),
        ([{"count": 3}], "not times of this engine"),
        ([{"name": "/a"}], "no time of '/a'"),
        ([{"name": "/a", "averageMs": -1.0}], "no time of '/a'"),
        ('[{"name": "/a", "averageMs": 1e999}]', "not a profile|no time of '/a'"),
    ],
)
def test_bad_files(content: Any, words: str, shown: EngineReport, profiled: Callable[..., Path]) -> None:
    with pytest.raises(ArtifactError, match=words):
        layer_times.read(profiled(content), shown)


def test_a_missing_file(shown: EngineReport, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot read"):
        layer_times.read(tmp_path / "nothing.json", shown)


def test_real_ones(repository: Path) -> None:
    folder = repository.parent / "shared/reference/trt_artifacts"
    if not folder.is_dir():
        pytest.skip("a real engine's layers and times are not on this machine")
    shown = engine_report.load(folder / "resnet50-int8.engine.graph.json")
    found = layer_times.read(folder / "resnet50-int8.engine.profile.json", shown)
    assert (found.runs, len(found.layers)) == (6402, 59)
    assert all(item.layer is not None for item in found.layers)
    assert found.by_role["weighted"] / found.total_ms > 0.9

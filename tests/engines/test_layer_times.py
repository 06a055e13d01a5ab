from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edge.backends.fake import Fake
from edge.backends.onnxruntime import OnnxRuntime
from edge.calibration import cache_keys
from edge.config import profiles
from edge.engines import building, engine_report, layer_times
from edge.engines.engine_comparison import compare
from edge.engines.engine_report import EngineReport
from edge.errors import ArtifactError, DeviceError, StoreError

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
    assert "median of 100 runs each, in runs of their own by trtexec (times.json)" in drawn


def test_means_where_there_are_no_medians(shown: EngineReport, profiled: Callable[..., Path]) -> None:
    found = layer_times.read(profiled([{"name": "/a", "averageMs": 2.0}]), shown)
    assert (found.statistic, found.runs, found.total_ms) == ("mean", None, 2.0)
    some = [{"name": "/a", "averageMs": 2.0, "medianMs": 1.0}, {"name": "/b", "averageMs": 3.0}]
    found = layer_times.read(profiled(some), shown)
    assert (found.statistic, found.total_ms) == ("mean", 5.0)


def test_nothing_takes_time(shown: EngineReport, profiled: Callable[..., Path]) -> None:
    found = layer_times.read(profiled([{"name": "/a", "averageMs": 0.0}]), shown)
    assert found.layers[0].share == 0.0
    engine_report.render(shown, found)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "not a profile that trtexec exported"),
        ('{"Layers": []}', "not a file of layer times"),
        ("{", "not a file of layer times"),
        ('{"format": 2, "kind": "layer times"}', "layer times of format 2; this edge reads 1"),
        ('{"format": 1, "kind": "layer times", "layers": 3}', "not a file of layer times"),
        ('[{"name": 3}]', "not a profile that trtexec exported"),
        ("[" * 100_000, "not a profile that trtexec exported"),
        ([{"name": "/z", "averageMs": 1.0}], "layer timings do not match this engine"),
        ([{"count": 3}], "layer timings do not match this engine"),
        ([{"name": "/a"}], "no time for layer '/a'"),
        ([{"name": "/a", "averageMs": -1.0}], "no time for layer '/a'"),
        ('[{"name": "/a", "averageMs": 1e999}]', "not a profile|no time for layer '/a'"),
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


# measured by edge itself


@pytest.fixture
def built(tmp_path: Path, tiny_profile: Callable[..., Path]) -> cache_keys.FoundArtifact:
    """An FP32 engine of ONNX Runtime."""
    profile = profiles.read_profile(tiny_profile(tmp_path))
    folders = {"cache": tmp_path / "cache", "engines": tmp_path / "engines"}
    building.build(profile, OnnxRuntime(), precision="fp32", **folders)
    return cache_keys.find_engine(profile, OnnxRuntime(), precision="fp32", **folders)


def test_onnxruntime_times_every_layer(built: cache_keys.FoundArtifact, tmp_path: Path) -> None:
    card = engine_report.load(built.path)
    assert layer_times.find(card) is None
    with pytest.raises(ArtifactError, match="no layer times next to this engine"):
        layer_times.read_node_times(built.path)
    shape = (1, 3, 32, 32)
    found = layer_times.measure(OnnxRuntime(), built, np.zeros(shape, np.float32), precision="fp32", runs=7, warmup=2)
    assert (found.runs, found.batch) == (7, 1)
    assert found.whole_ms > 0
    assert all(0 <= item.p10_ms <= item.median_ms <= item.p90_ms for item in found.layers)
    path = layer_times.beside(card.path)
    layer_times.save(path, found)
    times = layer_times.find(card)
    assert times is not None
    assert times.profiler.startswith("onnxruntime")
    # Every layer of the report has its time, under its own name.
    assert card.inspection is not None
    assert {layer.name for layer in card.inspection.layers} == {item.name for item in times.layers}
    assert times.by_role["weighted"] >= 0
    figures = {row.name: row for row in compare(card, card).figures}
    assert figures["sum of layer times"].a == pytest.approx(times.total_ms)
    # The tuning takes them from the engine, its manifest, the file itself, or the report, by the same reader.
    by_node = layer_times.read_node_times(built.path)
    assert set(by_node) == {node.name for node in card.inspection.nodes if node.weighted}
    assert all(ms >= 0 for ms in by_node.values())
    report = tmp_path / "report.json"
    report.write_bytes(msgspec.json.encode({**msgspec.to_builtins(card, enc_hook=str), "times": times}))
    for other in (card.path, path, report):
        assert layer_times.read_node_times(other) == pytest.approx(by_node)
    # Those of another build are not shown as those of this one.
    layer_times.save(path, msgspec.structs.replace(found, engine_sha256="0" * 64))
    assert layer_times.find(card) is None
    with pytest.raises(ArtifactError, match="another build of this engine"):
        layer_times.read(path, card)


def test_a_backend_without_a_profiler(built: cache_keys.FoundArtifact) -> None:
    with pytest.raises(DeviceError, match="fake has no profiler"):
        layer_times.measure(Fake(), built, np.zeros((1, 3, 32, 32), np.float32), precision="fp32", runs=1, warmup=0)


def test_the_time_of_a_fused_layer_is_shared_out(tmp_path: Path) -> None:
    nodes = [{"name": name, "kind": "Conv", "weighted": name != "r"} for name in "abr"]
    layers = [{"ms": 3.0, "layer": {"nodes": ["a", "b", "r"]}}, {"ms": 0.5, "layer": {"nodes": ["a"]}}, {"ms": 9.0}]
    path = tmp_path / "report.json"
    path.write_text(json.dumps({"inspection": {"nodes": nodes}, "times": {"layers": layers}}))
    assert layer_times.read_node_times(path) == {"a": 2.0, "b": 1.5}

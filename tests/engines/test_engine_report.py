from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge.artifacts import store
from edge.calibration import cache_keys
from edge.engines import engine_report
from edge.engines.engine_report import Island
from edge.errors import ArtifactError
from edge.model import inspection
from edge.model.inspection import Inspection, Layer, LayerTensor

Make = Callable[..., Path]
# A few layers as the inspector of TensorRT 8.6 writes them.
TRT: dict[str, Any] = {
    "Layers": [
        {"Name": "Reformatting CopyNode for Input Tensor 0 to /a", "LayerType": "Reformat", "ParameterType": "Reformat",
         "Inputs": [{"Name": "x", "Format/Datatype": "Row major linear FP32", "Dimensions": [1, 3, 8, 8]}],
         "Outputs": [{"Name": "x1", "Format/Datatype": "Row major Int8 format", "Dimensions": [1, 3, 8, 8]}]},
        {"Name": "/a + /r", "LayerType": "CaskConvolution", "ParameterType": "Convolution",
         "Inputs": [{"Name": "x1", "Format/Datatype": "Row major Int8 format"}],
         "Outputs": [{"Name": "y", "Format/Datatype": "Row major linear FP32"}],
         "Weights": {"Type": "Int8", "Count": 216}, "Bias": {"Type": "Float", "Count": 8},
         "Metadata": "[ONNX Layer: /a]\u001e[ONNX Layer: /r]", "TacticName": "sm80_xmma_fprop"},
    ],
    "Bindings": ["x", "y"],
}  # fmt: skip


@pytest.mark.parametrize("name", ["model-int8.json", "model-int8.onnx", "model-int8.layers.json"])
def test_an_engine_is_found_by_any_of_its_files(name: str, make: Make) -> None:
    found = engine_report.load(make("int8").parent / name)
    assert (found.title, found.asked, found.counts is not None) == ("model-int8", "int8", True)
    assert found.layers is not None
    assert (found.layers.weighted, found.layers.weighted_int8) == (4, 4)
    assert (found.short, found.notes) == ([], [])
    assert found.operators["Conv"] == 3
    assert found.kinds["QLinearConv"] == 3


def test_the_manifest_remembers_builds_and_memory(make: Make, tmp_path: Path) -> None:
    path = make("fp32")
    assert store.load(path, kind=cache_keys.ENGINE).info["peak_memory_mib"] > 0
    first = store.load(path, kind=cache_keys.ENGINE).info["builds"]
    (path.parent / "model-fp32.onnx").write_bytes(b"damaged")
    make("fp32")
    assert [len(first), len(store.load(path, kind=cache_keys.ENGINE).info["builds"])] == [1, 1]


def test_a_rebuild_is_added_to_the_builds(make: Make, tiny: Any, rewrite: Callable[..., None]) -> None:
    path = make("fp32")
    batch = msgspec.structs.replace(tiny.input, batch=msgspec.structs.replace(tiny.input.batch, max=4))
    make("fp32", profile=msgspec.structs.replace(tiny, input=batch))
    builds = store.load(path, kind=cache_keys.ENGINE).info["builds"]
    assert len(builds) == 2
    assert all(item["build_seconds"] >= 0 and item["at_utc"] for item in builds)
    # The newest five are kept.
    rewrite(path, builds=[{"build_seconds": number} for number in (11, 12, 13, 14, 15)])
    make("fp32")
    builds = store.load(path, kind=cache_keys.ENGINE).info["builds"]
    assert [item["build_seconds"] for item in builds[:4]] == [12, 13, 14, 15]
    assert len(builds) == 5


@pytest.mark.parametrize(("asked", "short"), [("fp16", ["fp32"]), ("int8", ["fp16", "bf16", "fp32"]), (None, [])])
def test_layers_that_fall_short_of_what_was_asked(asked: str | None, short: list[str]) -> None:
    listed = [
        Layer(name=precision, kind="Convolution", role="weighted", precision=precision, inputs=[], outputs=[], nodes=[])
        for precision in ("int8", "fp16", "bf16", "fp32")
    ]
    assert [layer.name for layer in engine_report._short(listed, asked, ())] == short


def test_what_runs_in_float_inside_of_an_int8_engine(make: Make) -> None:
    found = engine_report.load(make("int8"))
    clip = [island for island in found.islands if island.kind == "Clip"]
    assert clip == [Island(kind="Clip", precision="fp32", layers=1, reformats=2)] or clip == []
    befores = {(change.before, change.after) for change in found.changes}
    assert ("fp32", "int8") in befores
    assert ("int8", "fp32") in befores


def test_islands_and_chains() -> None:
    def at(name: str, precision: str) -> LayerTensor:
        return LayerTensor(name=name, precision=precision)

    layers = [
        Layer(name="q", kind="Q", role="reformat", inputs=[at("x", "fp32")], outputs=[at("x1", "int8")]),
        Layer(name="t", kind="T", role="reformat", inputs=[at("x1", "int8")], outputs=[at("x2", "int8")]),
        Layer(name="c", kind="Conv", role="weighted", precision="int8", inputs=[at("x2", "int8")],
              outputs=[at("y", "uint8")]),
        Layer(name="d", kind="D", role="reformat", inputs=[at("y", "uint8")], outputs=[at("y1", "fp32")]),
        Layer(name="r", kind="Relu", role="other", precision="fp32", inputs=[at("y1", "fp32")],
              outputs=[at("y2", "fp32")]),
        Layer(name="q2", kind="Q", role="reformat", inputs=[at("y2", "fp32")], outputs=[at("y3", "int8")]),
        Layer(name="fc", kind="Gemm", role="weighted", precision="fp32", why="no scale for y3",
              inputs=[at("y3", "int8")], outputs=[at("z", "fp32")]),
    ]  # fmt: skip
    looked = Inspection(format=inspection.FORMAT, source="t", nodes=[], layers=layers, ports=[])
    found = engine_report._card(
        title="t", path=Path("t"), asked="int8", manifest=None, layers=None, looked=looked, notes=[]
    )
    assert found.islands == [Island(kind="Relu", precision="fp32", layers=1, reformats=2)]
    assert found.chains == [["q", "t"]]
    assert [layer.name for layer in found.short] == ["fc"]
    # int8 -> uint8 is no change of precision.
    assert [(item.layer, item.before, item.after) for item in found.changes] == [
        ("q", "fp32", "int8"), ("d", "int8", "fp32"), ("q2", "fp32", "int8"), ("fc", "int8", "fp32"),
    ]  # fmt: skip


def test_reformats_in_a_ring_do_not_hang_it() -> None:
    ring = [
        Layer(name=str(i), kind="R", role="reformat", inputs=[LayerTensor(name=f"t{i}")],
              outputs=[LayerTensor(name=f"t{(i + 1) % 3}")])
        for i in range(3)
    ]  # fmt: skip
    ring += [
        Layer(name="in", kind="R", role="reformat", inputs=[LayerTensor(name="x")], outputs=[LayerTensor(name="t0")])
    ]
    looked = Inspection(format=inspection.FORMAT, source="t", nodes=[], layers=ring, ports=[])
    found = engine_report._card(
        title="t", path=Path("t"), asked=None, manifest=None, layers=None, looked=looked, notes=[]
    )
    assert found.chains == [["in", "0", "1", "2"]]


def test_a_file_of_trtexec(tmp_path: Path) -> None:
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(TRT))
    found = engine_report.load(path)
    assert found.counts is not None
    assert (found.counts.weighted, found.counts.reformats, found.counts.weights_bytes) == ({"int8": 1}, 1, 248)
    assert (found.manifest, found.layers, found.asked) == (None, None, None)
    assert "only the layers are known" in found.notes[0]
    assert found.inspection is not None
    assert found.inspection.layers[1].nodes == ["/a", "/r"]


def test_what_an_earlier_edge_built(make: Make, tmp_path: Path) -> None:
    path = make("int8")
    found = store.load(path, kind=cache_keys.ENGINE)
    engine = "model-int8.onnx"
    (path.parent / "model-int8.layers.json").unlink()
    store.save(
        path,
        kind=cache_keys.ENGINE,
        files={engine: (path.parent / engine).read_bytes()},
        key=found.key,
        info=found.info,
    )
    old = engine_report.load(path)
    assert (old.inspection, old.counts) == (None, None)
    assert "an earlier edge built this engine" in old.notes[0]
    assert "model-int8" in engine_report.render(old)


def test_layers_of_a_later_edge_are_left_out_and_said(make: Make, rewrite: Callable[..., None]) -> None:
    path = make("int8")
    rewrite(path, {"model-int8.layers.json": b'{"format": 9}'})
    found = engine_report.load(path)
    assert found.inspection is None
    assert "format 9" in found.notes[0]


def test_counts_that_nobody_knows(make: Make, rewrite: Callable[..., None]) -> None:
    path = make("int8")
    rewrite(path, layers={"heavy": 4}, warnings="none", builds="many", device=3)
    found = engine_report.load(path)
    assert found.layers is None
    assert "in the manifest have an unknown format" in found.notes[0]
    engine_report.render(found)


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("name", ["model-int8.json", "model-int8.onnx", "model-int8.layers.json"])
def test_a_damaged_file_is_refused(name: str, make: Make) -> None:
    path = make("int8")
    flipped(path.parent / name)
    with pytest.raises(ArtifactError):
        engine_report.load(path)


def test_a_missing_layers_file_is_refused(make: Make) -> None:
    path = make("int8")
    (path.parent / "model-int8.layers.json").unlink()
    with pytest.raises(ArtifactError, match="the manifest lists this file, but it is missing"):
        engine_report.load(path)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("model.plan", b"ftrt....", "the engine has no manifest"),
        ("model.json", b"", "neither an engine's manifest nor"),
        ("model.json", b"[1, 2]", "neither an engine's manifest nor"),
        ("model.json", b'{"Layers": ["names", "only"]}', "nor a detailed list of layers"),
        ("model.json", b'{"some": "thing"}', "nor a detailed list of layers"),
        ("model.json", b'{"self_sha256": "x"}', "not a manifest"),
        ("model.layers.json", b"\x00\x01", "neither an engine's manifest nor"),
    ],
)
def test_what_is_no_engine(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=words) as caught:
        engine_report.load(path)
    assert caught.value.exit_code == 7


def test_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="there is no such engine") as caught:
        engine_report.load(tmp_path / "model.plan")
    assert caught.value.hint == "edge engine list"


def test_the_manifest_of_another_engine(make: Make) -> None:
    path = make("int8")
    other = path.with_name("model-int8.plan")
    other.write_bytes(b"another")
    with pytest.raises(ArtifactError, match=r"belongs to model-int8\.onnx"):
        engine_report.load(other)


def test_a_table_is_no_engine(make: Make, tmp_path: Path) -> None:
    make("int8")
    with pytest.raises(ArtifactError, match="not of engine"):
        engine_report.load(tmp_path / "cache/model/entropy2.json")

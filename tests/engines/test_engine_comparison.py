from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from edge.engines import engine_comparison, engine_report

Make = Callable[..., Path]


def test_fp32_against_int8(make: Make) -> None:
    found = engine_comparison.compare(engine_report.load(make("fp32")), engine_report.load(make("int8")))
    assert {item.field for item in found.built_from} >= {"precision", "table", "int8_route"}
    assert found.weighted == {"fp32 -> int8": 4}
    weighted = [change.node for change in found.changes if change.weighted]
    assert weighted == ["conv_0", "conv_2", "conv_4", "gemm_9"]
    assert not found.is_equal
    # A quantized Clip is alone; in FP32 it is part of the convolution.
    assert ["conv_0", "clip_1"] in found.only_a
    figures = {pair.name: pair for pair in found.figures}
    assert figures["weighted layers in INT8"].a == 0
    assert figures["weighted layers in INT8"].b == 4
    assert (figures["weights"].b or 0) < (figures["weights"].a or 0)
    # Quantizers are in one of them by design, and no change.
    assert not any("Linear" in change.kind for change in found.changes)


def test_an_engine_and_itself(make: Make) -> None:
    one = engine_report.load(make("int8"))
    found = engine_comparison.compare(one, one)
    assert found.is_equal
    assert (found.changes, found.notes, found.same > 0) == ([], [], True)


def test_layers_without_manifests_and_of_different_models(tmp_path: Path, make: Make) -> None:
    listed = {"Layers": [{"Name": "/z", "LayerType": "CaskConvolution", "Metadata": "[ONNX Layer: /z]"}]}
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(listed))
    found = engine_comparison.compare(engine_report.load(path), engine_report.load(make("int8")))
    assert found.built_from == []
    assert found.notes == ["the engines have no ONNX node in common: they are from different models"]


def test_two_versions_of_tensorrt(tmp_path: Path) -> None:
    """The same nodes, cut differently; the second one takes a layer out of INT8."""

    def layer(nodes: list[str], kind: str) -> dict[str, object]:
        named = "\x1f".join(f"[ONNX Layer: {name}]" for name in nodes)
        return {"Name": "+".join(nodes), "LayerType": "CaskConvolution", "Metadata": named,
                "Inputs": [{"Name": "x", "Format/Datatype": kind}]}  # fmt: skip

    old = [layer(["/a", "/relu"], "Int8"), layer(["/b", "/add"], "Int8")]
    new = [layer(["/a", "/relu", "/pool"], "Int8"), layer(["/b"], "Half"), layer(["/add"], "Half")]
    for name, listed in (("old", old), ("new", new)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"Layers": listed}))
    found = engine_comparison.compare(
        engine_report.load(tmp_path / "old.json"), engine_report.load(tmp_path / "new.json")
    )
    assert {change.node: change.precision for change in found.changes} == {
        "/b": ("int8", "fp16"), "/add": ("int8", "fp16"),
    }  # fmt: skip
    # /pool is in one of the two only, so the first layer counts as the same.
    assert (found.only_a, found.only_b, found.same) == ([["/b", "/add"]], [], 2)


def test_a_copy_that_names_the_node_it_serves_is_not_its_layer(tmp_path: Path) -> None:
    metadata = "[ONNX Layer: /a]"
    copy = {"Name": "copy", "LayerType": "Reformat", "Metadata": metadata}
    layer = {"Name": "/a", "LayerType": "CaskConvolution", "Metadata": metadata, "Weights": {"Type": "Int8"}}
    for name, listed in (("with", [copy, layer]), ("without", [layer])):
        (tmp_path / f"{name}.json").write_text(json.dumps({"Layers": listed}))
    found = engine_comparison.compare(*(engine_report.load(tmp_path / f"{name}.json") for name in ("with", "without")))
    assert (found.changes, found.same) == ([], 1)


def test_one_that_nobody_could_look_into(make: Make, tmp_path: Path) -> None:
    one = engine_report.load(make("int8"))
    path = tmp_path / "x.json"
    content = {"format": 1, "source": "TensorRT", "nodes": [], "layers": [], "ports": [], "absent": "there is no GPU"}
    path.write_text(json.dumps(content))
    found = engine_comparison.compare(one, engine_report.load(path))
    assert found.notes == ["x.json: there is no GPU"]

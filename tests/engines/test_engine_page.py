from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from edge.engines import engine_comparison, engine_report
from edge.model.inspection import LayerTensor
from tests.support.html_reader import Reader

Make = Callable[..., Path]
NASTY = "<script>alert('x')</script> & \"more\" {{ 7 * 7 }}"


def test_the_card_of_an_int8_engine(make: Make) -> None:
    read = Reader(engine_report.render(engine_report.load(make("int8"))))
    for words in (
        "INT8 delivered",
        "4 of 4",
        "Where precision changes",
        "All layers",
        "conv_0",
        "QLinearConv",
        "nodes",
    ):
        assert words.lower() in read.text.lower(), words
    bars = [value for name, value in read.attributes if name == "title"]
    assert len(bars) == len(engine_report.load(make("int8")).inspection.layers)  # type: ignore[union-attr]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_it_is_one_file_without_a_script(precision: str, make: Make) -> None:
    text = engine_report.render(engine_report.load(make(precision)))
    read = Reader(text)
    assert "script" not in read.tags
    assert "link" not in read.tags
    assert not [value for name, value in read.attributes if name in {"src", "href", "onclick"}]
    assert not re.search(r"https?://|url\(|@import", text)


def test_everything_is_escaped(tmp_path: Path) -> None:
    path = tmp_path / "nasty.json"
    layer = {
        "Name": NASTY, "LayerType": NASTY, "TacticName": NASTY, "Metadata": f"[ONNX Layer: {NASTY}]",
        "Inputs": [{"Name": NASTY, "Format/Datatype": f"{NASTY} FP32", "Dimensions": [NASTY, 3]}],
        "Outputs": [{"Name": "y", "Format/Datatype": "Int8"}],
    }  # fmt: skip
    path.write_text(json.dumps({"Layers": [layer], "Bindings": [NASTY]}))
    text = engine_report.render(engine_report.load(path))
    read = Reader(text)
    assert "script" not in read.tags
    assert "<script" not in text
    assert read.text.count(NASTY) >= 4
    assert "49" not in read.text


def test_a_manifest_is_escaped_too(make: Make, rewrite: Callable[..., None]) -> None:
    path = make("fp32")
    rewrite(path, warnings=[NASTY], why=NASTY, device={"product": NASTY}, **{"odd key <b>": {"a": [NASTY, None]}})
    read = Reader(engine_report.render(engine_report.load(path)))
    assert "script" not in read.tags
    assert "odd key <b>" in read.text
    assert read.text.count(NASTY) >= 3


def test_two_engines(make: Make, tmp_path: Path) -> None:
    one, other = engine_report.load(make("fp32")), engine_report.load(make("int8"))
    text = engine_report.render_difference(one, other, engine_comparison.compare(one, other))
    read = Reader(text)
    assert "script" not in read.tags
    assert not re.search(r"https?://|url\(|@import", text)
    for words in ("FP32 → INT8", "Fused in one and not in the other", "conv_0 + clip_1", "In figures", "B / A"):
        assert words in read.text, words
    same = Reader(engine_report.render_difference(one, one, engine_comparison.compare(one, one)))
    assert "No difference in what they are made of" in same.text


def test_two_nasty_ones(tmp_path: Path) -> None:
    shown = []
    for name, kind in (("a", "Int8"), ("b", NASTY)):
        layer = {
            "Name": NASTY, "LayerType": f"{NASTY} {kind}", "Metadata": f"[ONNX Layer: {NASTY}]",
            "Inputs": [{"Name": "x", "Format/Datatype": kind}],
        }  # fmt: skip
        path = tmp_path / f"{name} <b>.json"
        path.write_text(json.dumps({"Layers": [layer]}))
        shown.append(engine_report.load(path))
    text = engine_report.render_difference(*shown, engine_comparison.compare(*shown))
    assert "script" not in Reader(text).tags
    assert "<b>" not in text


def test_no_layers_at_all(tmp_path: Path) -> None:
    path = tmp_path / "none.json"
    content = {"format": 1, "source": "TensorRT", "nodes": [["a", "Conv", True]], "layers": [], "ports": []}
    content["nodes"] = [{"name": "a", "kind": "Conv", "weighted": True}]
    path.write_text(json.dumps({**content, "absent": "there is no GPU"}))
    read = Reader(engine_report.render(engine_report.load(path)))
    assert "there is no GPU" in read.text
    assert "All layers" not in read.text


@pytest.mark.parametrize(
    ("count", "words"),
    [(None, "unknown"), (0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (300 << 20, "300 MiB"), (3 << 30, "3.00 GiB")],
)
def test_sizes(count: int | None, words: str) -> None:
    assert engine_report.size(count) == words


def test_a_tensor_in_words() -> None:
    layout = "Thirty-two wide channel vectorized row major Int8 format"
    assert (
        engine_report.tensor(LayerTensor(name="x", precision="int8", layout=layout, shape=(1, 64, "h")))
        == "int8, CHW32, 1×64×h"
    )
    assert engine_report.tensor(LayerTensor(name="x", layout="kHWC8")) == "kHWC8"
    assert engine_report.tensor(LayerTensor(name="x")) == ""


def test_values_in_words() -> None:
    assert engine_report.words({"a": 1, "b": [2, None], "c": []}) == "a: 1, b: 2, –, c: –"
    assert engine_report.short("ab" * 32) == "abababababab…"
    assert engine_report.short(False) == "False"

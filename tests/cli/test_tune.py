"""``edge tune`` as it is typed, with a small network whose third layer is fragile."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper

Edge = Callable[..., Any]
Place = Callable[..., Path]
COMMAND = ("tune", "--profile", "tiny", "--images", "painted")
N = 24


def save_network(path: Path, *, weighted: bool = True) -> None:
    """Six 1×1 convolutions; the input of ``fragile`` has one channel that is 300 times as large as the others."""
    rng = np.random.default_rng(3)
    sizes = [3, 16, 16, 16, 16, 16, 10]
    weights = {
        f"w{i}": rng.normal(0, (2.0 / given) ** 0.5, (made, given, 1, 1))
        for i, (given, made) in enumerate(itertools.pairwise(sizes))
    }
    weights["w1"][4] *= 300.0
    weights["w2"][:, 4] /= 300.0
    nodes, given = [], "input"
    for index in range(6):
        name = "fragile" if index == 2 else f"conv{index}"
        nodes.append(helper.make_node("Conv", [given, f"w{index}"], [f"c{index}"], name))
        given = f"c{index}"
        if index in {0, 3, 4}:
            nodes.append(helper.make_node("Relu", [given], [f"r{index}"], f"relu{index}"))
            given = f"r{index}"
    if not weighted:
        nodes, weights = [helper.make_node("Relu", ["input"], ["c5"], "relu")], {}
    nodes += [
        helper.make_node("GlobalAveragePool", ["c5"], ["mean"], "pool"),
        helper.make_node("Flatten", ["mean"], ["logits"], "flat"),
    ]
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 3, 32, 32])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10 if weighted else 3])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def set_section(folder: Path, section: str) -> None:
    """Give the profile another section ``quantization``."""
    path = folder / "profiles" / "tiny.yaml"
    content = yaml.safe_load(path.read_text()) | {"quantization": yaml.safe_load(section)}
    path.write_text(yaml.safe_dump(content))


@pytest.fixture
def painted(place: Place) -> Path:
    """24 noisy pictures, and the network above."""
    folder = place(1)
    save_network(folder / "profiles" / "model.onnx")
    set_section(folder, "{recipe: auto}")
    (folder / "painted").mkdir()
    rng = np.random.default_rng(0)
    for index in range(N):
        picture = rng.integers(0, 256, 3) + rng.normal(0, 40, (40, 48, 3))
        cv2.imwrite(str(folder / "painted" / f"{index:02d}.png"), np.clip(picture, 0, 255).astype(np.uint8))
    return folder


def test_the_fragile_layer_goes_to_float_and_build_takes_the_recipe(edge: Edge, painted: Path) -> None:
    ended = edge(*COMMAND, "--max-float", "1", "--json", "--html", "page.html")
    assert ended.code == 0, ended.err
    record = json.loads(ended.out)
    assert record["weighted_layers"] == 6
    assert record["layers"][0]["layer"] == "fragile"
    assert "outliers" in record["layers"][0]["reason"]
    assert [layer["layer"] for layer in record["layers"] if layer["is_float"]] == ["fragile"]
    curve = {point["float_layers"]: point for point in record["curve"]}
    assert curve[1]["sqnr_db"] > curve[0]["sqnr_db"] + 6
    assert abs(curve[1]["predicted_db"] - curve[1]["sqnr_db"]) < 4
    assert "fragile" in (painted / "page.html").read_text()
    built = edge("build", "--profile", "tiny", "--json")
    assert built.code == 0, built.err
    outcome = json.loads(built.out)
    assert outcome["accuracy"]["sqnr_db"] == pytest.approx(curve[1]["sqnr_db"])
    scores = json.loads(edge("eval", "--profile", "tiny", "--images", "painted", "--json").out)
    assert (scores["float_layers"], scores["weighted_layers"]) == (1, 6)
    assert scores["logit_sqnr_db"] == pytest.approx(curve[1]["sqnr_db"], abs=1.0)
    again = edge("calibrate", "--profile", "tiny", "--images", "painted", "--json")
    assert json.loads(again.out)["work"] == "unchanged"


def test_the_plain_output_shows_curve_layers_and_reasons(edge: Edge, painted: Path) -> None:
    ended = edge(*COMMAND, "--max-float", "20%")
    assert ended.code == 0, ended.err
    for words in ("float layers", "predicted", "SQNR", "fragile", "outliers: the largest input is", "table: "):
        assert words in ended.out


def report_of(*times: tuple[str, float]) -> str:
    """An engine report in JSON with the time of each layer, which is one node of the same name."""
    nodes = [{"name": name, "kind": "Conv", "weighted": True} for name, _ in times]
    layers = [{"name": name, "ms": ms, "share": 0.1, "layer": {"nodes": [name]}} for name, ms in times]
    return json.dumps({"title": "engine", "inspection": {"nodes": nodes}, "times": {"layers": layers}})


def test_times_of_an_engine_report_replace_operations(edge: Edge, painted: Path) -> None:
    (painted / "report.json").write_text(report_of(("fragile", 0.25), ("conv0", 0.5)))
    ended = edge(*COMMAND, "--max-float", "1", "--times", "report.json", "--html", "t.html")
    assert ended.code == 0, ended.err
    assert "float, ms" in ended.out
    assert "0.250" in ended.out
    assert "time of the layers in float" in (painted / "t.html").read_text()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not an engine report in JSON"),
        (json.dumps({"inspection": {"nodes": []}, "times": None}), "this engine report has no times"),
        (report_of(("other", 1.0)), "the times belong to another network"),
    ],
)
def test_times_that_cannot_be_used(content: str, words: str, edge: Edge, painted: Path) -> None:
    (painted / "report.json").write_text(content)
    ended = edge(*COMMAND, "--times", "report.json")
    assert (ended.code, words in ended.err, "edge engine show" in ended.err) == (7, True, True), ended.err


def test_without_float_layers_the_stack_alone_is_used(edge: Edge, painted: Path) -> None:
    record = json.loads(edge(*COMMAND, "--max-float", "0%", "--json").out)
    assert record["chosen"] == 0
    assert not any(layer["is_float"] for layer in record["layers"])


def test_a_target_takes_the_fewest_layers_that_reach_it(edge: Edge, painted: Path) -> None:
    base = json.loads(edge(*COMMAND, "--max-float", "0%", "--json").out)["curve"][0]["sqnr_db"]
    record = json.loads(edge(*COMMAND, "--max-float", "50%", "--target-sqnr", f"{base + 3:.2f}", "--json").out)
    assert (record["chosen"], record["reached"]) == (1, True)
    easy = json.loads(edge(*COMMAND, "--max-float", "50%", "--target-sqnr", f"{base - 1:.2f}", "--json").out)
    assert easy["chosen"] == 0


def test_a_target_that_is_missed_is_exit_code_1_with_the_best_figure(edge: Edge, painted: Path) -> None:
    ended = edge(*COMMAND, "--max-float", "1", "--target-sqnr", "150")
    assert ended.code == 1
    assert "the target of 150 dB is not reached with 1 of 6 layers in float: logit SQNR" in ended.err


def test_an_interrupted_tuning_continues(edge: Edge, painted: Path) -> None:
    first = json.loads(edge(*COMMAND, "--json").out)
    [kept] = (painted / "calib_cache").rglob("*.tune.json")
    content = json.loads(kept.read_text())
    content["noises"].pop("conv5")
    content["scores"] = {}
    kept.write_text(json.dumps(content))
    ended = edge(*COMMAND, "--json")
    assert "continuing an earlier tuning: 5 layers are ranked" in ended.err
    again = json.loads(ended.out)
    assert [layer["layer"] for layer in again["layers"]] == [layer["layer"] for layer in first["layers"]]
    assert again["curve"] == first["curve"]


def test_measurements_that_cannot_be_read_are_made_again(edge: Edge, painted: Path) -> None:
    assert edge(*COMMAND).code == 0
    [kept] = (painted / "calib_cache").rglob("*.tune.json")
    kept.write_bytes(kept.read_bytes()[:-40])
    ended = edge(*COMMAND)
    assert ended.code == 0
    assert "cannot be read and are made again" in ended.err


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--max-float", "110%"), 2, "'110%' is not a share of the layers"),
        (("--max-float", "-1"), 2, "--max-float"),
        (("--max-float", "some"), 2, "'some' is not a share of the layers"),
        (("--max-float", "nan%"), 2, "'nan%' is not a share of the layers"),
        (("--target-agreement", "101"), 2, "--target-agreement"),
        (("--images", "nowhere"), 6, "nowhere"),
        (("--html", "painted"), 9, "cannot be written"),
        (("--profile", "tinyy"), 3, "did you mean 'tiny'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input(options: tuple[str, ...], code: int, words: str, edge: Edge, painted: Path) -> None:
    ended = edge(*COMMAND, *options)
    assert words in ended.err
    assert (ended.code, ended.out) == (code, "")


def test_a_network_without_weighted_layers_is_refused(edge: Edge, painted: Path) -> None:
    save_network(painted / "profiles" / "model.onnx", weighted=False)
    ended = edge(*COMMAND)
    assert ended.code == 5
    assert "no layer of this network has constant weights" in ended.err


@pytest.mark.parametrize(
    ("section", "code", "words"),
    [
        ("{exclude: [fragle]}", 3, "did you mean"),
        ("{recipe: none}", 3, "edge tune writes the recipe of recipe: auto"),
        ("{exclude: ['*']}", 0, ""),
    ],
)
def test_quantization_sections(section: str, code: int, words: str, edge: Edge, painted: Path) -> None:
    set_section(painted, section)
    ended = edge(*COMMAND)
    assert "Traceback" not in ended.err
    assert words in ended.err
    assert ended.code == code, ended.err


def test_one_picture_is_enough(edge: Edge, painted: Path) -> None:
    for path in sorted((painted / "painted").iterdir())[1:]:
        path.unlink()
    ended = edge(*COMMAND, "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["pictures"] == 1

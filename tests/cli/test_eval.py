"""``edge eval`` as it is typed, with a network whose answers are known: it names the colour of a picture."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge.artifacts import store
from edge.calibration import cache_keys
from edge.config import profiles
from edge.quantization import calibration_table
from edge.quantization.calibration_table import TrtVersion
from tests.support import calibrated

Edge = Callable[..., Any]
Place = Callable[..., Path]
# Red, green, blue of the ten classes: the corners of a cube, and two points inside of it.
COLOURS = [*itertools.product((32, 224), repeat=3), (127, 127, 127), (127, 32, 127)]
COMMAND = ("eval", "--profile", "tiny", "--images", "painted", "--labels", "labels.csv")
N = 60


@pytest.fixture
def painted(place: Place) -> Callable[..., Path]:
    """60 pictures of the ten colours, and the engines of a network that tells which one is nearest."""

    def make(*, labels: Callable[[int], int] = lambda label: label) -> Path:
        folder = place(1)
        save_network(folder / "profiles" / "model.onnx")
        (folder / "painted").mkdir()
        for index, data in enumerate(pngs()):
            (folder / "painted" / f"{index:02d}.png").write_bytes(data)
        write_labels(folder, labels)
        calibrated.built(
            profiles.read_profile(folder / "profiles" / "tiny.yaml"), folder / "painted",
            cache=folder / "calib_cache", engines=folder / "engines",
        )  # fmt: skip
        return folder

    return make


@functools.cache
def pngs() -> list[bytes]:
    rng = np.random.default_rng(0)
    colours = [np.array(COLOURS[index % 10][::-1]) + rng.integers(-20, 21, (40, 48, 3)) for index in range(N)]
    return [bytes(cv2.imencode(".png", np.clip(colour, 0, 255).astype(np.uint8))[1]) for colour in colours]


def save_network(path: Path) -> None:
    """Logits 2·x·c - c·c, largest for the colour c that is nearest to the picture's mean x."""
    centres = (np.array(COLOURS, np.float32) - 127) / 64
    weights = {"w": 2 * centres.T, "b": -np.square(centres).sum(axis=1)}
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["input"], ["mean"]),
            helper.make_node("Flatten", ["mean"], ["flat"]),
            helper.make_node("Gemm", ["flat", "w", "b"], ["logits"]),
        ],
        "colours",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 3, 32, 32])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(np.ascontiguousarray(value, np.float32), name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def write_labels(folder: Path, labels: Callable[[int], int]) -> None:
    rows = [f"{index:02d}.png,{labels(index % 10)}" for index in range(N)]
    (folder / "labels.csv").write_text("\n".join(["file,class_index", *rows, ""]))


def test_json_holds_the_shares_in_percent_with_intervals(edge: Edge, painted: Place) -> None:
    painted()
    ended = edge(*COMMAND, "--against", "fp32", "--json")
    assert ended.code == 0
    scores = json.loads(ended.out)
    assert (scores["n"], scores["precision"], scores["against"]) == (N, "int8", "fp32")
    assert (scores["top1"], scores["top5"], scores["agreement"]) == (100.0, 100.0, 100.0)
    for share in ("top1", "top5", "agreement"):
        low, high = scores[f"{share}_interval"]
        # Wilson's interval for 60 of 60.
        assert (low, high) == pytest.approx((93.98, 100.0), abs=0.01)
    assert scores["top1_difference"] == 0.0
    assert scores["logit_sqnr_db"] > 20.0
    assert "warning" not in scores
    assert "int8: 60/60 images" in ended.err
    assert "fp32: 60/60 images" in ended.err


def test_the_plain_output_is_a_table(edge: Edge, painted: Place) -> None:
    painted()
    ended = edge(*COMMAND, "--against", "fp32")
    assert ended.code == 0
    for words in ("n = 60", "top-1", "top-5", "agreement", "100.00 %  [93.98, 100.00]", "logit SQNR", " dB"):
        assert words in ended.out
    assert "\x1b" not in ended.out + ended.err


def test_fp32_alone_is_not_compared_and_int8_always_is(edge: Edge, painted: Place) -> None:
    painted()
    scores = json.loads(edge(*COMMAND, "--json", "--precision", "fp32").out)
    assert scores["precision"] == "fp32"
    assert scores.keys().isdisjoint({"against", "agreement", "agreement_interval", "top1_difference"})
    assert "agreement" not in edge(*COMMAND, "--precision", "fp32").out
    assert "agreement" in edge(*COMMAND).out


def test_wrong_labels_make_wrong_shares(edge: Edge, painted: Place) -> None:
    """Three of the ten classes are labelled as the one before: top-1 falls by 30 points, agreement does not."""
    painted(labels=lambda label: label - 1 if label in {3, 5, 7} else label)
    scores = json.loads(edge(*COMMAND, "--against", "fp32", "--json").out)
    assert (scores["top1"], scores["agreement"]) == (70.0, 100.0)


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_label_map_that_is_off_by_one_is_said(shift: int, edge: Edge, painted: Place) -> None:
    folder = painted()
    # The class at the end would be outside of the network's.
    rows = [f"{i:02d}.png,{i % 10 + shift}" for i in range(N) if 0 <= i % 10 + shift < 10]
    for i in range(N):
        if not 0 <= i % 10 + shift < 10:
            (folder / "painted" / f"{i:02d}.png").unlink()
    (folder / "labels.csv").write_text("\n".join(["file,class_index", *rows, ""]))
    ended = edge(*COMMAND, "--json")
    assert ended.code == 0
    assert json.loads(ended.out)["top1"] == 0.0
    assert "off by one" in json.loads(ended.out)["warning"]
    assert f"warning: top-1 is 0.0% with these labels and 100.0% with every label {-shift:+d}" in ended.err


def test_labels_that_count_from_one_are_said(edge: Edge, painted: Place) -> None:
    painted(labels=lambda label: label + 1)
    ended = edge(*COMMAND)
    assert ended.code == 6
    assert "labels.csv:11: class index 10 is out of range" in ended.err
    assert "use --label-offset -1" in ended.err
    assert edge(*COMMAND, "--label-offset", "-1").code == 0


def test_agreement_with_fp32_needs_no_labels(edge: Edge, painted: Place) -> None:
    painted()
    ended = edge("eval", "--profile", "tiny", "--images", "painted", "--against", "fp32", "--json")
    assert ended.code == 0
    found = json.loads(ended.out)
    assert found["n"] == N
    assert found["agreement"] > 50
    assert "top1" not in found
    text = edge("eval", "--profile", "tiny", "--images", "painted", "--against", "fp32").out
    assert "agreement" in text
    assert "top-1" not in text


@pytest.mark.parametrize("options", [("--limit", "10"), ("--threads", "1", "--limit", "10")])
def test_limit(options: tuple[str, ...], edge: Edge, painted: Place) -> None:
    painted()
    assert json.loads(edge(*COMMAND, "--json", *options).out)["n"] == 10


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "the first line must name a column of images"),
        ("file,class_index\n", "labels.csv: the label file has only a header"),
        ("name,number\n00.png,1\n", "labels.csv:1: the first line must name a column of images"),
        ("file,class_index\n00.png,zero\n", "labels.csv:2: no class is called 'zero'"),
        ("file,class_index\n00.png,1\n00.png,2\n", "labels.csv:3: 00.png is class 2 here and class 1 on line 2"),
        ("file,class_index\n00.png,1\n", "59 of 60 images have no label"),
    ],
    ids=["empty", "a header alone", "other columns", "no number", "two labels", "pictures without"],
)
def test_unusable_labels(content: str, words: str, edge: Edge, painted: Place) -> None:
    folder = painted()
    (folder / "labels.csv").write_text(content)
    ended = edge(*COMMAND)
    assert (ended.code, ended.out) == (6, "")
    assert words in ended.err


def test_a_broken_picture_is_an_error(edge: Edge, painted: Place) -> None:
    folder = painted()
    (folder / "painted" / "07.png").write_bytes((folder / "painted" / "07.png").read_bytes()[:-20])
    ended = edge(*COMMAND)
    assert (ended.code, ended.out) == (6, "")
    assert "error: painted/07.png: the image is truncated" in ended.err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--images", "painted", "--precision", "fp32"), 2, "60 of 60 images have no label"),
        (("--images", "painted", "--min-top1", "50"), 2, "--min-top1 needs labels"),
        (("--images", "painted", "--labels", "labels.csv", "--min-top1", "101"), 2, "--min-top1"),
        (("--images", "painted", "--labels", "labels.csv", "--max-drop", "-1"), 2, "--max-drop"),
        (("--labels", "labels.csv"), 2, "--images DIR --labels labels.csv"),
        (("--images", "painted", "--labels", "none.csv"), 6, "none.csv: there is no such file"),
        (("--images", "none", "--labels", "labels.csv"), 6, "this file or folder does not exist"),
        (("--images", "painted", "--labels", "labels.csv", "--against", "fp16"), 2, "cannot compare with 'fp16'"),
        (("--images", "painted", "--labels", "labels.csv", "--engine-dir", "x"), 7, "no int8 engine for tiny"),
    ],
    ids=[
        "no labels",
        "top-1 without",
        "above 100 %",
        "below 0",
        "no images",
        "labels not there",
        "pictures not there",
        "another precision",
        "no engine",
    ],
)
def test_a_wrong_command(arguments: tuple[str, ...], code: int, words: str, edge: Edge, painted: Place) -> None:
    painted()
    ended = edge("eval", "--profile", "tiny", *arguments)
    assert (ended.code, ended.out) == (code, "")
    assert words in ended.err


def test_a_damaged_engine_is_refused(edge: Edge, painted: Place) -> None:
    folder = painted()
    engine = folder / "engines" / "tiny" / "model-int8.onnx"
    engine.write_bytes(engine.read_bytes()[:-3])
    ended = edge(*COMMAND)
    assert (ended.code, ended.out) == (7, "")
    assert "model-int8.onnx: " in ended.err


def test_agreement_needs_no_labels(edge: Edge, painted: Place) -> None:
    painted()
    ended = edge("eval", "--profile", "tiny", "--images", "painted", "--against", "fp32", "--json")
    assert ended.code == 0, ended.err
    scores = json.loads(ended.out)
    assert (scores["n"], scores["agreement"], scores["judged"]) == (N, 100.0, "TensorRT form, float32 arithmetic")
    assert scores["logit_sqnr_db"] > 20.0
    assert scores.keys().isdisjoint({"top1", "top5", "top1_difference"})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--min-top1", "70.5"), "top-1 is 70.0 % [57.5, 80.1], below the limit of 70.5 %"),
        (("--min-sqnr", "90"), "dB, below the limit of 90 dB"),
    ],
)
def test_a_missed_limit_is_exit_code_1_with_figure_interval_and_limit(
    options: tuple[str, ...], words: str, edge: Edge, painted: Place
) -> None:
    painted(labels=lambda label: label - 1 if label in {3, 5, 7} else label)
    ended = edge(*COMMAND, *options)
    assert ended.code == 1
    assert words in ended.err
    assert "edge tune --profile tiny" in ended.err
    assert "top-1" in ended.out


def test_limits_that_are_kept_say_nothing(edge: Edge, painted: Place) -> None:
    painted()
    limits = ("--min-top1", "99", "--min-agreement", "98", "--max-drop", "0.5", "--min-sqnr", "15")
    ended = edge(*COMMAND, *limits)
    assert (ended.code, "warning" in ended.err) == (0, False)


def test_limits_stand_in_the_profile(edge: Edge, painted: Place) -> None:
    folder = painted()
    path = folder / "profiles" / "tiny.yaml"
    path.write_text(path.read_text() + "quality: {min_sqnr: 90}\n")
    assert edge(*COMMAND).code == 1
    assert edge(*COMMAND, "--min-sqnr", "10").code == 0


def damage(folder: Path, edge: Edge, factor: float) -> None:
    """Scales of activations times ``factor``, in the table and its engine."""
    (table,) = (folder / "calib_cache").rglob("*.table")
    found = calibration_table.parse(table.read_bytes())
    ranges = {name: factor * found.range(name) for name in found.names}
    changed = calibration_table.from_ranges(ranges, algorithm="entropy2", trt_version=TrtVersion(10, 3, 0))
    manifest = store.load(cache_keys.manifest_path(table), kind=cache_keys.TABLE)
    store.save(
        cache_keys.manifest_path(table), kind=cache_keys.TABLE,
        files={table.name: calibration_table.write(changed)}, key=manifest.key, info=manifest.info,
    )  # fmt: skip
    # The gate of the build is not what these tests are about.
    path = folder / "profiles" / "tiny.yaml"
    text = path.read_text()
    path.write_text(text + "quality: {collapse: allow}\n")
    assert edge("build", "--profile", "tiny", "--precision", "int8").code == 0
    path.write_text(text)


def test_collapse_is_an_error_unless_allowed(edge: Edge, painted: Place) -> None:
    folder = painted()
    damage(folder, edge, 0.05)
    ended = edge(*COMMAND)
    assert ended.code == 1
    assert "INT8 accuracy has collapsed: logit SQNR is" in ended.err
    assert "(limit 6 dB)" in ended.err
    path = folder / "profiles" / "tiny.yaml"
    path.write_text(path.read_text() + "quality: {collapse: allow}\n")
    allowed = edge(*COMMAND)
    assert allowed.code == 0
    assert "warning: INT8 accuracy has collapsed" in allowed.err


def test_a_tensorrt_profile_is_judged_on_a_host_by_its_table(edge: Edge, painted: Place) -> None:
    if importlib.util.find_spec("tensorrt"):
        pytest.skip("this machine has TensorRT")
    folder = painted()
    path = folder / "profiles" / "tiny.yaml"
    text = path.read_text()
    text = text.replace("backend: onnxruntime", "backend: tensorrt").replace("family: host", "family: agx-orin")
    path.write_text(text)
    assert "tensorrt" in text
    ended = edge(*COMMAND)
    assert ended.code == 0, ended.err
    assert "evaluating the TensorRT form of the table" in ended.err
    assert "100.00 %" in ended.out

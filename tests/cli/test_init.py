"""``edge init`` as it is typed: what it sees in a model and in pictures, and that its profile works."""

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
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edge.config.profiles import Profile, read_profile

Edge = Callable[..., Any]
# The corners of a cube in red, green and blue; their names say so.
COLOURS = list(itertools.product((32, 224), repeat=3))
NAMES = ["".join("rgb"[i] if value > 127 else "-" for i, value in enumerate(colour)) for colour in COLOURS]


def save_model(
    path: Path,
    *,
    size: int | str = 32,
    batch: int | str = "N",
    metadata: dict[str, str] | None = None,
    weights: NDArray[Any] | None = None,
) -> Path:
    """The nearest corner by the picture's mean, trained on (x - 127.5) / 127.5 in RGB, or other ``weights``, 3×8."""
    centres = (np.array(COLOURS, np.float32) - 127.5) / 127.5
    constants = {"w": 4 * centres.T, "b": -2 * np.square(centres).sum(axis=1)}
    if weights is not None:
        constants = {"w": weights, "b": np.zeros(len(COLOURS))}
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["pixels"], ["mean"]),
            helper.make_node("Flatten", ["mean"], ["flat"]),
            helper.make_node("Gemm", ["flat", "w", "b"], ["logits"]),
        ],
        "corners",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [batch, 3, size, size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, len(COLOURS)])],
        [numpy_helper.from_array(np.ascontiguousarray(value, np.float32), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, metadata or {})
    onnx.save(model, str(path))
    return path


def paint(folder: Path, *, count: int = 6) -> Path:
    """A folder per corner with pictures of about that colour."""
    rng = np.random.default_rng(3)
    for name, colour in zip(NAMES, COLOURS, strict=True):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = np.array(colour[::-1]) + rng.integers(-30, 31, (40, 48, 3))
            cv2.imwrite(str(folder / name / f"{index}.png"), np.clip(pixels, 0, 255).astype(np.uint8))
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(here: Path, name: str = "model") -> Profile:
    return read_profile(here / "profiles" / f"{name}.yaml")


def test_the_profile_says_what_the_model_shows(edge: Edge, here: Path) -> None:
    save_model(here / "model.onnx")
    ended = edge("init", "--model", "model.onnx", "--family", "host")
    assert ended.code == 0
    profile = written(here)
    assert (profile.family, profile.backend, profile.model) == ("host", "onnxruntime", str(here / "model.onnx"))
    assert (profile.input.height, profile.input.width, profile.input.batch.max) == (32, 32, 8)
    assert Path(profile.labels).read_text().splitlines() == [f"class {index}" for index in range(8)]
    assert "check the class names" in ended.err
    assert "check preprocess" in ended.err
    assert edge("profile", "check", "model").code == 0


def test_pictures_in_class_folders_give_names_and_preprocessing(edge: Edge, here: Path) -> None:
    save_model(here / "model.onnx")
    paint(here / "pictures")
    (here / "names.txt").write_text("".join(f"{name}\n" for name in NAMES))
    ended = edge("init", "mine", "--model", "model.onnx", "--images", "pictures", "--labels", "names.txt", "--json")
    assert ended.code == 0
    found = json.loads(ended.out)
    assert found["preprocess"]["is_guess"] is False
    assert "labelled images" in found["preprocess"]["why"]
    assert {row["name"]: row["is_worse"] for row in found["trials"][1]["rows"]} == {"RGB": False, "BGR": True}
    profile = written(here, "mine")
    assert profile.preprocess.color == "rgb"
    assert Path(profile.labels) == here / "names.txt"
    assert edge("calibrate", "--profile", "mine", "--images", "pictures").code == 0
    assert edge("build", "--profile", "mine", "--precision", "fp32").code == 0
    measured = json.loads(
        edge("eval", "--profile", "mine", "--precision", "fp32", "--images", "pictures", "--json").out
    )
    assert measured["top1"] == 100


def test_folders_in_another_order_than_the_model_s_outputs_are_put_right(edge: Edge, here: Path) -> None:
    """Alphabetical order is a guess, and with a wrong one another preprocessing would look best."""
    save_model(here / "model.onnx")
    paint(here / "drawn")
    (here / "pictures").mkdir()
    for output, name in enumerate(NAMES):
        (here / "drawn" / name).rename(here / "pictures" / f"{7 - output} {name}")
    ended = edge("init", "mine", "--model", "model.onnx", "--images", "pictures")
    assert ended.code == 0
    assert "in the order that the model's answers fit (alphabetical order does not)" in ended.out
    names = Path(written(here, "mine").labels).read_text().splitlines()
    assert names == [f"{7 - output} {name}" for output, name in enumerate(NAMES)]
    assert written(here, "mine").preprocess.mean[0] > 100
    # Somebody writes them in alphabetical order all the same.
    Path(written(here, "mine").labels).write_text("".join(f"{name}\n" for name in sorted(names)))
    assert edge("build", "--profile", "mine", "--precision", "fp32").code == 0
    ended = edge("eval", "--profile", "mine", "--precision", "fp32", "--images", "pictures")
    assert f"with the classes in another order (it fits {', '.join(names)})" in ended.err


def test_pictures_without_labels_are_compared_by_what_the_answers_tell(edge: Edge, here: Path) -> None:
    save_model(here / "model.onnx", metadata={"names": str(dict(enumerate(NAMES)))})
    pictures = here / "flat"
    pictures.mkdir()
    for path in paint(here / "pictures").rglob("*.png"):
        path.rename(pictures / f"{path.parent.name}{path.name}")
    found = json.loads(edge("init", "--model", "model.onnx", "--images", "flat", "--json").out)
    assert found["names"] == {"count": 8, "source": "the model's metadata", "guess": False}
    assert not any(trial["labelled"] for trial in found["trials"])
    assert found["trials"][0]["rows"][0]["top1"] is None


def test_folders_and_label_files_name_the_classes(edge: Edge, here: Path) -> None:
    save_model(here / "model.onnx")
    paint(here / "pictures", count=4)
    found = json.loads(edge("init", "--model", "model.onnx", "--images", "pictures", "--json").out)
    # Four pictures of each class tell that alphabetical order is the model's.
    assert (found["names"]["guess"], "which the model's answers fit" in found["names"]["source"]) == (False, True)
    assert Path(written(here).labels).read_text().splitlines() == sorted(NAMES)
    rows = "".join(f"{name}/{index}.png,{name}\n" for name in NAMES for index in range(4))
    (here / "labels.csv").write_text(f"path,label\n{rows}")
    arguments = ("init", "two", "--model", "model.onnx", "--images", "pictures", "--labels", "labels.csv", "--json")
    assert json.loads(edge(*arguments).out)["trials"][0]["labelled"]


def test_size_from_metadata_and_a_fixed_batch(edge: Edge, here: Path) -> None:
    save_model(here / "model.onnx", size="S", batch=1, metadata={"imgsz": "[48, 64]", "author": "Ultralytics"})
    found = json.loads(edge("init", "--model", "model.onnx", "--json").out)
    assert (found["model"]["height"], found["model"]["width"], found["model"]["batch"]) == (48, 64, 1)
    profile = written(here)
    assert (profile.input.batch.min, profile.input.batch.max) == (1, 1)
    assert (profile.preprocess.mean, profile.preprocess.std) == ((0, 0, 0), (255, 255, 255))


def test_preprocessing_that_edge_export_wrote_is_taken(edge: Edge, here: Path) -> None:
    spec = {"fit": "squash", "resize": 40, "interpolation": "bicubic", "mean": [1, 2, 3], "std": [4, 5, 6]}
    save_model(here / "model.onnx", metadata={"edge.preprocess": json.dumps(spec)})
    ended = edge("init", "--model", "model.onnx")
    assert ended.code == 0
    assert (written(here).preprocess.fit, written(here).preprocess.std) == ("squash", (4, 5, 6))
    assert "check preprocess" not in ended.err


def test_what_is_there_is_kept(edge: Edge, here: Path) -> None:
    save_model(here / "model.onnx")
    assert edge("init", "--model", "model.onnx").code == 0
    before = (here / "profiles" / "model.yaml").read_bytes()
    ended = edge("init", "--model", "model.onnx")
    assert (ended.code, (here / "profiles" / "model.yaml").read_bytes()) == (2, before)
    assert "--force" in ended.err
    assert edge("init", "--model", "model.onnx", "--force").code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--model", "nothing.onnx"), 5, "the model file does not exist"),
        (("--model", "model.onnx", "--family", "nano"), 2, "there is no family 'nano'"),
        (("--model", "model.onnx", "--labels", "short.txt"), 6, "2 class names for a model with 8 classes"),
        (("--model", "model.onnx", "--output-name", "logit"), 5, "did you mean 'logits'"),
        (("--model", "model.onnx", "--images", "nowhere"), 6, "this file or folder does not exist"),
        (("a/b", "--model", "model.onnx"), 2, "is not a valid profile name"),
        (
            ("--model", "model.onnx", "--labels", "short.txt", "--labels", "short.txt"),
            2,
            "several class name files",
        ),
    ],
)
def test_what_cannot_be_done(arguments: tuple[str, ...], code: int, words: str, edge: Edge, here: Path) -> None:
    save_model(here / "model.onnx")
    (here / "short.txt").write_text("a\nb\n")
    ended = edge("init", *arguments)
    assert (ended.code, ended.out) == (code, "")
    assert words in ended.err
    assert not (here / "profiles").exists()


def test_nothing_is_better_where_no_preprocessing_beats_chance(edge: Edge, here: Path) -> None:
    """A score may differ significantly although no answer fits: the less confident network loses less."""
    save_model(here / "model.onnx")
    images = paint(here / "val")
    spread = [path for folder in sorted(images.iterdir()) for path in sorted(folder.iterdir())]
    for at, path in enumerate(spread):
        path.rename(images / NAMES[at % 8] / f"moved{at}.png")
    ended = edge("init", "--model", "model.onnx", "--images", "val")
    assert ended.code == 0
    assert "significantly better" not in ended.out
    assert "no preprocessing is better than chance" in " ".join(ended.err.split())
    assert written(here).preprocess.mean == (123.675, 116.28, 103.53)


def test_a_first_guess_that_wins_is_no_guess_any_more(edge: Edge, here: Path) -> None:
    """Colours on both sides of torchvision's mean tell its mean, pictures in wrong folders its std."""
    mean, std = np.array((123.675, 116.28, 103.53)), np.array((58.395, 57.12, 57.375))
    colours = [mean + [8 if value > 127 else -8 for value in corner] for corner in COLOURS]
    save_model(here / "model.onnx", weights=15 * ((np.array(colours) - mean) / std).T)
    for at, name in enumerate(NAMES):
        (here / "val" / name).mkdir(parents=True)
        for index in range(7):
            colour = colours[(at + (index > 4)) % 8]
            cv2.imwrite(str(here / "val" / name / f"{index}.png"), np.full((40, 40, 3), colour[::-1]).astype(np.uint8))
    (here / "names.txt").write_text("".join(f"{name}\n" for name in NAMES))
    ended = edge("init", "--model", "model.onnx", "--images", "val", "--labels", "names.txt")
    assert ended.code == 0
    assert "significantly better than the other usual ones on 50 labelled images" in " ".join(ended.out.split())
    assert "guess" not in ended.out
    assert "check preprocess" not in ended.err


def test_a_network_that_answers_nan_gets_no_profile(edge: Edge, here: Path) -> None:
    save_model(here / "model.onnx", weights=np.full((3, 8), np.nan))
    paint(here / "val", count=1)
    ended = edge("init", "--model", "model.onnx", "--images", "val")
    assert (ended.code, "the network answers NaN with every preprocessing" in ended.err) == (5, True)
    assert not (here / "profiles").exists()

"""``edge export`` as it is typed, with small networks of random weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge.config.profiles import read_profile
from edge.errors import UsageError
from edge.model import onnx_model
from edge.model.torch_export import TorchSource

Edge = Callable[..., Any]

NETWORK = """
import torch

def make():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Dropout(),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 5),
    )

def wrong():
    return torch.nn.Conv2d(3, 4, 3)

number = 3
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NETWORK)
    return tmp_path


@pytest.mark.parametrize("text", ["resnet50", "keras:resnet50", "torchvision:", "net.py", ":x"])
def test_a_source_that_is_none(text: str) -> None:
    with pytest.raises(UsageError, match="cannot export"):
        TorchSource.parse(text)


@pytest.mark.slow
@pytest.mark.parametrize("opset", [18, 17])
def test_a_function_of_a_file(opset: int, edge: Edge, here: Path) -> None:
    pytest.importorskip("torch", reason="edge export needs torch, which edge does not bring")
    ended = edge("export", "net.py:make", "-o", "net.onnx", "--size", 32, "--opset", opset, "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert found["sqnr_db"] is None or found["sqnr_db"] > 90
    model = onnx_model.load(here / "net.onnx")
    assert (model.opset, model.classes, model.fixed_batch) == (opset, 5, None)
    profile = read_profile(here / "profiles" / "net.yaml")
    assert (profile.input.height, profile.input.width) == (32, 32)
    assert edge("export", "net.py:make", "-o", "net.onnx").code == 2


@pytest.mark.slow
def test_weights_of_torchvision_say_how_pictures_are_prepared(edge: Edge, here: Path) -> None:
    pytest.importorskip("torchvision", reason="edge export needs torchvision, which edge does not bring")
    ended = edge("export", "torchvision:squeezenet1_1", "--weights", "none", "--size", 64, "-o", "s.onnx")
    assert ended.code == 0, ended.err
    profile = read_profile(here / "profiles" / "s.yaml")
    assert profile.preprocess.resize == 73
    assert profile.preprocess.mean == pytest.approx((123.675, 116.28, 103.53))
    assert Path(profile.labels).read_text().startswith("tench\ngoldfish\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("torchvision:resnet51",), 2, "did you mean 'resnet"),
        (("net.py:made",), 2, "has no function 'made'"),
        (("net.py:number",), 2, "has no function 'number'"),
        (("nothing.py:make",), 2, "this file does not exist"),
        (("net.py:wrong", "--size", "32"), 5, "not an N×classes tensor"),
        (("net.py:make", "--weights", "nothing.pth"), 6, "this file of weights does not exist"),
        (("net.py:make", "--weights", "net.py"), 6, "these weights do not match the network"),
    ],
)
def test_what_cannot_be_exported(arguments: tuple[str, ...], code: int, words: str, edge: Edge, here: Path) -> None:
    pytest.importorskip("torchvision", reason="edge export needs torchvision, which edge does not bring")
    ended = edge("export", *arguments, "-o", "out.onnx")
    assert (ended.code, ended.out) == (code, "")
    assert words in ended.err
    assert sorted(path.name for path in here.iterdir() if path.suffix == ".onnx") == []


def test_without_torch_the_error_says_how_it_is_installed(edge: Edge, here: Path) -> None:
    try:
        import torch  # noqa: F401
    except ImportError:
        ended = edge("export", "net.py:make", "-o", "net.onnx")
        assert ended.code == 4
        assert "torch is not installed" in ended.err
        assert "pip install" in ended.err
    else:
        pytest.skip("torch is installed here")

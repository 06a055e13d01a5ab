"""``edge profile``: list, show and check; and what a wrong profile looks like to who typed it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import yaml

from edge.config import profiles

Edge = Callable[..., Any]
Place = Callable[..., Path]


def test_list_shows_those_here_and_those_of_the_repository(edge: Edge, place: Place, repository: Path) -> None:
    folder = place(1)
    listed = {entry["name"]: entry for entry in json.loads(edge("profile", "list", "--json").out)}
    assert {"host", "orin", "orin-nx", "orin-nano", "thor", "tiny"} <= listed.keys()
    assert listed["tiny"]["path"] == str(folder / "profiles" / "tiny.yaml")
    assert listed["host"]["path"] == str(repository / "profiles" / "host.yaml")
    assert (listed["tiny"]["family"], listed["tiny"]["backend"]) == ("host", "onnxruntime")
    assert sum(entry["default"] for entry in listed.values()) <= 1
    plain = edge("profile", "list").out
    assert all(re.search(rf"^ {name} ", plain, re.MULTILINE) for name in listed)


def test_one_bad_profile_does_not_hide_the_others(edge: Edge, place: Place) -> None:
    folder = place(1)
    (folder / "profiles" / "bad.yaml").write_text("family: host\nbackned: onnxruntime\n")
    ended = edge("profile", "list", "--json")
    listed = {entry["name"]: entry for entry in json.loads(ended.out)}
    assert ended.code == 0
    assert "bad.yaml:2: backned: unknown key (did you mean 'backend'?)" in listed["bad"]["error"]
    assert "error" not in listed["tiny"]


def test_a_profile_here_wins_over_the_repositorys(edge: Edge, place: Place, tiny_profile: Callable[..., Path]) -> None:
    place(1)
    tiny_profile("profiles", "host", run={"topk": 2})
    assert json.loads(edge("profile", "show", "host", "--json").out)["run"]["topk"] == 2


def test_show_is_the_whole_profile_and_can_be_read_back(edge: Edge, place: Place, tmp_path: Path) -> None:
    place(1)
    ended = edge("profile", "show", "tiny")
    assert ended.code == 0
    again = tmp_path / "again.yaml"
    again.write_text(ended.out)
    assert profiles.read_profile(again) == profiles.read_profile(tmp_path / "profiles" / "tiny.yaml")
    assert json.loads(edge("profile", "show", "tiny", "--json").out) == yaml.safe_load(ended.out)
    assert "(digest " in ended.err


def test_show_resolves_extends_and_paths(edge: Edge, place: Place) -> None:
    folder = place(1)
    (folder / "profiles" / "child.yaml").write_text("extends: tiny\nrun: {topk: 3}\n")
    shown = json.loads(edge("profile", "show", "child", "--json").out)
    assert (shown["name"], shown["run"]["topk"], shown["run"]["warmup"]) == ("child", 3, 2)
    assert shown["model"] == str(folder / "profiles" / "model.onnx")


def test_check_says_that_a_profile_is_good(edge: Edge, place: Place) -> None:
    folder = place(1)
    ended = edge("profile", "check", "tiny")
    assert ended.code == 0
    assert ended.out.startswith(
        f"{folder}/profiles/tiny.yaml: good; model.onnx has the input input float32 [n, 3, 32, 32]"
    )
    found = json.loads(edge("profile", "check", "profiles/tiny.yaml", "--json").out)
    assert (found["classes"], found["input"]) == (10, "input float32 [n, 3, 32, 32]")


@pytest.mark.parametrize("name", ["host", "orin", "orin-nx", "orin-nano", "thor", "rtx"])
def test_the_profiles_of_the_repository_are_good(name: str, edge: Edge) -> None:
    ended = edge("profile", "check", name)
    assert ended.code == 0, ended.err


@pytest.mark.parametrize(
    "command",
    [
        "profile check tiny",
        "calibrate --profile tiny --images pictures",
        "build --profile tiny",
        "eval --profile tiny --images pictures --labels labels.csv",
        "run --profile tiny --images pictures",
        "bench --profile tiny",
        "sweep --profile tiny --images pictures --eval pictures --labels labels.csv",
        "tune --profile tiny --images pictures",
        "bundle --profile tiny -o tiny.edge",
        "ship device --profile tiny",
        "engine show --profile tiny",
        "selftest --profile tiny",
        "service print --profile tiny -- --camera 0",
        "init two --model profiles/model.onnx",
    ],
)
def test_a_missing_model_is_the_same_error_in_every_command(command: str, edge: Edge, place: Place) -> None:
    folder = place(2)
    (folder / "labels.csv").write_text(
        "file,label\n" + "".join(f"{p.name},0\n" for p in (folder / "pictures").iterdir())
    )
    (folder / "profiles/model.onnx").unlink()
    ended = edge(*command.split())
    assert ended.code == 5, ended.err
    assert "model.onnx: the model file does not exist\n  try: " in ended.err


def test_an_opset_that_onnxruntime_does_not_read_is_named(
    edge: Edge, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = place()
    model = onnx.load(folder / "profiles/model.onnx")
    model.opset_import[0].version = 99
    (folder / "profiles/model.onnx").write_bytes(model.SerializeToString())
    # A newer onnx than the onnxruntime beside it, as with the versions that a Jetson gets.
    monkeypatch.setattr(onnx.defs, "onnx_opset_version", lambda: 99)
    ended = edge("profile", "check", "tiny")
    assert ended.code == 5
    assert re.search(
        r"opset 99, and the installed onnxruntime \S+ reads up to \d+\n  try: edge export --opset 18", ended.err
    )


@pytest.mark.parametrize(
    ("overrides", "code", "words"),
    [
        ({"model": "gone.onnx"}, 5, "gone.onnx: the model file does not exist\n  try: check `model:` in the profile"),
        ({"labels": "gone.txt"}, 6, "gone.txt: there is no such file"),
        ({"labels": "two.txt"}, 3, "labels: 2 names for a model with 10 classes"),
        ({"input": {"height": 36, "width": 36}}, 5, "takes images of height 32, but the profile says 36"),
        ({"calibration": {"algorithm": "kl"}}, 3, "calibration.algorithm: there is no algorithm 'kl'"),
        (
            {"calibration": {"parameters": {"bins": 3}}},
            3,
            "calibration.parameters.bins: entropy2 has no such parameter",
        ),
    ],
    ids=["no model", "no labels", "too few labels", "another size", "no such algorithm", "no such parameter"],
)
def test_check_finds_what_does_not_fit(
    overrides: dict[str, Any], code: int, words: str, edge: Edge, place: Place
) -> None:
    folder = place(1, **overrides)
    (folder / "profiles" / "two.txt").write_text("cat\ndog\n")
    ended = edge("profile", "check", "tiny")
    assert (ended.code, ended.out) == (code, "")
    assert words in ended.err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "bad.yaml: the file is empty"),
        ("family: [host\n", "bad.yaml:2: not YAML"),
        ("family: toaster\n", "bad.yaml:1: family: 'toaster' is not one of host, "),
        ("extends: tiny\ninput: {batch: {max: 0}}\n", "bad.yaml:2: input.batch.max: "),
        ("extends: tinny\n", "bad.yaml:1: extends: there is no tinny.yaml (did you mean 'tiny'?)"),
        ("extends: bad\n", "extends: extends itself in a cycle"),
        (
            "extends: tiny\nprecision: fp16\n",
            "bad.yaml:2: precision: ONNX Runtime on a CPU runs fp32 or int8, not fp16",
        ),
    ],
)
def test_a_wrong_profile_is_said_with_its_line(text: str, words: str, edge: Edge, place: Place) -> None:
    folder = place(1)
    (folder / "profiles" / "bad.yaml").write_text(text)
    for command in (("profile", "check", "bad"), ("run", "--profile", "bad", "--images", "pictures")):
        ended = edge(*command)
        assert (ended.code, ended.out) == (3, "")
        assert words in ended.err


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"a: \x00"], ids=["no UTF-8", "a zero byte"])
def test_a_profile_that_is_no_text(content: bytes, edge: Edge, place: Place) -> None:
    folder = place(1)
    (folder / "profiles" / "bad.yaml").write_bytes(content)
    ended = edge("profile", "show", "bad")
    assert (ended.code, ended.out) == (3, "")
    assert "bad.yaml" in ended.err


@pytest.mark.parametrize("name", ["tinny", "profiles/none.yaml", "./tiny", "profiles"])
def test_a_profile_that_is_not_there(name: str, edge: Edge, place: Place) -> None:
    place(1)
    ended = edge("profile", "show", name)
    assert (ended.code, ended.out) == (3, "")
    assert name.removeprefix("./") in ended.err

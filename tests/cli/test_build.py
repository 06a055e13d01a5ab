"""``edge build`` as it is typed."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

Edge = Callable[..., Any]
Place = Callable[..., Path]
COMMAND = ("build", "--profile", "tiny")
ENGINE = Path("engines", "tiny", "model-int8.onnx")


@pytest.fixture
def calibrated(edge: Edge, place: Place) -> Place:
    """A working directory with a table."""

    def make(**overrides: object) -> Path:
        folder = place(4, **overrides)
        assert edge("calibrate", "--profile", "tiny", "--images", "pictures").code == 0
        return folder

    return make


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }


def test_an_engine_and_why_it_was_built(edge: Edge, calibrated: Place) -> None:
    folder = calibrated()
    ended = edge(*COMMAND)
    assert ended.code == 0
    assert ended.out.startswith(f"{folder / ENGINE}: int8 built in ")
    assert ended.out.endswith(" s, 4 of 4 weighted layers in INT8\n")
    assert "because: there is no engine yet" in ended.err
    assert (folder / ENGINE).with_suffix(".json").is_file()


def test_a_second_build_does_nothing(edge: Edge, calibrated: Place) -> None:
    folder = calibrated()
    edge(*COMMAND)
    before = files(folder / "engines")
    ended = edge(*COMMAND)
    assert (ended.code, ended.out) == (0, f"{folder / ENGINE}: unchanged, nothing to do\n")
    assert files(folder / "engines") == before


def test_force_builds_again_and_says_so(edge: Edge, calibrated: Place) -> None:
    calibrated()
    edge(*COMMAND)
    ended = edge(*COMMAND, "--force")
    assert (ended.code, " built in " in ended.out) == (0, True)
    assert "because: --force" in ended.err


def test_a_change_of_the_profile_is_named(edge: Edge, calibrated: Place, tiny_profile: Callable[..., Path]) -> None:
    calibrated()
    edge(*COMMAND)
    tiny_profile("profiles", input={"batch": {"max": 2}})
    ended = edge(*COMMAND)
    assert ended.code == 0
    assert "because: batch: 1-1-8 -> 1-1-2" in ended.err


def test_a_dry_run_writes_nothing(edge: Edge, calibrated: Place) -> None:
    folder = calibrated()
    before = files(folder)
    ended = edge(*COMMAND, "--dry-run")
    assert (ended.code, ended.out) == (0, f"would build {(folder / ENGINE).with_suffix('')} (int8)\n")
    assert "because: there is no engine yet" in ended.err
    assert files(folder) == before
    assert not (folder / "engines").exists()
    edge(*COMMAND)
    assert edge(*COMMAND, "--dry-run").out.endswith("unchanged, nothing to do\n")


def test_json_is_alone_on_stdout(edge: Edge, calibrated: Place) -> None:
    folder = calibrated()
    would, built, unchanged = (
        json.loads(edge(*COMMAND, "--json", *more).out) for more in (("--dry-run",), (), ("--precision", "int8"))
    )
    assert [outcome["work"] for outcome in (would, built, unchanged)] == ["would build", "built", "unchanged"]
    assert (would["engine"], built["engine"]) == (None, str(folder / ENGINE))
    assert built["layers"]["weighted_int8"] == built["layers"]["weighted"] == 4


def test_fp32_needs_no_table(edge: Edge, place: Place) -> None:
    folder = place(1)
    ended = edge(*COMMAND, "--precision", "fp32", "--engine-dir", "elsewhere")
    assert ended.code == 0
    assert (folder / "elsewhere" / "tiny" / "model-fp32.onnx").is_file()


def test_int8_without_a_table_says_how_to_get_one(edge: Edge, place: Place) -> None:
    folder = place(1)
    ended = edge(*COMMAND)
    assert (ended.code, ended.out) == (7, "")
    assert f"error: {folder}/calib_cache/model/entropy2.table: no calibration table for tiny" in ended.err
    assert "try: edge calibrate --profile tiny --images DIR" in ended.err


@pytest.mark.parametrize("damage", ["truncated", "changed", "no manifest", "not a manifest"])
def test_a_corrupt_table_is_refused(damage: str, edge: Edge, calibrated: Place) -> None:
    folder = calibrated()
    table = folder / "calib_cache" / "model" / "entropy2.table"
    manifest = table.with_suffix(".json")
    if damage == "truncated":
        table.write_bytes(table.read_bytes()[:-20])
    elif damage == "changed":
        table.write_bytes(table.read_bytes().replace(b"c1: 3", b"c1: 4", 1))
    elif damage == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text('{"format": 1}')
    ended = edge(*COMMAND)
    assert (ended.code, ended.out) == (7, "")
    assert "calib_cache/model/entropy2." in ended.err
    assert "  try: " in ended.err
    assert not (folder / "engines").exists()


def test_a_table_of_another_model_is_refused(edge: Edge, calibrated: Place, tiny_model: Callable[..., Path]) -> None:
    calibrated()
    tiny_model("profiles/model.onnx", seed=2)
    ended = edge(*COMMAND)
    assert ended.code == 7
    assert "entropy2.table was made with another model.onnx" in ended.err


def test_int8_that_is_not_delivered_fails_the_gate(edge: Edge, place: Place) -> None:
    """The input was zero in every picture, so the first convolution has no scale and stays in float."""
    folder = place(1)
    cv2.imwrite(str(folder / "pictures" / "000.png"), np.full((40, 40, 3), 127, np.uint8))
    (folder / "pictures" / "000.jpg").unlink()
    edge("calibrate", "--profile", "tiny", "--images", "pictures")
    ended = edge(*COMMAND)
    assert (ended.code, ended.out) == (1, "")
    assert "INT8 was requested, but only 3 of 4 weighted layers run in it" in ended.err
    assert "build.strict: false to accept it" in ended.err
    assert not (folder / "engines").exists()


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--precision", "fp16"), 3, "fp32 or int8, not fp16"),
        (("--precision", "int4"), 2, "there is no precision 'int4'"),
        (("--profile", "tni"), 3, "there is no profile 'tni'"),
        (("--dryrun",), 2, "--dry-run"),
    ],
)
def test_a_wrong_option(options: tuple[str, ...], code: int, words: str, edge: Edge, calibrated: Place) -> None:
    calibrated()
    ended = edge(*COMMAND, *options)
    assert (ended.code, ended.out) == (code, "")
    assert words in ended.err


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed")
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_backend_whose_library_is_not_here(precision: str, edge: Edge, place: Place) -> None:
    place(1, backend="tensorrt", family="agx-orin")
    assert edge("calibrate", "--profile", "tiny", "--images", "pictures").code == 0
    ended = edge(*COMMAND, "--precision", precision)
    assert (ended.code, ended.out) == (4, "")
    assert "TensorRT is not installed (looked for tensorrt)" in ended.err
    assert "  try: on a Jetson: sudo apt install python3-libnvinfer" in ended.err


@pytest.mark.parametrize(
    "variant",
    [{"inputs": 2}, {"batch": 1}, {"layout": "chw"}],
    ids=["two inputs", "a fixed batch of 1", "no batch axis"],
)
def test_a_model_that_does_not_fit(
    variant: dict[str, Any], edge: Edge, place: Place, tiny_model: Callable[..., Path]
) -> None:
    folder = place(1)
    tiny_model("profiles/model.onnx", **variant)
    ended = edge(*COMMAND, "--precision", "fp32")
    assert (ended.code, ended.out) == (5, "")
    assert f"error: {folder}/profiles/model.onnx: " in ended.err
    assert "  try: " in ended.err


def test_a_fixed_batch_works_when_the_profile_says_so(
    edge: Edge, calibrated: Place, tiny_model: Callable[..., Path]
) -> None:
    tiny_model("profiles/model.onnx", batch=2)
    calibrated(input={"batch": {"min": 2, "opt": 2, "max": 2}})
    assert edge(*COMMAND).code == 0
    ended = edge("run", "--profile", "tiny", "--images", "pictures", "--json")
    assert (ended.code, len(ended.out.splitlines())) == (0, 4 + 1)


def test_a_read_only_engine_folder(edge_process: Edge, calibrated: Place, read_only: str) -> None:
    folder = calibrated()
    (folder / "engines").mkdir(mode=0o555)
    ended = edge_process(*COMMAND, limit=read_only)
    assert (ended.code, ended.out) == (9, "")
    assert "cannot write: Permission denied" in ended.err
    assert list((folder / "engines").iterdir()) == []


def test_a_full_disk_leaves_the_engine_that_was_there(
    edge: Edge, edge_process: Edge, calibrated: Place, full_disk: str
) -> None:
    folder = calibrated()
    edge(*COMMAND)
    before = files(folder / "engines")
    ended = edge_process(*COMMAND, "--force", limit=full_disk)
    assert (ended.code, ended.out) == (9, ""), ended.err
    assert "cannot write" in ended.err
    assert files(folder / "engines") == before
    assert [path for path in (folder / "engines" / "tiny").iterdir() if path.suffix == ".tmp"] == []

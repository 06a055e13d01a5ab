from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Run = Callable[..., Any]
Place = Callable[..., Path]


def change(folder: Path, **build: Any) -> None:
    """Another build setting in the profile: its engines are stale."""
    path = folder / "profiles/tiny.yaml"
    content = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**content, "build": build}))


def test_show(edge: Run, built: Place) -> None:
    built()
    done = edge("engine", "show", "-p", "tiny")
    assert done.code == 0, done.err
    assert done.out.startswith("model-int8\n")
    assert "4 INT8 of 4; asked: int8 (explicit route)" in done.out
    assert "where precision changes" in done.out
    assert "--layers lists every layer" in done.err
    assert "\x1b" not in done.out


def test_show_another_precision_and_every_layer(edge: Run, built: Place) -> None:
    built()
    done = edge("engine", "show", "-p", "tiny", "--precision", "fp32", "--layers")
    assert done.code == 0, done.err
    assert "4 FP32 of 4; asked: fp32" in done.out
    for name in ("conv_0", "clip_1", "gemm_9"):
        assert name in done.out


def test_show_as_json_is_all_that_is_on_stdout(edge: Run, built: Place) -> None:
    folder = built()
    done = edge("engine", "show", folder / "engines/tiny/model-int8.onnx", "--json")
    found = json.loads(done.out)
    assert found["counts"]["weighted"] == {"int8": 4}
    assert found["inspection"]["layers"][0]["name"]
    assert found["manifest"]["key"]["precision"] == "int8"
    assert found["path"].endswith("engines/tiny/model-int8.json")


def test_the_card_as_a_page(edge: Run, built: Place, tmp_path: Path) -> None:
    built()
    done = edge("engine", "show", "-p", "tiny", "--html", "cards/int8.html")
    assert done.code == 0, done.err
    assert "page: cards/int8.html" in done.err
    assert (tmp_path / "cards/int8.html").read_text().startswith("<!doctype html>")
    done = edge("engine", "show", "-p", "tiny", "--html", "cards")
    assert (done.code, "this is a folder" in done.err) == (9, True)


def test_show_what_is_not_there_or_damaged(edge: Run, built: Place) -> None:
    folder = built()
    done = edge("engine", "show", "-p", "tiny", "--engine-dir", "nowhere")
    assert (done.code, "there is no such engine" in done.err) == (7, True)
    path = folder / "engines/tiny/model-int8.layers.json"
    path.write_bytes(path.read_bytes()[:-5])
    done = edge("engine", "show", "-p", "tiny")
    assert (done.code, "its manifest says" in done.err, done.out) == (7, True, "")


def test_show_a_strange_file(edge: Run, tmp_path: Path) -> None:
    (tmp_path / "x.plan").write_bytes(b"ftrt")
    done = edge("engine", "show", "x.plan")
    assert done.code == 7
    assert "--exportLayerInfo" in done.err
    done = edge("engine", "show", "-p", "nobody")
    assert done.code == 3


def test_diff_by_precision_and_by_file(edge: Run, built: Place) -> None:
    folder = built()
    done = edge("engine", "diff", "fp32", "int8", "-p", "tiny")
    assert done.code == 0, done.err
    assert "4 weighted nodes changed: fp32 -> int8" in done.out
    assert "fusions only in A" in done.out
    assert "conv_0 + clip_1" in done.out
    same = edge("engine", "diff", "int8", folder / "engines/tiny/model-int8.onnx", "-p", "tiny")
    assert "both engines have the same inputs" in same.out
    done = edge("engine", "diff", "fp32", "int8", "-p", "tiny", "--json", "--html", "diff.html")
    found = json.loads(done.out)
    assert "<title>model-fp32 and model-int8: engines compared" in (folder / "diff.html").read_text()
    assert found["weighted"] == {"fp32 -> int8": 4}


def test_list(edge: Run, built: Place) -> None:
    folder = built()
    done = edge("engine", "list")
    assert done.code == 0, done.err
    lines = [line.split() for line in done.out.splitlines() if "model-" in line]
    assert [(line[0], line[1], line[-1]) for line in lines] == [
        ("tiny", "model-fp32", "current"), ("tiny", "model-int8", "current"),
    ]  # fmt: skip
    change(folder, min_int8_share=0.5)
    done = edge("engine", "list", "--json")
    found = json.loads(done.out)
    assert [entry["state"] for entry in found] == ["stale", "stale"]
    assert found[0]["why"][0].startswith("profile: ")


def test_list_nothing(edge: Run, place: Place) -> None:
    place(1)  # without a folder of profiles here, edge would look into the checkout that it runs from
    done = edge("engine", "list")
    assert (done.code, done.out) == (0, "")
    assert "edge build makes one" in done.err
    assert json.loads(edge("engine", "list", "--json").out) == []


def test_gc_leaves_what_is_current(edge: Run, built: Place) -> None:
    folder = built()
    done = edge("engine", "gc")
    assert (done.code, done.out) == (0, "")
    assert "kept: 2 current" in done.err
    assert (folder / "engines/tiny/model-int8.onnx").is_file()


def test_gc(edge: Run, built: Place) -> None:
    folder = built()
    change(folder, min_int8_share=0.5)
    dry = edge("engine", "gc", "--dry-run")
    assert dry.out.count("would remove") == 2
    assert (folder / "engines/tiny/model-int8.onnx").is_file()
    done = edge("engine", "gc", "--json")
    found = json.loads(done.out)
    assert (len(found["removed"]), found["kept"], found["dry_run"]) == (2, 0, False)
    assert found["bytes"] > 1000
    assert [path.name for path in (folder / "engines/tiny").iterdir() if path.suffix != ".lock"] == []


def test_gc_with_another_cache_takes_nothing_that_it_cannot_judge(edge: Run, built: Place) -> None:
    folder = built()
    done = edge("engine", "gc", "--elsewhere", "--cache-dir", "elsewhere")
    assert (done.code, done.out) == (0, "")
    assert "1 current, 1 unknown" in done.err
    assert (folder / "engines/tiny/model-int8.onnx").is_file()


def test_gc_of_a_profile_that_is_gone_wants_to_be_asked(edge: Run, built: Place) -> None:
    folder = built()
    (folder / "profiles/tiny.yaml").rename(folder / "profiles/other.yaml")
    assert edge("engine", "gc").out == ""
    assert edge("engine", "gc", "--elsewhere").out.count("removed ") == 2


def test_gc_in_a_folder_that_cannot_be_written(edge_process: Run, built: Place, read_only: str) -> None:
    folder = built()
    change(folder, min_int8_share=0.5)
    (folder / "engines/tiny").chmod(0o555)
    done = edge_process("engine", "gc", limit=read_only)
    assert done.code == 9
    assert (folder / "engines/tiny/model-int8.onnx").is_file()


@pytest.mark.parametrize("command", ["show", "diff", "list", "gc"])
def test_help(command: str, edge: Run) -> None:
    assert edge("engine", command, "--help").code == 0


def test_a_page_on_standard_output_is_alone_there(edge_process: Run, built: Place) -> None:
    built()
    for command in (("show", "-p", "tiny"), ("diff", "int8", "int8", "-p", "tiny")):
        done = edge_process("engine", *command, "--html", "-")
        assert done.code == 0, done.err
        assert done.out.startswith("<!doctype html>")
        assert done.out.rstrip().endswith("</html>")
    done = edge_process("engine", "show", "-p", "tiny", "--html", "-", "--json")
    assert (done.code, "--html - and --json both write to standard output" in done.err) == (2, True)

"""``edge run`` as it is typed: one object per picture, a summary, a record, and engines that are not to be trusted."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge.artifacts import run_record, store
from edge.artifacts.run_record import RunRecord
from edge.calibration import cache_keys

Edge = Callable[..., Any]
Place = Callable[..., Path]
COMMAND = ("run", "--profile", "tiny", "--images", "pictures")
ENGINE = Path("engines", "tiny", "model-int8.onnx")


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_json_is_an_object_per_picture_and_a_summary(edge: Edge, built: Place) -> None:
    built()
    ended = edge(*COMMAND, "--json")
    *pictures, last = lines(ended.out)
    assert ended.code == 0
    assert [(one["seq"], one["name"]) for one in pictures] == [(i, f"{i:03d}.jpg") for i in range(8)]
    assert all(len(one["guesses"]) == 5 for one in pictures)
    assert all(guess["label"] == f"class {guess['index']}" for one in pictures for guess in one["guesses"])
    stages = ("decode", "preprocess", "infer", "postprocess", "total", "age")
    assert set(pictures[0]["stages"]) == {f"{stage}_ms" for stage in stages}
    summary = last["summary"]
    assert (summary["status"], summary["pictures"], summary["skipped"]) == ("complete", 8, [])
    assert set(summary["latency"]) == set(stages)
    assert set(summary["stages_absent"]) == {"host_to_device", "device_to_host"}
    assert summary["warmup"]["n"] == 2
    assert summary["subject"]["precision"] == "int8"
    assert (summary["power"] is None) == (summary["power_unavailable"] is not None)
    assert "results" not in summary


def test_the_plain_output_names_labels_stages_and_why_there_is_no_power(edge: Edge, built: Place) -> None:
    built()
    ended = edge(*COMMAND)
    assert ended.code == 0
    for words in ("000.jpg", "007.jpg", "class ", "8 images in ", "4 of 4 weighted layers in INT8", "power "):
        assert words in ended.out
    for stage in ("decode", "preprocess", "infer", "postprocess", "total"):
        assert f"\n {stage} " in ended.out
    assert "8 images are too few for the tail percentiles" in ended.err
    assert "\x1b" not in ended.out + ended.err


def test_the_same_pictures_get_the_same_labels_again(edge: Edge, built: Place) -> None:
    found = []
    for threads in (1, 2):
        built(run={"threads": threads})
        found.append([one.get("guesses") for one in lines(edge(*COMMAND, "--json").out)])
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("options", "topk", "guesses", "count"),
    [
        ((), 1, 1, 8),
        ((), 99, 10, 8),
        (("--limit", "3"), 5, 5, 3),
        (("--limit", "99"), 5, 5, 8),
        (("--precision", "fp32"), 5, 5, 8),
    ],
)
def test_options(options: tuple[str, ...], topk: int, guesses: int, count: int, edge: Edge, built: Place) -> None:
    built(run={"topk": topk})
    *each, last = lines(edge(*COMMAND, "--json", *options).out)
    assert (len(each), last["summary"]["pictures"]) == (count, count)
    assert {len(one["guesses"]) for one in each} == {guesses}


def test_a_single_picture_and_a_list(edge: Edge, built: Place) -> None:
    folder = built()
    (folder / "list.txt").write_bytes(b"\r\n# two\r\npictures/003.jpg\r\npictures/003.jpg\r\n")
    one = lines(edge("run", "--profile", "tiny", "--images", "pictures/003.jpg", "--json").out)
    two = lines(edge("run", "--profile", "tiny", "--images", "list.txt", "--json").out)
    assert [item.get("name") for item in one] == ["003.jpg", None]
    assert [item.get("name") for item in two] == ["pictures/003.jpg", "pictures/003.jpg", None]
    assert one[0]["guesses"] == two[0]["guesses"]


def test_the_record_holds_everything(edge: Edge, built: Place) -> None:
    folder = built()
    ended = edge(*COMMAND, "--record", "runs/new/r.json")
    assert (ended.code, "record: runs/new/r.json" in ended.err) == (0, True)
    found = run_record.load(folder / "runs" / "new" / "r.json")
    assert (found.status, found.pictures, len(found.results)) == ("complete", 8, 8)
    assert found.subject.engine_sha256 == store.sha256_file(folder / ENGINE)
    assert found.subject.table_sha256 == store.sha256_file(folder / "calib_cache" / "model" / "entropy2.table")
    assert found.subject.source == "pictures"


def test_what_cannot_be_decoded_is_a_counted_and_named_skip(edge: Edge, built: Place) -> None:
    folder = built()
    (folder / "pictures" / "001.jpg").write_bytes(b"")
    (folder / "pictures" / "004.jpg").write_bytes((folder / "pictures" / "004.jpg").read_bytes()[:400])
    (folder / "pictures" / "006.jpg").write_text("no image\n")
    ended = edge(*COMMAND, "--json", "--record", "r.json")
    assert ended.code == 0
    skips = [one["skipped"] for one in lines(ended.out) if "skipped" in one]
    assert [(skip["seq"], skip["name"]) for skip in skips] == [(1, "001.jpg"), (4, "004.jpg"), (6, "006.jpg")]
    summary = lines(ended.out)[-1]["summary"]
    assert (summary["pictures"], summary["skipped"]) == (5, skips)
    assert len(run_record.load(folder / "r.json").skipped) == 3

    plain = edge(*COMMAND)
    assert plain.code == 0
    assert "8 images" not in plain.out
    assert "5 images in " in plain.out
    assert ", 3 skipped" in plain.out
    assert "warning: skipped 001.jpg: the image is empty (0 bytes)" in plain.err


def test_not_one_picture_can_be_decoded(edge: Edge, built: Place) -> None:
    folder = built()
    for path in (folder / "pictures").glob("*.jpg"):
        path.write_text("no image\n")
    ended = edge(*COMMAND)
    assert (ended.code, ended.out) == (6, "")
    assert "none of the 8 images could be decoded" in ended.err


@pytest.mark.parametrize(
    ("source", "code", "words"),
    [
        (("--images", "empty"), 6, "no images"),
        (("--images", "nowhere"), 6, "this file or folder does not exist"),
        (("--images", "list.txt"), 6, "list.txt:2: 1 of 2 files are missing; the first is gone.jpg"),
        (("--images", "blank.txt"), 6, "names no images"),
        ((), 2, "--images DIR"),
    ],
    ids=["empty folder", "nothing there", "missing file", "blank list", "not said"],
)
def test_nothing_to_run_on(source: tuple[str, ...], code: int, words: str, edge: Edge, built: Place) -> None:
    folder = built()
    (folder / "empty").mkdir()
    (folder / "list.txt").write_text("pictures/000.jpg\ngone.jpg\n")
    (folder / "blank.txt").write_text("\r\n# nothing\r\n\r\n")
    ended = edge("run", "--profile", "tiny", *source)
    assert (ended.code, ended.out) == (code, "")
    assert words in ended.err


def test_without_an_engine(edge: Edge, place: Place) -> None:
    folder = place()
    ended = edge(*COMMAND)
    assert (ended.code, ended.out) == (7, "")
    assert f"error: {folder}/engines/tiny: no int8 engine for tiny has been built" in ended.err
    assert "try: edge build --profile tiny" in ended.err


@pytest.mark.parametrize("damage", ["truncated", "changed", "replaced", "not there", "manifest edited", "manifest cut"])
def test_an_engine_that_is_not_what_was_built_is_never_opened(damage: str, edge: Edge, built: Place) -> None:
    """Were it opened, onnxruntime would fail on some of these with another exit code, and run the others."""
    folder = built()
    engine = folder / ENGINE
    manifest = engine.with_suffix(".json")
    whole = engine.read_bytes()
    if damage == "truncated":
        engine.write_bytes(whole[: len(whole) // 2])
    elif damage == "changed":
        engine.write_bytes(whole[:-7] + bytes([whole[-7] ^ 1]) + whole[-6:])
    elif damage == "replaced":
        shutil.copy(folder / "profiles" / "model.onnx", engine)
    elif damage == "not there":
        engine.unlink()
    elif damage == "manifest edited":
        shutil.copy(folder / "profiles" / "model.onnx", engine)
        content = json.loads(manifest.read_bytes())
        content["files"][engine.name] = {
            "sha256": store.sha256_file(engine), "size": engine.stat().st_size,
        }  # fmt: skip
        manifest.write_text(json.dumps(content))
    else:
        manifest.write_bytes(manifest.read_bytes()[:100])
    ended = edge(*COMMAND)
    assert (ended.code, ended.out) == (7, "")
    assert str(folder / "engines" / "tiny" / "model-int8.") in ended.err
    assert "  try: edge build --profile tiny\n" in ended.err


@pytest.mark.parametrize(
    ("field", "value"),
    [("onnxruntime", "1.2.3"), ("machine", "riscv64"), ("profile", "0" * 64), ("table", "0" * 64)],
)
def test_an_engine_from_elsewhere_is_refused_by_field(field: str, value: str, edge: Edge, built: Place) -> None:
    folder = built()
    path = folder / ENGINE.with_suffix(".json")
    manifest = store.load(path, kind=cache_keys.ENGINE)
    store.save(
        path,
        kind=cache_keys.ENGINE,
        files={ENGINE.name: (folder / ENGINE).read_bytes()},
        key={**manifest.key, field: value},
        info=manifest.info,
    )
    ended = edge(*COMMAND)
    assert (ended.code, ended.out) == (7, "")
    assert f"the engine was built with other inputs ({field}: " in ended.err
    assert "try: edge build --profile tiny" in ended.err


def test_an_engine_of_another_profile_is_refused(edge: Edge, built: Place, tiny_profile: Callable[..., Path]) -> None:
    folder = built()
    tiny_profile("profiles", "other", preprocess={"resize": 44})
    shutil.copytree(folder / "engines" / "tiny", folder / "engines" / "other")
    ended = edge("run", "--profile", "other", "--precision", "fp32", "--images", "pictures")
    assert ended.code == 7
    assert "built with other inputs (profile: " in ended.err
    # In INT8 it is the table that does not fit first.
    ended = edge("run", "--profile", "other", "--images", "pictures")
    assert ended.code == 7
    assert "was made with other preprocessing: resize 40 -> 44" in ended.err


def test_a_new_table_asks_for_a_new_engine(edge: Edge, built: Place) -> None:
    built()
    edge("calibrate", "--profile", "tiny", "--images", "pictures", "--limit", "4")
    ended = edge(*COMMAND)
    assert ended.code == 7
    assert "the engine was built with other inputs (table: " in ended.err
    assert edge("build", "--profile", "tiny").code == 0
    assert edge(*COMMAND).code == 0


def test_fewer_names_than_classes(edge: Edge, built: Place) -> None:
    folder = built(run={"topk": 10})
    (folder / "profiles" / "labels.txt").write_text("cat\ndog\n")
    labels = {guess["label"] for one in lines(edge(*COMMAND, "--json").out)[:-1] for guess in one["guesses"]}
    assert labels == {"cat", "dog", *(f"class {index}" for index in range(2, 10))}


def test_a_record_that_cannot_be_written_does_not_take_the_results_with_it(edge: Edge, built: Place) -> None:
    built()
    ended = edge(*COMMAND, "--json", "--record", "profiles/tiny.yaml/r.json")
    assert ended.code == 9
    assert "profiles/tiny.yaml/r.json: cannot write: " in ended.err
    assert [one.get("name", "summary") for one in lines(ended.out)] == [*(f"{i:03d}.jpg" for i in range(8)), "summary"]
    plain = edge(*COMMAND, "--record", "profiles/tiny.yaml/r.json")
    assert (plain.code, "8 images in " in plain.out) == (9, True)


def test_a_full_disk_for_the_record(edge_process: Edge, built: Place, full_disk: str) -> None:
    folder = built()
    (folder / "r.json").write_text("the one from before")
    ended = edge_process(*COMMAND, "--json", "--record", "r.json", limit=full_disk)
    assert ended.code == 9
    assert "r.json: cannot write: File too large" in ended.err
    assert lines(ended.out)[-1]["summary"]["pictures"] == 8
    assert (folder / "r.json").read_text() == "the one from before"
    assert list(folder.glob(".r.json*")) == []


def test_on_a_terminal_the_data_still_goes_to_stdout(built: Place) -> None:
    """Progress is drawn on stderr, a terminal; stdout is a file, and gets every line."""
    folder = built()
    ours, theirs = pty.openpty()
    line = [sys.executable, "-m", "edge", *COMMAND, "--json"]
    with (folder / "out.jsonl").open("wb") as out:
        process = subprocess.Popen(line, stdout=out, stderr=theirs, env={**os.environ, "TERM": "xterm"})
    os.close(theirs)
    drawn = read_all(ours)
    assert process.wait(timeout=60) == 0
    assert len(lines((folder / "out.jsonl").read_text())) == 8 + 1
    assert b'"seq"' not in drawn


@pytest.mark.parametrize("as_json", [False, True], ids=["plain", "json"])
def test_no_color_means_no_escape_codes_on_a_terminal_either(as_json: bool, built: Place) -> None:
    built()
    ours, theirs = pty.openpty()
    line = [sys.executable, "-m", "edge", *COMMAND, *(("--json",) if as_json else ())]
    process = subprocess.Popen(line, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm", "NO_COLOR": "1"})
    os.close(theirs)
    drawn = read_all(ours)
    assert process.wait(timeout=60) == 0
    assert b"\x1b" not in drawn
    assert b"000.jpg" in drawn


def read_all(terminal: int) -> bytes:
    """Everything that is drawn on a terminal until its last writer closes it."""
    drawn = b""
    while select.select([terminal], [], [], 60)[0]:
        try:
            piece = os.read(terminal, 65536)
        except OSError:
            break
        if not piece:
            break
        drawn += piece
    os.close(terminal)
    return drawn


def test_the_summary_of_an_interrupted_run_with_power_but_no_picture(
    edge: Edge, built: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    from edge.ui.terminal import live_view
    from edge.ui.terminal.terminal import Terminal

    folder = built()
    edge(*COMMAND, "--record", "r.json")
    finished = run_record.load(folder / "r.json")
    none: RunRecord = msgspec.structs.replace(
        finished, pictures=0, results=[], latency={}, rate_per_s=None, status="interrupted", power_unavailable=None,
        power={"source": "hwmon", "scope": "module_input", "samples": 20, "joules": 1.0, "mean_mw": 500.0,
               "error_joules": 0.1},
    )  # fmt: skip
    live_view.render_summary(Terminal(), none)
    assert "(interrupted)" in capsys.readouterr().out

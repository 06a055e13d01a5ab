from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
Place = Callable[..., Path]


@pytest.fixture
def ready(built: Place) -> Callable[..., Path]:
    """A profile with its table; the engines that were built for it are elsewhere than the self-test's own."""

    def make(n: int = 4) -> Path:
        folder = built(n)
        (folder / "pictures/labels.csv").unlink()
        return folder

    return make


def test_a_line_for_every_step_and_a_file(edge: Run, ready: Place) -> None:
    folder = ready()
    done = edge("selftest", "-p", "tiny", "-i", "pictures")
    assert done.code == 0, done.out + done.err
    lines = done.out.splitlines()
    words = [line.split()[0] for line in lines]
    assert words[:-2] == ["ok"] * 6 + ["skipped"] * 2 + ["ok"] * 2 + ["skipped", "ok", "skipped"] + ["ok"] * 2
    # Power and camera: this machine may have either.
    assert set(words[-2:]) <= {"ok", "skipped"}
    assert f"{words.count('ok')} ok, 0 failed, {words.count('skipped')} skipped; edge-selftest.json" in done.err
    found = json.loads((folder / "edge-selftest.json").read_text())
    assert (found["status"], len(found["steps"])) == ("complete", len(lines))
    assert "\x1b" not in done.out


def test_json_is_all_that_is_on_stdout(edge: Run, ready: Place) -> None:
    folder = ready()
    done = edge("selftest", "-p", "tiny", "-i", "pictures", "--json", "-o", "reports/first.json")
    assert json.loads(done.out) == json.loads((folder / "reports/first.json").read_text())
    assert "answers int8 explicit" in done.err


def test_a_failed_step_is_exit_code_1(edge: Run, ready: Place) -> None:
    folder = ready()
    shutil.rmtree(folder / "calib_cache")
    done = edge("selftest", "-p", "tiny", "-i", "pictures")
    assert done.code == 1
    assert "FAILED   table" in done.out
    assert "try: edge calibrate" in done.out
    assert "1 step failed" in done.err
    assert json.loads((folder / "edge-selftest.json").read_text())["status"] == "complete"


def test_engines_are_kept_where_it_is_asked_for(edge: Run, ready: Place) -> None:
    folder = ready()
    assert edge("selftest", "-p", "tiny", "-i", "pictures", "--keep", "kept").code == 0
    assert (folder / "kept/engines/int8-explicit/model-int8.onnx").is_file()
    done = edge("engine", "show", "kept/engines/int8-explicit/model-int8.onnx")
    assert "4 INT8 of 4" in done.out
    done = edge("selftest", "-p", "tiny", "-i", "pictures", "--keep", "kept")
    assert (done.code, "the folder already exists" in done.err) == (2, True)


def test_reference_answers_for_a_machine_without_onnxruntime(edge: Run, ready: Place) -> None:
    folder = ready()
    done = edge("selftest", "-p", "tiny", "-i", "pictures", "--write-reference")
    assert (done.code, done.out) == (0, "pictures/reference.json\n")
    done = edge("selftest", "-p", "tiny", "-i", "pictures")
    assert "identical to the saved ones" in done.out
    done = edge("selftest", "-p", "tiny", "-i", folder / "pictures/000.jpg", "--write-reference")
    assert (done.code, "must be in a folder" in done.err) == (2, True)


def test_pictures_that_are_not_there(edge: Run, ready: Place) -> None:
    ready()
    done = edge("selftest", "-p", "tiny", "-i", "nowhere")
    assert done.code == 6


def test_a_file_that_cannot_be_written(edge_process: Run, ready: Place, read_only: str) -> None:
    folder = ready()
    (folder / "locked").mkdir(mode=0o555)
    done = edge_process("selftest", "-p", "tiny", "-i", "pictures", "-o", "locked/report.json", limit=read_only)
    assert done.code == 9
    # What was found is on stdout all the same.
    assert "answers int8 explicit" in done.out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_leaves_the_file_and_no_folder(
    number: int, start: Run, ready: Place, gate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ready()
    closed = gate(folder / "pictures/002.jpg")
    (folder / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(folder / "tmp"))
    process = start("selftest", "-p", "tiny", "-i", "pictures")
    # The pictures' digest is the first that reads it.
    closed.wait(process)
    process.send_signal(number)
    _out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert "Traceback" not in err
    assert "skipped until it was stopped" in err
    found = json.loads((folder / "edge-selftest.json").read_text())
    assert found["status"] == "interrupted"
    assert [step["name"] for step in found["steps"]] == ["machine"]
    assert list((folder / "tmp").glob("edge-selftest-*")) == []


def test_a_table_to_publish(edge: Run, ready: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ready()
    monkeypatch.setattr("edge.cli.selftest._PUBLISH_S", 0.05)
    done = edge("selftest", "-p", "tiny", "-i", "pictures", "--publish", "out/results")
    assert done.code == 0, done.out + done.err
    found = json.loads((folder / "out/results.json").read_text())
    assert (found["format"], found["kind"], found["model"]) == (1, "published results", "model.onnx")
    assert {(row["engine"], row["batch"]) for row in found["rows"]} >= {("fp32", 1), ("int8 explicit", 1)}
    for row in found["rows"]:
        assert row["p50_ms"] > 0
        assert row["images_per_s"] > 0
        assert (row["same_top1"] or 0) <= row["pictures"] == 4
        assert (row["joules_per_inference"] is None) == (row["power_unavailable"] is not None)
    lines = (folder / "out/results.md").read_text().splitlines()
    assert lines[0].startswith("| model | precision | batch | p50 ms |")
    assert sum(line.startswith("| model.onnx | ") for line in lines) == len(found["rows"])
    # Every row has as many cells as the head.
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1


def test_nothing_to_publish(edge: Run, ready: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ready()
    monkeypatch.setattr("edge.cli.selftest._PUBLISH_S", 0.05)
    for picture in (folder / "pictures").iterdir():
        picture.write_bytes(b"broken")
    done = edge("selftest", "-p", "tiny", "-i", "pictures", "--publish", "results")
    assert done.code == 1
    assert "nothing to publish" in done.err
    assert not (folder / "results.md").exists()

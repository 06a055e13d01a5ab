from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
ASKED = ("--pictures", "3,all", "--seeds", "2", "-a", "minmax,percentile:90")


@pytest.fixture
def sets(tiny_profile: Run, pictures: Run, tmp_path: Path) -> tuple[object, ...]:
    """Options for 6 pictures to calibrate with and 20 labelled ones to score with."""
    tiny_profile("profiles")
    pictures("calibration", 6, seed=1)
    pictures("scored", 20, seed=2, labels=True)
    return ("-p", "tiny", "-i", "calibration", "--eval", "scored", "--labels", "scored/labels.csv")


def test_a_sweep_prints_a_table_and_what_it_says(edge: Run, sets: tuple) -> None:
    done = edge("sweep", *sets, *ASKED)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    rows = [line for line in lines if " [" in line and ("minmax " in line or "percentile:90 " in line)][:6]
    assert sorted(line.replace("*", " ").replace("=", " ").replace("~", " ").split()[:3] for line in rows) == sorted(
        [name, size, seed]
        for name in ("minmax", "percentile:90")
        for size, seed in (("3", "1"), ("3", "2"), ("6", "all"))
    )
    assert rows[0].startswith(" *")
    for question in ("Which algorithm?", "How many images?"):
        assert any(line.startswith(question) for line in lines)
    assert "collecting the statistics took" in done.err


def test_a_narrow_terminal_gets_what_fits(edge: Run, sets: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = edge("sweep", *sets, *ASKED)
    assert done.code == 0, done.err
    assert "±" in done.out
    assert "top-5" not in done.out
    table = done.out.split("* highest", 1)[0].splitlines()
    assert max(len(line) for line in table) <= 80
    assert len([line for line in table if "minmax" in line or "percentile:90" in line]) == 6


def test_the_labels_alone_name_the_pictures_to_score_with(edge: Run, sets: tuple) -> None:
    done = edge("sweep", "-p", "tiny", "-i", "calibration", "--labels", "scored/labels.csv", *ASKED, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["findings"]["n"] == 20


def test_json_is_all_that_is_on_stdout(edge: Run, sets: tuple) -> None:
    done = edge("sweep", *sets, *ASKED, "--json", "--limit", "12")
    found = json.loads(done.out)
    assert found["status"] == "complete"
    assert found["findings"]["n"] == 12
    assert len(found["findings"]["rows"]) >= 6
    assert found["settings"]["algorithms"] == {"minmax": {}, "percentile:90": {"percentile": 90.0}}


def test_the_profile_may_name_the_pictures(edge: Run, sets: tuple, tiny_profile: Run) -> None:
    tiny_profile("profiles", calibration={"images": "../calibration"})
    done = edge("sweep", "-p", "tiny", "--eval", "scored", "--labels", "scored/labels.csv", *ASKED, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["subject"]["calibration_pictures"] == 6


def test_repeated_options_and_commas_are_the_same(edge: Run, sets: tuple) -> None:
    done = edge("sweep", *sets, "-a", "minmax", "-a", "percentile:90, mse", "--pictures", "all", "--json")
    assert done.code == 0, done.err
    assert list(json.loads(done.out)["settings"]["algorithms"]) == ["minmax", "percentile:90", "mse"]


def test_a_page_and_a_file_are_written(edge: Run, sets: tuple) -> None:
    done = edge("sweep", *sets, *ASKED, "-o", "out/sweep.json", "--html", "out/page/sweep.html")
    assert done.code == 0, done.err
    assert Path("out/page/sweep.html").read_text().startswith("<!doctype html>")
    again = edge("sweep", "--from", "out/sweep.json", "--html", "again.html")
    assert again.code == 0, again.err
    assert again.out == done.out
    assert Path("again.html").read_bytes() == Path("out/page/sweep.html").read_bytes()


def test_the_same_command_scores_nothing_twice(edge: Run, sets: tuple) -> None:
    first = edge("sweep", *sets, *ASKED, "-o", "sweep.json")
    again = edge("sweep", *sets, *ASKED, "-o", "sweep.json")
    assert "tables were scored before" in again.err
    assert again.out == first.out


def test_ctrl_c_keeps_what_is_scored(start: Run, edge: Run, sets: tuple, gate: Any) -> None:
    pictures = Path("scored").resolve()
    held = gate(pictures / "019.jpg")
    process = start("sweep", *sets, *ASKED, "-o", "sweep.json")
    # It is read once to be hashed, and again when everything is calibrated, to be scored with.
    held.let_through(held.wait(process))
    writer = held.wait(process)
    process.send_signal(signal.SIGINT)
    held.let_through(writer)
    held.open()
    _out, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGINT, err
    assert "Traceback" not in err
    assert "the same command continues from there" in err
    assert json.loads(Path("sweep.json").read_bytes())["status"] == "interrupted"
    done = edge("sweep", *sets, *ASKED, "-o", "sweep.json")
    assert done.code == 0, done.err
    assert json.loads(Path("sweep.json").read_bytes())["status"] == "complete"


def test_ctrl_c_while_hashing_leaves_no_file(start: Run, sets: tuple, gate: Any) -> None:
    held = gate(Path("calibration").resolve() / "001.jpg")
    process = start("sweep", *sets, *ASKED, "-o", "sweep.json", "--html", "page.html")
    writer = held.wait(process)
    process.send_signal(signal.SIGTERM)
    held.let_through(writer)
    held.open()
    _out, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert "Traceback" not in err
    assert not Path("sweep.json").exists()
    assert not Path("page.html").exists()


@pytest.mark.parametrize(
    ("more", "code", "what"),
    [
        (("-a", "entropie2"), 2, "did you mean 'entropy2'"),
        (("-a", "percentile:lots"), 2, "'lots' is not a number"),
        (("-a", "minmax:1"), 2, "needs the name of its parameter"),
        (("-a", "minmax,minmax"), 2, "twice"),
        (("--pictures", "7"), 2, "7 images requested, only 6 available"),
        (("--pictures", "some"), 2, "'some' is not a number of images"),
        (("--seeds", "0"), 2, "--seeds"),
        (("--seeds", "-2"), 2, "--seeds"),
        (("--batch", "1,8"), 2, "--batch was removed: statistics do not depend on the batch"),
        (("--limit", "0"), 2, "limit"),
        (("--profile", "tinyy"), 3, "did you mean 'tiny'"),
        (("--images", "nowhere"), 6, "nowhere"),
        (("--images", "scored"), 6, "also calibration images"),
        (("--labels", "nowhere.csv"), 6, "nowhere.csv"),
        (("--output", "scored"), 9, "scored"),
        (("--html", "scored"), 9, "cannot be written"),
        (("--from", "scored/labels.csv"), 2, "--from shows an earlier sweep"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input(edge: Run, sets: tuple, more: tuple, code: int, what: str) -> None:
    done = edge("sweep", *sets, *more)
    assert what in done.err
    assert done.code == code
    assert done.out == ""


@pytest.mark.parametrize(
    ("options", "code", "what"),
    [
        ((), 2, "no images to calibrate with"),
        (("-i", "calibration"), 2, "no images to score with"),
        (("-i", "calibration", "--eval", "scored"), 6, "have no label"),
        (("--from", "missing.json"), 9, "missing.json"),
        (("--from", "scored/labels.csv"), 7, "not a record of edge sweep"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_is_missing(edge: Run, sets: tuple, options: tuple, code: int, what: str) -> None:
    Path("scored/labels.csv").rename("labels.csv") if "--eval" in options else None
    done = edge("sweep", "-p", "tiny", *options)
    assert what in done.err
    assert done.code == code


def test_an_output_about_something_else_is_refused(edge: Run, sets: tuple) -> None:
    assert edge("sweep", *sets, *ASKED, "-o", "sweep.json").code == 0
    refused = edge("sweep", *sets, *ASKED, "-o", "sweep.json", "--limit", "5")
    assert refused.code == 2
    assert "labelled:" in refused.err
    assert edge("sweep", *sets, *ASKED, "-o", "sweep.json", "--limit", "5", "--force").code == 0


def test_a_read_only_folder_is_said_before_the_work(edge_process: Run, sets: tuple, read_only: str) -> None:
    Path("locked").mkdir(mode=0o555)
    for option in ("--output", "--html"):
        done = edge_process("sweep", *sets, *ASKED, option, "locked/x", limit=read_only)
        assert done.code == 9
        assert "count:" not in done.err


def test_a_full_disk_is_an_error_and_leaves_no_half_file(edge_process: Run, sets: tuple, full_disk: str) -> None:
    done = edge_process("sweep", *sets, *ASKED, "-o", "sweep.json", limit=full_disk)
    assert done.code == 9
    assert list(Path().glob("*sweep.json*")) == []


@pytest.mark.parametrize("library", ["jinja2", "matplotlib"])
def test_a_missing_library_is_said_before_the_work(
    edge_process: Run, sets: tuple, tmp_path: Path, repository: Path, library: str
) -> None:
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / f"{library}.py").write_text(
        f"raise ModuleNotFoundError('no {library}', name='{library}')\n"
    )
    environment = {"PYTHONPATH": f"{tmp_path / 'without'}:{repository}"}
    done = edge_process("sweep", *sets, *ASKED, "--html", "page.html", env=environment)
    assert done.code == 4
    assert f"{library} is not installed" in done.err
    assert "[report]" in done.err
    assert "hash:" not in done.err
    # Without a page nothing needs it.
    assert edge_process("sweep", *sets, *ASKED, env=environment).code == 0


def test_it_is_in_the_list_of_commands(edge: Run) -> None:
    assert "Compare calibration algorithms and numbers of images." in edge("--help").out

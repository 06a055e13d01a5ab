"""Ctrl-C, SIGTERM and SIGKILL in the middle of each command.

The commands run in processes of their own. A gate is a picture that is a pipe: a command that reads it stands still in
the middle of its work until the test lets it through, so nothing here depends on how fast the machine is.
"""

from __future__ import annotations

import hashlib
import json
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge.artifacts import run_record, store
from tests.support.processes import wait_until_idle

Edge = Callable[..., Any]
Place = Callable[..., Path]
Start = Callable[..., subprocess.Popen[str]]
RUN = ("run", "--profile", "tiny", "--images", "pictures", "--record", "r.json")
CALIBRATE = ("calibrate", "--profile", "tiny", "--images", "pictures", "--threads", "1")
# One thread reads, so the picture that stands still is the last one in hand.
ONE = {"run": {"prepare": 1}}


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    assert "Traceback" not in err, err
    return process.returncode, out, err


def interrupt(process: subprocess.Popen[str], number: int = signal.SIGINT) -> None:
    """Send a signal, and wait until the process has handled it and waits for the gate again."""
    process.send_signal(number)
    wait_until_idle(process)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_run_finishes_the_picture_in_hand_and_writes_its_record(
    number: signal.Signals, start: Start, built: Place, gate: Any
) -> None:
    folder = built(**ONE)
    third = gate(folder / "pictures" / "002.jpg")
    process = start(*RUN, "--json")
    writer = third.wait(process)
    interrupt(process, number)
    assert process.poll() is None
    third.let_through(writer)
    code, out, err = finish(process)
    assert code == 128 + number
    *pictures, last = [json.loads(line) for line in out.splitlines()]
    names = [one["name"] for one in pictures]
    # A disk that stalls the command for longer than that moment lets more through; none is lost or out of turn.
    assert names[:3] == ["000.jpg", "001.jpg", "002.jpg"]
    assert names == sorted(set(names))
    assert (last["summary"]["status"], last["summary"]["pictures"]) == ("interrupted", len(names))
    kept = run_record.load(folder / "r.json")
    assert (kept.status, [result.name for result in kept.results]) == ("interrupted", names)
    assert f"stopped by {number.name}" in err


def test_a_run_says_in_plain_words_that_it_was_interrupted(start: Start, built: Place, gate: Any) -> None:
    folder = built(**ONE)
    third = gate(folder / "pictures" / "002.jpg")
    process = start(*RUN)
    writer = third.wait(process)
    interrupt(process)
    third.let_through(writer)
    code, out, err = finish(process)
    assert code == 130
    assert re.search(r"^[3-7] images in ", out, re.MULTILINE)
    assert "(interrupted)" in out
    assert "record: r.json" in err


def test_a_run_interrupted_at_its_first_picture_has_a_record_too(start: Start, built: Place, gate: Any) -> None:
    folder = built(**ONE)
    first = gate(folder / "pictures" / "000.jpg")
    process = start(*RUN)
    writer = first.wait(process)
    interrupt(process)
    first.let_through(writer)
    code, _, _ = finish(process)
    assert code == 130
    kept = run_record.load(folder / "r.json")
    assert (kept.status, kept.warmup.n) == ("interrupted", 2)
    assert 1 <= kept.pictures < 8


def test_a_second_interrupt_stops_at_once(start: Start, built: Place, gate: Any) -> None:
    folder = built(**ONE)
    third = gate(folder / "pictures" / "002.jpg")
    process = start(*RUN, "--json")
    third.wait(process)
    interrupt(process)
    assert process.poll() is None
    # The picture in hand never comes.
    process.send_signal(signal.SIGINT)
    code, out, _ = finish(process)
    assert code == 130
    assert [json.loads(line).get("name") for line in out.splitlines()] == ["000.jpg", "001.jpg"]
    # What was kept while it went, here at its beginning.
    kept = run_record.load(folder / "r.json")
    assert (kept.status, kept.pictures, kept.failure) == ("interrupted", 0, run_record.KILLED)


def test_nohup_is_respected(start: Start, built: Place, gate: Any, no_hangup: str) -> None:
    folder = built(4)
    third = gate(folder / "pictures" / "002.jpg")
    process = start(*RUN, limit=no_hangup)
    writer = third.wait(process)
    interrupt(process, signal.SIGHUP)
    third.let_through(writer)
    code, _, _ = finish(process)
    assert (code, run_record.load(folder / "r.json").pictures) == (0, 4)


def test_an_interrupted_evaluation_gives_no_figures(start: Start, built: Place, gate: Any) -> None:
    folder = built()
    third = gate(folder / "pictures" / "002.jpg")
    labels = ("--labels", "pictures/labels.csv", "--against", "fp32")
    process = start("eval", "--profile", "tiny", "--images", "pictures", *labels, "--json")
    writer = third.wait(process)
    interrupt(process)
    third.let_through(writer)
    code, out, err = finish(process)
    assert (code, out) == (130, "")
    assert "stopped by SIGINT" in err


def test_a_check_of_pictures_stops_at_once(start: Start, place: Place, gate: Any) -> None:
    folder = place()
    third = gate(folder / "pictures" / "002.jpg")
    process = start("data", "check", "pictures")
    third.wait(process)
    process.send_signal(signal.SIGINT)
    code, out, _ = finish(process)
    assert (code, out) == (130, "")


def in_counting_order(folder: Path) -> list[Path]:
    """Pictures are counted in the order of their sha256."""
    return sorted(folder.glob("*.jpg"), key=lambda path: hashlib.sha256(path.read_bytes()).hexdigest())


def visible(folder: Path) -> list[str]:
    """Names of tables and of their manifests."""
    return [path.name for path in folder.rglob("entropy2.*") if path.suffix != ".lock"]


def test_an_interrupted_calibration_goes_on_where_it_was(start: Start, edge: Edge, place: Place, gate: Any) -> None:
    folder = place(100)
    late = gate(in_counting_order(folder / "pictures")[90])
    process = start(*CALIBRATE)
    # Once to name the set of pictures, and once to count it.
    late.let_through(late.wait(process))
    writer = late.wait(process)
    interrupt(process)
    late.let_through(writer)
    code, out, err = finish(process)
    assert (code, out) == (130, "")
    assert "the same command continues from there" in err
    assert "stopped by SIGINT" in err
    assert visible(folder / "calib_cache") == []

    late.open()
    again = edge(*CALIBRATE)
    assert again.code == 0
    match = re.search(r"continuing after (\d+) of 100 images", again.err)
    assert match is not None
    assert 0 < int(match[1]) <= 91
    undisturbed = edge(*CALIBRATE, "--cache-dir", "undisturbed")
    assert undisturbed.code == 0
    tables = [folder / cache / "model" / "entropy2.table" for cache in ("calib_cache", "undisturbed")]
    assert tables[0].read_bytes() == tables[1].read_bytes()
    assert list(folder.rglob("*.partial.*")) == []


def test_a_calibration_interrupted_while_it_names_the_pictures(
    start: Start, edge: Edge, place: Place, gate: Any
) -> None:
    folder = place()
    third = gate(folder / "pictures" / "002.jpg")
    process = start(*CALIBRATE)
    writer = third.wait(process)
    interrupt(process)
    third.let_through(writer)
    code, out, _ = finish(process)
    assert (code, out) == (130, "")
    assert visible(folder) == []
    third.open()
    assert edge(*CALIBRATE).code == 0


def test_a_killed_calibration_leaves_no_table_and_can_be_done_again(
    start: Start, edge: Edge, place: Place, gate: Any
) -> None:
    folder = place(20)
    edge(*CALIBRATE, "--limit", "5")
    before = (folder / "calib_cache" / "model" / "entropy2.table").read_bytes()
    late = gate(in_counting_order(folder / "pictures")[15])
    process = start(*CALIBRATE)
    late.let_through(late.wait(process))
    late.wait(process)
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL
    # The table from before is still there, and whole.
    assert (folder / "calib_cache" / "model" / "entropy2.table").read_bytes() == before
    assert sorted(visible(folder)) == ["entropy2.json", "entropy2.table"]

    late.open()
    # The lock of the dead process does not hold, and its leftovers do not matter.
    assert edge(*CALIBRATE).code == 0
    edge(*CALIBRATE, "--cache-dir", "undisturbed")
    tables = [folder / cache / "model" / "entropy2.table" for cache in ("calib_cache", "undisturbed")]
    assert tables[0].read_bytes() == tables[1].read_bytes() != before


@pytest.mark.slow
def test_a_killed_calibration_goes_on_from_its_checkpoint(start: Start, edge: Edge, place: Place, gate: Any) -> None:
    """A checkpoint is written every second: the first gate holds for longer, and the second is behind it."""
    folder = place(160)
    order = in_counting_order(folder / "pictures")
    early, late = gate(order[10]), gate(order[150])
    process = start(*CALIBRATE)
    # Named in the order of the folder, which is another one.
    for one in sorted((early, late), key=lambda one: one.name):
        one.let_through(one.wait(process))
    writer = early.wait(process)
    time.sleep(1.5)
    early.let_through(writer)
    late.wait(process)
    process.kill()
    finish(process)
    assert visible(folder) == []
    assert list(folder.rglob("*.partial.json"))

    early.open()
    late.open()
    again = edge(*CALIBRATE)
    assert again.code == 0
    assert re.search(r"continuing after [1-9]\d* of 160 images", again.err)
    edge(*CALIBRATE, "--cache-dir", "undisturbed")
    tables = [folder / cache / "model" / "entropy2.table" for cache in ("calib_cache", "undisturbed")]
    assert tables[0].read_bytes() == tables[1].read_bytes()
    assert list(folder.rglob("*.partial.*")) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_leaves_no_engine(number: signal.Signals, start: Start, edge: Edge, place: Place) -> None:
    """The lock of the engine is held here, so that the build cannot come to its end."""
    folder = place(4)
    assert edge("calibrate", "--profile", "tiny", "--images", "pictures").code == 0
    with store.lock(folder / "engines" / "tiny" / "model-int8.json"):
        process = start("build", "--profile", "tiny")
        assert process.stderr is not None
        assert process.stderr.readline().startswith("profile tiny")
        wait_until_idle(process)
        process.send_signal(number)
        code, out, err = finish(process)
    assert (code, out) == (128 + number, "")
    assert f"stopped by {number.name}" in err
    assert [path.name for path in (folder / "engines" / "tiny").iterdir() if path.suffix != ".lock"] == []
    assert edge("build", "--profile", "tiny").code == 0


def test_a_signal_before_the_work_stops_at_once(start: Start, place: Place) -> None:
    """Without anything in hand there is nothing to finish: the table is missing, or the command is not that far."""
    folder = place(2)
    with store.lock(folder / "calib_cache" / "model" / "entropy2.table"):
        process = start(*CALIBRATE)
        assert process.stderr is not None
        assert process.stderr.readline().startswith("profile tiny")
        process.send_signal(signal.SIGTERM)
        wait_until_idle(process)
        if process.poll() is None:
            # It waits for the lock, and has noted the first one.
            process.send_signal(signal.SIGTERM)
        code, out, _ = finish(process)
    # The second one may find an interpreter that is already ending, and has put its handlers away.
    assert code in (128 + signal.SIGTERM, -signal.SIGTERM)
    assert out == ""
    assert visible(folder) == []

"""``edge report`` as it is typed: a page, data, and records that cannot be used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge.artifacts import run_record
from tests.support.run_records import made

Edge = Callable[..., Any]
Place = Callable[..., Path]


@pytest.fixture
def two(tmp_path: Path) -> tuple[str, str]:
    run_record.save(tmp_path / "a.json", made(100, live=False, timeline=[]))
    run_record.save(tmp_path / "b.json", made(100, live=False, timeline=[], slower=1.5, seed=1))
    return "a.json", "b.json"


def test_from_a_run_to_a_page(edge: Edge, built: Place) -> None:
    folder = built()
    assert edge("run", "--profile", "tiny", "--images", "pictures", "--record", "r.json").code == 0
    ended = edge("report", "r.json", "-o", "out/report.html")
    assert (ended.code, ended.out) == (0, "")
    assert "page: out/report.html" in ended.err
    assert "model, int8, on" in (folder / "out" / "report.html").read_text()


def test_two_records_and_their_differences(edge: Edge, two: tuple[str, str]) -> None:
    ended = edge("report", *two, "-o", "r.html")
    assert ended.code == 0
    assert "B b.json against A a.json" in ended.out
    assert "differs" in ended.out


def test_json_is_the_comparison_without_a_page(edge: Edge, two: tuple[str, str], tmp_path: Path) -> None:
    ended = edge("report", *two, "--json")
    assert (ended.code, ended.err) == (0, "")
    content = json.loads(ended.out)
    assert [run["letter"] for run in content["runs"]] == ["A", "B"]
    assert "results" not in content["runs"][0]["record"]
    [pair] = content["comparison"]["pairs"]
    assert pair["differences"][0]["differs"] is True
    assert list(tmp_path.glob("*.html")) == []


def test_nothing_to_do(edge: Edge, two: tuple[str, str]) -> None:
    assert edge("report", *two).code == 2
    assert edge("report", "-o", "r.html").code == 2
    assert edge("report", "--json").code == 2


def test_a_record_is_never_written_over(edge: Edge, two: tuple[str, str], tmp_path: Path) -> None:
    before = (tmp_path / "b.json").read_bytes()
    ended = edge("report", *two, "-o", "./b.json")
    assert ended.code == 2
    assert (tmp_path / "b.json").read_bytes() == before


@pytest.mark.parametrize("output", ["folder", "a.json/r.html"])
def test_a_page_that_cannot_be_written_is_said_first(output: str, edge: Edge, two: tuple[str, str]) -> None:
    Path("folder").mkdir()
    ended = edge("report", *two, "-o", output)
    assert ended.code == 9
    assert "the page cannot be written" in ended.err


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"", "not a run record"), (b'{"format": 1}', "repeat the run"), (b"\xff\xfe", "not a run record")],
)
def test_what_is_no_record_is_said_with_its_name(data: bytes, words: str, edge: Edge, two: tuple[str, str]) -> None:
    Path("bad.json").write_bytes(data)
    ended = edge("report", two[0], "bad.json", "-o", "r.html")
    assert ended.code == 7
    assert "bad.json" in ended.err
    assert words in ended.err
    assert not Path("r.html").exists()


def test_a_disk_that_is_full(edge_process: Callable[..., Any], two: tuple[str, str], full_disk: str) -> None:
    ended = edge_process("report", *two, "-o", "r.html", limit=full_disk)
    assert ended.code == 9
    assert not Path("r.html").exists()

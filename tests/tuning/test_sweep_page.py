from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from edge.errors import DataError
from edge.stats import Interval
from edge.tuning import sweep_page
from edge.tuning.sweep_page import Point, RankingBar
from edge.tuning.sweep_record import Record
from tests.support.html_reader import Reader

NASTY = "<script>alert('x')</script> & \"more\""


MADE: dict[str, Any] = {}


@pytest.fixture
def found(bench: Callable[..., Any]) -> Record:
    """Two algorithms with 4 and 12 pictures; the same sweep for every test."""
    if "record" not in MADE:
        MADE["record"] = bench()()
    return MADE["record"]


@pytest.fixture
def page(found: Record) -> str:
    """Its page."""
    if "page" not in MADE:
        MADE["page"] = sweep_page.render(found)
    return MADE["page"]


def test_the_page_shows_everything_and_is_whole(found: Record, page: str) -> None:
    read = Reader(page)
    # Two measures of two algorithms, and two rankings.
    assert read.tags.count("svg") == 6
    # The rows and their head; the matrix of two and its head.
    assert read.tags.count("tr") == 6 + 1 + 2 + 1
    for word in ("minmax", "percentile:90", "McNemar", "Holm", "model.onnx", found.key["model"][:12]):
        assert word in read.text
    assert found.findings is not None
    for row in found.findings.rows:
        assert f"{row.sqnr_db.value:.2f}" in read.text


def test_the_page_needs_nothing_from_elsewhere(page: str) -> None:
    text = page
    read = Reader(text)
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(read.tags)
    assert [value for name, value in read.attributes if name in {"src", "href"}] == []
    assert {value for name, value in read.attributes if name == "xlink:href" and not value.startswith("#")} == set()
    addresses = set(re.findall(r"https?://[^\s\"')<]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert len(text) < 100_000


def test_every_colour_is_one_of_the_style_sheet(page: str) -> None:
    text = page
    used = set(re.findall(r"var\((--\w+)\)", text))
    defined = set(re.findall(r"(--\w+):", text))
    assert used <= defined
    assert "#0a0b" not in text
    assert "#0a0c" not in text


def test_what_the_plots_refer_to_is_there_once(page: str) -> None:
    read = Reader(page)
    ids = [value for name, value in read.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    wanted = {value[1:] for name, value in read.attributes if name == "xlink:href"}
    wanted |= {match for _name, value in read.attributes for match in re.findall(r"url\(#(\w+)\)", value)}
    assert wanted <= set(ids)


def test_words_from_outside_are_escaped(found: Record) -> None:
    nasty = msgspec.structs.replace(
        found,
        warnings=[NASTY],
        subject={**found.subject, "model": NASTY, "profile": NASTY, "device": {"cpu": NASTY, "machine": None}},
    )
    text = sweep_page.render(nasty)
    assert "<script" not in text
    assert Reader(text).text.count(NASTY) >= 4


def test_the_same_record_gives_the_same_page(found: Record, page: str) -> None:
    assert sweep_page.render(found) == page


def test_an_unfinished_sweep_says_so(found: Record, page: str) -> None:
    text = sweep_page.render(msgspec.structs.replace(found, status="interrupted"))
    assert "Stopped before the end" in text
    assert "Stopped before the end" not in page


def test_one_algorithm_and_one_number_of_pictures_make_a_page(bench: Callable[..., Any]) -> None:
    read = Reader(sweep_page.render(bench()(algorithms=("minmax",), sizes=(12,))))
    assert read.tags.count("svg") == 4
    assert "Against each other" not in read.text


def test_more_algorithms_than_colours_make_a_page(bench: Callable[..., Any]) -> None:
    words = tuple(f"percentile:{80 + i}" for i in range(9))
    read = Reader(sweep_page.render(bench()(algorithms=words, sizes=(12,))))
    assert read.tags.count("svg") == 20
    assert "percentile:88" in read.text


def test_a_table_from_another_batch_is_named_as_such(found: Record) -> None:
    assert found.findings is not None
    row = found.findings.rows[0]
    other = msgspec.structs.replace(row, configuration=msgspec.structs.replace(row.configuration, batch=8))
    rows = [other, *found.findings.rows]
    findings = msgspec.structs.replace(found.findings, rows=rows)
    assert "batch 8" in Reader(sweep_page.render(msgspec.structs.replace(found, findings=findings))).text


def test_nothing_found_is_no_page(found: Record) -> None:
    with pytest.raises(DataError, match="no table was scored"):
        sweep_page.render(msgspec.structs.replace(found, findings=None))


# plots


def points(*values: float) -> list[Point]:
    return [
        Point(50 * 2**i, Interval(value, value - 1.0, value + 1.0), value - 0.2, value + 0.2)
        for i, value in enumerate(values)
    ]


def test_a_trend_says_what_it_is_in_words_and_keeps_text_as_text() -> None:
    svg = sweep_page.trend_chart(
        points(18.0, 19.0), [points(17.0, 17.5)], index=3, limits=(15, 21), unit="dB", title='a < "b"'
    )
    read = Reader(svg)
    assert ("role", "img") in read.attributes
    assert ("aria-label", 'a < "b"') in read.attributes
    for word in ("50", "100", "calibration images", "dB"):
        assert word in read.text
    assert "var(--s3)" in svg
    assert ("viewbox", "0 0 237.6 169.2") in read.attributes
    assert "<style" not in svg
    assert "width=" not in svg.split(">", 1)[0]


def test_one_number_of_pictures_is_a_trend_too() -> None:
    assert "50" in Reader(sweep_page.trend_chart(points(18.0), [], index=0, limits=(15, 21), unit="dB", title="t")).text


def test_a_ranking_has_a_line_for_each() -> None:
    bars = [RankingBar("percentile:99.9999, 400", 0, None), RankingBar("second <b>", 9, Interval(-1.0, -2.0, 0.5))]
    read = Reader(sweep_page.ranking_chart(bars, unit="points", title="t"))
    for word in ("percentile:99.9999, 400", "second <b>", "points"):
        assert word in read.text


def test_a_matplotlibrc_of_the_user_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib as mpl

    expected = sweep_page.ranking_chart([RankingBar("a", 0, Interval(1.0, 0.5, 1.5))], unit="dB", title="t")
    with mpl.rc_context({"font.size": 30, "axes.grid": True, "svg.fonttype": "path", "lines.linewidth": 9}):
        assert sweep_page.ranking_chart([RankingBar("a", 0, Interval(1.0, 0.5, 1.5))], unit="dB", title="t") == expected

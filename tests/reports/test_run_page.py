from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge.artifacts.run_record import Gap, Guess, LabelCount, RunRecord, Skip
from edge.errors import DataError
from edge.reports import run_comparison, run_page
from edge.reports.loaded_runs import load_runs
from edge.reports.run_page import render, throttled
from edge.stats import energy_text
from tests.support.html_reader import Reader
from tests.support.run_records import ORIN, made

Keep = Callable[..., Path]
# Without the plots over time, a page takes half of the time.
SHORT: dict[str, Any] = {"timeline": []}
NASTY = "</style></script><script>alert('x')</script><img src=x onerror=alert(1)> $\\frac{1}{$ & \"more\" {{ 7*7 }}"


@pytest.fixture
def shown(keep: Keep) -> Callable[..., str]:
    """``shown(record, …, across=False)``: the page about these records."""

    def make(*every: RunRecord, across: bool = False) -> str:
        runs = load_runs([keep(f"{i}.json", record) for i, record in enumerate(every)])
        return render(runs, run_comparison.compare(runs, across=across))

    return make


def test_one_run_has_everything(shown: Callable[..., str]) -> None:
    read = Reader(shown(made()))
    # Distribution, stages, time line, power and heat.
    assert read.tags.count("svg") == 4
    for words in (
        "efficientnet_lite0, int8, on Orin Nano 8GB developer kit", "bbbbbbbbbbbb", "cccccccccccc", "dddddddddddd",
        "eeeeeeeeeeee", "JetPack 6.2", "25W", "module_input by hwmon", "700.0 ± 7.0", "net 230",
            "giant panda", "33.3 %",
        "4.5 s without frames, reopened as /dev/video1, 3 tries", "skipped 0007.jpg: the image is empty",
        "throttled for 6 s by cpu-throttle-alert", "oc3_event_cnt 2", "from capture to label", "nearest-rank",
    ):  # fmt: skip
        assert words in re.sub(r"\s+", " ", read.text), words
    assert "against" not in read.text


def test_the_page_needs_nothing_from_elsewhere(shown: Callable[..., str]) -> None:
    text = shown(made(), made(seed=1, **SHORT))
    read = Reader(text)
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & set(read.tags)
    assert [value for name, value in read.attributes if name in {"src", "href"}] == []
    assert {value for name, value in read.attributes if name == "xlink:href" and not value.startswith("#")} == set()
    addresses = set(re.findall(r"https?://[^\s\"')<]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_nothing_out_of_a_record_becomes_markup(shown: Callable[..., str]) -> None:
    record = made(
        20, failure=NASTY, status="failed", replayed=NASTY, warnings=[NASTY], stages_absent={NASTY: NASTY},
        skipped=[Skip(0, NASTY, NASTY)], top_labels=[LabelCount(0, NASTY, 3)], power_unavailable=NASTY,
        edge_version=NASTY, started_utc=NASTY,
        gaps=[Gap(start_s=1.0, end_s=2.0, reason=NASTY, hint=NASTY, reopened_as=NASTY)],
        conditions={"temps_c": {NASTY: {"high": 3.0}}, "throttles": {NASTY: 4}},
        source={"kind": NASTY, "opened_as": NASTY, "width": NASTY, "height": NASTY, "live": NASTY},
    )  # fmt: skip
    names = ("profile", "model", "engine_sha256", "table_sha256", "precision", "source")
    record = msgspec.structs.replace(
        record,
        subject=msgspec.structs.replace(
            record.subject, **dict.fromkeys(names, NASTY),
            device=dict.fromkeys(("product", "power_mode", "module", "jetpack"), NASTY),
            backend={NASTY: NASTY}, layers={"weighted": NASTY, "weighted_int8": NASTY},
        ),
        results=[msgspec.structs.replace(r, name=NASTY, guesses=[Guess(0, NASTY, 1.0)]) for r in record.results],
        timeline=[
            msgspec.structs.replace(t, temps_c={NASTY: 50.0}, throttling=(NASTY,), loads_percent={NASTY: 3.0})
            for t in record.timeline
        ],
        latency={**record.latency, NASTY: record.latency["total"]},
    )  # fmt: skip
    for one, across in ((record, False), (msgspec.structs.replace(record, timeline=[]), True)):
        text = shown(one, made(20, **SHORT), across=across)
        read = Reader(text)
        assert not {"script", "img"} & set(read.tags)
        assert not [name for name, _value in read.attributes if name.startswith("on")]
        assert "<script" not in text
        assert "49" not in re.findall(r"\{\{.*?\}\}", text)
        assert read.text.count("{{ 7*7 }}") > 10


def test_differences_and_why_there_are_none(shown: Callable[..., str]) -> None:
    other = made(seed=2, **SHORT)
    other = msgspec.structs.replace(
        other, subject=msgspec.structs.replace(other.subject, device={**ORIN, "power_mode": "15W"})
    )
    text = re.sub(r"\s+", " ", Reader(shown(made(**SHORT), made(slower=1.4, seed=1, **SHORT), other)).text)
    assert "B against A" in text
    assert "C against" not in text
    assert "Not on one axis. C and A have no common axis: power mode 15W against 25W" in text
    assert "moving block bootstrap" in text
    together = re.sub(r"\s+", " ", Reader(shown(made(**SHORT), other, across=True)).text)
    assert "Put on one axis although they are not alike" in together
    assert "differ in power mode" in together


def test_plots_of_unlike_runs_are_apart(shown: Callable[..., str]) -> None:
    other = made(seed=2, **SHORT)
    other = msgspec.structs.replace(
        other, subject=msgspec.structs.replace(other.subject, device={**ORIN, "power_mode": "15W"})
    )
    titles = [value for name, value in Reader(shown(made(**SHORT), other)).attributes if name == "aria-label"]
    assert not [title for title in titles if "A, B" in title]
    titles = [
        value for name, value in Reader(shown(made(**SHORT), made(seed=2, **SHORT))).attributes if name == "aria-label"
    ]
    assert len([title for title in titles if "A, B" in title]) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"results": [], "results_kept": "newest", **SHORT},
        {"histogram": {}, **SHORT},
        {"latency": {}, "histogram": {}, **SHORT},
        {"power": None, "power_unavailable": None, "conditions": {}},
        {"conditions": {"temps_c": 7, "throttles": "x"}, "source": {}, "skipped_count": 5000, **SHORT},
        {
            "conditions": {"temps_c": {"tj": 5, "cpu": {"high": "hot"}}},
            "top_labels": [LabelCount(0, "x", 10**9)],
            **SHORT,
        },
        {"gaps": [Gap(start_s=50.0, end_s=None, reason="gone")]},
        {"gaps": [Gap(start_s=float(i), end_s=i + 0.5, reason="gone") for i in range(50)]},
        {"top_labels": [], "skipped": [], "skipped_count": 0, **SHORT},
        {"measured_s": 0.0},
    ],
)
def test_a_record_with_less_in_it(changes: dict[str, Any], shown: Callable[..., str]) -> None:
    Reader(shown(made(60, **changes)))


def test_one_picture_and_none(shown: Callable[..., str]) -> None:
    Reader(shown(made(1, live=False)))
    Reader(shown(made(0), made(5)))
    with pytest.raises(DataError, match="nothing to show"):
        shown(made(0))


def test_eight_runs(shown: Callable[..., str]) -> None:
    read = Reader(shown(*(made(40, seed=i, **SHORT) for i in range(8))))
    assert "H against A" in read.text


def test_the_same_records_give_the_same_page(shown: Callable[..., str]) -> None:
    assert shown(made(), made(20, **SHORT)) == shown(made(), made(20, **SHORT))


def test_throttled_stretches_are_joined() -> None:
    ticks = made().timeline
    assert throttled(ticks) == [(40.0, 46.0)]
    assert throttled([]) == []
    assert throttled([msgspec.structs.replace(tick, throttling=("x",)) for tick in ticks]) == [(0.0, 60.0)]


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (0.0, "0.00"), (1.234, "1.23"), (12.34, "12.3"), (1234.5, "1234")]
)
def test_milliseconds(value: float | None, text: str) -> None:
    assert run_page.ms(value) == text


BENCH = {
    "scenario": "single-stream", "percentile": 0.9, "percentile_ms": 7.31, "estimate_ms": 7.52, "by_the_rules": False,
    "why_not": ["it ran for 60.0 s; the rules require 600 s"],
}  # fmt: skip


def test_a_scenario_has_its_result_and_whether_it_was_by_the_rules(shown: Callable[..., str]) -> None:
    text = Reader(shown(made(**SHORT, bench=BENCH))).text
    for words in ("7.31", "90th percentile", "at most 7.52 ms with 99 % confidence", "NOT followed: it ran for 60.0 s"):
        assert words in text
    assert "Not by the rules of MLPerf: it ran for 60.0 s" in " ".join(text.split())
    text = Reader(shown(made(**SHORT, bench={**BENCH, "by_the_rules": True, "why_not": []}))).text
    assert "followed" in text
    assert "Not by the rules" not in text


def test_a_scenario_times_queries_and_a_run_pictures(shown: Callable[..., str]) -> None:
    run, bench = made(**SHORT), made(**SHORT, bench=BENCH)
    alone, other = Reader(shown(run)).text, Reader(shown(bench)).text
    assert "From the start of decoding an image" in alone
    assert "query" not in alone
    assert "From the start of decoding an image" not in other
    assert "From the issue of a query" in other
    assert f"n = {run_page.count(bench.latency['total'].n)} queries of 1" in other
    both = Reader(shown(run, bench)).text
    assert "From the start of decoding an image" in both
    assert "From the issue of a query" in both


def test_scenarios_and_runs_are_not_on_one_axis(shown: Callable[..., str]) -> None:
    text = Reader(
        shown(made(**SHORT), made(**SHORT, bench=BENCH), made(**SHORT, bench={**BENCH, "scenario": "multi-stream"}))
    ).text
    assert "measurement bench, single-stream against run" in text
    assert "measurement bench, multi-stream against bench, single-stream" in text


@pytest.mark.parametrize(
    "bench",
    [
        {},
        {"scenario": NASTY, "why_not": [NASTY, 3]},
        {"percentile": "x", "percentile_ms": None},
        {"percentile": 0.9, "percentile_ms": True, "why_not": "no list"},
    ],
)
def test_a_scenario_out_of_a_strange_record(bench: dict[str, Any], shown: Callable[..., str]) -> None:
    page_text = shown(made(**SHORT, bench=bench))
    assert "<script>alert" not in page_text
    Reader(page_text)


@pytest.mark.parametrize(
    ("value_mj", "error_mj", "text"),
    [
        (1094.2, 13.0, "1.094 ± 0.013 J"),
        (43.21, 0.5, "43.21 ± 0.50 mJ"),
        (43.21, None, "43.2 mJ"),
        (0.0421, 0.001, "42.1 ± 1.0 µJ"),
        (999.9, 150.0, "1000 ± 150 mJ"),
        (-2500.0, None, "-2.50 J"),
        (0.0, None, "0 µJ"),
        (12.0, 0.0, "12.0 mJ"),
    ],
)
def test_an_energy_has_the_unit_that_reads_best(value_mj: float, error_mj: float | None, text: str) -> None:
    assert " ".join(energy_text(value_mj, error_mj)) == text


def test_that_runs_are_replays_is_said_once(shown: Callable[..., str]) -> None:
    records = [
        made(
            20,
            **SHORT,
            replayed="rec",
            warnings=["power and temperatures are replayed from rec: they were not measured"],
        )
        for _ in range(2)
    ]
    text = re.sub(r"\s+", " ", Reader(shown(*records)).text)
    assert "power and temperatures are replayed" not in text
    assert "A, B are replays of rec" in text

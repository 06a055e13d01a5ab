from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from prometheus_client import openmetrics, parser
from prometheus_client.openmetrics import parser as openmetrics_parser

from edge.artifacts.run_record import Gap, NotifyCounts, Skip
from edge.runtime.run_statistics import RunStatistics
from edge.telemetry.sources import Reading
from edge.ui.web.metrics import Metrics
from tests.support.run_records import made

Make = Callable[..., Any]
OPENMETRICS = "application/openmetrics-text; version=1.0.0"
DOCUMENTED = {
    "edge_run", "edge_run_start_time_seconds", "edge_frames", "edge_backend_messages", "edge_source_up",
    "edge_source_gaps",
    "edge_source_gap_seconds", "edge_stage_seconds", "edge_energy_joules", "edge_power_watts",
    "edge_temperature_celsius", "edge_load_ratio", "edge_clock_hertz", "edge_throttling", "edge_throttle_events",
}  # fmt: skip
# Of several cameras, and of notifications.
MORE = {"edge_source_reconnects", "edge_camera_seconds", "edge_notifications", "edge_notifications_waiting"}


def samples(text: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in parser.text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def test_everything_has_its_name_unit_and_value(running: Make) -> None:
    run = running()
    for seq in range(10):
        run.label(seq)
    run.hear(
        Skip(7, "7.jpg", "broken"),
        Gap(start_s=1.0, end_s=None, reason="gone"), Gap(start_s=1.0, end_s=3.5, reason="gone"),
        Gap(start_s=9.0, end_s=None, reason="gone"),
    )  # fmt: skip
    answer = run.ask("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    found = samples(answer.body.decode())
    assert {labels["outcome"]: value for labels, value in found["edge_frames_total"]} == {
        "labelled": 10.0, "skipped": 1.0, "dropped": 3.0,
    }  # fmt: skip
    assert found["edge_source_up"] == [({}, 0.0)]
    assert found["edge_source_gaps_total"] == [({}, 2.0)]
    assert found["edge_source_gap_seconds_total"] == [({}, 2.5)]
    scope = {"scope": "module_input", "source": "hwmon"}
    assert found["edge_power_watts"] == [(scope, 7.0)]
    assert found["edge_energy_joules_total"] == [(scope, 12.5)]
    assert found["edge_temperature_celsius"] == [({"sensor": "tj"}, 51.5)]
    assert found["edge_load_ratio"] == [({"unit": "gpu"}, 0.8)]
    assert found["edge_clock_hertz"] == [({"unit": "gpu"}, 625e6)]
    assert found["edge_throttling"] == [({"by": "cpu-throttle-alert"}, 1.0)]
    assert found["edge_throttle_events_total"] == [({"counter": "oc3_event_cnt"}, 4.0)]
    assert found["edge_run_start_time_seconds"] == [({}, 1e9)]
    [(about, one)] = found["edge_run_info"]
    assert one == 1.0
    assert about["precision"] == "int8"


def test_a_histogram_adds_up(running: Make) -> None:
    run = running()
    for seq in range(20):
        run.label(seq)
    found = samples(run.ask("/metrics").body.decode())
    results = made(30).results[:20]
    for stage in ("decode", "infer", "total", "age"):
        times = [getattr(result.stages, f"{stage}_ms") / 1e3 for result in results]
        buckets = [
            (float(labels["le"]), n) for labels, n in found["edge_stage_seconds_bucket"] if labels["stage"] == stage
        ]
        for bound, n in buckets:
            assert sum(time <= bound / 1.01 for time in times) <= n <= sum(time <= bound * 1.01 for time in times)
        assert [n for _bound, n in buckets] == sorted(n for _bound, n in buckets)
        assert buckets[-1] == (float("inf"), 20.0)
        [total] = [value for labels, value in found["edge_stage_seconds_sum"] if labels["stage"] == stage]
        assert total == pytest.approx(sum(times))


def test_both_formats_are_read_by_prometheus_own_parsers(running: Make) -> None:
    run = running()
    run.label()
    plain = list(parser.text_string_to_metric_families(run.ask("/metrics").body.decode()))
    answer = run.ask("/metrics", accept=OPENMETRICS)
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    strict = list(openmetrics_parser.text_string_to_metric_families(answer.body.decode()))
    assert {family.name for family in strict} == DOCUMENTED
    assert len(plain) == len(strict)
    assert openmetrics is not None


def test_the_list_in_the_documentation_is_whole(repository: Any) -> None:
    text = (repository / "docs" / "web.md").read_text()
    for name in DOCUMENTED | MORE:
        assert f"`{name}" in text, name


def test_hostile_names_are_escaped() -> None:
    nasty = 'a"b\\c\nd{}#= \u2028'
    reading = Reading(t_s=0.0, power_mw=1.0, temps_c={nasty: 1.0}, throttling=(nasty,), throttles={nasty: 1})
    subject = msgspec.structs.replace(
        made(1).subject, profile=nasty, model=nasty, backend={"backend": nasty}, device={}
    )
    metrics = Metrics(RunStatistics(reading=lambda: reading), subject, power=(nasty, nasty))
    data, _kind = metrics.text()
    found = samples(data.decode())
    assert found["edge_temperature_celsius"] == [({"sensor": nasty}, 1.0)]
    assert found["edge_run_info"][0][0]["profile"] == nasty


def test_what_is_not_measured_is_absent() -> None:
    metrics = Metrics(RunStatistics(), made(1).subject)
    data, _kind = metrics.text()
    found = samples(data.decode())
    assert not [name for name in found if "power" in name or "temperature" in name or "energy" in name]
    assert {labels["outcome"] for labels, _value in found["edge_frames_total"]} == {"labelled", "skipped"}


def test_labels_of_pictures_are_not_metrics(running: Make) -> None:
    run = running()
    run.label()
    assert b"hen" not in run.ask("/metrics").body


def test_metrics_without_a_page(running: Make) -> None:
    run = running(has_page=False, token="a-token-of-this-test")
    assert run.ask("/").status == 401
    assert run.ask("/", authorization="Bearer a-token-of-this-test").status == 404
    assert run.ask("/metrics", authorization="Bearer a-token-of-this-test").status == 200


def everything() -> dict[str, list[tuple[dict[str, str], float]]]:
    """What a run with two cameras, a target and a Jetson's telemetry exposes."""
    reading = Reading(
        t_s=0.0, power_mw=7000.0, temps_c={"tj": 51.5}, loads_percent={"gpu": 80.0}, clocks_mhz={"gpu": 625.0},
        throttles={"oc3_event_cnt": 4}, throttling=("cpu-throttle-alert",),
    )  # fmt: skip
    target = NotifyCounts(
        target="https://***@host/hook", sent=3, failed=1, retried=2, dropped=0, waiting=1, last_error=None
    )
    statistics = RunStatistics(
        dropped=lambda: 3, cameras={"front": lambda: 2, "gate": lambda: 1}, reading=lambda: reading,
        notify=lambda: (target,),
    )  # fmt: skip
    for camera in ("front", "gate"):
        for result in made(3).results:
            stages = msgspec.structs.replace(result.stages, age_ms=20.0)
            statistics.record(msgspec.structs.replace(result, camera=camera, stages=stages))
        statistics.record(Gap(start_s=1.0, end_s=2.0, reason="gone", camera=camera))
    metrics = Metrics(statistics, made(1).subject, power=("module_input", "hwmon"), joules=lambda: 12.5)
    return samples(metrics.text()[0].decode())


def test_each_camera_and_each_target_has_its_own() -> None:
    found = everything()
    assert found["edge_notifications_total"][0] == ({"target": "https://***@host/hook", "outcome": "sent"}, 3.0)
    assert found["edge_notifications_waiting"] == [({"target": "https://***@host/hook"}, 1.0)]
    assert [labels["camera"] for labels, _ in found["edge_source_reconnects_total"]] == ["front", "gate"]
    counts = [
        (labels["camera"], value) for labels, value in found["edge_camera_seconds_count"] if labels["stage"] == "age"
    ]
    assert counts == [("front", 3.0), ("gate", 3.0)]


def test_the_dashboard_asks_for_what_a_run_exposes(repository: Any) -> None:
    board = json.loads((repository / "docs/grafana/edge.json").read_text())
    found = everything()
    asked = set()
    for panel in board["panels"]:
        for target in panel["targets"]:
            assert target["expr"].count("(") == target["expr"].count(")")
            for name, matchers in re.findall(r"\b(edge_\w+)\{([^}]*)\}", target["expr"]):
                asked.add(name)
                labels = set().union(*(set(labels) for labels, _value in found[name]))
                used = set(re.findall(r"(\w+)(?:=~|!~|=|!=)\"", matchers)) - {"job", "instance"}
                assert used <= labels, (panel["title"], name)
                for label, value in re.findall(r'(\w+)="([^"$]+)"', matchers):
                    assert value in {labels[label] for labels, _value in found[name]}, (panel["title"], value)
            names = {
                label
                for name in re.findall(r"\b(edge_\w+)\{", target["expr"])
                for labels, _ in found[name]
                for label in labels
            }
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= names | {"instance"}, panel["title"]
    # Histograms and counters under the names of their samples.
    exposed = {re.sub(r"_(bucket|sum|count|total|created)$", "", name) for name in found}
    shown = {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in asked}
    assert exposed - shown == set()
    ids = [panel["id"] for panel in board["panels"]]
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in board["panels"]]
    assert len(set(ids)) == len(ids)
    assert len(set(places)) == len(places)
    assert {variable["name"] for variable in board["templating"]["list"]} == {"datasource", "job", "instance"}

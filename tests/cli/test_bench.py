"""``edge bench`` and ``edge power`` as they are typed, and the power options of ``edge run``."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.artifacts import run_record
from edge.runtime import benchmark
from tests.support.network_camera import Server

Edge = Callable[..., Any]
Place = Callable[..., Path]
BENCH = ("bench", "--profile", "tiny", "--min-duration", "0.4s", "--samples", "4", "--warm-up", "0s")
LINE = "RAM 3000/7620MB (lfb 8x4MB) CPU [10%@1510] GR3D_FREQ 55% cpu@50C VDD_IN {mw}mW/1mW VDD_SOC 2100mW/1mW\n"


def tegrastats_log(path: Path) -> Path:
    path.write_text("".join(LINE.format(mw=5000 + i) for i in range(4000)))
    return path


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


@pytest.mark.parametrize("scenario", ["single-stream", "multi-stream", "offline"])
def test_a_short_run_gives_a_result_and_says_that_it_is_not_by_the_rules(
    edge: Edge, built: Place, scenario: str
) -> None:
    built()
    ended = edge(*BENCH, "-s", scenario, "--min-samples", "16", "--images", "pictures", "--record", "b.json", "--json")
    assert ended.code == 0, ended.err
    assert "0.4 s: shorter than MLPerf's rules require (600 s)" in ended.err
    result = json.loads(ended.out)["bench"]
    assert (result["scenario"], result["by_the_rules"]) == (scenario, False)
    assert result["rate_per_s"] > 0
    kept = run_record.load(Path("b.json"))
    assert kept.bench is not None
    assert kept.source["samples"] == "pictures"
    assert kept.pictures == result["samples"] >= 16
    assert kept.results == []


def test_two_precisions_side_by_side(edge: Edge, built: Place) -> None:
    built()
    assert edge("build", "--profile", "tiny", "--precision", "fp32").code == 0
    ended = edge(*BENCH, "--compare", "fp32,int8", "--images", "pictures")
    assert ended.code == 0, ended.err
    for words in ("fp32", "int8", "images per second", "agreement with FP32, %", "not measured"):
        assert words in ended.out
    assert re.search(r"int8 is .* fp32, agrees with FP32 on .* images\. On this host's CPU", ended.out), ended.out
    found = json.loads(edge(*BENCH, "--compare", "fp32,int8", "--json").out)
    first, second = found["precisions"]
    assert (first["precision"], second["precision"]) == ("fp32", "int8")
    assert first["rate_per_s"] > 0
    assert second["median_ms"] > 0
    assert first["agreement"] is None, "not measured without images"
    assert second["mj_per_picture"] is None
    assert len(found["records"]) == 2


def test_the_verdict_of_a_comparison() -> None:
    fp16 = {"precision": "fp16", "rate_per_s": 100.0, "mj_per_picture": 20.0, "agreement": 100.0, "pictures": 50}
    int8 = {"precision": "int8", "rate_per_s": 150.0, "mj_per_picture": 12.0, "agreement": 98.0, "pictures": 50}
    assert benchmark.compare_precisions(fp16, int8) == (
        "int8 is 1.50 times as fast as fp16, takes 0.60 times its energy per image, agrees with FP32 on 98.0 % of 50 "
        "images."
    )
    unknown = dict.fromkeys(fp16) | {"precision": "int8"}
    assert benchmark.compare_precisions(fp16, unknown) == "int8 was not measured."


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--compare", "int8"), "two different precisions"),
        (("--compare", "int8,int8"), "two different precisions"),
        (("--compare", "fp32,int7"), "int7"),
        (("--compare", "fp32,int8", "--precision", "int8"), "--compare cannot be combined with"),
    ],
)
def test_what_cannot_be_compared(edge: Edge, built: Place, options: tuple[str, ...], words: str) -> None:
    built()
    ended = edge(*BENCH, *options)
    assert (ended.code, words in ended.err) == (2, True), ended.err


def test_the_plain_output_has_the_result_in_words(edge: Edge, built: Place) -> None:
    built()
    ended = edge(*BENCH)
    assert ended.code == 0
    assert "single-stream: 90th percentile of " in ended.out
    assert "power not measured" in ended.out
    # A busy machine makes the last query a long one.
    assert re.search(
        r"warning: shorter than MLPerf's rules require: it ran for \d+\.\d s; the rules require 600 s", ended.err
    )


def test_layers_are_timed_and_kept_next_to_the_engine(edge: Edge, built: Place) -> None:
    built()
    bench = ("bench", "--profile", "tiny", "--layers", "--min-samples", "5")
    ended = edge(*bench)
    assert ended.code == 0, ended.err
    assert "median of 5 runs per layer" in " ".join(ended.out.split())
    assert "a whole inference without the profiler" in " ".join(ended.out.split())
    found = json.loads(edge(*bench, "--json").out)
    assert (found["kind"], found["runs"]) == ("layer times", 5)
    shown = edge("engine", "show", "--profile", "tiny")
    assert "median of 5 runs per layer" in " ".join(shown.out.split())
    engines = json.loads(edge("engine", "list", "--json").out)
    assert [Path(item["manifest"]).name for item in engines] == ["model-fp32.json", "model-int8.json"]
    assert any(name.endswith("model-int8.times.json") for name in engines[1]["files"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--layers",), "--layers cannot be combined with"),
        (("-s", "server"), "no scenario 'server'"),
        (("--min-duration", "soon"), "invalid duration 'soon' for --min-duration"),
        (("--min-duration", "-1s"), "invalid duration"),
        (("--warm-up", "nan"), "invalid duration"),
        (("--idle", "5s"), "at least 10 s, not 5"),
        (("--power", "hwmin"), "no power source 'hwmin'"),
        (("--power", "replay@x:f"), "does not name a recording"),
        (("--set-power-mode",), "has no power mode to set"),
        (("--record", "-", "--json"), "--record - and --json both write to standard output"),
    ],
)
def test_what_cannot_be_asked_for(edge: Edge, built: Place, options: tuple[str, ...], words: str) -> None:
    built()
    ended = edge(*BENCH, *options)
    assert (ended.code, words in ended.err) == (2, True), ended.err


@pytest.mark.parametrize("name", ["-", "/dev/stdout"])
def test_a_record_on_standard_output_is_alone_there(edge_process: Edge, built: Place, name: str) -> None:
    built()
    ended = edge_process(*BENCH, "--record", name)
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["bench"]["scenario"] == "single-stream"


def test_pictures_that_are_none_say_so(edge: Edge, built: Place) -> None:
    built()
    Path("bad").mkdir()
    Path("bad/one.jpg").write_bytes(b"not an image")
    ended = edge(*BENCH, "--images", "bad")
    assert ended.code == 6
    assert "no image could be decoded" in ended.err


def test_replayed_power_is_marked_wherever_it_goes(edge: Edge, built: Place) -> None:
    built()
    log = tegrastats_log(Path("tegrastats.log"))
    options = ("--power", f"replay@20:{log}", "--min-duration", "2s", "--telemetry-log", "kept.jsonl")
    ended = edge(*BENCH, *options, "--record", "b.json")
    assert ended.code == 0, ended.err
    assert "power and temperatures are replayed from tegrastats.log" in ended.err
    kept = run_record.load(Path("b.json"))
    assert kept.replayed == "tegrastats.log"
    assert any("replayed" in warning for warning in kept.warnings)
    assert kept.power is not None
    assert (kept.power["source"], kept.power["scope"]) == ("tegrastats", "module_input")
    assert 5000 <= kept.power["mean_mw"] <= 5400
    assert kept.power["joules_per_picture"] > 0
    # What was kept of it can be replayed in its turn.
    again = edge("run", "--profile", "tiny", "--images", "pictures", "--power", "replay:kept.jsonl", "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out.splitlines()[-1])["summary"]["replayed"] == "kept.jsonl"


@pytest.mark.slow  # ten seconds of idling are the least that a baseline takes
def test_net_energy_needs_ten_seconds_of_idling(edge: Edge, built: Place) -> None:
    built()
    log = tegrastats_log(Path("tegrastats.log"))
    ended = edge(*BENCH, "--power", f"replay@20:{log}", "--idle", "10s", "--min-duration", "2s", "--record", "b.json")
    assert ended.code == 0, ended.err
    power = run_record.load(Path("b.json")).power
    assert power is not None
    assert 10.0 <= power["idle_s"] < 30.0
    assert 5000 <= power["idle_mw"] <= 5250
    # The recording grows by 20 mW a second: what comes later is above the baseline.
    assert 0 < power["net_joules"] < power["joules"] / 10
    assert power["net_error_joules_per_picture"] > 0
    assert "above idle: " in ended.out


def test_a_recording_that_is_none_is_an_artifact_error(edge: Edge, built: Place) -> None:
    built()
    Path("r.log").write_text("hello\n")
    for command in (BENCH, ("run", "--profile", "tiny", "--images", "pictures")):
        ended = edge(*command, "--power", "replay:r.log")
        assert ended.code == 7
        assert "neither a telemetry log, nor a run record" in ended.err


def test_a_profile_may_switch_power_off_and_ask_for_a_mode(edge: Edge, built: Place) -> None:
    built()
    path = Path("profiles/tiny.yaml")
    path.write_text(path.read_text() + "power_mode: 25W\ntelemetry: {source: none}\n")
    ended = edge(*BENCH, "--json")
    assert ended.code == 0, ended.err
    content = json.loads(ended.out)
    assert content["power_unavailable"] == "none: not requested"
    assert any("asks for power mode 25W" in warning for warning in content["warnings"])
    assert "asks for power mode 25W" in ended.err
    ended = edge(*BENCH, "--set-power-mode")
    assert ended.code == 8
    assert "no nvpmodel" in ended.err or "nvpmodel is outside of this container" in ended.err


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("telemetry: {source: hwmun}", "telemetry.source: there is no power source 'hwmun'"),
        ("telemetry: {rate_hz: 0}", "telemetry.rate_hz"),
        ("telemetry: {idle_s: -1}", "telemetry.idle_s"),
        ("telemetry: {sauce: hwmon}", "unknown key (did you mean 'source'?)"),
        ("telemetry: {idle_s: 5}", "at least 10 s, not 5"),
    ],
)
def test_a_wrong_telemetry_section(edge: Edge, built: Place, line: str, words: str) -> None:
    built()
    path = Path("profiles/tiny.yaml")
    path.write_text(f"{path.read_text()}{line}\n")
    ended = edge(*BENCH)
    assert (ended.code in {2, 3}, words in ended.err) == (True, True), ended.err


def test_ctrl_c_ends_it_after_the_query_in_hand_and_keeps_the_record(
    start: Callable[..., subprocess.Popen[str]], built: Place
) -> None:
    built()
    process = start("bench", "--profile", "tiny", "--record", "b.json", "--json", "--power", "none")
    assert process.stderr is not None
    deadline = time.monotonic() + 60
    while "single-stream" not in process.stderr.readline():  # the first progress line: it is measuring
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGINT)
    _out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    kept = run_record.load(Path("b.json"))
    assert kept.status == "interrupted"
    assert kept.bench is not None
    assert "a signal ended it" in kept.bench["why_not"]
    assert kept.pictures > 0


def test_a_full_disk_does_not_lose_the_result(edge_process: Edge, built: Place) -> None:
    built()
    ended = edge_process(*BENCH, "--record", "/proc/b.json", "--json")
    assert ended.code == 9
    assert json.loads(ended.out)["bench"]["queries"] > 0


# edge power


@pytest.mark.parametrize("command", [("show",), ("set", "15W")])
def test_a_machine_without_power_modes(edge: Edge, command: tuple[str, ...]) -> None:
    ended = edge("power", *command)
    assert ended.code == 8
    assert "nvpmodel is outside of this container" in ended.err or "there is no nvpmodel on this machine" in ended.err


def test_nothing_to_restore(edge: Edge) -> None:
    ended = edge("power", "restore")
    assert ended.code == 2
    assert "edge has not changed the power mode" in ended.err


def test_the_loop_on_a_camera(edge: Edge, built: Place, server: Server) -> None:
    built()
    ended = edge(
        "bench", "--profile", "tiny", "--camera", server.url, "--min-duration", "1s", "--json", "--record", "b.json"
    )
    assert ended.code == 0, ended.err
    result = json.loads(ended.out)["bench"]
    kept = run_record.load(Path("b.json"))
    assert (result["scenario"], result["percentile"]) == ("camera", 0.99)
    assert result["queries"] == kept.pictures > 3
    assert 0 < result["percentile_ms"] <= kept.latency["age"].max_ms
    assert "secret" not in ended.out + ended.err + Path("b.json").read_text()
    plain = edge("bench", "--profile", "tiny", "--camera", server.url, "--min-duration", "0.5s")
    assert "camera: 99th percentile of" in plain.out
    assert "the result is the 99th percentile of the age" in plain.err
    assert "MLPerf" not in plain.err
    refused = edge("bench", "--profile", "tiny", "--camera", "0", "--images", "pictures")
    assert (refused.code, "excludes --images" in refused.err) == (2, True)

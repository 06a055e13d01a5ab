from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge.errors import ArtifactError, UsageError
from edge.reports.loaded_runs import MOST_RUNS, load_runs, run_facts

Keep = Callable[..., Path]


def changed(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    content = json.loads(path.read_bytes())
    change(content)
    path.write_text(json.dumps(content))
    return path


def test_runs_have_letters_and_words(keep: Keep) -> None:
    first, second = load_runs([keep("a.json"), keep("b.json")])
    assert (first.letter, second.letter, first.name) == ("A", "B", "a.json")
    assert first.device == "Orin Nano 8GB developer kit, p3767-0005, JetPack 6.2"
    assert first.axis == {
        "device": first.device, "backend": "backend tensorrt, tensorrt 10.3.0", "power mode": "25W",
        "measurement": "run",
    }  # fmt: skip
    assert first.power is not None
    assert (first.scope, first.power.gross_mj, first.power.net_mj) == ("module_input by hwmon", 700.0, 230.0)
    assert first.power.gross_error_mj == pytest.approx(7.0)
    found = run_facts(first)
    assert found["engine"] == "c" * 12
    assert found["precision"] == "int8, 50 of 50 weighted layers in INT8"
    assert found["source"] == "camera /dev/video0, 1280×720"


def test_no_record_and_too_many(keep: Keep) -> None:
    with pytest.raises(UsageError, match="no records"):
        load_runs([])
    with pytest.raises(UsageError, match="at most"):
        load_runs([keep("a.json")] * (MOST_RUNS + 1))


@pytest.mark.parametrize("size", [0, 1, 100, 5000])
def test_a_truncated_record(size: int, keep: Keep) -> None:
    path = keep("a.json")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ArtifactError) as caught:
        load_runs([path])
    assert caught.value.where == str(path)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"\x00\xff\xfe" * 100, "not a run record"),
        (b"[]", "not a run record"),
        (b"{}", "no format"),
        (b'{"format": 1, "results": []}', "format 1"),
        (b'{"format": 3}', "format 3"),
        (b'{"format": "2"}', 'format "2"'),
        (b"[" * 100_000, "not a run record"),
        (b'{"seq": 1}\n{"seq": 2}\n', "not a run record"),
        (b'{"format": 2}', "not a run record"),
    ],
)
def test_what_is_no_record(data: bytes, match: str, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=match):
        load_runs([path])


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.json", tmp_path):
        with pytest.raises(ArtifactError, match="cannot read"):
            load_runs([path])


def test_a_huge_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "frames.jsonl"
    with path.open("wb") as file:
        file.truncate(10 << 30)
    with pytest.raises(ArtifactError, match="a run record has at most"):
        load_runs([path])


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r["latency"]["total"].update(p50_ms=-1.0),
        lambda r: r["latency"]["total"].update(max_ms=1e300),
        lambda r: r["timeline"].reverse(),
        lambda r: r["timeline"][3].update(t_s=-5.0),
        lambda r: r["timeline"][3].update(power_mw=1e200),
        lambda r: r["timeline"][3].update(frames=-1),
        lambda r: r["timeline"][3]["temps_c"].update(tj=-1e100),
        lambda r: r["histogram"]["total"][3].update(count=-4),
        lambda r: r["histogram"]["total"].reverse(),
        lambda r: r["gaps"][0].update(end_s=1.0),
        lambda r: r.update(measured_s=-1.0),
        lambda r: r.update(pictures=-1),
        lambda r: r["results"][0]["stages"].update(total_ms=-1.0),
    ],
)
def test_impossible_numbers(change: Callable[[dict[str, Any]], object], keep: Keep) -> None:
    with pytest.raises(ArtifactError, match="the record is inconsistent"):
        load_runs([changed(keep("a.json"), change)])


@pytest.mark.parametrize("value", ["1e999", "-1e999", "NaN", "Infinity", "null", '"7"', "[]"])
def test_a_number_that_is_none(value: str, keep: Keep) -> None:
    path = keep("a.json")
    text = path.read_text()
    path.write_text(text.replace('"measured_s": 60.0', f'"measured_s": {value}'))
    assert path.read_text() != text
    with pytest.raises(ArtifactError):
        load_runs([path])


@pytest.mark.parametrize(
    "power",
    [
        {}, {"joules": "many", "mean_mw": 1.0}, {"joules": None, "mean_mw": None}, {"joules": True, "mean_mw": True},
        {"joules": 1.0}, {"joules": [], "mean_mw": {}},
    ],
)  # fmt: skip
def test_power_of_another_shape_is_no_power(power: dict[str, Any], keep: Keep) -> None:
    [run] = load_runs([keep("a.json", power=power)])
    assert run.power is None
    assert run.scope is None


@pytest.mark.parametrize("device", [{}, {"product": None, "cores": "x"}, {"product": 7, "power_mode": ["a"]}])
def test_a_device_of_another_shape_has_words(device: dict[str, Any], keep: Keep) -> None:
    path = changed(keep("a.json"), lambda r: r["subject"].update(device=device, backend={}))
    [run] = load_runs([path])
    assert run.device
    assert run.backend == "unknown"

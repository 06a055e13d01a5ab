"""The run record: what is written comes back, and what is no record of ours is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge.artifacts import run_record
from edge.artifacts.run_record import (
    FrameResult,
    Gap,
    Guess,
    LabelCount,
    RunRecord,
    Skip,
    Stages,
    Subject,
    Tick,
    Warmup,
)
from edge.errors import ArtifactError, StoreError
from edge.stats import Bin, summarize


def made(**changes: Any) -> RunRecord:
    """A record of three pictures, one of them skipped."""
    stages = Stages(decode_ms=1.5, preprocess_ms=0.25, infer_ms=4.0, postprocess_ms=0.05, total_ms=5.9)
    on_device = Stages(
        decode_ms=1.5, preprocess_ms=0.25, infer_ms=4.0, postprocess_ms=0.05, total_ms=6.1, host_to_device_ms=0.1,
        device_to_host_ms=0.1,
    )  # fmt: skip
    latency = summarize([5.9, 6.1])
    assert latency is not None
    content = RunRecord(
        format=run_record.FORMAT,
        edge_version="0.1.0",
        started_utc="2026-01-02T03:04:05+00:00",
        status="complete",
        failure=None,
        replayed=None,
        subject=Subject(
            profile="host",
            profile_digest="ab" * 32,
            model="m.onnx",
            model_sha256="cd" * 32,
            engine_sha256="ef" * 32,
            table_sha256=None,
            preprocess_digest="01" * 32,
            backend={"backend": "onnxruntime", "threads": 2},
            precision="fp32",
            layers={"weighted": 3, "weighted_int8": 0},
            device={"model": "a machine", "cores": 4},
            source="pictures",
        ),
        source={"kind": "pictures", "opened_as": "p", "live": False, "fps": None},
        pictures=2,
        skipped=[Skip(1, "ünï 🐼.jpg", "the file is cut off")],
        skipped_count=1,
        dropped=3,
        gaps=[Gap(start_s=0.5, end_s=None, reason="unplugged"), Gap(start_s=1.5, end_s=2.0, reason="x", attempts=2)],
        warmup=Warmup(0, None, None),
        measured_s=0.0123,
        rate_per_s=None,
        latency={"total": latency},
        histogram={"total": [Bin(6.0, 1), Bin(7.0, 1)]},
        timeline=[
            Tick(
                t_s=1.0,
                frames=2,
                dropped=3,
                total_p50_ms=5.9,
                total_max_ms=6.1,
                age_p50_ms=None,
                age_max_ms=None,
                power_mw=5000.0,
                temps_c={"cpu": 40.5},
                throttling=("gpu",),
            )
        ],
        stages_absent={"host_to_device": "no such stage"},
        power=None,
        power_unavailable="no source",
        conditions={},
        top_labels=[LabelCount(3, "a,b\n", 1)],
        warnings=["few images"],
        results=[
            FrameResult(
                seq=0, name="a.jpg", guesses=[Guess(3, "a,b\n", 0.75), Guess(1, "", 0.25)], stages=stages, t_s=0.1
            ),
            FrameResult(seq=2, name="c.jpg", guesses=[], stages=on_device, t_s=0.2),
        ],
        results_kept="all",
    )
    return msgspec.structs.replace(content, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"status": "interrupted", "results": [], "latency": {}, "pictures": 0},
        {"power": {"joules": 3.25, "samples": 12, "nested": {"rails": ["a", None]}}, "power_unavailable": None},
        {"rate_per_s": 81.30081300813008, "measured_s": 5e-324},
    ],
    ids=["plain", "interrupted", "power", "numbers"],
)
def test_a_record_comes_back(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = tmp_path / "new" / "r.json"
    run_record.save(path, made(**changes))
    assert run_record.load(path) == made(**changes)


def test_a_record_is_json_that_people_can_read(tmp_path: Path) -> None:
    run_record.save(tmp_path / "r.json", made())
    text = (tmp_path / "r.json").read_text(encoding="utf-8")
    assert text.endswith("}\n")
    assert '\n  "status": "complete",\n' in text
    assert "ünï 🐼.jpg" in text
    assert list(json.loads(text))[:2] == ["format", "edge_version"]


def test_a_stage_that_does_not_exist_is_absent_and_not_zero(tmp_path: Path) -> None:
    run_record.save(tmp_path / "r.json", made())
    without, with_ = (result["stages"] for result in json.loads((tmp_path / "r.json").read_bytes())["results"])
    assert "host_to_device_ms" not in without
    assert with_["host_to_device_ms"] == 0.1


def test_a_record_is_frozen() -> None:
    with pytest.raises(AttributeError):
        made().pictures = 3  # type: ignore[misc]


def refused(path: Path) -> ArtifactError:
    with pytest.raises(ArtifactError) as caught:
        run_record.load(path)
    assert caught.value.where == str(path)
    return caught.value


@pytest.mark.parametrize(
    ("version", "said"),
    [
        (1, "record with format 1; this edge reads format 2"),
        (3, "record with format 3; this edge reads format 2"),
        ("2", 'record with format "2"; this edge reads format 2'),
        (True, "record with format true; this edge reads format 2"),
        (None, "record with format null; this edge reads format 2"),
        ({"a": 1}, 'record with format {"a": 1}; this edge reads format 2'),
    ],
    ids=["older", "newer", "text", "true", "null", "object"],
)
def test_another_format_is_refused_before_anything_else_is_read(tmp_path: Path, version: object, said: str) -> None:
    """A later format may have other fields: its number must be what the user reads, not a field that is missing."""
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"format": version, "of": "the future"}))
    assert refused(path).what == said


def test_no_format_at_all(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text("{}")
    assert refused(tmp_path / "r.json").what == "record with no format; this edge reads format 2"


@pytest.mark.parametrize(
    "data",
    [b"", b"\0" * 10, b"[]", b"null", b"1", b"\xff\xfe{\0", b'{"format": 2}', b'{"format": 2} x', b'{"format": 2',
     b'{"format": 2, "x": "\xff"}', b'{"format":2,"results":' + b"[" * 100_000],
    ids=["empty", "zeros", "list", "null", "number", "utf-16", "only-a-format", "more-behind", "cut",
         "no-utf-8", "deep"],
)  # fmt: skip
def test_what_is_no_record_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(data)
    assert refused(path).what.startswith("not a run record: ")


def test_a_record_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    run_record.save(path, made())
    data = path.read_bytes().rstrip()
    for size in {*range(0, len(data), 17), len(data) - 1}:
        path.write_bytes(data[:size])
        refused(path)


def _set(content: dict[str, Any], *at: Any, value: object) -> None:
    for name in at[:-1]:
        content = content[name]
    content[at[-1]] = value


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content.pop("subject"),
        lambda content: content["subject"].pop("engine_sha256"),
        lambda content: _set(content, "status", value="finished"),
        lambda content: _set(content, "pictures", value="2"),
        lambda content: _set(content, "pictures", value=2.5),
        lambda content: _set(content, "measured_s", value=None),
        lambda content: _set(content, "results", value={}),
        lambda content: _set(content, "results", 0, "guesses", 0, "confidence", value="high"),
        lambda content: _set(content, "results", 0, "stages", "total_ms", value=None),
        lambda content: _set(content, "latency", "total", "n", value=None),
        lambda content: _set(content, "skipped", 0, value=[1, "a", "b"]),
        lambda content: _set(content, "gaps", 0, "start_s", value=None),
        lambda content: content["timeline"][0].pop("frames"),
    ],
    ids=["subject", "engine", "status", "text", "fraction", "null", "object", "confidence", "stage", "summary", "skip",
         "gap", "tick"],
)  # fmt: skip
def test_a_damaged_record_is_refused(tmp_path: Path, damage: Callable[[dict[str, Any]], Any]) -> None:
    path = tmp_path / "r.json"
    run_record.save(path, made())
    content = json.loads(path.read_bytes())
    damage(content)
    path.write_text(json.dumps(content))
    assert refused(path).what.startswith("not a run record: ")


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_no_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "r.json"
    if kind == "folder":
        path.mkdir()
    assert refused(path).what.startswith("cannot read the record: ")


def test_a_disk_that_refuses(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot write"):
        run_record.save(tmp_path / "file" / "r.json", made())


def test_saving_over_an_old_record_is_atomic(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    run_record.save(path, made())
    run_record.save(path, made(pictures=7))
    assert run_record.load(path).pictures == 7
    assert [item.name for item in tmp_path.iterdir()] == ["r.json"]

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edge.artifacts.run_record import RunRecord
from edge.reports import run_comparison
from edge.reports.loaded_runs import load_runs
from edge.reports.run_comparison import MetricDifference, RunComparison
from tests.support.run_records import BACKEND, ORIN, POWER, made

Keep = Callable[..., Path]


def subject(record: RunRecord, **changes: Any) -> RunRecord:
    return msgspec.structs.replace(record, subject=msgspec.structs.replace(record.subject, **changes))


def compared(keep: Keep, *every: RunRecord, across: bool = False) -> RunComparison:
    return run_comparison.compare(
        load_runs([keep(f"{i}.json", record) for i, record in enumerate(every)]), across=across
    )


def by_name(found: RunComparison, pair: int = 0) -> dict[str, MetricDifference]:
    return {item.measure.split(",")[0]: item for item in found.pairs[pair].differences}


def test_a_slower_run_differs_by_what_it_is_slower(keep: Keep) -> None:
    found = compared(keep, made(live=False), made(live=False, slower=1.4, seed=1))
    latency = by_name(found)["latency"]
    assert latency.difference is not None
    assert latency.ratio is not None
    assert latency.difference.low < 6.0 * 0.4 < latency.difference.high
    assert latency.ratio.low < (6 * 1.4 + 1.4) / 7.4 < latency.ratio.high
    assert latency.differs is True
    assert latency.b - latency.a == latency.difference.value


def test_the_same_again_cannot_be_told_apart(keep: Keep) -> None:
    found = compared(keep, made(live=False, seed=1), made(live=False, seed=2))
    for name in ("latency", "inference", "age", "rate", "energy per image"):
        assert by_name(found)[name].differs is False, name
    labels = found.pairs[0].labels
    assert labels is not None
    assert (labels.n, labels.same) == (600, 600)


def test_the_interval_holds_what_it_promises(keep: Keep) -> None:
    """Of 40 pairs of equal runs, each with its slow waves, about one in twenty may be called different."""
    runs = load_runs([keep(f"{seed}.json", made(300, live=False, seed=seed)) for seed in range(8)])
    wrong = sum(
        bool(run_comparison.compare([a, b]).pairs[0].differences[0].differs)
        for i, a in enumerate(runs)
        for b in runs[i + 1 :]
    )
    assert wrong <= 5


def test_a_long_run_is_judged_by_its_time_line(keep: Keep) -> None:
    long = [
        msgspec.structs.replace(made(live=False, slower=slower, seed=seed), results_kept="newest")
        for seed, slower in enumerate((1.0, 1.3))
    ]
    differences = by_name(compared(keep, *long))
    assert differences["latency"].differs is True
    assert differences["inference"].refusal is not None
    assert differences["inference"].difference is None
    assert differences["rate"].differs is False


@pytest.mark.parametrize("n", [0, 1, 12])
def test_too_few_pictures_have_no_interval(n: int, keep: Keep) -> None:
    short = [msgspec.structs.replace(made(n, live=False, seed=seed), timeline=[]) for seed in range(2)]
    for item in by_name(compared(keep, *short)).values():
        if item.unit != "mJ":
            assert item.difference is None
            assert "fewer than" in (item.refusal or "")


def test_a_camera_sets_the_rate(keep: Keep) -> None:
    rate = by_name(compared(keep, made(), made(slower=1.4)))["rate"]
    assert rate.difference is None
    assert "live source" in (rate.refusal or "")


def test_age_from_a_shutter_is_not_age_from_a_file(keep: Keep) -> None:
    assert "age" not in by_name(compared(keep, made(), made(live=False)))


def test_energy_has_the_bound_of_both(keep: Keep) -> None:
    cheaper = made(power={**POWER, "joules": 400.0})
    energy = by_name(compared(keep, made(), cheaper))["energy per image"]
    assert energy.difference is not None
    assert energy.difference.value == pytest.approx(-20 / 600 * 1e3)
    assert energy.difference.high - energy.difference.low == pytest.approx(2 * 2 * 7.0)
    assert energy.differs is True
    no_bound = made(power={name: value for name, value in POWER.items() if name != "error_joules"})
    assert by_name(compared(keep, made(), no_bound))["energy per image"].difference is None


@pytest.mark.parametrize("change", [{"scope": "system_input"}, {"source": "tegrastats"}])
def test_energy_of_another_scope_is_not_compared(change: dict[str, str], keep: Keep) -> None:
    energy = by_name(compared(keep, made(), made(power={**POWER, **change})))["energy per image"]
    assert (energy.difference, energy.ratio, energy.differs) == (None, None, None)
    assert "not the same quantity" in (energy.refusal or "")


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"device": {**ORIN, "product": "AGX Orin 64GB"}}, "device"),
        ({"device": {**ORIN, "jetpack": "7.2"}}, "device"),
        ({"device": {**ORIN, "power_mode": "15W"}}, "power mode"),
        ({"device": {**ORIN, "clocks_locked": True}}, "power mode"),
        ({"backend": {**BACKEND, "tensorrt": "10.7.0"}}, "backend"),
        ({"backend": {"backend": "onnxruntime"}}, "backend"),
    ],
)
def test_runs_that_are_not_alike_do_not_share_an_axis(changes: dict[str, Any], name: str, keep: Keep) -> None:
    unlike = subject(made(), **changes)
    found = compared(keep, made(), unlike, made(seed=4))
    assert [group.letters for group in found.groups] == [["A", "C"], ["B"]]
    assert [(pair.a, pair.b) for pair in found.pairs] == [("A", "C")]
    assert len(found.apart) == 1
    assert name in found.apart[0]
    assert name in found.unlike

    together = compared(keep, made(), unlike, across=True)
    assert together.apart == []
    assert together.groups[0].mixed == [name]
    assert name in together.pairs[0].unlike


def test_precision_and_engine_may_differ_on_one_axis_and_are_named(keep: Keep) -> None:
    found = compared(keep, made(), subject(made(), precision="fp16", engine_sha256="f" * 64))
    assert len(found.groups) == 1
    assert found.pairs[0].unlike == ["engine", "precision"]


def test_a_camera_s_frames_are_not_the_same_pictures(keep: Keep) -> None:
    assert compared(keep, made(), made()).pairs[0].labels is None


def test_blocks_are_stretches_of_neighbours() -> None:
    from edge.reports.run_comparison import _blocks

    index = _blocks(1000, 0)
    assert index.shape == (2000, 1000)
    assert (index.min(), index.max()) == (0, 999)
    assert np.mean(np.diff(index, axis=1) == 1) > 0.88
    assert not np.array_equal(index, _blocks(1000, 1))

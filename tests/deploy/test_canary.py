"""The trial on the device: what it measures, when it fails, and that the device then goes back by itself."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge.backends import interface
from edge.config import profiles
from edge.deploy import canary, rollback
from edge.deploy.bundle import creation, golden
from edge.deploy.bundle.reader import Bundle, open_bundle
from edge.deploy.push import ShipSettings, ship
from edge.deploy.transport.address import DeviceAddress
from edge.deploy.trial import parse_gates
from edge.errors import UsageError
from edge.media.picture_sources import open_pictures
from edge.system import device
from edge.telemetry.sources import NoSource, Reading
from tests.support import loopback
from tests.support.devices import current, root_of, tar_of

Made = Callable[..., Bundle]


@pytest.fixture
def made(tmp_path: Path, tiny_profile: Callable[..., Path], pictures: Callable[..., list[Path]]) -> Made:
    """``made(name, spoil=…)``: the bundle of the tiny profile; ``spoil`` changes the golden references.

    In FP32, which is the same on every CPU: without VNNI, products of INT8 saturate.
    """

    def make(name: str = "good", spoil: Callable[[dict[str, Any]], None] | None = None, **files: bytes) -> Bundle:
        chosen = profiles.read_profile(tiny_profile(tmp_path / "profiles", precision="fp32"))
        if not (tmp_path / "pictures").is_dir():
            pictures(tmp_path / "pictures", 6)
        source, cache = open_pictures(tmp_path / "pictures"), tmp_path / "calib_cache"
        out = tmp_path / f"{name}.edge"
        bundle = creation.create(chosen, cache=cache, out=out, golden=list(source.take(4)), name=name, force=True)
        contents: Mapping[str, bytes] = {path: bundle.read(path) for path in bundle.files} | files
        if spoil is not None:
            expected = json.loads(contents[golden.FILE])
            spoil(expected)
            contents = {**contents, golden.FILE: json.dumps(expected).encode()}
        about = msgspec.to_builtins(bundle.about)
        out.write_bytes(tar_of(contents, **{n: about[n] for n in ("name", "family", "profile", "info")}))
        return open_bundle(out)

    return make


def other_labels(expected: dict[str, Any]) -> None:
    """References of another network."""
    for answers in expected["pictures"].values():
        for answer in answers.values():
            answer["logits"] = answer["logits"][::-1]


@pytest.fixture
def with_edge(tmp_path: Path) -> Callable[[DeviceAddress], DeviceAddress]:
    """``with_edge(place)``: the same device with this edge on it."""

    def make(place: DeviceAddress) -> DeviceAddress:
        program = tmp_path / "it's edge"
        program.write_text(f'#!/bin/sh\nPYTHONPATH="{os.environ["PYTHONPATH"]}" exec "{sys.executable}" -m edge "$@"\n')
        program.chmod(0o755)
        return msgspec.structs.replace(place, edge=str(program))

    return make


class Meter:
    """A power source that gives so many milliwatts."""

    name, scope = "test", "board"

    def __init__(self, power_mw: float) -> None:
        self.power_mw = power_mw

    def read(self) -> Reading:
        import time

        return Reading(t_s=time.monotonic(), power_mw=self.power_mw)

    def close(self) -> None:
        pass


def tools(power: Any = None) -> canary.Tools:
    # An energy needs ten samples, which are taken ten times a second, or less often where this machine is busy.
    return canary.Tools(
        backend=interface.of, power=power or NoSource(()), machine=device.identify(), turns=2, turn_s=3.0
    )


def unpacked(bundle: Bundle, folder: Path) -> Bundle:
    from edge.deploy.bundle.unpacking import unpack_bundle

    return unpack_bundle(bundle, folder)


def test_a_good_bundle_passes(made: Made, tmp_path: Path) -> None:
    one = unpacked(made("one"), tmp_path / "one")
    two = unpacked(made("two"), tmp_path / "two")
    report = canary.canary(two, tmp_path / "state", against=one, gates={"latency": 50}, tools=tools())
    assert (report.passed, report.failed) == (True, [])
    assert (report.own.other_labels, report.own.pictures, report.own.precision) == (0, 4, "fp32")
    assert report.own.distance is not None
    assert report.own.distance < report.gates["distance"]
    assert report.before is not None
    assert report.own.latency is not None
    assert report.own.latency.n == 60
    # Unmeasured is absent with a reason.
    assert report.own.millijoules is None
    assert report.own.absent == {"energy": "there is no power sensor"}
    # A bundle is never written to.
    assert {path.name for path in (tmp_path / "two").iterdir()} >= {"bundle.json", "profile.yaml"}
    assert not list((tmp_path / "two").rglob("*.lock"))
    assert (tmp_path / "state" / "engines" / two.digest).is_dir()


def test_other_labels_and_a_large_distance_fail(made: Made, tmp_path: Path) -> None:
    bad = unpacked(made("bad", other_labels), tmp_path / "bad")
    report = canary.canary(bad, tmp_path / "state", against=None, gates={}, tools=tools())
    assert not report.passed
    assert any("golden images have another label" in words for words in report.failed)
    assert any("from the references" in words for words in report.failed)
    assert report.before_absent == "there is no previous bundle"
    lenient = canary.canary(bad, tmp_path / "state", against=None, gates={"labels": 4, "distance": 1000}, tools=tools())
    assert lenient.passed


def test_slower_than_before_fails_and_energy_is_measured(made: Made, tmp_path: Path) -> None:
    """The limits are set so low that nothing passes: what is tested is that they are looked at."""
    one, two = unpacked(made("one"), tmp_path / "one"), unpacked(made("two"), tmp_path / "two")
    report = canary.canary(two, tmp_path / "state", against=one, gates={"energy": 0.01}, tools=tools(Meter(5000)))
    assert [words for words in report.failed if "mJ per inference" in words and "more than 0.01 times" in words]
    assert report.own.millijoules is not None
    assert report.own.millijoules > 0
    assert len(report.own.energy) == 2


def test_a_previous_bundle_that_does_not_run_says_nothing_against_the_new_one(made: Made, tmp_path: Path) -> None:
    one, two = unpacked(made("one"), tmp_path / "one"), unpacked(made("two"), tmp_path / "two")
    (tmp_path / "one" / "profile.yaml").write_text("family: host\n")
    report = canary.canary(two, tmp_path / "state", against=one, gates={}, tools=tools())
    assert report.passed
    assert "is missing" in str(report.before_absent)


def test_a_device_tries_and_keeps_a_good_bundle(
    made: Made, folder: DeviceAddress, with_edge: Callable[..., DeviceAddress]
) -> None:
    place, sent = with_edge(folder), made()
    outcome = ship(sent, place)
    assert outcome.canary is not None
    assert (outcome.work, outcome.canary.verdict) == ("ok", "passed")
    assert outcome.canary.report is not None
    assert outcome.canary.report["own"]["pictures"] == 4
    assert current(place) == sent.digest
    assert rollback.status(place).bundles[0].trial == "passed"
    again = ship(sent, place)
    assert (again.work, again.canary) == ("unchanged", None)


def test_a_device_keeps_what_it_has_when_a_trial_fails(
    made: Made,
    with_edge: Callable[..., DeviceAddress],
    serve: Callable[..., loopback.Server],
    remote: Callable[..., DeviceAddress],
) -> None:
    place, good, bad = with_edge(remote(serve())), made("good"), made("bad", other_labels)
    assert ship(good, place).work == "ok"
    outcome = ship(bad, place)
    assert (outcome.work, outcome.exit_code) == ("trial failed", 1)
    assert "golden images have another label" in str(outcome.reason)
    assert current(place) == good.digest
    assert not (root_of(place) / "previous").exists()
    found = rollback.status(place)
    assert {kept.name: kept.trial for kept in found.bundles} == {"good": "passed", "bad": "failed"}
    assert [entry.action for entry in found.history] == ["ship", "trial failed"]


def test_the_first_bundle_that_fails_leaves_none(
    made: Made, folder: DeviceAddress, with_edge: Callable[..., DeviceAddress]
) -> None:
    place = with_edge(folder)
    assert ship(made("bad", other_labels), place).work == "trial failed"
    assert current(place) is None


def test_a_trial_that_was_cut_off_is_made_up_for(
    made: Made, folder: DeviceAddress, with_edge: Callable[..., DeviceAddress]
) -> None:
    place, sent = with_edge(folder), made()
    ship(sent, place, settings=ShipSettings(canary=False))
    assert rollback.status(place).bundles[0].trial == "not tried"
    outcome = ship(sent, place)
    assert outcome.canary is not None
    assert outcome.canary.verdict == "passed"


def test_a_bundle_that_cannot_run_here_has_failed(made: Made, tmp_path: Path) -> None:
    bad = unpacked(made("bad"), tmp_path / "bad")
    (tmp_path / "bad" / "model" / "model.onnx").chmod(0o644)
    (tmp_path / "bad" / "model" / "model.onnx").write_bytes(b"x" * bad.files["model/model.onnx"].size)
    report = canary.canary(bad, tmp_path / "state", against=None, gates={}, tools=tools(), nonce="0f")
    assert (report.passed, report.own, report.nonce, report.bundle) == (False, None, "0f", bad.digest)
    assert "does not match the sha256" in report.failed[0]


def test_gates_are_read() -> None:
    assert parse_gates(["labels=1", "latency=1.5"]) == {"labels": 1, "latency": 1.5}


@pytest.mark.parametrize(
    "word", ["speed=1", "latency", "latency=fast", "latency=-1", "latency=nan", "latency=inf", "="]
)
def test_gates_that_are_none(word: str) -> None:
    with pytest.raises(UsageError):
        parse_gates([word])

"""``edge ship`` and ``edge cache pull`` as they are typed."""

from __future__ import annotations

import fcntl
import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge.deploy.bundle.reader import open_bundle
from edge.deploy.transport.address import DeviceAddress
from tests.support.devices import current, passed, tar_of

Edge = Callable[..., Any]
FILES = {"profile.yaml": b"name: tiny\n", "model/tiny.onnx": b"weights " * 100}


@pytest.fixture
def bundles(tmp_path: Path) -> Path:
    """Working directory with a.edge, b.edge and other.edge (for another device)."""
    (tmp_path / "a.edge").write_bytes(tar_of(FILES, name="a"))
    (tmp_path / "b.edge").write_bytes(tar_of({**FILES, "x": b"1"}, name="b"))
    (tmp_path / "other.edge").write_bytes(tar_of(FILES, family="thor"))
    return tmp_path


def fleet(folder: Path, count: int, **rollout: object) -> None:
    lines = [f"rollout: {json.dumps(rollout)}", "defaults: {bundle: a.edge}", "groups: {first: [d0]}", "hosts:"]
    lines += [f"  d{index}: {{folder: devices/d{index}}}" for index in range(count)]
    (folder / "fleet.yaml").write_text("\n".join(lines) + "\n")


def test_ship_status_rollback_gc(edge: Edge, bundles: Path) -> None:
    first = edge("ship", "./device", "--bundle", "a.edge", "--no-canary")
    assert first.code == 0
    assert first.out.startswith("./device: ")
    assert " is in use, 3 files, 0.00 MB sent in " in first.out
    assert edge("ship", "./device", "-b", "b.edge", "--no-canary").code == 0
    status = edge("ship", "status", "./device", "--verify")
    assert (status.code, "in use, verified" in status.out) == (0, True)
    refused = edge("ship", "rollback", "./device")
    assert (refused.code, "no other bundle here has passed its trial" in refused.err) == (2, True)
    passed(DeviceAddress(name="d", folder=bundles / "device"), open_bundle(bundles / "a.edge"))
    assert edge("ship", "rollback", "./device").out.startswith("./device: back to ")
    assert edge("ship", "gc", "./device").out == "./device: 0 bundles removed, 0.0 MB freed\n"
    unchanged = edge("ship", "./device", "--bundle", "a.edge", "--no-canary")
    assert "unchanged" in unchanged.out


def test_a_dry_run_says_what_would_travel(edge: Edge, bundles: Path) -> None:
    ended = edge("ship", "--dry-run", "./device", "--bundle", "a.edge")
    assert (ended.code, "would ship" in ended.out, "3 files" in ended.out) == (0, True, True)
    assert not (bundles / "device").exists()


def test_json(edge: Edge, bundles: Path) -> None:
    ended = edge("ship", "./device", "--bundle", "a.edge", "--no-canary", "--json")
    content = json.loads(ended.out)
    assert content["counts"] == {"ok": 1}
    assert content["targets"][0]["sent_files"] == 3
    status = json.loads(edge("ship", "status", "./device", "--json").out)
    assert status[0]["current"] == content["targets"][0]["bundle"]


def test_a_fleet_by_its_names(edge: Edge, bundles: Path) -> None:
    fleet(bundles, 5)
    ended = edge("ship", "d1", "first", "d1", "--no-canary", "--json")
    assert [target["target"] for target in json.loads(ended.out)["targets"]] == ["d1", "d0"]
    ended = edge("ship", "all", "--no-canary")
    assert ended.code == 0
    assert ended.out.count("unchanged") == 2
    assert ended.err.count(" is in use, ") == 3
    assert "[5/5]" in ended.err
    ended = edge("ship", "frist")
    assert (ended.code, "did you mean" in ended.err) == (2, True)


def test_one_failure_never_stops_the_others(edge: Edge, bundles: Path) -> None:
    fleet(bundles, 6, parallel=2)
    (bundles / "devices").mkdir()
    (bundles / "devices" / "d3").write_text("a file in the way")
    ended = edge("ship", "all", "--no-canary", "--json")
    assert ended.code == 8
    content = json.loads(ended.out)
    assert content["counts"] == {"ok": 5, "failed": 1}
    failed = content["targets"][3]
    assert (failed["work"], failed["exit_code"]) == ("failed", 9)
    assert failed["reason"].startswith("cannot write on the device")
    assert "1 of 6 devices failed" in ended.err


def test_canary_hosts_and_the_stop_threshold(edge: Edge, bundles: Path) -> None:
    fleet(bundles, 6, canary=["d5"])
    (bundles / "devices").mkdir()
    (bundles / "devices" / "d5").write_text("a file in the way")
    ended = edge("ship", "all", "--no-canary")
    assert ended.code == 8
    assert ended.out.count("not begun: a canary host failed") == 5
    assert "1 of 6 devices failed, 5 not begun" in ended.err
    assert not (bundles / "devices" / "d0").exists()


def test_a_canary_host_that_could_not_try_is_all_that_is_wrong(edge: Edge, bundles: Path) -> None:
    program = bundles / "edge"
    program.write_text("#!/bin/sh\nexit 4\n")
    program.chmod(0o755)
    fleet(bundles, 3, canary=["d0"])
    text = (bundles / "fleet.yaml").read_text()
    (bundles / "fleet.yaml").write_text(text.replace("devices/d0", f"devices/d0, edge: {program}"))
    ended = edge("ship", "all")
    assert (ended.code, "1 of 3 devices did not accept the bundle" in ended.err, "2 not begun" in ended.err) == (
        1,
        True,
        True,
    )


def test_a_fleet_that_is_wrong_has_a_line(edge: Edge, bundles: Path) -> None:
    (bundles / "fleet.yaml").write_text("hosts:\n  d0:\n    prot: 22\n")
    ended = edge("ship", "d0")
    assert (ended.code, "fleet.yaml:3: hosts.d0.prot: unknown key" in ended.err) == (3, True)


def test_a_gate_of_a_fleet_that_is_none(edge: Edge, bundles: Path) -> None:
    fleet(bundles, 1, gates={"speed": 2})
    ended = edge("ship", "d0")
    assert (ended.code, "fleet.yaml: rollout.gates: there is no gate 'speed'" in ended.err) == (3, True)
    assert not (bundles / "devices").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("./device",), 2, "no bundle to ship"),
        (("./device", "--bundle", "none.edge"), None, "none.edge"),
        (("./device", "--bundle", "a.edge", "--profile", "host"), 2, "either --bundle or --profile"),
        (("host:~root/x", "--bundle", "a.edge"), 2, "'~root/x' cannot be resolved"),
        (("./device", "--bundle", "a.edge", "--gate", "speed=1"), 2, "there is no gate 'speed'"),
        (("-oProxyCommand=x", "--bundle", "a.edge"), 2, ""),
        (("ada@$(x)", "--bundle", "a.edge"), 2, "is not a valid host name"),
        (("./device", "--bundle", "a.edge", "--bootstrap"), 2, "contains no wheels"),
        (("rollback", "./device"), 8, "there is no such folder"),
        (("status", "./device"), 8, "there is no such folder"),
        (("all",), 2, "'all' needs a fleet.yaml; none found in"),
        (("status", "all"), 2, "'all' needs a fleet.yaml; none found in"),
        (("status",), 2, ""),
    ],
)
def test_what_cannot_be_done(
    edge: Edge, bundles: Path, arguments: tuple[str, ...], code: int | None, words: str
) -> None:
    ended = edge("ship", *arguments)
    assert ended.code == code if code is not None else ended.code not in {0, 1}
    assert words in ended.err
    assert "Traceback" not in ended.err
    assert current(DeviceAddress(name="d", folder=bundles / "device")) is None


def test_a_bundle_of_a_profile_is_made_and_shipped(edge: Edge, place: Callable[..., Path]) -> None:
    folder = place(4)
    assert edge("calibrate", "--profile", "tiny", "--images", "pictures").code == 0
    for work in ("ok", "unchanged"):
        ended = edge("ship", "./device", "--profile", "tiny", "--no-canary", "--json")
        assert (ended.code, json.loads(ended.out)["counts"]) == (0, {work: 1}), ended.err
    assert (folder / "device" / "current" / "profile.yaml").is_file()


def test_ctrl_c_ends_the_line_and_says_what_was_done(
    start: Callable[..., subprocess.Popen[str]], bundles: Path, tmp_path: Path
) -> None:
    """The second device waits for a lock that somebody else holds."""
    fleet(bundles, 3)
    root = bundles / "devices" / "d1"
    root.mkdir(parents=True)
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = start("ship", "all", "--no-canary", "--parallel", "1")
        deadline = time.monotonic() + 60
        while not (root / "bundles").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped by SIGINT" in err
    assert out.count("stopped by the user") == 2
    assert out.count(" ok ") == 1


@pytest.mark.parametrize("operation", ["rollback", "gc"])
def test_a_supervisor_that_stops_it_does_not_wait_for_a_device(
    start: Callable[..., subprocess.Popen[str]], edge: Edge, bundles: Path, operation: str
) -> None:
    """Nobody else ends the conversation then: a terminal would."""
    assert edge("ship", "./device", "--bundle", "a.edge", "--no-canary").code == 0
    root = bundles / "device"
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (root / "canary").rmdir()
        process = start("ship", operation, "./device")
        deadline = time.monotonic() + 60
        while not (root / "canary").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.terminate()
        _out, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "another shipment" not in err


@pytest.mark.slow
def test_many_folders_in_one_run(edge_process: Edge, bundles: Path) -> None:
    """benchmarks/ship.py does this with 500."""
    fleet(bundles, 24, parallel=8, canary=["d7", "d8"])
    ended = edge_process("ship", "all", "--no-canary", "--json")
    assert (ended.code, json.loads(ended.out)["counts"]) == (0, {"ok": 24})
    assert len(list((bundles / "devices").iterdir())) == 24


def test_what_devices_know_comes_home(edge: Edge, bundles: Path) -> None:
    fleet(bundles, 2)
    record = bundles / "devices" / "d1" / "records" / "r.json"
    record.parent.mkdir(parents=True)
    record.write_text("{}")
    (bundles / "devices" / "d0").mkdir()
    ended = edge("cache", "pull", "all", "--output", "home")
    assert ended.code == 0
    assert "d0: nothing there yet" in ended.out
    assert "d1: 1 new" in ended.out
    assert (bundles / "home" / "d1" / "records" / "r.json").read_text() == "{}"
    (record.parent / "bad.json").write_text("no")
    ended = edge("cache", "pull", "d1", "--output", "home")
    assert (ended.code, "not JSON" in ended.err) == (7, True)


def test_help_names_everything(edge: Edge) -> None:
    ended = edge("ship", "--help")
    assert all(word in ended.out for word in ("status", "rollback", "gc", "to"))
    assert "--bootstrap" in edge("ship", "to", "--help").out

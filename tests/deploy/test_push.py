"""Ship to a folder: the same script as on a device, run by the `sh` of this machine."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge.artifacts.store import sha256_bytes
from edge.deploy import agent_protocol, rollback
from edge.deploy.bundle.reader import Bundle, open_bundle
from edge.deploy.bundle.unpacking import unpack_bundle
from edge.deploy.push import BundleTree, ShipSettings, ship
from edge.deploy.transport.address import DeviceAddress
from edge.deploy.transport.frames import MessageFrame
from edge.deploy.transport.session import refusal
from edge.deploy.transport.ssh import connect
from edge.errors import ArtifactError, DeviceError, StoreError, UsageError
from edge.events import Event, Note
from tests.support.devices import QUICK, current, passed, root_of, tree

Make = Callable[..., Bundle]


def test_a_bundle_arrives_whole(bundle: Make, folder: DeviceAddress) -> None:
    sent = bundle()
    outcome = ship(sent, folder, settings=QUICK)
    assert (outcome.work, outcome.bundle, outcome.previous) == ("ok", sent.digest, None)
    assert outcome.sent_bytes == sent.about.total_bytes + len(sent.manifest)
    assert current(folder) == sent.digest
    root = root_of(folder)
    assert oct((root / "current" / "model" / "tiny.onnx").stat().st_mode & 0o777) == "0o444"
    assert list((root / "incoming").iterdir()) == []
    line = json.loads((root / "history.jsonl").read_text())
    assert (line["action"], line["bundle"], line["name"]) == ("ship", sent.digest, "a")


def test_the_same_again_sends_nothing(bundle: Make, folder: DeviceAddress) -> None:
    sent = bundle()
    ship(sent, folder, settings=QUICK)
    before = tree(root_of(folder))
    outcome = ship(sent, folder, settings=QUICK)
    assert (outcome.work, outcome.sent_bytes, outcome.sent_files) == ("unchanged", 0, 0)
    assert tree(root_of(folder)) == before


def test_only_what_is_missing_travels_and_previous_is_kept(bundle: Make, folder: DeviceAddress) -> None:
    first, second = bundle("a"), bundle("b", {"tables/x.table": b"x" * 500})
    ship(first, folder, settings=QUICK)
    outcome = ship(second, folder, settings=QUICK)
    assert outcome.sent_bytes == 500 + len(second.manifest)
    assert (current(folder), outcome.previous) == (second.digest, first.digest)
    assert (root_of(folder) / "previous").readlink() == Path("bundles") / first.digest


def test_two_files_with_one_content_travel_once(bundle: Make, folder: DeviceAddress) -> None:
    sent = bundle(files={"model/b.onnx": b"weights " * 100})
    assert ship(sent, folder, settings=QUICK).sent_files == 4
    assert current(folder) == sent.digest


@pytest.mark.parametrize(
    "name", ["a b", "it's", 'say "x"', "$(touch pwned)", "`touch pwned`", "-rf", "a;b&c", "ä", "*"]
)
def test_names_are_data(bundle: Make, tmp_path: Path, name: str) -> None:
    sent = bundle(files={f"tables/x{name}/x{name}.table": b"x"})
    place = DeviceAddress(name="device", folder=tmp_path / name / f"{name} device")
    assert ship(sent, place, settings=QUICK).work == "ok"
    assert current(place) == sent.digest
    assert rollback.status(place, verify=True).is_whole is True
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "a/../../x", "a//b", "./a", "a/.", "a/..", "..", "", "a\\b", "a/", "bundles/../../x"]
)
def test_the_device_itself_refuses_a_name_that_leaves_the_bundle(
    folder: DeviceAddress, tmp_path: Path, name: str
) -> None:
    """A bundle with such a name is not opened here; the script does not rely on that."""
    digest = "a" * 64
    with connect(folder) as session:
        session.ask("hello", str(folder.folder), "", "", "")
        session.ask("begin", "5", "test")
        with pytest.raises(DeviceError, match="not a name in a bundle"):
            session.ask("tree", digest, digest, "", f"{digest} {name}", "")
    assert {path.name for path in tmp_path.iterdir()} == {"device"}
    assert not (root_of(folder) / "bundles" / digest).exists()


@pytest.mark.parametrize(
    "lines",
    [
        ("switch", "../../x", "{}"),
        ("switch", "b" * 64, "{}"),
        ("seal", "../../etc/passwd"),
        ("put\n../x 0 1",),
        ("put\n" + "a" * 64 + " x 1",),
        ("put\n" + "a" * 64 + " 5 1",),
        ("get", "../../etc/passwd"),
        ("listing", "/etc", ""),
        ("rm", "-rf"),
        ("gc", "$(touch pwned)"),
    ],
    ids=lambda lines: lines[0].split("\n")[0],
)
def test_requests_that_make_no_sense_are_refused(folder: DeviceAddress, lines: tuple[str, ...]) -> None:
    with connect(folder) as session:
        session.ask("hello", str(folder.folder), "", "", "")
        session.ask("begin", "5", "test")
        for part in "\n".join(lines).split("\n"):
            session.notify(part)
        with pytest.raises(DeviceError, match="did not understand"):
            session.until("done", request="look")
    assert current(folder) is None


def test_nothing_changes_without_the_lock(folder: DeviceAddress) -> None:
    with connect(folder) as session:
        session.ask("hello", str(folder.folder), "", "", "")
        with pytest.raises(DeviceError, match="not locked"):
            session.ask("switch", "a" * 64, "{}")
    assert not root_of(folder).exists()


@pytest.mark.parametrize(
    "name", ["incoming", "bundles", "blobs", "blobs/sha256", "canary", "engines", "venvs", "lock", "history.jsonl"]
)
def test_a_stick_that_somebody_prepared_leads_nowhere_else(
    bundle: Make, folder: DeviceAddress, tmp_path: Path, name: str
) -> None:
    home = tmp_path / "home"
    (home / "incoming").mkdir(parents=True)
    (home / "file").write_text("precious")
    (home / "incoming" / "x").write_text("precious")
    link = root_of(folder) / name
    link.parent.mkdir(parents=True)
    link.symlink_to(home / "file" if name in {"lock", "history.jsonl"} else home)
    if name != "bundles":
        (root_of(folder) / "bundles").mkdir()
    for work in (lambda: ship(bundle(), folder, settings=QUICK), lambda: rollback.clear(folder)):
        with pytest.raises(StoreError, match=f"{name} is (a symbolic link|not a regular file)"):
            work()
    assert tree(home) == {"file": b"precious", "incoming/x": b"precious"}


def test_links_and_pipes_among_the_parts_are_cleared_away(bundle: Make, folder: DeviceAddress, tmp_path: Path) -> None:
    sent = bundle()
    (tmp_path / "file").write_text("precious")
    incoming = root_of(folder) / "incoming"
    incoming.mkdir(parents=True)
    (incoming / f"{sent.files['model/tiny.onnx'].sha256}.part").symlink_to(tmp_path / "file")
    os.mkfifo(incoming / f"{sent.files['profile.yaml'].sha256}.part")
    timing = root_of(folder) / "timing"
    timing.mkdir()
    (timing / "x.timing.lock").symlink_to(tmp_path / "file")
    ship(sent, folder, settings=QUICK)
    assert current(folder) == sent.digest
    assert list(timing.iterdir()) == []
    assert (tmp_path / "file").read_text() == "precious"


def test_a_file_that_is_a_link_is_sent_again(bundle: Make, folder: DeviceAddress, tmp_path: Path) -> None:
    sent = bundle()
    blob = root_of(folder) / "blobs" / "sha256" / sent.files["model/tiny.onnx"].sha256
    blob.parent.mkdir(parents=True)
    (tmp_path / "same").write_bytes(b"weights " * 100)
    blob.symlink_to(tmp_path / "same")
    ship(sent, folder, settings=QUICK)
    assert current(folder) == sent.digest


def test_nothing_is_run_from_a_folder(bundle: Make, folder: DeviceAddress, tmp_path: Path) -> None:
    """A stick is not the machine that it is put into."""
    program = root_of(folder) / "venv" / "bin" / "edge"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\ntouch '{tmp_path}/ran'\n")
    program.chmod(0o755)
    assert rollback.status(folder).edge != str(program)
    ship(bundle(), folder, settings=QUICK)
    assert not (tmp_path / "ran").exists()


def test_a_link_that_leads_elsewhere_is_no_bundle(bundle: Make, folder: DeviceAddress, tmp_path: Path) -> None:
    root_of(folder).mkdir()
    for name in ("current", "previous"):
        (root_of(folder) / name).symlink_to(tmp_path)
    assert rollback.status(folder, verify=True).current is None
    with pytest.raises(ArtifactError, match="no bundle on this device"):
        rollback.rollback(folder)
    sent = bundle()
    ship(sent, folder, settings=QUICK)
    assert (current(folder), rollback.status(folder).previous) == (sent.digest, None)


def test_what_rotted_on_the_device_is_sent_again(bundle: Make, folder: DeviceAddress) -> None:
    sent = bundle()
    ship(sent, folder, settings=QUICK)
    victim = root_of(folder) / "current" / "model" / "tiny.onnx"
    victim.chmod(0o644)
    victim.write_bytes(b"rotten! " * 100)
    heard: list[Event] = []
    outcome = ship(sent, folder, settings=QUICK, listen=heard.append)
    assert (outcome.work, outcome.sent_files) == ("ok", 1)
    assert current(folder) == sent.digest
    assert any(isinstance(event, Note) and "were damaged on the device" in event.text for event in heard)


def test_a_bundle_that_somebody_added_to_is_put_right(bundle: Make, folder: DeviceAddress) -> None:
    sent = bundle()
    ship(sent, folder, settings=QUICK)
    (root_of(folder) / "current" / "model" / "more.txt").write_text("x")
    (root_of(folder) / "current" / "link").symlink_to("/etc/passwd")
    assert rollback.status(folder, verify=True).is_whole is False
    ship(sent, folder, settings=QUICK)
    assert current(folder) == sent.digest


def test_a_part_goes_on_and_one_that_is_wrong_is_sent_again(bundle: Make, folder: DeviceAddress) -> None:
    good, bad = b"a" * 5000, b"b" * 5000
    sent = bundle(files={"model/good": good, "model/bad": bad, "model/long": b"c"})
    names = {name: entry.sha256 for name, entry in sent.files.items()}
    incoming = root_of(folder) / "incoming"
    incoming.mkdir(parents=True)
    (incoming / f"{names['model/good']}.part").write_bytes(good[:3000])
    (incoming / f"{names['model/bad']}.part").write_bytes(b"\0" * 3000)  # after a power cut
    (incoming / f"{names['model/long']}.part").write_bytes(b"c" * 9)
    (incoming / f"{'e' * 64}.part").write_bytes(b"of another bundle")
    outcome = ship(sent, folder, settings=QUICK)
    assert current(folder) == sent.digest
    assert outcome.resumed_bytes == 6000
    assert outcome.sent_bytes == sent.about.total_bytes + len(sent.manifest) - 6000 + 5000
    assert list(incoming.iterdir()) == []


def test_a_bundle_that_is_damaged_here_changes_nothing_there(
    bundle: Make, folder: DeviceAddress, tmp_path: Path
) -> None:
    first = bundle()
    ship(first, folder, settings=QUICK)
    second = bundle("b", {"model/other.onnx": b"other " * 3000})
    path = tmp_path / "b.edge"
    data = path.read_bytes()
    path.write_bytes(data.replace(b"other other", b"other 0ther", 1))
    with pytest.raises(ArtifactError, match="does not match the sha256"):
        ship(second, folder, settings=QUICK)
    assert current(folder) == first.digest


def test_an_rsync_that_outlived_its_client_does_not_change_what_was_verified(folder: DeviceAddress) -> None:
    """It is not killed with its client, and has the file open that the next ship takes over."""
    digest = sha256_bytes(b"content")
    with connect(folder) as session:
        session.ask("hello", str(folder.folder), "", "", "")
        session.ask("begin", "5", "test")
        path = root_of(folder) / "incoming" / "rsync" / "model" / "large"
        path.parent.mkdir(parents=True)
        with path.open("wb", buffering=0) as rsync:
            rsync.write(b"content")
            session.ask("adopt", digest, "model/large")
            session.notify("seal", digest)
            assert session.until("sealed", "bad", request="seal")[-1] == MessageFrame("sealed", digest)
            rsync.write(b" and more")
    assert tree(root_of(folder) / "blobs") == {f"sha256/{digest}": b"content"}


def test_contents_that_are_swapped_are_refused_there(bundle: Make, folder: DeviceAddress) -> None:
    """A client that lies: the right names with each other's content."""
    one, two = "1" * 64, "2" * 64
    with connect(folder) as session:
        session.ask("hello", str(folder.folder), "", "", "")
        session.ask("begin", "5", "test")
        for digest, data in ((one, b"two"), (two, b"one")):
            session.put(digest, 0, [data], on_sent=lambda _n: None)
            session.notify("seal", digest)
            assert session.until("sealed", "bad", request="seal")[-1] == MessageFrame("bad", digest)
        listed = sha256_bytes(f"{one}  ./a\n{two}  ./b\n".encode())
        answer = session.ask("tree", "3" * 64, listed, "", f"{one} a", f"{two} b", "")
        assert answer == [MessageFrame("rotten", one), MessageFrame("rotten", two)]
    assert tree(root_of(folder) / "blobs") == tree(root_of(folder) / "bundles") == {}


def test_a_list_that_a_full_disk_cut_short_makes_no_bundle(bundle: Make, folder: DeviceAddress) -> None:
    """Half of a bundle fits half of its list: found by benchmarks/ship.py, which fills the disk at random moments."""
    digest = "3" * 64
    with connect(folder) as session:
        session.ask("hello", str(folder.folder), "", "", "")
        session.ask("begin", "5", "test")
        with pytest.raises(StoreError, match="No space left"):
            session.ask("tree", digest, sha256_bytes(b"what was sent"), "", "")
    assert not (root_of(folder) / "bundles" / digest).exists()


def test_going_back_and_forth(bundle: Make, folder: DeviceAddress) -> None:
    first, second = bundle("a"), bundle("b", {"x": b"1"})
    ship(first, folder, settings=QUICK)
    passed(folder, first)
    with pytest.raises(UsageError, match="no bundle to roll back to"):
        rollback.rollback(folder)
    ship(second, folder, settings=QUICK)
    passed(folder, second)
    assert rollback.rollback(folder).current == first.digest
    assert current(folder) == first.digest
    assert rollback.rollback(folder).current == second.digest
    history = rollback.status(folder).history
    assert [entry.action for entry in history] == ["ship", "ship", "rollback", "rollback"]
    assert [entry.bundle for entry in history[2:]] == [first.digest, second.digest]


def test_a_bundle_that_was_not_tried_is_not_gone_back_to(bundle: Make, folder: DeviceAddress) -> None:
    first, second, third = bundle("a"), bundle("b", {"x": b"1"}), bundle("c", {"x": b"2"})
    for one in (first, second, third):
        ship(one, folder, settings=QUICK)
    with pytest.raises(UsageError, match="no other bundle here has passed"):
        rollback.rollback(folder)
    assert current(folder) == third.digest
    passed(folder, first)
    assert rollback.rollback(folder).current == first.digest


def test_a_damaged_bundle_is_not_gone_back_to(bundle: Make, folder: DeviceAddress) -> None:
    first, second = bundle("a", {"y": b"only here"}), bundle("b")
    ship(first, folder, settings=QUICK)
    passed(folder, first)
    ship(second, folder, settings=QUICK)
    (root_of(folder) / "previous" / "y").unlink()
    with pytest.raises(ArtifactError, match="is damaged; nothing was changed"):
        rollback.rollback(folder)
    assert current(folder) == second.digest


def test_clearing_up_keeps_current_and_previous(bundle: Make, folder: DeviceAddress) -> None:
    sent = [bundle(f"b{index}", {"own": f"content {index}".encode() * 100}) for index in range(5)]
    for one in sent:
        ship(one, folder, settings=QUICK)
    root = root_of(folder)
    (root / "incoming" / f"{'f' * 64}.part").write_bytes(b"x")
    (root / "bundles" / ("d" * 64)).mkdir()
    step = rollback.clear(folder, keep=1)
    assert set(step.removed) == {one.digest for one in sent[:2]}
    assert step.freed_bytes == sum(len(one.manifest) + one.files["own"].size for one in sent[:2])
    assert sorted(p.name for p in (root / "bundles").iterdir() if p.is_dir()) == sorted(o.digest for o in sent[2:])
    assert current(folder) == sent[4].digest
    passed(folder, sent[3])
    assert rollback.rollback(folder).current == sent[3].digest
    assert rollback.clear(folder).removed == [sent[2].digest]
    assert list((root / "incoming").iterdir()) == []


def test_a_folder_that_is_not_there_is_no_empty_device(folder: DeviceAddress) -> None:
    """A stick that is not mounted."""
    for work in (rollback.status, rollback.clear, rollback.rollback):
        with pytest.raises(DeviceError, match="there is no such folder"):
            work(folder)
    assert not root_of(folder).exists()


def test_a_torn_line_of_history_stays_alone(bundle: Make, folder: DeviceAddress) -> None:
    ship(bundle("a"), folder, settings=QUICK)
    with (root_of(folder) / "history.jsonl").open("a") as file:
        file.write('{"at": "2026-')
    ship(bundle("b", {"x": b"1"}), folder, settings=QUICK)
    assert [entry.name for entry in rollback.status(folder).history] == ["a", "b"]


def test_nothing_that_a_terminal_obeys_is_passed_on(bundle: Make, folder: DeviceAddress) -> None:
    ship(bundle("a"), folder, settings=QUICK)
    root = root_of(folder)
    (root / "history.jsonl").write_text('{"by": "\\u001b[31mred", "action": "\x1b[32mgreen"}\n{"by": "ada\\nbob"}\n')
    about = root / "current" / "bundle.json"
    about.unlink()
    about.write_text('{\n  "name": "\\u001b]0;title\\u0007",\n  "profile": ["\\u001b"]\n}')
    found = rollback.status(folder)
    assert all(entry.by.isprintable() for entry in found.history)
    assert [(str(kept.name).isprintable(), str(kept.profile).isprintable()) for kept in found.bundles] == [(True, True)]
    assert "\x1b" not in str(found)


def test_a_dry_run_writes_nothing(bundle: Make, folder: DeviceAddress) -> None:
    first, second = bundle("a"), bundle("b", {"x": b"12345"})
    plan = msgspec.structs.replace(QUICK, dry_run=True)
    assert ship(first, folder, settings=plan).work == "would ship"
    assert not root_of(folder).exists()
    ship(first, folder, settings=QUICK)
    before = tree(root_of(folder))
    outcome = ship(second, folder, settings=plan)
    assert (outcome.work, outcome.sent_files, outcome.sent_bytes) == ("would ship", 2, 5 + len(second.manifest))
    assert ship(first, folder, settings=plan).work == "unchanged"
    assert tree(root_of(folder)) == before


def test_a_file_in_the_way(bundle: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match=r"cannot write on the device.*(Not a directory|File exists)"):
        ship(bundle(), DeviceAddress(name="d", folder=tmp_path / "file" / "device"), settings=QUICK)


def test_more_than_fits_is_not_begun(bundle: Make, folder: DeviceAddress) -> None:
    sent = bundle()
    huge = msgspec.structs.replace(sent.files["model/tiny.onnx"], size=1 << 60)
    sent.about.files["model/tiny.onnx"] = huge
    with pytest.raises(StoreError, match=r"MB to send, but only .* MB are free") as caught:
        ship(sent, folder, settings=QUICK)
    assert "edge ship gc" in str(caught.value.hint)
    assert list((root_of(folder) / "blobs" / "sha256").iterdir()) == []


def test_a_disk_that_fills_up(bundle: Make, folder: DeviceAddress, tmp_path: Path) -> None:
    """The limit on file sizes stands for a full disk; the room that was taken is given back."""
    first = bundle("a")
    ship(first, folder, settings=QUICK)
    bundle("b", {"model/large": os.urandom(300_000)})
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "sys.dont_write_bytecode = True\n"
        "sys.argv = ['edge', 'ship', './device', '--bundle', 'b.edge', '--no-canary']\n"
        "from edge.cli import main\nmain()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    assert (ended.returncode, "cannot write on the device" in ended.stderr) == (9, True), ended.stderr
    assert "Traceback" not in ended.stderr
    assert current(folder) == first.digest
    assert not list((root_of(folder) / "incoming").glob("*.part"))
    assert ship(open_bundle(tmp_path / "b.edge"), folder, settings=QUICK).work == "ok"


def test_a_bundle_for_another_device_is_refused_before_anything_is_sent(bundle: Make, tmp_path: Path) -> None:
    """The disk of an Orin Nano, mounted here."""
    disk = tmp_path / "disk"
    (disk / "proc/device-tree").mkdir(parents=True)
    (disk / "etc").mkdir()
    compatible = b"nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234\0"
    (disk / "proc/device-tree/compatible").write_bytes(compatible)
    (disk / "proc/device-tree/model").write_bytes(b"NVIDIA Jetson Orin Nano Engineering Reference Developer Kit\0")
    (disk / "etc/nv_tegra_release").write_text("# R36 (release), REVISION: 4.4, GCID: 1, BOARD: generic\n")
    place = DeviceAddress(name="nano", folder=disk / "edge", system_root=str(disk))
    with pytest.raises(DeviceError, match=r"the bundle is for thor, .* is orin-nano"):
        ship(bundle(family="thor"), place, settings=QUICK)
    with pytest.raises(DeviceError, match=r"for JetPack 7\.2, .* has 6\.2\.1"):
        ship(bundle(family="orin-nano", jetpack=["7.2"]), place, settings=QUICK)
    assert not (disk / "edge").exists()
    # That machine's own programs do not run here, and this machine's say nothing about it.
    program = disk / "edge" / "venv" / "bin" / "edge"
    program.parent.mkdir(parents=True)
    program.write_bytes(b"\x7fELF for another processor")
    program.chmod(0o755)
    sent = bundle(family="orin-nano", jetpack=["6.2"])
    with pytest.raises(UsageError, match="onto the disk of another machine"):
        ship(sent, place, settings=ShipSettings(bootstrap=True))
    outcome = ship(sent, place)
    assert (outcome.work, outcome.canary) == ("ok", None)
    assert (rollback.status(place).edge, current(place)) == (None, sent.digest)


def test_a_folder_may_be_for_any_device(bundle: Make, folder: DeviceAddress) -> None:
    sent = bundle(family="thor")
    assert ship(sent, folder).canary is None
    assert current(folder) == sent.digest


def test_a_slow_line_is_not_a_silent_client(folder: DeviceAddress, tmp_path: Path) -> None:
    """One piece that takes longer than a client may be silent; the naps of the watch end when the test says so."""
    tools, naps = tmp_path / "tools", tmp_path / "naps"
    tools.mkdir()
    os.mkfifo(naps)
    (tools / "sleep").write_text(f"#!/bin/sh\nread nap <'{naps}'\n")
    (tools / "sleep").chmod(0o755)
    script = resources.files("edge.deploy.transport").joinpath("agent.sh")
    digest, block = sha256_bytes(b"x" * 65536 * 31), b"x" * 65536
    part = root_of(folder) / "incoming" / f"{digest}.part"
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    with subprocess.Popen(
        ["sh", str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, bufsize=0
    ) as device:
        assert device.stdin is not None
        assert device.stdout is not None
        device.stdin.write(f"word\nhello\n{folder.folder}\n\n\n\nbegin\n5\ntest\n".encode())
        device.stdin.write(f"put\n{digest} 0 {31 * len(block)}\n".encode())
        for index in range(31):
            device.stdin.write(block)
            deadline = time.monotonic() + 60
            while not part.is_file() or part.stat().st_size != (index + 1) * len(block):
                assert time.monotonic() < deadline
                time.sleep(0.005)
            if index < 30:
                with contextlib.suppress(BrokenPipeError):
                    naps.write_text("over\n")
        device.stdin.write(f"seal\n{digest}\n".encode())
        device.stdin.close()
        assert f"word sealed {digest}" in device.stdout.read().decode().splitlines()


def test_two_at_once_are_one_after_the_other(bundle: Make, folder: DeviceAddress) -> None:
    first, second = bundle("a"), bundle("b", {"x": b"1"})
    ship(first, folder, settings=QUICK)
    with connect(folder) as holder:
        holder.ask("hello", str(folder.folder), "", "", "")
        holder.ask("begin", "5", "ada@laptop")
        with pytest.raises(
            StoreError, match=r"another shipment to this device is in progress: ada@laptop \(process \d+\)"
        ):
            ship(second, folder, settings=msgspec.structs.replace(QUICK, lock_wait_s=0))
        assert rollback.status(folder).current == first.digest
    assert ship(second, folder, settings=QUICK).work == "ok"


def test_what_another_ship_did_in_the_meantime_counts(bundle: Make, folder: DeviceAddress) -> None:
    """Who waits for the lock has said hello before: what was in use then is old."""
    first, second = bundle("a"), bundle("b", {"x": b"1"})
    ship(first, folder, settings=QUICK)
    with connect(folder) as waiting:
        state = agent_protocol.hello(waiting, folder)
        assert state.current == first.digest
        ship(second, folder, settings=QUICK)
        state = agent_protocol.begin(waiting, state, lock_wait_s=30)
    assert (state.current, state.previous) == (second.digest, first.digest)


def test_a_file_that_gets_shorter_while_it_is_read(
    folder: DeviceAddress, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A `stat` that says more than is there."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "stat").write_text("#!/bin/sh\n[ $1 = -f ] && echo 8 8 || echo 8\n")
    (tools / "stat").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=os.pathsep)
    root_of(folder).mkdir()
    (root_of(folder) / "x").write_text("12345")
    with connect(folder) as session:
        session.ask("hello", str(folder.folder), "", "", "")
        received = bytearray()
        assert session.get("x", most=100, write=received.extend) is None
        assert bytes(received) == b"12345\0\0\0"
        assert str(session.get("x", most=7, write=received.extend)).startswith("8 bytes are more")
        assert str(session.get("y", most=100, write=received.extend)).startswith("it went away")


def test_many_at_once_all_end_well(bundle: Make, folder: DeviceAddress) -> None:
    from concurrent.futures import ThreadPoolExecutor

    sent = [bundle(f"b{index}", {"x": f"{index}".encode()}) for index in range(6)]
    with ThreadPoolExecutor(6) as pool:
        works = [outcome.work for outcome in pool.map(lambda one: ship(one, folder, settings=QUICK), sent)]
    assert works == ["ok"] * 6
    assert current(folder) in {one.digest for one in sent}


@pytest.mark.parametrize(
    ("text", "kind", "words", "hint"),
    [
        ("write mkdir: cannot create directory: Read-only file system", StoreError, "Read-only", "remount"),
        ("write x: Permission denied", StoreError, "Permission denied", "may write"),
        ("write ln: failed to create symbolic link 'x': Operation not permitted", StoreError, "symbolic", "FAT"),
        ("write dd: No space left on device", StoreError, "No space left", "edge ship gc"),
        ("write ", StoreError, "the file size limit was reached", ""),
        ("locked ada@x", StoreError, "another shipment to this device is in progress: ada@x", "two minutes"),
        ("tools flock date", DeviceError, "missing on the device: flock, date; nothing was sent", "apt install"),
        ("signature refused", ArtifactError, "refuses the signature", "sign"),
        ("protocol what", DeviceError, "did not understand", "bug"),
    ],
)
def test_what_a_device_refuses_is_said_with_what_to_do(text: str, kind: type, words: str, hint: str) -> None:
    error = refusal(text, "orin-1")
    assert isinstance(error, kind)
    assert words in error.what
    assert hint in str(error.hint)
    assert error.where == "orin-1"


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("links", [True, False])
def test_every_file_is_on_the_disk_before_the_switch(bundle: Make, folder: DeviceAddress, links: bool) -> None:
    """Also where the file system has no hard links, and the files of a bundle are copies."""
    tools, log = root_of(folder).parent / "tools", root_of(folder).parent / "strace.log"
    tools.mkdir()
    if not links:
        (tools / "ln").write_text(f'#!/bin/sh\n[ "$1" = -s ] || exit 1\nexec {shutil.which("ln")} "$@"\n')
        (tools / "ln").chmod(0o755)
    calls = "trace=fsync,rename,renameat,renameat2,link,linkat"
    (tools / "sh").write_text(
        f'#!/bin/sh\nPATH="$(printf %s "$PATH" | cut -d: -f2-)"\n'
        f"{'' if links else f'PATH={tools}/no:$PATH'}\nexport PATH\n"
        f"exec strace -f -y -qq -s 512 -e {calls} -o '{log}' /bin/sh \"$@\"\n"
    )
    (tools / "sh").chmod(0o755)
    (tools / "no").mkdir()
    if not links:
        (tools / "ln").rename(tools / "no" / "ln")
    sent = bundle()
    environment = os.environ["PATH"]
    os.environ["PATH"] = f"{tools}:{environment}"
    try:
        ship(sent, folder, settings=QUICK)
    finally:
        os.environ["PATH"] = environment
    assert current(folder) == sent.digest
    lines = log.read_text().splitlines()
    switched = next(n for n, line in enumerate(lines) if "rename" in line and line.split('"')[-2].endswith("/current"))
    synced = "\n".join(line for line in lines[:switched] if "fsync(" in line and line.rstrip().endswith("= 0"))
    for name, entry in sent.files.items():
        # A link is the file that was synced under its digest.
        wanted = f"blobs/sha256/{entry.sha256}", f"{entry.sha256}.part"
        assert any(path in synced for path in wanted), name
        if not links:
            assert re.search(rf"incoming/tree\.\d+/{re.escape(name)}>", synced), name
    for path in (r"incoming/tree\.\d+>", r"incoming/tree\.\d+/model>", "blobs/sha256>", "/bundles>"):
        assert re.search(path, synced), path


def test_where_rsync_has_no_room_the_files_go_as_a_stream(
    bundle: Make, serve: Callable[..., Any], remote: Callable[..., DeviceAddress], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """And one copy serves every device."""
    if shutil.which("rsync") is None:
        pytest.skip("rsync is not installed")
    server, sent = serve(), bundle(files={"model/large": os.urandom(2 << 20)})
    heard: list[Event] = []
    with BundleTree(sent, parent=tmp_path / "missing") as tree:
        outcome = ship(sent, remote(server, "a"), settings=QUICK, listen=heard.append, tree=tree)
    assert outcome.work == "ok"
    assert any(isinstance(event, Note) and "no space here for rsync's copy" in event.text for event in heard)
    (tmp_path / "temporary").mkdir()
    with BundleTree(sent, parent=tmp_path / "temporary") as tree:
        for name in ("b", "c"):
            assert ship(sent, remote(server, name), settings=QUICK, tree=tree).work == "ok"
        copies = [path for path in (tmp_path / "temporary").rglob("*") if path.is_file()]
        assert [path.name for path in copies] == ["large"]
        # What a killed process leaves has its number, by which the next ship removes it.
        assert copies[0].relative_to(tmp_path / "temporary").parts[0].startswith(f"edge-rsync-{os.getpid()}-")
    assert list((tmp_path / "temporary").iterdir()) == []
    unpacked = unpack_bundle(sent, tmp_path / "unpacked")
    with BundleTree(unpacked) as tree:
        assert tree.folder_with(["model/large"]) == tmp_path / "unpacked"

"""The verdict of a trial: what makes one, what it changes, and what is left by one that was cut off."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from edge.deploy import rollback
from edge.deploy.bundle.reader import Bundle
from edge.deploy.push import ship
from edge.deploy.transport.address import DeviceAddress
from edge.errors import DeviceError, UsageError
from tests.support.devices import QUICK, Program, current, passed, root_of

Make = Callable[..., Bundle]


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path / "it's edge")


def trial_of(place: DeviceAddress, bundle: Bundle) -> str:
    return next(info.trial for info in rollback.status(place).bundles if info.digest == bundle.digest)


def test_it_is_tried_while_the_old_bundle_is_in_use(bundle: Make, folder: DeviceAddress, program: Program) -> None:
    place, first, second = program.on(folder), bundle("a"), bundle("b", {"x": b"1"})
    ship(first, place)
    outcome = ship(second, place)
    assert program.trials() == [
        f"{first.digest} while  is in use", f"{second.digest} while bundles/{first.digest} is in use"
    ]  # fmt: skip
    assert (outcome.work, outcome.current, outcome.verdict) == ("ok", second.digest, "passed")
    assert current(place) == second.digest


def test_a_device_that_ships_to_itself_tries_as_well(
    bundle: Make, folder: DeviceAddress, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ``system_root: /`` the folder is that of this machine, and its edge is where a shell finds it."""
    monkeypatch.setenv("PATH", f"{program.path.parent / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(program.path.parent))
    program.path.parent.joinpath("bin").mkdir()
    program.path.parent.joinpath("bin", "edge").symlink_to(program.path)
    place = msgspec.structs.replace(folder, system_root="/")
    outcome = ship(bundle(), place)
    assert (outcome.work, outcome.verdict, len(program.trials())) == ("ok", "passed", 1)


def test_a_failed_trial_changes_nothing(bundle: Make, folder: DeviceAddress, program: Program) -> None:
    place, first, second = program.on(folder), bundle("a"), bundle("b", {"x": b"1"})
    ship(first, place)
    program.does("fail")
    outcome = ship(second, place)
    assert (outcome.work, outcome.reason, outcome.exit_code) == ("trial failed", "too slow", 1)
    assert (outcome.current, current(place)) == (first.digest, first.digest)
    assert (trial_of(place, first), trial_of(place, second)) == ("passed", "failed")
    program.does("pass")
    assert ship(second, place).work == "ok"


def test_a_first_ship_that_fails_leaves_no_current(bundle: Make, folder: DeviceAddress, program: Program) -> None:
    program.does("fail")
    outcome = ship(bundle(), program.on(folder))
    assert (outcome.work, outcome.current, current(folder)) == ("trial failed", None, None)


@pytest.mark.parametrize(
    ("does", "says"),
    [
        ("code 2", "does not know this trial"), ("code 126", "cannot be started"), ("code 127", "cannot be started"),
        ("code 0", "ended with exit code 0 without a report"), ("code 1", "ended with exit code 1 without a report"),
        ("code 8", "what it says"), ("code 137", "was ended by signal 9"), ("signal", "was ended by signal 9"),
        ("stale", "without a report of this trial"), ("other", "without a report of this trial"),
        ("liar", "without a report of this trial"), ("foreign", "is another program of that name"),
    ],
)  # fmt: skip
def test_what_is_no_trial_switches_nothing(
    bundle: Make, folder: DeviceAddress, program: Program, does: str, says: str
) -> None:
    place, first, second = program.on(folder), bundle("a"), bundle("b", {"x": b"1"})
    ship(first, place)
    program.does(does)
    outcome = ship(second, place)
    assert (outcome.work, outcome.exit_code) == ("not tried", 1)
    assert says in str(outcome.reason)
    assert current(place) == first.digest
    assert trial_of(place, second) == "not tried"


def test_without_a_trial_the_verdict_stays_not_tried(bundle: Make, folder: DeviceAddress, program: Program) -> None:
    sent = bundle()
    outcome = ship(sent, program.on(folder), settings=QUICK)
    assert (outcome.work, outcome.verdict, outcome.canary, program.trials()) == ("ok", "not tried", None, [])
    assert ship(sent, program.on(folder)).verdict == "passed"


def test_a_bundle_in_use_that_fails_its_trial_makes_way_for_the_last_one_that_passed(
    bundle: Make, folder: DeviceAddress, program: Program
) -> None:
    place = program.on(folder)
    first, second, third = bundle("a"), bundle("b", {"x": b"1"}), bundle("c", {"x": b"2"})
    ship(first, place)
    ship(second, place, settings=QUICK)
    ship(third, place, settings=QUICK)
    program.does("fail")
    outcome = ship(third, place)
    assert (outcome.work, outcome.current, current(place)) == ("rolled back", first.digest, first.digest)
    assert rollback.status(place).previous == second.digest


def test_with_nothing_that_passed_it_makes_way_for_none(bundle: Make, folder: DeviceAddress, program: Program) -> None:
    sent = bundle()
    ship(sent, folder, settings=QUICK)
    program.does("fail")
    outcome = ship(sent, program.on(folder))
    assert (outcome.work, outcome.current, current(folder)) == ("rolled back", None, None)


def test_a_trial_that_was_cut_off_is_unknown_then_tried_again_then_failed(
    bundle: Make, folder: DeviceAddress, program: Program
) -> None:
    place, first, second = program.on(folder), bundle("a"), bundle("b", {"x": b"1"})
    ship(first, place)
    for _ in range(2):
        program.does("reset")
        with pytest.raises(DeviceError):
            ship(second, place)
        assert (current(place), trial_of(place, second)) == (first.digest, "unknown")
    program.does("pass")
    before = program.trials()
    outcome = ship(second, place)
    assert (outcome.work, trial_of(place, second), program.trials()) == ("trial failed", "failed", before)
    assert "cut off twice" in str(outcome.reason)
    assert current(place) == first.digest
    # It stays so until somebody clears it away.
    assert ship(second, place).work == "trial failed"
    rollback.clear(place)
    assert ship(second, place).work == "ok"


def test_a_trial_that_was_cut_off_once_is_made_up_for(bundle: Make, folder: DeviceAddress, program: Program) -> None:
    place, sent = program.on(folder), bundle()
    program.does("reset")
    with pytest.raises(DeviceError):
        ship(sent, place)
    program.does("code 9")
    assert ship(sent, place).work == "not tried"
    assert trial_of(place, sent) == "unknown"
    program.does("pass")
    assert (ship(sent, place).work, trial_of(place, sent)) == ("ok", "passed")


@pytest.mark.parametrize(
    ("lines", "counts"),
    [
        ([("ship", "a"), ("ship", "b")], True),
        ([("ship", "a"), ("back", "a"), ("ship", "b")], False),
        ([("ship", "a"), ("back", "a"), ("ship", "a"), ("ship", "b")], True),
        ([("ship", "a"), ("ship", "b"), ("rollback", "a"), ("ship", "b")], True),
        ([("ship", "b")], False),
    ],
)
def test_bundles_of_an_edge_without_verdicts_count_by_the_history(
    bundle: Make, folder: DeviceAddress, lines: list[tuple[str, str]], counts: bool
) -> None:
    made = {"a": bundle("a"), "b": bundle("b", {"x": b"1"})}
    for one in made.values():
        ship(one, folder, settings=QUICK)
    (root_of(folder) / "history.jsonl").write_text(
        "".join(
            json.dumps({"at": "2026", "by": "ada", "action": action, "bundle": made[name].digest, "name": name}) + "\n"
            for action, name in lines
        )
    )
    if counts:
        assert rollback.rollback(folder).current == made["a"].digest
        # That it was gone back to is no reason to count otherwise now.
        passed(folder, made["b"])
        rollback.rollback(folder)
        assert rollback.rollback(folder).current == made["a"].digest
    else:
        with pytest.raises(UsageError, match="no bundle to roll back to"):
            rollback.rollback(folder)


def test_clearing_up_keeps_what_can_be_gone_back_to(bundle: Make, folder: DeviceAddress, program: Program) -> None:
    place, made = program.on(folder), [bundle(f"b{n}", {"x": b"%d" % n}) for n in range(4)]
    ship(made[0], place)
    for one in made[1:]:
        ship(one, place, settings=QUICK)
    assert rollback.clear(place).removed == [made[1].digest]
    assert rollback.rollback(place).current == made[0].digest


def test_a_compiled_program_of_that_name_is_named_and_not_run(
    bundle: Make, folder: DeviceAddress, tmp_path: Path
) -> None:
    """Debian's n2n has a program called edge."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "edge").write_bytes(b"\x7fELF n2n")
    (tools / "edge").chmod(0o755)
    place = msgspec.structs.replace(folder, edge=str(tools / "edge"))
    outcome = ship(bundle(), place)
    assert (outcome.work, outcome.verdict) == ("ok", "not tried")
    assert any("another program of that name" in text for text in outcome.warnings)


def test_a_trial_ends_also_without_its_client(
    bundle: Make, folder: DeviceAddress, program: Program, tmp_path: Path
) -> None:
    """The client is killed while the device tries; the device goes on, and switches by itself."""
    place, sent = program.on(folder), bundle()
    begun, go_on = tmp_path / "begun", tmp_path / "go on"
    os.mkfifo(begun)
    os.mkfifo(go_on)
    wait = f"echo >'{begun}'; read -r line <'{go_on}'; case $does in\n  pass"
    program.path.write_text(program.path.read_text().replace("case $does in\n  pass", wait))
    client = os.fork()
    if client == 0:
        try:
            ship(sent, place)
        finally:
            os._exit(1)
    begun.read_text()
    os.kill(client, signal.SIGKILL)
    os.waitpid(client, 0)
    go_on.write_text("\n")
    again = ship(sent, place)
    assert (again.work, current(place)) == ("unchanged", sent.digest)
    assert len(program.trials()) == 1

"""Power modes, with scripts in the place of nvpmodel and jetson_clocks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.errors import ArtifactError, DeviceError, UsageError
from edge.system import nvpmodel, power_modes
from edge.system.nvpmodel import Mode
from tests.support.boards import nvpmodel as nvpmodel_files

# Sets what it is told, like nvpmodel; asks on its standard input before mode 3, as NVIDIA's does when cores change.
NVPMODEL = """#!/bin/sh
echo "nvpmodel $*" >> "$ROOT/calls"
status="$ROOT/var/lib/nvpmodel/status"
case "$1" in
  -q)
    echo "NVPM WARN: fan mode is not set!"
    echo "NV Fan Mode:quiet"
    n=$(sed -n 's/pmode:0*\\([0-9][0-9]*\\).*/\\1/p' "$status"); n=${n:-0}
    case $n in 0) name=15W;; 1) name=25W;; 2) name=MAXN_SUPER;; 3) name=7W;; esac
    echo "NV Power Mode: $name"; echo "$n" ;;
  -p) echo "NVPM VERB: POWER_MODEL: ID=0 NAME=15W"; echo "NVPM VERB: POWER_MODEL: ID=1 NAME=25W"
      echo "NVPM VERB: PM_CONFIG: DEFAULT=1" ;;
  -m)
    if [ "$2" = 3 ]; then
      echo "NVPM WARN: Reboot required for changing to this power mode: 3"
      echo "NVPM WARN: DO YOU WANT TO REBOOT NOW? enter YES/yes to confirm:"
      read answer || { echo "NVPM ERROR: bad input!"; exit 255; }
      echo "reboot" >> "$ROOT/calls"; exit 0
    fi
    [ -e "$ROOT/broken" ] && { echo "NVPM ERROR: failed to write CORE_3"; exit 1; }
    [ -e "$ROOT/slow" ] && { touch "$ROOT/switching"; sleep 1; }
    printf 'pmode:%04d fmode:quiet\\n' "$2" > "$status" ;;
esac
"""
JETSON_CLOCKS = """#!/bin/sh
echo "jetson_clocks $*" >> "$ROOT/calls"
[ -e "$ROOT/no-clocks" ] && { echo "Error: unsupported"; exit 2; }
case "$1" in
  --store)
    if [ -e "$2" ]; then echo "File $2 already exists. Can I overwrite it? Y/N:"; read answer || exit 1; fi
    echo stored > "$2" ;;
  --restore) [ -e "$2" ] || exit 1 ;;
esac
"""


@pytest.fixture
def root() -> Iterator[Path]:
    """An Orin Nano in mode 1, in a folder that everybody may read: tmp_path is root's own."""
    with tempfile.TemporaryDirectory(prefix="edge-test-") as folder:
        Path(folder).chmod(0o755)
        yield orin_nano(Path(folder))


def orin_nano(tmp_path: Path) -> Path:
    for name, content in nvpmodel_files(1).items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    conf = tmp_path / "etc/nvpmodel.conf"
    conf.write_text(conf.read_text() + "< POWER_MODEL ID=3 NAME=7W >\n")
    install(tmp_path, "usr/sbin/nvpmodel", NVPMODEL)
    install(tmp_path, "usr/bin/jetson_clocks", JETSON_CLOCKS)
    return tmp_path


def install(root: Path, name: str, script: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(script.replace("$ROOT", str(root)))
    path.chmod(0o755)


def calls(root: Path) -> list[str]:
    """What was run so far, without the questions."""
    path = root / "calls"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line.replace(str(root), "") for line in lines if " -q" not in line]


@pytest.fixture
def user() -> Iterator[None]:
    """While the test runs we are not root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="changing power modes needs root")


# What the words say


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("NV Power Mode: MAXN_SUPER\n2\n", Mode(2, "MAXN_SUPER")),
        ("NVPM WARN: power mode is not set!\nNVPM WARN: patience 3\nNV Power Mode: 15W\n0\n", Mode(0, "15W")),
        ("NV Fan Mode:cool\nNV Power Mode: MODE_30W\n2", Mode(2, "MODE_30W")),
        ("NV Power Mode:MAXN\n 0 \n", Mode(0, "MAXN")),
        ("NV Power Mode: 120W\n", None),
        ("NVPM ERROR: bad input!\n2\n", None),
        ("", None),
    ],
)
def test_the_answer_to_a_query(text: str, mode: Mode | None) -> None:
    assert nvpmodel.parse_query(text) == mode


@pytest.mark.parametrize(
    "text",
    [
        "<POWER_MODEL ID=0 NAME=MAXN>\n<POWER_MODEL ID=2 NAME=MODE_30W>\n#POWER_MODEL ID=7\n<PM_CONFIG DEFAULT=2>",
        "NVPM VERB: POWER_MODEL: ID=0 NAME=MAXN\nPOWER_MODEL: ID=2 NAME=MODE_30W\nNVPM VERB: PM_CONFIG: DEFAULT=2",
    ],
    ids=["file", "verbose"],
)
def test_the_list_of_modes(text: str) -> None:
    found = nvpmodel.parse_listing(text)
    assert found.modes == (Mode(0, "MAXN"), Mode(2, "MODE_30W"))
    assert found.default == Mode(2, "MODE_30W")
    assert found.find("30w") == found.find("MODE_30W") == found.find("2") == Mode(2, "MODE_30W")
    assert found.find("15W") is None


def test_files_say_it_where_nothing_can_be_run(root: Path) -> None:
    assert nvpmodel.current(root) == Mode(1, "25W")
    (root / "var/lib/nvpmodel/status").write_text("pmode:0009")
    assert nvpmodel.current(root) == Mode(9, "9")
    (root / "var/lib/nvpmodel/status").write_bytes(b"\xff\0garbage")
    assert nvpmodel.current(root) is None


# show


def test_show(root: Path) -> None:
    state = power_modes.show(root)
    assert state.mode == Mode(1, "25W")
    assert [mode.name for mode in state.modes] == ["15W", "25W", "MAXN_SUPER", "7W"]
    assert state.default == Mode(1, "25W")
    assert state.clocks_locked is None
    assert state.notes == ("NVPM WARN: fan mode is not set!",)
    assert state.changed is None


def test_show_without_a_configuration_asks_nvpmodel(root: Path) -> None:
    (root / "etc/nvpmodel.conf").unlink()
    assert [mode.name for mode in power_modes.show(root).modes] == ["15W", "25W"]


def test_show_without_the_program_reads_its_files(root: Path) -> None:
    (root / "usr/sbin/nvpmodel").unlink()
    assert power_modes.show(root).mode == Mode(1, "25W")


def test_a_machine_without_power_modes_says_so(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="there is no nvpmodel"):
        power_modes.show(tmp_path)


@pytest.mark.parametrize("has_modes", [False, True], ids=["no configuration", "mounted configuration"])
def test_in_a_container_nvpmodel_is_said_to_be_outside(
    root: Path, monkeypatch: pytest.MonkeyPatch, has_modes: bool
) -> None:
    (root / ".dockerenv").touch()
    (root / "usr/sbin/nvpmodel").unlink()
    if not has_modes:
        (root / "etc/nvpmodel.conf").unlink()
        (root / "var/lib/nvpmodel/status").unlink()
    monkeypatch.setattr("os.geteuid", lambda: 0)
    with pytest.raises(DeviceError, match="nvpmodel is outside of this container") as caught:
        power_modes.set_mode("15W", root)
    assert "-v /var/lib/nvpmodel:/var/lib/nvpmodel:ro" in str(caught.value.hint)


def test_an_nvpmodel_that_says_nothing_useful_is_quoted(root: Path) -> None:
    (root / "var/lib/nvpmodel/status").unlink()
    install(root, "usr/sbin/nvpmodel", "#!/bin/sh\necho 'NVPM ERROR: No such file: /etc/nvpmodel.conf'; exit 1\n")
    with pytest.raises(DeviceError, match="cannot be read") as caught:
        power_modes.show(root)
    assert "NVPM ERROR: No such file" in str(caught.value.hint)


def test_an_nvpmodel_that_cannot_be_started(root: Path) -> None:
    (root / "usr/sbin/nvpmodel").write_text("\x7fELF of another machine")
    with pytest.raises(DeviceError, match="cannot be started"):
        power_modes.show(root)


# set


@needs_root
def test_set_and_restore(root: Path) -> None:
    state = power_modes.set_mode("maxn_super", root)
    assert state.mode == Mode(2, "MAXN_SUPER")
    assert state.changed is not None
    assert state.changed.before == Mode(1, "25W")
    assert power_modes.set_mode("0", root).mode == Mode(0, "15W")
    back = power_modes.restore(root)
    assert (back.mode, back.changed) == (Mode(1, "25W"), None)
    assert calls(root) == ["nvpmodel -m 2", "nvpmodel -m 0", "nvpmodel -m 1"]
    with pytest.raises(UsageError, match="nothing to restore"):
        power_modes.restore(root)


@needs_root
def test_locking_the_clocks_stores_them_first_and_gives_them_back(root: Path) -> None:
    power_modes.set_mode("0", root, lock_clocks=True)
    power_modes.set_mode("0", root, lock_clocks=True)  # again: the first stored state is the one that counts
    power_modes.restore(root)
    stored = "/var/lib/edge/jetson_clocks.conf"
    assert calls(root) == [
        f"jetson_clocks --store {stored}",
        "nvpmodel -m 0",
        "jetson_clocks ",
        "jetson_clocks ",
        "nvpmodel -m 1",
        f"jetson_clocks --restore {stored}",
    ]
    assert not list((root / "var/lib/edge").iterdir())


def test_the_mode_that_is_set_already_needs_nothing(root: Path, user: None) -> None:
    assert power_modes.set_mode("25W", root).mode == Mode(1, "25W")


@needs_root
def test_a_mode_that_needs_a_reboot_is_refused_with_the_command_and_nothing_changes(root: Path) -> None:
    with pytest.raises(
        DeviceError, match="7W needs a reboot, and edge does not reboot; the mode is still 25W"
    ) as caught:
        power_modes.set_mode("7W", root)
    assert "sudo nvpmodel -m 3" in str(caught.value.hint)
    assert "reboot" not in calls(root)
    assert power_modes.show(root).changed is None


@needs_root
def test_a_prompt_that_does_not_end_is_ended(root: Path) -> None:
    hangs = "#!/bin/sh\nif [ $1 = -m ]; then exec sleep 60; fi\necho 'NV Power Mode: 25W'; echo 1\n"
    install(root, "usr/sbin/nvpmodel", hangs)
    with pytest.raises(DeviceError, match=r"did not end within 0\.3 s"):
        power_modes.set_mode("0", root, timeout_s=0.3)


@needs_root
def test_an_nvpmodel_that_fails_is_quoted(root: Path) -> None:
    (root / "broken").touch()
    with pytest.raises(DeviceError, match="did not switch to 15W; the mode is 25W: NVPM ERROR: failed to write CORE_3"):
        power_modes.set_mode("15W", root)
    assert power_modes.show(root).changed is None


@needs_root
def test_an_nvpmodel_that_lies_is_found_out(root: Path) -> None:
    install(root, "usr/sbin/nvpmodel", "#!/bin/sh\necho 'NV Power Mode: 25W'; echo 1\n")
    with pytest.raises(DeviceError, match="did not switch to 15W; the mode is 25W"):
        power_modes.set_mode("15W", root)


def test_an_unknown_mode_lists_those_that_there_are(root: Path) -> None:
    with pytest.raises(UsageError, match="no power mode '40W'") as caught:
        power_modes.set_mode("40W", root)
    assert caught.value.hint == "one of 15W (0), 25W (1), MAXN_SUPER (2), 7W (3)"


def test_without_root_the_exact_command_is_said(root: Path, user: None) -> None:
    with pytest.raises(DeviceError, match="needs root") as caught:
        power_modes.set_mode("15W", root, again="/opt/.venv/bin/edge power set 15W")
    assert caught.value.hint == "sudo /opt/.venv/bin/edge power set 15W"
    assert calls(root) == []


@needs_root
def test_clocks_that_cannot_be_locked_leave_a_way_back(root: Path) -> None:
    (root / "no-clocks").touch()
    with pytest.raises(DeviceError, match="jetson_clocks failed with status 2: Error: unsupported"):
        power_modes.set_mode("0", root, lock_clocks=True)
    assert power_modes.show(root).mode == Mode(1, "25W")
    (root / "usr/bin/jetson_clocks").unlink()
    with pytest.raises(DeviceError, match="no jetson_clocks"):
        power_modes.set_mode("0", root, lock_clocks=True)


def test_a_damaged_note_is_refused_and_never_guessed(root: Path) -> None:
    note = root / "var/lib/edge/power.json"
    note.parent.mkdir(parents=True)
    note.write_text('{"format": 1, "before"')
    with pytest.raises(ArtifactError, match="damaged"):
        power_modes.show(root)
    note.write_text('{"format": 2, "changed_utc": "", "before": {"number": 1, "name": "x"}, "clocks_stored": false}')
    with pytest.raises(ArtifactError, match="format 2"):
        power_modes.show(root)


# during


@needs_root
@pytest.mark.parametrize("end", [None, ValueError("mine"), KeyboardInterrupt()], ids=["well", "error", "ctrl-c"])
def test_the_mode_before_comes_back_however_the_block_ends(root: Path, end: BaseException | None) -> None:
    def block() -> None:
        with power_modes.during("MAXN_SUPER", root) as state:
            assert state.mode == power_modes.show(root).mode == Mode(2, "MAXN_SUPER")
            if end is not None:
                raise end

    if end is None:
        block()
    else:
        with pytest.raises(type(end)):
            block()
    assert (power_modes.show(root).mode, power_modes.show(root).changed) == (Mode(1, "25W"), None)


@needs_root
def test_what_an_earlier_command_set_stays_set(root: Path) -> None:
    power_modes.set_mode("0", root)
    with power_modes.during("MAXN_SUPER", root):
        pass
    state = power_modes.show(root)
    assert state.mode == Mode(0, "15W")
    assert state.changed is not None
    assert power_modes.restore(root).mode == Mode(1, "25W")


@needs_root
def test_nothing_is_put_back_when_nothing_was_changed(root: Path) -> None:
    with power_modes.during("25W", root):
        pass
    assert calls(root) == []


@needs_root
def test_a_mode_that_cannot_be_set_does_not_run_the_block(root: Path) -> None:
    with pytest.raises(DeviceError, match="reboot"), power_modes.during("7W", root):
        pytest.fail("the block ran")


@needs_root
def test_a_signal_while_it_switches_lets_it_finish_first(root: Path) -> None:
    (root / "slow").touch()

    def stop(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    def send() -> None:
        while not (root / "switching").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGALRM)

    before = signal.signal(signal.SIGALRM, stop)
    sender = threading.Thread(target=send)
    sender.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            power_modes.set_mode("0", root)
    finally:
        sender.join()
        signal.signal(signal.SIGALRM, before)
    state = power_modes.show(root)
    assert state.mode == Mode(0, "15W")
    assert state.changed is not None  # so `edge power restore` knows what was before


HOLDS = """
import sys, time
from pathlib import Path
from edge.cli import signals
from edge.system import power_modes
signals.install()
with signals.graceful() as stop, power_modes.during("MAXN_SUPER", Path(sys.argv[1])):
    print("in", flush=True)
    while not stop():
        time.sleep(0.01)
stop.grant()
"""


@needs_root
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_that_is_told_to_end_puts_the_mode_back(root: Path, number: signal.Signals) -> None:
    (root / "slow").touch()
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(root)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"in\n"
    assert power_modes.show(root).mode == Mode(2, "MAXN_SUPER")
    process.send_signal(number)
    time.sleep(0.3)
    process.send_signal(number)  # impatient, while the mode goes back
    process.communicate(timeout=30)
    assert power_modes.show(root).mode == Mode(1, "25W")


# doubts of a run


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (None, None),
        ("25W", None),
        ("25w", None),
        ("1", None),
        ("MODE_25W", None),
        ("15W", "asks for power mode 15W, but the device is in 25W (edge power set 15W)"),
        ("40W", "but this device does not have that mode (it has 15W, 25W, MAXN_SUPER, 7W)"),
    ],
)
def test_a_device_in_another_mode_than_the_profile_asks_for(root: Path, wanted: str | None, words: str | None) -> None:
    doubt = power_modes.mode_warning(wanted, root)
    assert (doubt is None) == (words is None)
    assert words is None or words in str(doubt)


def test_a_machine_that_does_not_tell_its_mode(tmp_path: Path) -> None:
    assert power_modes.mode_warning(None, tmp_path) is None
    assert "power mode is unknown" in str(power_modes.mode_warning("15W", tmp_path))

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.deploy import service
from edge.errors import ArtifactError, DeviceError, StoreError, UsageError

AWKWARD = [
    "plain", "with space", "100%", "%h", "$HOME", "${HOME}", "a;b", ";", "'single'", 'dou"ble', "back\\slash", "tab?",
    "ü", "--option=a b", "", "#hash", "a\\", "~", "@x", "-", "*",
]  # fmt: skip


def settings(tmp_path: Path, **changes: Any) -> service.ServiceSettings:
    content: dict[str, Any] = {
        "name": "door", "profile": "tiny", "folder": tmp_path,
        "command": (sys.executable, "-m", "edge", "run", "--camera", "0"),
    }  # fmt: skip
    return service.ServiceSettings(**(content | changes))


def words_of(line: str) -> list[str]:
    """The words that systemd makes of a line: quotes, backslashes, then ``%%`` and ``$$`` (systemd.syntax(7))."""
    words, index = [], 0
    while index < len(line):
        if line[index] == " ":
            index += 1
            continue
        word, quoted = "", line[index] == '"'
        index += quoted
        while index < len(line) and line[index] != ('"' if quoted else " "):
            index += line[index] == "\\"
            word += line[index]
            index += 1
        index += quoted
        words.append(word)
    plain = [word.replace("%%", "\0").replace("$$", "\1") for word in words]
    assert not any("%" in word or "$" in word for word in plain)
    return [word.replace("\0", "%").replace("\1", "$") for word in plain]


def value_of(unit: str, key: str) -> str:
    return next(line.split("=", 1)[1] for line in unit.splitlines() if line.startswith(f"{key}="))


def test_the_unit_has_what_a_camera_of_weeks_needs(tmp_path: Path) -> None:
    text = service.unit(settings(tmp_path, user="ann", watchdog_s=20, restarts=4, state_folder="edge/door"))
    for line in (
        "Type=notify", "WatchdogSec=20", "Restart=on-failure", "StartLimitBurst=4", "SupplementaryGroups=video",
        "User=ann", "StandardOutput=journal", "SyslogIdentifier=edge-door", "NoNewPrivileges=yes",
        "ProtectSystem=strict", "StateDirectory=edge/door", "WantedBy=multi-user.target",
        "SuccessExitStatus=129 130 143",
    ):  # fmt: skip
        assert line in text.splitlines()
    # A camera (8), a disk (9) or pictures (6) may come back; a wrong profile does not get better.
    assert value_of(text, "RestartPreventExitStatus").split() == ["2", "3", "4", "5", "7"]


def test_a_user_s_unit_has_nothing_that_only_root_may_ask_for(tmp_path: Path) -> None:
    text = service.unit(settings(tmp_path, scope="user", writable=(tmp_path,)))
    for key in ("User=", "SupplementaryGroups=", "Protect", "ReadWritePaths=", "RestrictNamespaces="):
        assert key not in text
    assert "WantedBy=default.target" in text


@pytest.mark.parametrize("word", AWKWARD)
def test_arguments_reach_the_command_as_they_are(word: str, tmp_path: Path) -> None:
    text = service.unit(settings(tmp_path, command=("/usr/bin/env", word, "end"), environment={"KEY": word}))
    assert words_of(value_of(text, "ExecStart")) == ["/usr/bin/env", word, "end"]
    lines = [line for line in text.splitlines() if line.startswith(("Environment=KEY", 'Environment="KEY'))]
    assert lines[0].replace("$", "$$").startswith("Environment=")
    assert words_of(lines[0].replace("$", "$$").split("=", 1)[1]) == [f"KEY={word}"]


@given(st.lists(st.text(alphabet=st.characters(codec="utf-8"), max_size=12), max_size=4))
def test_any_arguments_come_through_or_are_refused(words: list[str]) -> None:
    try:
        text = service.unit(settings(Path("/x"), command=("/usr/bin/env", *words)))
    except UsageError:
        assert not all(word.isprintable() for word in words)
        return
    assert words_of(value_of(text, "ExecStart")) == ["/usr/bin/env", *words]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"command": ("/usr/bin/env", "two\nlines")}, "cannot be in a unit file"),
        ({"command": ("/usr/bin/env", "\udce4")}, "cannot be in a unit file"),
        ({"command": ("/opt/$x/python", "run")}, r"replaces \$"),
        ({"folder": Path("relative")}, "folder's name cannot be used"),
        ({"folder": Path("/ends with ")}, "folder's name cannot be used"),
        ({"folder": Path("/ends\\")}, "folder's name cannot be used"),
        ({"name": "../../etc"}, "cannot be the name"),
        ({"name": ""}, "cannot be the name"),
        ({"name": "a b"}, "cannot be the name"),
        ({"user": "a\nRoot=x"}, "cannot be in a unit file"),
        ({"profile": "x\n[Service]"}, "cannot be in a unit file"),
    ],
)
def test_what_a_unit_file_cannot_say_is_refused(changes: dict[str, Any], match: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=match):
        service.unit(settings(tmp_path, **changes))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not on this machine")
@pytest.mark.parametrize("word", [*AWKWARD, None])
def test_systemd_itself_finds_nothing_wrong(word: str | None, tmp_path: Path) -> None:
    folder = tmp_path / "a folder of 100% $x"
    folder.mkdir()
    changes = {} if word is None else {"command": (sys.executable, "-m", "edge", word), "environment": {"KEY": word}}
    path = tmp_path / "edge-door.service"
    path.write_text(service.unit(settings(tmp_path, folder=folder, writable=(folder,), user="root", **changes)))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", path], capture_output=True, text=True, check=False, timeout=60
    )
    # nvargus-daemon and the network's target are not on every machine; what is said about other units is not ours.
    said = [line for line in done.stderr.splitlines() if "edge-door" in line]
    assert (done.returncode, said) == (0, []), done.stderr


class Systemctl:
    """Keeps what it was asked, and answers with what it is given."""

    def __init__(self, answer: str = "", refuses: str = "") -> None:
        self.calls: list[list[str]] = []
        self._answer, self._refuses = answer, refuses

    def __call__(self, arguments: Sequence[str]) -> str:
        self.calls.append(list(arguments))
        if self._refuses and arguments[0] == self._refuses:
            raise DeviceError("refused")
        return self._answer


def test_install_twice_and_uninstall(tmp_path: Path) -> None:
    folder, records, systemctl = tmp_path / "units", tmp_path / "runs", Systemctl()
    wanted = settings(tmp_path, writable=(records,))
    path = service.install(wanted, folder=folder, systemctl=systemctl, start=True)
    assert path.read_text() == service.unit(wanted)
    assert records.is_dir()
    unit = "edge-door.service"
    assert systemctl.calls == [["daemon-reload"], ["enable", unit], ["restart", unit]]

    service.install(settings(tmp_path, watchdog_s=99), folder=folder, systemctl=systemctl, start=False)
    assert "WatchdogSec=99" in path.read_text()
    assert systemctl.calls[3:] == [["daemon-reload"]]

    service.uninstall("door", folder=folder, systemctl=systemctl)
    assert systemctl.calls[4:] == [["disable", "--now", unit], ["daemon-reload"]]
    assert list(folder.iterdir()) == []
    assert records.is_dir()
    with pytest.raises(ArtifactError, match="this service is not installed"):
        service.uninstall("door", folder=folder, systemctl=systemctl)


def test_a_unit_that_systemd_never_read_does_not_stay(tmp_path: Path) -> None:
    for refuses, left in (("daemon-reload", False), ("restart", True)):
        with pytest.raises(DeviceError):
            service.install(
                settings(tmp_path), folder=tmp_path / "units", systemctl=Systemctl(refuses=refuses), start=True
            )
        assert (tmp_path / "units" / "edge-door.service").exists() is left
    # One that was there before is as it was wanted now, whatever systemd says.
    with pytest.raises(DeviceError):
        service.install(
            settings(tmp_path, watchdog_s=77), folder=tmp_path / "units", systemctl=Systemctl(refuses="daemon-reload"),
            start=True,
        )  # fmt: skip
    assert "WatchdogSec=77" in (tmp_path / "units" / "edge-door.service").read_text()


def test_somebody_else_s_unit_is_never_touched(tmp_path: Path) -> None:
    path = tmp_path / "edge-door.service"
    path.write_text("[Service]\nExecStart=/bin/true\n")
    with pytest.raises(ArtifactError, match="not written by edge"):
        service.install(settings(tmp_path), folder=tmp_path, systemctl=None, start=False)
    with pytest.raises(ArtifactError, match="not written by edge"):
        service.uninstall("door", folder=tmp_path, systemctl=None)
    assert "bin/true" in path.read_text()


def test_a_unit_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "units").write_text("")
    with pytest.raises((StoreError, ArtifactError)):
        service.install(settings(tmp_path), folder=tmp_path / "units", systemctl=None, start=False)


def test_a_service_that_cannot_be_stopped_keeps_its_unit(tmp_path: Path) -> None:
    service.install(settings(tmp_path), folder=tmp_path, systemctl=None, start=False)
    with pytest.raises(DeviceError):
        service.uninstall("door", folder=tmp_path, systemctl=Systemctl(refuses="disable"))
    assert (tmp_path / "edge-door.service").exists()


SHOWN = """\
LoadState=loaded
ActiveState=active
SubState=running
Result=success
StatusText=123 frames, 30.0/s = fine
MainPID=4711
NRestarts=2
ExecMainStatus=0
UnitFileState=enabled
"""


def test_the_state_is_what_systemd_says(tmp_path: Path) -> None:
    service.install(settings(tmp_path), folder=tmp_path, systemctl=None, start=False)
    found = service.state("door", folder=tmp_path, systemctl=Systemctl(SHOWN))
    assert (found.active, found.sub, found.status) == ("active", "running", "123 frames, 30.0/s = fine")
    assert (found.pid, found.restarts, found.exit_code) == (4711, 2, 0)
    unknown = service.state("door", folder=tmp_path, systemctl=Systemctl("garbage\nMainPID=[not set]\n"))
    assert (unknown.active, unknown.pid, unknown.restarts) == ("unknown", None, None)
    with pytest.raises(ArtifactError, match="this service is not installed"):
        service.state("window", folder=tmp_path, systemctl=Systemctl(SHOWN))


@pytest.fixture
def fake_systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """``fake_systemctl(script)``: the only program on PATH is a systemctl that runs ``script`` in sh."""

    def make(script: str) -> None:
        folder = tmp_path / "bin"
        folder.mkdir()
        program = folder / "systemctl"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(folder))

    return make


def test_what_systemctl_refuses_is_an_error_with_its_words(fake_systemctl: Callable[[str], None]) -> None:
    fake_systemctl('echo "System has not been booted with systemd as init system (PID 1)." >&2; exit 1')
    with pytest.raises(DeviceError, match="not been booted") as caught:
        service.run_systemctl("system")(["daemon-reload"])
    assert "edge service print" in str(caught.value)


def test_the_user_s_own_manager_is_asked(fake_systemctl: Callable[[str], None]) -> None:
    fake_systemctl('echo "$@"')
    assert service.run_systemctl("user")(["show", "x"]).split() == ["--user", "--no-pager", "show", "x"]

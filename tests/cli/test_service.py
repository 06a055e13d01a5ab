"""``edge service`` as its user types it; systemd itself is left alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Edge = Callable[..., Any]
Place = Callable[..., Path]


def lines(text: str, key: str) -> list[str]:
    return [line.split("=", 1)[1] for line in text.splitlines() if line.startswith(f"{key}=")]


def test_the_unit_is_shown_and_installed(edge: Edge, place: Place) -> None:
    folder = place()
    shown = edge("service", "print", "--profile", "tiny", "--", "--camera", "0")
    assert shown.code == 0
    [command] = lines(shown.out, "ExecStart")
    assert f"-m edge run --profile {folder}" in command
    assert command.endswith("--camera 0 --wait-for-camera --record /var/lib/edge/tiny/run.jsonl")
    assert lines(shown.out, "StateDirectory") == ["edge/tiny"]
    assert lines(shown.out, "ReadWritePaths") == []
    done = edge("service", "install", "--profile", "tiny", "--unit-dir", "units", "--", "--camera", "0")
    assert done.code == 0
    assert Path("units/edge-tiny.service").read_text() == shown.out
    assert edge("service", "uninstall", "--profile", "tiny", "--unit-dir", "units").code == 0
    assert list(Path("units").iterdir()) == []


def test_the_service_may_write_what_its_options_write(edge: Edge, place: Place) -> None:
    """All else is read-only for it: a telemetry log would end at its first line."""
    folder = place(telemetry={"log": "../logs/power.jsonl"})
    options = ("--camera", "0", "--record", "runs/r.jsonl")
    shown = edge("service", "install", "--profile", "tiny", "--unit-dir", "units", "--", *options)
    assert shown.code == 0
    unit = Path("units/edge-tiny.service").read_text()
    assert lines(unit, "ReadWritePaths") == [str(folder / "runs"), str(folder / "logs")]
    assert lines(unit, "StateDirectory") == []
    # systemd does not start a unit whose writable folders are not there.
    assert (folder / "logs").is_dir()
    assert (folder / "runs").is_dir()


@pytest.fixture
def url_file(tmp_path: Path) -> Path:
    """A file of mode 0600 with the URL of a camera."""
    path = tmp_path / "gate url"
    path.touch(mode=0o600)
    path.write_text("rtsp://ada:c4nary@cam/s\n")
    return path


def test_systemd_reads_the_files_with_secrets(edge: Edge, place: Place, url_file: Path) -> None:
    """As root, whoever the service runs as; and gives them to this service alone."""
    place()
    options = ("--camera", f"gate=@{url_file}", "-c1", f"--notify=@{url_file.name}")
    shown = edge("service", "print", "--profile", "tiny", "--", *options)
    assert shown.code == 0, shown.err
    assert lines(shown.out, "LoadCredential") == [f"camera-1:{url_file}", f"notify-2:{url_file}"]
    [command] = lines(shown.out, "ExecStart")
    assert (
        '--camera "gate=@${CREDENTIALS_DIRECTORY}/camera-1" -c1 "--notify=@${CREDENTIALS_DIRECTORY}/notify-2"'
        in command
    )
    assert "c4nary" not in shown.out
    own = edge("service", "print", "--user", "--profile", "tiny", "--", *options)
    assert lines(own.out, "LoadCredential") == []
    assert f'"gate=@{url_file}"' in own.out


def test_a_file_with_a_secret_is_for_its_owner_alone(edge: Edge, place: Place, url_file: Path) -> None:
    place()
    url_file.chmod(0o644)
    ended = edge("service", "install", "-p", "tiny", "--unit-dir", "units", "--", "--camera", f"@{url_file}")
    assert (ended.code, f"chmod 600 {url_file}" in ended.err) == (2, True)
    ended = edge("service", "install", "-p", "tiny", "--unit-dir", "units", "--", "--camera", "@absent")
    assert (ended.code, "cannot read" in ended.err) == (7, True)
    assert not Path("units").exists()


def test_a_page_for_the_network_gets_a_token_file(edge: Edge, place: Place) -> None:
    """A token that each run makes for itself would be in the journal."""
    place()
    options = ("--images", "pictures", "--web", "0.0.0.0:8080", "--metrics", "9090")
    done = edge("service", "install", "-p", "tiny", "--unit-dir", "units", "--", *options)
    assert done.code == 0, done.err
    token = Path("units/tiny.token")
    assert (token.stat().st_mode & 0o777, len(token.read_text().strip())) == (0o600, 32)
    assert f"EDGE_WEB_TOKEN_FILE={token.absolute()}" in Path("units/edge-tiny.service").read_text()
    before = token.read_text()
    assert before.strip() not in done.out + done.err
    # It stays when the unit is written again.
    edge("service", "install", "-p", "tiny", "--unit-dir", "units", "--", *options)
    assert token.read_text() == before
    local = edge("service", "print", "-p", "tiny", "--", "--images", "pictures", "--web", "8080")
    assert "TOKEN" not in local.out


def test_no_variable_of_the_caller_gets_into_a_unit(edge: Edge, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place()
    for name in ("EDGE_CAMERA_URL", "EDGE_REGISTRY_USER", "EDGE_REGISTRY_PASSWORD", "EDGE_OTHER"):
        monkeypatch.setenv(name, "c4nary")
    monkeypatch.setenv("EDGE_CACHE_DIR", "/var/cache/edge")
    shown = edge("service", "print", "--profile", "tiny", "--", "--camera", "0")
    assert "c4nary" not in shown.out + shown.err
    assert "EDGE_CACHE_DIR=/var/cache/edge" in shown.out
    refused = edge("service", "install", "--profile", "tiny", "--unit-dir", "units")
    assert (refused.code, "--camera @FILE" in refused.err) == (2, True)


def test_only_a_camera_is_waited_for(edge: Edge, place: Place) -> None:
    place()
    for options, times in ((("-c0",), 1), (("-c0", "--wait-for-camera"), 1), (("--images", "pictures"), 0)):
        shown = edge("service", "print", "--profile", "tiny", "--", *options)
        [command] = lines(shown.out, "ExecStart")
        assert command.count("--wait-for-camera") == times


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--camra", "0"), "No such option"),
        (("--camera", "rtsp://me:c4nary@host/s"), "--camera @FILE"),
        (("--notify=https://me:c4nary@host/s",), "--notify @FILE"),
        (("--camera", "0", "--profile", "other"), "before --"),
        (("--camera", "0", "-pother"), "before --"),
        (("--camera", "0", "--save-frames", "rec"), "a new folder"),
        (("--camera", "0", "--save-frames=rec"), "a new folder"),
        (("--camera", "0", "--save-video", "out.mkv"), "every start replaces the file"),
        (("--camera", "0", "--csv", "out.csv"), "every start replaces the file"),
    ],
)
def test_what_no_service_can_be_given(options: tuple[str, ...], words: str, edge: Edge, place: Place) -> None:
    place()
    ended = edge("service", "install", "--profile", "tiny", "--unit-dir", "units", "--", *options)
    assert ended.code == 2
    assert words in ended.err
    assert not Path("units").exists()

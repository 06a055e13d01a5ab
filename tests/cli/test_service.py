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
        (("--camera", "0", "--profile", "other"), "in front of --"),
        (("--camera", "0", "-pother"), "in front of --"),
        (("--camera", "0", "--save-frames", "rec"), "a new folder"),
        (("--camera", "0", "--save-frames=rec"), "a new folder"),
    ],
)
def test_what_no_service_can_be_given(options: tuple[str, ...], words: str, edge: Edge, place: Place) -> None:
    place()
    ended = edge("service", "install", "--profile", "tiny", "--unit-dir", "units", "--", *options)
    assert ended.code == 2
    assert words in ended.err
    assert not Path("units").exists()

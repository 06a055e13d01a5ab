"""What is drawn while many devices are at work."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from edge.events import Note, Progress
from edge.ui.terminal.fleet_view import FleetView
from edge.ui.terminal.terminal import Terminal


def drawn(view: FleetView, terminal: Terminal, width: int, height: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    terminal.err = console
    console.print(view.drawn())
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_a_row_for_each_at_work_and_a_count(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal()
    view = FleetView(terminal, total=20)
    for index in range(3):
        view.begun(f"orin-{index}")
    view.listener("orin-0")(Progress("orin-0", 2048, 4096, "KiB"))
    view.listener("orin-1")(Progress("orin-1", 0, None, "verifying"))
    view.listener("orin-2")(Note("orin-2: [odd] words", "warning"))
    view.begun("orin-9")
    view.ended("orin-9", work="failed", line="failed: is off")
    lines = drawn(view, terminal, 100, 30)
    assert "2.0 of 4.0 MiB" in lines[0]
    assert "verifying" in lines[1]
    assert "connecting" in lines[2]
    assert lines[3].startswith("1 of 20 devices")
    assert lines[3].endswith("1 failed")
    said = capsys.readouterr().err
    assert "[1/20] orin-9: failed: is off" in said
    assert "orin-2: [odd] words" in said


def test_more_devices_than_rows() -> None:
    terminal = Terminal()
    view = FleetView(terminal, total=50)
    for index in range(50):
        view.begun(f"a-device-with-a-very-long-name-{index}")
    lines = drawn(view, terminal, 60, 10)
    assert len(lines) <= 10
    assert lines[-2] == "and 43 more"
    assert all(len(line) <= 60 for line in lines)

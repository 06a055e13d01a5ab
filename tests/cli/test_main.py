"""The command itself: help, exit codes, streams, and a reader that goes away."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge import __version__, errors
from edge.cli import COMMAND_GROUPS, COMMANDS

Edge = Callable[..., Any]
Place = Callable[..., Path]

EXIT_CODES = {
    "QualityError": 1,
    "UsageError": 2,
    "ProfileError": 3,
    "MissingDependencyError": 4,
    "ModelError": 5,
    "DataError": 6,
    "ArtifactError": 7,
    "DeviceError": 8,
    "StoreError": 9,
}


def test_the_exit_codes_are_those_of_the_public_table() -> None:
    found = {kind.__name__: kind.exit_code for kind in errors.EdgeError.__subclasses__()}
    assert found == EXIT_CODES


def test_help_lists_every_command_with_its_line(edge: Edge) -> None:
    ended = edge("--help")
    assert ended.code == 0
    for name, text in COMMANDS.items():
        assert any(line.split() == [name, *text.split()] for line in ended.out.splitlines())
    assert edge("-h").out == ended.out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_that_starts_with_its_line(name: str, edge: Edge) -> None:
    ended = edge(name, "--help")
    assert (ended.code, ended.err) == (0, "")
    assert COMMANDS[name] in " ".join(ended.out.split())
    options = [line for line in ended.out.splitlines() if line.startswith("  -")]
    assert not [line for line in options if re.search(r"<[a-z]+(\[| range|>)|\b(TEXT|INTEGER|PATH|FLOAT)\b", line)]


def test_the_version(edge: Edge) -> None:
    ended = edge("--version")
    assert (ended.code, ended.err) == (0, "")
    assert re.fullmatch(rf"edge {re.escape(__version__)} \(.*onnxruntime [0-9.]+.*\)\n", ended.out)


def test_help_groups_commands_by_task(edge: Edge) -> None:
    lines = edge("--help").out.splitlines()
    for title, names in COMMAND_GROUPS.items():
        start = lines.index(f"{title}:") + 1
        assert [line.split()[0] for line in lines[start : start + len(names)]] == list(names)


@pytest.mark.parametrize(
    ("shell", "variables", "wanted"),
    [
        ("bash", {"COMP_WORDS": "edge run --ima", "COMP_CWORD": "2"}, "--images"),
        ("zsh", {"_TYPER_COMPLETE_ARGS": "edge run --ima"}, "--images"),
        ("fish", {"_TYPER_COMPLETE_ARGS": "edge cal", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}, "calibrate"),
    ],
)
def test_shells_complete_commands_and_options(
    shell: str, variables: dict[str, str], wanted: str, edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"_EDGE_COMPLETE": f"complete_{shell}", **variables}.items():
        monkeypatch.setenv(name, value)
    assert wanted in edge().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("calibrat",), "No such command 'calibrat'"),
        (("run", "--imges", "x"), "No such option"),
        (("run", "extra"), "unexpected extra argument"),
        (("run", "--limit", "many"), "'--limit'"),
        (("run", "--images"), "requires an argument"),
        (("--profile", "host"), "No such option"),
        (("profile", "lst"), "No such command 'lst'"),
    ],
)
def test_a_command_line_that_makes_no_sense(arguments: tuple[str, ...], words: str, edge: Edge) -> None:
    ended = edge(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert words in ended.err


def test_nothing_at_all_shows_the_help(edge: Edge) -> None:
    ended = edge()
    assert ended.code == 2
    assert "calibrate" in ended.out + ended.err


def test_the_whole_way_in_a_process_of_its_own(edge_process: Edge, edge: Edge, place: Place) -> None:
    """What the README shows, as somebody types it: exit codes, JSON alone on stdout, plain lines elsewhere."""
    folder = place()
    calibrated = edge_process("calibrate", "--profile", "tiny", "--images", "pictures")
    built = edge_process("build", "--profile", "tiny")
    ran = edge_process("run", "--profile", "tiny", "--images", "pictures", "--record", "r.json", "--json")
    labels = ("--labels", "pictures/labels.csv")
    scored = edge_process("eval", "--profile", "tiny", "--images", "pictures", *labels, "--against", "fp32", "--json")
    assert [ended.code for ended in (calibrated, built, ran, scored)] == [0, 0, 0, 0]
    assert len([json.loads(line) for line in ran.out.splitlines()]) == 8 + 1
    assert json.loads(scored.out)["n"] == 8
    assert (folder / "r.json").is_file()
    for ended in (calibrated, built, ran, scored):
        assert "\x1b" not in ended.out + ended.err
    again = [
        edge("calibrate", "--profile", "tiny", "--images", "pictures"),
        edge("build", "--profile", "tiny"),
    ]
    assert all("unchanged, nothing to do" in ended.out for ended in again)


def test_without_profile_it_is_this_machines(edge: Edge, place: Place) -> None:
    """On a machine without a Jetson's device tree that is ``host``, and one here wins over the repository's."""
    from edge.system import device

    if device.identify().is_jetson:
        pytest.skip("a Jetson picks its own profile")
    folder = place(1)
    (folder / "profiles" / "tiny.yaml").rename(folder / "profiles" / "host.yaml")
    ended = edge("build", "--precision", "fp32", "--dry-run")
    assert ended.code == 0
    assert f"profile host ({folder}/profiles/host.yaml)" in ended.err


@pytest.mark.parametrize("as_json", [True, False], ids=["in the middle", "before the summary"])
def test_a_reader_that_goes_away_is_no_traceback(as_json: bool, built: Place) -> None:
    """As in ``edge run … | head -1``: not the exit code of a quality gate either."""
    folder = built()
    (folder / "list.txt").write_text("pictures/000.jpg\n" * 2000)
    line = [sys.executable, "-m", "edge", "run", "--profile", "tiny", "--images", "list.txt"]
    process = subprocess.Popen([*line, *["--json"][: int(as_json)]], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    if as_json:
        assert process.stdout.readline().startswith(b'{"seq":0')
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 128 + signal.SIGPIPE
    assert b"Traceback" not in err
    assert b"Exception ignored" not in err


def test_names_beyond_the_locale_are_no_crash(edge_process: Edge, built: Place) -> None:
    folder = built(2)
    (folder / "pictures" / "000.jpg").rename(folder / "pictures" / "schön-日本.jpg")
    (folder / "pictures" / "001.jpg").rename(folder / "pictures" / os.fsdecode(b"\xff\xfe.jpg"))
    env = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii:strict"}
    for more in ((), ("--json",)):
        ended = edge_process("run", "--profile", "tiny", "--images", "pictures", *more, env=env)
        assert (ended.code, "error" in ended.err) == (0, False)
        assert len(ended.out.splitlines()) >= 3


def test_words_that_look_like_markup_come_out_as_they_are(edge: Edge, built: Place) -> None:
    folder = built(2)
    (folder / "pictures" / "000.jpg").rename(folder / "pictures" / "[bold]a[red].jpg")
    ended = edge("run", "--profile", "tiny", "--images", "pictures")
    assert (ended.code, "[bold]a[red].jpg" in ended.out) == (0, True)


@pytest.mark.parametrize(
    ("settings", "plain"),
    [({"NO_COLOR": "1"}, True), ({"TERM": "dumb"}, True), ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, True)],
    ids=["NO_COLOR", "TERM=dumb", "NO_COLOR over FORCE_COLOR"],
)
def test_errors_without_escape_codes(
    settings: dict[str, str], plain: bool, edge: Edge, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place(1)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    ended = edge("run", "--profile", "tiny", "--images", "nowhere")
    assert ended.code == 7
    assert ("\x1b" not in ended.err) == plain

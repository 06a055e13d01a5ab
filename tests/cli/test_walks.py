"""CONTRIBUTING.md names real files and functions, and its two walks pass through the functions that it names."""

from __future__ import annotations

import inspect
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
DOTTED = re.compile(r"`(edge(?:\.\w+)+)`")


def section(title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}$(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found, title
    return found[1]


def resolve(dotted: str) -> Any:
    """The object behind a dotted name."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for name in parts[end:]:
            found = getattr(found, name)
        return found
    raise AssertionError(dotted)


def code_of(dotted: str) -> CodeType:
    found = resolve(dotted)
    function = inspect.unwrap(found.__init__ if inspect.isclass(found) else found)
    return function.__code__  # type: ignore[no-any-return]


@contextmanager
def traced() -> Iterator[set[CodeType]]:
    """The code objects that run while the block does, in this thread and in those that it starts."""
    seen: set[CodeType] = set()

    def note(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call":
            seen.add(frame.f_code)

    before = sys.getprofile()
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield seen
    finally:
        sys.setprofile(before)
        threading.setprofile(before)


def test_the_files_and_names_exist() -> None:
    for path in re.findall(r"`((?:edge|tests|docs|benchmarks)/[\w./-]*)`", TEXT):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"\]\(([\w./-]+)\)", TEXT):
        assert (ROOT / path).exists(), path
    example = {"edge.telemetry.bench_meter"}  # of the recipe
    for dotted in set(DOTTED.findall(TEXT)) - example:
        resolve(dotted)


def test_no_file_outside_of_the_repository_is_needed_to_understand_it() -> None:
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        assert "DESIGN" not in path.read_text(encoding="utf-8"), path


@pytest.mark.parametrize(
    ("title", "commands"),
    [
        ("One picture, from `edge run` to a label", [("run", "--images", "pictures")]),
        (
            "One table, from `edge calibrate` to the engine",
            [("calibrate", "--images", "pictures", "--force"), ("build", "--force")],
        ),
    ],
)
def test_a_walk_is_the_real_one(
    title: str, commands: list[tuple[str, ...]], edge: Callable[..., Any], built: Callable[..., Path]
) -> None:
    built(4)
    named = [dotted for dotted in DOTTED.findall(section(title)) if ".tensorrt." not in dotted]
    assert len(named) >= 10
    with traced() as seen:
        for command in commands:
            ended = edge(*command, "--profile", "tiny")
            assert ended.code == 0, ended.err
    assert [dotted for dotted in named if code_of(dotted) not in seen] == []


def test_the_recipe_of_an_algorithm(
    edge: Callable[..., Any], place: Callable[..., Path], pictures: Callable[..., Any]
) -> None:
    """The code block as it is written, then every use that the recipe promises."""
    from edge.quantization import algorithms

    code = re.search(r"```python\n(@algorithm.*?)```", TEXT, re.DOTALL)
    assert code
    before = dict(algorithms.REGISTRY)
    try:
        exec(compile(code[1], "CONTRIBUTING.md", "exec", dont_inherit=True), vars(algorithms))
        place(6, calibration={"algorithm": "halved"})
        assert edge("profile", "check", "tiny").code == 0
        assert edge("calibrate", "--profile", "tiny", "--images", "pictures").code == 0
        assert edge("build", "--profile", "tiny").code == 0
        ended = edge("calibrate", "--profile", "tiny", "--images", "pictures", "--algorithm", "halved:0.7")
        assert ended.code == 0, ended.err
        pictures("scored", 6, seed=2, labels=True)
        swept = edge(
            "sweep",
            "--profile",
            "tiny",
            "--images",
            "pictures",
            "--eval",
            "scored",
            "--labels",
            "scored/labels.csv",
            "--pictures",
            "4",
            "--json",
        )
        assert "halved" in swept.out, swept.err
    finally:
        algorithms.REGISTRY.clear()
        algorithms.REGISTRY.update(before)

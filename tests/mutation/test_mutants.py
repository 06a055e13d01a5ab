"""The list of mutants fits the tree: each can still be applied. ``run.py`` runs them, on demand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.mutation import run
from tests.mutation.run import Mutant, MutationError, Outcome


def mutant(**changes: object) -> Mutant:
    given = {"id": "one", "file": "edge/engines/a.py", "why": "", "old": "a < b", "new": "a <= b", "tests": ("t.py",)}
    return Mutant(**{**given, **changes})  # type: ignore[arg-type]


def test_every_mutant_is_found_exactly_once_and_its_tests_exist() -> None:
    mutants = run.load()
    run.check(mutants)
    assert sum(not item.gpu for item in mutants) >= 100


def test_every_result_is_that_of_a_mutant_and_every_survivor_is_explained() -> None:
    results = {item["id"]: item["result"] for item in json.loads((run.HERE / "results.json").read_text())}
    assert results.keys() <= {item.id for item in run.load()}
    assert {name for name, result in results.items() if result == "survived"} <= run.explained()


@pytest.mark.parametrize(
    ("text", "changes", "words"),
    [
        ("if a < b and a < b:\n", {}, "2 times in"),
        ("if a > b:\n", {}, "0 times in"),
        ("if a < b:\n", {"new": "a < b"}, "it changes nothing"),
        ("if a < b:\n", {"file": "edge/cli/a.py"}, "is in none of"),
        ("if a < b:\n", {"tests": ("missing.py",)}, "there is no missing.py"),
        ("if a < b:\n", {"tests": ("t.py::test_two",)}, "there is no test t.py::test_two"),
    ],
)
def test_a_mutant_that_does_not_fit_the_tree(text: str, changes: dict[str, object], words: str, tmp_path: Path) -> None:
    (tmp_path / "edge/engines").mkdir(parents=True)
    (tmp_path / "edge/engines/a.py").write_text(text)
    (tmp_path / "t.py").write_text("def test_one() -> None: ...\n")
    with pytest.raises(MutationError, match=words):
        run.check([mutant(**changes)], tmp_path)


def test_results_are_added_to_those_of_other_mutants(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    killed = Outcome(id="one", file="edge/engines/a.py", result="killed", by="t.py::test_one", seconds=1.0, date="d")
    survived = Outcome(id="two", file="edge/engines/a.py", result="survived", by=None, seconds=1.0, date="d")
    run.save([survived, killed], path)
    run.save([killed], path)
    assert [item["id"] for item in json.loads(path.read_text())] == ["one", "two"]
    assert "survived: two" in run.table([killed, survived])

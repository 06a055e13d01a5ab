"""Plain technical English: words that this project does not use, and first words that make a docstring a riddle.

The words were private names of the first version (CONTRIBUTING.md has the glossary). They are looked for as whole words
in names, docstrings, comments and messages of ``edge/``, in its templates and scripts, in the README and in ``docs/``.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

# Word (a regular expression, whole words) -> the word to use.
EVERYWHERE = {
    r"guests?": "optional dependency",
    r"rooms": "adapters",
    r"(?<!front-)doors?": "public interface; port; option",
    r"verbs?": "operation, or its own name",
    r"crowds?": "workers",
    r"crew": "workers, executor",
    r"parcels?": "batch; packed statistics",
    r"errands?": "remote call",
    r"tally|tallies": "checkpoint; count",
    r"doubts?": "warning",
    r"wish(es)?": "options; request",
    r"lanes?": "concurrency",
    r"audiences?": "observers",
    r"pulse": "statistics of a run",
    r"complaints?|complains?": "error, warning",
    r"surroundings": "environment",
    r"patience|impatient": "timeout",
    r"unheld": "without cancellation",
    r"hauls?": "collected files",
    r"meals?": "feed specification",
    r"anew": "again",
    r"hears?|heard": "receive, on_event",
    r"whoever|whomever|whichever": "name the subject",
    r"nowhere": "no ...",
    r"put(s|ting)? down": "store, write",
    r"look(s|ed|ing)? on": "observe",
    r"stands? (in|on|at|there|here|behind|before|between|first|last|alone)(?! for)": "is",
    r"lies? (in|on|at|there|here|behind|before|between|beside|outside|within|below|under)(?! \[)": "is",
    r"comes? home": "is collected",
}
# In names of modules, classes, functions, arguments and variables, words that are fine in a sentence.
IN_NAMES = {
    r"told|tells": "report",
    r"said|say|says": "report, message",
    r"hear": "on_event",
    r"beat": "keepalive, heartbeat",
    r"trip": "push",
}
# A first word that makes a docstring a riddle: say what it is, or what it does.
FIRST_WORDS = {"What", "Whether", "How", "Who", "Whom", "Whose", "Why", "Where", "When", "Which", "Here", "There"}

TEXTS = [
    "README.md", "CONTRIBUTING.md", "docs/*.md", "edge/**/*.html", "edge/**/*.js", "edge/**/*.css", "edge/**/*.sh",
    "install.sh", ".ci/run",
]  # fmt: skip


class Words:
    """Words to look for, each with the better one."""

    def __init__(self, table: dict[str, str]) -> None:
        self._any = re.compile(rf"\b(?:{'|'.join(table)})\b", re.IGNORECASE)
        self._table = table

    def search(self, text: str) -> Iterator[tuple[str, str]]:
        for found in self._any.finditer(text):
            yield (
                found[0],
                next(better for word, better in self._table.items() if re.match(word, found[0], re.IGNORECASE)),
            )


IN_SENTENCES = Words(EVERYWHERE)
IN_IDENTIFIERS = Words({**EVERYWHERE, **IN_NAMES})


def split_name(name: str) -> str:
    """``RunStatistics`` and ``run_statistics`` as words."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).replace("_", " ")


@cache
def in_name(name: str) -> list[tuple[str, str]]:
    """Forbidden words of a name; the same names come again and again."""
    return list(IN_IDENTIFIERS.search(split_name(name)))


def of_text(text: str) -> Iterator[tuple[int, str]]:
    """Line and problem of each forbidden word in prose."""
    for number, line in enumerate(text.splitlines(), 1):
        for found, better in IN_SENTENCES.search(line):
            yield number, f"{found!r} (say: {better}): {line.strip()[:100]}"


def of_python(source: str) -> Iterator[tuple[int, str]]:
    """The same for a module: its names, strings and comments, and the first words of its docstrings."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME:
            for found, better in in_name(token.string):
                yield token.start[0], f"{found!r} in the name {token.string} (say: {better})"
        elif token.type in {tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", -1)}:
            for line, problem in of_text(token.string):
                yield token.start[0] + line - 1, problem
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
            first = (ast.get_docstring(node) or "").split(maxsplit=1)[:1]
            if first and first[0] in FIRST_WORDS:
                line = getattr(node, "lineno", 1)
                yield line, f"the docstring of {getattr(node, 'name', 'the module')} begins with {first[0]!r}"


@cache
def problems() -> dict[str, list[str]]:
    """Problems of each file of the project, as text with the line."""
    found = {}
    for pattern in ("edge/**/*.py", *TEXTS):
        for path in sorted(REPOSITORY.glob(pattern)):
            text = path.read_text(encoding="utf-8")
            lines = of_python(text) if path.suffix == ".py" else of_text(text)
            name = path.relative_to(REPOSITORY).as_posix()
            if name == "CONTRIBUTING.md":  # its glossary shows the old words
                continue
            found[name] = [f"{name}:{number}: {problem}" for number, problem in lines]
            words = IN_IDENTIFIERS.search(split_name(path.stem))
            found[name] += [f"{name}: {word!r} in the file's name" for word, _better in words]
    return found


def test_no_private_words() -> None:
    found = [line for lines in problems().values() for line in lines]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("# the guest library", ["'guest'"]),
        ("def ask_guests(): ...", ["'guests'"]),
        ("class WishList: ...", ["'Wish'"]),
        ("raise E('nothing is said')", []),
        ("was_said = 1", ["'said'"]),
        ('def f():\n    """Whether it is."""', ["begins with 'Whether'"]),
        ('def f():\n    """Return the name. What else."""', []),
        ("mushrooms, doorway, crewed = 1, 2, 3", []),
        ("# the file lies in the folder", ["'lies in'"]),
        ("# what the scale stands for", []),
    ],
)
def test_a_word_is_found(source: str, words: list[str]) -> None:
    found = list(of_python(source))
    assert len(found) == len(words), found
    for (_line, problem), word in zip(found, words, strict=True):
        assert word in problem

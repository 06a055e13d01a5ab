"""Mutation test: apply single plausible mistakes to a copy of the tree, and see whether the named tests notice.

    python tests/mutation/run.py --jobs 16           all mutants that need no GPU
    python tests/mutation/run.py ID ID               these only
    python tests/mutation/run.py --gpu               those that need a GPU

The list is ``mutants.yaml``. The tests of all chosen mutants run on the unchanged tree first; then each mutant runs its
own, until the first failure. Results are printed as a table and added to ``results.json``. The exit code is 1 if a
mutant survived that ``README.md`` does not explain, and 2 if the list is wrong or a mutant could not run. This is no
part of CI.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PACKAGES = ("edge/backends/tensorrt", "edge/backends/cuda", "edge/quantization", "edge/engines")
# What the tests read, besides the packages themselves.
_COPIED = ("edge", "tests", "profiles", "models", "samples", "calib_cache", "docs", "benchmarks", "pyproject.toml")
_FAILED = re.compile(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", re.MULTILINE)
_PASSED = re.compile(r"\b(\d+) passed")

Result = Literal["killed", "survived"]


class MutationError(Exception):
    """The list of mutants is wrong, or its tests do not pass without a mutant."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mutant:
    """One mistake: ``old`` is in ``file`` exactly once, and ``tests`` (paths or node ids) should notice ``new``."""

    id: str
    file: str
    why: str
    old: str
    new: str
    tests: tuple[str, ...]
    gpu: bool = False

    def applied(self, text: str) -> str:
        """Return ``text`` with the mistake.

        Raises:
            MutationError: the old text is not there exactly once.
        """
        count = text.count(self.old)
        if count != 1:
            raise MutationError(f"{self.id}: its text is {count} times in {self.file}, not once: {self.old!r}")
        return text.replace(self.old, self.new)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of one mutant; ``by`` is the first test that failed, or ``timeout``."""

    id: str
    file: str
    result: Result
    by: str | None
    seconds: float
    date: str


def load(path: Path = HERE / "mutants.yaml") -> list[Mutant]:
    """Read the list of mutants.

    Raises:
        MutationError: an entry lacks something, or an id is there twice.
    """
    found: dict[str, Mutant] = {}
    for entry in yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        try:
            mutant = Mutant(**{**entry, "tests": tuple(entry["tests"])})
        except (TypeError, KeyError) as exc:
            raise MutationError(f"{path.name}: not a mutant: {entry}") from exc
        if mutant.id in found:
            raise MutationError(f"{path.name}: {mutant.id} is there twice")
        found[mutant.id] = mutant
    return list(found.values())


def check(mutants: Iterable[Mutant], root: Path = ROOT) -> None:
    """Check that every mutant can be applied to the tree and changes it, and that the files of its tests exist.

    Raises:
        MutationError: it cannot.
    """
    texts: dict[str, str] = {}
    for mutant in mutants:
        if not mutant.file.startswith(PACKAGES):
            raise MutationError(f"{mutant.id}: {mutant.file} is in none of {', '.join(PACKAGES)}")
        text = texts.setdefault(mutant.file, (root / mutant.file).read_text(encoding="utf-8"))
        if mutant.applied(text) == text:
            raise MutationError(f"{mutant.id}: it changes nothing")
        for test in mutant.tests:
            path, _, name = test.partition("::")
            if not (root / path).is_file():
                raise MutationError(f"{mutant.id}: there is no {path}")
            if name and f"def {name}(" not in texts.setdefault(path, (root / path).read_text(encoding="utf-8")):
                raise MutationError(f"{mutant.id}: there is no test {test}")


class Tree:
    """A copy of the tree in a temporary folder, in which the tests import the copy and nothing else."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        for name in _COPIED:
            source, target = ROOT / name, folder / name
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "results.json"))
            elif source.is_file():
                shutil.copy(source, target)
        where = self._run([sys.executable, "-c", "import edge; print(edge.__file__)"], timeout_s=60).stdout
        if not where.startswith(str(folder)):
            raise MutationError(f"the tests would import {where.strip()}, not the copy")

    def test(self, tests: Sequence[str], *, gpu: bool, first_only: bool, timeout_s: float) -> tuple[int | None, str]:
        """Run tests; return pytest's exit code (None: it took too long) and output."""
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu" if gpu else "not gpu"]
        if gpu:
            command += ["-W", "ignore::DeprecationWarning"]
        try:
            done = self._run([*command, *(["-x"] if first_only else []), *tests], timeout_s=timeout_s)
        except subprocess.TimeoutExpired:
            return None, ""
        return done.returncode, done.stdout + done.stderr

    def mutated(self, mutant: Mutant, *, timeout_s: float) -> Outcome:
        """Run the tests of a mutant in its tree, which is as before afterwards.

        Raises:
            MutationError: pytest found no such tests.
        """
        path = self.folder / mutant.file
        text = path.read_text(encoding="utf-8")
        start = time.monotonic()
        path.write_text(mutant.applied(text), encoding="utf-8")
        try:
            code, output = self.test(mutant.tests, gpu=mutant.gpu, first_only=True, timeout_s=timeout_s)
        finally:
            path.write_text(text, encoding="utf-8")
        if code in {4, 5}:
            raise MutationError(f"{mutant.id}: pytest found no tests\n{output}")
        failed = _FAILED.search(output)
        by = "timeout" if code is None else failed[1] if failed else None
        return Outcome(
            id=mutant.id, file=mutant.file, result="survived" if code == 0 else "killed", by=by,
            seconds=round(time.monotonic() - start, 1), date=time.strftime("%Y-%m-%d"),
        )  # fmt: skip

    def _run(self, command: Sequence[str], *, timeout_s: float) -> subprocess.CompletedProcess[str]:
        # Two versions of a module in one second have the same time stamp: no compiled file may outlive its mutant.
        path = os.pathsep.join([str(self.folder), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(
            command, cwd=self.folder, env=environment, text=True, capture_output=True, check=False, timeout=timeout_s
        )


def failing(trees: Sequence[Tree], mutants: Sequence[Mutant]) -> set[str]:
    """Run the tests of all mutants on the unchanged tree, side by side; return the node ids of those that fail.

    Raises:
        MutationError: none ran, such as those that need a GPU on a machine without one.
    """
    gpu = any(mutant.gpu for mutant in mutants)
    tests = list(dict.fromkeys(test for mutant in mutants for test in mutant.tests))
    whole = {test for test in tests if "::" not in test}
    wanted = [test for test in tests if test in whole or test.partition("::")[0] not in whole]

    def one(number: int) -> str:
        mine = wanted[number :: len(trees)]
        return trees[number].test(mine, gpu=gpu, first_only=False, timeout_s=3600)[1] if mine else ""

    with concurrent.futures.ThreadPoolExecutor(len(trees)) as pool:
        output = "".join(pool.map(one, range(len(trees))))
    if not _PASSED.search(output):
        raise MutationError(f"no test passes without a mutant\n{output[-4000:]}")
    found = set(_FAILED.findall(output))
    for node in sorted(found):
        print(f"fails without a mutant: {node}", file=sys.stderr)
    return found


def save(outcomes: Iterable[Outcome], path: Path) -> None:
    """Add results to a file; those of the same mutants are replaced."""
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    found = {item["id"]: item for item in before} | {item.id: dataclasses.asdict(item) for item in outcomes}
    text = ",\n".join(json.dumps(found[name]) for name in sorted(found))
    path.write_text(f"[\n{text}\n]\n", encoding="utf-8")


def table(outcomes: Sequence[Outcome]) -> str:
    """Format results by package, and the survivors by name."""
    lines = [f"{'package':<26} {'mutants':>8} {'killed':>8} {'survived':>9}"]
    for package in (*PACKAGES, ""):
        mine = [item for item in outcomes if item.file.startswith(package)]
        killed = sum(item.result == "killed" for item in mine)
        lines.append(f"{package or 'all':<26} {len(mine):>8} {killed:>8} {len(mine) - killed:>9}")
    lines += [f"survived: {item.id} ({item.file})" for item in outcomes if item.result == "survived"]
    return "\n".join(lines)


def explained(path: Path = HERE / "README.md") -> set[str]:
    """Return the ids of the survivors that the README explains: list items that begin with an id in backquotes."""
    return set(re.findall(r"^- `([\w.-]+)`", path.read_text(encoding="utf-8"), re.MULTILINE))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chosen mutants."""
    parser = argparse.ArgumentParser(description="Run the mutation test.")
    parser.add_argument("ids", nargs="*", metavar="ID", help="mutants to run (default: all that need no GPU)")
    parser.add_argument("--gpu", action="store_true", help="run the mutants that need a GPU instead")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="mutants at a time (default: 2)")
    parser.add_argument("--timeout", type=float, default=300.0, metavar="S", help="seconds for each (default: 300)")
    parser.add_argument("--results", type=Path, default=HERE / "results.json", metavar="FILE", help="results file")
    chosen = parser.parse_args(arguments)
    try:
        picked = pick(chosen.ids, gpu=chosen.gpu)
        outcomes = run(picked, jobs=max(chosen.jobs, 1), timeout_s=chosen.timeout, results=chosen.results)
    except MutationError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    print(table(outcomes))
    if len(outcomes) < len(picked):
        return 2
    survived = {item.id for item in outcomes if item.result == "survived"}
    return 1 if survived - explained() else 0


def pick(ids: Sequence[str], *, gpu: bool) -> list[Mutant]:
    """Return the mutants with these ids; without ids, all that need a GPU, or all others.

    Raises:
        MutationError: there is no such mutant, or the list does not fit the tree.
    """
    mutants = load()
    check(mutants)
    unknown = set(ids) - {mutant.id for mutant in mutants}
    if unknown:
        raise MutationError(f"there is no mutant {', '.join(sorted(unknown))}")
    return [mutant for mutant in mutants if (mutant.id in ids if ids else mutant.gpu == gpu)]


def run(mutants: Sequence[Mutant], *, jobs: int, timeout_s: float, results: Path) -> list[Outcome]:
    """Run mutants, ``jobs`` at a time, each in a tree of its own; save each result as it comes.

    A mutant whose tests fail without it is left out and named.
    """
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="edge-mutation-") as name:
        trees = [Tree(Path(name) / str(number) / "edge") for number in range(jobs)]
        broken = failing(trees, mutants)
        able = [mutant for mutant in mutants if not _is_hit(mutant, broken)]
        for mutant in mutants:
            if mutant not in able:
                print(f"not run: {mutant.id}: its tests fail without it", file=sys.stderr)
        free: queue.SimpleQueue[Tree] = queue.SimpleQueue()
        for tree in trees:
            free.put(tree)

        def one(mutant: Mutant) -> Outcome:
            tree = free.get()
            try:
                return tree.mutated(mutant, timeout_s=timeout_s)
            finally:
                free.put(tree)

        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            for done in pool.map(one, able):
                print(f"{done.result:<9} {done.seconds:6.1f} s  {done.id}  {done.by or ''}", flush=True)
                outcomes.append(done)
                save([done], results)
    return outcomes


def _is_hit(mutant: Mutant, broken: Iterable[str]) -> bool:
    """Return True if one of a mutant's tests is among the node ids ``broken``."""
    return any(node.startswith((f"{test}::", f"{test}[")) or node == test for test in mutant.tests for node in broken)


if __name__ == "__main__":
    sys.exit(main())

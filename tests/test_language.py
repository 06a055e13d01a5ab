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
    r"doors?": "public interface; port; option",
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
    r"told|tell|tells": "report",
    r"said|say|says": "report, message",
    r"hear": "on_event",
    r"beat": "keepalive, heartbeat",
    r"trip": "push",
    r"identity": "cache key",
}
# A first word that makes a docstring a riddle: say what it is, or what it does.
FIRST_WORDS = {"What", "Whether", "How", "Who", "Whom", "Whose", "Why", "Where", "When", "Which", "Here", "There"}

# What is left of the first version, by file: at most so many. It only gets shorter.
REMAINING: dict[str, int] = {
    "docs/bundles.md": 1,
    "docs/service.md": 1,
    "docs/shipping.md": 2,
    "edge/backends/cuda/capability.py": 1,
    "edge/backends/cuda/gpu_preprocessor.py": 1,
    "edge/backends/cuda/kernels.py": 3,
    "edge/backends/cuda/protocols.py": 4,
    "edge/backends/fake.py": 1,
    "edge/backends/interface.py": 8,
    "edge/backends/onnxruntime.py": 2,
    "edge/backends/onnxruntime_graph.py": 1,
    "edge/backends/tensorrt/backend.py": 7,
    "edge/backends/tensorrt/batch_pipe.py": 2,
    "edge/backends/tensorrt/build_monitor.py": 5,
    "edge/backends/tensorrt/builder.py": 3,
    "edge/backends/tensorrt/builder_config.py": 3,
    "edge/backends/tensorrt/calibrator.py": 2,
    "edge/backends/tensorrt/caps.py": 4,
    "edge/backends/tensorrt/environment.py": 2,
    "edge/backends/tensorrt/io_spec.py": 2,
    "edge/backends/tensorrt/layer_report.py": 1,
    "edge/backends/tensorrt/log_diagnosis.py": 1,
    "edge/backends/tensorrt/memory.py": 2,
    "edge/backends/tensorrt/missing_scales.py": 1,
    "edge/backends/tensorrt/onnx_variants.py": 3,
    "edge/backends/tensorrt/parse_errors.py": 1,
    "edge/backends/tensorrt/route.py": 1,
    "edge/backends/tensorrt/runner.py": 1,
    "edge/backends/tensorrt/subprocess_build.py": 2,
    "edge/backends/tensorrt/timing_cache.py": 2,
    "edge/backends/tensorrt/timing_cache_format.py": 1,
    "edge/backends/tensorrt/timing_cache_use.py": 2,
    "edge/calibration/cache_keys.py": 9,
    "edge/calibration/checkpoint.py": 2,
    "edge/calibration/collection.py": 13,
    "edge/calibration/counting.py": 2,
    "edge/calibration/dask_workers.py": 4,
    "edge/calibration/preparation.py": 3,
    "edge/calibration/sensitivity.py": 1,
    "edge/calibration/watch_plan.py": 2,
    "edge/calibration/work_queue.py": 1,
    "edge/calibration/worker_processes.py": 6,
    "edge/calibration/workflow.py": 7,
    "edge/cli/build.py": 2,
    "edge/cli/bundle.py": 2,
    "edge/cli/cache_pull.py": 1,
    "edge/cli/engine.py": 1,
    "edge/cli/fleet_jobs.py": 2,
    "edge/cli/paths.py": 2,
    "edge/cli/service.py": 3,
    "edge/config/profiles.py": 8,
    "edge/deploy/agent_protocol.py": 2,
    "edge/deploy/bundle/archive.py": 4,
    "edge/deploy/bundle/closed.py": 1,
    "edge/deploy/bundle/golden.py": 1,
    "edge/deploy/bundle/reader.py": 3,
    "edge/deploy/bundle/signature.py": 3,
    "edge/deploy/canary.py": 1,
    "edge/deploy/collect.py": 2,
    "edge/deploy/fleet.py": 1,
    "edge/deploy/push.py": 1,
    "edge/deploy/registry/client.py": 2,
    "edge/deploy/registry/reference.py": 1,
    "edge/deploy/rollout.py": 2,
    "edge/deploy/service.py": 1,
    "edge/deploy/transport/address.py": 1,
    "edge/deploy/transport/agent.sh": 7,
    "edge/deploy/transport/session.py": 3,
    "edge/deploy/transport/ssh.py": 1,
    "edge/diagnostics/doctor.py": 1,
    "edge/diagnostics/selftest_context.py": 2,
    "edge/diagnostics/selftest_record.py": 3,
    "edge/diagnostics/selftest_reference.py": 2,
    "edge/diagnostics/selftest_refusals.py": 1,
    "edge/diagnostics/selftest_run.py": 5,
    "edge/diagnostics/selftest_sensors.py": 1,
    "edge/engines/building.py": 4,
    "edge/engines/engine_comparison.py": 3,
    "edge/engines/inventory.py": 3,
    "edge/errors.py": 1,
    "edge/events.py": 1,
    "edge/media/labels.py": 2,
    "edge/media/picture_sources.py": 1,
    "edge/media/tfrecord.py": 1,
    "edge/model/folding.py": 1,
    "edge/model/graph.py": 1,
    "edge/model/inspection.py": 1,
    "edge/model/model_facts.py": 2,
    "edge/model/preprocessing.py": 8,
    "edge/quantization/algorithms.py": 1,
    "edge/quantization/migration.py": 1,
    "edge/quantization/placement.py": 2,
    "edge/quantization/recipe.py": 5,
    "edge/quantization/statistics.py": 1,
    "edge/quantization/table_check.py": 3,
    "edge/quantization/table_formats.py": 2,
    "edge/reports/plots.py": 1,
    "edge/runtime/evaluation.py": 1,
    "edge/stats.py": 3,
    "edge/system/device.py": 1,
    "edge/telemetry/nvml.py": 2,
    "edge/telemetry/rails.py": 2,
    "edge/telemetry/sources.py": 1,
    "edge/telemetry/tegrastats.py": 1,
    "edge/tuning/conclusions.py": 1,
    "edge/tuning/preprocess_trial.py": 3,
    "edge/tuning/subsets.py": 1,
    "edge/tuning/sweep_comparison.py": 1,
    "edge/tuning/sweep_record.py": 1,
    "edge/tuning/sweep_tables.py": 2,
    "edge/ui/terminal/fleet_view.py": 2,
    "install.sh": 3,
}

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


def of_text(text: str) -> Iterator[tuple[int, str]]:
    """Line and problem of each forbidden word in prose."""
    for number, line in enumerate(text.splitlines(), 1):
        for found, better in IN_SENTENCES.search(line):
            yield number, f"{found!r} (say: {better}): {line.strip()[:100]}"


def of_python(source: str) -> Iterator[tuple[int, str]]:
    """The same for a module: its names, strings and comments, and the first words of its docstrings."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME:
            for found, better in IN_IDENTIFIERS.search(split_name(token.string)):
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
    new = [line for name, lines in problems().items() if len(lines) > REMAINING.get(name, 0) for line in lines]
    assert not new, "\n".join(new)


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

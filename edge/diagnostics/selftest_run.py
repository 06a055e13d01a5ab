"""Run the self-test: its steps, their context and the record (see :mod:`edge.diagnostics`)."""

from __future__ import annotations

import functools
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec

from edge import __version__
from edge.diagnostics import doctor, selftest_checks, selftest_engines
from edge.diagnostics.selftest_context import (
    FORMAT,
    SelfTest,
    SelfTestContext,
    SelfTestStep,
    StepOutcome,
    without_places,
)
from edge.errors import EdgeError
from edge.events import Listener, Note, ignore_events
from edge.model import onnx_model, preprocessing
from edge.system import this_process

Do = Callable[[SelfTestContext], StepOutcome]
# Opened around every step; returns the listener for its events.
Progress = Callable[[], AbstractContextManager[Listener]]


def _no_progress() -> AbstractContextManager[Listener]:
    return nullcontext(ignore_events)


class SelfTestRun:
    """One self-test. If :meth:`go` ends early, :meth:`record` has the results up to then."""

    def __init__(self, bench: SelfTestContext, *, progress: Progress = _no_progress) -> None:
        self._bench = bench
        self._progress = progress
        self._started = datetime.now(timezone.utc)
        self._steps: list[SelfTestStep] = []
        self._complete = False

    def go(self, on_event: Callable[[SelfTestStep], None] = lambda _step: None) -> None:
        """Run all steps in order; ``on_event`` is called after each.

        An exception in a step becomes a failed step; signals are passed on.
        """
        for name, do in self._plan():
            with self._progress() as self._bench.listen:
                step = self._take(name, do)
            self._steps.append(step)
            on_event(step)
        self._complete = True

    def record(self) -> SelfTest:
        """Return the record of the steps so far."""
        bench = self._bench
        found = SelfTest(
            format=FORMAT,
            edge_version=__version__,
            started_utc=self._started.isoformat(timespec="seconds"),
            status="complete" if self._complete else "interrupted",
            machine=msgspec.to_builtins(bench.machine),
            software=_software(),
            subject=_subject(bench),
            doctor=_findings(bench),
            steps=list(self._steps),
        )
        return without_places(found, {"WORK": bench.work, "~": Path.home()})

    def _plan(self) -> Iterator[tuple[str, Do]]:
        yield "machine", selftest_checks.machine
        yield "pictures", selftest_checks.pictures
        yield "reference", selftest_engines.step
        yield "table", selftest_engines.table
        variants = self._bench.variants()
        for variant in variants:
            yield f"build {variant.name}", functools.partial(selftest_engines.build, variant=variant)
            yield f"answers {variant.name}", functools.partial(selftest_engines.answers, variant=variant)
            if self._bench.publish_s is not None:
                yield f"publish {variant.name}", functools.partial(selftest_engines.publish, variant=variant)
        yield "GPU preprocessing", selftest_engines.gpu_preprocessing
        yield "unchanged", selftest_engines.unchanged
        yield "timing cache", selftest_engines.warm
        yield "foreign engine", selftest_checks.engine
        yield "foreign table", selftest_checks.table
        yield "power", selftest_checks.power
        yield "camera", selftest_checks.camera

    def _take(self, name: str, do: Do) -> SelfTestStep:
        start = time.monotonic()
        trace = None
        try:
            reported = do(self._bench)
        except EdgeError as exc:
            reported = StepOutcome(status="failed", text=exc.what, hint=exc.hint)
        except Exception as exc:  # noqa: BLE001 - a bug of ours must not hide the steps that follow; it keeps its trace
            reported = StepOutcome(
                status="failed", text=f"a bug: {type(exc).__name__}: {exc}", hint="attach this file to a report"
            )
            trace = traceback.format_exc()
            self._bench.listen(Note(f"{name}: {type(exc).__name__}: {exc}", "warning"))
        return SelfTestStep(
            name=name, status=reported.status, text=reported.text, seconds=round(time.monotonic() - start, 3),
            figures=reported.figures, hint=reported.hint, trace=trace,
        )  # fmt: skip


def _software() -> dict[str, str]:
    process = this_process()
    return {name: dependency.version or "unknown" for name, dependency in process.dependencies.items()}


def _findings(bench: SelfTestContext) -> list[str]:
    """Return the problems that edge doctor would report."""
    report = doctor.examine(bench.root, [])
    return [
        f"{finding.level}: {finding.name}: {finding.text}"
        for finding in report.findings
        if finding.level != "ok" and finding.group != "profiles"
    ]


def _subject(bench: SelfTestContext) -> dict[str, Any]:
    profile = bench.profile
    subject: dict[str, Any] = {
        "profile": profile.name,
        "profile_digest": profile.digest,
        "model": Path(profile.model).name,
        "preprocess": preprocessing.digest(profile.preprocess, profile.input),
        "reference": bench.reference_from or None,
        "table_sha256": bench.table.sha256 if bench.table else None,
    }
    subject["model_sha256"] = _tried(lambda: onnx_model.fingerprint(Path(profile.model)))
    subject["backend"] = _tried(lambda: dict(bench.backend(profile).identity()))
    return subject


def _tried(get: Callable[[], Any]) -> Any:  # noqa: ANN401
    try:
        return get()
    except EdgeError as exc:
        return f"unknown: {exc.what}"

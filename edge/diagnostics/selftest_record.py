"""The result of a self-test as one JSON file that can be attached to a bug report.

It names the machine, the versions and what each step said. It holds no host or user name: the home folder is written as
``~``, the work folder as ``WORK``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

FORMAT = 1
Status = Literal["ok", "failed", "skipped"]


class StepOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of a step."""

    status: Status
    text: str
    figures: dict[str, Any] = {}
    hint: str | None = None


class SelfTestStep(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One step. ``trace`` is the traceback of a bug; an expected failure has none."""

    name: str
    status: Status
    text: str
    seconds: float
    figures: dict[str, Any] = {}
    hint: str | None = None
    trace: str | None = None


class SelfTest(msgspec.Struct, frozen=True, kw_only=True):
    """All of it. ``status`` is ``interrupted`` when a signal ended it: the steps that are missing were not tried."""

    format: int
    edge_version: str
    started_utc: str
    status: Literal["complete", "interrupted"]
    machine: dict[str, Any]
    software: dict[str, str]
    subject: dict[str, Any]
    doctor: list[str]
    steps: list[SelfTestStep]

    def count(self, status: Status) -> int:
        """The number of steps with that outcome."""
        return sum(step.status == status for step in self.steps)


def ok(text: str, **figures: Any) -> StepOutcome:  # noqa: ANN401
    """A step that did what it should."""
    return StepOutcome(status="ok", text=text, figures=figures)


def failed(text: str, *, hint: str | None = None, **figures: Any) -> StepOutcome:  # noqa: ANN401
    """A step that did not."""
    return StepOutcome(status="failed", text=text, figures=figures, hint=hint)


def skipped(why: str, *, hint: str | None = None, **figures: Any) -> StepOutcome:  # noqa: ANN401
    """A step that could not be tried here, and why."""
    return StepOutcome(status="skipped", text=why, figures=figures, hint=hint)


def without_places(record: SelfTest, places: Mapping[str, Path]) -> SelfTest:
    """The record with paths replaced: ``places`` maps a word to the folder that it stands for."""
    # The longest first, so that a folder inside of another one keeps its own word.
    ordered = sorted(places.items(), key=lambda item: -len(str(item[1])))

    def clean(value: Any) -> Any:  # noqa: ANN401
        if isinstance(value, str):
            for word, folder in ordered:
                if len(folder.parts) > 1:
                    value = value.replace(str(folder), word)
            return value
        if isinstance(value, dict):
            return {clean(name): clean(item) for name, item in value.items()}
        return [clean(item) for item in value] if isinstance(value, list) else value

    return msgspec.convert(clean(msgspec.to_builtins(record)), SelfTest)


def encode(record: SelfTest) -> bytes:
    """The file's content."""
    return msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"

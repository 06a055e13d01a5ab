"""The record of a sweep (settings, the answers of every table, findings) and its file. Versioned.

The record has the answers for each image, so every figure can be recomputed, and a stopped sweep continues without
scoring a table twice. Answers are stored by the digest of their table's scales, and only together with the ``key``:
model, preprocessing, labelled images, and the software that ran them.

Format history:
    1  first
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from edge import __version__
from edge.artifacts import store
from edge.backends import OnnxRuntime
from edge.config import Profile
from edge.errors import ArtifactError, StoreError, UsageError
from edge.media import Picture, Pictures
from edge.model import onnx_model, preprocessing
from edge.system import device
from edge.tuning import sweep_comparison
from edge.tuning.sweep_comparison import Answers, Configuration, Findings

if TYPE_CHECKING:
    from edge.tuning.sweep_tables import SweepSettings

FORMAT = 1
KIND: Literal["edge sweep"] = "edge sweep"


class Exact(msgspec.Struct, frozen=True, kw_only=True):
    """The labelled images (name, true class) in order, and the logits of the FP32 network."""

    pictures: list[str]
    truth: list[int]
    answers: Answers


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One sweep. ``seconds`` is the duration of each stage in the run that wrote this; None until it is finished."""

    kind: Literal["edge sweep"] = KIND
    format: int = FORMAT
    edge_version: str = __version__
    started_utc: str
    status: Literal["complete", "interrupted"]
    key: dict[str, store.Scalar]
    subject: dict[str, Any]
    settings: dict[str, Any]
    seconds: dict[str, float]
    warnings: list[str]
    configurations: list[Configuration]
    findings: Findings | None
    exact: Exact | None
    answers: dict[str, Answers]


def save(path: Path, record: Record) -> None:
    """Write a record.

    Raises:
        StoreError: the file cannot be written.
    """
    store.write_bytes(path, msgspec.json.encode(record) + b"\n")


def load(path: Path) -> Record:
    """Read a record.

    Raises:
        ArtifactError: the file is not the record of a sweep, or has an unknown format.
        StoreError: it cannot be read.
    """
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise StoreError(f"cannot read: {exc.strerror or exc}", where=path) from exc
    try:
        head = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        if "kind" not in head or msgspec.json.decode(head["kind"]) != KIND:
            raise ArtifactError("not a record of edge sweep", where=path)
        if (version := msgspec.json.decode(head.get("format", b"null"))) != FORMAT:
            raise ArtifactError(f"sweep record of format {version}; this edge reads format {FORMAT}", where=path)
        found = msgspec.json.decode(data, type=Record)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise ArtifactError(f"not a record of edge sweep: {exc}", where=path) from exc
    if found.exact is None:
        return msgspec.structs.replace(found, answers={})
    n = len(found.exact.truth)
    for item in (found.exact.answers, *found.answers.values()):
        if not len(item.predicted) == len(item.top5) == len(item.energy) == n:
            raise ArtifactError(f"the answers of a table do not cover the {n} images", where=path)
    return found


def sweep_summary(record: Record) -> dict[str, Any]:
    """Return the record without the answers for each image, as plain values for ``--json``."""
    content: dict[str, Any] = msgspec.to_builtins(record)
    for name in ("exact", "answers"):
        del content[name]
    return content


class SweepWriter:
    """Collects the results of a running sweep and writes them to its record file."""

    def __init__(
        self,
        profile: Profile,
        model: onnx_model.Model,
        pictures: Pictures,
        labelled: Sequence[Picture],
        settings: SweepSettings,
        *,
        digest: str,
        output: Path | None,
        force: bool,
    ) -> None:
        self._started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self._output = output
        self._before: Record | None = None
        self._key: dict[str, store.Scalar] = {
            "model": model.sha256,
            "preprocess": preprocessing.digest(profile.preprocess, profile.input),
            "labelled": store.canonical_digest([[picture.sha256, picture.label] for picture in labelled]),
            "batch": profile.input.batch.min,
            "edge": __version__,
            "form": "tensorrt",
            **OnnxRuntime().identity(),
        }
        self._subject: dict[str, Any] = {
            "profile": profile.name,
            "model": model.path.name,
            "classes": model.classes,
            "calibration_pictures": len(pictures),
            "calibration_source": str(pictures.source),
            "calibration_digest": digest,
            "labelled_pictures": len(labelled),
            "scored_with": "the TensorRT form of each table, in float32 arithmetic",
            "device": msgspec.to_builtins(device.identify()),
        }
        self._settings: dict[str, Any] = {
            "algorithms": {item.label: item.parameters for item in settings.candidates},
            "pictures": settings.sizes,
            "seeds": settings.seeds,
        }
        self.seconds: dict[str, float] = {}
        self.warnings: list[str] = []
        self.configurations: list[Configuration] = []
        self.exact: Exact | None = None
        self.answers: dict[str, Answers] = {}
        if output is not None and output.exists():
            self._go_on(output, force=force)

    def _go_on(self, output: Path, *, force: bool) -> None:
        if force:
            return
        before = load(output)
        changed = store.differences(before.key, self._key)
        if changed:
            raise UsageError(
                f"the file contains a sweep with other inputs ({'; '.join(str(item) for item in changed)})",
                where=output,
                hint="use another -o, or --force to overwrite it",
            )
        self.answers = dict(before.answers)
        self.exact = before.exact
        self._before = before

    def record(self, findings: sweep_comparison.Findings | None, *, complete: bool) -> Record:
        """Return the record in its current state."""
        return Record(
            started_utc=self._started,
            status="complete" if complete else "interrupted",
            key=self._key,
            subject=self._subject,
            settings=self._settings,
            seconds={name: round(value, 3) for name, value in self.seconds.items()},
            warnings=self.warnings,
            configurations=self.configurations,
            findings=findings,
            exact=self.exact,
            answers=self.answers,
        )

    def open(self) -> None:
        """Write the file once unchanged, so that an unwritable folder is noticed before the work.

        Raises:
            StoreError: the file cannot be written.
        """
        if self._output is not None:
            save(self._output, self._before or self.record(None, complete=False))

    def save(self) -> None:
        """Save the current state, if there is an output file."""
        if self._output is not None:
            save(self._output, self.record(None, complete=False))

    def finish(self, truth: list[int] | None, start: float) -> Record:
        """Save and return the final record; ``truth`` is None if nothing could be scored."""
        found = None
        scored = [item for item in self.configurations if item.table in self.answers]
        if truth is not None and self.exact is not None and scored:
            found = sweep_comparison.findings(self.configurations, self.exact.answers, self.answers, truth)
        self.seconds["total"] = time.monotonic() - start
        complete = bool(scored) and len(scored) == len(self.configurations)
        result = self.record(found, complete=complete)
        # Stopped without new results: keep the content of the file.
        if self._output is not None and (found is not None or self._before is None):
            save(self._output, result)
        return result

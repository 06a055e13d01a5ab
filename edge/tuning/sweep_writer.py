"""The record of a sweep while it grows, and the file that it is kept in."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec

from edge import __version__
from edge.artifacts import store
from edge.backends import OnnxRuntime
from edge.config import Profile
from edge.errors import UsageError
from edge.media import Picture, Pictures
from edge.model import onnx_model, preprocessing
from edge.system import device
from edge.tuning import sweep_comparison, sweep_record
from edge.tuning.scorer import Answers
from edge.tuning.sweep_comparison import Configuration
from edge.tuning.sweep_record import BatchCheck, Exact, Record
from edge.tuning.sweep_settings import SweepSettings


class SweepWriter:
    """The record while it grows, and the file that it is kept in."""

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
            "scored_with": "INT8 by ONNX Runtime on the CPU, from the Q/DQ form of each table",
            "device": msgspec.to_builtins(device.identify()),
        }
        self._settings: dict[str, Any] = {
            "algorithms": {item.label: item.parameters for item in settings.candidates},
            "pictures": settings.sizes,
            "seeds": settings.seeds,
            "batches": list(settings.batches),
        }
        self.seconds: dict[str, float] = {}
        self.batches: list[BatchCheck] = []
        self.warnings: list[str] = []
        self.configurations: list[Configuration] = []
        self.exact: Exact | None = None
        self.answers: dict[str, Answers] = {}
        if output is not None and output.exists():
            self._go_on(output, force=force)

    def _go_on(self, output: Path, *, force: bool) -> None:
        if force:
            return
        before = sweep_record.load(output)
        changed = store.differences(before.key, self._key)
        if changed:
            raise UsageError(
                f"the sweep in there was made with something else ({'; '.join(str(item) for item in changed)})",
                where=output,
                hint="another -o, or --force to write over it",
            )
        self.answers = dict(before.answers)
        self.exact = before.exact
        self._before = before

    def record(self, findings: sweep_comparison.Findings | None, *, complete: bool) -> Record:
        """The record as it stands."""
        return Record(
            started_utc=self._started,
            status="complete" if complete else "interrupted",
            key=self._key,
            subject=self._subject,
            settings=self._settings,
            seconds={name: round(value, 3) for name, value in self.seconds.items()},
            batches=self.batches,
            warnings=self.warnings,
            configurations=self.configurations,
            findings=findings,
            exact=self.exact,
            answers=self.answers,
        )

    def open(self) -> None:
        """Write the file once as it is, so that a folder that cannot be written is known before the work.

        Raises:
            StoreError: the disk refused.
        """
        if self._output is not None:
            sweep_record.save(self._output, self._before or self.record(None, complete=False))

    def save(self) -> None:
        """Keep what is there, if it is to be kept."""
        if self._output is not None:
            sweep_record.save(self._output, self.record(None, complete=False))

    def finish(self, truth: list[int] | None, start: float) -> Record:
        """The last form of the record, kept; ``truth`` is None when nothing could be scored."""
        found = None
        scored = [item for item in self.configurations if item.table in self.answers]
        if truth is not None and self.exact is not None and scored:
            found = sweep_comparison.findings(self.configurations, self.exact.answers, self.answers, truth)
        self.seconds["total"] = time.monotonic() - start
        complete = bool(scored) and len(scored) == len(self.configurations)
        result = self.record(found, complete=complete)
        # Stopped before there is anything new: what the file holds is worth more.
        if self._output is not None and (found is not None or self._before is None):
            sweep_record.save(self._output, result)
        return result

"""Files with records made by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge.artifacts import run_record
from edge.artifacts.run_record import RunRecord
from tests.support.run_records import made


@pytest.fixture
def keep(tmp_path: Path) -> Callable[..., Path]:
    """``keep("a.json", record)``: the record as a file."""

    def save(name: str, record: RunRecord | None = None, **changes: Any) -> Path:
        record = made() if record is None else record
        run_record.save(tmp_path / name, msgspec.structs.replace(record, **changes))
        return tmp_path / name

    return save

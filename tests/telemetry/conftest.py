"""Folders that stand for the root of a machine."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.boards import Grow, ManualClock


@pytest.fixture
def grow(tmp_path: Path) -> Grow:
    """Write files under a root folder, and return the root; may be called again to change it."""

    def write(files: Mapping[str, object]) -> Path:
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{content}\n")
        return tmp_path

    return write


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """A folder that everybody can enter; while the test runs we are not root, so permissions hold."""
    folder = Path(tempfile.mkdtemp(prefix="edge-test-"))
    folder.chmod(0o777)
    was_root = os.geteuid() == 0
    if was_root:
        os.seteuid(65534)
    try:
        yield folder
    finally:
        if was_root:
            os.seteuid(0)
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o755)
        shutil.rmtree(folder)

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edge.artifacts.store import remove_leftovers, temporary_folder
from edge.errors import StoreError


def test_a_folder_is_removed_at_the_end_of_its_block() -> None:
    with temporary_folder("test") as folder:
        (folder / "x").write_text("x")
        assert f"edge-test-{os.getpid()}-" in folder.name
    assert not folder.exists()


def test_what_a_killed_process_left_is_removed_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    code = (
        "import os, signal; from edge.artifacts.store import temporary_folder\n"
        "with temporary_folder('test') as folder:\n"
        "    (folder / 'big').write_bytes(b'x'); print(folder, flush=True); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    left = Path(killed.stdout.strip())
    assert left.is_dir()
    stays = [tmp_path / name for name in ("edge-test", "edge-test-x-1", f"edge-test-{os.getpid()}-a", "other-test-1-a")]
    for path in stays:
        path.mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "edge-test-999999999-link").symlink_to(elsewhere)
    (tmp_path / "edge-test-99999999999999999999-a").mkdir()
    assert remove_leftovers(tmp_path) == [left]
    assert all(path.is_dir() for path in [*stays, elsewhere])
    assert remove_leftovers(tmp_path / "absent") == []


def test_no_folder_that_can_be_written_is_an_error_of_the_store(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(StoreError, match="nowhere: cannot be written: No such file or directory") as caught:
        temporary_folder("selftest").__enter__()
    assert "TMPDIR=DIR" in str(caught.value.hint)

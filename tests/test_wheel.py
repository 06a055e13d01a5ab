"""The wheel brings what an empty folder needs."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from edge.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_an_installed_wheel_works_in_an_empty_folder(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="the wheel is built offline, with the hatchling that is installed")
    build = "import hatchling.build, sys; print(hatchling.build.build_wheel(sys.argv[1]))"
    name = subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split()[-1]
    assert (tmp_path / name).stat().st_size < 25e6
    with zipfile.ZipFile(tmp_path / name) as wheel:
        wheel.extractall(tmp_path / "site")
        page = wheel.read("jetson_edge-0.1.0.data/data/share/man/man1/edge.1").decode()
    for command in COMMANDS:
        assert f".SS edge {command}\n" in page
    assert ".SS edge bundle create\n" in page
    assert "\\-\\-label\\-offset" in page
    (tmp_path / "empty").mkdir()

    def edge(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "HOME": str(tmp_path)}
        command = [sys.executable, "-m", "edge", *arguments]
        return subprocess.run(
            command, cwd=tmp_path / "empty", env=environment, capture_output=True, text=True, check=False
        )

    assert "host" in edge("profile", "list").stdout
    missing = edge("run", "--profile", "host", "--images", "samples:")
    assert missing.returncode == 7
    assert "try: edge build --profile host" in missing.stderr
    assert edge("build", "--profile", "host").returncode == 0
    done = edge("run", "--profile", "host", "--images", "samples:")
    assert done.returncode == 0, done.stderr
    assert "giant panda" in done.stdout
    assert sorted(path.name for path in (tmp_path / "empty").iterdir()) == ["calib_cache", "engines"]

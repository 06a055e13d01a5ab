"""A bare device, for real: an empty home, wheels out of the bundle, over a real ssh; then the trial of the bundle."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edge.calibration import workflow
from edge.config import profiles
from edge.deploy.bundle import creation
from edge.deploy.push import ShipSettings, ship
from edge.deploy.transport.address import DeviceAddress
from edge.errors import MissingDependencyError, UsageError
from edge.media.picture_sources import open_pictures
from tests.support import loopback
from tests.support.devices import current

pytest.importorskip("pip")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="install.sh needs bash")
def test_a_bare_device_gets_edge_and_tries_the_bundle(
    tmp_path: Path, tiny_profile: Callable[..., Path], pictures: Callable[..., list[Path]],
    serve: Callable[..., loopback.Server], remote: Callable[..., DeviceAddress],
) -> None:  # fmt: skip
    chosen = profiles.read_profile(tiny_profile(tmp_path / "profiles"))
    pictures(tmp_path / "pictures", 4)
    source, cache = open_pictures(tmp_path / "pictures"), tmp_path / "calib_cache"
    workflow.calibrate(chosen, source, cache=cache, threads=1)
    try:
        bundle = creation.create(chosen, cache=cache, out=tmp_path / "a.edge", golden=list(source), with_wheels=True)
    except MissingDependencyError as exc:
        if "pip wheel" in exc.what:
            raise  # edge's own wheel: that is not a matter of the network
        pytest.skip(f"the wheels cannot be fetched here: {exc.what}")
    home = tmp_path / "ada's empty home"
    home.mkdir()
    # EDGE_PYTHON: the wheels are for this Python, and the system's may be another.
    server = serve(SetEnv=f'"HOME={home}" "EDGE_PYTHON={sys.executable}" PATH=/usr/bin:/bin')
    place = remote(server, "ada's empty home/.local/share/edge")
    outcome = ship(bundle, place, settings=ShipSettings(bootstrap=True))
    assert outcome.work == "ok", outcome
    assert outcome.canary is not None
    assert outcome.canary.verdict == "passed", outcome.canary
    assert current(place) == bundle.digest
    again = ship(bundle, place, settings=ShipSettings(bootstrap=True))
    assert (again.work, again.sent_bytes) == ("unchanged", 0)
    works_without_a_network(home, device=(home / ".local/share/edge/current").resolve())


def works_without_a_network(home: Path, *, device: Path) -> None:
    """What was installed builds the engine, verifies the bundle and is up to date, with nothing but these files."""
    cut_off = ["unshare", "-rn"] if _can_unshare() else []
    # Without a name space of its own, at least nothing that leads to an index.
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(home), "EDGE_PYTHON": sys.executable, "no_proxy": "*"}

    def run(*command: object) -> str:
        done = subprocess.run(
            [*cut_off, *map(str, command)], env=environment, cwd="/", capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    edge = home / ".local" / "bin" / "edge"
    folders = ("--cache-dir", device / "tables", "--engine-dir", home / "engines")
    assert "int8 built" in run(edge, "build", "-p", device / "profile.yaml", *folders)
    assert "signers" in run(edge, "bundle", "verify", "--here", "--json", device)
    assert "up to date" in run("bash", device / "wheels" / "install.sh", "--offline", device / "wheels")
    run(home / ".local/share/edge/venv/bin/python", "-c", "import oras.provider")  # for edge bundle pull


def _can_unshare() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "-rn", "true"], check=False, capture_output=True).returncode == 0


def test_a_bundle_without_wheels(bundle: Callable[..., object], folder: DeviceAddress) -> None:
    with pytest.raises(UsageError, match="no wheels"):
        ship(bundle(), folder, settings=ShipSettings(bootstrap=True, canary=False))  # type: ignore[arg-type]
    assert current(folder) is None

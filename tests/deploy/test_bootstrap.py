"""A bare device, for real: an empty home, wheels out of the bundle, over a real ssh; then the trial of the bundle."""

from __future__ import annotations

import shutil
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
        pytest.skip(f"the wheels cannot be fetched here: {exc.what}")
    home = tmp_path / "empty home"
    home.mkdir()
    # EDGE_PYTHON: the wheels are for this Python, and the system's may be another.
    server = serve(SetEnv=f'"HOME={home}" "EDGE_PYTHON={sys.executable}" PATH=/usr/bin:/bin')
    place = remote(server, "the device's own")
    outcome = ship(bundle, place, settings=ShipSettings(bootstrap=True))
    assert outcome.work == "ok", outcome
    assert outcome.canary is not None
    assert outcome.canary.verdict == "passed", outcome.canary
    assert current(place) == bundle.digest
    again = ship(bundle, place, settings=ShipSettings(bootstrap=True))
    assert (again.work, again.sent_bytes) == ("unchanged", 0)


def test_a_bundle_without_wheels(bundle: Callable[..., object], folder: DeviceAddress) -> None:
    with pytest.raises(UsageError, match="no wheels"):
        ship(bundle(), folder, settings=ShipSettings(bootstrap=True, canary=False))  # type: ignore[arg-type]
    assert current(folder) is None

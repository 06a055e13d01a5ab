"""A bare device, for real: an empty home, wheels out of the bundle, over a real ssh; then the trial of the bundle."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import loopback
import pytest
from devices import current

from edge import calibrate, profile
from edge.bundle import create
from edge.errors import GuestError, UsageError
from edge.frames import open_pictures
from edge.ship import Settings, ship
from edge.transport.target import Place

pytest.importorskip("pip")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="install.sh needs bash")
def test_a_bare_device_gets_edge_and_tries_the_bundle(
    tmp_path: Path, tiny_profile: Callable[..., Path], pictures: Callable[..., list[Path]],
    serve: Callable[..., loopback.Server], remote: Callable[..., Place],
) -> None:  # fmt: skip
    chosen = profile.load(tiny_profile(tmp_path / "profiles"))
    pictures(tmp_path / "pictures", 4)
    source, cache = open_pictures(tmp_path / "pictures"), tmp_path / "calib_cache"
    calibrate.calibrate(chosen, source, cache=cache, threads=1)
    try:
        bundle = create.create(chosen, cache=cache, out=tmp_path / "a.edge", golden=list(source), with_wheels=True)
    except GuestError as exc:
        pytest.skip(f"the wheels cannot be fetched here: {exc.what}")
    home = tmp_path / "empty home"
    home.mkdir()
    # EDGE_PYTHON: the wheels are for this Python, and the system's may be another.
    server = serve(SetEnv=f'"HOME={home}" "EDGE_PYTHON={sys.executable}" PATH=/usr/bin:/bin')
    place = remote(server, "the device's own")
    outcome = ship(bundle, place, settings=Settings(bootstrap=True))
    assert outcome.work == "ok", outcome
    assert outcome.canary is not None
    assert outcome.canary.passed is True, outcome.canary
    assert current(place) == bundle.digest
    again = ship(bundle, place, settings=Settings(bootstrap=True))
    assert (again.work, again.sent_bytes) == ("unchanged", 0)


def test_a_bundle_without_wheels(bundle: Callable[..., object], folder: Place) -> None:
    with pytest.raises(UsageError, match="no wheels"):
        ship(bundle(), folder, settings=Settings(bootstrap=True, canary=False))  # type: ignore[arg-type]
    assert current(folder) is None

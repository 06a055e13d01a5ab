"""A short version of what benchmarks/ship.py does 200 times: interrupt a ship, look at the device, ship again."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from edge.deploy.bundle.reader import Bundle
from tests.support import interrupts, loopback

pytestmark = pytest.mark.skipif(loopback.why_not() is not None, reason=str(loopback.why_not()))


@pytest.mark.slow
def test_current_is_whole_after_every_interruption(bundle: Callable[..., Bundle], tmp_path: Path, keys: Path) -> None:
    shared = os.urandom(1_500_000)
    bundles = [
        bundle(f"b{index}", {"model/shared": shared, "own/a": os.urandom(1_500_000), "own/b": os.urandom(3000)})
        for index in range(4)
    ]
    with interrupts.device(tmp_path / "device", keys=keys, disk_mib=96) as device:
        storm = interrupts.Storm(device, bundles, seed=7)
        storm.run(8)
    assert storm.problems == []
    assert sum(tally.interrupted for tally in storm.tallies.values()) == 8
    assert sum(tally.recovered for tally in storm.tallies.values()) == 8
    assert sum(tally.found["none"] for tally in storm.tallies.values()) == 0

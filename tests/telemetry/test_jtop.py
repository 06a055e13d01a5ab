"""jtop's service, by a double of its Python module: rails as jetson-stats 4.3 to 7.2 gives them."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edge.telemetry.jtop import Jtop
from edge.telemetry.sources import Unavailable
from tests.support.boards import ManualClock


class JtopException(Exception):
    pass


def rail(power_mw: int, **more: Any) -> dict[str, Any]:
    return {"volt": 5000, "curr": power_mw // 5, "power": power_mw, "avg": power_mw // 2, "online": True, **more}


AGX = {
    "VDD_GPU_SOC": rail(2400),
    "VDD_CPU_CV": rail(400),
    "VIN_SYS_5V0": rail(4000),
    "VDDQ_VDD2_1V8AO": rail(300),
    "NC": rail(0),
}


class Client:
    """Gives one sample per entry of ``samples``, then waits for ``close``, or ends as ``end`` says."""

    def __init__(self, samples: list[Mapping[str, Any]], *, end: Any = None) -> None:
        self._samples = samples
        self._end = end
        self._closed = threading.Event()
        self._at = -1
        self.started = False

    def start(self) -> None:
        self.started = True

    def ok(self) -> bool:
        self._at += 1
        if self._at < len(self._samples):
            return True
        if isinstance(self._end, Exception):
            raise self._end
        if self._end is None:
            self._closed.wait(5)
        return False

    @property
    def power(self) -> Mapping[str, Any]:
        rails = self._samples[self._at]
        # Its own total is the sum of all rails here, which counts VDDQ twice.
        return {"rail": rails, "tot": rail(sum(r["power"] for r in rails.values()))}

    @property
    def temperature(self) -> Mapping[str, Any]:
        return {"cpu": {"temp": 48.5, "online": True}, "cv0": {"temp": -256, "online": False}}

    def close(self) -> None:
        self._closed.set()


def module(client: Any) -> Any:
    return SimpleNamespace(jtop=lambda *, interval: client, JtopException=JtopException)


def test_power_comes_from_the_table_of_rails_and_not_from_its_total(tmp_path: Path) -> None:
    client = Client([AGX])
    source = Jtop.open(tmp_path, library=module(client))
    assert isinstance(source, Jtop), source
    try:
        reading = source.read()
        assert (source.name, source.scope) == ("jtop", "module_sum")
        assert reading.power_mw == 6800  # neither 7100, its total, nor 3400, its smoothed one
        assert "NC" not in reading.rails_mw
        assert reading.temps_c == {"cpu": 48.5}
    finally:
        source.close()
    source.close()  # twice is harmless


@pytest.mark.parametrize(
    ("client", "reason"),
    [
        pytest.param(Client([{"MOTOR": rail(5)}]), "table of known boards: MOTOR", id="unknown-rails"),
        pytest.param(Client([{}]), "no power rails", id="no-rails"),
        pytest.param(Client([], end=False), "does not answer", id="silent"),
        pytest.param(Client([], end=JtopException("Lost connection with jtop server")), "Lost connection", id="lost"),
        pytest.param(Client([]), "no sample in 0.2 s", id="nothing-comes"),
    ],
)
def test_why_it_cannot_be_used(tmp_path: Path, client: Client, reason: str) -> None:
    patience_s = 0.2 if "0.2 s" in reason else 30.0
    source = Jtop.open(tmp_path, library=module(client), first_timeout_s=patience_s)
    assert isinstance(source, Unavailable)
    assert reason in source.reason


@pytest.mark.parametrize(
    "exc",
    [
        JtopException("The jtop.service is not active. Please run:\nsudo jtop --install-service"),
        PermissionError("no access to /run/jtop.sock"),
    ],
    ids=["no-service", "no-group"],
)
def test_a_service_that_refuses_says_so_in_its_own_words(tmp_path: Path, exc: Exception) -> None:
    class Refusing(Client):
        def start(self) -> None:
            raise exc

    source = Jtop.open(tmp_path, library=module(Refusing([])))
    assert isinstance(source, Unavailable)
    assert source.reason == " ".join(str(exc).split())


def test_a_service_that_is_lost_later_is_not_taken_for_a_measurement(tmp_path: Path) -> None:
    clock = ManualClock()
    source = Jtop.open(tmp_path, library=module(Client([AGX], end=False)), clock=clock)
    assert isinstance(source, Jtop)
    assert source.read().power_mw == 6800
    clock.now += 60
    stale = source.read()
    assert stale.power_mw is None
    assert "jtop sends no samples" in stale.warnings[0]
    source.close()


def test_without_jetson_stats_it_says_how_to_get_it_and_its_licence(tmp_path: Path) -> None:
    source = Jtop.open(tmp_path)
    assert isinstance(source, Unavailable)
    assert source.reason == "jtop is not installed"
    assert "AGPL" in str(source.hint)

"""NVML, by a double of pynvml: an H100's answers, Thor's, and Orin's, where nothing is supported."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from edge.telemetry.board import Board
from edge.telemetry.nvml import Nvml, gpu_load
from edge.telemetry.sources import Unavailable
from tests.support.boards import Grow, ManualClock


class NVMLError(Exception):
    pass


class Library:
    """A card. What is None is not supported."""

    NVMLError = NVMLError
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __init__(self, **answers: Any) -> None:
        self.answers: dict[str, Any] = {
            "instant": 71_188, "usage": 72_700, "gpu": 87, "memory": 12, "sm_mhz": 1980, "mem_mhz": 2619,
            "temp_c": 41, "reasons": 0x1, "name": "NVIDIA H100 80GB HBM3",
        } | answers  # fmt: skip
        self.open = 0

    def _answer(self, name: str) -> Any:
        if self.answers[name] is None:
            raise NVMLError("Not Supported")
        return self.answers[name]

    def nvmlInit(self) -> None:
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index:
            raise NVMLError("Invalid Argument")
        return 7

    def nvmlDeviceGetName(self, _handle: int) -> Any:
        return self._answer("name")

    def nvmlDeviceGetPowerUsage(self, _handle: int) -> Any:
        return self._answer("usage")

    def nvmlDeviceGetFieldValues(self, _handle: int, fields: list[int]) -> Any:
        assert fields == [186]
        instant = self.answers["instant"]
        value = SimpleNamespace(uiVal=instant or 0)
        return [SimpleNamespace(nvmlReturn=0 if instant is not None else 3, value=value)]

    def nvmlDeviceGetUtilizationRates(self, _handle: int) -> Any:
        return SimpleNamespace(gpu=self._answer("gpu"), memory=self._answer("memory"))

    def nvmlDeviceGetClockInfo(self, _handle: int, kind: int) -> Any:
        return self._answer("sm_mhz" if kind == 1 else "mem_mhz")

    def nvmlDeviceGetTemperature(self, _handle: int, _kind: int) -> Any:
        return self._answer("temp_c")

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, _handle: int) -> Any:
        return self._answer("reasons")


ORIN = dict.fromkeys(
    ("instant", "usage", "gpu", "memory", "sm_mhz", "mem_mhz", "temp_c", "reasons")
) | {"name": b"Orin (nvgpu)"}  # fmt: skip


def opened(library: Library) -> Nvml:
    source = Nvml.open(library=library, clock=ManualClock())
    assert isinstance(source, Nvml), source
    return source


def test_a_graphics_card() -> None:
    library = Library()
    source = opened(library)
    reading = source.read()
    assert (source.name, source.scope) == ("nvml", "card")
    assert reading.power_mw == 71_188
    assert reading.temps_c == {"gpu": 41}
    assert reading.loads_percent == {"gpu": 87, "memory": 12}
    assert reading.clocks_mhz == {"gpu": 1980, "memory": 2619}
    assert reading.throttling == ()  # 0x1 is "idle"
    assert reading.warnings == ()
    source.close()
    source.close()
    assert library.open == 0


def test_a_card_without_instantaneous_power_says_that_its_power_is_a_mean() -> None:
    reading = opened(Library(instant=None)).read()
    assert reading.power_mw == 72_700
    assert "mean over one second" in reading.warnings[0]


@pytest.mark.parametrize(
    ("reasons", "names"),
    [
        (0x4, ("power cap",)),
        (0x20 | 0x40, ("software thermal", "hardware thermal")),
        (0x2 | 0x10, ()),
        (0x80, ("power brake",)),
    ],
)
def test_why_it_is_slowed_down(reasons: int, names: tuple[str, ...]) -> None:
    assert opened(Library(reasons=reasons)).read().throttling == names


def test_what_fails_later_is_missing_and_raises_nothing() -> None:
    library = Library()
    source = opened(library)
    library.answers |= dict.fromkeys(("instant", "gpu", "temp_c", "sm_mhz", "reasons"))
    reading = source.read()
    assert reading.power_mw is None
    assert reading.temps_c == {}
    assert reading.clocks_mhz == {"memory": 2619}


def test_orins_library_is_a_stub_and_says_so() -> None:
    library = Library(**ORIN)
    source = Nvml.open(library=library)
    assert isinstance(source, Unavailable)
    assert source.reason == "Orin (nvgpu) does not report its power (on a Jetson use hwmon or tegrastats)"
    assert library.open == 0


def test_a_card_that_is_not_there() -> None:
    source = Nvml.open(library=Library(), index=3)
    assert isinstance(source, Unavailable)
    assert "no GPU 3" in source.reason


def test_a_driver_that_is_not_there() -> None:
    class NoDriver(Library):
        def nvmlInit(self) -> None:
            raise NVMLError("NVML Shared Library Not Found")

    source = Nvml.open(library=NoDriver())
    assert isinstance(source, Unavailable)
    assert "NVML cannot be initialized" in source.reason
    assert gpu_load(NoDriver()) == "NVML: NVML Shared Library Not Found"


def test_the_load_of_thors_gpu_comes_from_it(grow: Grow) -> None:
    root = grow({"proc/device-tree/compatible": "nvidia,p3834-0008\0nvidia,tegra264"})
    load = gpu_load(Library(usage=None, instant=None))
    assert not isinstance(load, str)
    state = Board(root, clock=ManualClock(), gpu_load=load).read()
    assert state.loads_percent == {"gpu": 87.0}
    assert "gpu load" not in state.absent


def test_the_load_of_orins_gpu_does_not() -> None:
    assert gpu_load(Library(**ORIN)) == "NVML: Not Supported"


def test_a_load_that_fails_later_is_missing() -> None:
    library = Library()
    load = gpu_load(library)
    assert not isinstance(load, str)
    library.answers["gpu"] = None
    assert load() is None


def test_a_tegra_without_a_load_says_why(grow: Grow) -> None:
    root = grow({"proc/device-tree/compatible": "nvidia,p3834-0008\0nvidia,tegra264"})
    absent = Board(root, clock=ManualClock()).read().absent
    assert absent["gpu load"] == "there is no load file in sysfs"
    assert "tegrastats" in absent["emc load"]

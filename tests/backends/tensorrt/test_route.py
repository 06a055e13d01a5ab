"""Which way INT8 takes on which TensorRT, and why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from edge.backends.tensorrt import int8_route
from edge.backends.tensorrt.environment import Caps
from edge.config.profiles import Profile
from edge.errors import ProfileError

OLD = ["8.6.1", "10.0.1", "10.3.0", "10.7.0", "10.13.3.9", "10.16.1.11"]
NEW = ["11.4.0.106", "rtx"]
Bind = Callable[..., Caps]
Tiny = Callable[..., Profile]


@pytest.mark.parametrize(
    ("versions", "build", "expected", "why"),
    [
        pytest.param(OLD, {}, "implicit", "reads the calibration table itself", id="GPU, 8.6 to 10"),
        pytest.param(OLD, {"dla_core": 0}, "implicit", "a DLA needs a calibration table for INT8", id="DLA"),
        pytest.param(NEW, {}, "explicit", "has no calibrators", id="11 and RTX"),
    ],
)
def test_auto(versions: list[str], build: dict[str, Any], expected: str, why: str, binding: Bind, tiny: Tiny) -> None:
    for version in versions:
        found = int8_route.decide(tiny(build=build), "int8", binding(version))
        assert found.route == expected
        assert why in found.why


def test_dla_on_11(binding: Bind, tiny: Tiny) -> None:
    assert int8_route.decide(tiny(build={"dla_core": 0}), "int8", binding("11.4.0.106")).route == "explicit"


@pytest.mark.parametrize("version", ["10.3.0", "rtx"])
def test_the_profile_decides(version: str, binding: Bind, tiny: Tiny) -> None:
    found = int8_route.decide(tiny(int8_route="explicit"), "int8", binding(version))
    assert (found.route, found.why) == ("explicit", "the profile says int8_route: explicit")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_floats_have_no_route(precision: Any, version: str, binding: Bind, tiny: Tiny) -> None:
    found = int8_route.decide(tiny(int8_route="implicit"), precision, binding(version))
    assert found.route is None
    assert precision in found.why


@pytest.mark.parametrize(
    ("version", "profile", "precision", "words"),
    [
        pytest.param("11.4.0.106", {"int8_route": "implicit"}, "int8", "11.4.0.106 has no calibrators", id="11"),
        pytest.param("rtx", {"int8_route": "implicit"}, "int8", "RTX 1.7.1.116 has no calibrators", id="RTX"),
        pytest.param(
            "10.3.0",
            {"int8_route": "explicit", "build": {"dla_core": 0}},
            "int8",
            "does not support Q/DQ",
            id="Q/DQ on DLA",
        ),
        pytest.param("rtx", {"build": {"dla_core": 0}}, "int8", "RTX 1.7.1.116 has no DLA", id="DLA on RTX"),
        pytest.param("10.3.0", {"build": {"dla_core": 0}}, "fp32", "fp16 and int8, not fp32", id="FP32 on DLA"),
    ],
)
def test_what_does_not_exist(
    version: str, profile: dict[str, Any], precision: Any, words: str, binding: Bind, tiny: Tiny
) -> None:
    with pytest.raises(ProfileError, match=words) as caught:
        int8_route.decide(tiny(**profile), precision, binding(version))
    assert caught.value.where == "tiny"
    assert caught.value.exit_code == 3

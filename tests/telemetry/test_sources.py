"""A source is registered in one place, and known everywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.config import profiles
from edge.diagnostics import doctor
from edge.errors import ProfileError, UsageError
from edge.telemetry import sources
from edge.telemetry.sources import (
    SOURCES,
    Clock,
    NoSource,
    Reading,
    Unavailable,
    check_name,
    probe,
    source_names,
    telemetry_source,
)


class Meter:
    """A source as a contributor would write it."""

    name = "bench-meter"
    scope = "system_input"

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def read(self) -> Reading:
        return Reading(t_s=self._clock(), power_mw=4200.0)

    def close(self) -> None:
        pass


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """``registered(is_probed=True)`` registers the meter as the recipe says, for the length of a test."""
    before = dict(SOURCES)

    def register(**options: Any) -> None:
        @telemetry_source("bench-meter", **options)
        def _open(root: Path, clock: Clock) -> Any:
            found = (root / "dev/meter").exists()
            return Meter(clock) if found else Unavailable("bench-meter", "no /dev/meter")

    yield register
    SOURCES.clear()
    SOURCES.update(before)


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """The root of a machine with a meter and no other sensor."""
    (tmp_path / "root/dev").mkdir(parents=True)
    (tmp_path / "root/dev/meter").write_text("")
    return tmp_path / "root"


def test_a_new_source_is_known_to_a_profile(
    registered: Callable[..., None], tiny_profile: Callable[..., Path], tmp_path: Path
) -> None:
    registered()
    chosen = profiles.read_profile(tiny_profile(tmp_path, telemetry={"source": "bench-meter"}))
    check_name(chosen.telemetry.source, key="telemetry.source")
    assert "bench-meter" in source_names()


def test_a_new_source_is_probed_by_auto_where_it_says_so(registered: Callable[..., None], machine: Path) -> None:
    registered()
    assert isinstance(probe(machine), NoSource)
    registered(is_probed=True)
    found = probe(machine, clock=lambda: 1.0)
    assert not isinstance(found, NoSource)
    assert found.read() == Reading(t_s=1.0, power_mw=4200.0)


@pytest.mark.parametrize("is_probed", [True, False])
def test_doctor_reports_a_new_source(registered: Callable[..., None], machine: Path, is_probed: bool) -> None:
    registered(is_probed=is_probed)
    report = doctor.examine(machine, [])
    finding = next(finding for finding in report.findings if (finding.group, finding.name) == ("power", "bench-meter"))
    assert "works, scope system_input" in finding.text
    assert ("only when named explicitly" in finding.text) != is_probed


def test_the_help_lists_every_source(capsys: pytest.CaptureFixture[str]) -> None:
    from edge.cli.options import Power

    (option,) = Power.__metadata__  # type: ignore[attr-defined]
    assert all(name in option.help for name in sources.source_names())


def test_a_source_that_is_not_there() -> None:
    with pytest.raises(UsageError) as usage:
        check_name("hwmom")
    assert usage.value.what == "there is no power source 'hwmom' (did you mean 'hwmon'?)"
    with pytest.raises(ProfileError, match=r"telemetry\.source: there is no power source 'watts'"):
        check_name("watts", key="telemetry.source")

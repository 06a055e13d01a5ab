"""Recorded telemetry as a source: every form, every kind of damage, and the way through the sampler."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from edge.artifacts import run_record
from edge.errors import ArtifactError, UsageError
from edge.telemetry.energy import Window
from edge.telemetry.sampler import Sampler
from edge.telemetry.sources import NoSource, Reading, Scope, check_name, probe
from edge.telemetry.telemetry_replay import Log, Replay, load, parse_spec
from tests.support.boards import ManualClock
from tests.support.run_records import made

LINE = "{stamp}RAM 3000/7620MB (lfb 8x4MB) CPU [10%@1510] GR3D_FREQ 55% cpu@50C VDD_IN {mw}mW/{mw}mW VDD_SOC 2100mW/1mW"
HEAD = b'{"edge_telemetry": 1, "source": "x", "scope": "card", "started_utc": ""}\n'


class Ramp:
    """A source whose power grows by a watt a second."""

    name = "hwmon"
    scope: Scope = "module_input"

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock

    def read(self) -> Reading:
        now = self._clock()
        return Reading(t_s=now, power_mw=1000.0 * (now - 99.0), temps_c={"cpu": 40.0 + now - 100})

    def close(self) -> None:
        pass


def logged(path: Path, *, seconds: int = 20) -> Path:
    """Write a log of ten readings a second."""
    clock = ManualClock()
    source = Ramp(clock)
    with Log(path, source) as log:
        sampler = Sampler(source, clock=clock, keep=log.keep)
        for _ in range(seconds * 10 + 1):
            sampler.sample()
            clock.now += 0.1
    return path


def play(path: Path, *, seconds: float, speed: float = 1.0) -> Sampler:
    """Sample a recording for some time of a clock of its own."""
    clock = ManualClock()
    clock.now = 5000.0
    sampler = Sampler(Replay(load(path), path=path, speed=speed, clock=clock), clock=clock)
    while clock.now < 5000.0 + seconds:
        sampler.sample()
        clock.now += 0.05
    return sampler


def test_a_log_gives_the_same_energy_again(tmp_path: Path) -> None:
    recording = load(logged(tmp_path / "t.jsonl"))
    assert (recording.source, recording.scope, len(recording.readings)) == ("hwmon", "module_input", 201)
    energy = play(tmp_path / "t.jsonl", seconds=20.0).energy(Window(5000.0, 5020.0))
    assert energy.joules == pytest.approx(20 * 11.0, rel=1e-3)
    assert (energy.source, energy.scope) == ("hwmon", "module_input")
    assert energy.samples == pytest.approx(201, abs=2)


def test_at_ten_times_the_speed_the_powers_are_the_same(tmp_path: Path) -> None:
    logged(tmp_path / "t.jsonl")
    energy = play(tmp_path / "t.jsonl", seconds=2.0, speed=10.0).energy(Window(5000.0, 5002.0))
    assert energy.mean_mw == pytest.approx(11_000, rel=0.03)


def test_after_the_end_there_is_no_power(tmp_path: Path) -> None:
    sampler = play(logged(tmp_path / "t.jsonl", seconds=3), seconds=10.0)
    assert sampler.latest is not None
    assert sampler.latest.power_mw is None
    assert sampler.latest.warnings == ("the recording has ended",)
    refused = sampler.energy(Window(5000.0, 5010.0))
    assert "no power was read" in str(refused.refusal)


def test_a_log_of_a_killed_process_is_read_up_to_its_last_whole_line(tmp_path: Path) -> None:
    path = logged(tmp_path / "t.jsonl")
    path.write_bytes(path.read_bytes()[:-25])
    assert len(load(path).readings) == 200


def test_a_log_rotates_by_size_and_each_file_can_be_replayed(tmp_path: Path) -> None:
    clock = ManualClock()
    source = Ramp(clock)
    with Log(tmp_path / "t.jsonl", source, limit=2000, files=3) as log:
        for _ in range(600):
            log.keep(source.read())
            clock.now += 0.1
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found == ["t.1.jsonl", "t.2.jsonl", "t.jsonl"]
    assert all(load(tmp_path / name).readings for name in found)
    assert all((tmp_path / name).stat().st_size <= 2000 for name in found)


def test_a_disk_that_refuses_ends_the_log_and_not_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    clock = ManualClock()
    source = Ramp(clock)
    with Log(tmp_path / "file" / "t.jsonl", source) as log:
        for _ in range(50):
            log.keep(source.read())
            clock.now += 0.1
    assert log.problem is not None
    assert "cannot write" in log.problem


def test_a_log_of_tegrastats(tmp_path: Path) -> None:
    lines = [LINE.format(stamp=f"11-12-2025 08:09:{10 + i // 2:02d} ", mw=4000 + 100 * i) for i in range(20)]
    path = tmp_path / "tegrastats.log"
    path.write_text("\n".join(["Tue Nov 11 08:09:09 UTC 2025", *lines[:5], "garbage", *lines[5:], "RAM 1/2MB (lf"]))
    recording = load(path)
    assert (recording.source, recording.scope, len(recording.readings)) == ("tegrastats", "module_input", 20)
    assert recording.readings[1].power_mw == 4100
    assert recording.readings[1].loads_percent["gpu"] == 55
    # Two lines in each second: half a second apart, though the stamps are whole seconds.
    assert recording.readings[-1].t_s == pytest.approx(9.0)
    assert recording.readings[1].t_s == pytest.approx(9.0 / 19)


@pytest.mark.parametrize(
    "stamps",
    [
        pytest.param(["11-12-2025 08:09:10 ", "11-12-2025 07:09:11 ", "11-12-2025 07:09:12 "], id="back-an-hour"),
        pytest.param(["11-12-2025 08:09:10 ", "11-15-2025 08:09:11 ", "11-15-2025 08:09:12 "], id="forward-days"),
        pytest.param(["", "", ""], id="none-jetpack-4"),
        pytest.param(["99-99-2025 25:61:61 ", "11-12-2025 08:09:11 ", "11-12-2025 08:09:12 "], id="no-date"),
    ],
)
def test_a_clock_that_jumped_is_not_believed(tmp_path: Path, stamps: list[str]) -> None:
    path = tmp_path / "tegrastats.log"
    path.write_text("".join(LINE.format(stamp=stamp, mw=4000 + i) + "\n" for i, stamp in enumerate(stamps)))
    assert [reading.t_s for reading in load(path).readings] == [0.0, 1.0, 2.0]


def test_a_run_record(tmp_path: Path) -> None:
    ticks = [
        run_record.Tick(
            t_s=float(i), frames=10, dropped=0, total_p50_ms=1.0, total_max_ms=2.0, age_p50_ms=None, age_max_ms=None,
            power_mw=5000.0 + i, temps_c={"cpu": 50.0},
        )
        for i in range(1, 6)
    ]  # fmt: skip
    path = tmp_path / "run.json"
    run_record.save(
        path, made(timeline=ticks, power={"source": "hwmon", "scope": "module_sum"}, power_unavailable=None)
    )
    recording = load(path)
    assert (recording.source, recording.scope) == ("hwmon", "module_sum")
    assert [(r.t_s, r.power_mw) for r in recording.readings] == [(float(i), 5001.0 + i) for i in range(5)]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(b"", "neither a telemetry log", id="empty"),
        pytest.param(b"\xff\xfe\x00garbage", "neither a telemetry log", id="binary"),
        pytest.param(b"RAM 1/2MB GPU@50C\n", "no power rails", id="no-rails"),
        pytest.param(b"{", "not a run record", id="half-a-brace"),
        pytest.param(HEAD.replace(b"1", b"9"), "format 9", id="newer"),
        pytest.param(HEAD.replace(b"card", b"house"), "house", id="scope"),
        pytest.param(HEAD + b'{"t_s": 1.0}\n', "has a power", id="no-power"),
        pytest.param(HEAD, "has a power", id="no-reading"),
        pytest.param(HEAD + b'hello\n{"t_s": 1.0}\n', "not a telemetry log", id="damaged"),
    ],
)
def test_what_is_no_recording_says_so(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "r"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=words):
        load(path)


def test_a_recording_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot read the recording"):
        probe(prefer=f"replay:{tmp_path / 'nothing.jsonl'}")


def test_a_run_without_power_cannot_be_replayed(tmp_path: Path) -> None:
    run_record.save(tmp_path / "run.json", made(power=None, power_unavailable="no sensor"))
    with pytest.raises(ArtifactError, match="measured no power: no sensor"):
        load(tmp_path / "run.json")


def test_times_that_go_back_in_a_log_are_the_same_reading_again(tmp_path: Path) -> None:
    path = logged(tmp_path / "t.jsonl", seconds=2)
    again = msgspec.json.encode(Reading(t_s=100.5, power_mw=9e9)) + b"\n"
    path.write_bytes(path.read_bytes() + again)
    assert load(path).readings[-1].power_mw == pytest.approx(3000)


def test_the_name_of_a_recording() -> None:
    assert parse_spec("replay:a:b.jsonl") == (Path("a:b.jsonl"), 1.0)
    assert parse_spec("replay@12.5:x") == (Path("x"), 12.5)


@pytest.mark.parametrize("spec", ["replay", "replay:", "replay@0:x", "replay@fast:x", "replay@-1:x", "replay@1e9:x"])
def test_a_wrong_name_of_a_recording(spec: str) -> None:
    with pytest.raises(UsageError, match="does not name a recording"):
        check_name(spec)


def test_a_source_of_another_name_lists_those_that_there_are() -> None:
    with pytest.raises(UsageError, match="no power source 'hwmin'") as caught:
        check_name("hwmin")
    assert "hwmon, tegrastats" in str(caught.value.hint)


def test_none_is_a_source_that_says_that_nobody_asked() -> None:
    nothing = probe(prefer="none")
    assert isinstance(nothing, NoSource)
    assert str(nothing) == "none: not requested"


def test_a_replay_says_that_it_is_one(tmp_path: Path) -> None:
    path = logged(tmp_path / "t.jsonl")
    source = probe(prefer=f"replay:{path}")
    assert isinstance(source, Replay)
    assert source.replayed == str(path)
    source.close()

"""The parser on every dialect, and the source with a script in tegrastats' place."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.telemetry.sources import Unavailable, probe
from edge.telemetry.tegrastats import Tegrastats, parse

SAMPLES = Path(__file__).resolve().parents[3] / "shared/reference/tegrastats"

NANO = (
    "RAM 1500/3964MB (lfb 3x2MB) SWAP 0/1982MB (cached 0MB) IRAM 0/252kB(lfb 252kB) CPU [10%@1224,20%@1224,off,30%@921]"
    " EMC_FREQ 4%@1600 GR3D_FREQ 12%@153 APE 25 PLL@36C CPU@39.5C PMIC@50C GPU@38C POM_5V_IN 2100/2050 POM_5V_GPU 80/75"
)
XAVIER = (
    "RAM 2000/15692MB (lfb 9x4MB) CPU [1%@1190,3%@1190,off,off] EMC_FREQ 0% GR3D_FREQ 7% GPU@33C PMIC@100C"
    " thermal@33.1C GPU 100/90 CPU 210/200 SOC 800/790 CV 10/10 VDDRQ 140/140 SYS5V 1900/1890"
)
AGX_JP5 = (
    "03-02-2025 11:12:13 RAM 4000/62801MB (lfb 10x4MB) SWAP 0/31400MB (cached 0MB) CPU [2%@729,4%@729]"
    " EMC_FREQ 0%@2133 GR3D_FREQ 30%@0 GR3D2_FREQ 0%@0 VIC_FREQ 729 APE 174 CV0@-256C CPU@42.5C GPU@-256C tj@42.5C"
    " VDD_GPU_SOC 2300mW/2310mW VDD_CPU_CV 390mW/395mW VIN_SYS_5V0 4000mW/4010mW NC 0mW/0mW"
    " VDDQ_VDD2_1V8AO 300mW/301mW NC 0mW/0mW"
)
ORIN_NANO = (
    "11-12-2025 08:09:10 RAM 3000/7620MB (lfb 8x4MB) CPU [10%@1510,20%@1510] EMC_FREQ 20%@2133 GR3D_FREQ 55%@[624]"
    " NVDEC off NVJPG off VIC off OFA off APE 200 cpu@50.5C soc2@49C gpu@51.25C tj@51.25C"
    " VDD_IN 9000mW/8800mW VDD_CPU_GPU_CV 3100mW/3000mW VDD_SOC 2100mW/2050mW"
)
ORIN_NANO_USER = (
    "11-12-2025 08:09:10 RAM 3000/7620MB (lfb 8x4MB) CPU [10%@1510,20%@1510] GR3D_FREQ 55%"
    " cpu@50.5C VDD_IN 9000mW/8800mW VDD_CPU_GPU_CV 3100mW/3000mW VDD_SOC 2100mW/2050mW "
)
AGX_JP72 = (
    "06-07-2026 01:02:03 RAM 9000/62878MB (lfb 7x4MB) CPU [78%@1728,off] EMC_FREQ 2%@2133 GR3D_FREQ 11%@[1300,1200]"
    " NVENC0 off cpu@50.5C/52C gpu@47C/48C VDD_GPU_SOC 2200mW/2250mW/2300mW VDD_CPU_CV 2600mW/2600mW/2700mW"
    " VIN_SYS_5V0 4700mW/4700mW/4800mW"
)
THOR = (
    "05-06-2026 05:06:07 RAM 9000/125772MB (lfb 34x4MB) CPU [0%@972,8%@972] EMC_FREQ 0%@2750 GR3D_FREQ @[314,315,314]"
    " NVENC0_FREQ @314 VIC off OFA_FREQ @315 APE 300 cpu@37.25C tj@38.75C VDD_GPU 1900mW/950mW"
    " VDD_CPU_SOC_MSS 5800mW/2900mW VIN_SYS_5V0 5600mW/2800mW VIN 19700mW/9850mW"
)


@pytest.mark.parametrize(
    ("line", "power_mw", "loads", "gpu_mhz"),
    [
        pytest.param(NANO, 2100, {"cpu": 20.0, "emc": 4.0, "gpu": 12.0}, 153, id="nano-jp4"),
        pytest.param(XAVIER, 3160, {"cpu": 2.0, "emc": 0.0, "gpu": 7.0}, None, id="agx-xavier-jp4"),
        pytest.param(AGX_JP5, 6690, {"cpu": 3.0, "emc": 0.0, "gpu": 30.0}, 0, id="agx-orin-jp5"),
        pytest.param(ORIN_NANO, 9000, {"cpu": 15.0, "emc": 20.0, "gpu": 55.0}, 624, id="orin-nano-jp6"),
        pytest.param(ORIN_NANO_USER, 9000, {"cpu": 15.0, "gpu": 55.0}, None, id="orin-nano-jp6-user"),
        pytest.param(AGX_JP72, 9500, {"cpu": 78.0, "emc": 2.0, "gpu": 11.0}, 1300, id="agx-orin-jp7.2-peaks"),
        pytest.param(THOR, 19700, {"cpu": 4.0, "emc": 0.0}, 315, id="thor-no-gpu-percent"),
    ],
)
def test_dialects(line: str, power_mw: float, loads: dict[str, float], gpu_mhz: float | None) -> None:
    reading = parse(line, t_s=7.0)
    assert reading is not None
    assert reading.t_s == 7.0
    assert reading.power_mw == power_mw
    assert reading.loads_percent == loads
    assert reading.clocks_mhz.get("gpu") == gpu_mhz
    assert "NC" not in reading.rails_mw
    assert reading.warnings == ()


def test_engines_in_all_their_forms() -> None:
    reading = parse(
        "RAM 1/2MB (lfb 1x1MB) NVENC 79%@166 NVDEC0 off NVJPG1 off VIC 36%@115 OFA_FREQ @315 VIC_FREQ 729"
        " NVDLA0 12%@1600 PVA0_FREQ off MSENC 192 APE 174 MTS fg 1% bg 9% VDD_IN 9000mW/1mW"
    )
    assert reading is not None
    assert reading.loads_percent == {"nvenc": 79, "vic": 36, "nvdla0": 12}
    assert reading.clocks_mhz == {"nvenc": 166, "vic": 729, "ofa": 315, "nvdla0": 1600, "msenc": 192}


def test_two_graphics_clusters_give_the_busier_one() -> None:
    reading = parse("RAM 1/2MB (lfb 1x1MB) GR3D_FREQ 20%@306 GR3D2_FREQ 90%@1300")
    assert reading is not None
    assert (reading.loads_percent, reading.clocks_mhz) == ({"gpu": 90}, {"gpu": 1300})


def test_the_first_line_of_a_thor_has_a_mean_of_half_and_is_read_right() -> None:
    reading = parse("RAM 1/2MB (lfb 1x1MB) VDD_GPU 30000mW/15000mW VIN 87426mW/43713mW/87426mW")
    assert reading is not None
    assert reading.power_mw == 87_426


def test_temperatures_leave_out_what_is_off_or_constant() -> None:
    reading = parse(AGX_JP5)
    assert reading is not None
    assert reading.temps_c == {"cpu": 42.5, "tj": 42.5}
    nano = parse(NANO)
    assert nano is not None
    assert nano.temps_c == {"pll": 36.0, "cpu": 39.5, "gpu": 38.0}


def test_clocks_of_cores_keep_their_number_when_one_is_off() -> None:
    reading = parse(NANO)
    assert reading is not None
    assert reading.clocks_mhz == {"cpu0": 1224, "cpu1": 1224, "cpu3": 921, "emc": 1600, "gpu": 153}


def test_a_rail_above_the_input_is_a_warning() -> None:
    reading = parse("RAM 1/2MB (lfb 1x1MB) POM_5V_GPU 8949/8000 POM_5V_IN 3227/3000")
    assert reading is not None
    assert reading.power_mw == 3227
    assert "POM_5V_GPU is above POM_5V_IN" in reading.warnings[0]


def test_lines_without_rails_have_no_power_and_no_zero() -> None:
    reading = parse("RAM 6774/7773MB (lfb 159x4MB) CPU [100%@1420] EMC_FREQ 0% GR3D_FREQ 99% GPU@57C")
    assert reading is not None
    assert reading.power_mw is None
    assert reading.rails_mw == {}
    assert reading.temps_c == {"gpu": 57.0}


@pytest.mark.parametrize(
    "line",
    ["", "\n", "Tue Jul  7 10:00:00 UTC 2026", "ssor 3/4 VDD_IN 100/100", "RAM", "RAM 1/", "NVPM WARN: reboot"],
    ids=repr,
)
def test_other_lines_are_none(line: str) -> None:
    assert parse(line) is None


@given(st.text())
def test_no_text_makes_the_parser_raise(text: str) -> None:
    parse(text)
    parse(f"RAM 1/2MB {text}")


@given(st.sampled_from([NANO, XAVIER, AGX_JP5, ORIN_NANO, AGX_JP72, THOR]), st.data())
def test_no_damage_to_a_line_makes_the_parser_raise(line: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(line)))
    length = data.draw(st.integers(0, 40))
    patch = data.draw(st.text(alphabet="0123456789%@[],/mWC-. NVDR_", max_size=30) | st.text(max_size=8))
    reading = parse(line[:at] + patch + line[at + length :])
    if reading is not None:
        values = [*reading.rails_mw.values(), *reading.loads_percent.values(), *reading.clocks_mhz.values()]
        assert all(0 <= value < 1e9 for value in values)
        assert all(-100 < temp_c < 200 for temp_c in reading.temps_c.values())


@pytest.mark.parametrize("name", sorted(p.name for p in SAMPLES.glob("*.txt")) or ["(none here)"])
def test_real_lines(name: str) -> None:
    if not (SAMPLES / name).is_file():
        pytest.skip("the collection of real lines is not here")
    for line in (SAMPLES / name).read_text().splitlines():
        reading = parse(line)
        assert reading is not None, line
        assert reading.temps_c
        assert "cpu" in reading.loads_percent
        assert (reading.power_mw is None) == ("norails" in name), line
        assert reading.power_mw is None or 500 < reading.power_mw < 130_000


# The source


def install(root: Path, body: str) -> Path:
    """A shell script as /usr/bin/tegrastats under ``root``; it notes its process id."""
    binary = root / "usr/bin/tegrastats"
    binary.parent.mkdir(parents=True)
    binary.write_text(f'#!/bin/sh\necho $$ >> "{root}/pids"\n{body}\n')
    binary.chmod(0o755)
    return root


@contextmanager
def running(root: Path, **options: float) -> Iterator[Tegrastats]:
    source = Tegrastats.open(root, **options)  # type: ignore[arg-type]
    assert isinstance(source, Tegrastats), source
    try:
        yield source
    finally:
        source.close()


def pids(root: Path) -> list[int]:
    return [int(word) for word in (root / "pids").read_text().split()]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(condition: object, timeout_s: float = 60.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


FOREVER = f"while true; do echo '{ORIN_NANO}'; sleep 0.02; done"


def test_reads_its_child_and_ends_it(tmp_path: Path) -> None:
    root = install(tmp_path, f'echo "$@ $LC_ALL" > {tmp_path}/called\n{FOREVER}')
    with running(root, interval_ms=20) as source:
        assert (source.name, source.scope) == ("tegrastats", "module_input")
        first = source.read()
        assert first.power_mw == 9000
        assert abs(first.t_s - time.monotonic()) < 30
        wait_until(lambda: source.read().t_s > first.t_s)
    assert (tmp_path / "called").read_text() == "--interval 20 C\n"
    assert [is_alive(pid) for pid in pids(root)] == [False]
    source.close()  # twice is harmless


def test_a_child_that_dies_is_started_again(tmp_path: Path) -> None:
    root = install(tmp_path, f"echo '{ORIN_NANO}'; exit 3")
    with running(root) as source:
        first = source.read()
        wait_until(lambda: source.read().t_s > first.t_s)
    assert len(pids(root)) >= 2
    assert not any(is_alive(pid) for pid in pids(root))


def test_a_child_that_hangs_is_not_taken_for_a_measurement(tmp_path: Path) -> None:
    root = install(tmp_path, f"echo '{ORIN_NANO}'; exec sleep 60")
    now = [0.0]
    source = Tegrastats.open(root, clock=lambda: now[0], interval_ms=100)
    assert isinstance(source, Tegrastats)
    try:
        assert source.read().power_mw == 9000
        now[0] = 30.0
        stale = source.read()
        assert stale.power_mw is None
        assert stale.t_s == 30.0
        assert stale.warnings == ("tegrastats printed nothing for more than 2 s",)
        # It is ended, and the one that comes after it measures again.
        wait_until(lambda: source.read().power_mw == 9000)
        assert len(pids(root)) == 2
        assert not is_alive(pids(root)[0])
    finally:
        source.close()


def test_garbage_between_lines_is_skipped(tmp_path: Path) -> None:
    noise = "printf 'date\\n\\377\\376 RAM\\n\\n'"
    with running(install(tmp_path, f"while true; do {noise}; echo '{THOR}'; sleep 0.02; done")) as source:
        assert source.scope == "system_input"
        assert source.read().power_mw == 19700


def test_half_a_line_of_a_dying_child_is_no_reading(tmp_path: Path) -> None:
    body = f"echo '{ORIN_NANO}'; printf '%s' 'RAM 3000/7620MB (lfb 8x4MB) VDD_IN 90'; sleep 0.05; exit 1"
    with running(install(tmp_path, body)) as source:
        wait_until(lambda: len(pids(tmp_path)) >= 3)
        assert source.read().power_mw == 9000


def test_one_endless_line_is_no_reading_and_no_memory(tmp_path: Path) -> None:
    body = f"echo '{ORIN_NANO}'; printf 'RAM 1/2MB '; while :; do printf 'VDD_IN 5/5 %01000d' 0; done"
    with running(install(tmp_path, body)) as source:
        time.sleep(0.3)
        assert source.read().power_mw == 9000


def test_the_scope_stays_when_a_rail_goes(tmp_path: Path) -> None:
    without = THOR.replace(" VIN 19700mW/9850mW", "")
    body = f"echo '{THOR}'; while true; do sleep 0.02; echo '{without}'; done"
    with running(install(tmp_path, body)) as source:
        wait_until(lambda: source.read().power_mw is None)
        assert source.scope == "system_input"


@pytest.mark.parametrize(
    ("body", "reason", "hint"),
    [
        pytest.param(
            "while true; do echo 'RAM 1/2MB GPU@50C'; sleep 0.02; done", "no power rails", "root", id="no-rails"
        ),
        pytest.param("echo 'RAM 1/2MB X_RAIL 5/5'; exec sleep 60", "known boards: X_RAIL", None, id="unknown-rails"),
        pytest.param("exec sleep 60", "no readable line in 0.5 s", None, id="silent"),
        pytest.param("exit 7", "ended with status 7", None, id="dies"),
    ],
)
def test_why_it_cannot_be_used(tmp_path: Path, body: str, reason: str, hint: str | None) -> None:
    patience_s = 0.5 if "0.5 s" in reason else 3.0
    source = Tegrastats.open(install(tmp_path, body), first_line_timeout_s=patience_s)
    assert isinstance(source, Unavailable)
    assert reason in source.reason
    assert (source.hint is None) == (hint is None)
    assert not any(is_alive(pid) for pid in pids(tmp_path))


def test_a_file_that_is_no_program(tmp_path: Path) -> None:
    install(tmp_path, "").joinpath("usr/bin/tegrastats").chmod(0o644)
    source = Tegrastats.open(tmp_path, first_line_timeout_s=0.5)
    assert isinstance(source, Unavailable)
    assert "cannot be started" in source.reason


def test_probe_falls_back_to_it(tmp_path: Path) -> None:
    source = probe(install(tmp_path, FOREVER))
    try:
        assert getattr(source, "name", None) == "tegrastats"
    finally:
        source.close()  # type: ignore[union-attr]

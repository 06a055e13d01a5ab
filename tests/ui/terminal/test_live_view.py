from __future__ import annotations

import io
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.console import Console

from edge.artifacts.run_record import FrameResult, Gap, Guess, Skip, Stages, Tick
from edge.runtime.run_statistics import RunSnapshot
from edge.telemetry.sources import Reading
from edge.ui.terminal import live_view
from edge.ui.terminal.terminal import Glyphs

OPEN = Gap(start_s=1.0, end_s=None, reason="no frame for 5 s", hint="sudo systemctl restart nvargus-daemon", attempts=2)


def now(**changes: Any) -> RunSnapshot:
    guesses = [Guess(i, f"label_{i}", share) for i, share in enumerate((0.7, 0.2, 0.05, 0.03, 0.02))]
    stages = Stages(decode_ms=1.0, preprocess_ms=1.0, infer_ms=5.0, postprocess_ms=1.0, total_ms=8.0, age_ms=40.0)
    history = tuple(
        Tick(t_s=float(i), frames=30, dropped=0, total_p50_ms=8.0 + i % 5, total_max_ms=20.0, age_p50_ms=None,
             age_max_ms=None, power_mw=7000.0 + 100 * i)
        for i in range(40)
    )  # fmt: skip
    content: dict[str, Any] = {
        "t_s": 3725.0, "pictures": 1200, "total": None, "skipped": 0, "last_skip": None, "dropped": 12, "gaps": (),
        "gaps_count": 0, "gap": None, "gap_s": 0.0, "rate_per_s": 30.02,
        "recent_ms": tuple(float(i) for i in range(1, 101)), "recent_age_ms": (40.0, 41.0), "history": history,
        "result": FrameResult(seq=3, name="camera_0003", guesses=guesses, stages=stages, t_s=1.0),
        "reading": Reading(t_s=0.0, power_mw=7210.0, temps_c={"cpu": 48.2, "tj": 51.7}, loads_percent={"gpu": 78.0}),
    }  # fmt: skip
    return RunSnapshot(**(content | changes))


def shown(state: RunSnapshot, width: int = 100, height: int = 40, encoding: str = "utf-8") -> list[str]:
    """The rows of the view on a terminal of this size."""
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None,
                      legacy_windows=False)  # fmt: skip
    item = live_view.drawn(
        state, headline="orin · net · int8", power="module_input, by hwmon", width=width, height=height,
        glyphs=Glyphs(encoding),
    )  # fmt: skip
    with console.capture() as capture:
        console.print(item)
    return capture.get().rstrip("\n").split("\n")


def test_everything_is_there() -> None:
    text = "\n".join(shown(now()))
    for words in (
        "orin · net · int8", "camera_0003", "label 0", "70.0%", "label 4", "30.0 images/s", "1200 done", "12 dropped",
        "p50 50.0  p90 90.0  p99 99.0 ms, last 100", "age", "7.21 W", "module_input, by hwmon", "tj 52  cpu 48",
        "gpu 78", "1:02:05", "▆",
    ):  # fmt: skip
        assert words in text
    assert "throttle" not in text
    assert "gaps" not in text


@given(width=st.integers(1, 300), height=st.integers(1, 60))
@example(1, 1).via("smallest")
@example(29, 7).via("below the width of two columns")
@example(30, 6).via("at the width of two columns")
@example(99, 24).via("below the full width")
@example(100, 24).via("at the full width")
@settings(max_examples=25)
def test_it_fits_every_terminal(width: int, height: int) -> None:
    for state in (
        now(), now(gap=OPEN, gaps=(OPEN,), gaps_count=1, last_skip=Skip(1, "x" * 300, "y" * 300), skipped=7),
        now(result=None, history=(), recent_ms=(), reading=None, rate_per_s=None),
    ):  # fmt: skip
        rows = shown(state, width, height)
        assert len(rows) <= max(height - 1, 1)
        assert max(len(row) for row in rows) <= width


@pytest.mark.parametrize("height", range(6, 16))
def test_what_matters_most_stays_longest(height: int) -> None:
    reading = Reading(t_s=0.0, power_mw=7000.0, throttling=("cpu-throttle-alert",))
    text = "\n".join(shown(now(gap=OPEN, gaps=(OPEN,), gaps_count=1, reading=reading), height=height))
    assert "no frames: no frame for 5 s" in text
    assert "label 0" in text
    assert "cpu-throttle-alert" in text
    assert ("label 4" in text) is False


def test_the_smallest_terminal_has_one_line() -> None:
    assert shown(now(), 40, 4) == ["70% label 0 · 30/s · 7.2W"]
    assert shown(now(gap=OPEN), 40, 4) == ["NO FRAMES no frame for 5 s"]
    throttled = Reading(t_s=0.0, throttling=("gpu",))
    assert shown(now(reading=throttled), 40, 4) == ["THROTTLED · 70% label 0 · 30/s"]
    assert shown(now(result=None), 40, 4) == ["warming up"]


def test_a_terminal_without_blocks() -> None:
    text = "\n".join(shown(now(), encoding="latin-1"))
    assert text.isascii()
    assert "#" in text


def test_a_hostile_label_moves_no_cursor() -> None:
    stages = Stages(decode_ms=1.0, preprocess_ms=1.0, infer_ms=5.0, postprocess_ms=1.0, total_ms=8.0)
    nasty = "\x1b[2J\x1b]0;title\x07[bold]x[/bold]\r\n"
    hostile = now(
        result=FrameResult(seq=0, name=nasty, guesses=[Guess(0, nasty, 1.0)], stages=stages, t_s=0.0),
        gap=Gap(start_s=0.0, end_s=None, reason=nasty, hint=nasty), last_skip=Skip(0, nasty, nasty), skipped=1,
        reading=Reading(t_s=0.0, temps_c={nasty: 3.0}, loads_percent={nasty: 3.0}, throttling=(nasty,)),
    )  # fmt: skip
    for size in ((100, 40), (20, 3)):
        text = "\n".join(shown(hostile, *size))
        assert "\x1b" not in text
        assert "\r" not in text
        assert "\x07" not in text


@pytest.mark.parametrize("share", [float("nan"), float("inf"), -1.0, 0.0, 0.004, 0.5, 1.0, 7.0])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_bar_has_its_width(share: float, encoding: str) -> None:
    for width in (0, 1, 10):
        filled, empty = Glyphs(encoding).bar(share, width)
        assert len(filled) + len(empty) == width


def test_sparklines() -> None:
    draw = Glyphs("utf-8").sparkline
    assert draw([0.0, 1.0, None, float("nan"), 8.0], 9) == "▁▂  █"
    assert draw([1.0] * 5, 3) == "███"
    assert draw([], 9) == draw([0.0], 9) == draw([1.0], 0) == draw([None], 4) == ""

"""The page as a person has it: in headless Chromium, wide and on a phone, with and without a token."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from edge.artifacts.run_record import Gap, Guess, NotifyCounts
from tests.support.browser import Browser, browser, missing
from tests.support.run_records import made

pytestmark = [pytest.mark.slow, pytest.mark.skipif(missing() is not None, reason=str(missing()))]

Make = Callable[..., Any]
TOKEN = "a-token-of-this-test"
TEXT = "return document.body.innerText"
LABELLED = "return (document.getElementById('guesses') || {children: []}).children.length > 0"


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


def fed(run: Any, pictures: int = 12) -> None:
    """Twelve seconds of a run."""
    for seq in range(pictures):
        run.label(seq)
        run.clock.t_s += 1.0
    run.label(pictures)


def test_everything_is_on_the_page(window: Browser, running: Make) -> None:
    run = running()
    fed(run)
    window.looks_like(width=1180, height=900)
    window.open(f"http://127.0.0.1:{run.port}/")
    window.wait(LABELLED)
    run.label(13)
    window.wait("return document.getElementById('picture').naturalWidth > 0")
    text = window.run(TEXT)
    assert "orin · net · int8" in text
    for shown in ("giant panda", "7.00 W", "module_input", "52 °C", "Slowed down for heat or current"):
        assert shown in text
    for chart in ("latency", "power", "temps"):
        assert window.run(f"return document.getElementById('{chart}').querySelectorAll('path, polyline').length") > 0
    assert window.complaints() == []


def test_news_come_without_a_reload(window: Browser, running: Make) -> None:
    run = running()
    fed(run, 2)
    window.open(f"http://127.0.0.1:{run.port}/")
    window.wait(LABELLED)
    run.clock.t_s += 1.0
    run.hear(Gap(start_s=3.0, end_s=None, reason="no frame for 5 s", hint="see dmesg"))
    window.wait("return document.body.innerText.includes('no frame for 5 s')")
    assert "see dmesg" in window.run(TEXT)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_phone_needs_no_sideways_scrolling(window: Browser, running: Make, dark: bool) -> None:
    run = running()
    fed(run)
    window.looks_like(width=360, height=740, dark=dark, scale=2)
    window.open(f"http://127.0.0.1:{run.port}/")
    window.wait(LABELLED)
    assert window.run("return document.documentElement.scrollWidth") <= 360
    background = window.run("return getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(part) for part in background[background.index("(") + 1 : -1].split(",")[:3])
    assert (brightness < 384) == dark
    window.looks_like(width=1180, height=900)


def test_labels_are_text_and_never_markup(window: Browser, running: Make) -> None:
    import msgspec

    run = running()
    evil = Guess(0, "<img src=x onerror=document.title='owned'>", 0.9)
    result = run.label(0)
    run.hear(msgspec.structs.replace(result, name="<b>x</b>", guesses=[evil]))
    window.open(f"http://127.0.0.1:{run.port}/")
    window.wait("return document.getElementById('guesses').innerText.includes('onerror')")
    assert window.run("return document.title") != "owned"
    assert window.run("return document.querySelectorAll('#guesses img').length") == 0


def test_a_token_in_the_address_opens_the_page_and_leaves_it(window: Browser, running: Make) -> None:
    run = running(token=TOKEN)
    fed(run, 2)
    window.open(f"http://127.0.0.1:{run.port}/#token={TOKEN}")
    window.wait(LABELLED)
    assert TOKEN not in window.run("return location.href")
    assert window.run("return document.cookie") == ""


def test_a_wrong_token_is_said(window: Browser, running: Make) -> None:
    run = running(token=TOKEN)
    window.open(f"http://127.0.0.1:{run.port}/#token=not-that-token-at-all")
    window.wait("return document.getElementById('wrong') && !document.getElementById('wrong').hidden")
    assert "not the token" in window.run(TEXT)


def test_every_camera_the_newest_labels_and_the_targets_are_on_the_page(window: Browser, running: Make) -> None:
    import msgspec
    import numpy as np

    target = NotifyCounts(
        target="https://***@host/hook", sent=12, failed=1, retried=2, dropped=0, waiting=1, last_error="HTTP 503"
    )
    run = running(cameras=("front", "gate", "yard", "dock"), notify=(target,))
    for seq in range(4):
        for number, camera in enumerate(("front", "gate", "yard")):
            result = made(30).results[seq]
            label = Guess(number, f"label_{number}_{seq // 2}", 0.9)
            result = msgspec.structs.replace(result, camera=camera, guesses=[label], t_s=float(seq))
            run.hear(result)
            run.view.show(np.full((48, 64, 3), 60 * number, np.uint8), result)
        run.clock.t_s += 1.0
    run.hear(Gap(start_s=1.0, end_s=None, reason="no frame for 5 s", hint="ping it", camera="dock"))
    window.looks_like(width=1180, height=900)
    window.open(f"http://127.0.0.1:{run.port}/")
    window.wait("return document.querySelectorAll('#cameras figure').length === 4")
    for number, camera in enumerate(("front", "gate", "yard")):
        result = msgspec.structs.replace(made(30).results[9], camera=camera, t_s=9.0)
        run.hear(result)
        run.view.show(np.full((48, 64, 3), 60 * number, np.uint8), result)
    window.wait("return [...document.querySelectorAll('#cameras img')].filter((i) => i.naturalWidth > 0).length === 3")
    text = window.run(TEXT)
    for shown in (
        "front",
        "gate",
        "yard",
        "dock",
        "no frames: no frame for 5 s",
        "label 2 1 90 %",
        "12 sent",
        "HTTP 503",
    ):
        assert shown in text
    assert window.run("return document.querySelectorAll('#changes li').length") in range(6, 9)

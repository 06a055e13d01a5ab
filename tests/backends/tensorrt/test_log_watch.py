"""Progress in percent, log lines, and exceptions that C++ must not see."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest

from edge.backends.tensorrt import environment, log_watch
from edge.backends.tensorrt.environment import Caps
from edge.backends.tensorrt.log_watch import BuildWatch
from edge.events import Event, Progress


def percents(events: list[Event]) -> list[int]:
    return [event.done for event in events if isinstance(event, Progress)]


def test_nested_phases_add_up_and_never_go_back() -> None:
    events: list[Event] = []
    watch = BuildWatch(listen=events.append)
    watch.started("Building engine", None, 2)
    watch.started("Optimizing graph", "Building engine", 4)
    for step in range(4):
        assert watch.stepped("Optimizing graph", step)
    watch.finished("Optimizing graph")
    watch.stepped("Building engine", 0)
    watch.started("Timing", "Building engine", 2)
    watch.stepped("Timing", 0)
    watch.finished("Timing")
    watch.finished("Building engine")
    found = percents(events)
    assert found == sorted(set(found))
    assert (found[0], found[-1]) == (0, 100)
    assert {12, 25, 37, 50, 75} <= set(found)
    assert all(event.stage == "build engine" and event.total == 100 for event in events if isinstance(event, Progress))


def test_a_phase_that_begins_anew_does_not_set_the_progress_back() -> None:
    events: list[Event] = []
    watch = BuildWatch(listen=events.append)
    watch.started("Building engine", None, 4)
    for _ in range(2):
        watch.started("Timing", "Building engine", 2)
        watch.stepped("Timing", 0)
        watch.finished("Timing")
    assert percents(events) == [0, 12, 25]


def test_the_first_exception_is_the_cause() -> None:
    watch = BuildWatch()
    watch.keep(ValueError("the cause"))
    watch.keep(KeyboardInterrupt())
    with pytest.raises(ValueError, match="the cause"):
        watch.raise_kept()


@pytest.mark.parametrize(
    "calls",
    [
        pytest.param([("stepped", "never started", 3)], id="an unknown phase"),
        pytest.param([("started", "a", None, 0), ("stepped", "a", 5)], id="no steps at all"),
        pytest.param([("started", "a", "b", 2), ("started", "b", "a", 2), ("stepped", "a", 0)], id="each in the other"),
        pytest.param([("finished", "a")], id="ended and never begun"),
    ],
)
def test_strange_phases(calls: list[tuple[Any, ...]]) -> None:
    events: list[Event] = []
    watch = BuildWatch(listen=events.append)
    for name, *arguments in calls:
        getattr(watch, name)(*arguments)
    assert all(0 <= value <= 100 for value in percents(events))


def test_stopping() -> None:
    asked = iter([False, True, False])
    watch = BuildWatch(should_stop=lambda: next(asked))
    watch.started("a", None, 3)
    assert [watch.stepped("a", step) for step in range(3)] == [True, False, False]
    assert watch.stopped
    watch.finished("a")
    assert percents([]) == []


def test_lines_are_kept_by_rank_and_chatter_is_not() -> None:
    watch = BuildWatch()
    watch.reported("VERBOSE", "chatter")
    watch.reported("INFO", " a word \n")
    watch.reported("WARNING", "careful")
    watch.reported("INTERNAL_ERROR", "broken")
    assert [line.text for line in watch.errors] == ["broken"]
    assert [line.text for line in watch.warnings] == ["careful"]
    assert [line.text for line in watch.recent] == ["a word", "careful", "broken"]


@pytest.mark.parametrize("version", ["8.6.1", "10.3.0", "rtx"])
def test_one_logger_per_binding_speaks_to_whoever_watches(version: str, binding: Callable[..., Caps]) -> None:
    module = environment.binding_module(binding(version))
    first, second = BuildWatch(), BuildWatch()
    with log_watch.watching(module, first) as logger:
        logger.log(module.ILogger.ERROR, "one")
        with log_watch.watching(module, second) as same:
            assert same is logger
            same.log(module.ILogger.WARNING, "two")
        logger.log(module.ILogger.INFO, "three")
    logger.log(module.ILogger.ERROR, "nobody listens")
    assert [line.text for line in first.recent] == ["one", "three"]
    assert [line.text for line in second.recent] == ["two"]


def test_a_watch_inside_of_another_gives_its_thread_back(binding: Callable[..., Caps]) -> None:
    """A newer watch of another thread does not get what this thread logs."""
    module = environment.binding_module(binding("10.3.0"))
    mine, inner, other = BuildWatch(), BuildWatch(), BuildWatch()
    entered, leave = threading.Event(), threading.Event()

    def watch() -> None:
        with log_watch.watching(module, other):
            entered.set()
            leave.wait(5)

    thread = threading.Thread(target=watch)
    with log_watch.watching(module, mine) as logger:
        thread.start()
        assert entered.wait(5)
        with log_watch.watching(module, inner):
            pass
        logger.log(module.ILogger.WARNING, "mine")
    leave.set()
    thread.join()
    assert [[line.text for line in each.warnings] for each in (mine, inner, other)] == [["mine"], [], []]


class Stopped(BaseException):
    """Like the command line's: no Exception."""


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, Stopped])
@pytest.mark.parametrize("place", ["phase_start", "step_complete", "phase_finish", "log"])
def test_no_exception_leaves_a_callback(place: str, kind: type[BaseException], binding: Callable[..., Caps]) -> None:
    module = environment.binding_module(binding("10.3.0"))

    def broken(*_: Any) -> Any:
        raise kind("inside")

    watch = BuildWatch(listen=broken, should_stop=broken)
    made = log_watch.progress_monitor(module, watch)
    if place == "log":
        watch.reported = broken  # type: ignore[method-assign]
        with log_watch.watching(module, watch) as logger:
            logger.log(module.ILogger.INFO, "x")
    elif place == "step_complete":
        assert made.step_complete("a", 0) is False
    elif place == "phase_start":
        made.phase_start("a", None, 1)
    else:
        watch._phases["a"] = log_watch._Phase(None, 1)
        made.phase_finish("a")
    assert made.step_complete("a", 0) is False, "the build is cancelled at the next step"
    with pytest.raises(kind, match="inside"):
        watch.raise_kept()


def test_a_signal_in_the_middle_of_a_callback(binding: Callable[..., Caps]) -> None:
    module = environment.binding_module(binding("10.16.1.11"))

    def on_signal(_number: int, _frame: object) -> None:
        raise Stopped

    before = signal.signal(signal.SIGUSR1, on_signal)
    try:
        watch = BuildWatch(listen=lambda _event: signal.raise_signal(signal.SIGUSR1))
        made = log_watch.progress_monitor(module, watch)
        made.phase_start("a", None, 2)
        assert made.step_complete("a", 0) is False
        with pytest.raises(Stopped):
            watch.raise_kept()
    finally:
        signal.signal(signal.SIGUSR1, before)

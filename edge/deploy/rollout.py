"""Run one job on many devices: a limited number at once, canary devices first, each independent of the others."""

from __future__ import annotations

import contextlib
import resource
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, Generic, Literal, Protocol, TypeVar

import msgspec

from edge.errors import EdgeError
from edge.events import Event

Phase = Literal["begun", "ended"]
T = TypeVar("T")
_BY_USER = "stopped by the user"
# Pipes of one conversation, those of its start, and those of an rsync next to it.
_FILES_OF_ONE = 12
_FILES_OF_EDGE = 64
_MOST_FILES = 8192
_IDLE_S = 2.0


class CancellableSession(Protocol):
    """A session that can be ended from outside."""

    @property
    def idle_s(self) -> float:
        """Seconds without progress."""

    def kill(self) -> None:
        """End the session."""


class DeviceOutcome(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """Outcome of one device: a result, an error, or (with neither) not begun, or stopped by the user."""

    name: str
    result: T | None = None
    error: EdgeError | None = None
    reason: str | None = None


class RolloutPlan(msgspec.Struct, frozen=True, kw_only=True):
    """``first`` are the canary devices; after ``stop_after`` failures no further device is begun."""

    parallel: int = 8
    first: frozenset[str] = frozenset()
    stop_after: int | None = None


class DeviceTask(msgspec.Struct, Generic[T], frozen=True):
    """Work on one device. ``work`` gets a listener for its events, and ``hold`` to register its session."""

    name: str
    work: Callable[[Callable[[Event], None], Callable[[CancellableSession], None]], T]


Watch = Callable[[str, Event | Phase, DeviceOutcome[Any] | None], None]


def _unwatched(_name: str, _what: Event | Phase, _ended: DeviceOutcome[Any] | None) -> None:
    """Nobody looks."""


def roll_out(
    tasks: Sequence[DeviceTask[T]],
    plan: RolloutPlan,
    *,
    is_bad: Callable[[T], bool] = lambda _result: False,
    watch: Watch = _unwatched,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[DeviceOutcome[T]]:
    """Run all tasks and return their outcomes in the given order.

    Devices in ``plan.first`` go first; if one of them fails or has a bad result, no other device is begun. ``watch`` is
    called from the working threads. When ``should_stop`` returns True, sessions are ended: each device then has either
    the old or the new bundle.
    """
    runner = _Runner(plan, is_bad, watch, should_stop, most=possible_conversations())
    first = [task for task in tasks if task.name in plan.first]
    others = [task for task in tasks if task.name not in plan.first]
    if first:
        runner.run(first, limit=1, whose="a canary host failed")
    runner.run(others, limit=plan.stop_after, whose=f"{plan.stop_after} hosts failed")
    return [runner.ended[task.name] for task in tasks]


def possible_conversations() -> int:
    """Return the number of connections that the file descriptors allow, after raising their limit if possible."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    files = _MOST_FILES if soft == resource.RLIM_INFINITY else min(soft, _MOST_FILES)
    return max(1, (files - _FILES_OF_EDGE) // _FILES_OF_ONE)


class _Runner(Generic[T]):
    """Threads and their sessions."""

    def __init__(
        self,
        plan: RolloutPlan,
        is_bad: Callable[[T], bool],
        watch: Watch,
        should_stop: Callable[[], bool],
        *,
        most: int,
    ) -> None:
        self.ended: dict[str, DeviceOutcome[T]] = {}
        self._plan = plan
        self._most = most
        self._is_bad = is_bad
        self._watch = watch
        self._should_stop = should_stop
        self._lines: set[CancellableSession] = set()
        self._guard = threading.Lock()
        self._failed = 0
        self._why: str | None = None

    def run(self, tasks: Sequence[DeviceTask[T]], *, limit: int | None, whose: str) -> None:
        """Run these tasks unless stopped; ``limit`` failures stop them."""
        waiting = list(reversed(tasks))
        running: set[Future[None]] = set()
        with ThreadPoolExecutor(max_workers=max(1, min(self._most, len(tasks)))) as pool:
            try:
                while waiting or running:
                    self._look(limit, whose)
                    while waiting and self._why is None and len(running) < self._room():
                        running.add(pool.submit(self._one, waiting.pop()))
                    if self._why is not None:
                        self._skip(reversed(waiting))
                        waiting = []
                    done, running = wait(running, timeout=0.1, return_when=FIRST_COMPLETED)
                    for future in done:
                        future.result()  # a bug in edge keeps its traceback
            except BaseException:
                # The pool waits for its threads: they must have nothing to wait for.
                self.kill()
                raise
        self._look(limit, whose)

    def _room(self) -> int:
        """Return the number of devices that may be active now; a stalled one does not block the next."""
        with self._guard:
            idle = sum(line.idle_s > _IDLE_S for line in self._lines)
        return min(self._most, self._plan.parallel + idle)

    def kill(self) -> None:
        """End all sessions."""
        with self._guard:
            for line in self._lines:
                line.kill()

    def _look(self, limit: int | None, whose: str) -> None:
        if self._should_stop():
            self._why = _BY_USER
            self.kill()
        elif self._why is None and limit is not None and self._failed >= limit:
            self._why = f"not begun: {whose}"

    def _skip(self, tasks: Iterable[DeviceTask[T]]) -> None:
        for task in tasks:
            self._end(DeviceOutcome(name=task.name, reason=self._why))

    def _one(self, task: DeviceTask[T]) -> None:
        self._watch(task.name, "begun", None)
        held: list[CancellableSession] = []

        def hold(line: CancellableSession) -> None:
            held.append(line)
            with self._guard:
                self._lines.add(line)

        try:
            result = task.work(lambda event: self._watch(task.name, event, None), hold)
            bad = self._is_bad(result)
            ended = DeviceOutcome(name=task.name, result=result)
        except EdgeError as exc:
            bad = True
            # Ctrl-C at a terminal ends ssh as well, so this may be known here before the loop has looked.
            stopped = self._why == _BY_USER or self._should_stop()
            ended = DeviceOutcome(name=task.name, error=None if stopped else exc, reason=_BY_USER if stopped else None)
        with self._guard:
            self._lines.difference_update(held)
            self._failed += bad
        self._end(ended)

    def _end(self, ended: DeviceOutcome[T]) -> None:
        self.ended[ended.name] = ended
        self._watch(ended.name, "ended", ended)

"""Handle Ctrl-C and SIGTERM as exceptions, or as a request that a loop fulfils after the current frame."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

_ASKED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """A signal asked the process to end; like KeyboardInterrupt, it is not an Exception."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class StopRequest:
    """Call it to learn if a signal has asked the process to end."""

    def __init__(self) -> None:
        self.number: int | None = None

    def __call__(self) -> bool:
        """Return True if a signal has arrived."""
        return self.number is not None

    def grant(self) -> None:
        """End the process for the received signal, if any, after the current work is done."""
        if self.number is not None:
            raise Stopped(self.number)


def install() -> None:
    """Install the handlers: from now on, a signal raises Stopped in the running code."""
    for number in _ASKED:
        # The parent process may have asked to ignore one (nohup does): leave it so.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)


@contextmanager
def graceful() -> Iterator[StopRequest]:
    """Inside the block, record the first signal only; the second one raises Stopped."""
    request = StopRequest()

    def note(number: int, _frame: FrameType | None) -> None:
        if request.number is not None:
            raise Stopped(number)
        request.number = number

    before = {number: signal.getsignal(number) for number in _ASKED}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, note)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, _frame: FrameType | None) -> NoReturn:
    raise Stopped(number)

"""Send messages to the supervisor of a run (ready, alive, status, stopping) with systemd's sd_notify protocol.

systemd provides a service of ``Type=notify`` a Unix datagram socket in ``NOTIFY_SOCKET``; every message is one datagram
of ``KEY=value`` lines (sd_notify(3)). With ``WatchdogSec=`` it kills a service that has not sent ``WATCHDOG=1`` within
that time (``WATCHDOG_USEC``). Without these variables nothing is sent and no thread is started.

A run is alive if its pipeline makes progress: an image was labelled or skipped, or its source is being reopened. A live
thread alone is not enough, so a pipeline that hangs in a driver is killed and restarted.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import final

from edge.artifacts import FrameResult, Gap, Skip
from edge.errors import DeviceError

# How often it is looked whether the pipeline moved, as a share of the watchdog's time.
_LOOKS = 4
# Without a watchdog the status is still sent, this often.
_STATE_INTERVAL_S = 5.0
_SLOW_START_S = 20


class Notifier:
    """The supervisor's socket. Messages are sent or lost: a run never waits for its supervisor."""

    def __init__(self, address: str) -> None:
        # A leading @ is systemd's way to write the zero byte of an abstract address.
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(0)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Notifier | None:
        """Open the socket named by ``NOTIFY_SOCKET``; return None without a supervisor.

        Raises:
            DeviceError: the variable is not a socket address.
        """
        address = environment.get("NOTIFY_SOCKET", "")
        if not address:
            return None
        if address[0] not in "/@" or len(os.fsencode(address)) > 107:
            raise DeviceError(
                f"NOTIFY_SOCKET is {address!r}, which is not the path of a Unix socket",
                hint="systemd sets it for services with Type=notify; unset it to run without systemd",
            )
        return cls(address)

    def send(self, **values: str) -> bool:
        """Send one message; return True if it was accepted. Line breaks in a value would start another variable."""
        text = "\n".join(f"{name}={' '.join(value.splitlines())}" for name, value in values.items())
        try:
            self._socket.sendto(text.encode(errors="replace"), self._address)
        except OSError:
            # If no process reads the socket, the supervisor decides what to do, not the run.
            return False
        return True

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def watchdog_s(environment: Mapping[str, str] = os.environ) -> float | None:
    """Return the seconds without a message after which the supervisor ends this process; None without a watchdog."""
    text, owner = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not text.isdecimal() or int(text) == 0:
        return None
    if owner and owner != str(os.getpid()):
        # Inherited from a parent that is watched itself.
        return None
    return int(text) / 1e6


@contextlib.contextmanager
def slow_start(status: str, environment: Mapping[str, str] = os.environ) -> Iterator[None]:
    """Repeatedly ask the supervisor for more start-up time (EXTEND_TIMEOUT_USEC), with the reason, during the block."""
    notifier = Notifier.from_environment(environment)
    if notifier is None:
        yield
        return
    done = threading.Event()

    def notify() -> None:
        while True:
            notifier.send(EXTEND_TIMEOUT_USEC=str(3 * _SLOW_START_S * 1_000_000), STATUS=status)
            if done.wait(_SLOW_START_S):
                return

    thread = threading.Thread(target=notify, name="slow start", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        notifier.close()


@final
class Heartbeat:
    """Reports progress of the pipeline to a supervisor by observing events. Does nothing without a supervisor.

    ``state`` returns the line that ``systemctl status`` shows. Each call of :meth:`look` sends ``WATCHDOG=1`` if there
    was an event since the last call, or while a gap is open; a thread calls it four times per watchdog time.
    """

    def __init__(
        self, notifier: Notifier | None, *, watchdog_s: float | None = None, state: Callable[[], str] = lambda: ""
    ) -> None:
        self._notifier = notifier
        self._watched = watchdog_s is not None
        self._interval_s = watchdog_s / _LOOKS if watchdog_s else _STATE_INTERVAL_S
        self._state = state
        self._events = 0
        self._seen = 0
        self._gap = False
        self._is_ready = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        if self._notifier is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._notifier is None:
            return
        self._stop.set()
        self._thread.join()
        # From here on, TimeoutStopSec and not the watchdog limits the time for writing the record.
        self._notifier.send(STOPPING="1", STATUS="ending")
        self._notifier.close()

    def on_event(self, event: FrameResult | Skip | Gap) -> None:
        """Process one event of the loop."""
        self._events += 1
        if isinstance(event, Gap):
            self._gap = event.end_s is None
        if not self._is_ready and self._notifier is not None:
            self._is_ready = True
            self._notifier.send(READY="1", STATUS=self._state())

    def look(self) -> bool:
        """Report that the pipeline is alive, if it is; return True if it was reported."""
        events = self._events
        moved = events != self._seen or self._gap
        self._seen = events
        if self._notifier is None or not self._is_ready:
            return False
        state = self._state()
        if not moved:
            self._notifier.send(STATUS=f"stuck since: {state}")
            return False
        values = {"STATUS": state} | ({"WATCHDOG": "1"} if self._watched else {})
        return self._notifier.send(**values)

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            self.look()

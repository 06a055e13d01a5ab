"""The HTTP server next to a run: a thread of its own with uvicorn in it, few connections, and nothing that can wait."""

from __future__ import annotations

import logging
import socket
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, final

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from edge.errors import DeviceError

if TYPE_CHECKING:
    from starlette.types import ASGIApp

# More are answered with 503: what one of them may hold in memory (128 KiB to send, 64 KiB of headers) is bounded too.
_MOST_CONNECTIONS = 32
_MOST_OF_ONE_ADDRESS = 12
# From a connection, or the end of the last answer, to the end of the next one.
_REQUEST_S = 15.0
_LOOK_S = 1.0
_START_S = 10.0
_STOP_S = 3.0


class _Protocol(H11Protocol):
    """HTTP/1.1 with an end for requests that are not finished, and a bound for the connections of one address.

    A browser opens six. The one above the bound takes the place of the oldest that has no request, so clients that only
    connect lock out nobody but each other.
    """

    _by_address: ClassVar[dict[str, list[_Protocol]]] = {}

    def connection_made(self, transport: Any) -> None:  # noqa: ANN401 - asyncio's transport
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        self._address = str(peer[0]) if peer else ""
        same = self._by_address.setdefault(self._address, [])
        same.append(self)
        if len(same) > _MOST_OF_ONE_ADDRESS:
            idle = next((other for other in same if not other.is_busy), self)
            same.remove(idle)
            idle.transport.abort()
        self._since_s = self.loop.time()
        self._timer = self.loop.call_later(_LOOK_S, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._timer.cancel()
        same = self._by_address.get(self._address, [])
        if self in same:
            same.remove(self)
        if not same:
            self._by_address.pop(self._address, None)

    def on_response_complete(self) -> None:
        self._since_s = self.loop.time()
        super().on_response_complete()

    @property
    def is_busy(self) -> bool:
        """True while a whole request is being answered."""
        cycle: Any = self.cycle
        return cycle is not None and not cycle.response_complete

    def _look(self) -> None:
        """Cut off a connection whose request, or the answer to it, takes too long."""
        if self.loop.time() - self._since_s > _REQUEST_S:
            self.transport.abort()
            return
        self._timer = self.loop.call_later(_LOOK_S, self._look)


@final
class Server:
    """Serves ``app`` on a listening socket while its block runs. The socket is closed at the end."""

    def __init__(self, app: ASGIApp, listening: socket.socket) -> None:
        self._socket = listening
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                http=_Protocol,
                ws="none",
                lifespan="off",
                loop="asyncio",
                # An access log would be a line in the journal for every picture that somebody looks at.
                access_log=False,
                log_config=None,
                log_level=logging.ERROR,
                server_header=False,
                date_header=False,
                proxy_headers=False,
                limit_concurrency=_MOST_CONNECTIONS,
                timeout_keep_alive=10,
                timeout_graceful_shutdown=1,
            )
        )
        self._thread = threading.Thread(target=self._server.run, args=([listening],), name="web", daemon=True)

    def __enter__(self) -> Server:
        self._thread.start()
        until = time.monotonic() + _START_S
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > until:
                self._socket.close()
                raise DeviceError("the web server does not start")
            time.sleep(0.005)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join(_STOP_S)
        self._socket.close()

"""The HTTP server next to a run: a thread of its own with uvicorn in it, few connections, and nothing that can wait."""

from __future__ import annotations

import logging
import socket
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, final

import uvicorn

from edge.errors import DeviceError

if TYPE_CHECKING:
    from starlette.types import ASGIApp

# More are answered with 503: what one of them may hold in memory (128 KiB to send, 64 KiB of headers) is bounded too.
_MOST_CONNECTIONS = 32
_START_S = 10.0
_STOP_S = 3.0


@final
class Server:
    """Serves ``app`` on a listening socket while its block runs. The socket is closed at the end."""

    def __init__(self, app: ASGIApp, listening: socket.socket) -> None:
        self._socket = listening
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                http="h11",
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

"""The web pages as a Starlette application: access checks, security headers, and the routes."""

from __future__ import annotations

import ipaddress
import logging
import math
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, final
from urllib.parse import parse_qs

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from edge.errors import DeviceError
from edge.ui.web.address import Access

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from edge.ui.web.metrics import Metrics
    from edge.ui.web.view import RunView

_STATIC = Path(__file__).parent / "static"
_MOST_BODY = 1024
# No foreign or inline content, no frames; images made by the page's own script are blobs.
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-store",
}
_FILES = {
    "/edge.css": "text/css",
    "/edge.js": "text/javascript",
    "/charts.js": "text/javascript",
    "/enter.js": "text/javascript",
    "/icon.svg": "image/svg+xml",
}


def application(access: Access, *, view: RunView | None, metrics: Metrics | None, cookie: str) -> ASGIApp:
    """Return the application for one address: the page with ``view``, ``/metrics`` with ``metrics``, or both.

    ``cookie`` is a cookie name for this port only, because browsers share cookies among the ports of a machine.
    """
    routes: list[Route] = []
    if view is not None:
        routes += _page_routes(view)
        routes += [Route(path, _static(path.lstrip("/"), kind)) for path, kind in _FILES.items()]
        routes.append(Route("/enter", _enter(access, cookie), methods=["POST"]))
    if metrics is not None:
        routes.append(Route("/metrics", _metrics(metrics)))
    return _Guard(Starlette(routes=routes), access, cookie, has_page=view is not None)


class _Guard:
    """Rejects requests with a wrong host name or without the token; adds the security headers to all answers."""

    def __init__(self, app: ASGIApp, access: Access, cookie: str, *, has_page: bool) -> None:
        self._app = app
        self._access = access
        self._cookie = cookie
        self._has_page = has_page
        self._enter_page = (_STATIC / "enter.html").read_bytes()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message["headers"] = [*message["headers"], *added]
            await send(message)

        request = Request(scope)
        answer = self._refusal(request)
        await (self._app if answer is None else answer)(scope, receive, send_with_headers)

    def _refusal(self, request: Request) -> Response | None:
        if not self._access.is_ours(request.headers.get("host", "")):
            return PlainTextResponse(
                "The host name in this URL does not belong to this machine. Use its IP address.\n", 421
            )
        path = request.url.path
        if path in _FILES or path == "/enter":
            return None
        known = request.cookies.get(self._cookie)
        if self._access.may_look(cookie=known, authorization=request.headers.get("authorization")):
            return None
        if path == "/" and self._has_page:
            return Response(self._enter_page, 401, media_type="text/html")
        return PlainTextResponse("a token is required\n", 401, {"www-authenticate": 'Bearer realm="edge"'})


def _page_routes(view: RunView) -> list[Route]:
    page = (_STATIC / "index.html").read_bytes()

    async def index(_request: Request) -> Response:
        return Response(page, media_type="text/html")

    async def about(_request: Request) -> Response:
        return _json(view.about())

    async def state(request: Request) -> Response:
        return _json(view.state(since_s=_number(request.query_params.get("since", ""))))

    async def frame(request: Request) -> Response:
        picture = view.picture(request.query_params.get("camera", ""))
        if picture is None or str(picture.seq) == request.query_params.get("after"):
            return Response(status_code=204)
        return Response(picture.data, media_type="image/jpeg", headers={"x-edge-seq": str(picture.seq)})

    return [Route("/", index), Route("/about", about), Route("/state", state), Route("/frame.jpg", frame)]


def _enter(access: Access, cookie: str) -> Any:  # noqa: ANN401 - an endpoint
    async def enter(request: Request) -> Response:
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > _MOST_BODY:
                return PlainTextResponse("too long\n", 413)
        given = parse_qs(body.decode(errors="replace")).get("token", [""])[0].strip()
        if not access.is_token(given):
            return RedirectResponse("/#wrong", 303)
        answer = RedirectResponse("/", 303)
        answer.set_cookie(cookie, access.session.reveal(), httponly=True, samesite="strict")
        return answer

    return enter


def _static(name: str, kind: str) -> Any:  # noqa: ANN401 - an endpoint
    data = (_STATIC / name).read_bytes()

    async def static(_request: Request) -> Response:
        return Response(data, media_type=kind)

    return static


def _metrics(metrics: Metrics) -> Any:  # noqa: ANN401 - an endpoint
    async def scrape(request: Request) -> Response:
        data, kind = metrics.text(request.headers.get("accept", ""))
        return Response(data, headers={"content-type": kind})

    return scrape


def _json(content: object) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")


def _number(text: str) -> float:
    """Parse a finite number from a URL; return -1, which is before everything, if it is invalid."""
    try:
        value = float(text)
    except ValueError:
        return -1.0
    return value if math.isfinite(value) else -1.0


# More connections get a 503: the memory of each (128 KiB to send, 64 KiB of headers) is bounded, too.
_MOST_CONNECTIONS = 32
_MOST_OF_ONE_NETWORK = 12
# Time limit from a connection, or the end of the last answer, to the end of the next one.
_REQUEST_S = 15.0
_LOOK_S = 1.0
_START_S = 10.0
_STOP_S = 3.0


class _Protocol(H11Protocol):
    """HTTP/1.1 with a time-out for requests that are not finished, and limits for open connections.

    A browser opens six. A connection above the limit, that of its address or of all together, takes the place of the
    oldest one without a request: clients that only connect lock out nobody but each other.
    """

    # Oldest first.
    _open: ClassVar[list[_Protocol]] = []

    def connection_made(self, transport: Any) -> None:  # noqa: ANN401 - asyncio's transport
        super().connection_made(transport)
        self.network = network_of(transport.get_extra_info("peername"))
        self._open.append(self)
        same = [other for other in self._open if other.network == self.network]
        for others, most in ((same, _MOST_OF_ONE_NETWORK), (list(self._open), _MOST_CONNECTIONS - 1)):
            if len(others) > most:
                idle = next((other for other in others if not other.is_busy), self)
                if idle in self._open:
                    self._open.remove(idle)
                idle.transport.abort()
        self._since_s = self.loop.time()
        self._timer = self.loop.call_later(_LOOK_S, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._timer.cancel()
        if self in self._open:
            self._open.remove(self)

    def on_response_complete(self) -> None:
        self._since_s = self.loop.time()
        super().on_response_complete()

    @property
    def is_busy(self) -> bool:
        """True while a complete request is being answered."""
        cycle: Any = self.cycle
        return cycle is not None and not cycle.response_complete

    def _look(self) -> None:
        """Close the connection if its request or answer takes too long."""
        if self.loop.time() - self._since_s > _REQUEST_S:
            self.transport.abort()
            return
        self._timer = self.loop.call_later(_LOOK_S, self._look)


def network_of(peer: tuple[Any, ...] | None) -> str:
    """Return the address of a client; of IPv6 the network, in which one client may have every address."""
    try:
        address = ipaddress.ip_address(str(peer[0]).partition("%")[0] if peer else "")
    except ValueError:
        return ""
    if address.version == 6 and address.ipv4_mapped is None:
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


@final
class Server:
    """Serves ``app`` on a listening socket while its block runs, and closes the socket at the end."""

    def __init__(self, app: ASGIApp, listening: socket.socket) -> None:
        self._socket = listening
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                http=_Protocol,
                ws="none",
                lifespan="off",
                loop="asyncio",
                # An access log would write a line to the journal for every viewed image.
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
                raise DeviceError("the web server could not be started")
            time.sleep(0.005)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join(_STOP_S)
        self._socket.close()

"""The pages, as a Starlette application: who is let in, what every answer carries, and the handful of paths."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from edge.ui.web.access import Access

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from edge.ui.web.metrics import Metrics
    from edge.ui.web.view import RunView

_STATIC = Path(__file__).parent / "static"
_MOST_BODY = 1024
# Nothing from elsewhere, nothing inline, in nobody's frame; pictures made by our own script are blobs.
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
    """The application that answers on one address: the page with ``view``, ``/metrics`` with ``metrics``, or both.

    ``cookie`` is a name of its own for this port: browsers share cookies among the ports of a machine.
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
    """Answers for the application to those who ask by a wrong name or without the token; adds the headers."""

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
                "This address is asked for by a name that is not this machine's. Use its IP address.\n", 421
            )
        path = request.url.path
        if path in _FILES or path == "/enter":
            return None
        known = request.cookies.get(self._cookie)
        if self._access.may_look(cookie=known, authorization=request.headers.get("authorization")):
            return None
        if path == "/" and self._has_page:
            return Response(self._enter_page, 401, media_type="text/html")
        return PlainTextResponse("a token is needed\n", 401, {"www-authenticate": 'Bearer realm="edge"'})


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
        answer.set_cookie(cookie, access.session, httponly=True, samesite="strict")
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
    """A finite number out of an address; -1, which is before everything, where it is none."""
    try:
        value = float(text)
    except ValueError:
        return -1.0
    return value if math.isfinite(value) else -1.0

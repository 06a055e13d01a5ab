"""Web page and Prometheus metrics of a run: read-only, on loopback unless an address and a token are given."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge import lazy_exports

if TYPE_CHECKING:
    from edge.ui.web.address import Access, Address, listen, new_token, parse_address, read_token
    from edge.ui.web.app import Server, application
    from edge.ui.web.metrics import Metrics, check
    from edge.ui.web.view import RunView
else:
    __getattr__ = lazy_exports(
        __name__,
        {
            "address": ["Access", "Address", "listen", "new_token", "parse_address", "read_token"],
            "app": ["Server", "application"],
            "metrics": ["Metrics", "check"],
            "view": ["RunView"],
        },
    )

__all__ = [
    "Access",
    "Address",
    "Metrics",
    "RunView",
    "Server",
    "app",
    "application",
    "check",
    "listen",
    "new_token",
    "parse_address",
    "read_token",
]

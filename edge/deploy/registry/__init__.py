"""Bundles in an OCI registry: one layer per file, by digest, so that existing files are not sent again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge import lazy_exports

if TYPE_CHECKING:
    from edge.deploy.registry.artifact import pull, push
    from edge.deploy.registry.client import parse_reference
else:
    __getattr__ = lazy_exports(
        __name__,
        {
            "artifact": ["pull", "push"],
            "client": ["parse_reference"],
        },
    )

__all__ = ["parse_reference", "pull", "push"]

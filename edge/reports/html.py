"""Templates become pages here. The only user of jinja2; everything that is put in is escaped unless said otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edge.errors import require

_SHARED = Path(__file__).parent / "templates"
# Digits of a digest that are worth comparing by eye.
_SHOWN_DIGITS = 12


def check() -> None:
    """Make sure that a page can be made, before the work that it is about.

    Raises:
        MissingDependencyError: jinja2 or matplotlib is missing.
    """
    require("jinja2")
    require("matplotlib")


def render(template: Path, *, filters: Mapping[str, Callable[..., str]], **content: Any) -> str:  # noqa: ANN401
    """The page that ``template`` makes of ``content``; it may include ``style.css``.

    Raises:
        MissingDependencyError: jinja2 is missing.
    """
    jinja2 = require("jinja2")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, _SHARED]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"short": lambda text: text[:_SHOWN_DIGITS], **filters}
    page: str = environment.get_template(template.name).render(**content)
    return page

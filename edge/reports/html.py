"""Render templates to HTML pages, and plots to SVG. The only module that uses jinja2; values are escaped by default."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.errors import require

if TYPE_CHECKING:
    from types import ModuleType


_SHARED = Path(__file__).parent / "templates"
# Number of hex digits of a digest to show, enough to compare by eye.
_SHOWN_DIGITS = 12


def check() -> None:
    """Check that a page can be rendered before the work whose results it shows.

    Raises:
        MissingDependencyError: jinja2 or matplotlib is missing.
    """
    require("jinja2")
    require("matplotlib")


def render(template: Path, *, filters: Mapping[str, Callable[..., str]], **content: Any) -> str:  # noqa: ANN401
    """Render ``template`` with ``content``; the template may include ``style.css``.

    Raises:
        MissingDependencyError: jinja2 is missing.
    """
    environment = _environment(template.parent)
    environment.filters |= filters
    page: str = environment.get_template(template.name).render(**content)
    return page


@cache
def _environment(folder: Path) -> Any:  # noqa: ANN401
    """The jinja2 environment of the templates in a folder; it keeps those that it has compiled."""
    jinja2 = require("jinja2")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, _SHARED]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["short"] = lambda text: text[:_SHOWN_DIGITS]
    return environment


# Number of series colours in the style sheet (--s0 …).
COLOURS = 8
INK, SOFT, GRID, PAPER = "#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
_VARIABLES = {INK: "var(--ink)", SOFT: "var(--soft)", GRID: "var(--grid)", PAPER: "var(--paper)"}
_LONG = re.compile(r"\d+\.\d{3,}")


def colour(index: int) -> str:
    """Return the placeholder colour of series ``index``."""
    return f"#0a0c{index % COLOURS:02x}"


@contextmanager
def style(salt: str) -> Iterator[None]:
    """Use edge's plot style inside the block; ``salt`` makes element ids of two plots on one page differ.

    Raises:
        MissingDependencyError: matplotlib is missing.
    """
    library = require("matplotlib")
    with library.rc_context(_settings(library, salt)):
        yield


def figure(width: float, height: float, *, rows: int = 1) -> tuple[Any, list[Any]]:
    """Make a figure of that size in inches with ``rows`` axes that share x, without pyplot's global state."""
    made = require("matplotlib.figure").Figure(figsize=(width, height), layout="constrained")
    every = list(made.subplots(rows, 1, sharex=True, squeeze=False)[:, 0])
    for axes in every:
        axes.spines[["top", "right"]].set_visible(False)
    return made, every


def svg(made: Any, title: str) -> str:  # noqa: ANN401 - a matplotlib Figure
    """Return the figure as an SVG element; ``title`` is its text for screen readers."""
    buffer = io.StringIO()
    made.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg ") :]
    # A style element would apply to the whole page; the page's style sheet has the same rules for its plots.
    text = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r' transform="rotate\(-0 [^"]*"', "", text)
    # Round coordinates to 1/100 pt, but not text between tags, such as percentile:99.999.
    text = re.sub(r"<[^>]*>", lambda tag: _LONG.sub(lambda number: f"{float(number.group()):.2f}", tag.group()), text)
    # matplotlib numbers its groups again in each plot, and nothing refers to these ids.
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    head, rest = text.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    if box is None:
        raise ValueError("matplotlib wrote an SVG without a viewBox")
    reported = title.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    head = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {box.group()}'
    text = f'{head} role="img" aria-label="{reported}">{rest}'
    for substitute, variable in _VARIABLES.items():
        text = text.replace(substitute, variable)
    text = re.sub(r"#0a0c(0[0-7])", lambda match: f"var(--s{int(match.group(1), 16)})", text)
    return re.sub(r"\n\s*", "\n", text).strip()


def _settings(library: ModuleType, salt: str) -> dict[str, Any]:
    """Return all plot settings: a user's matplotlibrc must not change the page."""
    return {
        **library.rcParamsDefault,
        "backend": "svg",
        "svg.fonttype": "none",
        # Ids are hashes of their content; the salt makes those of two plots on one page differ.
        "svg.hashsalt": salt,
        "font.family": ["DejaVu Sans"],
        "font.size": 9.5,
        "axes.edgecolor": SOFT,
        "axes.labelcolor": INK,
        "xtick.color": SOFT,
        "ytick.color": SOFT,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "axes.linewidth": 0.8,
        "axes.unicode_minus": True,
    }

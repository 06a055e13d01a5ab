"""Show what this machine is and what is missing."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.text import Text

    from edge.diagnostics import DoctorFinding, DoctorReport, Level

_SYMBOLS: dict[Level, tuple[str, str, str]] = {
    "ok": ("✓", "ok", "green"),
    "warning": ("!", "!", "yellow"),
    "problem": ("✗", "x", "red"),
}

Json = Annotated[bool, typer.Option("--json", help="Print the whole report as JSON.")]


def command(json: Json = False) -> None:  # noqa: FBT002 - typer's way of a flag
    """Show this machine's device, libraries, cameras and power sensors, and what each profile needs.

    Nothing is changed. Every finding with a problem has a next step.
    """
    import msgspec

    from edge.cli import paths
    from edge.deploy.bundle import deployed
    from edge.diagnostics import examine
    from edge.ui.terminal import Terminal

    terminal = Terminal()
    report = examine(Path("/"), paths.profile_folders(), shipped=deployed.current(paths.device_home()))
    if json:
        terminal.data(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
        return
    encodes_symbols = terminal.out.encoding.lower().replace("-", "").startswith("utf")
    terminal.show(render(report, plain=not encodes_symbols))


def render(report: DoctorReport, *, plain: bool) -> Text:
    """Format the report as lines in groups; ``plain`` uses ASCII symbols only."""
    from rich.text import Text

    text = Text()
    width = max((len(finding.name) for finding in report.findings), default=0)
    for group, findings in groupby(report.findings, key=lambda finding: finding.group):
        text.append(f"{group}\n", "bold")
        for finding in findings:
            _append(text, finding, width=width, plain=plain)
    count = {level: sum(finding.level == level for finding in report.findings) for level in _SYMBOLS}
    summary = ", ".join(_many(count[level], level) for level in ("problem", "warning") if count[level])
    text.append(summary or "everything is in order", "bold")
    return text


def _append(text: Text, finding: DoctorFinding, *, width: int, plain: bool) -> None:
    symbol, ascii_symbol, colour = _SYMBOLS[finding.level]
    text.append(f"  {ascii_symbol:<3}" if plain else f"  {symbol} ", colour)
    text.append(f"{finding.name:<{width}}  {finding.text}\n")
    if finding.next_step is not None:
        text.append(f"    {'':<{width}}  {'->' if plain else '→'} {finding.next_step}\n", "dim")


def _many(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"

"""Try a bundle on this device and compare it with the previous one.

The engine is built, the golden images are run, and speed and energy are measured in turns with the other bundle. `edge
ship` runs this on a device before it switches to a new bundle, and switches only if the trial passed. A manual run
changes only the folder of engines.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from edge.cli import options
from edge.errors import QualityError
from edge.ui.terminal import Terminal

if TYPE_CHECKING:
    from edge.deploy import Measured, TrialReport


def command(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of the bundle.")],
    *,
    against: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the bundle to compare with.")] = None,
    gate: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Limit: labels=N, distance=X, latency=FACTOR, energy=FACTOR."),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder for engines and timing caches.", show_default="~/.local/share/edge"),
    ] = None,
    nonce: Annotated[
        str,
        typer.Option(
            metavar="HEX", help="Identifier of the trial that `edge ship` expects in the report.", show_default="none"
        ),
    ] = "",
    as_json: options.Json = False,
) -> None:
    """Run the trial."""
    from edge import backends, telemetry
    from edge.cli import paths
    from edge.deploy import canary, parse_gates
    from edge.deploy.bundle import open_bundle
    from edge.system import device

    terminal = Terminal()
    gates = parse_gates(gate or [])
    found = open_bundle(bundle)
    other = open_bundle(against) if against is not None else None
    power = telemetry.probe()
    try:
        with terminal.progress() as listen:
            report = canary.canary(
                found, state or paths.device_home(), against=other, gates=gates,
                tools=canary.Tools(backend=backends.of, power=power, machine=device.identify()), nonce=nonce,
                listen=listen,
            )  # fmt: skip
    finally:
        if not isinstance(power, telemetry.NoSource):
            power.close()
    if as_json:
        terminal.data(msgspec.json.encode(report).decode())
    else:
        _show(terminal, report)
    if not report.passed:
        raise QualityError("the trial failed: " + "; ".join(report.failed), where=bundle)


def _show(terminal: Terminal, report: TrialReport) -> None:
    columns = [column for column in (report.own, report.before) if column is not None]
    heads = ["", "this bundle", "before"][: len(columns) + 1]
    rows = [[name, *(value(column) for column in columns)] for name, value in _ROWS]
    if columns:
        terminal.table(heads, rows, right=tuple(range(1, len(heads))))
    if report.before_absent:
        terminal.info(f"not compared: {report.before_absent}", style="dim")
    terminal.data("passed" if report.passed else "failed")


def _absent(column: Measured, name: str) -> str:
    return f"- ({column.absent[name]})" if name in column.absent else "-"


_ROWS: tuple[tuple[str, Callable[[Measured], str]], ...] = (
    ("bundle", lambda c: f"{c.name} {c.bundle[:12]}"),
    ("engine", lambda c: f"{c.precision}, {c.build} in {c.build_s:.1f} s"),
    ("other labels", lambda c: _absent(c, "labels") if c.other_labels is None else f"{c.other_labels} of {c.pictures}"),
    ("distance", lambda c: _absent(c, "distance") if c.distance is None else f"{c.distance:.5f}"),
    ("latency p50", lambda c: "-" if c.latency is None else f"{c.latency.p50_ms:.3f} ms (n {c.latency.n})"),
    ("energy", lambda c: _absent(c, "energy") if c.millijoules is None else f"{c.millijoules:.2f} mJ"),
)

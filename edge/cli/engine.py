"""Show, compare and list built engines."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import msgspec
import typer

from edge.cli import options
from edge.config import Precision
from edge.errors import StoreError
from edge.ui.terminal import Terminal

if TYPE_CHECKING:
    from edge.engines import EngineComparison, EngineReport, InventoryEntry, InventoryScan, LayerTimes
    from edge.model import Layer

app = typer.Typer(no_args_is_help=True)

# Number of rows to show in a table; --layers and --json have all.
_SHOWN = 12


@app.command()
def show(
    engine: Annotated[
        Path | None,
        typer.Argument(metavar="[ENGINE]", help="An engine, its manifest, or a file of trtexec --exportLayerInfo."),
    ] = None,
    *,
    profile: options.ProfileName = None,
    precision: options.PrecisionName = None,
    engine_dir: options.EngineDir = None,
    layers: Annotated[bool, typer.Option("--layers", help="List every layer.")] = False,
    times: Annotated[
        Path | None,
        typer.Option(
            help="Time per layer: a file of edge bench --layers, or of trtexec --exportProfile.",
            show_default="those next to the engine",
        ),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write the report as one HTML file.")] = None,
    as_json: options.Json = False,
) -> None:
    """Show the precisions, fusions, reformats and inputs of an engine."""
    from edge.engines import engine_report, layer_times

    terminal = options.open_terminal({"--html": html}, as_json=as_json)
    _check_page(html)
    path = engine if engine is not None else _of_profile(profile, precision, engine_dir)
    card = engine_report.load(path)
    timed = layer_times.find(card) if times is None else layer_times.read(times, card)
    drawn = None if html is None else engine_report.render(card, timed)
    if as_json:
        content = {**msgspec.to_builtins(card, enc_hook=str), "times": timed}
        terminal.data(msgspec.json.encode(content).decode())
    else:
        _show(terminal, card, layers=layers)
        if timed is not None:
            show_times(terminal, timed)
    _write(terminal, html, drawn)


@app.command()
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="An engine as in show, or fp32, fp16, int8 of the profile.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The engine to compare with.")],
    *,
    profile: options.ProfileName = None,
    engine_dir: options.EngineDir = None,
    html: Annotated[Path | None, typer.Option(help="Write the comparison as one HTML file.")] = None,
    as_json: options.Json = False,
) -> None:
    """Compare two engines: inputs of the build, nodes with another precision, and nodes fused in only one of them."""
    from edge.engines import engine_comparison, engine_report

    terminal = options.open_terminal({"--html": html}, as_json=as_json)
    _check_page(html)
    known = get_args(Precision)
    first, second = (
        engine_report.load(_of_profile(profile, word, engine_dir) if word in known else Path(word)) for word in (a, b)
    )
    found = engine_comparison.compare(first, second)
    drawn = None if html is None else engine_report.render_difference(first, second, found)
    if as_json:
        terminal.data(msgspec.json.encode(found, enc_hook=str).decode())
    else:
        _show_difference(terminal, found)
    _write(terminal, html, drawn)


@app.command("list")
def list_(
    *,
    cache_dir: options.CacheDir = None,
    engine_dir: options.EngineDir = None,
    fast: Annotated[bool, typer.Option("--fast", help="Do not check the digests of the files.")] = False,
    as_json: options.Json = False,
) -> None:
    """List all engines, and show if each is current for its profile on this machine."""
    from edge.cli import paths
    from edge.engines import engine_report, inventory

    terminal = Terminal()
    folder = paths.engine_folder(engine_dir)
    entries = inventory.scan(folder, _look(cache_dir, verify=not fast))
    if as_json:
        terminal.data(msgspec.json.encode(entries, enc_hook=str).decode())
        return
    if not entries:
        terminal.info(f"no engines in {folder}; edge build makes one")
        return
    rows = [
        (
            entry.profile, entry.manifest.stem, entry.runtime or "?", engine_report.size(entry.size_bytes),
            (entry.created_utc or "")[:10], _state(entry),
        )
        for entry in entries
    ]  # fmt: skip
    terminal.table(("profile", "engine", "built with", "size", "built", "this machine"), rows, right=(3,))


@app.command()
def gc(
    *,
    cache_dir: options.CacheDir = None,
    engine_dir: options.EngineDir = None,
    elsewhere: Annotated[
        bool, typer.Option("--elsewhere", help="Also remove engines of other devices, and of deleted profiles.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be removed; remove nothing.")] = False,
    as_json: options.Json = False,
) -> None:
    """Remove engines that are stale or damaged, but none that is current or cannot be judged here."""
    from edge.cli import paths
    from edge.engines import engine_report, inventory

    terminal = Terminal()
    look = _look(cache_dir, verify=True)
    entries = inventory.scan(paths.engine_folder(engine_dir), look)
    gone = []
    for entry in inventory.useless(entries, elsewhere=elsewhere):
        if dry_run or inventory.remove(entry, look):
            gone.append(entry)
        else:
            terminal.warn(f"{entry.manifest}: not removed: it has changed in the meantime")
    total = sum(entry.size_bytes for entry in gone)
    if as_json:
        content = {"removed": gone, "bytes": total, "dry_run": dry_run, "kept": len(entries) - len(gone)}
        terminal.data(msgspec.json.encode(content, enc_hook=str).decode())
        return
    word = "would remove" if dry_run else "removed"
    for entry in gone:
        terminal.data(
            f"{word} {entry.manifest.with_suffix('')} ({engine_report.size(entry.size_bytes)}): {_state(entry)}"
        )
    kept = Counter(entry.state for entry in entries if entry not in gone)
    rest = ", ".join(f"{count} {state}" for state, count in sorted(kept.items())) or "none"
    terminal.info(f"{len(gone)} engines, {engine_report.size(total)}; kept: {rest}")


def _check_page(html: Path | None) -> None:
    if html is not None and html.is_dir():
        raise StoreError("the page cannot be written: this is a folder", where=html)


def _write(terminal: Terminal, html: Path | None, drawn: str | None) -> None:
    from edge.artifacts import store

    if html is not None and drawn is not None:
        store.write_bytes(html, drawn.encode())
        terminal.info(f"page: {html}")


def _of_profile(profile: str | None, precision: str | None, engine_dir: Path | None) -> Path:
    """Return the path of a profile's engine."""
    from edge.calibration import cache_keys
    from edge.cli import paths

    wanted = options.precision(precision)
    chosen, path = paths.load_profile(profile)
    paths.require_model(chosen)
    return cache_keys.engine_manifest_path(chosen, paths.engine_folder(engine_dir, path), wanted or chosen.precision)


def _look(cache_dir: Path | None, *, verify: bool) -> InventoryScan:
    from edge import backends
    from edge.cli import paths
    from edge.engines import InventoryScan

    return InventoryScan(
        resolve=lambda name: paths.load_profile(name)[0],
        backend=backends.of,
        cache=paths.cache_folder(cache_dir),
        verify=verify,
    )


def _state(entry: InventoryEntry) -> str:
    return f"{entry.state}: {'; '.join(entry.why)}" if entry.why else entry.state


def _show(terminal: Terminal, card: EngineReport, *, layers: bool) -> None:
    width = max(len(name) for name, _ in _facts(card))
    terminal.show(card.title, style="bold")
    for name, text in _facts(card):
        terminal.marked(f"  {name:<{width}}", f"  {text}", style="dim")
    for note in card.notes:
        terminal.warn(note)
    if card.short:
        rows = [(item.name, item.kind, item.precision or "not said", item.why or "") for item in card.short[:_SHOWN]]
        title = f"not in {(card.asked or '').upper()}{_first(len(card.short))}"
        terminal.table(("layer", "type", "runs in", "why"), rows, title=title)
    if card.in_float:
        rows = [
            (item.node, item.kind, item.asked.upper(), (item.runs_in or "not said").upper())
            for item in card.in_float[:_SHOWN]
        ]
        title = f"kept in float by the recipe{_first(len(card.in_float))}"
        terminal.table(("layer", "type", "asked", "runs in"), rows, title=title)
    if card.changes:
        counted = Counter((item.before, item.after, item.kind) for item in card.changes).most_common(_SHOWN)
        rows = [(before, after, kind, str(count)) for (before, after, kind), count in counted]
        terminal.table(("from", "to", "by", "layers"), rows, right=(3,), title="where precision changes")
    if layers and card.inspection is not None:
        terminal.table(
            ("#", "layer", "type", "precision", "takes", "gives", "made of", "weights"),
            [_row(number, item) for number, item in enumerate(card.inspection.layers, 1)],
            right=(0, 7),
        )
    elif card.counts:
        terminal.info("--layers lists every layer, --html FILE writes the report", style="dim")


def show_times(terminal: Terminal, times: LayerTimes, *, limit: int | None = _SHOWN) -> None:
    """Print the slowest layers, ``limit`` of them or all, and where the time goes by role."""
    runs = f" of {times.runs} runs" if times.runs else ""
    shares = ", ".join(f"{role} {ms / (times.total_ms or 1):.0%}" for role, ms in times.by_role.items())
    rows = [
        (
            f"{item.ms:.4f}",
            "" if item.p10_ms is None or item.p90_ms is None else f"{item.p10_ms:.4f} to {item.p90_ms:.4f}",
            f"{item.share:.1%}",
            item.name,
            (item.layer.precision or item.layer.role) if item.layer else "",
        )
        for item in times.layers[:limit]
    ]
    whole = "" if times.whole_ms is None else f"; a whole inference without the profiler {times.whole_ms:.3f} ms"
    title = f"sum of layers {times.total_ms:.3f} ms, {times.statistic}{runs} per layer: {shares}{whole}"
    terminal.table(("ms", "p10 to p90", "", "layer", "precision"), rows, right=(0, 1, 2), title=title)


def _first(count: int) -> str:
    return f" (the first {_SHOWN} of {count})" if count > _SHOWN else ""


def _facts(card: EngineReport) -> list[tuple[str, str]]:
    """Return the first lines of the report."""
    from edge.engines import engine_report, inventory

    facts = []
    info: dict[str, Any] = card.manifest.info if card.manifest else {}
    if card.manifest is not None and card.engine is not None:
        key = card.manifest.key
        place = key.get("module") or key.get("machine") or "?"
        facts.append(("built with", f"{inventory.runtime(key)} on {place}, {card.manifest.created_utc}"))
        seconds = info.get("build_seconds")
        cache = f", timing cache {engine_report.words(info['timing_cache'])}" if info.get("timing_cache") else ""
        took = f", in {seconds:.1f} s{cache}" if isinstance(seconds, int | float) else ""
        facts.append(("file", f"{next(iter(card.manifest.files))}, {engine_report.size(card.engine.size)}{took}"))
    if card.layers is not None:
        route = f" ({info['int8_route']} route)" if info.get("int8_route") else ""
        has = card.layers
        words = [f"{has.weighted_int8} INT8", f"{has.weighted_fp16} FP16"]
        words += [f"{has.weighted - has.weighted_int8 - has.weighted_fp16 - has.weighted_unknown} FP32"]
        words += [f"{has.weighted_unknown} not told"] if has.weighted_unknown else []
        shown = ", ".join(word for word in words if not word.startswith("0 "))
        facts.append(("weighted", f"{shown} of {has.weighted}; asked: {card.asked}{route}"))
    elif card.counts is not None:
        shown = ", ".join(f"{count} {name.upper()}" for name, count in card.counts.weighted.items())
        facts.append(("weighted", shown or "none"))
    if card.counts is not None:
        counts, before = card.counts, sum(card.operators.values())
        of_nodes = f" of {before} ONNX nodes" if before else ""
        opaque = f", {counts.opaque} hide others" if counts.opaque else ""
        text = f"{counts.layers}{of_nodes}; {counts.fused} fused of several, {counts.reformats} reformats{opaque}"
        facts.append(("layers", text))
        facts.append(("weights", engine_report.size(counts.weights_bytes)))
        for item in card.islands:
            around = f", with {item.reformats} reformats around them" if item.reformats else ""
            text = f"{item.layers} {item.kind} in {item.precision.upper()}{around}"
            facts.append(("in float", text))
        if card.chains:
            facts.append(("chains", f"{len(card.chains)} of reformats, the longest of {max(map(len, card.chains))}"))
    elif card.operators:
        shown = ", ".join(f"{count} {kind}" for kind, count in list(card.operators.items())[:4])
        facts.append(("before", f"{sum(card.operators.values())} ONNX nodes: {shown}, …"))
    if card.inspection is not None:
        facts.append(("seen by", card.inspection.source))
    return facts


def _row(number: int, layer: Layer) -> tuple[str, ...]:
    from edge.engines import engine_report

    return (
        str(number), layer.name, layer.kind, layer.precision or layer.role,
        "\n".join(engine_report.tensor(item) for item in layer.inputs),
            "\n".join(engine_report.tensor(item) for item in layer.outputs),
        "\n".join(layer.nodes), "" if layer.weights_bytes is None else engine_report.size(layer.weights_bytes),
    )  # fmt: skip


def _show_difference(terminal: Terminal, found: EngineComparison) -> None:
    from edge.engines import engine_report

    terminal.show(f"A  {found.a}")
    terminal.show(f"B  {found.b}")
    for note in found.notes:
        terminal.warn(note)
    if found.built_from:
        rows = [(item.field, engine_report.short(item.old), engine_report.short(item.new)) for item in found.built_from]
        terminal.table(("built from", "A", "B"), rows)
    figures = engine_report.figures(found)
    if figures:
        terminal.table(("", "A", "B", "B / A"), figures, right=(1, 2, 3))
    for title, counted in (("weighted nodes", found.weighted), ("other nodes", found.others)):
        for change, count in counted.items():
            terminal.show(f"{count} {title} changed: {change}")
    if found.same:
        terminal.show(f"{found.same} nodes run in the same precision and kind of layer")
    for name, groups in (("A", found.only_a), ("B", found.only_b)):
        if groups:
            terminal.show(f"{len(groups)} fusions only in {name}{_first(len(groups))}")
            for group in groups[:_SHOWN]:
                terminal.show(f"  {' + '.join(group)}")
    if found.is_equal and not found.notes:
        terminal.show("both engines have the same inputs")

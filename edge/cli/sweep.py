"""Compare calibration algorithms and numbers of images.

Every algorithm calibrates with random subsets of the images. Each table is scored on labelled images in its
TensorRT form, with float32 arithmetic on this machine's CPU. All intervals are 95 %, all comparisons paired.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from edge.cli import options
from edge.errors import UsageError
from edge.ui.terminal import Terminal

if TYPE_CHECKING:
    from edge.media import Picture, Pictures
    from edge.stats import Interval
    from edge.tuning import ConfigurationRow, Record

# Columns of a terminal from which both ends of every interval fit.
_WIDE = 146


def command(  # noqa: PLR0913 - every option is one parameter: Typer reads the signature
    *,
    images: options.Images = None,
    evaluate: Annotated[
        Path | None, typer.Option("--eval", "-e", help="Images for scoring.", show_default="those of --labels")
    ] = None,
    labels: options.Labels = None,
    label_offset: options.LabelOffset = 0,
    profile: options.ProfileName = None,
    algorithm: Annotated[
        list[str] | None,
        typer.Option(
            "--algorithm", "-a", help="NAME, NAME:VALUE or NAME:KEY=VALUE, separated by commas.", show_default="all"
        ),
    ] = None,
    pictures: Annotated[
        str | None, typer.Option(help="Numbers of images, or all.", show_default="50,100,200,400,all")
    ] = None,
    batch: Annotated[str | None, typer.Option(hidden=True)] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of random subsets of each size.")] = 3,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Score with only N images, spread evenly over the set.")
    ] = None,
    cache_dir: options.CacheDir = None,
    threads: options.Threads = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Save results to FILE; continue a stopped sweep from it.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with plots.")] = None,
    earlier: Annotated[Path | None, typer.Option("--from", help="Show an earlier --output; measure nothing.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an --output of a different sweep.")] = False,
    as_json: options.Json = False,
) -> None:
    """Run the sweep."""
    from edge.cli import paths, signals
    from edge.media import open_pictures
    from edge.tuning import sweep, sweep_record, sweep_tables

    terminal = options.open_terminal({"--html": html}, as_json=as_json)
    if batch is not None:
        raise UsageError("--batch was removed: statistics do not depend on the batch", hint="leave --batch out")
    if html is not None:
        options.check_page(html)
    if earlier is not None:
        if images is not None or evaluate is not None or labels is not None or output is not None:
            raise UsageError("--from shows an earlier sweep and excludes images, labels and --output")
        _finish(terminal, sweep_record.load(earlier), html=html, as_json=as_json)
        return
    chosen, path = paths.load_profile(profile)
    source = images or (Path(chosen.calibration.images) if chosen.calibration.images else None)
    scored = evaluate or labels
    if source is None:
        raise UsageError(
            "no images to calibrate with", hint="give --images DIR, or set calibration.images in the profile"
        )
    if scored is None:
        raise UsageError("no images to score with", hint="give --eval DIR --labels labels.csv")
    if not as_json:
        terminal.info(f"profile {chosen.name} ({path})", style="dim")
    calibration = open_pictures(source)
    labelled = paths.labelled_pictures(
        chosen, scored, labels if evaluate is not None else None, label_offset=label_offset
    )
    settings = sweep_tables.SweepSettings(
        candidates=sweep_tables.candidates(_words(algorithm)),
        sizes=sweep_tables.sizes(_words(pictures), len(calibration)),
        seeds=seeds,
        threads=threads,
    )
    with signals.graceful() as stop, terminal.progress() as listen:
        found = sweep.sweep(
            chosen,
            calibration,
            _spread(labelled, limit),
            settings,
            cache=paths.own_cache_folder(cache_dir, path),
            output=output,
            force=force,
            listen=listen,
            should_stop=stop,
        )
    if found is not None:
        _finish(terminal, found, html=html, as_json=as_json)
    if stop() and output is not None and output.exists():
        terminal.info(f"the scores are saved in {output}; the same command continues from there")
    stop.grant()


def _spread(pictures: Pictures, limit: int | None) -> list[Picture]:
    """Return ``limit`` of the images, spread over the set, because a folder is often sorted by class."""
    total = len(pictures)
    kept = total if limit is None else min(limit, total)
    return [pictures[index * total // kept] for index in range(kept)]


def _finish(terminal: Terminal, record: Record, *, html: Path | None, as_json: bool) -> None:
    """Show the record, and write the page."""
    from edge.artifacts import store
    from edge.tuning import sweep_page, sweep_summary

    if as_json:
        terminal.data(msgspec.json.encode(sweep_summary(record)).decode())
    elif record.findings is not None:
        _show(terminal, record)
    for warning in record.warnings:
        terminal.warn(warning)
    if record.status != "complete":
        terminal.warn("stopped early: these are the scores so far")
    if html is not None and record.findings is not None:
        store.write_bytes(html, sweep_page.render(record).encode())
        terminal.info(f"page: {html}")


def _show(terminal: Terminal, record: Record) -> None:
    from edge.tuning import conclusions

    found = record.findings
    if found is None:
        return
    wide = terminal.out.width >= _WIDE
    columns = ["", "algorithm", "n", "seed", "SQNR, dB", "as FP32, %", "top-1 - FP32"]
    columns += ["p", "top-1, %", "top-5, %"] if wide else []
    terminal.table(
        columns,
        [[conclusions.MARKS[row.mark], *_row(row, wide=wide)] for row in found.rows],
        right=range(2, len(columns)),
    )
    terminal.show(
        "* highest SQNR; = not significantly different in SQNR; ~ different in SQNR, not in top-1 "
        f"({found.n} images, {len(found.rows) - 1} comparisons, corrected by Holm's method)"
    )
    how = (
        "[]: 95 % interval; p: McNemar's exact test" if wide else "±: half the 95 % interval; --html or --json has all"
    )
    terminal.show(how)
    for answer in conclusions.conclusions(record):
        terminal.show("")
        terminal.show(f"{answer.question} {answer.short}.")
        for line in answer.detail:
            terminal.show(f"  {line}")
    counted, scored = record.seconds.get("count"), record.seconds.get("score")
    if counted is not None and scored is not None:
        tables = len({row.configuration.table for row in found.rows})
        terminal.info(
            f"collecting the statistics took {counted:.0f} s, scoring {tables} different tables {scored:.0f} s",
            style="dim",
        )


def _row(row: ConfigurationRow, *, wide: bool) -> list[str]:
    item = row.configuration
    name = item.algorithm if item.batch == 1 else f"{item.algorithm}, batch {item.batch}"
    cells = [name, str(item.pictures), "all" if item.seed is None else str(item.seed)]
    shown = _interval if wide else _plus_minus
    cells += [shown(row.sqnr_db, 2), shown(row.agreement), shown(row.against_fp32.top1, sign="+")]
    return [*cells, f"{row.against_fp32.top1_p:.2g}", shown(row.top1), shown(row.top5)] if wide else cells


def _interval(value: Interval, digits: int = 1, *, sign: str = "") -> str:
    form = f"{sign}.{digits}f"
    return f"{value.value:{form}} [{value.low:{form}}, {value.high:{form}}]"


def _plus_minus(value: Interval, digits: int = 1, *, sign: str = "") -> str:
    return f"{value.value:{sign}.{digits}f} ±{(value.high - value.low) / 2:.{digits}f}"


def _words(given: list[str] | str | None) -> list[str]:
    """Split values of options that may be repeated and may contain commas."""
    texts = [given] if isinstance(given, str) else given or []
    return [word.strip() for text in texts for word in text.split(",") if word.strip()]

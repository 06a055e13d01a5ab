"""Test all functions of edge on this machine.

The profile's model is built in every available precision and route, run on a few images, and compared with the FP32
outputs of a CPU. Then invalid inputs are tried, which must be refused, and the sensors. Every step reports ok, failed
or skipped, with its reason. None of your files is changed: engines and caches are in a separate folder. The exit code
is 1 if a step failed. The written file can be attached to a bug report: it names the machine, but no host and no user.
"""

from __future__ import annotations

import textwrap
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge.artifacts import temporary_folder
from edge.cli import options, run_options
from edge.errors import QualityError, UsageError
from edge.ui.terminal import Terminal

if TYPE_CHECKING:
    from edge.diagnostics import SelfTestRun, SelfTestStep
    from edge.media import Pictures
    from edge.ui.terminal import Style

_MARKS: dict[str, tuple[str, Style]] = {
    "ok": ("ok", "green"),
    "failed": ("FAILED", "red"),
    "skipped": ("skipped", "dim"),
}
_NAME_WIDTH = 21
# Time for each row of the published table.
_PUBLISH_S = 5.0
# Mark, name and seconds are before the text.
_INDENT = _NAME_WIDTH + 20


def command(
    *,
    profile: options.ProfileName = None,
    images: options.Images = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file for a bug report.")] = Path(
        "edge-selftest.json"
    ),
    keep: Annotated[Path | None, typer.Option(help="Save engines and caches in this new folder.")] = None,
    write_reference: Annotated[
        bool,
        typer.Option(
            "--write-reference",
            help="Only write the FP32 results next to the images, for machines without onnxruntime.",
        ),
    ] = False,
    camera: Annotated[
        str | None,
        typer.Option(metavar="CAMERA", help="Camera to try, as in edge run.", show_default="the first /dev/video*"),
    ] = None,
    publish: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Also measure each engine, and write the results as FILE.md and FILE.json.",
        ),
    ] = None,
    cache_dir: options.CacheDir = None,
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Run the command."""
    from edge import backends
    from edge.cli import paths
    from edge.diagnostics import SelfTestContext, selftest_run

    chosen, path = paths.load_profile(profile)
    paths.require_model(chosen)
    terminal = Terminal()
    terminal.info(f"profile {chosen.name} ({path})", style="dim")
    folder = images if images is not None else paths.resources() / "samples"
    pictures = _pictures(folder) if images is not None or folder.is_dir() else None
    if write_reference:
        from edge.diagnostics import selftest_engines

        if pictures is None or not folder.is_dir():
            raise UsageError(
                "reference answers are stored next to the images, so the images must be in a folder",
                hint="--images DIR",
            )
        answers = selftest_engines.compute(chosen, pictures, threads=threads)
        terminal.data(str(selftest_engines.save(folder, chosen, pictures, answers)))
        return
    with ExitStack() as stack:
        work = _work_folder(keep, stack)
        bench = SelfTestContext(
            profile=chosen,
            backend=backends.of,
            pictures=pictures,
            cache=paths.cache_folder(cache_dir, path),
            work=work,
            kept_reference=folder if folder.is_dir() else None,
            camera=None if camera is None else run_options.typed_camera(camera, terminal.warn),
            threads=threads or chosen.run.threads,
            publish_s=None if publish is None else _PUBLISH_S,
        )
        run = selftest_run.SelfTestRun(bench, progress=terminal.progress)
        try:
            run.go(lambda step: _show(terminal, step, as_json=as_json))
        finally:
            # Also after a signal: the results up to then are needed for a report.
            failures = _finish(terminal, run, output, as_json=as_json)
            if publish is not None:
                _publish(terminal, run, publish)
    if failures:
        what = f"{failures} step{'s' if failures > 1 else ''} failed"
        raise QualityError(what, where=output, hint="attach this file to a bug report")


def _publish(terminal: Terminal, run: SelfTestRun, path: Path) -> None:
    from edge.diagnostics import published_results

    found = published_results.collect(run.record())
    if not found.rows:
        terminal.warn("nothing to publish: no engine could be run here")
        return
    text, data = published_results.save(path, found)
    terminal.info(f"published results: {text} and {data}; docs/devices.md says where to send them")


def _pictures(folder: Path) -> Pictures:
    from edge.media import open_pictures

    return open_pictures(folder)


def _work_folder(keep: Path | None, stack: ExitStack) -> Path:
    if keep is None:
        return Path(stack.enter_context(temporary_folder("selftest")))
    if keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
        raise UsageError(f"--keep {keep}: the folder already exists", hint="give a new folder")
    keep.mkdir(parents=True, exist_ok=True)
    return keep


def _show(terminal: Terminal, step: SelfTestStep, *, as_json: bool) -> None:
    mark, style = _MARKS[step.status]
    lines = _wrapped(terminal, step.text, as_json=as_json)
    if step.hint and step.status == "failed":
        lines += _wrapped(terminal, f"try: {step.hint}", as_json=as_json)
    first = f" {step.name:<{_NAME_WIDTH}} {step.seconds:6.1f} s  {lines[0]}"
    terminal.marked(f"{mark:<8}", first, style=style, on_stderr=as_json)
    for line in lines[1:]:
        terminal.marked("", f"{'':<{_INDENT}}{line}", style=style, on_stderr=as_json)


def _wrapped(terminal: Terminal, text: str, *, as_json: bool) -> list[str]:
    """Wrap lines to fit next to the other columns; without a terminal, return one line."""
    console = terminal.err if as_json else terminal.out
    if not console.is_terminal:
        return [text]
    return textwrap.wrap(text, max(console.width - _INDENT, 30), break_on_hyphens=False) or [""]


def _finish(terminal: Terminal, run: SelfTestRun, output: Path, *, as_json: bool) -> int:
    """Write the file and print the summary; return the number of failed steps."""
    from edge.artifacts import store
    from edge.diagnostics import encode

    record = run.record()
    data = encode(record)
    try:
        store.write_bytes(output, data)
    finally:
        if as_json:
            terminal.data(data.decode().rstrip())
    count = {status: record.count(status) for status in ("ok", "failed", "skipped")}
    stopped = " until it was stopped" if record.status == "interrupted" else ""
    terminal.info(f"{count['ok']} ok, {count['failed']} failed, {count['skipped']} skipped{stopped}; {output}")
    return count["failed"]

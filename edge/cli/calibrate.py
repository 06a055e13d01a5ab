"""Make an INT8 calibration table from images.

The images run through the FP32 network on this machine's CPU; memory use does not grow with their number.
The table is in TensorRT's own text format. If nothing changed, a second call does nothing; otherwise it names the
change.

--workers and --dask distribute the work; the table has the same bytes, and a dead worker is replaced. Dask workers need
edge, and the model and images under the same paths as here. ONNX Runtime is bit-identical only with the same version on
the same kind of CPU: another version causes a warning, another CPU is not noticed. Ctrl-C saves the progress; the next
call continues from there, with the same workers or others.

With --engine tensorrt, the calibrators of this device's TensorRT (8.6 to 10) make the table from the same images and
preprocessing. It is stored next to edge's own; `edge build` uses it if the profile says calibration.engine: tensorrt.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from edge.cli import options
from edge.errors import UsageError
from edge.ui.terminal import Terminal

if TYPE_CHECKING:
    from edge.calibration import CalibrationOutcome, Executor
    from edge.config import Profile
    from edge.events import Listener
    from edge.media import Pictures


class Engine(enum.Enum):
    """Program that calibrates."""

    edge = "edge"
    tensorrt = "tensorrt"


def command(
    *,
    images: options.Images = None,
    profile: options.ProfileName = None,
    algorithm: Annotated[
        str | None,
        typer.Option(
            help="Calibration algorithm: NAME, NAME:VALUE or NAME:KEY=VALUE, such as percentile:99.9.",
            show_default="the profile's",
        ),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Batch size for calibration.", show_default="the profile's")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use N images, spread evenly over the set.")] = None,
    cache_dir: options.CacheDir = None,
    threads: options.Threads = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Use N processes, with one thread each by default.")
    ] = None,
    dask: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Use the workers of the Dask scheduler tcp://HOST:PORT.")
    ] = None,
    engine: Annotated[
        Engine | None,
        typer.Option(help="Calibrate with edge or with this device's own TensorRT.", show_default="the profile's"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Process all images again.")] = False,
    as_json: options.Json = False,
) -> None:
    """Run the operation."""
    from edge.calibration import workflow
    from edge.cli import paths, signals
    from edge.media import Pictures, open_pictures
    from edge.quantization import algorithms

    if workers is not None and dask is not None:
        raise UsageError("--workers and --dask exclude each other", hint="leave one of them out")
    chosen, path = paths.load_profile(profile)
    cache = paths.own_cache_folder(cache_dir, path)
    terminal = Terminal()
    terminal.info(f"profile {chosen.name} ({path})", style="dim")
    source = images or (Path(chosen.calibration.images) if chosen.calibration.images else None)
    if source is None:
        raise UsageError(
            "no images to calibrate with", hint="give --images DIR, or set calibration.images in the profile"
        )
    asked = chosen.calibration
    name, parameters = algorithms.read(algorithm) if algorithm else (asked.algorithm, asked.parameters)
    settings = msgspec.structs.replace(
        asked,
        algorithm=name,
        parameters=parameters,
        batch=batch or asked.batch,
        engine=engine.value if engine else asked.engine,
    )
    built, chosen = chosen, msgspec.structs.replace(chosen, calibration=settings)
    # A Dask worker is in another folder, where a relative path leads elsewhere.
    pictures = open_pictures(source.absolute() if dask else source)
    if limit is not None and limit < len(pictures):
        # A folder is often sorted by class: its first N would be a few classes only.
        spread = [pictures[index * len(pictures) // limit] for index in range(limit)]
        pictures = Pictures(source, spread)
    if settings.engine == "tensorrt":
        if workers is not None or dask is not None:
            raise UsageError("--engine tensorrt calibrates on this device only", hint="leave --workers and --dask out")
        _show(terminal, _on_device(chosen, pictures, cache, terminal, force=force), as_json=as_json)
        _show_what_build_takes(terminal, built, chosen, cache)
        return
    with signals.graceful() as stop, terminal.progress() as listen, _executor(workers, dask, listen) as executor:
        outcome = workflow.calibrate(
            chosen,
            pictures,
            cache=cache,
            force=force,
            threads=threads,
            executor=executor,
            listen=listen,
            should_stop=stop,
        )
    if outcome is None:
        terminal.info("the statistics so far are saved; the same command continues from there")
        stop.grant()
        return
    _show(terminal, outcome, as_json=as_json)
    _show_what_build_takes(terminal, built, chosen, cache)


def _on_device(
    chosen: Profile, pictures: Pictures, cache: Path, terminal: Terminal, *, force: bool
) -> CalibrationOutcome:
    """Calibrate with TensorRT itself. A signal ends it at once, because it cannot be continued."""
    from edge import backends
    from edge.backends.tensorrt import TensorRT
    from edge.calibration import workflow

    backend = backends.of(chosen)
    if not isinstance(backend, TensorRT):
        raise UsageError(
            f"--engine tensorrt does not suit the profile {chosen.name} with backend: {chosen.backend}",
            hint="use --profile orin, or another profile for TensorRT",
        )
    with terminal.progress() as listen:
        return workflow.calibrate_on_device(chosen, pictures, backend, cache=cache, force=force, listen=listen)


def _show(terminal: Terminal, outcome: CalibrationOutcome, *, as_json: bool) -> None:
    if as_json:
        terminal.data(msgspec.json.encode(outcome, enc_hook=str).decode())
        return
    if outcome.work == "unchanged":
        terminal.data(f"{outcome.table}: unchanged, nothing to do ({outcome.pictures} images)")
        return
    how = "from stored statistics" if outcome.work == "from statistics" else f"in {outcome.seconds:.1f} s"
    terminal.data(f"{outcome.table}: {outcome.tensors} tensors from {outcome.pictures} images, {how}")
    if outcome.zero_tensors:
        terminal.warn(f"tensors without a range, because they are always zero: {', '.join(outcome.zero_tensors)}")


def _show_what_build_takes(terminal: Terminal, built: Profile, chosen: Profile, cache: Path) -> None:
    """Warn if a build would use another table: it follows the profile, not the options of this command."""
    from edge.calibration import cache_keys

    own, other = (cache_keys.table_path(profile, cache) for profile in (built, chosen))
    if own != other:
        terminal.info(
            f"edge build uses {own.name}, as in the profile {built.name}; to use this one, set there: calibration: "
            + _flow(chosen, built)
        )


def _flow(chosen: Profile, built: Profile) -> str:
    """Format the settings for the table of ``chosen`` as one line of YAML."""
    calibration = chosen.calibration
    items = [f"algorithm: {calibration.algorithm}"]
    if calibration.parameters:
        inner = ", ".join(f"{name}: {value:.12g}" for name, value in sorted(calibration.parameters.items()))
        items.append(f"parameters: {{{inner}}}")
    if calibration.engine != built.calibration.engine:
        items.append(f"engine: {calibration.engine}")
    return "{" + ", ".join(items) + "}"


@contextmanager
def _executor(workers: int | None, dask: str | None, listen: Listener) -> Iterator[Executor | None]:
    """Yield the executor that collects the statistics; None if this process collects them itself."""
    if dask is not None:
        from edge.calibration import dask_workers

        with dask_workers.connect(dask, listen=listen) as executor:
            yield executor
    elif workers is not None:
        from edge.calibration import Processes

        yield Processes(workers)
    else:
        yield None

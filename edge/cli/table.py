"""Show, check, compare and convert calibration tables."""

from __future__ import annotations

import math
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from edge.cli import options
from edge.errors import ArtifactError, EdgeError, QualityError, UsageError
from edge.ui.terminal import Terminal

if TYPE_CHECKING:
    from edge.config import Profile
    from edge.quantization import AlgorithmName, Route, Table, TableComparison, TableFinding, TrtVersion


class Format(str, Enum):
    """Formats of a calibration table."""

    trt = "trt"
    ort_json = "ort-json"
    qdq = "qdq"


class ConversionTarget(str, Enum):
    """Target runtime of a Q/DQ model, which determines the placement of the nodes."""

    tensorrt = "tensorrt"
    onnxruntime = "onnxruntime"


_SUFFIXES = {".json": Format.ort_json, ".onnx": Format.qdq}


def format_of(path: Path) -> Format:
    """Return the format for the file's suffix; any unknown suffix is TensorRT's text form.

    Raises:
        UsageError: the file is a FlatBuffers file of onnxruntime, which has no more content than its JSON.
    """
    if path.suffix.lower() == ".flatbuffers":
        raise UsageError(
            "FlatBuffers tables are not supported", where=path,
            hint="read calibration.json beside it; onnxruntime's TensorRT provider reads TensorRT's text form itself "
            "(trt_int8_use_native_calibration_table=1)",
        )  # fmt: skip
    return _SUFFIXES.get(path.suffix.lower(), Format.trt)


def import_table(source: Path, reads: Format, *, version: TrtVersion | None, algorithm: AlgorithmName | None) -> Table:
    """Import a table from a foreign format; ``version`` and ``algorithm`` are for its header.

    Raises:
        ArtifactError, ModelError, StoreError, UsageError: it cannot be read or converted.
    """
    from edge.quantization import table_formats

    if reads is Format.qdq:
        from edge.model import onnx_model

        return table_formats.from_qdq(
            onnx_model.read(_model(source)), version=version, algorithm=algorithm, where=source
        )
    return table_formats.from_ort_json(options.read(source), version=version, algorithm=algorithm, where=source)


def export_table(
    table: Table, writes: Format, *, model: Path | None, target: ConversionTarget, where: Path, terminal: Terminal
) -> bytes:
    """Export the table in the format ``writes``; ``model`` is for Q/DQ, and ``where`` is the table's path for messages.

    Raises:
        ArtifactError, ModelError, UsageError: it cannot be read or converted.
    """
    from edge.quantization import calibration_table, table_formats

    if writes is Format.trt:
        return calibration_table.write(table)
    try:
        if writes is Format.ort_json:
            return table_formats.to_ort_json(table)
        if model is None:
            raise UsageError("a Q/DQ model needs a table and a model", hint="add --model model.onnx")
        from edge.model import onnx_model

        with terminal.progress() as listen:
            return table_formats.to_qdq(table, onnx_model.read(_model(model)), target=target.value, listen=listen)
    except ArtifactError as exc:
        raise ArtifactError(exc.what, where=exc.where or where, hint=exc.hint) from exc


def _model(path: Path) -> Path:
    """Return ``path`` if it exists; the general error for a missing model would mention the profile."""
    if not path.is_file():
        raise UsageError("the model file does not exist", where=path)
    return path


app = typer.Typer(no_args_is_help=True)


class CalibratorChoice(str, Enum):
    """Calibrators that a header with a version can name."""

    entropy2 = "entropy2"
    minmax = "minmax"
    entropy = "entropy"


TablePath = Annotated[Path, typer.Argument(metavar="TABLE", help="A calibration table in TensorRT's text form.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite the output file.")]
Output = Annotated[Path, typer.Option("-o", "--output", help="The file to write.")]
Lenient = Annotated[
    bool, typer.Option("--lenient", help="Also read CRLF, upper-case or short scales, and report what was corrected.")
]


@app.command()
def show(table: TablePath, *, lenient: Lenient = False, as_json: options.Json = False) -> None:
    """Show a table's header, and each tensor's scale and dynamic range.

    In the JSON an infinite or NaN scale or range is null; ``bits`` always has its pattern.
    """
    from edge.quantization import table_check

    terminal = Terminal()
    content = _load(table, lenient=lenient, terminal=terminal)
    entries = [
        {
            "name": name,
            "bits": f"{bits:08x}",
            "scale": _finite(content.scale(name)),
            "range": _finite(content.range(name)),
        }
        for name, bits in content.bits.items()
    ]
    if as_json:
        terminal.data(_json({"table": str(table), **_header(content), "entries": len(entries), "tensors": entries}))
    else:
        terminal.data(_summary(content))
        rows = [
            (name, f"{bits:08x}", f"{content.scale(name):.6g}", f"{content.range(name):.6g}")
            for name, bits in content.bits.items()
        ]
        terminal.table(("tensor", "bits", "scale", "range"), rows, right=(2, 3))
    for finding in table_check.check(content, None, route="explicit", dla=False, trt_version=None):
        if finding.level != "ok":
            terminal.warn(f"{finding.code}: {table_check.describe(finding)}")


@app.command("check")
def check_(
    table: TablePath,
    *,
    profile: Annotated[
        str | None, typer.Option("-p", "--profile", help="Check against this profile's model, INT8 route and DLA core.")
    ] = None,
    trt: Annotated[
        str | None, typer.Option(metavar="VERSION", help="The TensorRT version that will read the table.")
    ] = None,
    lenient: Lenient = False,
    as_json: options.Json = False,
) -> None:
    """Check a table, with --profile also for a device; exit with 1 if it cannot be used.

    Outliers are scales at least 1024 times, and six standard deviations of the table's own spread, from the median.
    """
    from edge.quantization import table_check

    terminal = Terminal()
    content = _load(table, lenient=lenient, terminal=terminal)
    version = _version(trt)
    expected: list[str] | None = None
    route: Route = "implicit"
    dla = False
    origin: TableFinding | None = None
    ignorable: tuple[str, ...] = ()
    if profile is None:
        terminal.info("without --profile the names of the tensors are not checked")
    else:
        from edge.calibration import cache_keys
        from edge.cli import paths
        from edge.model import onnx_model

        loaded, _ = paths.load_profile(profile)
        expected = onnx_model.load(Path(loaded.model), loaded.outputs).activations
        dla = loaded.build.dla_core is not None
        route = _route(loaded, version)
        made = cache_keys.origin(table, loaded)
        origin, ignorable = made.finding, made.zero_tensors
    findings = table_check.check(
        content, expected, route=route, dla=dla, trt_version=version, ignorable=ignorable, origin=origin
    )
    if as_json:
        result = {"table": str(table), "profile": profile, "route": route, "dla": dla, "findings": findings}
        terminal.data(_json(result))
    else:
        _show_findings(findings, terminal)
    errors = [item for item in findings if item.level == "error"]
    if errors:
        hint = next((item.hint for item in errors if item.hint), None)
        codes = ", ".join(dict.fromkeys(item.code for item in errors))
        raise QualityError(f"the table cannot be used: {codes}", where=table, hint=hint)


@app.command()
def diff(
    a: Annotated[Path, typer.Argument(help="A calibration table.")],
    b: Annotated[Path, typer.Argument(help="The table to compare with.")],
    *,
    lenient: Lenient = False,
    as_json: options.Json = False,
) -> None:
    """Compare two tables; as with diff(1), the exit code is 0 if they are equal and 1 if they differ.

    The order of the lines has no meaning to TensorRT and is ignored.
    """
    from edge.quantization import table_check

    terminal = Terminal()
    first, second = (_load(path, lenient=lenient, terminal=terminal) for path in (a, b))
    result = table_check.compare(first, second)
    if as_json:
        terminal.data(_json({"a": str(a), "b": str(b), "same": result.is_same, "difference": result}))
    else:
        _show_comparison(result, terminal)
    if not result.is_same:
        raise QualityError("the tables differ", where=f"{a}, {b}")


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="A table, onnxruntime's JSON table, or a Q/DQ ONNX model.")],
    *,
    output: Output,
    from_: Annotated[
        Format | None, typer.Option("--from", help="Format of SOURCE; by default from its suffix.")
    ] = None,
    to: Annotated[
        Format | None, typer.Option("--to", help="Format to write; by default from the output's suffix.")
    ] = None,
    model: Annotated[Path | None, typer.Option(help="For --to qdq: the ONNX model that gets the Q/DQ nodes.")] = None,
    target: Annotated[
        ConversionTarget, typer.Option(help="For --to qdq: the runtime of the model.")
    ] = ConversionTarget.tensorrt,
    trt: Annotated[
        str | None, typer.Option(metavar="VERSION", help="TensorRT version for the header, if SOURCE has none.")
    ] = None,
    algorithm: Annotated[
        CalibratorChoice | None, typer.Option("--as", help="Calibrator for the header, if SOURCE has none.")
    ] = None,
    lenient: Lenient = False,
    force: Force = False,
    as_json: options.Json = False,
) -> None:
    """Convert from and to onnxruntime's JSON tables and Q/DQ ONNX.

    With --lenient, a table that TensorRT would refuse is written in valid form.
    """
    from edge.artifacts import store

    terminal = Terminal()
    _refuse_overwriting(output, force=force)
    reads, writes = from_ or format_of(source), to or format_of(output)
    if reads is Format.trt:
        table = _load(source, lenient=lenient, terminal=terminal)
        if trt or algorithm:
            raise UsageError("a table already has a header", where=source, hint="use edge table retarget to change it")
    else:
        table = import_table(source, reads, version=_version(trt), algorithm=algorithm.value if algorithm else None)
    data = export_table(table, writes, model=model, target=target, where=source, terminal=terminal)
    store.write_bytes(output, data)
    result = {"output": str(output), "format": writes.value, **_header(table), "entries": len(table.bits)}
    terminal.data(_json(result) if as_json else f"{output}: {writes.value}, {len(table.bits)} tensors")


@app.command()
def retarget(
    table: TablePath,
    *,
    trt: Annotated[
        str, typer.Option(metavar="VERSION", help="The TensorRT version that will read the table, such as 10.3.0.")
    ],
    output: Output,
    algorithm: Annotated[
        CalibratorChoice | None, typer.Option("--as", help="Also name another calibrator: DLA accepts only entropy2.")
    ] = None,
    lenient: Lenient = False,
    force: Force = False,
    as_json: options.Json = False,
) -> None:
    """Write the same scales with the header of another TensorRT version."""
    from edge.artifacts import store
    from edge.quantization import calibration_table

    terminal = Terminal()
    _refuse_overwriting(output, force=force)
    old = _load(table, lenient=lenient, terminal=terminal)
    name: AlgorithmName | None = algorithm.value if algorithm else None
    try:
        new = calibration_table.retarget(old, _required_version(trt), algorithm=name)
    except ArtifactError as exc:
        raise UsageError(exc.what, where=table, hint=exc.hint) from exc
    if new.header.algorithm != old.header.algorithm:
        terminal.warn(f"the header says {new.header.algorithm}; the scales are still those of {old.header.algorithm}")
    store.write_bytes(output, calibration_table.write(new))
    if as_json:
        terminal.data(_json({"output": str(output), "old_header": old.header.text, **_header(new)}))
    else:
        terminal.data(f"{output}: {old.header.text} -> {new.header.text}, {len(new.bits)} tensors")
    terminal.info("the scales were not changed; check them with `edge table check --profile`")


def _load(path: Path, *, lenient: bool, terminal: Terminal) -> Table:
    from edge.quantization import calibration_table

    data = options.read(path)
    if not lenient:
        return calibration_table.parse(data, where=path)
    content, notes = calibration_table.parse_lenient(data, where=path)
    for note in notes:
        terminal.warn(f"{path}: {note}")
    return content


def _refuse_overwriting(path: Path, *, force: bool) -> None:
    if path.exists() and not force:
        raise UsageError("the output file already exists", where=path, hint="--force overwrites it")


def _version(text: str | None) -> TrtVersion | None:
    return None if text is None else _required_version(text)


def _required_version(text: str) -> TrtVersion:
    from edge.quantization import TrtVersion

    try:
        return TrtVersion.parse(text)
    except EdgeError as exc:
        raise UsageError(f"--trt: {exc.what}", hint=exc.hint) from exc


def _route(profile: Profile, version: TrtVersion | None) -> Route:
    """Return the INT8 route. ``auto`` prefers calibrators if TensorRT has them."""
    if profile.int8_route != "auto":
        return profile.int8_route
    if profile.build.dla_core is not None:
        return "implicit"
    without_calibrators = version is not None and version.major >= 11
    return "explicit" if profile.backend != "tensorrt" or profile.family == "rtx" or without_calibrators else "implicit"


def _header(table: Table) -> dict[str, Any]:
    header = table.header
    return {
        "header": header.text,
        "algorithm": header.algorithm,
        "tensorrt": None if header.version is None else str(header.version),
        "cutoff": header.cutoff,
        "quantile": header.quantile,
    }


def _summary(table: Table) -> str:
    header = table.header
    made_for = f"for TensorRT {header.version}" if header.version else "no TensorRT version"
    asked = f", quantile {header.quantile}, cutoff {header.cutoff}" if header.quantile is not None else ""
    return f"{header.text}: {header.algorithm}{asked}, {made_for}, {len(table.bits)} tensors"


def _show_findings(findings: list[TableFinding], terminal: Terminal) -> None:
    from edge.quantization import table_check

    terminal.table(
        ("", "check", "finding"), [(item.level, item.code, table_check.describe(item, most=5)) for item in findings]
    )


def _show_comparison(result: TableComparison, terminal: Terminal) -> None:
    if result.header_a != result.header_b:
        terminal.data(f"header: {result.header_a} -> {result.header_b}")
    for title, names in (("only in A", result.only_a), ("only in B", result.only_b)):
        for name in names:
            terminal.data(f"{title}: {name}")
    if result.changes:
        rows = [
            (
                item.name,
                f"{item.scale_a:.6g}",
                f"{item.scale_b:.6g}",
                "-" if item.ratio is None else f"{item.ratio:.4g}",
            )
            for item in result.changes
        ]
        terminal.table(("tensor", "scale A", "scale B", "B / A"), rows, right=(1, 2, 3))
    order = "" if result.same_order else ", in another order"
    terminal.data(
        f"{result.same} scales are the same{order}, {len(result.changes)} differ, "
        f"{len(result.only_a)} only in A, {len(result.only_b)} only in B"
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _json(value: object) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()

"""Formats of a calibration table: read and written for ``edge table convert``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from edge.cli import options
from edge.errors import ArtifactError, UsageError
from edge.ui.terminal import Terminal

if TYPE_CHECKING:
    from edge.quantization import AlgorithmName, Table, TrtVersion


class Format(str, Enum):
    """Formats of a calibration table."""

    trt = "trt"
    ort_json = "ort-json"
    ort_flatbuffers = "ort-flatbuffers"
    qdq = "qdq"


class ConversionTarget(str, Enum):
    """Runtime that a Q/DQ model is for: they want the nodes in different places."""

    tensorrt = "tensorrt"
    onnxruntime = "onnxruntime"


_SUFFIXES = {".json": Format.ort_json, ".flatbuffers": Format.ort_flatbuffers, ".onnx": Format.qdq}


def format_of(path: Path) -> Format:
    """The format that the file's suffix stands for; a table is called anything."""
    return _SUFFIXES.get(path.suffix.lower(), Format.trt)


def import_table(
    source: Path, reads: Format, *, version: TrtVersion | None, algorithm: AlgorithmName | None, terminal: Terminal
) -> Table:
    """The table in a file of a foreign format; ``version`` and ``algorithm`` are for its header.

    Raises:
        ArtifactError, ModelError, StoreError, UsageError: it cannot be read or converted.
    """
    from edge.quantization import table_formats

    if reads is Format.qdq:
        from edge.model import onnx_model

        return table_formats.from_qdq(
            onnx_model.read(_model(source)), version=version, algorithm=algorithm, where=source
        )
    data = options.read(source)
    if reads is Format.ort_json:
        return table_formats.from_ort_json(data, version=version, algorithm=algorithm, where=source)
    terminal.warn(
        "onnxruntime leaves negative values out of this file unless it calibrated symmetrically: "
        "prefer the calibration.json next to it"
    )
    return table_formats.from_ort_flatbuffers(data, version=version, algorithm=algorithm, where=source)


def export_table(
    table: Table, writes: Format, *, model: Path | None, target: ConversionTarget, where: Path, terminal: Terminal
) -> bytes:
    """The table in the format ``writes``; ``model`` is for Q/DQ, and ``where`` is the place of the table in messages.

    Raises:
        ArtifactError, ModelError, UsageError: it cannot be read or converted.
    """
    from edge.quantization import calibration_table, table_formats

    if writes is Format.trt:
        return calibration_table.write(table)
    try:
        if writes is Format.ort_json:
            return table_formats.to_ort_json(table)
        if writes is Format.ort_flatbuffers:
            terminal.info("this format has no place for the header: --trt and --as give it back")
            return table_formats.to_ort_flatbuffers(table)
        if model is None:
            raise UsageError("a Q/DQ model is made from a table and a model", hint="add --model model.onnx")
        from edge.model import onnx_model

        with terminal.progress() as listen:
            return table_formats.to_qdq(table, onnx_model.read(_model(model)), target=target.value, listen=listen)
    except ArtifactError as exc:
        raise ArtifactError(exc.what, where=exc.where or where, hint=exc.hint) from exc


def _model(path: Path) -> Path:
    """``path``, which the command line names: the error of a missing model speaks of the profile."""
    if not path.is_file():
        raise UsageError("there is no such model", where=path)
    return path

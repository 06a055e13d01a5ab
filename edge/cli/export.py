"""Export a network of torchvision, timm or a file to ONNX.

The model is checked against torch on random input. Size, crop, interpolation, mean and std come from the metadata of
its weights, so nothing is guessed. Needs torch; if it is missing, the error has the install command.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from edge.cli import options
from edge.errors import QualityError, UsageError
from edge.ui.terminal import Terminal

if TYPE_CHECKING:
    from edge.model import ExportedModel

# Minimum SQNR of the logits; float32 sums in another order give 100 dB and more.
_MIN_SQNR_DB = 60.0


def command(
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="torchvision:NAME, timm:NAME or FILE.py:FUNCTION.", show_default=False),
    ],
    *,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The ONNX file to write.")],
    weights: Annotated[
        str, typer.Option(metavar="WEIGHTS", help="default, none (random), or a file with a state dict.")
    ] = "default",
    classes: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Number of classes.", show_default="the weights'")
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=8, metavar="N", help="Height and width.", show_default="the weights', or 224")
    ] = None,
    opset: Annotated[
        int, typer.Option(min=11, metavar="N", help="ONNX opset: 18 for TensorRT 10 and later, 17 for TensorRT 8.6.")
    ] = 18,
    profile: Annotated[
        str | None,
        typer.Option("--profile", "-p", metavar="NAME", help="Name of the profile.", show_default="the file's"),
    ] = None,
    no_profile: Annotated[bool, typer.Option("--no-profile", help="Write the model only.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing files.")] = False,
    as_json: options.Json = False,
) -> None:
    """Export a network to ONNX."""
    from edge.artifacts import store
    from edge.cli import init
    from edge.model import torch_export

    parsed = torch_export.TorchSource.parse(source)
    if output.exists() and not force:
        raise UsageError("the output file already exists", where=output, hint="--force overwrites it")
    target = None if no_profile else init.target_of(profile or output.stem, force=force)
    terminal = Terminal()
    terminal.info(f"exporting {source} with opset {opset}")
    found = torch_export.load(parsed, weights=weights, classes=classes, size=size)
    exported = torch_export.export(found, opset=opset, source=source)
    data = exported.proto.SerializeToString()
    sqnr = _check(data, exported)
    store.write_bytes(output, data)
    result = {
        "model": str(output),
        "bytes": len(data),
        "sqnr_db": sqnr,
        "profile": None if target is None else str(target),
    }
    if target is not None:
        init.write_profile(target, output)
    if as_json:
        terminal.data(msgspec.json.encode(result).decode())
        return
    same = (
        "the outputs are identical to torch's" if sqnr is None else f"the outputs match torch's with SQNR {sqnr:.0f} dB"
    )
    terminal.data(f"{output}: {len(data) / 1e6:.1f} MB, {same}")
    if target is not None:
        terminal.data(f"{target}: written; preprocessing from {'the weights' if found.preprocess else 'a guess'}")


def _check(data: bytes, exported: ExportedModel) -> float | None:
    """Return the SQNR in dB of onnxruntime's logits against torch's, for batches of two and of one; None if equal."""
    from edge.backends import OrtSession
    from edge.stats import sqnr_db

    session = OrtSession(data, precision="fp32", threads=None)
    measured = [sqnr_db(session.infer(exported.example[:size]).logits, exported.answer[:size]) for size in (2, 1)]
    session.close()
    worst = min((value for value in measured if value is not None), default=None)
    if worst is not None and worst < _MIN_SQNR_DB:
        raise QualityError(
            f"the exported model's outputs differ from torch's: SQNR {worst:.1f} dB, but at least 60 dB are required"
        )
    return worst

"""List, show and check device profiles."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from edge.artifacts import encode_masked
from edge.cli import options
from edge.errors import ModelError, ProfileError
from edge.ui.terminal import Terminal

app = typer.Typer(no_args_is_help=True)

Name = Annotated[str | None, typer.Argument(help="Profile name or file.", show_default="this machine's")]


@app.command("list")
def list_(*, as_json: options.Json = False) -> None:
    """List the profiles, and mark the default of this machine."""
    from edge.cli import paths
    from edge.config import profiles
    from edge.system import device

    found_here = paths.profiles()
    own = paths.default_profile(device.identify())
    rows = []
    for name, path in found_here.items():
        entry: dict[str, object] = {"name": name, "path": str(path), "default": name == own}
        try:
            found = profiles.read_profile(path)
            entry |= {"family": found.family, "backend": found.backend, "precision": found.precision}
        except ProfileError as exc:
            entry["error"] = str(exc)
        rows.append(entry)
    terminal = Terminal()
    if as_json:
        terminal.data(msgspec.json.encode(rows).decode())
        return
    if not rows:
        terminal.info(
            "no profiles: this folder has no profiles/, edge does not run from a checkout, and nothing was shipped here"
        )
        return
    terminal.table(
        ("profile", "family", "backend", "precision", ""),
        [
            (
                str(row["name"]), str(row.get("family", "")), str(row.get("backend", "")),
                str(row.get("precision", "")), "this machine" if row["default"] else str(row.get("error", "")),
            )
            for row in rows
        ],
    )  # fmt: skip


@app.command()
def show(name: Name = None, *, as_json: options.Json = False) -> None:
    """Show a profile with merged ``extends`` and all defaults; passwords are masked."""
    import yaml

    from edge.cli import paths

    chosen, path = paths.load_profile(name)
    terminal = Terminal()
    content = msgspec.to_builtins(chosen, enc_hook=encode_masked)
    if as_json:
        terminal.data(msgspec.json.encode(content).decode())
        return
    terminal.info(f"{path}  (digest {chosen.digest[:12]})", style="dim")
    terminal.data("# preprocess: mean and std are in units of 8-bit pixel values, 0 to 255")
    terminal.data(yaml.safe_dump(content, sort_keys=False, default_flow_style=None, allow_unicode=True).rstrip())


@app.command()
def check(name: Name = None, *, as_json: options.Json = False) -> None:
    """Check a profile, and that its model and labels exist and match it."""
    from edge import backends
    from edge.cli import paths
    from edge.media import labels
    from edge.model import onnx_model
    from edge.quantization import algorithms
    from edge.telemetry import check_name

    chosen, path = paths.load_profile(name)
    algorithms.complete(chosen.calibration.algorithm, chosen.calibration.parameters)
    check_name(chosen.telemetry.source, key="telemetry.source")
    found = onnx_model.load(Path(chosen.model), chosen.outputs)
    onnx_model.check_fits(found, chosen)
    try:
        # Calibration runs on it, whatever the device has.
        backends.check_readable(found.opset)
    except ModelError as exc:
        raise ModelError(exc.what, where=found.path, hint=exc.hint) from exc
    classes = len(labels.load_names(Path(chosen.labels)))
    if classes != found.classes:
        raise ProfileError(
            f"labels: {classes} names for a model with {found.classes} classes",
            where=path,
            hint=f"check {chosen.labels}",
        )
    terminal = Terminal()
    result = {"profile": str(path), "model": str(found.path), "input": str(found.input), "classes": classes}
    text = f"{path}: good; {found.path.name} has the input {found.input} and {classes} classes"
    terminal.data(msgspec.json.encode(result).decode() if as_json else text)

"""Make, check, sign and share what a device needs, as one file.

A bundle holds the resolved profile, the model, labels, calibration tables and golden pictures, and a manifest with the
sha256 of every file. `edge bundle --profile NAME -o FILE` is short for `edge bundle create`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from typer.core import TyperGroup

from edge.cli import options
from edge.ui import Terminal

if TYPE_CHECKING:
    from edge.bundle import Bundle


class _ShortForm(TyperGroup):
    """`edge bundle -p NAME -o FILE` means `edge bundle create -p NAME -o FILE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - click's context
        """Put in the command that was left out."""
        if args and args[0].startswith("-") and args[0] not in {"-h", "--help"}:
            args = ["create", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(no_args_is_help=True, cls=_ShortForm)

Source = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A .edge file, or the folder that it was unpacked to.")]


@app.command()
def create(
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="File (.edge, .tar) or new folder to write.")],
    profile: options.ProfileName = None,
    cache_dir: options.CacheDir = None,
    golden: Annotated[
        Path | None, typer.Option(help="Golden pictures.", show_default="samples, where it is there")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the bundle.", show_default="the profile's")] = None,
    jetpack: Annotated[list[str] | None, typer.Option(help="JetPack release it is for; may be repeated.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file that is there.")] = False,
    as_json: options.Json = False,
) -> None:
    """Make the bundle of a profile."""
    from edge.bundle import create as making
    from edge.cli import places
    from edge.frames import open_pictures

    chosen, path = places.load_profile(profile)
    terminal = Terminal()
    terminal.say(f"profile {chosen.name} ({path})", style="dim")
    samples = golden or places.home() / "samples"
    pictures = list(open_pictures(samples)) if golden or samples.is_dir() else []
    with terminal.progress() as listen:
        made = making.create(
            chosen, cache=places.cache_folder(cache_dir), out=output, golden=pictures, name=name,
            jetpack=jetpack or [], force=force, listen=listen,
        )  # fmt: skip
    if as_json:
        terminal.data(_json(made))
        return
    size = made.about.total_bytes
    terminal.data(f"{output}: {len(made.files)} files, {_size(size)}, sha256:{made.digest}")


@app.command()
def show(bundle: Source, *, as_json: options.Json = False) -> None:
    """Show what is in a bundle."""
    from edge.bundle import open_bundle

    found = open_bundle(bundle)
    terminal = Terminal()
    if as_json:
        terminal.data(_json(found))
        return
    about = found.about
    terminal.data(f"{about.name}  sha256:{found.digest}")
    terminal.table(
        ("file", "bytes", "sha256"),
        [(file, f"{entry.size:,}", entry.sha256[:12]) for file, entry in sorted(found.files.items())],
        right=(1,),
    )


@app.command()
def verify(bundle: Source, *, as_json: options.Json = False) -> None:
    """Read every file of a bundle and compare it with the manifest."""
    from edge.bundle import open_bundle
    from edge.bundle import verify as check

    found = open_bundle(bundle)
    terminal = Terminal()
    with terminal.progress() as listen:
        check(found, listen=listen)
    result = {"bundle": str(bundle), "digest": found.digest, "files": len(found.files), "ok": True}
    text = f"{bundle}: good; {len(found.files)} files, {_size(found.about.total_bytes)}, sha256:{found.digest}"
    terminal.data(msgspec.json.encode(result).decode() if as_json else text)


def _json(bundle: Bundle) -> str:
    return msgspec.json.encode({"digest": bundle.digest, **msgspec.to_builtins(bundle.about)}).decode()


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"

"""List, extract and check images."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from edge.cli import options
from edge.errors import DataError, QualityError, UsageError
from edge.media import shown
from edge.ui.terminal import Terminal

if TYPE_CHECKING:
    from edge.media import ClassNames, Picture

app = typer.Typer(no_args_is_help=True)

Source = Annotated[
    Path, typer.Argument(help="A folder, an image, a list (.txt), a .csv, or TFRecord shards (also 'train-*').")
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite existing files.")]
Labels = Annotated[Path | None, typer.Option(metavar="FILE", help="Labels of the images: CSV or TSV.")]
ProfileName = Annotated[
    str | None,
    typer.Option("--profile", "-p", metavar="NAME", help="Also accept class names of this profile as labels."),
]


@app.command("list")
def list_(
    source: Source,
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="The list file to write.")],
    labels: Labels = None,
    label_offset: options.LabelOffset = 0,
    profile: ProfileName = None,
    natural: Annotated[bool, typer.Option(help="Sort so that image_2 comes before image_10.")] = False,
    force: Force = False,
    as_json: options.Json = False,
) -> None:
    """Write a portable list of images.

    Paths are relative to the folder of the list, with '/' between folders; the class index follows if known.
    """
    from edge.artifacts import store
    from edge.media import image_lists, picture_sources

    if output.exists() and not force:
        raise UsageError("the list already exists", where=output, hint="--force overwrites it")
    pictures: Iterable[Picture] = picture_sources.open_pictures(
        source, labels=labels, names=_names(profile), label_offset=label_offset
    )
    if natural:
        pictures = sorted(pictures, key=image_lists.natural)
    rendered = image_lists.render_list(pictures, folder=output.parent)
    store.write_bytes(output, rendered.data)
    terminal = Terminal()
    if rendered.outside:
        terminal.warn(f"{rendered.outside} images are outside the folder of the list, so the list is not portable")
    place = shown(str(output))
    result = {
        "list": place,
        "pictures": rendered.pictures,
        "labelled": rendered.labelled,
        "outside": rendered.outside,
    }
    text = f"{place}: {rendered.pictures} images, {rendered.labelled} of them with a class index"
    terminal.data(_json(result) if as_json else text)


@app.command()
def extract(
    source: Annotated[Path, typer.Argument(metavar="SHARD", help="A TFRecord shard, a folder of them, or 'train-*'.")],
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder to write to.")],
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum number of images.")] = None,
    label_offset: Annotated[
        int, typer.Option(help="Added to every class index; -1 for ImageNet shards, which count from 1.")
    ] = 0,
    force: Force = False,
    as_json: options.Json = False,
) -> None:
    """Write the images of TFRecord shards to files.

    The files contain the original bytes; a labels.csv has the class indices. Run the command again to continue after an
    interruption; images of another shard can be added to the same folder.
    """
    from edge.media import picture_sets, picture_sources

    if not picture_sources.shards_of(source):
        raise DataError(
            "this is not a TFRecord shard",
            where=source,
            hint="their names are like train-00000-of-01024 or name.tfrecord",
        )
    terminal = Terminal()
    with terminal.progress() as listen:
        pictures, damage = picture_sets.list_all(source, limit=limit, listen=listen)
        if damage is not None:
            hint = f"get the shard again, or use the {len(pictures)} records before the damage: --limit {len(pictures)}"
            raise DataError(damage.what, where=damage.where, hint=hint if pictures else damage.hint) from damage
        done = picture_sets.extract(pictures, output, label_offset=label_offset, force=force, listen=listen)
    # With an offset the user has answered that already.
    warning = None if label_offset else picture_sets.counts_from_one(done)
    if warning is not None:
        terminal.warn(warning.text)
    place = shown(str(output))
    result = {"folder": place, "label_offset": label_offset, **msgspec.to_builtins(done)}
    kept = f" ({done.kept} of them existed already)" if done.kept else ""
    text = f"{place}: {done.pictures} images{kept}, {done.labelled} of them with a class index in {picture_sets.TRUTH}"
    terminal.data(_json(result) if as_json else text)


@app.command()
def check(
    source: Source,
    *,
    labels: Labels = None,
    label_offset: options.LabelOffset = 0,
    profile: ProfileName = None,
    as_json: options.Json = False,
) -> None:
    """Decode every image and report the bad ones.

    Exits with 1 if an image is bad or, with --labels, has no class index.
    """
    from edge.media import picture_sets

    terminal = Terminal()
    with terminal.progress() as listen:
        found = picture_sets.check(
            source, labels=labels, names=_names(profile), label_offset=label_offset, listen=listen
        )
    if as_json:
        terminal.data(_json({"source": shown(str(source)), **msgspec.to_builtins(found)}))
    elif found.bad:
        terminal.table(("image", "problem"), [(item.name, item.problem) for item in found.bad])
    else:
        terminal.data(f"{shown(str(source))}: {found.pictures} images, all good")
    if found.bad:
        raise QualityError(
            f"{_counted(len(found.bad), 'problem')} in {_counted(found.pictures, 'image')}", where=source
        )


def _names(profile: str | None) -> ClassNames | None:
    from edge.cli import paths

    return None if profile is None else paths.class_names(paths.load_profile(profile)[0])


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _json(value: object) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()

"""Make a bundle from a profile: all files that it names, checked. Its bytes do not depend on when or where it is made.

The same inputs give the same bytes: files are sorted, and the manifest contains no time, user, host or folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import msgspec

from edge import __version__
from edge.artifacts import FileEntry, Secret, is_stream, store, temporary_folder
from edge.backends.tensorrt import timing_cache
from edge.calibration import FoundArtifact, cache_keys
from edge.config import Family, Profile
from edge.deploy.bundle import archive, wheels
from edge.deploy.bundle.closed import check_profile
from edge.deploy.bundle.golden import FILE, FOLDER, encode, refer, taken_over
from edge.deploy.bundle.manifest import (
    FORMAT,
    MANIFEST,
    MAX_WORD,
    PROFILE,
    TABLES,
    BundleManifest,
    check_entries,
    encode_manifest,
)
from edge.deploy.bundle.reader import Bundle, Meter, open_bundle
from edge.errors import ArtifactError, DataError, ProfileError, UsageError
from edge.events import Listener, Note, Progress, ignore_events
from edge.media import Picture, labels
from edge.model import onnx_model, preprocessing
from edge.system import device

MAX_GOLDEN = 256
Content = Path | bytes


def create(
    profile: Profile,
    *,
    cache: Path,
    out: Path,
    golden: Sequence[Picture] = (),
    reference: Bundle | None = None,
    name: str | None = None,
    jetpack: Sequence[str] = (),
    with_wheels: bool = False,
    force: bool = False,
    listen: Listener = ignore_events,
) -> Bundle:
    """Write the bundle of ``profile`` to ``out``: a tar if it ends in ``.edge`` or ``.tar``, else a folder.

    The reference answers for the ``golden`` images are computed with ONNX Runtime, or copied from the bundle
    ``reference``. ``with_wheels`` adds packages to install edge on a device without edge and without a network.

    Raises:
        ArtifactError: INT8 is requested, but its table is missing, corrupt, or made with other inputs.
        ModelError, ProfileError, DataError, UsageError, StoreError: an input is missing or invalid, or the bundle
        cannot be written.
    """
    check_out(out, force=force)
    check_words(profile, name, jetpack)
    check_secrets(profile)
    contents: dict[str, Content] = {}
    info: dict[str, Any] = {"precision": profile.precision, "profile_digest": profile.digest}
    _add_model(profile, contents, info)
    table = None
    if profile.precision == "int8":
        table = cache_keys.find_table(profile, cache)
        _add_table(profile, table, cache, contents, info)
    contents.update(timing_caches(profile.family, cache))
    if golden:
        _add_golden(profile, golden, contents, info, table=table, reference=reference, listen=listen)
    recipe = _add_recipe(profile, contents)
    contents[PROFILE] = resolved(profile, recipe=recipe)
    for key in _LEFT_OUT:
        if _value_at(profile, key) is not None:
            listen(Note(f"{'.'.join(key)} is a file of this machine and not part of the bundle", "warning"))
    with contextlib.ExitStack() as stack:
        if with_wheels:
            folder = Path(stack.enter_context(temporary_folder("wheels")))
            wanted = wheels.targets(profile.family, jetpack)
            contents.update(wheels.gather(folder, wanted, listen=listen))
            info["wheels"] = wheels.describe(wanted)
        return _finish(contents, info, profile, out, name=name, jetpack=jetpack, listen=listen)


def _finish(
    contents: Mapping[str, Content],
    info: dict[str, Any],
    profile: Profile,
    out: Path,
    *,
    name: str | None,
    jetpack: Sequence[str],
    listen: Listener,
) -> Bundle:
    files = _entries(contents, where=out, listen=listen)
    profile_yaml = contents[PROFILE]
    assert isinstance(profile_yaml, bytes)  # noqa: S101 - for mypy
    check_profile(_Draft(where=str(out), files=files, profile=profile_yaml))
    about = BundleManifest(
        format=FORMAT,
        name=name or profile.name,
        family=profile.family,
        jetpack=sorted(set(jetpack)) or None,
        profile=profile.name,
        created_with=f"edge {__version__}",
        files=files,
        info=info,
    )
    manifest = encode_manifest(about)
    if is_tar(out):
        with archive.staged(out) as path:
            _write(path, manifest, files, contents, listen=listen)
            made = open_bundle(path)
        if is_stream(out):
            return made
    else:
        _write(out, manifest, files, contents, listen=listen)
    made = open_bundle(out)
    # The signature that is there belongs to the bundle that was there before.
    made.signature_path.unlink(missing_ok=True)
    return made


class _Draft(msgspec.Struct, frozen=True, kw_only=True):
    """The profile part of a bundle that is being made."""

    where: str
    files: dict[str, FileEntry]
    profile: bytes

    def read(self, _name: str) -> bytes:
        """Return the profile."""
        return self.profile


# Keys of a profile that name files of this machine.
_LEFT_OUT = (("web", "token_file"), ("telemetry", "log"))


def resolved(profile: Profile, *, recipe: str | None = None) -> bytes:
    """Return the profile as one YAML file that extends nothing; its paths are those of the bundle.

    Args:
        profile: the profile.
        recipe: the file of the bundle with the profile's quantization recipe, if it names one.
    """
    import yaml

    content = msgspec.to_builtins(profile, enc_hook=Secret.reveal)
    content["model"] = f"model/{Path(profile.model).name}"
    content["labels"] = f"labels/{Path(profile.labels).name}"
    content["calibration"]["images"] = None
    for section, name in _LEFT_OUT:
        content[section][name] = None
    if recipe is not None:
        content["quantization"]["recipe"] = recipe
    text = yaml.safe_dump(
        _without_none(content), sort_keys=False, default_flow_style=None, allow_unicode=True, width=120
    )
    return f"# {profile.name}, resolved: everything that it extended is in here.\n{text}".encode()


def _value_at(profile: Profile, key: tuple[str, str]) -> object:
    return getattr(getattr(profile, key[0]), key[1])


def check_secrets(profile: Profile) -> None:
    """Refuse a profile with a password or a token in a URL, because everybody with the bundle could read it.

    Raises:
        ProfileError: a key contains a secret; the message names the key.
    """
    cameras = {f"cameras.{name}": camera for name, camera in profile.cameras.items()}
    found = [(f"{name}.source", camera.source, f"--camera {name[8:]}=@FILE") for name, camera in cameras.items()]
    found += [
        (f"{name}.pipeline", camera.pipeline, "--camera NAME=@FILE, and {device} in the pipeline")
        for name, camera in {"camera": profile.camera, **cameras}.items() if camera.pipeline is not None
    ]  # fmt: skip
    found += [("notify.to", address, "--notify @FILE") for rule in profile.notify for address in rule.to]
    for key, secret, hint in found:
        if secret.is_masked:
            raise ProfileError(
                f"{key}: {secret} contains a password or a token, which everybody with the bundle could read",
                hint=f"set it on the device: edge run {hint}",
            )  # fmt: skip


def _add_recipe(profile: Profile, contents: dict[str, Content]) -> str | None:
    """Add the profile's quantization recipe as a file, and return its path in the bundle."""
    path = Path(profile.quantization.recipe)
    if profile.quantization.recipe in {cache_keys.AUTO_RECIPE, cache_keys.NO_RECIPE}:
        return None
    if not path.is_file():
        raise ArtifactError(
            "the profile's quantization recipe is missing", where=path, hint="run edge tune, or set recipe: auto"
        )
    name = f"recipe/{path.name}"
    contents[name] = path
    return name


def _without_none(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, dict):
        return {name: _without_none(item) for name, item in value.items() if item is not None}
    return value


def _add_model(profile: Profile, contents: dict[str, Content], info: dict[str, Any]) -> None:
    path = Path(profile.model)
    model = onnx_model.load(path, profile.outputs)
    onnx_model.check_fits(model, profile)
    names = labels.load_names(Path(profile.labels))
    if len(names) != model.classes:
        raise ProfileError(
            f"labels: {len(names)} names for a model with {model.classes} classes",
            where=profile.labels,
            hint="check `labels:` in the profile",
        )
    for name in (path.name, *onnx_model.external_files(path)):
        contents[f"model/{name}"] = path.parent / name
    contents[f"labels/{Path(profile.labels).name}"] = Path(profile.labels)
    info["model"] = model.sha256
    info["preprocess"] = preprocessing.digest(profile.preprocess, profile.input)
    info["input"], info["output"] = str(model.input), str(model.output)


def _add_table(
    profile: Profile, table: FoundArtifact, cache: Path, contents: dict[str, Content], info: dict[str, Any]
) -> None:
    """Add the table and, if it has them, its recipe and the prepared model."""
    paths = [cache_keys.manifest_path(table.path), *(table.path.parent / name for name in table.manifest.files)]
    if cache_keys.find_recipe(table) is not None:
        prepared = Path(cache_keys.quantized_profile(profile, table).model)
        paths += [prepared, cache_keys.manifest_path(prepared)]
    for path in paths:
        contents[f"{TABLES}/{path.relative_to(cache).as_posix()}"] = path
    # The folder of the calibration images belongs to this machine.
    own = cache_keys.manifest_path(table.path).relative_to(cache).as_posix()
    contents[f"{TABLES}/{own}"] = store.encode_without(table.manifest, "source")
    info["table"] = table.sha256


def timing_caches(family: Family, cache: Path) -> dict[str, Content]:
    """Return the timing caches in ``cache`` that were measured on a module of ``family``, with their manifests.

    Those for another power mode or TensorRT are included, because only the device knows the right one. A damaged one is
    left out; ``edge cache`` shows it.
    """
    found: dict[str, Content] = {}
    for path in sorted(timing_cache.folder_of(cache).glob("*.json")):
        try:
            manifest = store.load(path, kind=timing_cache.KIND)
        except ArtifactError:
            continue
        if _family_of(manifest.key) == family:
            for name in (path.name, *manifest.files):
                found[f"{timing_cache.FOLDER}/{name}"] = path.parent / name
    return found


def _family_of(key: store.Key) -> Family | None:
    module = key.get("module")
    if isinstance(module, str):
        return device.family_of(module)
    return "rtx" if key.get("gpu") else None


def _add_golden(
    profile: Profile,
    golden: Sequence[Picture],
    contents: dict[str, Content],
    info: dict[str, Any],
    *,
    table: FoundArtifact | None,
    reference: Bundle | None,
    listen: Listener,
) -> None:
    if len(golden) > MAX_GOLDEN:
        raise UsageError(f"{len(golden)} golden images are too many; the maximum is {MAX_GOLDEN}", hint="--golden DIR")
    pictures: dict[str, Picture] = {}
    for picture in golden:
        target = f"{FOLDER}/{picture.name}"
        if target in pictures:
            raise DataError("two golden images have the same name", where=picture.where)
        pictures[target] = picture
        contents[target] = picture.read_checked()
    made_from = {"model": info["model"], "preprocess": info["preprocess"], "table": info.get("table")}
    if reference is not None:
        expected = taken_over(reference, like=made_from, pictures=pictures)
    else:
        expected = refer(
            profile, pictures, model=info["model"], preprocess=info["preprocess"],
            table=None if table is None else cache_keys.read_table(table),
                quantized=None if table is None else cache_keys.quantized_profile(profile, table),
                table_sha256=info.get("table"), listen=listen,
        )  # fmt: skip
    contents[FILE] = encode(expected)
    info["golden"] = len(pictures)


def _entries(contents: Mapping[str, Content], *, where: Path, listen: Listener) -> dict[str, FileEntry]:
    files = {}
    for done, name in enumerate(sorted(contents), 1):
        content = contents[name]
        if isinstance(content, bytes):
            files[name] = FileEntry(store.sha256_bytes(content), len(content))
        else:
            files[name] = FileEntry(store.sha256_file(content), content.stat().st_size)
        listen(Progress("hash", done, len(contents), "files"))
    check_entries(files, where=str(where))
    return files


def check_out(out: Path, *, force: bool) -> None:
    """Check the output path before the work starts: existing files are not overwritten without ``force``."""
    if out.is_dir() and any(out.iterdir()):
        raise UsageError("the folder is not empty", where=out, hint="give a new folder, or a file that ends in .edge")
    if out.is_dir() and is_tar(out):
        raise UsageError("a folder has the path of the output file", where=out)
    if out.exists() and not out.is_dir() and not force and not is_stream(out):
        raise UsageError("the file already exists", where=out, hint="--force overwrites it")


def check_words(profile: Profile, name: str | None, jetpack: Sequence[str]) -> None:
    """Check names and JetPack releases before the work starts."""
    for word in (name or profile.name, profile.name):
        if not word.isprintable() or not 0 < len(word) <= MAX_WORD:
            raise UsageError(f"{word[:MAX_WORD]!a} cannot be the name of a bundle", hint="--name NAME")
    for release in jetpack:
        if re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,3}){0,2}", release) is None:
            raise UsageError(f"{release!r} is not a release of JetPack", hint="--jetpack 6.2, or 6 for all of them")
    if jetpack and profile.family in {"host", "rtx"}:
        raise UsageError(f"the profile {profile.name} is for {profile.family}, which has no JetPack")


def is_tar(out: Path) -> bool:
    """Return True if a bundle of this name is written as one file."""
    return out.suffix in {archive.SUFFIX, ".tar"} or is_stream(out)


def _write(
    out: Path, manifest: bytes, files: Mapping[str, FileEntry], contents: Mapping[str, Content], *, listen: Listener
) -> None:
    meter = Meter("write", sum(entry.size for entry in files.values()), listen)

    def copy(name: str, target: IO[bytes]) -> None:
        _copy(contents[name], files[name], target)
        meter.add(files[name].size)

    if is_tar(out):
        with store.atomic_write(out) as file:
            archive.write(file, manifest, files, copy)
        return
    for name in sorted(files):
        with store.atomic_write(out / name) as file:
            copy(name, file)
    store.write_bytes(out / MANIFEST, manifest)


def _copy(content: Content, entry: FileEntry, target: IO[bytes]) -> None:
    """Copy a file that was hashed before.

    Raises:
        ArtifactError: the file has changed since then.
    """
    if isinstance(content, bytes):
        target.write(content)
        return
    state, size = hashlib.sha256(), 0
    with content.open("rb") as file:
        while piece := file.read(1 << 20):
            size += len(piece)
            if size > entry.size:
                break
            state.update(piece)
            target.write(piece)
    if size != entry.size or state.hexdigest() != entry.sha256:
        raise ArtifactError(
            "the file changed while the bundle was made", where=content, hint="run the same command again"
        )

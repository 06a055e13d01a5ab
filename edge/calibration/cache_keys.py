"""Cache keys: find and verify the calibration table and the engine that belong to a profile.

A key contains everything that an artifact depends on. An artifact whose key differs in any field is never used, and the
difference is reported.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from edge import quantization
from edge.artifacts import Key, KeyDifference, Manifest, sha256_bytes, sha256_file, store
from edge.backends import ENGINE_SETTINGS, Backend
from edge.config import Precision, Profile, did_you_mean
from edge.errors import ArtifactError, ModelError, ProfileError, UsageError
from edge.model import onnx_model, preprocessing

# Default parameters of TensorRT's legacy calibrator: the values of NVIDIA's MLPerf code.
_LEGACY = {"quantile": 0.99999, "cutoff": 1.0}
TABLE = "calibration table"
PREPARED = "prepared model"
RECIPE_SUFFIX, PREPARED_SUFFIX = ".recipe.json", ".prepared.onnx"
# Values of `quantization.recipe` that are no file.
AUTO_RECIPE, NO_RECIPE = "auto", "none"
ENGINE = "engine"


# An onnx.ModelProto, which only its adapters import.
OnnxModel: TypeAlias = Any


class TableOrigin(msgspec.Struct, frozen=True):
    """Origin of a table according to its manifest; empty without one, as for most foreign tables.

    ``zero_tensors`` were zero for every image: their scale of 0 is intended.
    """

    finding: quantization.TableFinding | None = None
    zero_tensors: tuple[str, ...] = ()


class FoundArtifact(msgspec.Struct, frozen=True):
    """A verified artifact with the requested key."""

    path: Path
    manifest: Manifest

    @property
    def sha256(self) -> str:
        """Sha256 of the artifact's first file."""
        return self.manifest.files[self.path.name].sha256


def table_path(profile: Profile, cache: Path) -> Path:
    """Return the path of the profile's table: ``<cache>/<model>/<algorithm>[-<parameters>][-tensorrt].table``."""
    calibration, quantization = profile.calibration, profile.quantization
    parts = [calibration.algorithm, *(f"{value:g}" for _, value in sorted(calibration.parameters.items()))]
    if calibration.engine != "edge":
        parts.append(calibration.engine)
    elif quantization.recipe != NO_RECIPE:
        parts.append(profile.shift)
        if quantization.recipe != AUTO_RECIPE:
            parts.append(Path(quantization.recipe).name.split(".")[0])
        own = _chosen_layers(profile)
        if own:
            parts.append(store.canonical_digest(own)[:8])
    return model_folder(profile, cache) / f"{'-'.join(parts)}.table"


def model_folder(profile: Profile, cache: Path) -> Path:
    """Return the folder of a model's statistics and tables: ``<cache>/<model>``, or a second one if that is taken.

    Two models with the same file name, or two preprocessings of a model, get separate folders: the second is
    ``<cache>/<model>-<digest>``.
    """
    path = Path(profile.model)
    plain = cache / path.stem
    wanted = (onnx_model.fingerprint(path), preprocessing.digest(profile.preprocess, profile.input))
    own = cache / f"{path.stem}-{store.canonical_digest(list(wanted))[:8]}"
    if own.is_dir():
        return own
    owners = {(manifest.key.get("model"), manifest.key.get("preprocess")) for _, manifest in tables_in(plain)}
    return plain if not owners or wanted in owners else own


def tables_in(folder: Path) -> list[tuple[Path, Manifest]]:
    """List the tables of one folder with their unverified manifests; unreadable ones are left out."""
    found = []
    for path in sorted(folder.glob("*.json")):
        with contextlib.suppress(ArtifactError):
            manifest = store.load(path, kind=TABLE, check_files=False)
            found.append((path.with_suffix(".table"), manifest))
    return found


class TableEntry(msgspec.Struct, frozen=True):
    """One calibration table of a cache, for lists.

    Attributes:
        folder: name of the model's folder in the cache.
        table: file name.
        algorithm: according to the manifest.
        pictures: number of images, None if unknown.
        preprocess: mean and std as text; empty in tables of earlier versions.
        bytes: size of the folder: tables, statistics, recipes and prepared models.
    """

    folder: str
    table: str
    algorithm: str
    pictures: int | None
    preprocess: str
    bytes: int


def list_tables(cache: Path) -> list[TableEntry]:
    """List the calibration tables of a cache, by folder and name."""
    found = []
    for folder in sorted(path for path in cache.glob("*") if path.is_dir()):
        size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
        for path, manifest in tables_in(folder):
            spec = manifest.info.get("preprocess")
            words = f"mean {_value(spec['mean'])}, std {_value(spec['std'])}" if isinstance(spec, dict) else ""
            algorithm, pictures = str(manifest.key.get("algorithm", "")), manifest.info.get("pictures")
            found.append(TableEntry(folder.name, path.name, algorithm, pictures, words, size))
    return found


def clear_tables(cache: Path, folder: str, *, dry_run: bool) -> list[Path]:
    """Remove the files in one folder of a cache: tables, statistics, recipes and prepared models.

    Returns:
        The removed files, or the files to remove.

    Raises:
        UsageError: the cache has no such folder of tables.
    """
    target = cache / folder
    if Path(folder).name != folder or folder in {"", ".", ".."} or not tables_in(target):
        known = sorted({entry.folder for entry in list_tables(cache)})
        raise UsageError(
            f"there are no tables in {folder!r}{did_you_mean(folder, known)}", where=cache, hint="edge cache list"
        )
    files = sorted(path for path in target.iterdir() if path.is_file())
    if not dry_run:
        with store.lock(target / "tables"):
            for path in files:
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            for path in target.glob("*.lock"):
                path.unlink()
            target.rmdir()
    return files


def preprocess_info(profile: Profile) -> dict[str, Any]:
    """Return the preprocessing for a table's manifest, to be used in messages."""
    content: dict[str, Any] = msgspec.to_builtins(profile.preprocess)
    return {**content, "height": profile.input.height, "width": profile.input.width}


def _difference_in_words(manifest: Manifest, profile: Profile) -> str:
    """Describe how the model and preprocessing of a table differ from the profile's; empty if they agree."""
    words = []
    if manifest.key.get("model") != onnx_model.fingerprint(Path(profile.model)):
        words.append(f"another {Path(profile.model).name}")
    if manifest.key.get("preprocess") != preprocessing.digest(profile.preprocess, profile.input):
        older = preprocessing.older_definition(str(manifest.key.get("preprocess")), profile.preprocess, profile.input)
        before, now = manifest.info.get("preprocess"), preprocess_info(profile)
        changed = [
            f"{name} {_value(before.get(name))} -> {_value(now[name])}"
            for name in now
            # A table without a roi may be older than the key.
            if isinstance(before, dict)
            and (name in before or name == "roi")
            and _value(before.get(name)) != _value(now[name])
        ]
        older = preprocessing.older_definition(str(manifest.key.get("preprocess")), profile.preprocess, profile.input)
        words.append(older or f"other preprocessing{': ' if changed else ''}{', '.join(changed)}")
    return " and ".join(words)


def _value(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"[{','.join(f'{item:g}' for item in value)}]"
    return str(value)


def _chosen_layers(profile: Profile) -> dict[str, object]:
    """Return the layer settings of the section ``quantization``, if they are not the default."""
    section = profile.quantization
    default = type(section)()
    names = ("exclude", "include", "attention", "residual")
    return {name: getattr(section, name) for name in names if getattr(section, name) != getattr(default, name)}


def quantization_key(profile: Profile) -> str:
    """Return the digest of the settings that a recipe depends on."""
    section = profile.quantization
    recipe = section.recipe
    if recipe not in {AUTO_RECIPE, NO_RECIPE}:
        recipe = sha256_file(Path(recipe)) if Path(recipe).is_file() else recipe
    return store.canonical_digest({"recipe": recipe, "shift": profile.shift, **_chosen_layers(profile)})


def table_key(profile: Profile) -> dict[str, store.Scalar]:
    """Return the part of a table's key that follows from the profile; ``calibrate`` adds the images."""
    calibration = profile.calibration
    common: dict[str, store.Scalar] = {
        "model": onnx_model.fingerprint(Path(profile.model)),
        "preprocess": preprocessing.digest(profile.preprocess, profile.input),
        "algorithm": calibration.algorithm,
    }
    if profile.output_name is not None:
        common["output_name"] = profile.output_name
    if calibration.engine != "edge":
        # The device's own calibrators: edge's statistics have no part in it.
        own = {f"algorithm.{name}": value for name, value in sorted(device_parameters(profile).items())}
        return common | own | {"engine": calibration.engine}
    from edge.quantization import algorithms

    parameters = algorithms.complete(calibration.algorithm, calibration.parameters)
    prepared = {} if profile.quantization.recipe == NO_RECIPE else {"quantization": quantization_key(profile)}
    return {
        **common,
        **{f"algorithm.{name}": value for name, value in sorted(parameters.items())},
        "statistics_format": quantization.FORMAT,
        **prepared,
    }


def device_parameters(profile: Profile) -> dict[str, float]:
    """Return the parameters of TensorRT's own calibrator: quantile and cutoff of ``legacy``, otherwise none.

    Raises:
        ProfileError: the profile has a parameter that the calibrator does not have.
    """
    calibration = profile.calibration
    known = dict(_LEGACY) if calibration.algorithm == "legacy" else {}
    unknown = sorted(calibration.parameters.keys() - known.keys())
    if unknown:
        has = ", ".join(known) or "none"
        raise ProfileError(
            f"calibration.parameters: TensorRT's {calibration.algorithm} calibrator has no {', '.join(unknown)}",
            where=profile.name,
            hint=f"it has {has}",
        )
    return known | calibration.parameters


def manifest_path(path: Path) -> Path:
    """Return the path of the manifest next to an artifact."""
    return path.with_suffix(".json")


def find_table(profile: Profile, cache: Path) -> FoundArtifact:
    """Find and verify the table that belongs to ``profile``.

    Raises:
        ArtifactError: the table is missing, corrupt, or has another key (the message names the field).
    """
    path = table_path(profile, cache)
    if not manifest_path(path).is_file():
        profile, path = _without_recipe(profile, cache, path)
    with_engine = "" if profile.calibration.engine == "edge" else f" --engine {profile.calibration.engine}"
    again = f"edge calibrate --profile {profile.name}{with_engine} --images DIR"
    if not manifest_path(path).is_file():
        raise ArtifactError(_missing(profile, path, cache), where=path, hint=again)
    manifest = _loaded(manifest_path(path), kind=TABLE, again=again)
    if path.name not in manifest.files:
        raise ArtifactError(f"the manifest next to it belongs to {', '.join(manifest.files)}", where=path, hint=again)
    wanted = table_key(profile)
    known = {name: manifest.key.get(name) for name in wanted}
    known |= {name: value for name, value in manifest.key.items() if name.startswith("algorithm.")}
    changed = store.differences(known, wanted)
    if changed:
        older = preprocessing.older_definition(str(known["preprocess"]), profile.preprocess, profile.input)
        what = f"with {older}" if older else f"with other inputs ({_reported(changed)})"
        raise ArtifactError(f"the table was made {what}", where=path, hint=f"{again} (or --force)")
    return FoundArtifact(path, manifest)


def find_table_if_needed(profile: Profile, cache: Path) -> FoundArtifact | None:
    """Find a table like :func:`find_table`; return None without a table if the model already has Q/DQ nodes.

    Raises:
        ArtifactError: as there.
    """
    try:
        return find_table(profile, cache)
    except ArtifactError:
        folder = table_path(profile, cache)
        if manifest_path(folder).is_file() or not is_quantized(profile):
            raise
        return None


def is_quantized(profile: Profile) -> bool:
    """Return True if the model already has Q/DQ nodes (quantization-aware training, Model Optimizer, edge's export).

    Raises:
        ModelError: the model cannot be read.
    """
    from edge.model import has_qdq

    return has_qdq(onnx_model.read(Path(profile.model), profile.outputs))


def _missing(profile: Profile, path: Path, cache: Path) -> str:
    if path.is_file():
        return "the table has no manifest"
    what = f"no calibration table for {profile.name}"
    for other, manifest in tables_in(cache / Path(profile.model).stem):
        if other.name == path.name and (difference := _difference_in_words(manifest, profile)):
            return f"{what}: {other} was made with {difference}"
    return what


def _without_recipe(profile: Profile, cache: Path, path: Path) -> tuple[Profile, Path]:
    """Return profile and path of a table from an edge version without recipes, if there is one; else unchanged."""
    section, calibration = profile.quantization, profile.calibration
    if section.recipe == AUTO_RECIPE and not _chosen_layers(profile):
        plain = msgspec.structs.replace(profile, quantization=msgspec.structs.replace(section, recipe=NO_RECIPE))
        from edge.quantization import algorithms

        if calibration.algorithm == algorithms.AUTO:
            # The default algorithm of profiles at that time.
            named = msgspec.structs.replace(calibration, algorithm="entropy2")
            plain = msgspec.structs.replace(plain, calibration=named)
        older = table_path(plain, cache)
        if manifest_path(older).is_file():
            return plain, older
    return profile, path


def find_recipe(found: FoundArtifact) -> quantization.Recipe | None:
    """Find the recipe next to a table; None for a table of the user's unchanged network.

    Raises:
        ArtifactError: the recipe is damaged.
    """
    path = found.path.with_suffix(RECIPE_SUFFIX)
    return quantization.decode_recipe(path.read_bytes(), where=path) if path.name in found.manifest.files else None


def quantized_profile(profile: Profile, found: FoundArtifact) -> Profile:
    """Return ``profile`` with the model for the table ``found``: the prepared one, or the user's own.

    A missing prepared model, as in a checkout, is made again from the user's model and the recipe.

    Raises:
        ArtifactError: the prepared model is not the one for the table.
        ModelError: the recipe is for another model.
    """
    recipe = find_recipe(found)
    if recipe is None:
        return profile
    path = found.path.with_suffix(PREPARED_SUFFIX)
    key = prepared_key(found)
    wanted = found.manifest.info.get("prepared_sha256")
    try:
        manifest = store.load(manifest_path(path), kind=PREPARED)
        current = not store.differences(manifest.key, key) and manifest.files[path.name].sha256 == wanted
    except (ArtifactError, KeyError):
        current = False
    if not current:
        data = prepared_bytes(quantization.apply(onnx_model.folded(Path(profile.model), profile.outputs), recipe))
        if sha256_bytes(data) != wanted:
            raise ArtifactError(
                "the prepared model cannot be made again from model and recipe",
                where=path,
                hint=f"edge calibrate --profile {profile.name} --images DIR --force",
            )
        save_prepared(path, data, key)
    return msgspec.structs.replace(profile, model=str(path), output_name=None)


def prepared_key(found: FoundArtifact) -> Key:
    """Return the key of a prepared model: the user's model and the recipe."""
    recipe = found.manifest.files[found.path.with_suffix(RECIPE_SUFFIX).name]
    return {"model": found.manifest.key["model"], "recipe": recipe.sha256}


def prepared_bytes(model: OnnxModel) -> bytes:
    """Serialize a prepared model (an onnx.ModelProto): the same model gives the same bytes."""
    try:
        return bytes(model.SerializeToString(deterministic=True))
    except (ValueError, RuntimeError) as exc:
        raise ModelError(
            "the prepared model is above 2 GB, which ONNX cannot store in one file",
            hint="set quantization: {recipe: none} in the profile",
        ) from exc


def save_prepared(path: Path, data: bytes, key: Key) -> None:
    """Write a prepared model and its manifest."""
    store.save(manifest_path(path), kind=PREPARED, files={path.name: data}, key=key, info={})


def origin(path: Path, profile: Profile) -> TableOrigin:
    """Read the origin of a table (model and preprocessing) from its manifest."""
    try:
        manifest = store.load(manifest_path(path), kind=TABLE, check_files=False)
    except ArtifactError:
        return TableOrigin()
    if path.name not in manifest.files:
        return TableOrigin()
    again = f"edge calibrate --profile {profile.name} --images DIR"
    if store.sha256_file(path) != manifest.files[path.name].sha256:
        text = "the table is not the one that its manifest was written for"
        return TableOrigin(quantization.TableFinding("error", "changed", text, hint=again))
    wanted = {name: value for name, value in table_key(profile).items() if name in {"model", "preprocess"}}
    if store.differences({name: manifest.key.get(name) for name in wanted}, wanted):
        text = f"this table was made with {_difference_in_words(manifest, profile)}"
        return TableOrigin(quantization.TableFinding("error", "origin", text, hint=again))
    return TableOrigin(
        quantization.TableFinding("ok", "origin", "its manifest says it was made for this model and preprocessing"),
        tuple(manifest.info["zero_tensors"]),
    )


def read_table(found: FoundArtifact) -> quantization.Table:
    """Read the table of ``found``."""
    from edge.quantization import calibration_table

    return calibration_table.parse(found.path.read_bytes(), where=str(found.path))


def engine_manifest_path(profile: Profile, engines: Path, precision: Precision) -> Path:
    """Return the path of the manifest of a profile's engine."""
    return engines / profile.name / f"{Path(profile.model).stem}-{precision}.json"


def recipe_sha256(table: FoundArtifact | None) -> str | None:
    """Return the sha256 of the recipe next to a table, if there is one."""
    entry = None if table is None else table.manifest.files.get(table.path.with_suffix(RECIPE_SUFFIX).name)
    return None if entry is None else entry.sha256


def engine_key(profile: Profile, backend: Backend, *, precision: Precision, table: FoundArtifact | None) -> Key:
    """Return the key of an engine: everything that it depends on."""
    batch = profile.input.batch
    return {
        "model": onnx_model.fingerprint(Path(profile.model)),
        "profile": profile.digest,
        "precision": precision,
        "int8_route": profile.int8_route if precision == "int8" else None,
        "table": table.sha256 if table else None,
        **({"recipe": recipe} if (recipe := recipe_sha256(table)) else {}),
        "qdq": quantization.DEFINITION if precision == "int8" else None,
        "batch": f"{batch.min}-{batch.opt}-{batch.max}",
        "dla_core": profile.build.dla_core,
        **backend.identity(),
    }


def find_engine(
    profile: Profile, backend: Backend, *, precision: Precision, cache: Path, engines: Path, called: str | None = None,
    exact: bool = False,
) -> FoundArtifact:  # fmt: skip
    """Find the engine that belongs to ``profile`` on this machine, and verify it before use.

    ``called`` is the user's name for the profile, if it differs. ``exact`` also refuses an engine that was built in
    another power mode or with other clocks; otherwise the session only warns of them.

    Raises:
        ArtifactError: the engine is missing, corrupt, or has another key (the message names the field).
    """
    path = engine_manifest_path(profile, engines, precision)
    again = f"edge build --profile {called or profile.name}" + (
        "" if precision == profile.precision else f" --precision {precision}"
    )
    if not path.is_file():
        raise ArtifactError(f"no {precision} engine for {profile.name} has been built", where=path.parent, hint=again)
    manifest = _loaded(path, kind=ENGINE, again=again)
    table = find_table_if_needed(profile, cache) if precision == "int8" else None
    changed = store.differences(manifest.key, engine_key(profile, backend, precision=precision, table=table))
    if not exact:
        changed = [item for item in changed if not _is_tolerable(item)]
    if changed:
        raise ArtifactError(f"the engine was built with other inputs ({_reported(changed)})", where=path, hint=again)
    return FoundArtifact(path.parent / next(iter(manifest.files)), manifest)


def _is_tolerable(difference: KeyDifference) -> bool:
    """Return True for a device setting, and for values that are unknown for engines from earlier versions of edge."""
    is_unknown = difference.field == "multiprocessors" and None in (difference.old, difference.new)
    return difference.field in ENGINE_SETTINGS or is_unknown


def _loaded(path: Path, *, kind: str, again: str) -> Manifest:
    """Load the manifest at ``path`` and verify its files; ``again`` is the command that rebuilds them."""
    try:
        return store.load(path, kind=kind)
    except ArtifactError as exc:
        raise ArtifactError(exc.what, where=exc.where, hint=again) from exc


def _reported(changed: list[KeyDifference]) -> str:
    return "; ".join(str(difference) for difference in changed)

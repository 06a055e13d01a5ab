"""Run a calibration from images to the table: statistics (:mod:`edge.calibration.collection`), ranges, table.

:func:`calibrate_on_device` uses the calibrators of the installed TensorRT for statistics and ranges.
"""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from edge.artifacts import sha256_bytes, store
from edge.backends import BuildRequest, TimingUse
from edge.calibration import cache_keys, collection
from edge.calibration.preparation import PreparationSettings, Prepared, finish, prepare
from edge.calibration.quality import MeasuredAccuracy
from edge.calibration.scoring import PictureInputs, Scorer, measured_accuracy, spread
from edge.config import Profile
from edge.errors import ArtifactError, DataError, DeviceError, EdgeError, ModelError, ProfileError
from edge.events import Event, Listener, Note, Progress, ignore_events
from edge.media import Pictures, decode
from edge.model import Preprocessor, onnx_model
from edge.quantization import (
    FloatLayer,
    Recipe,
    Statistics,
    algorithms,
    calibration_table,
    decode_recipe,
    encode_recipe,
    match_layers,
)
from edge.system import identify, sysfs

if TYPE_CHECKING:
    from edge.backends.tensorrt import Built, Feed, TensorRT
    from edge.model import Model

# Images for the preparation: channel means come from all, the first of them score the steps.
SAMPLE = 64

# Peak memory of the preparation as a multiple of the weights (measured: 3.1 GB for 144 MB), and the size of a model
# in bytes from which it is checked.
_MEMORY_PER_WEIGHT_BYTE, _LARGE = 22, 256 << 20
# Manifest fields that identify the TensorRT and device that made a table.
_MAKER = frozenset({"tensorrt", "module", "sm", "gpu", "machine"})


class CalibrationOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of a calibration. ``changed`` names the fields in which the previous table differed.

    ``zero_tensors`` were zero for every picture: their range is 0, and the layers that read them stay in float.
    """

    table: Path
    sha256: str
    work: Literal["unchanged", "from statistics", "collected"]
    changed: list[str]
    pictures: int
    tensors: int
    zero_tensors: list[str]
    seconds: float


def calibrate(
    profile: Profile,
    pictures: Pictures,
    *,
    cache: Path,
    force: bool = False,
    threads: int | None = None,
    executor: collection.Executor | None = None,
    listen: Listener = ignore_events,
    should_stop: Callable[[], bool] = lambda: False,
) -> CalibrationOutcome | None:
    """Make the table for ``profile``, or find it if it already exists.

    ``executor`` collects the statistics, by default this process; ``threads`` is per process. Returns None if
    ``should_stop`` ended it early; the statistics so far are saved, and the next call continues with any executor.

    Raises:
        DataError: an image is unreadable, damaged, or was changed in the meantime; the set is never silently shortened.
        ModelError: the model is unusable, or overflows on an image.
        DeviceError: the workers of an executor died too often, or cannot be reached.
        StoreError: the cache folder cannot be written.
    """
    start = time.monotonic()
    model = onnx_model.load(Path(profile.model), profile.outputs)
    onnx_model.check_fits(model, profile)
    settings = preparation_settings(profile, model)
    if not _hashed(pictures, listen=listen, should_stop=should_stop):
        return None
    key = {**cache_keys.table_key(profile), "images": pictures.digest(), "batch": profile.calibration.batch}
    path = cache_keys.table_path(profile, cache)
    current, changed = _compare(path, key, listen)
    if current is not None and not changed and not force:
        return _outcome(path, current, "unchanged", [], start)
    for difference in changed:
        listen(Note(f"the existing table differs in {difference}"))

    if settings.rewrites or settings.algorithm == algorithms.AUTO:
        check_memory(model.path, profile.quantization.recipe, meminfo=sysfs.read_text("/proc/meminfo"))
    plan = collection.plan(onnx_model.folded(model.path, model.outputs).graph, model.activations)
    is_auto = settings.algorithm == algorithms.AUTO
    needs = "histogram" if is_auto else algorithms.find(settings.algorithm, settings.parameters)[0].needs
    with _locked(path, listen):
        observed = collection.collect_statistics(
            profile, model, plan, pictures,
            needs=needs, cache=path.parent, key=key, force=force, threads=threads, executor=executor,
            listen=listen, should_stop=should_stop,
        )  # fmt: skip
        if observed is None:
            return None
        statistics = plan.complete(observed.statistics)
        try:
            prepared, accuracy = _prepared(
                profile, model, pictures, statistics, settings, listen=listen, should_stop=should_stop
            )
        except CancelledError:
            return None
        manifest = save_quantization(
            path, prepared, profile=profile, key=key, pictures=pictures, statistics_file=observed.path.name,
            accuracy=accuracy,
        )  # fmt: skip
    return _outcome(path, manifest, "from statistics" if observed.reused else "collected", changed, start)


def check_memory(model: Path, recipe: str, *, meminfo: str | None) -> None:
    """Refuse a model whose preparation needs more memory than is free, before it starts.

    Args:
        model: the model file; its external weights count.
        recipe: the profile's ``quantization.recipe``; only ``auto`` measures every step.
        meminfo: text of /proc/meminfo; None where there is none.

    Raises:
        ModelError: the machine has less memory than the preparation needs.
    """
    free = sysfs.proc_bytes(meminfo or "", "MemAvailable")
    files = [model, *(model.parent / name for name in onnx_model.external_files(model))]
    weights = sum(path.stat().st_size for path in files if path.is_file())
    needed = _MEMORY_PER_WEIGHT_BYTE * weights
    if free is None or recipe != cache_keys.AUTO_RECIPE or weights < _LARGE or needed <= free:
        return
    raise ModelError(
        f"preparing {weights / 1e9:.1f} GB of weights for INT8 needs about {needed / 1e9:.0f} GB of memory, and "
        f"{free / 1e9:.1f} GB are free",
        where=model,
        hint="calibrate on a machine with more memory; or quantization: {recipe: none} and calibration: {algorithm: "
        "entropy2} in the profile, which need less",
    )


def preparation_settings(profile: Profile, model: Model) -> PreparationSettings:
    """Return the settings of a profile's sections ``calibration`` and ``quantization``.

    Raises:
        ProfileError: the algorithm is unknown, or a pattern matches no layer of the model.
    """
    calibration, section = profile.calibration, profile.quantization
    parameters = algorithms.complete(calibration.algorithm, calibration.parameters)
    folded = onnx_model.folded(model.path, model.outputs)
    if section.recipe == cache_keys.NO_RECIPE and (section.exclude or section.include):
        raise ProfileError(
            "quantization.exclude and include need a recipe", where=profile.name, hint="quantization: {recipe: auto}"
        )
    kept = set(match_layers(folded, section.include, key="include"))
    floats = [
        FloatLayer(name, "excluded in the profile")
        for name in match_layers(folded, section.exclude, key="exclude")
        if name not in kept
    ]
    return PreparationSettings(
        algorithm=calibration.algorithm,
        parameters=parameters if calibration.algorithm != algorithms.AUTO else {},
        attention=section.attention,
        residual=section.residual,
        shift=profile.shift,
        rewrites=section.recipe != cache_keys.NO_RECIPE,
        float_layers=tuple(floats),
    )


def _prepared(
    profile: Profile,
    model: Model,
    pictures: Pictures,
    statistics: Statistics,
    settings: PreparationSettings,
    *,
    listen: Listener,
    should_stop: Callable[[], bool],
) -> tuple[Prepared, MeasuredAccuracy | None]:
    """Run the stack, or apply the profile's recipe file, or only turn statistics into ranges.

    With the stack comes the accuracy of what it made, on the calibration images that it looked at.
    """
    folded = onnx_model.folded(model.path, model.outputs)
    recipe = profile.quantization.recipe
    if recipe not in {cache_keys.AUTO_RECIPE, cache_keys.NO_RECIPE}:
        return _from_file(Path(recipe), profile, model, statistics, settings), None
    start = Recipe(model=model.sha256, algorithm=settings.algorithm, parameters=settings.parameters)
    if not settings.rewrites and settings.algorithm != algorithms.AUTO:
        return finish(folded, statistics, start), None
    sample = spread(sorted(pictures, key=lambda picture: picture.sha256), SAMPLE)
    inputs = PictureInputs(sample, Preprocessor(profile.preprocess, profile.input))
    scorer = Scorer(
        onnx_model.read(model.path, model.outputs), inputs, fixed_batch=model.fixed_batch, should_stop=should_stop
    )
    inputs.prepare(listen=listen, should_stop=should_stop)
    made = prepare(folded, statistics, scorer, settings, recipe=start, on_event=listen)
    for step in made.recipe.steps:
        if step.sqnr_db is not None:
            why = "" if step.is_applied else f": left out, {step.reason}"
            listen(Note(f"{step.name}: {step.sqnr_db:.2f} dB of logit SQNR{why}"))
    return made, measured_accuracy(scorer.score(made.form()))


def _from_file(
    path: Path, profile: Profile, model: Model, statistics: Statistics, settings: PreparationSettings
) -> Prepared:
    """Apply a recipe file to the model; the profile's ``exclude`` and ``include`` are added.

    Raises:
        ArtifactError: the recipe is missing, or for another model.
        ModelError: the recipe names layers or tensors that the model does not have.
    """
    try:
        recipe = decode_recipe(path.read_bytes(), where=path)
    except OSError as exc:
        raise ArtifactError(f"cannot read the recipe: {exc.strerror or exc}", where=path, hint="edge tune") from exc
    if recipe.model and recipe.model != model.sha256:
        raise ArtifactError(
            f"this recipe is for another model ({recipe.model[:12]}, not {model.sha256[:12]})",
            where=path,
            hint=f"quantization: {{recipe: auto}} in {profile.name}, or edge tune",
        )
    folded = onnx_model.folded(model.path, model.outputs)
    match_layers(folded, [item.layer for item in recipe.float_layers], key="recipe")
    included = set(match_layers(folded, profile.quantization.include, key="include"))
    floats = {item.layer: item for item in (*recipe.float_layers, *settings.float_layers) if item.layer not in included}
    return finish(folded, statistics, msgspec.structs.replace(recipe, float_layers=tuple(floats.values())))


def save_quantization(
    path: Path,
    prepared: Prepared,
    *,
    profile: Profile,
    key: store.Key,
    pictures: Pictures,
    statistics_file: str,
    accuracy: MeasuredAccuracy | None = None,
) -> store.Manifest:
    """Write the table to ``path`` and, if there is a recipe, the recipe and the prepared model next to it.

    ``accuracy`` on the calibration images is stored in the table's manifest, where the build reads it.

    Raises:
        StoreError: the folder cannot be written.
        ModelError: the prepared model is above 2 GB.
    """
    table, recipe = prepared.table(), prepared.recipe
    files: dict[str, bytes] = {path.name: calibration_table.write(table)}
    info: dict[str, Any] = {
        "pictures": len(pictures),
        "tensors": len(prepared.ranges),
        "zero_tensors": [tensor for tensor, value in prepared.ranges.items() if value == 0.0],
        "parameters": recipe.parameters,
        "header": table.header.text,
        "machine": platform.machine(),
        "statistics": statistics_file,
        "source": str(Path(pictures.source).absolute()),
        "preprocess": cache_keys.preprocess_info(profile),
    }
    if accuracy is not None:
        info["accuracy"] = msgspec.to_builtins(accuracy)
    if profile.quantization.recipe == cache_keys.NO_RECIPE:
        info["algorithm"] = recipe.algorithm
        return store.save(cache_keys.manifest_path(path), kind=cache_keys.TABLE, files=files, key=key, info=info)
    data = cache_keys.prepared_bytes(prepared.model)
    files[path.with_suffix(cache_keys.RECIPE_SUFFIX).name] = encode_recipe(recipe)
    info |= {
        "algorithm": recipe.algorithm,
        "prepared_sha256": sha256_bytes(data),
        "steps": msgspec.to_builtins(recipe.steps),
        "float_layers": [item.layer for item in recipe.float_layers],
    }
    manifest = store.save(cache_keys.manifest_path(path), kind=cache_keys.TABLE, files=files, key=key, info=info)
    found = cache_keys.FoundArtifact(path, manifest)
    target = path.with_suffix(cache_keys.PREPARED_SUFFIX)
    cache_keys.save_prepared(target, data, cache_keys.prepared_key(found))
    return manifest


def calibrate_on_device(
    profile: Profile,
    pictures: Pictures,
    backend: TensorRT,
    *,
    cache: Path,
    force: bool = False,
    listen: Listener = ignore_events,
) -> CalibrationOutcome:
    """Make the table with one of TensorRT's own calibrators, from the same images with the same preprocessing.

    The images are fed in the order of their sha256, because the result of these calibrators depends on order and batch.
    The measured kernel times go into the timing cache, so that the following build is fast.

    Raises:
        DeviceError: this TensorRT lacks this calibrator, read fewer batches than planned, or has no GPU.
        DataError: an image is unreadable, or their number is not a multiple of the batch.
        ProfileError, ModelError, MissingDependencyError, StoreError: another step failed.
    """
    start = time.monotonic()
    calibration = profile.calibration
    title, known = backend.calibrators()
    if calibration.algorithm not in known:
        raise DeviceError(
            f"{title} has no {calibration.algorithm} calibrator (it has {', '.join(known) or 'none at all'})",
            hint="without --engine, edge's own algorithms make the table on any host" if not known else "--algorithm",
        )
    if profile.build.dla_core is not None and calibration.algorithm != "entropy2":
        raise ProfileError("a DLA only supports tables of entropy2", where=profile.name, hint="--algorithm entropy2")
    parameters = cache_keys.device_parameters(profile)
    model = onnx_model.load(Path(profile.model), profile.outputs)
    onnx_model.check_fits(model, profile)
    batch = model.fixed_batch or calibration.batch
    whole = len(pictures) // batch * batch
    if whole != len(pictures) or not whole:
        raise DataError(
            f"{len(pictures)} images are not a multiple of the calibration batch {batch}; "
            "TensorRT requires full batches",
            hint=f"--limit {whole}" if whole else "--batch 1",
        )
    _hashed(pictures, listen=listen, should_stop=lambda: False)
    own = {name: value for name, value in backend.identity().items() if name in _MAKER}
    key = {**cache_keys.table_key(profile), "images": pictures.digest(), "batch": batch, **own}
    path = cache_keys.table_path(profile, cache)
    current, changed = _compare(path, key, listen)
    if current is not None and not changed and not force:
        return _outcome(path, current, "unchanged", [], start)
    for difference in changed:
        listen(Note(f"the existing table differs in {difference}"))
    feed = _feed(profile, pictures, batch=batch, parameters=parameters, listen=listen)
    with _locked(path, listen):
        built = backend.calibrate(_calibrating(profile, model, cache), feed, listen=_only_notes(listen))
        manifest = _save_device_table(path, built, key=key, parameters=parameters, pictures=len(pictures), title=title)
    return _outcome(path, manifest, "collected", changed, start)


def _locked(path: Path, listen: Listener) -> contextlib.AbstractContextManager[None]:
    """Acquire the lock of the table at ``path``; report a wait for another process first."""
    return store.lock(path, waiting=lambda: listen(Note(f"another process is writing {path.name}: waiting for it")))


def _feed(profile: Profile, pictures: Pictures, *, batch: int, parameters: dict[str, float], listen: Listener) -> Feed:
    """Feed batches to TensorRT, decoded and preprocessed on demand."""
    import numpy as np

    from edge.backends.tensorrt import Feed
    from edge.quantization import AlgorithmName

    preprocessor = Preprocessor(profile.preprocess, profile.input)
    ordered = sorted(pictures, key=lambda picture: picture.sha256)

    def batches() -> Iterator[object]:
        for first in range(0, len(ordered), batch):
            chosen = ordered[first : first + batch]
            exif = preprocessor.spec.exif
            arrays = [preprocessor(decode(p.read_checked(), name=p.where, exif=exif)) for p in chosen]
            yield np.ascontiguousarray(np.stack(arrays))
            listen(Progress("calibrate", first + batch, len(ordered)))

    return Feed(
        algorithm=msgspec.convert(profile.calibration.algorithm, AlgorithmName),
        batches=batches(),
        planned=len(ordered) // batch,
        batch=batch,
        memory=None,
        **parameters,
    )


def _calibrating(profile: Profile, model: Model, cache: Path) -> BuildRequest:
    """Return the profile for the calibrating build: INT8 by the implicit route, whatever the profile's route is."""
    return BuildRequest(
        profile=msgspec.structs.replace(profile, int8_route="implicit"), model=model.path, precision="int8",
        timing=TimingUse(folder=cache),
    )  # fmt: skip


def _only_notes(listen: Listener) -> Listener:
    """Pass on only notes: the build's own percentage would disturb the progress in images."""

    def on_event(event: Event) -> None:
        if isinstance(event, Note) or event.stage != "calibrate":
            listen(event)

    return on_event


def _save_device_table(
    path: Path, built: Built, *, key: store.Key, parameters: dict[str, float], pictures: int, title: str
) -> store.Manifest:
    table = built.table
    if table is None:
        raise DeviceError(f"{title} made no calibration table")
    return store.save(
        cache_keys.manifest_path(path),
        kind=cache_keys.TABLE,
        files={path.name: calibration_table.write(table)},
        key=key,
        info={
            "made_by": title,
            "device": msgspec.to_builtins(identify()),
            "pictures": pictures,
            "tensors": len(table.bits),
            "zero_tensors": [name for name, bits in table.bits.items() if bits & 0x7FFFFFFF == 0],
            "parameters": parameters,
            "header": table.header.text,
            "machine": platform.machine(),
            "notes": built.notes,
        },
    )


def _hashed(pictures: Pictures, *, listen: Listener, should_stop: Callable[[], bool]) -> bool:
    """Read every image once to compute its digest; return True if it was not stopped."""
    for done, picture in enumerate(pictures, start=1):
        if should_stop():
            return False
        _ = picture.sha256
        listen(Progress("hash", done, len(pictures)))
    return True


def _compare(path: Path, key: store.Key, listen: Listener) -> tuple[store.Manifest | None, list[str]]:
    """Return the manifest of an intact existing table, and the fields in which it differs from ``key``.

    Each algorithm has its own table; if there is none yet, the model's most similar table is compared.
    """
    where = cache_keys.manifest_path(path)
    if not where.is_file():
        return None, _nearest(where.parent, key)
    try:
        manifest = _manifest_of(path)
    except ArtifactError as exc:
        listen(Note(f"the existing table cannot be used and is made again: {exc.what} ({exc.where})", "warning"))
        return None, []
    return manifest, [str(difference) for difference in store.differences(manifest.key, key)]


def _manifest_of(path: Path) -> store.Manifest:
    manifest = store.load(cache_keys.manifest_path(path), kind=cache_keys.TABLE)
    if path.name not in manifest.files:
        raise ArtifactError(f"its manifest belongs to {', '.join(manifest.files)}", where=path)
    return manifest


def _nearest(folder: Path, key: store.Key) -> list[str]:
    """Return the fields in which the most similar table in ``folder`` differs from ``key``; empty without a table."""
    found = []
    for where in sorted(folder.glob("*.json")):
        # The folder also has statistics and their manifests, and damaged neighbours are irrelevant here.
        with contextlib.suppress(EdgeError):
            manifest = store.load(where, kind=cache_keys.TABLE, check_files=False)
            found.append([str(difference) for difference in store.differences(manifest.key, key)])
    return min(found, key=len, default=[])


def _outcome(path: Path, manifest: store.Manifest, work: str, changed: list[str], start: float) -> CalibrationOutcome:
    content = {
        "table": path,
        "sha256": manifest.files[path.name].sha256,
        "work": work,
        "changed": changed,
        "pictures": manifest.info["pictures"],
        "tensors": manifest.info["tensors"],
        "zero_tensors": manifest.info["zero_tensors"],
        "seconds": time.monotonic() - start,
    }
    return msgspec.convert(content, CalibrationOutcome)

"""The operation ``build``: profile + model + table -> engine + manifest. Nothing is built that is there already."""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import msgspec

from edge.artifacts import store
from edge.backends import Backend, BuildRequest, BuiltEngine, Int8Plan, Layers, TimingUse
from edge.calibration import HEADER_VERSION, FoundArtifact, MeasuredAccuracy, cache_keys, quality
from edge.config import Precision, Profile
from edge.errors import ArtifactError, MissingDependencyError, ProfileError, QualityError, os_error
from edge.events import Event, Listener, Note, ignore_events
from edge.media import Picture, open_pictures
from edge.model import inspection, onnx_model, weighted_layers
from edge.quantization import Table, TableFinding, calibration_table, float_layers_of, table_check
from edge.system import device

# Of the weighted layers of an FP16 engine whose precision is known, at least so many run in FP16 or INT8.
_MIN_FP16_SHARE = 0.5
_OTHER_MAJOR = (
    "edge build --retarget writes the header for it and keeps the scales; or edge calibrate --engine tensorrt"
)
# Builds whose times a manifest remembers.
_KEPT_BUILDS = 5


class BuildOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of a build or, for a dry run, would do; ``why`` names what was missing or differed.

    ``route`` is how INT8 reached the engine and ``route_why`` why that way. ``timing`` is how the build used its timing
    cache, where the backend has one. ``accuracy`` is that of INT8 on calibration pictures, where it was measured.
    ``dla_layers`` are the layers of an engine for a DLA, each with the unit that runs it.
    """

    engine: Path | None
    manifest: Path
    precision: Precision
    work: Literal["unchanged", "built", "would build"]
    why: list[str]
    table: Path | None
    layers: Layers | None
    seconds: float
    warnings: list[str]
    route: str | None = None
    route_why: str | None = None
    timing: dict[str, Any] | None = None
    accuracy: MeasuredAccuracy | None = None
    dla_layers: list[dict[str, Any]] = []


def build(
    profile: Profile,
    backend: Backend,
    *,
    cache: Path,
    engines: Path,
    precision: Precision | None = None,
    force: bool = False,
    dry_run: bool = False,
    retarget: bool = False,
    timing_cache: bool = True,
    error_on_miss: bool = False,
    listen: Listener = ignore_events,
) -> BuildOutcome:
    """Build the engine that ``profile`` asks for, unless the one that is there is exactly that.

    ``retarget`` lets a table that another major version of TensorRT has made be used here. ``timing_cache``: False
    measures every kernel again and leaves the kept timing cache alone; ``error_on_miss``: a kernel that it does not
    know ends the build. Both leave the engine's identity as it is.

    Raises:
        ArtifactError: INT8 is asked for, and its table is missing, corrupt, bad, or made for something else.
        QualityError: INT8 is asked for and too few layers got it, and the profile is strict; or its accuracy on the
            calibration pictures has collapsed or misses a limit of the profile.
        ModelError, DeviceError, MissingDependencyError, StoreError: as the words say.
    """
    start = time.monotonic()
    precision = precision or profile.precision
    if profile.backend == "onnxruntime" and precision == "fp16":
        raise ProfileError("ONNX Runtime on a CPU runs fp32 or int8, not fp16", hint="--precision fp32")
    table = cache_keys.find_table_if_needed(profile, cache) if precision == "int8" else None
    path = cache_keys.engine_manifest_path(profile, engines, precision)
    key = cache_keys.engine_key(profile, backend, precision=precision, table=table)
    existing, why = _existing(path, key)
    made_from = table.path if table else None
    if existing is not None and not why and not force:
        engine = path.parent / next(iter(existing.files))
        layers = msgspec.convert(existing.info["layers"], Layers)
        accuracy = _known_accuracy(existing)
        _judged(profile, accuracy)
        return BuildOutcome(
            engine=engine, manifest=path, precision=precision, work="unchanged", why=[], table=made_from,
            layers=layers, seconds=time.monotonic() - start, warnings=existing.info["warnings"],
            route=existing.info.get("int8_route"), route_why=existing.info.get("why"),
            timing=existing.info.get("timing"), accuracy=accuracy, dla_layers=existing.info.get("dla_layers", []),
        )  # fmt: skip
    why = why or ["--force"]
    if dry_run:
        return BuildOutcome(
            engine=None, manifest=path, precision=precision, work="would build", why=why, table=made_from,
            layers=None, seconds=time.monotonic() - start, warnings=[],
        )  # fmt: skip

    model = onnx_model.load(Path(profile.model), profile.outputs)
    onnx_model.check_fits(model, profile)
    warnings: list[str] = []
    accuracy, unmeasured = None, None
    request = BuildRequest(
        profile=profile, model=model.path, precision=precision, table=None,
        timing=TimingUse(folder=cache, ask=timing_cache, only=error_on_miss),
    )  # fmt: skip
    if table is not None:
        content = cache_keys.read_table(table)
        quantized = cache_keys.quantized_profile(profile, table)
        prepared = onnx_model.load(Path(quantized.model), quantized.outputs)
        plan = backend.int8_plan(profile)
        warnings += _checked(content, table, prepared.activations, profile, plan, retarget=retarget)
        request = msgspec.structs.replace(request, table=content, profile=quantized, model=prepared.path)
        accuracy, unmeasured = _accuracy(profile, quantized, table, content, listen)
        for warning in _judged(profile, accuracy, lambda: _worst_layers(quantized, table, content, listen)):
            warnings.append(warning)
            listen(Note(warning, "warning"))
    elif precision == "int8":
        request, unmeasured = _without_table(request), "the model was quantized before it came here"
    built = _built(backend, request, listen, path=path, warnings=warnings)
    engine = _save(
        path, built, key=key, warnings=warnings, seconds=time.monotonic() - start, model=model, before=existing,
        accuracy=_stated(accuracy, unmeasured),
    )  # fmt: skip
    return BuildOutcome(
        engine=engine, manifest=path, precision=precision, work="built", why=why, table=made_from,
        layers=built.layers, seconds=time.monotonic() - start, warnings=warnings,
        route=built.route, route_why=built.info.get("why"), timing=built.info.get("timing"), accuracy=accuracy,
        dla_layers=built.info.get("dla_layers", []),
    )  # fmt: skip


def _without_table(request: BuildRequest) -> BuildRequest:
    """The request for a model with Q/DQ nodes of its own: nothing is added, and only the explicit route takes it."""
    nothing = calibration_table.from_ranges({}, algorithm="entropy2", trt_version=HEADER_VERSION)
    explicit = msgspec.structs.replace(request.profile, int8_route="explicit")
    return msgspec.structs.replace(request, table=nothing, profile=explicit)


def _accuracy(
    profile: Profile, quantized: Profile, table: FoundArtifact, content: Table, listen: Listener
) -> tuple[MeasuredAccuracy | None, str | None]:
    """Accuracy of the table on calibration pictures, or why it is not known.

    It is what the calibration measured, else measured here where the calibration pictures are at hand.
    """
    known = _known_accuracy(table.manifest)
    if known is not None:
        return known, None
    if table.manifest.key.get("engine") is not None:
        return None, "the table names tensors of TensorRT's own network"
    try:
        pictures = _calibration_pictures(profile, table)
        if pictures is None:
            return None, "the calibration pictures are not on this machine"
        from edge.calibration import measure_accuracy

        return measure_accuracy(profile, content, pictures, quantized=quantized, listen=listen), None
    except MissingDependencyError as exc:
        return None, exc.what
    except OSError as exc:
        # Quantizing may need scratch files in the temporary folder.
        raise os_error(exc, exc.filename or tempfile.tempdir or table.path) from exc


def _calibration_pictures(profile: Profile, table: FoundArtifact) -> list[Picture] | None:
    """The pictures that the table was made from, where they are at hand."""
    source = profile.calibration.images or table.manifest.info.get("source")
    if source is None or not Path(str(source)).exists():
        return None
    return list(open_pictures(Path(str(source))))


def _worst_layers(profile: Profile, table: FoundArtifact, content: Table, listen: Listener) -> list[str]:
    pictures = _calibration_pictures(profile, table)
    if pictures is None:
        return []
    from edge.calibration import worst_layers

    return worst_layers(profile, content, pictures, listen=listen)


def _known_accuracy(manifest: store.Manifest) -> MeasuredAccuracy | None:
    found = manifest.info.get("accuracy")
    return None if found is None else msgspec.convert(found, MeasuredAccuracy)


def _stated(accuracy: MeasuredAccuracy | None, unmeasured: str | None) -> dict[str, Any]:
    """Manifest fields for the accuracy: the figures, or why there are none."""
    if accuracy is not None:
        return {"accuracy": msgspec.to_builtins(accuracy)}
    return {} if unmeasured is None else {"accuracy_unmeasured": unmeasured}


def _judged(
    profile: Profile, accuracy: MeasuredAccuracy | None, layers: Callable[[], Sequence[str]] = list
) -> list[str]:
    """Notes about the accuracy of INT8 by the one table of limits; ``layers`` finds those that cost the most.

    Raises:
        QualityError: it has collapsed, or misses a limit of the profile.
    """
    if accuracy is None:
        return []
    hint = f"edge tune --profile {profile.name} --images DIR (calibration pictures)"
    return quality.check(accuracy, profile.quality, hint=hint, layers=layers)


def _built(
    backend: Backend, request: BuildRequest, listen: Listener, *, path: Path, warnings: list[str]
) -> BuiltEngine:
    """Build, and say every warning once; ``warnings`` gets the new ones."""
    received: set[str] = set()

    def on_event(event: Event) -> None:
        # What is said before the work starts, such as a lack of memory, comes back among the notes.
        if isinstance(event, Note):
            received.add(event.text)
        listen(event)

    try:
        built = backend.build(request, listen=on_event)
    except OSError as exc:
        # Backends and their optional dependencies keep scratch files in the temporary folder.
        raise os_error(exc, exc.filename or tempfile.tempdir or path) from exc
    built = _with_asked_precisions(built, request)
    warnings += built.notes + _delivered(built, request.profile, request.precision)
    for warning in warnings:
        if warning not in received:
            listen(Note(warning, "warning"))
    return built


def _with_asked_precisions(built: BuiltEngine, request: BuildRequest) -> BuiltEngine:
    """Note in the description of an INT8 engine which precision the recipe asks for, layer by layer."""
    if request.precision != "int8" or request.table is None:
        return built
    proto = onnx_model.read(request.model, request.profile.outputs)
    floats = float_layers_of(proto).intersection(layer.name for layer in weighted_layers(proto))
    layers = msgspec.structs.replace(built.layers, weighted_float=len(floats))
    looked = built.inspection
    if looked is not None and request.table.bits:
        in_float = "fp32" if request.profile.backend == "onnxruntime" else "fp16"
        nodes = [
            msgspec.structs.replace(node, asked=in_float if node.name in floats else "int8") if node.weighted else node
            for node in looked.nodes
        ]
        looked = msgspec.structs.replace(looked, nodes=nodes)
    return msgspec.structs.replace(built, layers=layers, inspection=looked)


def _existing(path: Path, key: store.Key) -> tuple[store.Manifest | None, list[str]]:
    """The manifest of the engine that is there, and why it is not the one asked for."""
    if not path.is_file():
        return None, ["there is no engine yet"]
    try:
        manifest = store.load(path, kind=cache_keys.ENGINE)
    except ArtifactError as exc:
        return None, [f"the engine that is there is not whole: {exc.what}"]
    return manifest, [str(difference) for difference in store.differences(manifest.key, key)]


def _checked(
    content: Table, table: FoundArtifact, activations: list[str], profile: Profile, plan: Int8Plan, *, retarget: bool
) -> list[str]:
    """Check the table against the network, its route and who reads it; errors raise, the rest comes back as warnings.

    The version in the header binds only a table that one of TensorRT's calibrators has made: edge's own scales belong
    to the ONNX graph, and its tables are written again for whichever TensorRT is to read them.
    """
    made_here = table.manifest.key.get("engine") is None
    findings = table_check.check(
        content, activations, route=plan.route,
        dla=profile.build.dla_core is not None and plan.route == "implicit",
        trt_version=None if made_here or retarget else plan.reader,
        ignorable=table.manifest.info["zero_tensors"],
    )  # fmt: skip
    if not made_here:
        findings = [_of_another(finding) for finding in findings]
    table_check.raise_for(findings, table.path)
    return [finding.text for finding in findings if finding.level == "warning"]


def _of_another(finding: TableFinding) -> TableFinding:
    """Translate a finding for a table that TensorRT itself has made.

    It names the tensors of its own network, which may lack some of the graph's; the build counts what that costs.
    """
    if finding.code == "missing":
        return msgspec.structs.replace(finding, level="warning")
    if finding.code == "version" and finding.level == "error":
        return msgspec.structs.replace(finding, hint=_OTHER_MAJOR)
    return finding


def _delivered(built: BuiltEngine, profile: Profile, precision: Precision) -> list[str]:
    """True if the precision that was asked for is what the engine runs; what is to be said about it.

    Raises:
        QualityError: nothing runs in it; or too little, and the profile is strict.
    """
    layers = built.layers
    if precision == "fp32" or not layers.weighted:
        return []
    if precision == "int8":
        delivered, share, wanted = layers.weighted_int8, layers.int8_share, profile.build.min_int8_share
        if layers.weighted_float >= layers.weighted:
            raise ProfileError(
                f"the recipe keeps all {layers.weighted} weighted layers in float: INT8 changes nothing",
                where=profile.name,
                hint="fewer patterns in quantization.exclude, or --precision fp32",
            )
        limit, hint = f" (build.min_int8_share: {wanted:g})", "edge table check"
    else:
        known = layers.reduced_share
        if known is None:
            return ["FP16 was asked for, and the engine does not show which of its layers run in it"]
        # Where FP32 is the faster kernel TensorRT may take it; most layers in FP32 is another engine than was wanted.
        delivered, share, wanted = layers.weighted_fp16 + layers.weighted_int8, known, _MIN_FP16_SHARE
        limit, hint = "", "build again: TensorRT chooses by measuring, and another program on the GPU disturbs that"
    total = layers.weighted - (layers.weighted_float if precision == "int8" else 0)
    what = f"{precision.upper()} was asked for, and {delivered} of {total} weighted layers run in it"
    if layers.weighted_unknown:
        what += f" (of {layers.weighted_unknown} the engine does not tell)"
    if delivered == 0:
        raise QualityError(what, hint=f"{hint}; edge doctor")
    quantized = _quantized_against_the_recipe(built)
    if quantized and profile.build.strict:
        raise QualityError(quantized, hint="build again; or build.strict: false to accept it")
    if share >= wanted:
        return [quantized] if quantized else []
    what += limit
    if profile.build.strict:
        raise QualityError(what, hint=f"{hint}; or build.strict: false to accept it")
    return [what, *([quantized] if quantized else [])]


def _quantized_against_the_recipe(built: BuiltEngine) -> str | None:
    """Name the layers that the recipe keeps in float and that the engine runs in INT8; None where there are none."""
    if built.inspection is None:
        return None
    found = [item.node for item in built.inspection.results() if item.asked != "int8" and item.is_met is False]
    if not found:
        return None
    return f"the recipe keeps {len(found)} layers in float that the engine runs in INT8: {', '.join(found[:3])}"


def _save(
    path: Path,
    built: BuiltEngine,
    *,
    key: store.Key,
    warnings: list[str],
    seconds: float,
    model: onnx_model.Model,
    before: store.Manifest | None,
    accuracy: dict[str, Any],
) -> Path:
    engine = path.with_suffix(built.suffix)
    machine = device.identify()
    info = {
        "layers": msgspec.to_builtins(built.layers),
        "int8_route": built.route,
        "warnings": warnings,
        "build_seconds": round(seconds, 3),
        "input": str(model.input),
        "output": str(model.output),
        "output_kind": model.kind,
        "adaption": list(model.changes),
        "device": msgspec.to_builtins(machine),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        **accuracy,
        **built.info,
    }
    if built.inspection is not None and not built.inspection.absent:
        info["counts"] = msgspec.to_builtins(built.inspection.counts())
    info["builds"] = _builds(before, info)
    with store.lock(path):
        store.save(path, kind=cache_keys.ENGINE, files=_files(engine, built), key=key, info=info)
    return engine


def _builds(before: store.Manifest | None, info: dict[str, Any]) -> list[dict[str, Any]]:
    """The last builds of this engine, the newest last: how long each took, and with which timing cache."""
    earlier = before.info.get("builds") if before is not None else None
    this = {name: info.get(name) for name in ("build_seconds", "peak_memory_mib", "timing_cache")}
    this["at_utc"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return [*(earlier if isinstance(earlier, list) else []), this][-_KEPT_BUILDS:]


def _files(engine: Path, built: BuiltEngine) -> dict[str, bytes]:
    """The engine first, then what is known of its inside."""
    files = {engine.name: built.data}
    if built.inspection is not None:
        files[engine.stem + inspection.SUFFIX] = inspection.encode_inspection(built.inspection)
    if built.raw_inspection is not None:
        files[engine.stem + inspection.RAW_SUFFIX] = built.raw_inspection
    return files

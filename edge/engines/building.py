"""Build an engine and its manifest from profile, model and table, unless exactly that engine already exists."""

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
from edge.errors import ArtifactError, MissingDependencyError, ModelError, ProfileError, QualityError, os_error
from edge.events import Event, Listener, Note, ignore_events
from edge.media import Picture, open_pictures
from edge.model import inspection, onnx_model, weighted_layers
from edge.quantization import Table, TableFinding, calibration_table, float_layers_of, table_check
from edge.system import device

# Minimum share of the weighted layers of an FP16 engine, of those with known precision, that run in FP16 or INT8.
_MIN_FP16_SHARE = 0.5
_OTHER_MAJOR = (
    "edge build --retarget writes the header for it and keeps the scales; or edge calibrate --engine tensorrt"
)
# Number of layers that a message names.
_NAMED = 3
# Number of past builds whose times are stored in the manifest.
_KEPT_BUILDS = 5


class BuildOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of a build or a dry run; ``why`` lists the reasons for building.

    ``route`` is the way INT8 reached the engine and ``route_why`` the reason for it. ``timing`` describes the use of
    the timing cache, if the backend has one. ``accuracy`` is the accuracy of INT8 on calibration images, if it was
    measured. ``dla_layers`` are the layers of an engine for a DLA, each with the unit that runs it.
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
    """Build the engine for ``profile`` unless it already exists.

    ``retarget`` allows a table from another major version of TensorRT. ``timing_cache``: False measures every kernel
    again and leaves the stored timing cache unchanged; ``error_on_miss`` fails the build on a kernel that is not in the
    cache. Neither is part of the engine's key.

    Raises:
        ArtifactError: INT8 is requested, but its table is missing, corrupt, invalid, or made for something else.
        QualityError: too few layers run in INT8 for a strict profile; or its accuracy on the
            calibration images has collapsed or misses a limit of the profile.
        ModelError, DeviceError, MissingDependencyError, StoreError: a build step failed, or INT8 is requested for a
            network without weighted layers.
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

    model = _fitting_model(profile, precision)
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
        request, unmeasured = _without_table(request), "the model was already quantized"
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


def _fitting_model(profile: Profile, precision: Precision) -> onnx_model.Model:
    """Load the model of a profile and check that it fits it.

    Raises:
        ModelError: it does not, or INT8 is requested and the network has no layer that could run in it.
    """
    model = onnx_model.load(Path(profile.model), profile.outputs)
    onnx_model.check_fits(model, profile)
    if precision == "int8" and not weighted_layers(onnx_model.read(model.path, profile.outputs)):
        raise ModelError(
            "the network has no convolution or matrix product with constant weights: nothing can run in INT8",
            where=model.path,
            hint="--precision fp32",
        )
    return model


def _without_table(request: BuildRequest) -> BuildRequest:
    """Prepare the request for a model with its own Q/DQ nodes: no table, and the explicit route only."""
    nothing = calibration_table.from_ranges({}, algorithm="entropy2", trt_version=HEADER_VERSION)
    explicit = msgspec.structs.replace(request.profile, int8_route="explicit")
    return msgspec.structs.replace(request, table=nothing, profile=explicit)


def _accuracy(
    profile: Profile, quantized: Profile, table: FoundArtifact, content: Table, listen: Listener
) -> tuple[MeasuredAccuracy | None, str | None]:
    """Return the INT8 accuracy of the table on calibration images, or the reason why it is unknown.

    The figures come from the calibration; otherwise they are measured now, if the calibration images are available.
    """
    known = _known_accuracy(table.manifest)
    if known is not None:
        return known, None
    if table.manifest.key.get("engine") is not None:
        return None, "the table names tensors of TensorRT's own network"
    try:
        pictures = _calibration_pictures(profile, table)
        if pictures is None:
            return None, "the calibration images are not on this machine"
        from edge.calibration import measure_accuracy

        return measure_accuracy(profile, content, pictures, quantized=quantized, listen=listen), None
    except MissingDependencyError as exc:
        return None, exc.what
    except OSError as exc:
        # Quantizing may need scratch files in the temporary folder.
        raise os_error(exc, exc.filename or tempfile.tempdir or table.path) from exc


def _calibration_pictures(profile: Profile, table: FoundArtifact) -> list[Picture] | None:
    """Return the images that the table was made from; None if they are not available."""
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
    """Return the manifest fields for the accuracy: the figures, or the reason why there are none."""
    if accuracy is not None:
        return {"accuracy": msgspec.to_builtins(accuracy)}
    return {} if unmeasured is None else {"accuracy_unmeasured": unmeasured}


def _judged(
    profile: Profile, accuracy: MeasuredAccuracy | None, layers: Callable[[], Sequence[str]] = list
) -> list[str]:
    """Return notes about the INT8 accuracy, judged by the limits; ``layers`` finds the layers with the largest loss.

    Raises:
        QualityError: the accuracy has collapsed, or misses a limit of the profile.
    """
    if accuracy is None:
        return []
    hint = f"edge tune --profile {profile.name} --images DIR (calibration images)"
    return quality.check(accuracy, profile.quality, hint=hint, layers=layers)


def _built(
    backend: Backend, request: BuildRequest, listen: Listener, *, path: Path, warnings: list[str]
) -> BuiltEngine:
    """Build and report each warning once; new ones are appended to ``warnings``."""
    received: set[str] = set()

    def on_event(event: Event) -> None:
        # Messages from before the work, such as a lack of memory, are among the notes, too.
        if isinstance(event, Note):
            received.add(event.text)
        listen(event)

    try:
        built = backend.build(request, listen=on_event)
    except OSError as exc:
        # Backends and their libraries write scratch files to the temporary folder.
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
    """Return the manifest of the existing engine, and the reasons why it does not match ``key``."""
    if not path.is_file():
        return None, ["there is no engine yet"]
    try:
        manifest = store.load(path, kind=cache_keys.ENGINE)
    except ArtifactError as exc:
        return None, [f"the existing engine is damaged: {exc.what}"]
    return manifest, [str(difference) for difference in store.differences(manifest.key, key)]


def _checked(
    content: Table, table: FoundArtifact, activations: list[str], profile: Profile, plan: Int8Plan, *, retarget: bool
) -> list[str]:
    """Check the table against the network, its route and its reader; raise errors and return warnings.

    The version in the header only matters for a table from one of TensorRT's own calibrators: edge's scales belong to
    the ONNX graph, and its tables are rewritten for any version of TensorRT.
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
    """Translate a finding for a table that TensorRT itself made.

    Such a table names the tensors of TensorRT's network, which may lack some of the graph's; the build reports the
    effect.
    """
    if finding.code == "missing":
        return msgspec.structs.replace(finding, level="warning")
    if finding.code == "version" and finding.level == "error":
        return msgspec.structs.replace(finding, hint=_OTHER_MAJOR)
    return finding


def _delivered(built: BuiltEngine, profile: Profile, precision: Precision) -> list[str]:
    """Check that the engine runs in the requested precision; return warnings.

    Raises:
        QualityError: no layer runs in it, or too few for a strict profile.
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
                hint="use fewer patterns in quantization.exclude, or --precision fp32",
            )
        limit, hint = f" (build.min_int8_share: {wanted:g})", "edge table check"
        if (by_backend := _without_int8_kernel(built)) is not None:
            limit, hint = f"{limit}; {by_backend[0]}", by_backend[1]
    else:
        known = layers.reduced_share
        if known is None:
            return ["FP16 was requested, but the engine does not show which of its layers run in FP16"]
        # TensorRT may choose a faster FP32 kernel; with most layers in FP32 it is not the requested engine.
        delivered, share, wanted = layers.weighted_fp16 + layers.weighted_int8, known, _MIN_FP16_SHARE
        limit, hint = "", "build again with no other program on the GPU: TensorRT chooses kernels by measuring"
    total = layers.weighted - (layers.weighted_float if precision == "int8" else 0)
    what = f"{precision.upper()} was requested, but only {delivered} of {total} weighted layers run in it"
    if layers.weighted_unknown:
        what += f" (the precision of {layers.weighted_unknown} is unknown)"
    if delivered == 0:
        raise QualityError(what, hint=f"{hint}; edge doctor")
    quantized = _quantized_against_the_recipe(built)
    if quantized and profile.build.strict:
        raise QualityError(quantized, hint="build again, or set build.strict: false to accept it")
    if share >= wanted:
        return [quantized] if quantized else []
    what += limit
    if profile.build.strict:
        raise QualityError(what, hint=f"{hint}; or set build.strict: false to accept it")
    return [what, *([quantized] if quantized else [])]


def _without_int8_kernel(built: BuiltEngine) -> tuple[str, str] | None:
    """Name the layers that run in float although they have scales, and a remedy; None if there are none."""
    if built.inspection is None:
        return None
    found = [
        f"{(layer.nodes or [layer.name])[0]} ({layer.kind})"
        for layer in built.inspection.layers
        if layer.role == "weighted" and layer.precision not in {None, "int8"} and layer.why is None
    ]
    if not found or built.info.get("qdq_quantized") != built.info.get("qdq_weighted"):
        return None
    rest = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    text = f"this backend has no INT8 kernel for {', '.join(found[:_NAMED])}{rest}"
    return text, "build for a profile with TensorRT, which has other kernels"


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
    """Return the last builds of this engine, newest last: duration and timing cache."""
    earlier = before.info.get("builds") if before is not None else None
    this = {name: info.get(name) for name in ("build_seconds", "peak_memory_mib", "timing_cache")}
    this["at_utc"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return [*(earlier if isinstance(earlier, list) else []), this][-_KEPT_BUILDS:]


def _files(engine: Path, built: BuiltEngine) -> dict[str, bytes]:
    """Return the files to save: the engine first, then the information about its layers."""
    files = {engine.name: built.data}
    if built.inspection is not None:
        files[engine.stem + inspection.SUFFIX] = inspection.encode_inspection(built.inspection)
    if built.raw_inspection is not None:
        files[engine.stem + inspection.RAW_SUFFIX] = built.raw_inspection
    return files

"""YAML device profiles: read, merged along ``extends``, checked, and frozen.

An invalid profile is reported as ``file:line: key.path: problem``. Paths in a profile are relative to its file.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from edge.artifacts import canonical_digest, decode_secret, encode_masked
from edge.config.run_sections import (
    CameraConfig,
    ConfigSection,
    DecisionSettings,
    NamedCameraConfig,
    NotifyRule,
    Positive,
    PositiveFloat,
    RecordConfig,
    Roi,
    RunConfig,
    WebConfig,
    check_camera,
    check_roi,
    check_rule,
    is_camera_name,
    merge_cameras,
    pasted,
)
from edge.config.yaml_source import Document, Kind, did_you_mean
from edge.errors import ProfileError

Family = Literal["host", "agx-orin", "orin-nx", "orin-nano", "thor", "rtx"]
BackendName = Literal["onnxruntime", "tensorrt", "fake"]
Precision = Literal["fp32", "fp16", "int8"]
Int8Route = Literal["auto", "implicit", "explicit"]
Percent = Annotated[float, msgspec.Meta(ge=0, le=100)]
Triple = tuple[float, float, float]


class BatchRange(ConfigSection, frozen=True):
    """Batch sizes that the engine accepts (min to max), and the one it is optimized for (opt)."""

    min: Positive = 1
    opt: Positive = 1
    max: Positive = 1


class InputConfig(ConfigSection, frozen=True):
    """Input of the network: height and width in pixels, and batch sizes."""

    height: Positive = 224
    width: Positive = 224
    batch: BatchRange = BatchRange()


class PreprocessConfig(ConfigSection, frozen=True):
    """Preprocessing of an image to the network's input (:mod:`edge.model.preprocessing`); ``exif`` applies orientation.

    ``roi``: the region of every image that the network sees, ``[x, y, width, height]`` in pixels or as fractions of
    the image (0 to 1). Images of more than ``max_megapixels`` are not decoded. ``mean`` and ``std`` are per channel
    in the order of ``color``, in units of 8-bit pixel values (0 to 255).
    """

    fit: Literal["crop", "letterbox", "squash"] = "crop"
    resize: Positive = 256
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    color: Literal["rgb", "bgr"] = "rgb"
    mean: Triple = (123.675, 116.28, 103.53)
    std: Triple = (58.395, 57.12, 57.375)
    pad: Annotated[int, msgspec.Meta(ge=0, le=255)] = 114
    exif: bool = True
    roi: Roi | None = None
    max_megapixels: PositiveFloat = 100.0


class CalibrationConfig(ConfigSection, frozen=True):
    """Calibration: algorithm, images, and who makes the table: edge, or the device's TensorRT (``engine``)."""

    algorithm: str = "auto"
    parameters: dict[str, float] = msgspec.field(default_factory=dict)
    images: str | None = None
    batch: Positive = 8
    engine: Literal["edge", "tensorrt"] = "edge"


class QuantizationConfig(ConfigSection, frozen=True):
    """Preparation of the network for INT8, and the layers that stay in float.

    ``recipe``: with auto, `edge calibrate` measures which steps help and `edge tune` extends the recipe; none leaves
    the network unchanged; otherwise the path of a recipe file. ``exclude`` and ``include`` are layer names, patterns
    (``*``, ``?``) or operator types; ``include`` overrides exclusions and the recipe. ``attention`` is about products
    of two activations, ``residual`` about sums to quantize, and ``shift`` about one-sided activations; null means
    ``all`` on the host and with TensorRT for RTX, and ``off`` with other versions of TensorRT, where its cost is not
    measured.
    """

    recipe: str = "auto"
    exclude: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    attention: Literal["float", "int8"] = "float"
    residual: Literal["conv", "all", "none"] = "conv"
    shift: Literal["off", "unpadded", "all"] | None = None


class BuildConfig(ConfigSection, frozen=True):
    """Build settings; a backend ignores those it does not support, and the manifest lists the ignored ones.

    ``min_int8_share`` is the share of convolution and matrix-product layers that must actually run in INT8.
    ``version_compatible`` and ``hardware_compatibility`` (AMPERE_PLUS …) make a TensorRT engine portable to more
    machines at some cost in speed. ``compute_capabilities`` (SM86 …) are the targets of TensorRT for RTX; by default
    all that it supports.
    """

    workspace_mib: Positive | None = None
    timing_cache: bool = True
    optimization_level: Annotated[int, msgspec.Meta(ge=0, le=5)] | None = None
    dla_core: Annotated[int, msgspec.Meta(ge=0, le=1)] | None = None
    gpu_fallback: bool = True
    strict: bool = True
    min_int8_share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.9
    version_compatible: bool = False
    hardware_compatibility: str | None = None
    compute_capabilities: tuple[Annotated[str, msgspec.Meta(pattern=r"^SM\d{2,3}$")], ...] = ()


class TelemetryConfig(ConfigSection, frozen=True):
    """Power measurement: source (``auto`` probes the available ones), rate, and idle time before a run.

    ``idle_s`` is the baseline for net energy; 0 means none. ``log`` is a file for every reading.
    ``set_power_mode`` switches to the profile's ``power_mode`` for the duration of a run, which needs root.
    """

    source: str = "auto"
    rate_hz: Annotated[float, msgspec.Meta(gt=0, le=100)] = 10.0
    idle_s: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 0.0
    log: str | None = None
    set_power_mode: bool = False


OutputKind = Literal["logits", "probabilities"]


class OutputOptions(msgspec.Struct, frozen=True):
    """Settings of the model's output.

    Attributes:
        name: the output with the class scores; None if there is only one.
        kind: the meaning of its values; None: derived from the model.
    """

    name: str | None = None
    kind: OutputKind | None = None


class QualityConfig(ConfigSection, frozen=True):
    """Limits for the accuracy of INT8; missing one of them gives exit code 1.

    ``min_top1`` and ``min_agreement`` in percent, ``max_drop`` of top-1 against FP32 in points, ``min_sqnr`` of the
    logits in dB. ``collapse: allow`` accepts an engine whose accuracy has collapsed (:mod:`edge.calibration.quality`).
    """

    collapse: Literal["error", "allow"] = "error"
    min_top1: Percent | None = None
    min_agreement: Percent | None = None
    max_drop: Annotated[float, msgspec.Meta(ge=0)] | None = None
    min_sqnr: float | None = None


class Profile(ConfigSection, frozen=True):
    """Everything about one device, resolved: ``extends`` merged, paths absolute.

    ``output`` is the meaning of the network's output values (null: derived from the model), and ``output_name`` the
    output with the class scores if there are several.
    """

    name: str
    family: Family
    backend: BackendName
    model: str
    labels: str
    output: OutputKind | None = None
    output_name: str | None = None
    input: InputConfig = InputConfig()
    preprocess: PreprocessConfig = PreprocessConfig()
    precision: Precision = "int8"
    int8_route: Int8Route = "auto"
    calibration: CalibrationConfig = CalibrationConfig()
    quantization: QuantizationConfig = QuantizationConfig()
    build: BuildConfig = BuildConfig()
    power_mode: str | None = None
    run: RunConfig = RunConfig()
    camera: CameraConfig = CameraConfig()
    cameras: dict[str, NamedCameraConfig] = msgspec.field(default_factory=dict)
    record: RecordConfig = RecordConfig()
    web: WebConfig = WebConfig()
    decision: DecisionSettings = DecisionSettings()
    notify: tuple[NotifyRule, ...] = ()
    telemetry: TelemetryConfig = TelemetryConfig()
    quality: QualityConfig = QualityConfig()

    @property
    def outputs(self) -> OutputOptions:
        """``output_name`` and ``output`` together."""
        return OutputOptions(self.output_name, self.output)

    @property
    def shift(self) -> Literal["off", "unpadded", "all"]:
        """One-sided activations to shift around zero: the profile's setting, or a default by backend and family."""
        if self.quantization.shift is not None:
            return self.quantization.shift
        return "all" if self.backend == "onnxruntime" or self.family == "rtx" else "off"

    @property
    def digest(self) -> str:
        """Sha256 of the settings that an engine depends on, without paths and run settings."""
        content = msgspec.to_builtins(self, enc_hook=encode_masked)
        for name in (
            "name",
            "model",
            "labels",
            "run",
            "camera",
            "cameras",
            "record",
            "web",
            "decision",
            "notify",
            "telemetry",
            "power_mode",
            "calibration",
            "quantization",
            "quality",
        ):
            del content[name]
        for name in ("output", "output_name"):
            # Newer than the first engines: only a set value is part of the digest, so that those engines stay valid.
            if content[name] is None:
                del content[name]
        del content["preprocess"]["max_megapixels"]
        if content["preprocess"]["roi"] is None:
            del content["preprocess"]["roi"]
        return canonical_digest(content)


def read_profile(path: Path) -> Profile:
    """Read the profile at ``path`` and all profiles that it extends.

    Raises:
        ProfileError: the profile is invalid; the error has ``file:line: key.path`` and a suggestion for a misspelt
        name.
    """
    document = Document.read(path, _KIND)
    document.reject_unknown(Profile, document.tree)
    merge_cameras(document)
    try:
        profile = msgspec.convert(document.tree, Profile, dec_hook=decode_secret)
    except msgspec.ValidationError as exc:
        raise document.error_from(exc, Profile) from exc
    _check_together(profile, document)
    return profile


def find_profile(name: str, folders: list[Path]) -> Path:
    """Find the profile called ``name``: a path to a YAML file, or the name of a file in one of ``folders``.

    Raises:
        ProfileError: it does not exist; the nearest name is suggested.
    """
    if name.endswith((".yaml", ".yml")) or os.sep in name:
        return Path(name)
    known = {path.stem: path for path in available_profiles(folders)}
    if name in known:
        return known[name]
    raise ProfileError(
        f"there is no profile {name!r}{did_you_mean(name, known)}",
        where=", ".join(str(folder) for folder in folders) or None,
        hint="edge profile list"
        if known
        else "run edge inside a checkout or in a folder with profiles/, or give --profile FILE",
    )


def available_profiles(folders: list[Path]) -> list[Path]:
    """List the profile files in ``folders`` by name; if two have the same name, the first folder wins."""
    found: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.glob("*.yaml")):
            found.setdefault(path.stem, path)
    return [found[name] for name in sorted(found)]


def _check_together(profile: Profile, document: Document) -> None:
    """Check conditions that involve more than one key."""
    _check_preprocess(profile, document)
    _check_backend(profile, document)
    for name, value in profile.calibration.parameters.items():
        if not math.isfinite(value):
            raise document.error(("calibration", "parameters", name), f"must be finite, got {value}")
    # The name becomes the name of a folder of engines.
    if profile.name in {"", ".", ".."} or any(sign in profile.name for sign in "/\\\0"):
        raise document.error(("name",), f"{profile.name!r} cannot be used as a folder name")
    if profile.preprocess.roi is not None and any(c.roi for c in (profile.camera, *profile.cameras.values())):
        raise document.error(
            ("preprocess", "roi"), "a camera also has a roi, and the two cannot be combined",
            hint="use camera.roi for camera frames only, or preprocess.roi for every image, also in calibration",
        )  # fmt: skip
    check_camera(profile.camera, document, ("camera",))
    for name, camera in profile.cameras.items():
        if not is_camera_name(name):
            raise document.error(("cameras", name), "a name may only have letters, digits, - and _, at most 32")
        check_camera(camera, document, ("cameras", name))
    for index, rule in enumerate(profile.notify):
        check_rule(rule, document, ("notify", str(index)))


def _check_preprocess(profile: Profile, document: Document) -> None:
    batch, pre = profile.input.batch, profile.preprocess
    if not batch.min <= batch.opt <= batch.max:
        raise document.error(("input", "batch"), f"needs min <= opt <= max, got {batch.min}, {batch.opt}, {batch.max}")
    if pre.fit == "crop" and pre.resize < max(profile.input.height, profile.input.width):
        size = f"{profile.input.height}x{profile.input.width}"
        raise document.error(("preprocess", "resize"), f"{pre.resize} is smaller than the {size} crop taken from it")
    for name, values in (("mean", pre.mean), ("std", pre.std)):
        if not all(math.isfinite(value) for value in values):
            raise document.error(("preprocess", name), f"must be finite for every channel, got {list(values)}")
    if min(pre.std) <= 0:
        raise document.error(("preprocess", "std"), f"must be above 0 for every channel, got {list(pre.std)}")
    _check_units(pre, document)
    check_roi(pre.roi, document, ("preprocess", "roi"))


def _check_backend(profile: Profile, document: Document) -> None:
    if profile.build.dla_core is not None and profile.family not in {"agx-orin", "orin-nx"}:
        raise document.error(("build", "dla_core"), f"{profile.family} has no DLA")
    if profile.build.dla_core is not None and profile.backend != "tensorrt":
        raise document.error(("build", "dla_core"), f"backend {profile.backend} has no DLA")
    if profile.backend == "onnxruntime" and profile.precision == "fp16":
        raise document.error(("precision",), "ONNX Runtime on a CPU runs fp32 or int8, not fp16")


def _check_units(pre: PreprocessConfig, document: Document) -> None:
    """Refuse mean and std in units of 0 to 1, which torchvision and timm use, also where only one of them is.

    0 and 1 are accepted: networks that take raw pixel values use them.
    """
    largest = max(map(abs, pre.mean))
    if largest > 255:
        raise document.error(
            ("preprocess", "mean"), f"mean {pasted(pre.mean)} is outside of the pixel values 0 to 255",
            hint="scale: 1/255 is for mean and std in units of 0 to 1; without it they are in units of 0 to 255",
        )  # fmt: skip
    for name, values, is_unit in (
        ("mean", pre.mean, 0 < largest <= 1 < min(pre.std)),
        ("std", pre.std, max(pre.std) < 1 < largest),
    ):
        if is_unit:
            raise document.error(
                ("preprocess", name),
                f"{name} {pasted(values)} is in units of 0 to 1, and the other in units of 0 to 255",
                hint=f"{name}: {pasted(value * 255 for value in values)}",
            )
    is_small = max(map(abs, pre.mean)) <= 1 and max(pre.std) <= 1
    if is_small and (pre.mean, pre.std) != ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)):
        mean, std = (pasted(value * 255 for value in values) for values in (pre.mean, pre.std))
        raise document.error(
            ("preprocess", "mean"),
            f"mean {pasted(pre.mean)} and std {pasted(pre.std)} are in units of 0 to 1 (torchvision), but pixel "
            "values here are 0 to 255",
            hint=f"use these two lines, or add scale: 1/255 to yours\n  mean: {mean}\n  std: {std}",
        )


def _convert_values(document: Document) -> None:
    """Bring ``preprocess.mean`` and ``std`` of one file to three values in units of 0 to 255, a bare off to text.

    One address of a notification becomes a list of one.
    """
    for rule in rules if isinstance(rules := document.tree.get("notify"), list) else []:
        if isinstance(rule, dict) and isinstance(rule.get("to"), str):
            rule["to"] = [rule["to"]]
    quantization = document.tree.get("quantization")
    if isinstance(quantization, dict) and quantization.get("shift") is False:
        quantization["shift"] = "off"  # YAML 1.1 reads off as false
    section = document.tree.get("preprocess")
    if not isinstance(section, dict):
        return
    for name in ("mean", "std"):
        if _is_number(section.get(name)):
            section[name] = [section[name]] * 3
    if "scale" not in section:
        return
    scale = _scale(section.pop("scale"), document)
    for name in ("mean", "std"):
        if name not in section:
            raise document.error(
                ("preprocess", "scale"), f"requires {name} in the same file",
                hint="for an input of 0 to 1: scale: 1/255, mean: 0, std: 1",
            )  # fmt: skip
        values = section[name]
        if isinstance(values, list) and all(map(_is_number, values)):
            section[name] = [value / scale for value in values]


def _scale(value: object, document: Document) -> float:
    """Parse ``preprocess.scale``: a number, or a fraction such as 1/255."""
    number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([0-9.]+)\s*/\s*([0-9.]+)\s*", value)
        try:
            number = float(match[1]) / float(match[2]) if match else math.nan
        except (ValueError, ZeroDivisionError):
            number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise document.error(
            ("preprocess", "scale"), f"must be a number or fraction above 0, got {value!r}", hint="1/255"
        )
    return number


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# Keys of a profile that name files, and words that are allowed instead of a file.
PROFILE_PATHS: frozenset[tuple[str, ...]] = frozenset(
    {
        ("model",),
        ("labels",),
        ("calibration", "images"),
        ("web", "token_file"),
        ("telemetry", "log"),
        ("quantization", "recipe"),
    }
)
PROFILE_PATH_WORDS = frozenset({"auto", "none"})
_KIND = Kind(
    name="profile", hint="edge profile list", paths=PROFILE_PATHS, words=PROFILE_PATH_WORDS, convert=_convert_values
)
